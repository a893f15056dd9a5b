//! stunnel: one thread per session, buffers of 18 KiB that cannot be set.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::{Process, Running, Workshop, free_address};
use crate::problem::Problem;

const PROGRAM: &str = "/usr/bin/stunnel4";

pub(super) fn launch(workshop: &Workshop, backend: SocketAddr) -> Result<Running, Problem> {
    let (tls, entry) = (free_address(), free_address());
    let server = workshop.configure(
        "stunnel-server.conf",
        include_str!("stunnel-server.conf"),
        &[("LISTEN", &tls), ("BACKEND", &backend)],
    )?;
    let client = workshop.configure(
        "stunnel-client.conf",
        include_str!("stunnel-client.conf"),
        &[("LISTEN", &entry), ("CONNECT", &tls)],
    )?;
    let run = |config: &Path| {
        let mut command = Command::new(PROGRAM);
        command.arg(config);
        Process::start(&command, config.with_extension("log"))
    };
    Ok(Running {
        entry,
        admin: None,
        server: Some(run(&server)?),
        client: Some(run(&client)?),
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
