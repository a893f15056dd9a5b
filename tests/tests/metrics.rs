//! The metrics: what they count is what flowed, counters never fall, no peer makes a series of its own, and to look
//! makes no session in PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::postgres::psql;
use testbed::scrape::{free_address, get};
use testbed::tunnel::{client_config, server_config};
use testbed::watched::{standby, status};
use testbed::wire::{replication_startup, startup};
use testbed::{Node, Pki, Scrape, Sidecar, StandIn, Stop, Watched, Wire, wait_for, wait_until};

const PATIENCE: std::time::Duration = testbed::wait::PATIENCE;

#[test]
fn bytes_are_counted_and_no_counter_falls_over_reload_and_end() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    let mut standby = standby(&primary, &watched.tunnel.conninfo());
    let moved = |end, at, direction| {
        let labels = [("tunnel", end), ("direction", direction)];
        Scrape::of(at)
            .sum("pgtlsproxy_relayed_bytes_total", &labels)
            .unwrap()
    };
    let before = watched
        .ends()
        .map(|(end, at)| (moved(end, at, "to_downstream"), end, at));
    let from = primary.lsn();
    primary.query("create table t as select i from generate_series(1, 50000) i");
    standby.catch_up_with(&primary);
    let wal = primary.query(&format!(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), '{from}')"
    ));
    let wal: f64 = wal.parse().unwrap();
    assert!(wal > 1e6, "{wal}");
    for (before, end, at) in before {
        let grown = moved(end, at, "to_downstream") - before;
        assert!(grown >= wal, "{end}: {grown} of {wal}");
        assert!(grown < wal * 1.5, "{end}: {grown} of {wal}");
        assert!(moved(end, at, "to_upstream") > 0.0);
    }

    // Sessions come and go, settings are loaded again and the stream ends, while somebody looks on.
    let done = AtomicBool::new(false);
    let conninfo = format!("{} replication=true", watched.tunnel.conninfo());
    thread::scope(|threads| {
        for (_, at) in watched.ends() {
            let done = &done;
            threads.spawn(move || {
                let mut last = Scrape::of(at);
                let mut scrapes = 0;
                while !done.load(Ordering::Relaxed) {
                    let scrape = Scrape::of(at);
                    scrape.rose_from(&last);
                    last = scrape;
                    scrapes += 1;
                }
                assert!(scrapes > 10, "{scrapes}");
            });
        }
        let _done = Finally(&done);
        let guests: Vec<_> = (0..3)
            .map(|_| {
                threads.spawn(|| {
                    for _ in 0..15 {
                        psql(&conninfo, "IDENTIFY_SYSTEM").unwrap();
                    }
                })
            })
            .collect();
        for round in 1..=3 {
            for (sidecar, at) in [
                (&watched.tunnel.server, watched.server),
                (&watched.tunnel.client, watched.client),
            ] {
                sidecar.reload();
                wait_until("the reload to be counted", || {
                    let good = [("outcome", "good")];
                    let count = Scrape::of(at).sum("pgtlsproxy_reloads_total", &good);
                    count >= Some(f64::from(round))
                });
            }
            primary.query(&format!(
                "create table u{round} as select i from generate_series(1, 20000) i"
            ));
            standby.catch_up_with(&primary);
        }
        for guest in guests {
            guest.join().unwrap();
        }
        standby.stop(Stop::Fast);
        for (end, at) in watched.ends() {
            wait_until("the end to be counted", || {
                let scrape = Scrape::of(at);
                let none = scrape.sum("pgtlsproxy_sessions", &[]).is_none();
                none && scrape.sum("pgtlsproxy_streams", &[]) == Some(0.0)
            });
            let scrape = Scrape::of(at);
            let opened = scrape.sum("pgtlsproxy_sessions_opened_total", &[]).unwrap();
            let over = scrape.sum("pgtlsproxy_session_duration_seconds_count", &[]);
            assert_eq!(over, Some(opened), "{end}: {}", scrape.text);
            assert!(opened >= 46.0, "{opened}");
            assert!(moved(end, at, "to_downstream") > wal);
        }
    });
}

