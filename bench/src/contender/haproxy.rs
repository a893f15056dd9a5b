//! haproxy in TCP mode.

use std::net::SocketAddr;
use std::process::Command;

use super::{Running, Workshop};
use crate::problem::Problem;

pub(super) const PROGRAM: &str = "/usr/sbin/haproxy";

pub(super) fn launch(workshop: &Workshop, backend: SocketAddr) -> Result<Running, Problem> {
    let templates = [
        ("haproxy-server.cfg", include_str!("haproxy-server.cfg")),
        ("haproxy-client.cfg", include_str!("haproxy-client.cfg")),
    ];
    workshop.launch(backend, templates, |config| {
        let mut command = Command::new(PROGRAM);
        command.args(["-db", "-f"]).arg(config);
        command
    })
}
