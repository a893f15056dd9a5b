//! Warnings before it hurts, and what becomes of a session when its peer's certificate expires: in the log, in
//! `check`, and to systemd.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::sys::signal::Signal;
use testbed::tunnel::{client_config, server_config};
use testbed::wait::PATIENCE;
use testbed::wire::{self, Wire, message};
use testbed::{Identity, Pki, Scratch, Sidecar, StandIn, programs, wait_for};

/// How often the log warned of this.
fn warned(sidecar: &Sidecar, words: &str) -> usize {
    let events = sidecar.events().into_iter();
    let warnings = events.filter(|event| event["message"] == "check");
    warnings
        .filter(|event| {
            event["problem"]
                .as_str()
                .is_some_and(|said| said.contains(words))
        })
        .count()
}

#[test]
fn certificate_in_its_last_third_is_named_with_the_command_that_renews_it() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    // Of its 15 seconds the last third begins in four.
    let primary = pki.issue_for_seconds("primary", -6, 9);
    let standby = pki.issue("standby");
    let rule = "[[server.allow]]\nidentity = \"cn:standby\"";
    let server = Sidecar::run(
        "server",
        &server_config(&primary, stand_in.upstream(), rule),
    );
    assert_eq!(warned(&server, "primary.crt"), 0);
    let line = server.wait_for_log("[T03]");
    for words in ["primary.crt", "expires on", "certs-tool renew primary"] {
        assert!(line.contains(words), "{words} is not in {line}");
    }
    let mut check = Command::new(programs::pgtlsproxy());
    let check = check.args(["check", "--config"]);
    let output = check
        .arg(server.dir().join("pgtlsproxy.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("[T03]") && said.contains("certs-tool renew primary"),
        "{said}"
    );

    // A day has not passed; that it has expired is told all the same.
    server.wait_for_log("[T01]");
    assert_eq!(warned(&server, "[T03]"), 1);
    assert_eq!(warned(&server, "[T01]"), 1);
    // An expired certificate of ours keeps no change from being taken.
    let mark = server.log().mark();
    server.rewrite(&server_config(&primary, stand_in.upstream(), ""));
    server.log().wait_for_after(mark, "\"reloaded\"");
    // A renewal ends it.
    let mark = server.log().mark();
    primary.renew_as(&pki.issue("renewed"));
    server.log().wait_for_after(mark, "\"reloaded\"");
    Wire::direct_tls(server.address(), &standby).send(&wire::replication_startup());
    stand_in.accept_startup();
}

#[test]
fn peers_certificate_near_its_end_is_named_on_both_sides_once() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let primary = pki.issue_for_seconds("primary", -3600, 900);
    let standby = pki.issue_for_seconds("standby", -3600, 900);
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let client = Sidecar::run("client", &client_config(&standby, server.address(), ""));
    for _ in 0..3 {
        let mut wire = Wire::tcp(client.address());
        wire.send(&wire::replication_startup());
        let (mut upstream, _) = stand_in.accept_startup();
        upstream.greet(1, b"key!");
        wire.read_greeting();
    }
    for (sidecar, peer) in [(&server, "standby"), (&client, "primary")] {
        let line = sidecar.wait_for_log(&format!("the peer dns:{peer}.test"));
        assert!(line.contains(&format!("certs-tool renew {peer}")), "{line}");
        assert_eq!(warned(sidecar, "the peer"), 1);
    }
}

