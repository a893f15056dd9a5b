//! What the process tells of itself is what the kernel says, and all of it under the unit that comes with it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::time::{SystemTime, UNIX_EPOCH};

use testbed::scrape::free_address;
use testbed::tunnel::server_config;
use testbed::{Node, Pki, Scrape, Sidecar, StandIn, Watched};

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

#[test]
fn all_process_figures_are_told_under_the_unit() {
    let unit = include_str!("../../proxy/src/setup/pgtlsproxy.service");
    assert!(unit.contains("\nProcSubset=pid\n"));
    let (pki, stand_in, at) = (Pki::new(), StandIn::new(), free_address());
    let admin = format!("[admin]\nlisten = \"{at}\"\n");
    let config = server_config(&pki.issue("primary"), stand_in.upstream(), &admin);
    let before = unix_now();
    let Some(_server) = Sidecar::run_as_a_service_sees_proc("server", &config) else {
        println!("left out: mounts need root");
        return;
    };
    let scrape = Scrape::of(at);
    let empty: Vec<_> = scrape
        .families
        .iter()
        .filter(|(name, family)| name.starts_with("process_") && family.samples == 0)
        .collect();
    assert!(empty.is_empty(), "{empty:?}");
    let started = scrape.sum("process_start_time_seconds", &[]).unwrap();
    assert!(
        (before - 1.0..=unix_now()).contains(&started),
        "{started}, and it was {before}"
    );
}

fn unix_now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}
