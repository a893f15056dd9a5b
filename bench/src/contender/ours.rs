//! Our own two sidecars, as they come: only the limit on sessions is raised, for thousands of idle ones, and they answer
//! monitoring where a scenario asks for it.

use std::net::SocketAddr;
use std::process::Command;

use super::{Process, Running, Workshop, free_address};
use crate::cli::Records;
use crate::problem::Problem;

pub(super) fn launch(
    workshop: &Workshop,
    backend: SocketAddr,
    records: Records,
) -> Result<Running, Problem> {
    let relay = match records {
        Records::Default => "",
        Records::Rustls => "[relay]\nrecords = \"rustls\"",
        Records::InPlace => "[relay]\nrecords = \"in_place\"",
    };
    let (tls, entry) = (free_address(), free_address());
    let admin = [free_address(), free_address()];
    let monitoring = admin.map(|address| match workshop.is_monitored {
        true => format!("[admin]\nlisten = \"{address}\"\nstatus = true"),
        false => String::new(),
    });
    let server = workshop.configure(
        "pgtlsproxy-server.toml",
        include_str!("pgtlsproxy-server.toml"),
        &[
            ("LISTEN", &tls),
            ("BACKEND", &backend),
            ("ADMIN", &monitoring[0]),
            ("RELAY", &relay),
        ],
    )?;
    let client = workshop.configure(
        "pgtlsproxy-client.toml",
        include_str!("pgtlsproxy-client.toml"),
        &[
            ("LISTEN", &entry),
            ("CONNECT", &tls),
            ("ADMIN", &monitoring[1]),
            ("RELAY", &relay),
        ],
    )?;
    let run = |config: &std::path::Path| {
        let mut command = Command::new(&workshop.pgtlsproxy);
        command.arg("run").arg("--config").arg(config);
        Process::start(&command, config.with_extension("log"))
    };
    Ok(Running {
        entry,
        admin: workshop.is_monitored.then_some(admin),
        server: Some(run(&server)?),
        client: Some(run(&client)?),
    })
}
