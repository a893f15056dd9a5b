//! An old primary comes back by pg_rewind, and what is left where that breaks off.

use super::*;

#[test]
fn an_old_primary_comes_back_by_pg_rewind() {
    // pg_rewind works on its own major alone, and of others than these it cannot be had here.
    let majors = programs::majors().into_iter();
    for major in majors.filter(|major| [15, 18].contains(major)) {
        println!("PostgreSQL {major}");
        let (mut primary, standby) = pair(major, &["--rewind"]);
        standby.node.catch_up_with(&primary.node);
        fail_over(&standby);
        // Its history goes on alone.
        primary.node.query("create table lost as select 1 as n");
        let said = primary
            .setup_standby(&["--from", &standby.public(), "--rewind"])
            .unwrap();
        println!("{said}");
        assert!(said.contains("It streams from"), "{said}");
        standby.node.wait_for_standby("db1");
        primary.node.catch_up_with(&standby.node);
        assert_eq!(primary.node.query("select n from after_failover"), "1");
        assert!(primary.node.try_query("select n from lost").is_err());
        let slot = "select active from pg_replication_slots where slot_name = 'db1'";
        assert_eq!(standby.node.query(slot), if major >= 13 { "t" } else { "" });
        let said = primary.setup_standby(&["--rewind"]).unwrap();
        assert!(said.contains("nothing to do"), "{said}");
        // What it gave the role as a primary is the new primary's now.
        let said = primary.undo().unwrap();
        assert!(
            said.contains("PostgreSQL is a standby now; this stays: let role"),
            "{said}"
        );
        assert!(said.contains("restored"), "{said}");
    }
}

#[test]
fn pg_rewind_waits_for_the_first_checkpoint_of_the_new_primary() {
    // From 16 on pg_rewind needs none.
    let (mut primary, standby) = pair(15, &["--rewind"]);
    standby
        .node
        .append_conf("checkpoint_timeout = '1h'\ncheckpoint_completion_target = 1.0");
    standby.node.reload();
    primary
        .node
        .query("create table big as select n, repeat('x', 500) from generate_series(1, 50000) n");
    standby.node.catch_up_with(&primary.node);
    fail_over(&standby);
    primary.node.query("create table lost as select 1 as n");
    let mut command = primary.standby_command(&["--from", &standby.public(), "--rewind"]);
    let mut coming_back = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(coming_back.stderr.take().unwrap());
    while !said.contains("waiting for the first checkpoint of the new primary") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    standby.node.query("checkpoint");
    stderr.read_to_string(&mut said).unwrap();
    assert!(coming_back.wait().unwrap().success(), "{said}");
    assert!(said.contains("It streams from"), "{said}");
    standby.node.query("create table later as select 1 as n");
    primary.node.catch_up_with(&standby.node);
    assert_eq!(primary.node.query("select n from later"), "1");
    assert!(primary.node.try_query("select n from lost").is_err());
}

#[test]
fn an_old_primary_that_crashed_comes_back_by_pg_rewind() {
    let (mut primary, standby) = pair(18, &["--rewind"]);
    standby.node.catch_up_with(&primary.node);
    primary.node.query("create table lost as select 1 as n");
    primary.node.stop(testbed::Stop::Immediate);
    fail_over(&standby);
    primary
        .setup_standby(&["--from", &standby.public(), "--rewind"])
        .unwrap();
    standby.node.wait_for_standby("db1");
    primary.node.catch_up_with(&standby.node);
    assert_eq!(primary.node.query("select n from after_failover"), "1");
}
