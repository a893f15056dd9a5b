//! Settings that a server takes only at its start: those on its command line, and those that a standby needs as high as
//! its primary's.

use super::*;

fn start_with(host: &Host, options: &str) {
    let mut start = host.node.program("pg_ctl");
    start.args(["start", "-w", "-s", "-l"]);
    start.arg(host.node.socket_dir().join("data.log"));
    start.args(["-o", options, "-D"]).arg(host.node.data());
    run(start.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
}

#[test]
fn a_setting_on_the_command_line_is_named_as_what_it_is() {
    let mut primary = Host::new("db1", 15);
    start_with(&primary, "-c max_wal_senders=3 -c wal_level=replica");
    let before = configuration(&primary.node);
    let words = ["--name", "db1", "--logical", "postgres", "--restart"];
    let refused = primary.setup_primary(&words).unwrap_err();
    for expected in [
        "[G27]",
        "wal_level is replica",
        "max_wal_senders is 3",
        "command line",
    ] {
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    assert_eq!(configuration(&primary.node), before);
    // What is well enough there needs no restart.
    stop(&primary);
    start_with(&primary, "-c max_wal_senders=30 -c wal_level=logical");
    let said = primary.setup_primary(&words).unwrap();
    assert!(!said.contains("restart"), "{said}");
    let said = primary.setup_primary(&words).unwrap();
    assert!(said.contains("nothing to do"), "{said}");
}

#[test]
fn a_standby_keeps_up_with_what_its_primary_raises_and_undo_leaves_it_able_to_start() {
    let (mut primary, mut standby) = joined(15, &[]);
    standby.setup_standby(&["--replace"]).unwrap();
    let before = standby.node.query("show max_connections");
    primary.node.append_conf("max_connections = 150");
    primary.node.restart();
    primary.node.query("create table t as select 5 as n");
    standby
        .node
        .poll_query_until("select pg_get_wal_replay_pause_state()", "paused");
    let said = standby.setup_standby(&[]).unwrap();
    assert!(said.contains("restarted"), "{said}");
    standby.node.catch_up_with(&primary.node);
    assert_eq!(standby.node.query("show max_connections"), "150");
    assert_eq!(standby.node.query("select n from t"), "5");
    let said = standby.setup_standby(&[]).unwrap();
    assert!(said.contains("nothing to do"), "{said}");

    let said = standby.undo().unwrap_err();
    for expected in ["[G29]", "max_connections", "150"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    stop(&standby);
    start_with(&standby, "");
    assert_eq!(standby.node.query("select pg_is_in_recovery()"), "t");
    assert_eq!(standby.node.query("show primary_conninfo"), "");
    // Once it is a server of its own, nothing holds it any more.
    standby.node.promote();
    stop(&standby);
    start_with(&standby, "");
    standby.undo().unwrap();
    stop(&standby);
    start_with(&standby, "");
    assert_eq!(standby.node.query("show max_connections"), before);
}
