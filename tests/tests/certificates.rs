//! Bad certificates on both sides: none gets through, PostgreSQL never hears of it, and the log says which
//! certificate is bad, and why.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testbed::pki::Wrong;
use testbed::tunnel::{client_config, server_config};
use testbed::wire::{self, ALPN, Ending, Wire};
use testbed::{Identity, Pki, Sidecar, StandIn, wait_until};

/// Shows this certificate to a server; it must be turned away, and the log must hold `words`.
#[track_caller]
fn server_refuses(server: &Sidecar, stand_in: &StandIn, identity: Option<&Identity>, words: &str) {
    let mark = server.log().mark();
    if let Ok(mut wire) = Wire::tcp(server.address()).tls(identity, &[ALPN]) {
        let _ = wire.try_send(&wire::replication_startup());
        assert!(
            matches!(wire.ending(), Ending::Alert(_) | Ending::Reset),
            "{identity:?}"
        );
    }
    server.log().wait_for_after(mark, words);
    assert!(
        stand_in.accepted().is_none(),
        "PostgreSQL heard of {identity:?}"
    );
}

/// Shows this certificate to a client; its frontend must be told `words`, and none of its bytes sent there.
#[track_caller]
fn client_refuses(pki: &Pki, shown: &Identity, more: &str, words: &str) {
    let far = StandIn::new();
    let client = Sidecar::run(
        "client",
        &client_config(&pki.issue("standby"), far.address(), more),
    );
    let mut frontend = Wire::tcp(client.address());
    frontend.send(&wire::replication_startup());
    if let Ok(mut tls) = far.accept().serve_tls(shown) {
        assert!(
            tls.read_message().is_err(),
            "the startup was sent to {shown:?}"
        );
    }
    let refusal = frontend.read_refusal();
    assert_eq!(refusal.sqlstate(), "57P03", "{refusal:?}");
    assert!(
        refusal.text().contains(words),
        "{words:?} is not in {refusal:?}"
    );
    client.wait_for_log(words);
}

#[test]
fn bad_client_certificates_are_refused() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), ""),
    );
    server_refuses(&server, &stand_in, None, "no certificate");
    let cases = [
        (Wrong::Expired, "expired"),
        (Wrong::NotYetValid, "valid only from"),
        (Wrong::Purpose, "clientAuth"),
        (Wrong::SelfSigned, "CA"),
        (Wrong::Version1, "version"),
    ];
    for (wrong, words) in cases {
        let bad = pki.issue_wrong(&format!("{wrong:?}").to_lowercase(), wrong);
        server_refuses(&server, &stand_in, Some(&bad), words);
    }
    server_refuses(&server, &stand_in, Some(&Pki::new().issue("standby")), "CA");
}

#[test]
fn bad_server_certificates_are_refused() {
    let pki = Pki::new();
    let cases = [
        (Wrong::Expired, "expired"),
        (Wrong::NotYetValid, "valid only from"),
        (Wrong::Purpose, "serverAuth"),
        (Wrong::SelfSigned, "CA"),
        (Wrong::Version1, "version"),
        (Wrong::NoName, "127.0.0.1"),
        (Wrong::OtherName, "elsewhere.test"),
    ];
    for (wrong, words) in cases {
        let bad = pki.issue_wrong(&format!("{wrong:?}").to_lowercase(), wrong);
        client_refuses(&pki, &bad, "", words);
    }
    client_refuses(&pki, &Pki::new().issue("primary"), "", "CA");
}

#[test]
fn server_name_is_what_the_certificate_must_carry() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let primary = pki.issue("primary");
    client_refuses(&pki, &primary, "server_name = \"db9.test\"", "db9.test");

    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let standby = pki.issue("standby");
    let config = client_config(&standby, server.address(), "server_name = \"primary.test\"");
    let client = Sidecar::run("client", &config);
    Wire::tcp(client.address()).send(&wire::replication_startup());
    stand_in.accept_startup();
}

#[test]
fn revoked_client_certificate_is_refused() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (good, revoked) = (pki.issue("standby"), pki.issue("stolen"));
    pki.revoke("stolen");
    let primary = pki.issue("primary");
    let config = server_config(&primary, stand_in.upstream(), "")
        .replace(&primary.toml(), &primary.toml_with_crl(&pki.crl()));
    let server = Sidecar::run("server", &config);
    server_refuses(&server, &stand_in, Some(&revoked), "revoked");
    Wire::direct_tls(server.address(), &good).send(&wire::replication_startup());
    stand_in.accept_startup();
}

