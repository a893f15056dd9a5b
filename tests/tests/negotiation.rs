//! How a connection begins: every order of requests, on both kinds of listener, on the raw wire and by libpq.

use std::process::Command;

use testbed::postgres::{psql, psql_of};
use testbed::programs::{postgres_programs, psql_with_tls};
use testbed::tunnel::{client_config, server_config};
use testbed::wire::{self, ALPN, Ending, GSS_ENC_REQUEST, SSL_REQUEST, Wire};
use testbed::{Identity, Node, Pki, Sidecar, StandIn, Tunnel, run};

const SSL: [u8; 8] = SSL_REQUEST;
const GSS: [u8; 8] = GSS_ENC_REQUEST;

fn server(pki: &Pki, stand_in: &StandIn) -> (Sidecar, Identity) {
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), ""),
    );
    (server, pki.issue("standby"))
}

/// The startup is forwarded byte for byte, and an answer comes back.
#[track_caller]
fn assert_passes(mut wire: Wire, stand_in: &StandIn) {
    let startup = wire::replication_startup();
    wire.send(&startup);
    let (mut upstream, forwarded) = stand_in.accept_startup();
    assert_eq!(forwarded, startup);
    upstream.greet(1, b"key!");
    wire.read_greeting();
}

#[test]
fn plain_listener_answers_n_in_any_order() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    for requests in [vec![], vec![SSL], vec![GSS], vec![SSL, GSS], vec![GSS, SSL]] {
        let mut wire = Wire::tcp(tunnel.client.address());
        for request in requests {
            wire.send(&request);
            assert_eq!(wire.read_byte(), b'N');
        }
        assert_passes(wire, &stand_in);
    }
}

#[test]
fn tls_listener_answers_s_to_ssl_and_n_to_gss() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = server(&pki, &stand_in);
    for requests in [vec![SSL], vec![GSS, SSL]] {
        for alpn in [&[][..], &[ALPN]] {
            let mut wire = Wire::tcp(server.address());
            for request in &requests {
                wire.send(request);
                assert_eq!(wire.read_byte(), if *request == SSL { b'S' } else { b'N' });
            }
            assert_passes(wire.tls(Some(&identity), alpn).unwrap(), &stand_in);
        }
    }
    assert_passes(Wire::direct_tls(server.address(), &identity), &stand_in);
}

#[test]
fn request_sent_twice_is_refused() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    for twice in [SSL, GSS] {
        let mut wire = Wire::tcp(tunnel.client.address());
        wire.send(&twice);
        assert_eq!(wire.read_byte(), b'N');
        wire.send(&twice);
        assert_eq!(wire.read_refusal().sqlstate(), "0A000");
    }
    assert!(stand_in.accepted().is_none());
}

#[test]
fn startup_in_plaintext_on_a_tls_listener_is_refused_with_the_way_out() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, _) = server(&pki, &stand_in);
    for gss_first in [false, true] {
        let mut wire = Wire::tcp(server.address());
        if gss_first {
            wire.send(&GSS);
            assert_eq!(wire.read_byte(), b'N');
        }
        wire.send(&wire::replication_startup());
        let refusal = wire.read_refusal();
        assert_eq!(refusal.sqlstate(), "28000");
        assert!(
            refusal.hint().contains("sslmode=verify-full"),
            "{refusal:?}"
        );
    }
    assert!(stand_in.accepted().is_none());
}

#[test]
fn direct_tls_needs_the_alpn_name_of_postgresql() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = server(&pki, &stand_in);
    for alpn in [
        &[][..],
        &["http/1.1"],
        &["h2", "pgtlsproxy"],
        &[ALPN, "pgtlsproxy-node/1"],
    ] {
        if let Ok(mut wire) = Wire::tcp(server.address()).tls(Some(&identity), alpn) {
            let _ = wire.try_send(&wire::replication_startup());
            assert!(
                matches!(wire.ending(), Ending::Alert(_) | Ending::Reset),
                "{alpn:?}"
            );
        }
    }
    assert!(stand_in.accepted().is_none());
}

#[test]
fn direct_tls_to_a_plain_listener_is_closed() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    assert!(
        Wire::tcp(tunnel.client.address())
            .tls(None, &[ALPN])
            .is_err()
    );
    assert!(stand_in.accepted().is_none());
}

