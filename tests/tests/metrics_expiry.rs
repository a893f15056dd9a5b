//! Until when certificates, CAs and CRLs count, as the metrics tell it.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use testbed::postgres::psql;
use testbed::scrape::free_address;
use testbed::tunnel::server_config;
use testbed::watched::status;
use testbed::{Node, Pki, Scrape, Scratch, Sidecar, StandIn, Watched, put, run, wait_until};

#[test]
fn expiry_is_told_of_our_own_the_ca_and_peers_by_configured_name() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    psql(
        &format!("{} replication=true", watched.tunnel.conninfo()),
        "IDENTIFY_SYSTEM",
    )
    .unwrap();
    for (end, at, peer) in [
        ("server", watched.server, "cn:standby"),
        ("client", watched.client, "ip:127.0.0.1"),
    ] {
        let scrape = Scrape::of(at);
        let status = status(at);
        for of in ["own", "ca", "peer"] {
            let certificates = status["certificates"].as_array().unwrap();
            let told = certificates
                .iter()
                .find(|certificate| certificate["of"] == of)
                .unwrap();
            let name = if of == "peer" {
                peer
            } else {
                told["name"].as_str().unwrap()
            };
            let labels = [("of", of), ("name", name)];
            let value = |name| scrape.sum(name, &labels).unwrap();
            let (begin, expiry) = (
                value("pgtlsproxy_validity_start_timestamp_seconds"),
                value("pgtlsproxy_expiry_timestamp_seconds"),
            );
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            let days = (expiry - now.as_secs_f64()) / 86_400.0;
            let left = told["days_left"].as_f64().unwrap();
            assert!((days - left).abs() < 0.01, "{end} {of}: {days}, {left}");
            assert!(begin <= now.as_secs_f64() && begin < expiry);
        }
    }
}

/// A field of a CRL as openssl reads it.
fn field(crl: &std::path::Path, option: &str) -> String {
    let mut openssl = Command::new("openssl");
    let said = run(openssl.args(["crl", "-noout", option, "-in"]).arg(crl)).unwrap();
    let (_, value) = said.trim().split_once('=').unwrap();
    value.to_owned()
}

fn unix(date: &str) -> f64 {
    let said = run(Command::new("date").args(["+%s", "--date", date])).unwrap();
    said.trim().parse().unwrap()
}

#[test]
fn expiry_is_told_of_the_crl_in_use() {
    let (pki, dir, stand_in, at) = (
        Pki::new(),
        Scratch::new("crl"),
        StandIn::new(),
        free_address(),
    );
    let crl = dir.path().join("ca.crl");
    let (primary, _) = (pki.issue("primary"), pki.issue("gone"));
    let renewed = || put(std::fs::read(pki.crl()).unwrap(), &crl);
    renewed();
    let admin = format!("[admin]\nlisten = \"{at}\"\n");
    let config = server_config(&primary, stand_in.upstream(), &admin)
        .replace(&primary.toml(), &primary.toml_with_crl(&crl));
    let _server = Sidecar::run("server", &config);
    let told = |name: &str| -> Vec<(String, f64)> {
        let scrape = Scrape::of(at);
        let series = scrape.series(name, &[("of", "crl")]);
        series
            .map(|one| (one.labels["serial"].clone(), one.value))
            .collect()
    };
    let is_told = || {
        let number = field(&crl, "-crlnumber")
            .trim_start_matches("0x")
            .to_lowercase();
        let both = [
            ("pgtlsproxy_validity_start_timestamp_seconds", "-lastupdate"),
            ("pgtlsproxy_expiry_timestamp_seconds", "-nextupdate"),
        ];
        for (name, option) in both {
            let expected = vec![(number.clone(), unix(&field(&crl, option)))];
            wait_until(&format!("{name} to be {expected:?}"), || {
                told(name) == expected
            });
        }
        number
    };
    let first = is_told();
    // The next one takes its place, and leaves no series behind.
    pki.revoke("gone");
    renewed();
    assert_ne!(is_told(), first);
}
