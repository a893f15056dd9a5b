//! What monitoring on the same host gets over HTTP, and what nobody gets.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use testbed::programs::pgtlsproxy;
use testbed::tunnel::server_config;
use testbed::{Node, Pki, Scratch, Tunnel, run, wait_until};

fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A tunnel whose server end answers at the address.
fn watched(primary: &Node, more: &str) -> (Tunnel, SocketAddr) {
    let at = free();
    let admin = ADMIN.replace("{at}", &at.to_string()) + more;
    (Tunnel::with(primary.socket().display(), &admin, ""), at)
}

const ADMIN: &str = "[admin]\nlisten = \"{at}\"\n";

fn request(at: SocketAddr, method: &str, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream
        .set_read_timeout(Some(testbed::wait::PATIENCE))
        .unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(at: SocketAddr, path: &str) -> String {
    request(at, "GET", path, &at.to_string())
}

#[track_caller]
fn assert_status(answer: &str, status: u16) {
    let line = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&line), "not {status}: {answer}");
}

#[test]
fn monitoring_sees_a_stream_begin() {
    let primary = Node::primary();
    let (tunnel, at) = watched(&primary, "status = true\n");
    assert_status(&get(at, "/healthz"), 200);
    assert_status(&get(at, "/readyz"), 200);
    let none = get(at, "/readyz?replication");
    assert_status(&none, 503);
    assert!(none.contains("no replication stream"), "{none}");

    let standby = Node::builder("standby").init_from_backup(&tunnel.conninfo());
    standby.set_standby(&tunnel.conninfo(), None);
    let _standby = standby.started();
    primary.wait_for_standby("standby");
    wait_until("it is ready for replication", || {
        get(at, "/readyz?replication").starts_with("HTTP/1.1 200 ")
    });
    let metrics = get(at, "/metrics");
    for told in [
        "\npgtlsproxy_sessions{tunnel=\"server\",kind=\"physical\",identity=\"other\",state=\"streaming\"} 1",
        "\npgtlsproxy_connections_ended_total{tunnel=\"server\",end=\"finished\",",
        "\npgtlsproxy_expiry_timestamp_seconds{of=\"own\",",
        "\npgtlsproxy_reloads_total{outcome=\"good\"} 0",
        "\n# EOF\n",
    ] {
        assert!(metrics.contains(told), "{told} is not in {metrics}");
    }
    let status = get(at, "/status.json");
    assert_status(&status, 200);
    assert!(status.contains("\"identity\":\"dns:standby.test\""));
}

#[test]
fn what_only_reads_on_this_host_refuses_the_rest() {
    let primary = Node::primary();
    let (_tunnel, at) = watched(&primary, "");
    let untold = get(at, "/status.json");
    assert_status(&untold, 404);
    assert!(untold.contains("status = true"), "{untold}");
    let post = request(at, "POST", "/healthz", "localhost");
    assert_status(&post, 405);
    for host in ["rebound.example", "127.0.0.1.example", "127.0.0.1:1", ""] {
        assert_status(&request(at, "GET", "/metrics", host), 421);
    }
    let answer = request(at, "HEAD", "/metrics", "localhost");
    assert_status(&answer, 200);
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    for header in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        assert!(answer.contains(header), "{header} is not in {answer}");
    }
}

#[test]
fn slow_headers_are_cut_off_and_keep_nobody_waiting_for_long() {
    let primary = Node::primary();
    let (_tunnel, at) = watched(&primary, "");
    let start = Instant::now();
    let mut slow: Vec<_> = (0..40).map(|_| TcpStream::connect(at).unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHo").unwrap();
    }
    assert_status(&get(at, "/healthz"), 200);
    for mut stream in slow {
        stream
            .set_read_timeout(Some(testbed::wait::PATIENCE))
            .unwrap();
        // An answer, the end or a reset: the connection is over.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(start.elapsed() < Duration::from_secs(25));
}

#[test]
fn address_that_others_reach_is_refused() {
    let dir = Scratch::new("config");
    let identity = Pki::new().issue("primary");
    for listen in ["0.0.0.0:5445", "[::]:5445", "192.0.2.1:5445", "localhost"] {
        let admin = ADMIN.replace("{at}", listen);
        let config = dir.path().join("pgtlsproxy.toml");
        std::fs::write(&config, server_config(&identity, "/run/postgresql", &admin)).unwrap();
        let mut check = std::process::Command::new(pgtlsproxy());
        let error = run(check.arg("check").arg("--config").arg(&config)).unwrap_err();
        assert!(error.contains("without TLS"), "{listen}: {error}");
    }
}
