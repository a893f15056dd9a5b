//! The node channel: what it answers to whom, that nothing on it reaches PostgreSQL, and how a CRL spreads.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testbed::enrolment::inviting_daemon;
use testbed::tunnel::{client_config, server_config};
use testbed::wire::{ALPN, ALPN_NODE, Ending, SSL_REQUEST};
use testbed::{Identity, Node, Pki, Scratch, Sidecar, StandIn, Stop, Wire, wait_until};

fn server(pki: &Pki, stand_in: &StandIn, more: &str) -> Sidecar {
    inviting_daemon(pki, &pki.issue("primary"), &stand_in.upstream(), more)
}

#[track_caller]
fn assert_refused(answer: &Value, id: &str) {
    assert_eq!(answer["answer"], "refused", "{answer}");
    assert_eq!(answer["id"], id, "{answer}");
    assert_ne!(answer["way_out"], "", "{answer}");
}

fn crl_request(crls: &[&str]) -> Value {
    json!({"verb": "crl", "crls": crls})
}

#[test]
fn both_protocols_at_once_are_refused_and_so_is_the_node_channel_after_an_ssl_request() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, standby) = (server(&pki, &stand_in, ""), pki.issue("standby"));
    for offered in [[ALPN, ALPN_NODE], [ALPN_NODE, ALPN]] {
        let error = Wire::tcp(server.address())
            .tls(Some(&standby), &offered)
            .unwrap_err();
        assert!(
            error.to_string().contains("NoApplicationProtocol"),
            "{error}"
        );
    }
    let mut wire = Wire::tcp(server.address());
    wire.send(&SSL_REQUEST);
    assert_eq!(wire.read_byte(), b'S');
    assert!(wire.tls(Some(&standby), &[ALPN_NODE]).is_err());
    server.wait_for_log("[T31]");
    assert!(stand_in.accepted().is_none());
}

#[test]
fn every_verb_but_enrol_needs_a_certificate() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let server = server(&pki, &stand_in, "");
    for request in [
        json!({"verb": "probe"}),
        crl_request(&[]),
        json!({"verb": "renew", "request": "x"}),
    ] {
        let mut wire = Wire::node(server.address(), None);
        assert_refused(&wire.ask_node(&request), "K01");
        assert_eq!(wire.ending(), Ending::Eof);
    }
    let enrol =
        json!({"verb": "enrol", "invitation": "0011223344556677", "proof": "00", "request": "x"});
    assert_refused(&Wire::node(server.address(), None).ask_node(&enrol), "E14");
    assert!(stand_in.accepted().is_none());
}

#[test]
fn a_certificate_that_no_session_could_use_opens_no_node_channel() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let revoked = pki.issue("thief");
    pki.revoke("thief");
    let server = server(&pki, &stand_in, "");
    for identity in [revoked, Pki::new().issue("stranger")] {
        let mut wire = Wire::node(server.address(), Some(&identity));
        let _ = wire.try_send(&[0; 16]);
        assert!(matches!(wire.ending(), Ending::Alert(_) | Ending::Reset));
    }
    server.wait_for_log("has been revoked");
}

#[test]
fn oversized_and_garbled_and_half_and_slow_requests_are_turned_away() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (server, standby) = (
        server(&pki, &stand_in, "[timeouts]\nhandshake = \"2s\"\n"),
        pki.issue("standby"),
    );
    let node = |identity| Wire::node(server.address(), identity);
    // Before a byte of the body.
    for (identity, head) in [
        (None, 16_385_u32),
        (Some(&standby), 1_048_577),
        (Some(&standby), u32::MAX),
        (None, 0),
    ] {
        let mut wire = node(identity);
        wire.send(&head.to_be_bytes());
        assert_refused(&serde_json::from_slice(&wire.read_body()).unwrap(), "K02");
    }
    for body in [
        "{}",
        "[]",
        "null",
        "\0",
        "{\"verb\":\"shutdown\"}",
        "{\"verb\":\"crl\",\"crls\":[[[[",
    ] {
        let mut wire = node(Some(&standby));
        wire.send_body(body.as_bytes());
        assert_refused(&serde_json::from_slice(&wire.read_body()).unwrap(), "K02");
    }
    assert_refused(
        &node(Some(&standby)).ask_node(&crl_request(&["no CRL"])),
        "K06",
    );
    let mut half = node(Some(&standby));
    half.send(&100_u32.to_be_bytes());
    half.finish();
    server.wait_for_log("[K04]");
    let mut silent = node(Some(&standby));
    let mut slow = node(Some(&standby));
    slow.send(&[0, 0, 0]);
    for wire in [&mut silent, &mut slow] {
        assert_refused(&serde_json::from_slice(&wire.read_body()).unwrap(), "K03");
    }
    // A startup of PostgreSQL is no request of this channel.
    let mut startup = node(Some(&standby));
    startup.send(&testbed::wire::replication_startup());
    startup.finish();
    startup.ending();
    assert_eq!(
        node(Some(&standby)).ask_node(&crl_request(&[]))["answer"],
        "crl"
    );
    assert!(
        stand_in.accepted().is_none(),
        "something reached PostgreSQL"
    );
}

