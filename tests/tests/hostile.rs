//! Bad input leaves the sidecar healthy and its upstream untouched, with a clear line in the log.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testbed::tunnel::server_config;
use testbed::wire::{self, SSL_REQUEST, Wire, packet, startup};
use testbed::{Identity, Node, Pki, Sidecar, StandIn, Tunnel, wait_until};

fn server(stand_in: &StandIn, more: &str) -> (Sidecar, Identity) {
    let pki = Pki::new();
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), more),
    );
    (server, pki.issue("standby"))
}

/// A good connection still comes through, and it is the first to reach PostgreSQL.
#[track_caller]
fn assert_healthy(server: &Sidecar, identity: &Identity, stand_in: &StandIn) {
    assert!(
        stand_in.accepted().is_none(),
        "PostgreSQL heard of a refused peer"
    );
    let mut wire = Wire::direct_tls(server.address(), identity);
    wire.send(&wire::replication_startup());
    assert_eq!(stand_in.accept_startup().1, wire::replication_startup());
}

fn garbage() -> Vec<Vec<u8>> {
    let length = |length: u32| [&length.to_be_bytes()[..], &[0; 8]].concat();
    vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
        b"\x80\x2e\x01\x00\x02".to_vec(),
        vec![0xff; 4096],
        vec![0x16; 4096],
        [&[0x16, 3, 1, 0x40, 0][..], &[1; 0x4000]].concat(),
        length(0),
        length(7),
        length(10_005),
        length(u32::MAX),
        length(0x0100_0000),
        packet(&[0, 3, 0, 0]),
        packet(b"\x00\x03\x00\x00user\0rep"),
        packet(b"\x00\x03\x00\x00user\0rep\0\0\0"),
        packet(b"\x00\x02\x00\x00user\0rep\0\0"),
        packet(b"\x00\x04\x00\x00user\0rep\0\0"),
        packet(b"\x04\xd2\x16\x2e\0\0"),
        startup(&[("replication", "true")]),
    ]
}

#[test]
fn garbage_before_tls_is_turned_away() {
    let stand_in = StandIn::new();
    let (server, identity) = server(&stand_in, "");
    for bytes in garbage() {
        let mut wire = Wire::tcp(server.address());
        let _ = wire.try_send(&bytes);
        let _ = wire.try_send(&[0; 16]);
        wire.ending();
    }
    assert_healthy(&server, &identity, &stand_in);
}

#[test]
fn garbage_inside_tls_is_turned_away() {
    let stand_in = StandIn::new();
    let (server, identity) = server(&stand_in, "");
    for bytes in garbage() {
        let mut wire = Wire::direct_tls(server.address(), &identity);
        let _ = wire.try_send(&bytes);
        let _ = wire.try_send(&[0; 16]);
        wire.ending();
    }
    assert_healthy(&server, &identity, &stand_in);
}

#[test]
fn garbage_on_a_plain_listener_is_turned_away() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    for bytes in garbage() {
        let mut wire = Wire::tcp(tunnel.client.address());
        let _ = wire.try_send(&bytes);
        let _ = wire.try_send(&[0; 16]);
        wire.ending();
    }
    assert!(stand_in.accepted().is_none());
    Wire::tcp(tunnel.client.address()).send(&wire::replication_startup());
    stand_in.accept_startup();
}

#[test]
fn garbage_from_upstream_harms_nobody() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    for bytes in garbage() {
        let mut wire = Wire::tcp(tunnel.client.address());
        wire.send(&wire::replication_startup());
        let (mut upstream, _) = stand_in.accept_startup();
        upstream.send(&bytes);
        assert_eq!(wire.read_exactly(bytes.len()), bytes);
    }
}

#[test]
fn silent_and_slow_and_truncated_peers_are_given_up() {
    let stand_in = StandIn::new();
    let (server, identity) = server(&stand_in, "[timeouts]\nhandshake = \"1s\"");
    let mut peers = vec![
        Wire::tcp(server.address()),
        Wire::tcp(server.address()),
        Wire::tcp(server.address()),
    ];
    peers[1].send(&SSL_REQUEST[..5]);
    peers[2].send(&SSL_REQUEST);
    peers.push(Wire::direct_tls(server.address(), &identity));
    peers.push(Wire::direct_tls(server.address(), &identity));
    peers[4].send(&wire::replication_startup()[..20]);
    for peer in &mut peers {
        peer.ending();
    }
    let mut slow = Wire::direct_tls(server.address(), &identity);
    let mut bytes = startup(&[("user", &"x".repeat(5_000))]).into_iter();
    wait_until("a slow peer to be given up", || {
        bytes
            .next()
            .is_some_and(|byte| slow.try_send(&[byte]).is_err())
    });
    server.wait_for_log("took longer than 1 s");
    assert_healthy(&server, &identity, &stand_in);
}

#[test]
fn flood_of_broken_handshakes_is_survived() {
    let stand_in = StandIn::new();
    let (mut server, identity) = server(&stand_in, "");
    for round in 0..2_000 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let _ = stream.write_all(&garbage()[round % 6]);
    }
    assert!(server.is_running());
    assert_healthy(&server, &identity, &stand_in);
}

#[test]
fn standby_connects_at_once_beside_10_000_silent_connections() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 11_000 {
        println!("skipped: this machine permits {hard} open files, fewer than the test needs");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(11_000), hard).unwrap();
    let rest = tunnel.server.rss_kib();
    let silent: Vec<TcpStream> = (0..10_000)
        .map(|_| TcpStream::connect(tunnel.server.address()).expect("a connection"))
        .collect();

    let start = Instant::now();
    let conninfo = format!("{} replication=true", tunnel.conninfo());
    testbed::postgres::psql(&conninfo, "IDENTIFY_SYSTEM").unwrap();
    let taken = start.elapsed();
    let grown = tunnel.server.rss_kib().saturating_sub(rest);
    println!(
        "connected in {taken:?} beside {} silent connections; {grown} KiB over rest",
        silent.len()
    );
    // At once, on a machine that runs other tests beside this one; those who wait for their turn wait 10 s.
    assert!(taken < Duration::from_secs(3), "{taken:?}");
    assert!(grown < 64 * 1024, "{grown} KiB");
}
