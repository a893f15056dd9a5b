//! Revocation reaches whoever is revoked, new connections and running ones, and nobody else: by CRL, by CA, by rule,
//! by OS user; noticed by itself, within two seconds of the file's change, with the reason in both logs.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::tunnel::{client_config, server_config};
use testbed::wire::{self, ALPN, Ending, Wire, message};
use testbed::{Identity, Node, Pki, Scratch, Sidecar, StandIn, put, run, wait_for, wait_until};

/// What is promised, from the change of a file to the end of a session.
const PROMISED: Duration = Duration::from_secs(2);

/// A session of this identity past its startup: its own end and PostgreSQL's.
fn session(server: &Sidecar, stand_in: &StandIn, identity: &Identity) -> (Wire, Wire) {
    greeted(Wire::direct_tls(server.address(), identity), stand_in)
}

fn greeted(mut downstream: Wire, stand_in: &StandIn) -> (Wire, Wire) {
    downstream.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    upstream.greet(1, b"key!");
    downstream.read_greeting();
    (downstream, upstream)
}

#[track_caller]
fn goes_on((downstream, upstream): &mut (Wire, Wire)) {
    let alive = message(b'd', b"alive");
    upstream.send(&alive);
    assert_eq!(downstream.read_exactly(alive.len()), alive);
}

/// The session is told, with this id and these words, and PostgreSQL sees its end.
#[track_caller]
fn is_ended((mut downstream, mut upstream): (Wire, Wire), server: &Sidecar, words: &[&str]) {
    let refusal = downstream.read_refusal();
    assert_eq!(refusal.sqlstate(), "28000", "{refusal:?}");
    assert!(!refusal.hint().is_empty(), "{refusal:?}");
    drop(downstream);
    upstream.ending();
    let logged = server.wait_for_log("\"end\":\"dismissed\"");
    for words in words {
        assert!(
            refusal.text().contains(words),
            "{words} is not in {refusal:?}"
        );
        assert!(logged.contains(words), "{words} is not in {logged}");
    }
}

#[test]
fn revoked_standby_is_ended_within_two_seconds_and_the_other_streams_on() {
    let (pki, dir, primary) = (Pki::new(), Scratch::new("crl"), Node::primary());
    let crl = dir.path().join("ca.crl");
    let issued = pki.issue("primary");
    let clients = ["stolen", "kept"].map(|name| pki.issue(name));
    put(fs::read(pki.crl()).unwrap(), &crl);
    let config = server_config(&issued, primary.socket().display(), "")
        .replace(&issued.toml(), &issued.toml_with_crl(&crl));
    let server = Sidecar::run("server", &config);
    let [stolen_client, kept_client] = clients
        .each_ref()
        .map(|identity| Sidecar::run("client", &client_config(identity, server.address(), "")));
    let stolen = Node::standby("stolen", &stolen_client.conninfo());
    let kept = Node::standby("kept", &kept_client.conninfo());
    primary.wait_for_standby("stolen");
    primary.wait_for_standby("kept");
    let streams =
        "select pid, backend_start from pg_stat_replication where application_name = 'kept'";
    let before = primary.query(streams);
    primary.query("create table t as select i, repeat('x', 200) from generate_series(1, 20000) i");

    pki.revoke("stolen");
    let (in_log, in_standby) = (server.log().mark(), stolen.log().mark());
    let changed = Instant::now();
    put(fs::read(pki.crl()).unwrap(), &crl);
    wait_for("the stream to end", PROMISED, || {
        let ended = server.log().after(in_log);
        ended.contains("\"end\":\"dismissed\"").then_some(())
    });
    println!("ended after {:?}", changed.elapsed());
    for log in [
        server.log().wait_for_after(in_log, "\"end\":\"dismissed\""),
        stolen
            .log()
            .wait_for_after(in_standby, "terminating connection"),
    ] {
        assert!(log.contains("revoked") && log.contains("T23"), "{log}");
    }
    // It tries again, and is refused at the handshake.
    server.log().wait_for_after(in_log, "\"end\":\"tls\"");
    stolen_client.wait_for_log("[T43]");
    primary.query("insert into t select i, 'y' from generate_series(1, 20000) i");
    kept.catch_up_with(&primary);
    assert_eq!(
        primary.query(streams),
        before,
        "the other stream was interrupted"
    );
    assert_eq!(
        primary.query("select count(*) from pg_stat_replication"),
        "1"
    );
}

#[test]
fn revoked_server_loses_its_sessions_at_the_client() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("crl"), StandIn::new());
    let crl = dir.path().join("ca.crl");
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    put(fs::read(pki.crl()).unwrap(), &crl);
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let config = client_config(&standby, server.address(), "")
        .replace(&standby.toml(), &standby.toml_with_crl(&crl));
    let client = Sidecar::run("client", &config);
    let session = greeted(Wire::tcp(client.address()), &stand_in);
    pki.revoke("primary");
    put(fs::read(pki.crl()).unwrap(), &crl);
    is_ended(
        session,
        &client,
        &["revoked", "T23", "server's certificate"],
    );
}