#[test]
fn session_whose_certificate_expires_is_kept_or_ended_as_configured() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, short) = (pki.issue("primary"), pki.issue_for_seconds("short", -60, 8));
    let config = |on_expiry: &str| {
        let identity = format!("{}on_expiry = \"{on_expiry}\"\n", primary.toml());
        server_config(&primary, stand_in.upstream(), "").replace(&primary.toml(), &identity)
    };
    let [keeps, closes] = ["keep", "close"].map(|how| Sidecar::run(how, &config(how)));
    let [mut kept, mut ended] = [&keeps, &closes].map(|server| {
        let mut wire = Wire::direct_tls(server.address(), &short);
        wire.send(&wire::replication_startup());
        let (mut upstream, _) = stand_in.accept_startup();
        upstream.greet(1, b"key!");
        wire.read_greeting();
        (wire, upstream)
    });
    let refusal = ended.0.read_refusal();
    assert_eq!(refusal.sqlstate(), "28000");
    for words in ["T01", "expired on", "dns:short.test", "certs-tool renew"] {
        assert!(
            refusal.text().contains(words),
            "{words} is not in {refusal:?}"
        );
    }
    ended.1.ending();
    closes.wait_for_log("\"end\":\"dismissed\"");
    // The other is warned of, goes on, and a reload judges it by everything but its date.
    keeps.wait_for_log("the peer dns:short.test: the certificate of CN=short");
    keeps.reload();
    let reloaded = keeps.wait_for_log("\"reloaded\"");
    assert!(reloaded.contains("\"sessions_ended\":0"), "{reloaded}");
    let alive = message(b'd', b"alive");
    kept.1.send(&alive);
    assert_eq!(kept.0.read_exactly(alive.len()), alive);
}

#[test]
fn systemd_is_told_what_it_asks_for() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("notify"), StandIn::new());
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let mut told = Vec::new();
    // The next message with these words after the first `seen`; status and watchdog come when they like.
    let mut next = |wanted: &str, seen: usize| {
        wait_for(&format!("systemd to be told {wanted}"), PATIENCE, || {
            let mut buffer = [0; 4096];
            while let Ok(n) = systemd.recv(&mut buffer) {
                told.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
            }
            let mut later = told.iter().enumerate().skip(seen);
            later
                .find(|(_, told)| told.contains(wanted))
                .map(|(at, told)| (at + 1, told.clone()))
        })
    };
    let primary = pki.issue_for_seconds("primary", -3600, 900);
    let env = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "400000"),
    ];
    let config = server_config(&primary, stand_in.upstream(), "");
    let mut server = Sidecar::run_with_env("server", &config, &env);
    let (ready, _) = next("READY=1", 0);
    let (_, status) = next("T03", 0);
    assert!(status.starts_with("STATUS="), "{status}");
    assert!(status.contains("certs-tool renew primary"), "{status}");
    let (beat, _) = next("WATCHDOG=1", ready);
    next("WATCHDOG=1", beat);
    server.reload();
    let (reloading, words) = next("RELOADING=1", ready);
    assert!(words.contains("MONOTONIC_USEC="), "{words}");
    let (ready, _) = next("READY=1", reloading);
    server.signal(Signal::SIGTERM);
    next("STOPPING=1", ready);
    assert_eq!(server.wait_for_exit(PATIENCE), 0);
}

#[test]
fn peer_that_has_renewed_its_certificate_is_not_named_for_the_old_one_any_more() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let primary = pki.issue("primary");
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let session = |identity: &Identity| {
        let mut wire = Wire::direct_tls(server.address(), identity);
        wire.send(&wire::replication_startup());
        let (mut upstream, _) = stand_in.accept_startup();
        upstream.greet(1, b"key!");
        wire.read_greeting();
        (wire, upstream)
    };
    let _began_before = session(&pki.issue_for_seconds("standby", -7200, 900));
    server.wait_for_log("the peer dns:standby.test");
    let _came_after = session(&pki.issue("standby"));
    // Of its 15 seconds the last third begins in four: till then both were looked at again and again.
    let _clock = session(&pki.issue_for_seconds("clock", -6, 9));
    server.wait_for_log("the peer dns:clock.test");
    assert_eq!(warned(&server, "dns:standby.test"), 1);
    let warnings = server.status()["warnings"].to_string();
    assert!(!warnings.contains("dns:standby.test"), "{warnings}");
}