/// Raises a flag, even if a step before it failed.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn lags_and_ages_are_what_status_tells() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    let standby = standby(&primary, &watched.tunnel.conninfo());
    standby.query("select pg_wal_replay_pause()");
    primary.query("create table t as select i from generate_series(1, 30000) i");
    for (end, at) in watched.ends() {
        let identity = if end == "server" {
            "cn:standby"
        } else {
            "ip:127.0.0.1"
        };
        let base = [
            ("tunnel", end),
            ("kind", "physical"),
            ("identity", identity),
        ];
        let told = |scrape: &Scrape, name: &str, lag: Option<&'static str>| {
            let labels: Vec<_> = base
                .into_iter()
                .chain(lag.map(|lag| ("lag", lag)))
                .collect();
            scrape.sum(name, &labels)
        };
        wait_for(
            "metrics to lie between two looks at the status",
            PATIENCE,
            || {
                let stream = |status: Value| -> Value {
                    let mut sessions = status["sessions"].as_array().unwrap().iter();
                    let streaming = sessions.find(|session| session["activity"] == "streaming");
                    streaming.unwrap()["replication"].clone()
                };
                let (before, scrape, after) =
                    (stream(status(at)), Scrape::of(at), stream(status(at)));
                // A reply in between would make every number another.
                if before["replies"] != after["replies"] || before["sent_lsn"] != after["sent_lsn"]
                {
                    return None;
                }
                for lag in ["write", "flush", "apply"] {
                    let field = format!("{lag}_lag");
                    let bytes = told(&scrape, "pgtlsproxy_lag_bytes", Some(lag));
                    assert_eq!(bytes, before[&field]["bytes"].as_f64(), "{lag} in {before}");
                    let seconds = told(&scrape, "pgtlsproxy_lag_seconds", Some(lag)).unwrap();
                    let [least, most] = [&before, &after].map(|at| at[&field]["seconds"].as_f64());
                    // Where nothing lags, status tells none and the metric nought.
                    let between = least.unwrap_or(0.0) <= seconds && seconds <= most.unwrap_or(0.0);
                    assert!(between, "{end} {lag}: {seconds} in {before}, {after}");
                }
                for age in [
                    "wal_age_seconds",
                    "keepalive_age_seconds",
                    "reply_age_seconds",
                ] {
                    let seconds = told(&scrape, &format!("pgtlsproxy_{age}"), None);
                    let (least, most) = (before[age].as_f64(), after[age].as_f64());
                    assert!(
                        least <= seconds && seconds <= most,
                        "{end} {age}: {seconds:?}"
                    );
                }
                let apply = told(&scrape, "pgtlsproxy_lag_seconds", Some("apply"));
                let flush = told(&scrape, "pgtlsproxy_lag_seconds", Some("flush"));
                (apply > Some(3.0) && flush < Some(1.0)).then_some(())
            },
        );
    }
}