#[test]
fn a_probe_tells_what_is_seen_and_leaves_postgres_in_peace() {
    let mut primary = Node::primary();
    let pki = Pki::new();
    let allow = "[[server.allow]]\nidentity = \"cn:standby\"\nusers = [\"replicator\"]\nfrom = [\"127.0.0.0/8\"]\n\
                 [[server.allow]]\nidentity = \"cn:elsewhere\"\nfrom = [\"203.0.113.7/32\"]\n";
    let socket = primary.socket().display().to_string();
    let server = inviting_daemon(&pki, &pki.issue("primary"), &socket, allow);
    let probe = |identity: &Identity| {
        Wire::node(server.address(), Some(identity))
            .ask_node(&json!({"verb": "probe", "version": "1", "later": 1}))
    };
    let mark = primary.log().mark();
    let seen = probe(&pki.issue("standby"));
    assert_eq!(seen["answer"], "probed", "{seen}");
    assert_eq!(seen["identity"], "dns:standby.test");
    assert_eq!(seen["address"], "127.0.0.1");
    assert_eq!(
        (&seen["admitted"], &seen["postgres"]["reached"]),
        (&json!(true), &json!(true))
    );
    assert!(seen["now_ms"].as_i64().unwrap() > 1_700_000_000_000);
    assert!(seen["not_after"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!(seen["warnings"], json!([]));
    assert_eq!(probe(&pki.issue("other"))["admitted"], false);
    let from_here = probe(&pki.issue("elsewhere"));
    assert_eq!(
        from_here["admitted"], false,
        "its rule is for another network"
    );
    assert_eq!(primary.log().after(mark), "", "PostgreSQL heard of it");
    primary.stop(Stop::Fast);
    let seen = probe(&pki.issue("standby"));
    assert_eq!(seen["postgres"]["reached"], false);
    assert_ne!(seen["postgres"]["why"], "");
}

#[test]
fn a_probe_tells_what_deserves_a_look_to_whom_a_rule_admits() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let identity = pki.issue_for_seconds("primary", -3600, 900);
    let allow = "[[server.allow]]\nidentity = \"cn:standby\"\n";
    let server = Sidecar::run(
        "server",
        &server_config(&identity, stand_in.upstream(), allow),
    );
    server.wait_for_log("[T03]");
    let warnings = |identity: &Identity| {
        Wire::node(server.address(), Some(identity)).ask_node(&json!({"verb": "probe"}))["warnings"]
            .clone()
    };
    // The one who asks has an aging certificate, too: that is not this host's affair.
    let standby = pki.issue_for_seconds("standby", -3600, 900);
    let told = warnings(&standby);
    let ids: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(ids, ["T03"], "{told}");
    let way_out = told[0]["way_out"].as_str().unwrap();
    assert!(way_out.contains("certs-tool renew primary"), "{told}");
    assert_eq!(warnings(&pki.issue("other")), json!([]));
}

/// The CA's CRL as it is now, in a file of its own.
fn copy_of_crl(pki: &Pki, dir: &Scratch, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::copy(pki.crl(), &path).expect("the CA's CRL");
    path
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a text")
}

fn without_breaks(pem: &str) -> String {
    pem.split_whitespace().collect()
}

fn state(dir: &Scratch, interval: &str) -> String {
    format!(
        "[node]\nstate = \"{}\"\ncrl_interval = \"{interval}\"\n",
        dir.path().display()
    )
}

/// Whether a handshake of this identity is refused.
fn is_refused(server: &Sidecar, identity: &Identity) -> bool {
    let mut wire = Wire::node(server.address(), Some(identity));
    let _ = wire.try_send(&0_u32.to_be_bytes());
    matches!(wire.ending(), Ending::Alert(_) | Ending::Reset)
}

#[test]
fn the_newest_crl_counts_and_a_forged_or_older_one_does_not() {
    let (pki, stand_in, dir, kept) = (
        Pki::new(),
        StandIn::new(),
        Scratch::new("crl"),
        Scratch::new("kept"),
    );
    let (primary, standby, thief) = (
        pki.issue("primary"),
        pki.issue("standby"),
        pki.issue("thief"),
    );
    let file = copy_of_crl(&pki, &dir, "old.crl");
    let old = text(&file);
    pki.revoke("thief");
    let new = text(&pki.crl());
    let config = server_config(&primary, stand_in.upstream(), &state(&kept, "1m"))
        .replace(&primary.toml(), &primary.toml_with_crl(&file));
    let server = Sidecar::run("server", &config);
    let tell = |crl: &str| {
        let answer = Wire::node(server.address(), Some(&standby)).ask_node(&crl_request(&[crl]));
        without_breaks(answer["crls"][0].as_str().unwrap())
    };

    // The signature stands at the end.
    let at = new.find("\n-----END").unwrap() - 20;
    let mut forged = new.clone();
    let other = if &new[at..=at] == "A" { "B" } else { "A" };
    forged.replace_range(at..=at, other);
    assert_eq!(tell(&forged), without_breaks(&old));
    server.wait_for_log("not signed by that CA");
    let stranger = Pki::new();
    assert_eq!(tell(&text(&stranger.crl())), without_breaks(&old));
    server.wait_for_log("is of no CA of ours");
    assert!(!is_refused(&server, &thief));

    assert_eq!(tell(&new), without_breaks(&new));
    wait_until("the newer CRL to count", || is_refused(&server, &thief));
    assert_eq!(tell(&old), without_breaks(&new));
    assert!(is_refused(&server, &thief));
    assert_eq!(server.log().text().matches("a newer CRL came").count(), 1);

    // The configured file is as old as ever; what came is kept.
    drop(server);
    let again = Sidecar::run("again", &config);
    assert!(is_refused(&again, &thief));
    drop(again);
    fs::write(kept.path().join("ca.crl"), &forged).unwrap();
    let careful = Sidecar::run("careful", &config);
    assert!(!is_refused(&careful, &thief));
    careful.wait_for_log("[K05]");
    drop(careful);
    // Beside what is not believed the newest one counts all the same, and is not to be thrown away.
    fs::write(kept.path().join("ca.crl"), format!("{forged}{new}")).unwrap();
    let both = Sidecar::run("both", &config);
    assert!(is_refused(&both, &thief));
    let said = both.wait_for_log("[K05]");
    assert!(!said.contains("remove it"), "{said}");
    drop(both);
    // What a CA left that is trusted no more, at the end of a rotation, is nobody's concern.
    let rotated = text(&stranger.crl()) + &new;
    fs::write(kept.path().join("ca.crl"), rotated).unwrap();
    let rotated = Sidecar::run("rotated", &config);
    assert!(is_refused(&rotated, &thief));
    assert!(!rotated.log().text().contains("[K05]"));
}

#[test]
fn a_crl_spreads_both_ways_between_daemons() {
    let (pki, stand_in, dir) = (Pki::new(), StandIn::new(), Scratch::new("crl"));
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    pki.issue("thief");
    let servers = copy_of_crl(&pki, &dir, "server.crl");
    let clients = copy_of_crl(&pki, &dir, "client.crl");
    pki.revoke("thief");
    fs::copy(pki.crl(), &servers).unwrap();
    let (kept_here, kept_there) = (Scratch::new("kept"), Scratch::new("kept"));
    let config = server_config(&primary, stand_in.upstream(), &state(&kept_here, "1h"))
        .replace(&primary.toml(), &primary.toml_with_crl(&servers));
    let server = Sidecar::run("server", &config);
    let config = client_config(&standby, server.address(), &state(&kept_there, "1h"))
        .replace(&standby.toml(), &standby.toml_with_crl(&clients));
    let client = Sidecar::run("client", &config);
    client.wait_for_log("a newer CRL came from another node");
    client.wait_for_log("reloaded");
    assert_eq!(
        without_breaks(&text(&kept_there.path().join("ca.crl"))),
        without_breaks(&text(&pki.crl()))
    );

    // Long before its interval is over: a reload that brings a newer one is passed on at once.
    pki.issue("another");
    pki.revoke("another");
    fs::copy(pki.crl(), &clients).unwrap();
    client.reload();
    server.wait_for_log("a newer CRL came from another node");
    assert_eq!(
        without_breaks(&text(&kept_here.path().join("ca.crl"))),
        without_breaks(&text(&pki.crl()))
    );
    assert!(
        stand_in.accepted().is_none(),
        "something reached PostgreSQL"
    );
}

#[test]
fn a_revocation_is_not_lost_when_the_state_directory_is_named_anew() {
    let (pki, stand_in, dir) = (Pki::new(), StandIn::new(), Scratch::new("crl"));
    let [before, after] = ["before", "after"].map(Scratch::new);
    let [primary, standby, thief] = ["primary", "standby", "thief"].map(|name| pki.issue(name));
    let file = copy_of_crl(&pki, &dir, "old.crl");
    let config = |more: &str| {
        server_config(&primary, stand_in.upstream(), more)
            .replace(&primary.toml(), &primary.toml_with_crl(&file))
    };
    let server = Sidecar::run("server", &config(&state(&before, "1h")));
    server.reconfigure(&config(&state(&after, "2h")));
    let named = server.wait_for_log("at the next restart");
    for key in ["node.state", "node.crl_interval"] {
        assert!(named.contains(key), "{key} is not in {named}");
    }
    pki.revoke("thief");
    Wire::node(server.address(), Some(&standby)).ask_node(&crl_request(&[&text(&pki.crl())]));
    wait_until("the newer CRL to count", || is_refused(&server, &thief));
}
