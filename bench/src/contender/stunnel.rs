//! stunnel: one thread per session, buffers of 18 KiB that cannot be set.

use std::net::SocketAddr;
use std::process::Command;

use super::{Running, Workshop};
use crate::problem::Problem;

const PROGRAM: &str = "/usr/bin/stunnel4";

pub(super) fn launch(workshop: &Workshop, backend: SocketAddr) -> Result<Running, Problem> {
    let templates = [
        ("stunnel-server.conf", include_str!("stunnel-server.conf")),
        ("stunnel-client.conf", include_str!("stunnel-client.conf")),
    ];
    workshop.launch(backend, templates, |config| {
        let mut command = Command::new(PROGRAM);
        command.arg(config);
        command
    })
}

/// It begins with other talk, on stderr.
pub(super) fn version() -> String {
    let Ok(output) = Command::new(PROGRAM).arg("-version").output() else {
        return format!("{PROGRAM} cannot be run");
    };
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.starts_with("stunnel "));
    line.unwrap_or_default().to_owned()
}
