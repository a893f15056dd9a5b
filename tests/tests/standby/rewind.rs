//! An old primary comes back by pg_rewind, and what is left where that breaks off.

use testbed::Scratch;

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
        let (managed, hba) = (
            Scratch::new("managed"),
            primary.node.data().join("pg_hba.conf"),
        );
        let real = managed.path().join("pg_hba.conf");
        run(Command::new("mv").arg(&hba).arg(&real)).unwrap();
        std::os::unix::fs::symlink(&real, &hba).unwrap();
        let said = primary
            .setup_standby(&["--from", &standby.public(), "--rewind"])
            .unwrap();
        println!("{said}");
        assert!(said.contains("It streams from"), "{said}");
        standby.node.wait_for_standby("db1");
        primary.node.catch_up_with(&standby.node);
        assert_eq!(primary.node.query("select n from after_failover"), "1");
        assert!(primary.node.try_query("select n from lost").is_err());
        assert_eq!(fs::read_link(&hba).unwrap(), real, "a link stays a link");
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

#[test]
fn a_pg_rewind_that_broke_off_leaves_only_a_copy_and_one_that_refused_is_repeated() {
    let (mut primary, standby) = pair(15, &["--rewind"]);
    standby.node.catch_up_with(&primary.node);
    fail_over(&standby);
    primary.node.query("create table lost as select 1 as n");
    // As configuration management has it; pg_rewind would refuse a link, or write through it.
    let (managed, conf) = (
        Scratch::new("managed"),
        primary.node.data().join("postgresql.conf"),
    );
    let real = managed.path().join("postgresql.conf");
    run(Command::new("mv").arg(&conf).arg(&real)).unwrap();
    std::os::unix::fs::symlink(&real, &conf).unwrap();
    let back = ["--from", &standby.public(), "--rewind"];
    let listing = "function pg_ls_dir(text, boolean, boolean)";
    standby
        .node
        .query(&format!("revoke execute on {listing} from replicator"));
    let refused = primary.setup_standby(&back).unwrap_err();
    assert!(
        refused.contains("[V13]") && refused.contains("setup primary --rewind"),
        "{refused}"
    );

    // What a person changes in between counts.
    primary.node.append_conf("work_mem = '5MB'");
    let config = |host: &Host| fs::read_to_string(host.node.data().join("postgresql.conf"));
    let before = config(&primary).unwrap();
    standby
        .node
        .query(&format!("grant execute on {listing} to replicator"));
    // A file that pg_rewind cannot write, after others that it can.
    let unwritable = primary.node.data().join("pg_xact/0000");
    run(Command::new("chown").arg("root:root").arg(&unwritable)).unwrap();
    let broken = primary.setup_standby(&back).unwrap_err();
    assert!(
        broken.contains("[V13]") && broken.contains("setup standby --replace"),
        "{broken}"
    );
    assert!(!broken.contains("mend that and run this again"), "{broken}");
    assert_eq!(config(&primary).unwrap(), before, "its own configuration");
    assert_eq!(fs::read_link(&conf).unwrap(), real);

    // Nothing takes what is left for a standby.
    for words in [&back[..], &[], &["--config-only"]] {
        let refused = primary.setup_standby(words).unwrap_err();
        assert!(
            refused.contains("[V13]") && refused.contains("--replace"),
            "{words:?}: {refused}"
        );
    }
    assert!(!primary.node.data().join("postmaster.pid").exists());
    run(Command::new("chown")
        .arg("--reference")
        .arg(primary.node.data())
        .arg(&unwritable))
    .unwrap();
    let said = primary.setup_standby(&["--replace"]).unwrap();
    assert!(said.contains("It streams from"), "{said}");
    primary.node.catch_up_with(&standby.node);
    assert_eq!(primary.node.query("select n from after_failover"), "1");
    assert_eq!(primary.node.query("show work_mem"), "5MB");
    assert_eq!(fs::read_link(&conf).unwrap(), real);
}
