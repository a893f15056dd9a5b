//! What `pgtlsproxy status` tells is what PostgreSQL's own views tell, at both ends, without a login there.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testbed::postgres::psql;
use testbed::programs::{client_tool, pgtlsproxy};
use testbed::tunnel::{client_config, server_config};
use testbed::{Link, Node, Pki, Scratch, Sidecar, Tunnel, Wire, run, wait_for, wait_until};

const PATIENCE: Duration = testbed::wait::PATIENCE;

/// A standby that replies every second and holds the slot `s1`.
fn standby(primary: &Node, conninfo: &str) -> Node {
    primary.query("select pg_create_physical_replication_slot('s1', true)");
    let standby = Node::builder("standby").init_from_backup(conninfo);
    standby.set_standby(conninfo, Some("s1"));
    standby.append_conf("wal_receiver_status_interval = 1s");
    let standby = standby.started();
    primary.wait_for_standby("standby");
    standby
}

/// The one session of this kind that streams.
fn stream(sidecar: &Sidecar, kind: &str) -> Option<Value> {
    let mut streams = sidecar.sessions(kind);
    streams.retain(|session| session["activity"] == "streaming");
    (streams.len() == 1).then(|| streams.remove(0))
}

/// PID, application_name and positions, as `pg_stat_replication` shows them.
fn view(primary: &Node) -> String {
    primary.query(
        "select pid, application_name, sent_lsn, write_lsn, flush_lsn, replay_lsn \
         from pg_stat_replication where state = 'streaming'",
    )
}

/// The same as `status` tells them.
fn seen(session: &Value) -> String {
    let stream = &session["replication"];
    [
        &session["backend_pid"],
        &session["application_name"],
        &stream["sent_lsn"],
        &stream["written_lsn"],
        &stream["flushed_lsn"],
        &stream["applied_lsn"],
    ]
    .map(|value| value.to_string().replace('"', ""))
    .join("|")
}

