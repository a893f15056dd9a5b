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
        let (mut primary, mut standby) = pair(major, &[]);
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
