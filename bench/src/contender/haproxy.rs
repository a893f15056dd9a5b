//! haproxy in TCP mode.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::{Process, Running, Workshop, free_address};
use crate::problem::Problem;

pub(super) const PROGRAM: &str = "/usr/sbin/haproxy";

pub(super) fn launch(workshop: &Workshop, backend: SocketAddr) -> Result<Running, Problem> {
    let (tls, entry) = (free_address(), free_address());
    let server = workshop.configure(
        "haproxy-server.cfg",
        include_str!("haproxy-server.cfg"),
        &[("LISTEN", &tls), ("BACKEND", &backend)],
    )?;
    let client = workshop.configure(
        "haproxy-client.cfg",
        include_str!("haproxy-client.cfg"),
        &[("LISTEN", &entry), ("CONNECT", &tls)],
    )?;
    let run = |config: &Path| {
        let mut command = Command::new(PROGRAM);
        command.args(["-db", "-f"]).arg(config);
        Process::start(&command, config.with_extension("log"))
    };
    Ok(Running {
        entry,
        admin: None,
        server: Some(run(&server)?),
        client: Some(run(&client)?),
    })
}