#[test]
fn revoked_server_certificate_is_refused() {
    let pki = Pki::new();
    let (standby, revoked) = (pki.issue("standby"), pki.issue("stolen"));
    pki.revoke("stolen");
    let far = StandIn::new();
    let config = client_config(&standby, far.address(), "")
        .replace(&standby.toml(), &standby.toml_with_crl(&pki.crl()));
    let client = Sidecar::run("client", &config);
    let mut frontend = Wire::tcp(client.address());
    frontend.send(&wire::replication_startup());
    let _ = far.accept().serve_tls(&revoked);
    let refusal = frontend.read_refusal();
    assert!(refusal.text().contains("revoked"), "{refusal:?}");
}

#[test]
fn old_and_new_ca_are_both_trusted_during_a_rotation() {
    let (old, new, stand_in) = (Pki::new(), Pki::new(), StandIn::new());
    let primary = old.issue("primary");
    let both = [old.ca(), new.ca()]
        .map(|ca| fs::read(ca).unwrap())
        .concat();
    fs::write(old.ca(), both).unwrap();
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    for pki in [&old, &new] {
        Wire::direct_tls(server.address(), &pki.issue("standby"))
            .send(&wire::replication_startup());
        stand_in.accept_startup();
    }
}

#[test]
fn expired_crl_warns_or_is_enforced() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let end = SystemTime::now() + Duration::from_secs(3);
    let unix = end.duration_since(UNIX_EPOCH).unwrap().as_secs();
    pki.certs_tool(&["crl", "--not-after", &format!("@{unix}")])
        .unwrap();
    let server = |expiry: &str| {
        let identity = primary.toml_with_crl(&pki.crl());
        let config = server_config(&primary, stand_in.upstream(), "");
        let config = config.replace(
            &primary.toml(),
            &format!("{identity}crl_expiry = \"{expiry}\"\n"),
        );
        Sidecar::run("server", &config)
    };
    let (strict, lenient) = (server("enforce"), server("warn"));
    wait_until("the CRL to expire", || SystemTime::now() > end);
    server_refuses(&strict, &stand_in, Some(&standby), "expired");
    Wire::direct_tls(lenient.address(), &standby).send(&wire::replication_startup());
    stand_in.accept_startup();
}

/// Whoever stays after the alert, to hide behind a timeout, is named when the time for its handshake is over.
#[test]
fn refused_client_that_does_not_close_is_named_all_the_same() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let config = server_config(
        &pki.issue("primary"),
        stand_in.upstream(),
        "[timeouts]\nhandshake = \"2s\"",
    );
    let server = Sidecar::run("server", &config);
    let stranger = Pki::new().issue("stranger");
    let _stays = Wire::tcp(server.address())
        .tls(Some(&stranger), &[ALPN])
        .unwrap();
    let line = server.wait_for_log("\"session ended\"");
    for words in ["\"end\":\"tls\"", "T17", "stranger"] {
        assert!(line.contains(words), "{words} is not in {line}");
    }
}

/// A chain may hold what nobody needs: an intermediate from before a renewal, say.
#[test]
fn expired_certificate_that_no_chain_needs_is_in_nobodys_way() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let expired = pki.issue_wrong("expired", Wrong::Expired);
    let [primary, standby] = ["primary", "standby"].map(|name| {
        let mut identity = pki.issue(name);
        let both = [&identity.cert, &expired.cert].map(|file| fs::read(file).unwrap());
        identity.cert = identity.cert.with_extension("chain");
        fs::write(&identity.cert, both.concat()).unwrap();
        identity
    });
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let client = Sidecar::run("client", &client_config(&standby, server.address(), ""));
    let mut downstream = Wire::tcp(client.address());
    downstream.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    for sidecar in [&server, &client] {
        sidecar.reload();
        let reloaded = sidecar.wait_for_log("\"reload");
        assert!(reloaded.contains("\"sessions_ended\":0"), "{reloaded}");
    }
    upstream.send(b"goes on");
    assert_eq!(downstream.read_exactly(7), b"goes on");
}
