//! CancelRequest: it reaches PostgreSQL when its key belongs to a live session of the same identity, and
//! nothing else does. Everything else is closed in silence, as PostgreSQL does.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::programs::client_tool;
use testbed::tunnel::{client_config, server_config};
use testbed::wire::{self, Ending};
use testbed::{Identity, Link, Node, Pki, Sidecar, StandIn, Tunnel, Wire};

const SECRET: &[u8] = b"\x01\x02\x03\x04";

/// A session of this identity with a server sidecar, whose cancel key is (`pid`, `secret`).
fn session(
    server: &Sidecar,
    stand_in: &StandIn,
    identity: &Identity,
    pid: u32,
    secret: &[u8],
) -> (Wire, Wire) {
    let mut downstream = Wire::direct_tls(server.address(), identity);
    downstream.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    upstream.greet(pid, secret);
    assert_eq!(downstream.read_greeting(), (pid, secret.to_vec()));
    (downstream, upstream)
}

fn server(pki: &Pki, stand_in: &StandIn, more: &str) -> Sidecar {
    Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), more),
    )
}

#[test]
fn psql_cancels_its_query_through_two_sidecars() {
    let primary = Node::primary();
    let tunnel = Tunnel::for_all(&primary);
    let conninfo = format!("{} dbname=postgres", tunnel.conninfo());
    let psql = Command::new(client_tool("psql"))
        .args(["-X", "-d", &conninfo, "-c", "select pg_sleep(60)"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    primary.poll_query_until(
        "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)'",
        "1",
    );
    kill(Pid::from_raw(psql.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = psql.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("canceling statement due to user request"),
        "{said}"
    );
}

#[test]
fn right_key_passes_and_a_wrong_one_does_not() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = (server(&pki, &stand_in, ""), pki.issue("standby"));
    let _session = session(&server, &stand_in, &identity, 7, SECRET);

    for wrong in [
        wire::cancel_request(7, b"\x01\x02\x03\x05"),
        wire::cancel_request(8, SECRET),
    ] {
        let mut cancel = Wire::direct_tls(server.address(), &identity);
        cancel.send(&wrong);
        assert_eq!(cancel.ending(), Ending::Eof);
        assert!(stand_in.accepted().is_none());
    }
    let right = wire::cancel_request(7, SECRET);
    let mut cancel = Wire::direct_tls(server.address(), &identity);
    cancel.send(&right);
    assert_eq!(stand_in.accept().read_packet(), right);
    assert_eq!(cancel.ending(), Ending::Eof);
}

#[test]
fn wrong_key_does_not_leave_the_client() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let server = server(&pki, &stand_in, "");
    let link = Link::to(server.address());
    let client = Sidecar::run(
        "client",
        &client_config(&pki.issue("standby"), link.address(), ""),
    );
    let mut downstream = Wire::tcp(client.address());
    downstream.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    upstream.greet(7, SECRET);
    downstream.read_greeting();

    let sent = link.bytes();
    let mut cancel = Wire::tcp(client.address());
    cancel.send(&wire::cancel_request(7, b"\x00\x00\x00\x00"));
    assert_eq!(cancel.ending(), Ending::Eof);
    assert_eq!(link.bytes(), sent, "something was sent to the server");
}

#[test]
fn key_of_another_identity_does_not_pass() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let server = server(&pki, &stand_in, "");
    let _session = session(&server, &stand_in, &pki.issue("standby1"), 7, SECRET);
    let mut cancel = Wire::direct_tls(server.address(), &pki.issue("standby2"));
    cancel.send(&wire::cancel_request(7, SECRET));
    assert_eq!(cancel.ending(), Ending::Eof);
    assert!(stand_in.accepted().is_none());
}

#[test]
fn key_of_an_ended_session_does_not_pass() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = (server(&pki, &stand_in, ""), pki.issue("standby"));
    drop(session(&server, &stand_in, &identity, 7, SECRET));
    server.wait_for_log("session ended");
    let mut cancel = Wire::direct_tls(server.address(), &identity);
    cancel.send(&wire::cancel_request(7, SECRET));
    assert_eq!(cancel.ending(), Ending::Eof);
    assert!(stand_in.accepted().is_none());
}

#[test]
fn long_key_of_protocol_3_2_passes() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = (server(&pki, &stand_in, ""), pki.issue("standby"));
    let secret: Vec<u8> = (0..=255).collect();
    let _session = session(&server, &stand_in, &identity, 7, &secret);
    let request = wire::cancel_request(7, &secret);
    Wire::direct_tls(server.address(), &identity).send(&request);
    assert_eq!(stand_in.accept().read_packet(), request);
}

#[test]
fn plaintext_cancel_on_a_tls_listener_needs_plain_cancel() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let identity = pki.issue("standby");
    let request = wire::cancel_request(7, SECRET);

    let strict = server(&pki, &stand_in, "");
    let _session = session(&strict, &stand_in, &identity, 7, SECRET);
    let mut cancel = Wire::tcp(strict.address());
    cancel.send(&request);
    cancel.ending();
    assert!(stand_in.accepted().is_none());

    let lenient = server(&pki, &stand_in, "plain_cancel = true");
    let _session = session(&lenient, &stand_in, &identity, 7, SECRET);
    let mut wrong = Wire::tcp(lenient.address());
    wrong.send(&wire::cancel_request(7, b"\x00\x00\x00\x00"));
    assert_eq!(wrong.ending(), Ending::Eof);
    assert!(stand_in.accepted().is_none());
    Wire::tcp(lenient.address()).send(&request);
    assert_eq!(stand_in.accept().read_packet(), request);
}
