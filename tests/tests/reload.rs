//! Reload: certificates, CRLs, rules and the log level change under load without a lost byte, at a signal or noticed
//! by themselves, and a reload that fails keeps what worked and says why, once.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testbed::tunnel::{client_config, server_config};
use testbed::wire::{self, ALPN, Ending, Wire};
use testbed::{Identity, Node, Pki, Scratch, Sidecar, StandIn, Tunnel, put, wait_until};

/// Whether a new connection of this identity reaches PostgreSQL.
fn is_admitted(server: &Sidecar, stand_in: &StandIn, identity: &Identity) -> bool {
    let Ok(mut wire) = Wire::tcp(server.address()).tls(Some(identity), &[ALPN]) else {
        return false;
    };
    if wire.try_send(&wire::replication_startup()).is_err() {
        return false;
    }
    let ended = thread::spawn(move || wire.ending());
    loop {
        if let Some(mut upstream) = stand_in.accepted() {
            assert_eq!(upstream.read_packet(), wire::replication_startup());
            return true;
        }
        if ended.is_finished() && stand_in.accepted().is_none() {
            return false;
        }
        thread::yield_now();
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
fn new_rules_hold_for_new_sessions_and_leave_those_alone_that_they_admit() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = |name| {
        let rule = format!("[[server.allow]]\nidentity = \"cn:{name}\"");
        server_config(&primary, stand_in.upstream(), &rule)
    };
    let server = Sidecar::run("server", &config("*"));
    let mut running = Wire::direct_tls(server.address(), &pki.issue("other"));
    running.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();

    server.rewrite(&config("other"));
    server.reload();
    wait_until("the new rule to hold", || {
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
    wait_until("the new certificate to be shown", || {
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
    wait_until("the revocation to hold", || {
        !is_admitted(&server, &stand_in, &standby)
    });
}

fn shows(server: &Sidecar, to: &Identity, wanted: &Identity) -> bool {
    Wire::direct_tls(server.address(), to).certificate_of_peer() == wanted.chain()[0]
}

#[test]
fn synchronous_standby_outlives_renewals_and_the_change_of_the_ca() {
    let (old, new, primary) = (Pki::new(), Pki::new(), Node::primary());
    let (dir, lost) = (Scratch::new("rotation"), old.issue("lost"));
    // Each host has files of its own.
    let on_host = |host: &str, pki: &Pki| {
        let at = dir.path().join(host);
        fs::create_dir(&at).unwrap();
        fs::copy(pki.crl(), at.join("ca.crl")).unwrap();
        pki.issue(host).copied_to(&at)
    };
    let [on_primary, on_standby] = ["primary", "standby"].map(|host| on_host(host, &old));
    let with_crl = |config: String, identity: &Identity| {
        let crl = identity.ca.with_file_name("ca.crl");
        config.replace(&identity.toml(), &identity.toml_with_crl(&crl))
    };
    let server = server_config(&on_primary, primary.socket().display(), "");
    let server = Sidecar::run("server", &with_crl(server, &on_primary));
    let client = client_config(&on_standby, server.address(), "");
    let client = Sidecar::run("client", &with_crl(client, &on_standby));
    let standby = Node::standby("standby", &client.conninfo());
    primary.append_conf("synchronous_standby_names = 'standby'\nsynchronous_commit = remote_apply");
    primary.reload();
    primary.poll_query_until("select sync_state from pg_stat_replication", "sync");
    primary.query("create table t (id serial, filler text)");
    let walsender = "select pid, backend_start from pg_stat_replication";
    let before = primary.query(walsender);
    let (primary, done) = (&primary, &AtomicBool::new(false));
    let inserted = thread::scope(|scope| {
        let load = scope.spawn(move || {
            let mut inserted = 0;
            while !done.load(Ordering::Relaxed) {
                primary.query(
                    "insert into t (filler) select repeat('x', 500) from generate_series(1, 500)",
                );
                inserted += 500;
            }
            inserted
        });
        let both_take = |step: &str, change: &dyn Fn(&Identity, &Path)| {
            let marks = [&server, &client].map(|sidecar| (sidecar, sidecar.log().mark()));
            for identity in [&on_primary, &on_standby] {
                change(identity, &identity.ca.with_file_name("ca.crl"));
            }
            for (sidecar, mark) in marks {
                let taken = sidecar.log().wait_for_after(mark, "\"reloaded\"");
                assert!(taken.contains("\"sessions_ended\":0"), "{step}: {taken}");
            }
        };
        let renewed = [old.issue("primary"), old.issue("standby")];
        both_take("renewal", &|identity, _| {
            let own = usize::from(identity.cert == on_standby.cert);
            identity.renew_as(&renewed[own]);
        });
        wait_until("the renewed certificate to be shown", || {
            shows(&server, &on_standby, &renewed[0])
        });
        old.revoke("lost");
        both_take("CRL", &|_, crl| put(fs::read(old.crl()).unwrap(), crl));
        let [cas, crls] = [[old.ca(), new.ca()], [old.crl(), new.crl()]]
            .map(|files| files.map(|file| fs::read(file).unwrap()).concat());
        // The CRLs first: a CA without one is refused, and that set is not taken.
        both_take("two CAs", &|identity, crl| {
            put(&crls, crl);
            put(&cas, &identity.ca);
        });
        let reissued = [new.issue("primary"), new.issue("standby")];
        both_take("new leaves", &|identity, _| {
            let own = usize::from(identity.cert == on_standby.cert);
            identity.renew_as(&reissued[own]);
        });
        wait_until("the new CA's certificate to be shown", || {
            shows(&server, &on_standby, &reissued[0])
        });
        // The stream's handshake was made with leaves of the old CA: it goes on, and is named.
        both_take("the old CA goes", &|identity, crl| {
            put(fs::read(new.ca()).unwrap(), &identity.ca);
            put(fs::read(new.crl()).unwrap(), crl);
        });
        for sidecar in [&server, &client] {
            sidecar.wait_for_log("[R20]");
        }
        wait_until("a leaf of the old CA to be refused", || {
            let mut wire = Wire::tcp(server.address())
                .tls(Some(&lost), &[ALPN])
                .unwrap();
            let _ = wire.try_send(&wire::replication_startup());
            matches!(wire.ending(), Ending::Alert(_))
        });
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert_eq!(
        primary.query(walsender),
        before,
        "the stream was interrupted"
    );
    standby.catch_up_with(primary);
    let sum = "select count(*), max(id) from t";
    assert_eq!(standby.query(sum), format!("{inserted}|{inserted}"));
}

#[test]
fn swapped_data_directory_is_noticed() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("secret"), StandIn::new());
    // As Kubernetes mounts a secret: every file is a symlink into `..data`, which is one itself.
    let at = |name: &str| dir.path().join(name);
    let versions = ["v1", "v2"].map(|version| {
        fs::create_dir(at(version)).unwrap();
        pki.issue("primary").copied_to(&at(version))
    });
    symlink("v1", at("..data")).unwrap();
    for file in ["primary.crt", "primary.key", "ca.crt"] {
        symlink(format!("..data/{file}"), at(file)).unwrap();
    }
    let mut mounted = versions[0].clone();
    (mounted.cert, mounted.key, mounted.ca) = (at("primary.crt"), at("primary.key"), at("ca.crt"));
    let server = Sidecar::run("server", &server_config(&mounted, stand_in.upstream(), ""));
    let standby = pki.issue("standby");
    assert!(shows(&server, &standby, &versions[0]));
    symlink("v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    wait_until("the new certificate to be shown", || {
        shows(&server, &standby, &versions[1])
    });
}

#[test]
fn editors_rename_and_a_file_named_anew_are_noticed() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("anew"), StandIn::new());
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = |identity: &Identity| server_config(identity, stand_in.upstream(), "");
    let server = Sidecar::run("server", &config(&primary));
    let other = pki.issue("other").copied_to(dir.path());
    let file = server.dir().join("pgtlsproxy.toml");
    let log = "\n[log]\nformat = \"json\"\nlevel = \"debug\"\n";
    // vim: the old file becomes a backup, the new one takes its name.
    fs::rename(&file, server.dir().join("pgtlsproxy.toml~")).unwrap();
    fs::write(&file, config(&other) + log).unwrap();
    wait_until("the other certificate to be shown", || {
        shows(&server, &standby, &other)
    });
    // From now on the files that it names are looked at.
    let renewed = pki.issue("renewed");
    other.renew_as(&renewed);
    wait_until("the renewed certificate to be shown", || {
        shows(&server, &standby, &renewed)
    });
}

#[test]
fn half_written_file_is_waited_for() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("half"), StandIn::new());
    let (primary, standby) = (
        pki.issue("primary").copied_to(dir.path()),
        pki.issue("standby"),
    );
    let server = Sidecar::run("server", &server_config(&primary, stand_in.upstream(), ""));
    let renewed = pki.issue("renewed");
    let whole = [&renewed.cert, &renewed.key].map(|file| fs::read(file).unwrap());
    fs::write(&primary.cert, &whole[0][..whole[0].len() / 2]).unwrap();
    thread::sleep(Duration::from_millis(900)); // whoever writes takes his time
    fs::write(&primary.cert, &whole[0]).unwrap();
    thread::sleep(Duration::from_millis(900));
    fs::write(&primary.key, &whole[1]).unwrap();
    wait_until("the new certificate to be shown", || {
        shows(&server, &standby, &renewed)
    });
    let log = server.log().text();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn broken_files_change_nothing_and_are_told_once() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("broken"), StandIn::new());
    let (primary, standby) = (
        pki.issue("primary").copied_to(dir.path()),
        pki.issue("standby"),
    );
    let crl = dir.path().join("ca.crl");
    put(fs::read(pki.crl()).unwrap(), &crl);
    let config = server_config(&primary, stand_in.upstream(), "");
    let server = Sidecar::run(
        "server",
        &config.replace(&primary.toml(), &primary.toml_with_crl(&crl)),
    );
    let mut running = Wire::direct_tls(server.address(), &standby);
    running.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    let foreign = Pki::new();
    let cases: [(&Path, Vec<u8>, &str); 5] = [
        (
            &primary.cert,
            b"-----BEGIN CERTIFICATE-----\nAAAA".to_vec(),
            "primary.crt",
        ),
        (&primary.key, b"no key".to_vec(), "primary.key"),
        (
            &primary.key,
            fs::read(&standby.key).unwrap(),
            "do not belong together",
        ),
        (&primary.ca, fs::read(foreign.ca()).unwrap(), "ca.crt"),
        (
            &crl,
            fs::read(foreign.crl()).unwrap(),
            "there is no CRL of the CA",
        ),
    ];
    for (file, broken, why) in cases {
        let good = fs::read(file).unwrap();
        let mark = server.log().mark();
        fs::write(file, broken).unwrap();
        server.log().wait_for_after(mark, why);
        assert!(is_admitted(&server, &stand_in, &standby), "{why}");
        upstream.send(b"on");
        assert_eq!(running.read_exactly(2), b"on");
        // It is looked at again and again, and told once.
        let told = Instant::now();
        wait_until("three more looks", || {
            told.elapsed() > Duration::from_millis(1600)
        });
        let said = server.log().after(mark);
        let lines = said
            .lines()
            .filter(|line| line.contains("reload refused") && line.contains(why));
        assert_eq!(lines.count(), 1, "{said}");
        fs::write(file, good).unwrap();
        server.log().wait_for_after(mark, "\"reloaded\"");
    }
}
