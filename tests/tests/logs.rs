//! The log: one line for each session that says who, what, how long, how much and why; one id at both ends; and
//! nothing in it that a peer could forge.

use serde_json::Value;
use testbed::tunnel::server_config;
use testbed::wire::{self, Wire, startup};
use testbed::{Node, Pki, Sidecar, StandIn, Tunnel, wait_for};

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
        let session = line["session"].as_str().unwrap_or_default();
        assert!(
            session.contains("physical") && session.contains("application_name=me"),
            "{line}"
        );
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
    }
    let mut wire = Wire::direct_tls(server.address(), &identity);
    wire.send(&wire::replication_startup());
    wire.read_refusal();
}