#[test]
fn two_hundred_certificate_names_make_no_series_of_their_own() {
    let (pki, stand_in, at) = (Pki::new(), StandIn::new(), free_address());
    let primary = pki.issue("primary");
    // One tunnel without rules, one with.
    let rules = "[[server.allow]]\nidentity = \"cn:known\"\n[[server.allow]]\nidentity = \"cn:*\"\nusers = [\"app\"]\n";
    let config = server_config(&primary, stand_in.upstream(), "")
        + &format!(
            "[[server]]\nlisten = \"127.0.0.1:0\"\npostgres = \"{}\"\n{rules}",
            stand_in.upstream()
        )
        + &format!("[admin]\nlisten = \"{at}\"\nstatus = true\n");
    let server = Sidecar::run("server", &config);
    let [open, ruled]: [SocketAddr; 2] =
        [0, 1].map(|tunnel: usize| server.addresses()[tunnel].parse().unwrap());
    let enter = |at: SocketAddr, name: &str| {
        let identity = pki.issue(name);
        let mut wire = Wire::direct_tls(at, &identity);
        wire.send(&replication_startup());
        (wire, identity)
    };
    let names = [0, 1].map(|tunnel: usize| {
        let name = status(at)["tunnels"][tunnel]["name"].clone();
        name.as_str().unwrap().to_owned()
    });
    let mut held = Vec::new();
    let mut admitted = |address: SocketAddr, name: &str| {
        let (mut wire, identity) = enter(address, name);
        let (mut upstream, _) = stand_in.accept_startup();
        upstream.greet(1, b"key!");
        wire.read_greeting();
        held.push((wire, upstream));
        identity
    };
    admitted(ruled, "known");
    let come = |name: &str, admitted: &mut dyn FnMut(SocketAddr, &str) -> testbed::Identity| {
        let identity = admitted(open, name);
        // The rule that means it wants another role.
        let mut refused = Wire::direct_tls(ruled, &identity);
        refused.send(&replication_startup());
        refused.read_refusal();
        // And so does a role that nobody heard of.
        let mut refused = Wire::direct_tls(ruled, &identity);
        refused.send(&startup(&[
            ("user", name),
            ("replication", "true"),
            ("application_name", name),
        ]));
        refused.read_refusal();
    };
    come("stranger0", &mut admitted);
    let series = |scrape: &Scrape| -> BTreeSet<String> { scrape.samples.keys().cloned().collect() };
    // A refusal is heard before it is counted.
    let refusals = |count: f64| {
        wait_for("the refusals to be counted", PATIENCE, || {
            let scrape = Scrape::of(at);
            (scrape.sum("pgtlsproxy_refusals_total", &[]) == Some(count)).then_some(scrape)
        })
    };
    let first = refusals(2.0);
    for number in 1..200 {
        come(&format!("stranger{number}"), &mut admitted);
    }
    let last = refusals(400.0);
    let new: Vec<_> = series(&last).difference(&series(&first)).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
    assert!(!last.text.contains("stranger"), "{}", last.text);
    let identities: BTreeSet<_> = last
        .samples
        .values()
        .filter_map(|sample| sample.labels.get("identity"))
        .map(String::as_str)
        .collect();
    assert_eq!(identities, BTreeSet::from(["cn:*", "cn:known", "other"]));
    let named = |identity| last.sum("pgtlsproxy_sessions", &[("identity", identity)]);
    assert_eq!(
        (named("other"), named("cn:known")),
        (Some(200.0), Some(1.0))
    );
    // Whose stream ends is at 0, with a name or without, and not gone: an alarm can be had of it.
    let streams = |tunnel, identity| {
        last.sum(
            "pgtlsproxy_streams",
            &[("tunnel", tunnel), ("identity", identity)],
        )
    };
    assert_eq!(streams(&*names[0], "other"), Some(0.0));
    assert_eq!(streams(&*names[1], "cn:known"), Some(0.0));
    assert_eq!(streams(&*names[1], "other"), None);
    // The snapshot, which comes in pieces, has them all, the oldest first.
    let told = status(at);
    let sessions = told["sessions"].as_array().unwrap();
    let who = |session: &Value| session["identity"].as_str().unwrap().to_owned();
    let told: Vec<_> = sessions.iter().map(who).collect();
    let strangers = (0..200).map(|number| format!("dns:stranger{number}.test"));
    let expected = ["dns:known.test".to_owned()].into_iter().chain(strangers);
    assert_eq!(told, expected.collect::<Vec<_>>());
}