#[test]
fn bytes_stuffed_before_tls_never_reach_postgres() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = server(&pki, &stand_in);
    let mut wire = Wire::tcp(server.address());
    wire.send(&[&SSL, wire::replication_startup().as_slice()].concat());
    match wire.read_byte() {
        b'S' => match wire.tls(Some(&identity), &[ALPN]) {
            Ok(mut wire) => assert_ne!(wire.ending(), Ending::Eof),
            Err(error) => println!("the handshake was refused: {error}"),
        },
        other => assert_eq!(other, b'E'),
    }
    server.wait_for_log("received unencrypted data");
    assert!(stand_in.accepted().is_none());

    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    let mut wire = Wire::tcp(tunnel.client.address());
    wire.send(&[&SSL, wire::replication_startup().as_slice()].concat());
    wire.ending();
    assert!(stand_in.accepted().is_none());
}

/// What libpq 15 makes of each `sslmode`: an empty text means that it works.
#[test]
fn libpq_works_in_every_sslmode_that_can() {
    let node = Node::primary();
    let tunnel = Tunnel::for_all(&node);
    let certificate = tunnel.pki.issue("standby").conninfo();
    let (plain, tls) = (&tunnel.client, &tunnel.server);
    let cases = [
        (plain, "disable", ""),
        (plain, "allow", ""),
        (plain, "prefer", ""),
        (
            plain,
            "require",
            "server does not support SSL, but SSL was required",
        ),
        (
            plain,
            "verify-full",
            "server does not support SSL, but SSL was required",
        ),
        (tls, "disable", "sslmode=verify-full"),
        (tls, "allow", ""),
        (tls, "prefer", ""),
        (tls, "require", ""),
        (tls, "verify-ca", ""),
        (tls, "verify-full", ""),
    ];
    for (sidecar, sslmode, expected) in cases {
        let conninfo = format!(
            "{} dbname=postgres sslmode={sslmode} {certificate}",
            sidecar.conninfo()
        );
        match psql_of(&psql_with_tls(), &conninfo, "select 1") {
            Ok(answer) => assert_eq!((answer.as_str(), expected), ("1", ""), "{sslmode}"),
            Err(said) => assert!(
                !expected.is_empty() && said.contains(expected),
                "{sslmode}: {said}"
            ),
        }
    }
}

#[test]
fn libpq_17_negotiates_directly() {
    let node = Node::primary();
    let tunnel = Tunnel::for_all(&node);
    let certificate = tunnel.pki.issue("standby").conninfo();
    for negotiation in ["direct", "postgres"] {
        let conninfo = format!(
            "{} dbname=postgres sslmode=verify-full sslnegotiation={negotiation} {certificate}",
            tunnel.server.conninfo()
        );
        let psql = postgres_programs("ssl17").join("psql");
        assert_eq!(psql_of(&psql, &conninfo, "select 1").unwrap(), "1");
    }
}

#[test]
fn client_negotiates_with_a_server_either_way() {
    let stand_in = StandIn::new();
    for negotiation in ["direct", "postgres"] {
        let negotiation = format!("sslnegotiation = \"{negotiation}\"");
        let tunnel = Tunnel::with(stand_in.upstream(), "", &negotiation);
        assert_passes(Wire::tcp(tunnel.client.address()), &stand_in);
    }
}

#[test]
fn tls_1_2_is_refused() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, identity) = server(&pki, &stand_in);
    let connect = |version: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "s_client",
            version,
            "-alpn",
            ALPN,
            "-connect",
            &server.address().to_string(),
        ]);
        run(openssl
            .arg("-cert")
            .arg(&identity.cert)
            .arg("-key")
            .arg(&identity.key))
    };
    connect("-tls1_3").unwrap();
    assert!(
        connect("-tls1_2")
            .unwrap_err()
            .contains("alert protocol version")
    );
}

#[test]
fn every_leg_may_be_ipv6() {
    let (pki, node) = (Pki::new(), Node::primary());
    let to_ipv6 = |config: String| config.replace("127.0.0.1:0", "[::1]:0");
    let config = server_config(
        &pki.issue_for("primary", &["::1"]),
        node.socket().display(),
        "",
    );
    let server = Sidecar::run("server", &to_ipv6(config));
    let client = Sidecar::run(
        "client",
        &to_ipv6(client_config(&pki.issue("standby"), server.address(), "")),
    );
    let conninfo = format!(
        "host=::1 port={} user=postgres replication=true",
        client.address().port()
    );
    psql(&conninfo, "IDENTIFY_SYSTEM").unwrap();
}