#[track_caller]
fn wait_until_both_see_what_the_server_sees(primary: &Node, tunnel: &Tunnel, kind: &str) {
    let mut last = String::new();
    let agree = |last: &mut String| {
        let (server, client) = (stream(&tunnel.server, kind)?, stream(&tunnel.client, kind)?);
        let view = view(primary);
        *last = format!(
            "view {view}\nserver {}\nclient {}",
            seen(&server),
            seen(&client)
        );
        (seen(&server) == view && seen(&client) == view).then_some(())
    };
    let start = std::time::Instant::now();
    while agree(&mut last).is_none() {
        assert!(start.elapsed() < PATIENCE, "they do not agree:\n{last}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A lag in seconds; 0 where nothing lags.
fn lag(sidecar: &Sidecar, which: &str) -> f64 {
    stream(sidecar, "physical").map_or(0.0, |session| {
        session["replication"][which]["seconds"]
            .as_f64()
            .unwrap_or(0.0)
    })
}

#[test]
fn physical_stream_is_seen_as_the_server_sees_it() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = standby(&primary, &tunnel.conninfo());
    for round in 0..3 {
        primary.query(&format!(
            "create table t{round} as select i from generate_series(1, 30000) i"
        ));
        standby.catch_up_with(&primary);
        wait_until_both_see_what_the_server_sees(&primary, &tunnel, "physical");
    }
    let (server, client) = (
        stream(&tunnel.server, "physical").unwrap(),
        stream(&tunnel.client, "physical").unwrap(),
    );
    assert_eq!(server["id"], client["id"]);
    assert_eq!(server["identity"], "dns:standby.test");
    assert_eq!(client["identity"], "dns:primary.test");
    for session in [server, client] {
        let stream = &session["replication"];
        assert_eq!(stream["slot"], "s1", "{session}");
        assert_eq!(stream["timeline"], 1, "{session}");
        assert_eq!(session["server_version"], "15", "{session}");
        assert_eq!(session["not_understood"], 0, "{session}");
        assert!(stream["wal_bytes"].as_u64() > Some(1_000_000), "{session}");
        assert!(
            stream["reply_age_seconds"].as_f64() < Some(10.0),
            "{session}"
        );
    }
}

#[test]
fn logical_stream_is_seen_as_the_server_sees_it() {
    let publisher = Node::primary();
    let tunnel = Tunnel::to(&publisher);
    let subscriber = Node::builder("subscriber").init();
    subscriber.append_conf("wal_receiver_status_interval = 1s");
    let subscriber = subscriber.started();
    publisher.query("create table t (id int primary key)");
    publisher.query("create publication p for table t");
    subscriber.query("create table t (id int primary key)");
    subscriber.query(&format!(
        "create subscription s connection '{} dbname=postgres' publication p",
        tunnel.conninfo()
    ));
    publisher.query("insert into t select generate_series(1, 10000)");
    subscriber.poll_query_until("select count(*) from t", "10000");
    wait_until_both_see_what_the_server_sees(&publisher, &tunnel, "logical");
    let session = stream(&tunnel.server, "logical").unwrap();
    assert_eq!(session["replication"]["slot"], "s", "{session}");
    assert_eq!(session["database"], "postgres", "{session}");
}

#[test]
fn base_backup_is_seen_as_the_server_sees_it() {
    for major in [14, 18] {
        let primary = Node::builder("primary").version(major).init().started();
        let tunnel = Tunnel::to(&primary);
        let dir = Scratch::new("copy");
        let mut backup = Command::new(client_tool("pg_basebackup"))
            .args([
                "-P",
                "-c",
                "fast",
                "-r",
                "2M",
                "-d",
                &tunnel.conninfo(),
                "-D",
            ])
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let view = || {
            let row = primary.query(
                "select pid, backup_streamed, backup_total from pg_stat_progress_basebackup \
                 where phase = 'streaming database files'",
            );
            let numbers: Vec<u64> = row
                .split('|')
                .filter_map(|number| number.parse().ok())
                .collect();
            <[u64; 3]>::try_from(numbers).ok()
        };
        for sidecar in [&tunnel.server, &tunnel.client] {
            wait_for("a backup to be seen as it is", PATIENCE, || {
                let [pid, before, total] = view()?;
                // The other one streams the WAL of meanwhile.
                let mut sessions = sidecar.sessions("basebackup").into_iter();
                let session = sessions.find(|session| session["activity"] == "basebackup")?;
                let [_, after, _] = view()?;
                let seen = &session["basebackup"];
                let bytes = seen["bytes"].as_u64()?;
                // What the view counts may be on its way still; before 15 it leaves out the headers of the archive.
                let close = bytes + 256 * 1024 >= before && bytes <= after + 1024 * 1024;
                // The client is told KiB.
                let estimate = seen["total_bytes"].as_u64()?;
                let same = session["backend_pid"] == pid && estimate.abs_diff(total) < 1024;
                (before > 1_000_000 && close && same).then_some(())
            });
        }
        backup.kill().unwrap();
        backup.wait().unwrap();
    }
}

#[test]
fn paused_replay_lags_in_apply_alone_at_both_ends() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = standby(&primary, &tunnel.conninfo());
    standby.query("select pg_wal_replay_pause()");
    primary.query("create table t as select i from generate_series(1, 30000) i");
    for sidecar in [&tunnel.server, &tunnel.client] {
        wait_until("apply to lag", || lag(sidecar, "apply_lag") > 3.0);
        let [write, flush] = ["write_lag", "flush_lag"].map(|which| lag(sidecar, which));
        assert!(write < 1.0 && flush < 1.0, "write {write}, flush {flush}");
        let session = stream(sidecar, "physical").unwrap();
        let behind = &session["replication"]["apply_lag"]["bytes"];
        assert!(behind.as_u64() > Some(1_000_000), "{session}");
    }
    standby.query("select pg_wal_replay_resume()");
    standby.catch_up_with(&primary);
    for sidecar in [&tunnel.server, &tunnel.client] {
        wait_until("the lag to be forgotten", || {
            lag(sidecar, "apply_lag") == 0.0
        });
    }
}

#[test]
fn stopped_walreceiver_lags_in_write_at_both_ends() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = standby(&primary, &tunnel.conninfo());
    let pid = standby.query("select pid from pg_stat_wal_receiver");
    let walreceiver = Pid::from_raw(pid.parse().unwrap());
    kill(walreceiver, Signal::SIGSTOP).unwrap();
    primary.query("create table t as select 1 as i");
    for sidecar in [&tunnel.server, &tunnel.client] {
        wait_until("write to lag", || lag(sidecar, "write_lag") > 3.0);
    }
    kill(walreceiver, Signal::SIGCONT).unwrap();
    standby.catch_up_with(&primary);
}