#[test]
fn what_the_observer_gives_up_on_is_counted_past_the_session() {
    let (pki, stand_in, at) = (Pki::new(), StandIn::new(), free_address());
    let admin = format!("[admin]\nlisten = \"{at}\"\n");
    let config = server_config(&pki.issue("primary"), stand_in.upstream(), &admin);
    let server = Sidecar::run("server", &config);
    let given_up = || {
        let name = "pgtlsproxy_messages_not_understood_total";
        Scrape::of(at).sum(name, &[("tunnel", "server")])
    };
    assert_eq!(given_up(), Some(0.0));
    let mut downstream = Wire::direct_tls(server.address(), &pki.issue("standby"));
    downstream.send(&replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    upstream.greet(1, b"key!");
    downstream.read_greeting();
    // No message is shorter than its own length.
    let nonsense = [b'd', 0, 0, 0, 1, 7, 7, 7];
    upstream.send(&nonsense);
    assert_eq!(downstream.read_exactly(nonsense.len()), nonsense);
    wait_until("it to be counted", || given_up() == Some(1.0));
    drop((downstream, upstream));
    wait_until("the session to end", || {
        Scrape::of(at).sum("pgtlsproxy_sessions", &[]).is_none()
    });
    assert_eq!(given_up(), Some(1.0));
}

#[test]
fn reload_and_its_failure_are_told() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    let (server, at) = (&watched.tunnel.server, watched.server);
    let loaded = |scrape: &Scrape| scrape.sum("pgtlsproxy_last_good_reload_timestamp_seconds", &[]);
    let successful = |scrape: &Scrape| scrape.sum("pgtlsproxy_last_reload_successful", &[]);
    let began = Scrape::of(at);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let age = now.as_secs_f64() - loaded(&began).unwrap();
    assert!((-1.0..PATIENCE.as_secs_f64()).contains(&age), "{age}");
    assert_eq!(successful(&began), Some(1.0));
    let good = server.config();
    std::fs::write(
        server.dir().join("pgtlsproxy.toml"),
        good.clone() + "[nonsense]\n",
    )
    .unwrap();
    server.reload();
    wait_until("the refusal to be told", || {
        successful(&Scrape::of(at)) == Some(0.0)
    });
    let refused = Scrape::of(at);
    assert_eq!(loaded(&refused), loaded(&began));
    let refusals = [("outcome", "refused")];
    assert!(refused.sum("pgtlsproxy_reloads_total", &refusals) >= Some(1.0));
    std::fs::write(server.dir().join("pgtlsproxy.toml"), good).unwrap();
    server.signal(Signal::SIGHUP);
    wait_until("it to be mended", || {
        successful(&Scrape::of(at)) == Some(1.0)
    });
    assert!(loaded(&Scrape::of(at)) >= loaded(&began));
}

#[test]
fn proxies_make_no_session_of_their_own_in_postgres() {
    let primary = Node::builder("primary").init();
    primary.append_conf("log_connections = on");
    let primary = primary.started();
    let (pki, server_at, client_at) = (Pki::new(), free_address(), free_address());
    let admin = |at: SocketAddr| {
        format!("[admin]\nsocket = \"status.sock\"\nlisten = \"{at}\"\nstatus = true\n")
    };
    let from_the_start = primary.log().text();
    let server = server_config(
        &pki.issue("primary"),
        primary.socket().display(),
        &admin(server_at),
    );
    let server = Sidecar::run("server", &server);
    let client = client_config(&pki.issue("standby"), server.address(), &admin(client_at));
    let client = Sidecar::run("client", &client);
    let look = |sidecar: &Sidecar, at: SocketAddr| {
        for path in ["/metrics", "/status.json", "/healthz", "/readyz"] {
            get(at, path);
        }
        testbed::scrape::answer(at, "/readyz?replication");
        sidecar.status();
        let reloads = || Scrape::of(at).sum("pgtlsproxy_reloads_total", &[]);
        let before = reloads();
        sidecar.reload();
        wait_until("a reload", || reloads() > before);
    };
    let all_that_they_do = || {
        look(&server, server_at);
        look(&client, client_at);
    };
    // Nobody has come yet, so nobody stands in the log.
    all_that_they_do();
    let said = primary.log().text();
    let said = said.strip_prefix(&from_the_start).unwrap_or(&said);
    assert!(!said.contains("connection"), "{said}");

    let standby = standby(&primary, &client.conninfo());
    standby.append_conf("log_connections = on");
    standby.reload();
    standby.catch_up_with(&primary);
    let marks = [&primary, &standby].map(|node| (node, node.log().mark()));
    all_that_they_do();
    for (node, mark) in marks {
        let said = node.log().after(mark);
        assert!(!said.contains("connection"), "{said}");
    }
}
