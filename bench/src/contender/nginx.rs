//! nginx with its stream module: the cheapest peer that Debian ships.

use std::net::SocketAddr;
use std::process::Command;

use super::{Running, Workshop};
use crate::problem::Problem;

pub(super) const PROGRAM: &str = "/usr/sbin/nginx";

/// CPU-seconds per GiB of both sides in a bulk stream, on the class of machine this was tuned on: AMD EPYC with AVX-512, Debian 12.
/// Outside of it nginx is suspected to be badly tuned, or the machine to be another one.
pub(crate) const EXPECTED_CPU_PER_GIB: std::ops::RangeInclusive<f64> = 0.9..=1.1;

pub(super) fn launch(workshop: &Workshop, backend: SocketAddr) -> Result<Running, Problem> {
    let templates = [
        ("nginx-server.conf", include_str!("nginx-server.conf")),
        ("nginx-client.conf", include_str!("nginx-client.conf")),
    ];
    workshop.launch(backend, templates, |config| {
        let mut command = Command::new(PROGRAM);
        command.args(["-e", "stderr", "-p"]).arg(workshop.dir());
        command.arg("-c").arg(config);
        command
    })
}
