//! Slot synchronisation (17 and later): the worker is an ordinary connection beside the walreceiver.

use testbed::{Node, Tunnel};

/// A standby of 18 that keeps the primary's failover slots, and its primary.
fn nodes(tunnel: impl Fn(&Node) -> Tunnel) -> (Node, Node, Tunnel) {
    let primary = Node::builder("primary").version(18).init().started();
    let tunnel = tunnel(&primary);
    primary.query("select pg_create_physical_replication_slot('standby', true)");
    primary.query(
        "select pg_create_logical_replication_slot('failover', 'pgoutput', false, false, true)",
    );
    let standby = Node::builder("standby")
        .version(18)
        .init_from_backup(&tunnel.conninfo());
    standby.set_standby(
        &format!("{} dbname=postgres", tunnel.conninfo()),
        Some("standby"),
    );
    standby.append_conf("sync_replication_slots = on\nhot_standby_feedback = on");
    (primary, standby.started(), tunnel)
}

#[test]
fn failover_slot_reaches_the_standby() {
    let (primary, standby, _tunnel) = nodes(Tunnel::for_all);
    primary.wait_for_standby("standby");
    standby.poll_query_until(
        "select count(*) from pg_replication_slots where synced",
        "1",
    );
}

#[test]
fn slot_sync_worker_without_ordinary_is_told_what_to_do() {
    let (primary, standby, _tunnel) = nodes(Tunnel::to);
    primary.wait_for_standby("standby");
    standby.wait_for_log("synchronization worker \"slotsync worker\" could not connect");
    standby.wait_for_log("ordinary = true");
}
