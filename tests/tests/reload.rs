//! Reload: certificates, CRLs, rules and the log level change under load without a lost byte, and a reload that
//! fails keeps what worked and says why.

use testbed::tunnel::server_config;
use testbed::wire::{self, ALPN, Wire};
use testbed::{Identity, Node, Pki, Sidecar, StandIn, Tunnel};

/// Whether a new connection of this identity reaches PostgreSQL.
fn is_admitted(server: &Sidecar, stand_in: &StandIn, identity: &Identity) -> bool {
    let Ok(mut wire) = Wire::tcp(server.address()).tls(Some(identity), &[ALPN]) else {
        return false;
    };
    if wire.try_send(&wire::replication_startup()).is_err() {
        return false;
    }
    let ended = std::thread::spawn(move || wire.ending());
    loop {
        if let Some(mut upstream) = stand_in.accepted() {
            assert_eq!(upstream.read_packet(), wire::replication_startup());
            return true;
        }
        if ended.is_finished() && stand_in.accepted().is_none() {
            return false;
        }
        std::thread::yield_now();
    }
}

#[test]
fn stream_survives_reloads_under_load_without_a_lost_byte() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = Node::standby("standby", &tunnel.conninfo());
    primary.wait_for_standby("standby");
    let walsender = "select pid, backend_start from pg_stat_replication";
    let before = primary.query(walsender);
    primary.query("create table t (id int, filler text)");
    for round in 0..20 {
        primary.query("insert into t select i, repeat('x', 200) from generate_series(1, 5000) i");
        tunnel.server.reload();
        tunnel.client.reload();
        if round == 10 {
            tunnel.pki.issue("primary");
            tunnel.pki.issue("standby");
        }
    }
    standby.catch_up_with(&primary);
    assert_eq!(standby.query("select count(*) from t"), "100000");
    assert_eq!(
        primary.query(walsender),
        before,
        "the stream was interrupted"
    );
}

#[test]
fn new_rules_hold_for_new_sessions_and_leave_running_ones_alone() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = |name| {
        let rule = format!("[[server.allow]]\nidentity = \"cn:{name}\"");
        server_config(&primary, stand_in.upstream(), &rule)
    };
    let server = Sidecar::run("server", &config("standby"));
    let mut running = Wire::direct_tls(server.address(), &standby);
    running.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();

    server.rewrite(&config("other"));
    server.reload();
    testbed::wait_until("the new rule to hold", || {
        !is_admitted(&server, &stand_in, &standby)
    });
    upstream.send(b"still here");
    assert_eq!(running.read_exactly(10), b"still here");
}

#[test]
fn broken_reload_keeps_what_worked_and_says_why() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = server_config(&primary, stand_in.upstream(), "");
    let server = Sidecar::run("server", &config);
    let broken = [
        (
            config.replace("[[server]]", "[[server]]\nlisen = 1"),
            "lisen",
        ),
        (config.replace("primary.crt", "missing.crt"), "missing.crt"),
        (config.replace("primary.key", "standby.key"), "standby.key"),
        ("nonsense".to_owned(), "line 1 is not understood"),
    ];
    for (broken, why) in broken {
        let mark = server.log().mark();
        server.rewrite(&broken);
        server.reload();
        server.log().wait_for_after(mark, why);
        assert!(is_admitted(&server, &stand_in, &standby), "{why}");
    }
}

#[test]
fn renewed_certificate_is_shown_to_new_connections() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let renewed = pki.issue("renewed");
    primary.renew_as(&renewed);
    server.reload();
    testbed::wait_until("the new certificate to be shown", || {
        Wire::direct_tls(server.address(), &standby).certificate_of_peer() == renewed.chain()[0]
    });
}

#[test]
fn revocation_takes_effect_at_reload() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = server_config(&primary, stand_in.upstream(), "")
        .replace(&primary.toml(), &primary.toml_with_crl(&pki.crl()));
    let server = Sidecar::run("server", &config);
    assert!(is_admitted(&server, &stand_in, &standby));
    pki.revoke("standby");
    server.reload();
    testbed::wait_until("the revocation to hold", || {
        !is_admitted(&server, &stand_in, &standby)
    });
}