#[test]
fn changed_server_name_ends_the_sessions_to_whom_does_not_bear_it() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let config = |name| {
        let name = format!("server_name = \"{name}\"");
        client_config(&standby, server.address(), &name)
    };
    let client = Sidecar::run("client", &config("primary.test"));
    let mut session = greeted(Wire::tcp(client.address()), &stand_in);
    client.rewrite(&config("localhost"));
    client.wait_for_log("\"reloaded\"");
    goes_on(&mut session);
    client.rewrite(&config("elsewhere.test"));
    is_ended(session, &client, &["T24", "elsewhere.test"]);
}

#[test]
fn rule_that_is_taken_out_or_narrowed_ends_its_sessions_alone() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let identities = ["primary", "a", "b", "c"].map(|name| pki.issue(name));
    let [primary, a, b, c] = &identities;
    let config = |rules: &[(&str, &str)]| {
        let rules = rules.iter().map(|(name, from)| {
            format!("[[server.allow]]\nidentity = \"cn:{name}\"\nfrom = [\"{from}\"]\n")
        });
        server_config(primary, stand_in.upstream(), &rules.collect::<String>())
    };
    let near = "127.0.0.0/8";
    let server = Sidecar::run("server", &config(&[("a", near), ("b", near), ("c", near)]));
    let [a, b, mut c] = [a, b, c].map(|identity| session(&server, &stand_in, identity));

    server.rewrite(&config(&[("b", near), ("c", near)]));
    is_ended(a, &server, &["P01", "no rule admits dns:a.test"]);
    let mark = server.log().mark();
    server.rewrite(&config(&[("b", "192.0.2.0/24"), ("c", near)]));
    let (mut told, mut b_upstream) = b;
    assert!(told.read_refusal().message().contains("P02"));
    drop(told);
    b_upstream.ending();
    server
        .log()
        .wait_for_after(mark, "may not connect from 127.0.0.1");
    goes_on(&mut c);
}

#[test]
fn second_tunnel_beside_the_first_does_not_keep_its_rules_from_changing() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let port = testbed::reserve_port();
    let config = |name, more: &str| {
        let rule = format!("[[server.allow]]\nidentity = \"cn:{name}\"\n{more}");
        server_config(&primary, stand_in.upstream(), &rule).replacen(
            "127.0.0.1:0",
            &format!("127.0.0.1:{port}"),
            1,
        )
    };
    let server = Sidecar::run("server", &config("standby", ""));
    let session = session(&server, &stand_in, &standby);
    let second = "[[server]]\nlisten = \"127.0.0.1:0\"\npostgres = \"/nowhere\"\n";
    server.rewrite(&config("nobody", second));
    is_ended(session, &server, &["P01"]);
}

#[test]
fn tunnel_that_is_configured_no_longer_still_learns_of_revocation() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("crl"), StandIn::new());
    let crl = dir.path().join("ca.crl");
    let identities = ["primary", "stolen", "kept"].map(|name| pki.issue(name));
    let [primary, stolen, kept] = &identities;
    put(fs::read(pki.crl()).unwrap(), &crl);
    let identity = primary.toml_with_crl(&crl);
    let config =
        server_config(primary, stand_in.upstream(), "").replace(&primary.toml(), &identity);
    let server = Sidecar::run("server", &config);
    let [stolen, mut kept] = [stolen, kept].map(|identity| session(&server, &stand_in, identity));
    let other = config.replace("127.0.0.1:0", "127.0.0.2:0");
    server.rewrite(&other);
    server.wait_for_log("no longer configured");
    goes_on(&mut kept);
    pki.revoke("stolen");
    put(fs::read(pki.crl()).unwrap(), &crl);
    is_ended(stolen, &server, &["revoked"]);
    goes_on(&mut kept);
}

#[test]
fn dropped_ca_ends_the_sessions_of_its_leaves_where_that_is_wanted() {
    let (old, new, stand_in) = (Pki::new(), Pki::new(), StandIn::new());
    let dir = Scratch::new("ca");
    let bundle = dir.path().join("ca.crt");
    let both = [old.ca(), new.ca()].map(|ca| fs::read(ca).unwrap());
    put(both.concat(), &bundle);
    let mut primary = new.issue("primary");
    primary.ca.clone_from(&bundle);
    let close = format!("{}on_ca_removal = \"close\"\n", primary.toml());
    let config = server_config(&primary, stand_in.upstream(), "").replace(&primary.toml(), &close);
    let server = Sidecar::run("server", &config);
    let (of_old, of_new) = (old.issue("standby"), new.issue("standby"));
    let ended = session(&server, &stand_in, &of_old);
    let mut kept = session(&server, &stand_in, &of_new);
    put(&both[1], &bundle);
    is_ended(ended, &server, &["T17", "does not lead to a CA"]);
    goes_on(&mut kept);
    let mut refused = Wire::tcp(server.address())
        .tls(Some(&of_old), &[ALPN])
        .unwrap();
    assert!(matches!(refused.ending(), Ending::Alert(_)));
}

