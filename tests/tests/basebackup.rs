//! pg_basebackup and pg_receivewal.

use std::fs;
use std::process::Command;

use testbed::programs::client_tool;
use testbed::watched::status;
use testbed::{Node, Scrape, Scratch, Tunnel, Watched, run, wait_until};

#[test]
fn pg_basebackup_makes_a_backup_that_verifies() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    primary.query("create table t as select i, md5(i::text) from generate_series(1, 100000) i");
    let copy = Node::builder("copy").init_from_backup(&tunnel.conninfo());
    run(copy.program("pg_verifybackup").arg(copy.data())).unwrap();
    let copy = copy.started();
    assert_eq!(copy.query("select count(*) from t"), "100000");
}

#[test]
fn pg_basebackup_makes_a_compressed_tar() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let dir = Scratch::new("tar");
    let mut backup = Command::new(client_tool("pg_basebackup"));
    backup.args([
        "-F",
        "tar",
        "-z",
        "-X",
        "fetch",
        "-c",
        "fast",
        "-d",
        &tunnel.conninfo(),
        "-D",
    ]);
    run(backup.arg(dir.path())).unwrap();
    let list = run(Command::new("tar")
        .arg("tzf")
        .arg(dir.path().join("base.tar.gz")))
    .unwrap();
    assert!(list.lines().any(|file| file == "PG_VERSION"));
}

#[test]
fn pg_receivewal_receives_whole_segments() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    primary.query("select pg_create_physical_replication_slot('s', true)");
    primary.query("create table t as select i from generate_series(1, 100000) i");
    let segment = primary.query("select pg_walfile_name(pg_switch_wal())");
    let end = primary.query("select pg_current_wal_lsn()");
    primary.query("create table u as select 1");
    let dir = Scratch::new("wal");
    let mut receive = Command::new(client_tool("pg_receivewal"));
    receive.args([
        "--no-loop",
        "--slot",
        "s",
        "--endpos",
        &end,
        "-d",
        &tunnel.conninfo(),
        "-D",
    ]);
    run(receive.arg(dir.path())).unwrap();
    let received = fs::read(dir.path().join(&segment)).unwrap();
    assert!(received == fs::read(primary.data().join("pg_wal").join(&segment)).unwrap());
}

#[test]
fn what_a_base_backup_streams_is_not_missed_when_it_ends() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    let conninfo = watched.tunnel.conninfo();
    // Told by its name, or by the slot that it makes for itself.
    let renamed = format!("{conninfo} application_name=nightly");
    for (conninfo, more) in [
        (&conninfo, "--no-slot"),
        (&renamed, "--no-verify-checksums"),
    ] {
        let dir = Scratch::new("copy");
        let mut backup = Command::new(client_tool("pg_basebackup"));
        backup.args(["-c", "fast", "-r", "8M", more, "-d", conninfo, "-D"]);
        let mut backup = backup.arg(dir.path().join("data")).spawn().unwrap();
        for (end, at) in watched.ends() {
            let of_backup = [("kind", "basebackup"), ("state", "streaming")];
            wait_until("the backup to stream its WAL", || {
                Scrape::of(at).sum("pgtlsproxy_sessions", &of_backup) == Some(1.0)
            });
            let scrape = Scrape::of(at);
            let streams = scrape.sum("pgtlsproxy_streams", &[]);
            assert_eq!(streams, Some(0.0), "{end}: {}", scrape.text);
            let ready = testbed::scrape::answer(at, "/readyz?replication");
            assert!(ready.contains("[O11]"), "{end}: {ready}");
        }
        assert!(backup.wait().unwrap().success());
        for (end, at) in watched.ends() {
            wait_until("its sessions to end", || {
                Scrape::of(at).sum("pgtlsproxy_sessions", &[]).is_none()
            });
            let tunnel = &status(at)["tunnels"][0];
            assert!(tunnel["last_stream"].is_null(), "{end}: {tunnel}");
        }
    }
}
