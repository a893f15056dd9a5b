//! Physical replication: a standby lives behind two sidecars as if it stood beside its primary.

use std::time::Duration;

use testbed::{Node, Stop, Tunnel, run};

#[test]
fn standby_streams_through_two_sidecars() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = Node::standby("standby", &tunnel.conninfo());
    primary.wait_for_standby("standby");
    primary.query("create table t as select i, md5(i::text) from generate_series(1, 300000) i");
    standby.catch_up_with(&primary);
    let sum = "select count(*), md5(string_agg(md5, '' order by i)) from t";
    assert_eq!(standby.query(sum), primary.query(sum));
}

#[test]
fn standby_holds_its_slot_through_the_tunnel() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    primary.query("select pg_create_physical_replication_slot('s1', true)");
    let standby = Node::builder("standby").init_from_backup(&tunnel.conninfo());
    standby.set_standby(&tunnel.conninfo(), Some("s1"));
    let _standby = standby.started();
    primary.poll_query_until(
        "select active from pg_replication_slots where slot_name = 's1'",
        "t",
    );
}

#[test]
fn synchronous_standby_has_each_commit() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = Node::standby("standby", &tunnel.conninfo());
    primary.append_conf("synchronous_standby_names = 'standby'\nsynchronous_commit = remote_apply");
    primary.reload();
    primary.poll_query_until("select sync_state from pg_stat_replication", "sync");
    primary.query("create table t (id int)");
    for id in 1..=20 {
        primary.query(&format!("insert into t values ({id})"));
        assert_eq!(standby.query("select max(id) from t"), id.to_string());
    }
}

#[test]
fn cascading_standby_streams_from_a_standby() {
    let primary = Node::primary();
    let first_tunnel = Tunnel::to(&primary);
    let first = Node::standby("first", &first_tunnel.conninfo());
    let second_tunnel = Tunnel::to(&first);
    let second = Node::standby("second", &second_tunnel.conninfo());
    first.wait_for_standby("second");
    primary.query("create table t as select 1 as id");
    second.catch_up_with(&primary);
    assert_eq!(second.query("select id from t"), "1");
}

#[test]
fn promoted_standby_and_rewound_primary_swap_roles() {
    let mut old = Node::primary();
    old.append_conf("wal_keep_size = 64MB"); // pg_rewind reads back to where the two parted
    old.reload();
    let there = Tunnel::to(&old);
    let new = Node::standby("new", &there.conninfo());
    old.wait_for_standby("new");
    new.promote();
    old.query("create table lost as select 1");
    new.query("create table kept as select 1");
    new.query("checkpoint");
    old.stop(Stop::Fast);

    let back = Tunnel::for_all(&new);
    let source = format!("{} dbname=postgres", back.conninfo());
    let mut rewind = old.program("pg_rewind");
    run(rewind
        .arg("--target-pgdata")
        .arg(old.data())
        .args(["--source-server", &source]))
    .unwrap();
    old.set_standby(&back.conninfo(), None);
    old.start();
    old.catch_up_with(&new);
    assert_eq!(
        old.query("select to_regclass('kept'), to_regclass('lost') is null"),
        "kept|t"
    );
}

#[test]
fn fast_shutdown_of_the_primary_reaches_the_standby() {
    let mut primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let standby = Node::standby("standby", &tunnel.conninfo());
    primary.wait_for_standby("standby");
    assert!(primary.try_stop(Stop::Fast, Duration::from_secs(5)));
    standby.wait_for_log("replication terminated by primary server");
    primary.start();
    primary.wait_for_standby("standby");
}

#[test]
fn stopped_standby_leaves_the_primary_at_once() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let mut standby = Node::standby("standby", &tunnel.conninfo());
    primary.wait_for_standby("standby");
    standby.stop(Stop::Fast);
    primary.poll_query_until("select count(*) from pg_stat_replication", "0");
}