#[test]
fn os_user_that_is_taken_out_loses_the_socket() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("socket"), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective());
    let me = me.unwrap().unwrap().name;
    let config = |user: &str| {
        let (identity, dir, server) = (standby.toml(), dir.path().display(), server.address());
        format!(
            "{identity}[[client]]\nlisten = \"{dir}\"\nconnect = [\"{server}\"]\nallow_os_users = [\"{user}\"]\n"
        )
    };
    let client = Sidecar::run("client", &config(&me));
    let session = greeted(Wire::unix(&dir.path().join(".s.PGSQL.5442")), &stand_in);
    client.rewrite(&config("daemon"));
    is_ended(session, &client, &["P08", "allow_os_users"]);
}

#[test]
fn session_that_reaches_no_message_boundary_is_reset() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = |name| {
        let rule = format!("[[server.allow]]\nidentity = \"cn:{name}\"");
        server_config(&primary, stand_in.upstream(), &rule)
    };
    let server = Sidecar::run("server", &config("standby"));
    let (mut in_a_message, mut upstream) = session(&server, &stand_in, &standby);
    let half = &message(b'd', &[b'x'; 100])[..50];
    upstream.send(half);
    assert_eq!(in_a_message.read_exactly(50), half);
    // The other reads nothing, and PostgreSQL sends until nothing more fits.
    let (mut reads_nothing, mut endless) = session(&server, &stand_in, &standby);
    let sender =
        std::thread::spawn(
            move || {
                while endless.try_send(&message(b'd', &[b'x'; 60_000])).is_ok() {}
            },
        );
    server.rewrite(&config("nobody"));
    assert_eq!(in_a_message.ending(), Ending::Reset);
    sender.join().unwrap();
    assert_eq!(reads_nothing.ending(), Ending::Reset);
    upstream.ending();
    server.wait_for_log("no message boundary came in time");
}

#[test]
fn session_under_way_while_the_rules_change_does_not_slip_through() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = |name| {
        let rule = format!("[[server.allow]]\nidentity = \"cn:{name}\"");
        server_config(&primary, stand_in.upstream(), &rule)
    };
    let server = Sidecar::run("server", &config("standby"));
    // One has shaken hands and not asked yet; the other waits for PostgreSQL's answer.
    let mut has_not_asked = Wire::direct_tls(server.address(), &standby);
    let mut waits = Wire::direct_tls(server.address(), &standby);
    waits.send(&wire::replication_startup());
    let (_upstream, _) = stand_in.accept_startup();
    server.rewrite(&config("nobody"));
    assert!(waits.read_refusal().message().contains("P01"));
    server.wait_for_log("\"reloaded\"");
    has_not_asked.send(&wire::replication_startup());
    assert!(has_not_asked.read_refusal().message().contains("P01"));
    assert!(stand_in.accepted().is_none());
}

/// RFC 8446, 2.2: a resumed handshake shows no certificate, and would meet no CRL.
#[test]
fn ticket_is_worth_nothing_and_none_is_given() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("ticket"), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let s_client = |port: u16, more: &[&str]| {
        let identity = [&standby.cert, &standby.key].map(|path| path.to_str().unwrap().to_owned());
        // The ticket comes behind the handshake; there is no other sign that it will not.
        let mut command = Command::new("timeout");
        command
            .current_dir(dir.path())
            .args([
                "2",
                "openssl",
                "s_client",
                "-ign_eof",
                "-connect",
                &format!("127.0.0.1:{port}"),
            ])
            .args([
                "-alpn",
                "postgresql",
                "-cert",
                &identity[0],
                "-key",
                &identity[1],
            ])
            .args(["-servername", "localhost"])
            .args(more);
        run(&mut command).unwrap_or_else(|said| said)
    };
    let own = server.address().port();
    let ours = s_client(own, &["-sess_out", "ours"]);
    assert!(ours.contains("New, TLSv1.3"), "{ours}");
    assert!(!dir.path().join("ours").exists(), "a ticket was given");

    // Another server gives one; ours is offered it and shakes hands in full.
    let port = testbed::reserve_port();
    let mut giver = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "openssl", "s_server", "-quiet"])
        .args(["-accept", &port.to_string(), "-alpn", "postgresql"])
        .arg("-cert")
        .arg(&primary.cert)
        .arg("-key")
        .arg(&primary.key)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a ticket", || {
        s_client(port, &["-sess_out", "theirs"]);
        dir.path().join("theirs").exists()
    });
    giver.kill().unwrap();
    giver.wait().unwrap();
    let offered = s_client(own, &["-sess_in", "theirs"]);
    assert!(offered.contains("New, TLSv1.3"), "{offered}");
    assert!(!offered.contains("Reused"), "{offered}");
}
