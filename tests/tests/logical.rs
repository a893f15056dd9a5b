//! Logical replication: subscriptions with their initial copy, and pg_recvlogical.

use std::process::Command;

use testbed::programs::client_tool;
use testbed::{Node, Tunnel, run};

#[test]
fn subscription_copies_its_tables_and_follows() {
    let publisher = Node::primary();
    let tunnel = Tunnel::to(&publisher);
    let subscriber = Node::builder("subscriber").init().started();
    publisher.query(
        "create table t (id int primary key); insert into t select generate_series(1, 10000)",
    );
    publisher.query("create publication p for table t");
    subscriber.query("create table t (id int primary key)");
    subscriber.query(&format!(
        "create subscription s connection '{} dbname=postgres' publication p",
        tunnel.conninfo()
    ));
    subscriber.poll_query_until("select count(*) from t", "10000");
    publisher.query("delete from t where id > 5000; insert into t values (20000)");
    subscriber.poll_query_until("select count(*), max(id) from t", "5001|20000");
}

#[test]
fn subscriber_of_another_major_follows() {
    let publisher = Node::builder("publisher").version(18).init().started();
    let tunnel = Tunnel::to(&publisher);
    let subscriber = Node::builder("subscriber").version(15).init().started();
    publisher.query("create table t (id int primary key); insert into t values (1)");
    publisher.query("create publication p for table t");
    subscriber.query("create table t (id int primary key)");
    subscriber.query(&format!(
        "create subscription s connection '{} dbname=postgres' publication p",
        tunnel.conninfo()
    ));
    subscriber.poll_query_until("select count(*) from t", "1");
}

#[test]
fn pg_recvlogical_receives_changes() {
    let publisher = Node::primary();
    let tunnel = Tunnel::to(&publisher);
    let conninfo = format!("{} dbname=postgres", tunnel.conninfo());
    let recvlogical = || {
        let mut command = Command::new(client_tool("pg_recvlogical"));
        command.args(["-d", &conninfo, "--slot", "s"]);
        command
    };
    run(recvlogical().args(["--create-slot", "-P", "test_decoding"])).unwrap();
    publisher.query("create table t (id int)");
    publisher.query("insert into t values (42)");
    let received =
        run(recvlogical().args(["--start", "-f", "-", "--endpos", &publisher.lsn()])).unwrap();
    assert!(
        received.contains("table public.t: INSERT: id[integer]:42"),
        "{received}"
    );
    run(recvlogical().arg("--drop-slot")).unwrap();
}
