//! The log: one line for each session that says who, what, how long, how much and why; one id at both ends; and
//! nothing in it that a peer could forge.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use serde_json::Value;
use testbed::tunnel::server_config;
use testbed::wire::{self, Wire, startup};
use testbed::{Node, Pki, Scratch, Sidecar, StandIn, Tunnel, wait_for};

fn session_line(sidecar: &Sidecar) -> Value {
    wait_for("a session to be logged", testbed::wait::PATIENCE, || {
        sidecar
            .events()
            .into_iter()
            .find(|event| event["message"] == "session ended")
    })
}

#[test]
fn session_is_one_line_with_the_same_id_at_both_ends() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let conninfo = format!("{} replication=true application_name=me", tunnel.conninfo());
    testbed::postgres::psql(&conninfo, "IDENTIFY_SYSTEM").expect("an answer");
    let (near, far) = (session_line(&tunnel.client), session_line(&tunnel.server));
    assert_eq!(near["id"], far["id"]);
    assert_eq!(far["identity"], "dns:standby.test");
    for line in [&near, &far] {
        assert_eq!(line["kind"], "physical", "{line}");
        assert_eq!(line["application_name"], "me", "{line}");
        assert!(
            line["bytes_to_upstream"].as_u64() > Some(0)
                && line["bytes_to_downstream"].as_u64() > Some(0)
        );
        assert!(
            line["seconds"].is_number() && line["reason"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn sidecars_speak_tls_1_3_with_a_hybrid_key_exchange() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    testbed::postgres::psql(
        &format!("{} replication=true", tunnel.conninfo()),
        "IDENTIFY_SYSTEM",
    )
    .expect("an answer");
    let tls = session_line(&tunnel.server)["tls"].to_string();
    for word in ["TLSv1_3", "AES_256_GCM", "X25519MLKEM768"] {
        assert!(tls.contains(word), "{tls}");
    }
}

#[test]
fn names_from_a_peer_cannot_forge_a_line() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let rule = "[[server.allow]]\nidentity = \"cn:standby\"\nusers = [\"replicator\"]\n";
    let config = server_config(&pki.issue("primary"), stand_in.upstream(), rule);
    let text_log = format!("{config}[log]\nformat = \"text\"\n");
    let identity = pki.issue("standby");
    let port = testbed::reserve_port();
    let server = Sidecar::run_at(
        port,
        "server",
        &text_log.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")),
    );
    let mut wire = Wire::direct_tls(server.address(), &identity);
    wire.send(&startup(&[
        ("user", "evil\n\u{1b}[31mforged\u{202e}"),
        ("replication", "true"),
    ]));
    let refusal = wire.read_refusal();
    let logged = server.wait_for_log("evil");
    for said in [refusal.text(), logged] {
        let name = said
            .lines()
            .find(|line| line.contains("evil"))
            .expect("the name");
        assert!(
            name.contains("forged"),
            "a line break went through: {said:?}"
        );
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said:?}");
        assert!(name.contains(r"evil\n\u{1b}[31m"), "escaped once: {name}");
    }
    let mut wire = Wire::direct_tls(server.address(), &identity);
    wire.send(&wire::replication_startup());
    wire.read_refusal();
}

#[test]
fn session_is_told_for_audit_at_both_ends() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    primary.query("select pg_create_physical_replication_slot('s1', true)");
    let mut standby = Node::builder("standby").init_from_backup(&tunnel.conninfo());
    standby.set_standby(&tunnel.conninfo(), Some("s1"));
    standby.start();
    primary.wait_for_standby("standby");
    primary.query("create table t as select i from generate_series(1, 1000) i");
    standby.catch_up_with(&primary);
    let pid = primary.query("select pid from pg_stat_replication");
    standby.stop(testbed::Stop::Fast);
    let line = |sidecar: &Sidecar, message: &str, id: Option<&Value>| {
        wait_for("the stream to be logged", testbed::wait::PATIENCE, || {
            sidecar.events().into_iter().rev().find(|event| {
                event["message"] == message
                    && event["application_name"] == "standby"
                    && id.is_none_or(|id| event["id"] == *id)
            })
        })
    };
    let far = line(&tunnel.server, "session ended", None);
    let near = line(&tunnel.client, "session ended", Some(&far["id"]));
    for (ended, identity) in [(&far, "dns:standby.test"), (&near, "dns:primary.test")] {
        assert_eq!(ended["identity"], identity, "{ended}");
        assert_eq!(ended["kind"], "physical", "{ended}");
        assert_eq!(ended["user"], "postgres", "{ended}");
        assert_eq!(ended["slot"], "s1", "{ended}");
        assert_eq!(ended["backend_pid"].to_string(), pid, "{ended}");
        for field in [
            "serial",
            "fingerprint",
            "start_lsn",
            "sent_lsn",
            "applied_lsn",
            "reason",
        ] {
            assert!(ended[field].is_string(), "no {field} in {ended}");
        }
    }
    let open = line(&tunnel.server, "session open", Some(&far["id"]));
    assert_eq!(open["level"], "INFO", "{open}");
    assert_eq!(open["serial"], far["serial"]);
}