#[test]
fn cut_path_lags_in_write_on_the_far_side_alone() {
    let primary = Node::primary();
    let pki = Pki::new();
    let server = server_config(&pki.issue("primary"), primary.socket().display(), "");
    let server = Sidecar::run("server", &server);
    let link = Link::to(server.address());
    let client = client_config(&pki.issue("standby"), link.address(), "");
    let client = Sidecar::run("client", &client);
    let standby = standby(&primary, &client.conninfo());

    // A slow path first: what the server's side measures holds the way there and back, the client's side does not.
    link.delay(Duration::from_millis(300));
    let tell_apart = || {
        primary.query("select pg_logical_emit_message(true, 'x', repeat('x', 100))");
        let (far, near) = (lag(&server, "write_lag"), lag(&client, "write_lag"));
        (0.55..2.0).contains(&far) && near < 0.2
    };
    wait_until(
        "the network's delay to be told from the standby's",
        tell_apart,
    );
    link.delay(Duration::ZERO);

    link.stall();
    primary.query("create table t as select 1 as i");
    wait_until("write to lag", || lag(&server, "write_lag") > 3.0);
    let near = stream(&client, "physical").unwrap();
    assert!(lag(&client, "write_lag") < 1.0, "{near}");
    assert!(
        near["replication"]["wal_age_seconds"].as_f64() > Some(2.0),
        "{near}"
    );
    link.resume();
    standby.catch_up_with(&primary);
}

#[test]
fn looking_on_makes_no_session_in_postgres() {
    let primary = Node::builder("primary").init();
    primary.append_conf("log_connections = on");
    let primary = primary.started();
    let tunnel = Tunnel::to(&primary);
    let standby = standby(&primary, &tunnel.conninfo());
    standby.catch_up_with(&primary);
    let mark = primary.log().mark();
    for _ in 0..20 {
        stream(&tunnel.server, "physical").unwrap();
        stream(&tunnel.client, "physical").unwrap();
    }
    let said = primary.log().after(mark);
    assert!(!said.contains("connection"), "{said}");
}

#[test]
fn status_is_one_screen_for_a_person() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let _standby = standby(&primary, &tunnel.conninfo());
    let text = screen(&tunnel.server);
    for told in [
        "dns:standby.test",
        "physical",
        "as standby",
        "slot s1",
        "days left",
        "lag",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text}");
}

fn screen(sidecar: &Sidecar) -> String {
    let mut status = Command::new(pgtlsproxy());
    let config = sidecar.dir().join("pgtlsproxy.toml");
    run(status.arg("status").arg("--config").arg(config)).unwrap()
}

#[test]
fn status_tells_failures_from_what_a_healthy_node_does_all_day() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let _standby = standby(&primary, &tunnel.conninfo());
    let over = |end: &str, key: &str| {
        let ended = tunnel.server.status()["tunnels"][0]["ended"].clone();
        let ended = ended.as_array().unwrap();
        let ended = ended.iter().filter(|ended| ended["end"] == end);
        ended.map(|ended| ended[key].as_u64().unwrap()).sum::<u64>()
    };
    // A health check, a client that thinks better of it, and a node that asks for the CRL and one that is told no.
    drop(Wire::tcp(tunnel.server.address()));
    Wire::tcp(tunnel.server.address()).send(&[0, 0, 0, 8]);
    let node = tunnel.pki.issue("node");
    let ask = |request| Wire::node(tunnel.server.address(), Some(&node)).ask_node(&request);
    ask(json!({"verb": "crl", "crls": []}));
    for end in ["silent", "left", "node"] {
        wait_until("the ends to be counted", || over(end, "connections") == 1);
    }
    let text = screen(&tunnel.server);
    assert!(
        text.contains(" 1 live\n") && !text.contains("failed"),
        "{text}"
    );
    let refused = ask(json!({"verb": "nonsense"}));
    assert_eq!(refused["answer"], "refused", "{refused}");
    psql(&tunnel.conninfo(), "select 1").unwrap_err();
    wait_until("the failures to be counted", || {
        over("node", "failed") == 1 && over("refused", "failed") == 1
    });
    let text = screen(&tunnel.server);
    assert!(text.contains("1 live, 2 failed or refused\n"), "{text}");
}

#[test]
fn status_of_a_daemon_that_is_not_there_says_what_to_do() {
    let dir = Scratch::new("nobody");
    let mut status = Command::new(pgtlsproxy());
    let error = run(status
        .args(["status", "--socket"])
        .arg(dir.path().join("s")))
    .unwrap_err();
    assert!(error.contains("[O03]") && error.contains("do: "), "{error}");
}

#[test]
fn status_socket_is_for_its_group_and_answers_beside_silent_askers() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let socket = tunnel.server.status_socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let ask = |question: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // What is asked too much is not read, so it may not all be sent.
        let _ = stream.write_all(question);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert!(ask(b"stop\n").contains("error"));
    assert!(!ask(&[b'x'; 100_000]).contains("sessions"));
    let silent: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert!(tunnel.server.status()["tunnels"].is_array());
    drop(silent);
}
