//! From two hosts with a package's clusters to a stream, by commands that a person types: `setup primary`, `invite`, `join`;
//! and the ways back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use testbed::{Host, programs};

/// A primary and a standby that streams, by typed commands alone.
fn pair(major: u32, words: &[&str]) -> (Host, Host) {
    let mut primary = Host::new("db1", major);
    primary.node.start();
    let words = [
        &["--name", "db1", "--standby", "standby1", "--restart"],
        words,
    ]
    .concat();
    primary.setup_primary(&words).unwrap();
    primary.serve();
    let mut standby = Host::new("standby1", major);
    follow(&mut primary, &mut standby);
    (primary, standby)
}

fn follow(primary: &mut Host, standby: &mut Host) {
    let (token, mut inviting) = primary.invite(standby.name());
    let said = standby.join(&token, &["--replace"]).unwrap();
    assert!(said.contains("It streams from"), "{said}");
    assert!(inviting.wait().unwrap().success());
    primary.node.wait_for_standby(standby.name());
}

#[test]
fn two_commands_on_each_host_lead_from_packages_to_a_stream() {
    for major in programs::majors() {
        println!("PostgreSQL {major}");
        let (primary, mut standby) = pair(major, &[]);
        assert!(primary.typed.len() <= 2, "{:?}", primary.typed);
        assert!(standby.typed.len() <= 2, "{:?}", standby.typed);
        primary
            .node
            .query("create table t as select generate_series(1, 1000) as n");
        standby.node.catch_up_with(&primary.node);
        assert_eq!(standby.node.query("select count(*) from t"), "1000");
        let slot = "select active from pg_replication_slots where slot_name = 'standby1'";
        assert_eq!(primary.node.query(slot), if major >= 13 { "t" } else { "" });

        let said = standby.setup_standby(&[]).unwrap();
        assert!(said.contains("nothing to do"), "{said}");
        let said = standby.setup_standby(&["--replace"]).unwrap();
        assert!(said.contains("nothing to do"), "{said}");
        drop(primary);
    }
}

/// Promotes the standby, after which the old primary is one too many.
fn fail_over(standby: &Host) {
    standby.node.promote();
    standby
        .node
        .query("create table after_failover as select 1 as n");
}

#[test]
fn an_old_primary_comes_back_by_pg_rewind() {
    for major in programs::majors() {
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
    }
}

#[test]
fn an_old_primary_comes_back_by_a_copy_and_nothing_of_it_is_deleted() {
    let (mut primary, mut standby) = pair(15, &[]);
    primary.node.query("create table kept as select 1 as n");
    standby.node.catch_up_with(&primary.node);
    fail_over(&standby);
    primary.node.query("create table lost as select 1 as n");
    let refused = primary
        .setup_standby(&["--from", &standby.public()])
        .unwrap_err();
    assert!(
        refused.contains("[V05]") && refused.contains("--rewind"),
        "{refused}"
    );
    let said = primary.setup_standby(&["--replace"]).unwrap();
    println!("{said}");
    standby.node.wait_for_standby("db1");
    primary.node.catch_up_with(&standby.node);
    assert!(primary.node.try_query("select n from lost").is_err());
    let moved = said.lines().find_map(|line| {
        let (_, place) = line.split_once("aside: it is ")?;
        place.strip_suffix(" now")
    });
    assert!(
        std::path::Path::new(moved.unwrap())
            .join("PG_VERSION")
            .exists(),
        "{said}"
    );

    // A third host joins where the primary is now.
    let refused = standby.setup_standby(&["--replace"]).unwrap_err();
    assert!(refused.contains("[V06]"), "{refused}");
}

#[test]
fn a_second_standby_joins_as_the_first_did() {
    let (mut primary, _standby) = pair(15, &[]);
    let mut second = Host::new("standby2", 15);
    follow(&mut primary, &mut second);
    assert!(second.typed.len() <= 2);
    primary.node.wait_for_standby("standby1");
    let slots = "select count(*) from pg_replication_slots where active";
    assert_eq!(primary.node.query(slots), "2");
}