/// Who, what, where: the fields of an audit, and what each must hold in this form of the log.
#[test]
fn audit_is_the_same_in_text() {
    let primary = Node::primary();
    let pki = Pki::new();
    let port = testbed::reserve_port();
    let rule = "[[server.allow]]\nidentity = \"cn:standby\"\nordinary = true\n";
    let config = server_config(&pki.issue("primary"), primary.socket().display(), rule);
    let config = config.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    let server = Sidecar::run_at(
        port,
        "server",
        &format!("{config}[log]\nformat = \"text\"\n"),
    );
    let identity = pki.issue("standby");
    let client = testbed::tunnel::client_config(&identity, server.address(), "");
    let client = Sidecar::run("client", &client);
    let conninfo = format!("{} dbname=postgres application_name=me", client.conninfo());
    let pid = testbed::postgres::psql(&conninfo, "select pg_backend_pid()").unwrap();
    let near = session_line(&client);
    let line = server.wait_for_log("session ended");
    let line = line
        .lines()
        .find(|line| line.contains("session ended"))
        .unwrap();
    let text = |name: &str| near[name].as_str().unwrap().to_owned();
    for told in [
        format!("id={} ", text("id")),
        "identity=\"dns:standby.test\" ".to_owned(),
        "serial=\"".to_owned(),
        "fingerprint=\"".to_owned(),
        "kind=\"ordinary\" user=\"postgres\" database=\"postgres\" application_name=\"me\" "
            .to_owned(),
        format!("backend_pid={pid} "),
        format!("bytes_to_upstream={} ", near["bytes_to_upstream"]),
        format!("bytes_to_downstream={} ", near["bytes_to_downstream"]),
        "end=\"finished\" reason=\"closed in order\"".to_owned(),
    ] {
        assert!(line.contains(&told), "{told} is not in {line}");
    }
}

#[test]
fn flood_is_summed_up_to_its_last_connection() {
    const CONNECTIONS: u64 = 300;
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let config = server_config(&pki.issue("primary"), stand_in.upstream(), "");
    let server = Sidecar::run("server", &config);
    for _ in 0..CONNECTIONS {
        let mut scan = Wire::tcp(server.address());
        scan.send(b"GET / HTTP/1.1\r\n\r\n");
        scan.ending();
    }
    // Nobody comes after it, and yet every connection is accounted for.
    wait_for("the rest to be summed up", testbed::wait::PATIENCE, || {
        let events = server.events();
        let of = |message| {
            events
                .iter()
                .filter(move |event| event["message"] == message)
        };
        let single = of("session ended")
            .filter(|event| event["end"] == "not_postgres")
            .count();
        let summed: u64 = of("more connections ended so than are logged one by one")
            .filter_map(|event| event["connections"].as_u64())
            .sum();
        assert!(single < 200, "{single} lines");
        (single as u64 + summed == CONNECTIONS).then_some(())
    });
}

#[test]
fn journal_is_told_priorities() {
    let (pki, stand_in, dir) = (Pki::new(), StandIn::new(), Scratch::new("journal"));
    let config = server_config(&pki.issue("primary"), stand_in.upstream(), "");
    let file = dir.path().join("pgtlsproxy.toml");
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let metadata = log.metadata().unwrap();
    let start = |stream: String| {
        Command::new(testbed::programs::pgtlsproxy())
            .arg("run")
            .arg("--config")
            .arg(&file)
            .env("JOURNAL_STREAM", stream)
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap()
    };
    let logged = |wanted: &str| {
        wait_for("a line", testbed::wait::PATIENCE, || {
            let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
            text.lines()
                .find(|line| line.contains(wanted))
                .map(str::to_owned)
        })
    };
    let mut journalled = start(format!("{}:{}", metadata.dev(), metadata.ino()));
    let warning = logged("has no [[server.allow]] rule");
    let info = logged("listening tunnel");
    journalled.kill().unwrap();
    journalled.wait().unwrap();
    assert!(warning.starts_with("<4>"), "{warning}");
    assert!(info.starts_with("<6>") && !info.contains("INFO"), "{info}");

    log.set_len(0).unwrap();
    let mut elsewhere = start("1:1".to_owned());
    let warning = logged("has no [[server.allow]] rule");
    elsewhere.kill().unwrap();
    elsewhere.wait().unwrap();
    assert!(
        warning.contains("WARN") && !warning.contains('<'),
        "{warning}"
    );
}
