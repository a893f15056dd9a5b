//! What the process tells of itself is what the kernel says, and all of it under the unit that comes with it.
#![allow(clippy::unwrap_used)]

use testbed::{Node, Scrape, Watched};

#[test]
fn process_figures_are_those_of_the_kernel() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    let server = &watched.tunnel.server;
    let scrape = Scrape::of(watched.server);
    let told = |name| scrape.sum(name, &[]).unwrap();
    let memory = server.rss_kib() as f64 * 1024.0;
    let ratio = told("process_resident_memory_bytes") / memory;
    assert!((0.7..1.4).contains(&ratio), "{ratio}");
    assert!((told("process_cpu_seconds_total") - server.cpu_seconds()).abs() < 0.5);
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count() as f64;
    assert!((told("process_open_fds") - open).abs() < 5.0, "{open}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let soft = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let soft: f64 = soft.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!((told("process_max_fds") - soft).abs() < 0.5);
}
