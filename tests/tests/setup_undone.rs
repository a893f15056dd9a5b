//! `pgtlsproxy setup undo` where things have gone on since setup: whatever is left, the server starts again, the files that
//! can be put back are, and what is not undone is said.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use testbed::setup::{Prepared, configuration};
use testbed::{give_to_postgres, put};

#[test]
fn a_setting_without_which_the_server_would_not_start_is_kept_and_named() {
    let mut primary = Prepared::careful(15, "wal_level = replica");
    primary.node.start();
    let before = configuration(&primary.node);
    primary.setup(&["--logical", "postgres"]).well();
    primary.node.restart();
    // A subscription elsewhere uses it.
    let slot = "select pg_create_logical_replication_slot('sub1', 'pgoutput')";
    primary.node.query(slot);
    let said = primary.undo().failed();
    for expected in ["[G29]", "wal_level", "\"sub1\"", "setup undo"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let data = primary.node.data();
    let name = |file: &str| data.join(file);
    let now = configuration(&primary.node);
    for file in ["pg_hba.conf", "pg_ident.conf"] {
        assert_eq!(now[&name(file)], before[&name(file)]);
    }
    let kept = fs::read_to_string(name("pgtlsproxy.conf")).unwrap();
    assert!(
        kept.contains("wal_level") && !kept.contains("max_slot_wal_keep_size"),
        "{kept}"
    );
    primary.node.restart();
    let said = primary.undo().failed();
    assert!(said.contains("\"sub1\""), "{said}");
    primary
        .node
        .query("select pg_drop_replication_slot('sub1')");
    primary.undo().well();
    assert_eq!(configuration(&primary.node), before);
    primary.node.restart();
    assert_eq!(primary.node.query("show wal_level"), "replica");
}

#[test]
fn what_a_file_still_includes_is_not_taken_from_it() {
    let mut primary = Prepared::careful(15, "");
    primary.node.start();
    let main = primary.node.data().join("postgresql.conf");
    let stripped = || {
        let text = fs::read_to_string(&main).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let write = |text: &str| {
        put(text, &main);
        give_to_postgres(&main);
    };
    // Somebody takes out all comments, our marks among them.
    let before = stripped();
    primary.setup(&[]).well();
    write(&stripped());
    primary.undo().well();
    assert_eq!(fs::read_to_string(&main).unwrap(), before);
    assert!(!primary.node.data().join("pgtlsproxy.conf").exists());
    primary.node.restart();

    // Spelled otherwise it is not ours.
    primary.setup(&[]).well();
    write(&stripped().replace("include 'pgtlsproxy.conf'", "include = 'pgtlsproxy.conf'"));
    let said = primary.undo().failed();
    assert!(
        said.contains("[G29]") && said.contains("still includes it"),
        "{said}"
    );
    primary.node.restart();
    write(&before);
    primary.undo().well();
    assert!(!primary.node.data().join("pgtlsproxy.conf").exists());
    primary.node.restart();
}

#[test]
fn a_statement_that_fails_does_not_keep_the_files_from_coming_back() {
    let mut primary = Prepared::careful(15, "");
    primary.node.start();
    let before = configuration(&primary.node);
    primary.setup(&["--rewind"]).well();
    primary
        .node
        .query("drop owned by replicator; drop role replicator");
    let said = primary.undo().well();
    assert!(!said.contains("cannot be asked"), "{said}");
    assert_eq!(configuration(&primary.node), before);
    assert!(primary.undo().well().contains("nothing to undo"));

    // A server that lets nobody in keeps its slot, and no file.
    primary.setup(&[]).well();
    primary.node.prepend_hba("local all all reject");
    primary.node.reload();
    let said = primary.undo().failed();
    for expected in ["create replication slot standby1", "setup undo"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let hba = fs::read_to_string(primary.node.data().join("pg_hba.conf")).unwrap();
    assert!(!hba.contains("pgtlsproxy"), "{hba}");
    assert!(!primary.node.data().join("pgtlsproxy.conf").exists());
    primary.node.write(
        "pg_hba.conf",
        hba.strip_prefix("local all all reject\n").unwrap(),
    );
    primary.node.restart();
    primary.undo().well();
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(primary.node.query(slots), "0");
    assert_eq!(configuration(&primary.node), before);
}

#[test]
fn a_line_that_others_add_to_our_own_file_stays_until_the_file_goes() {
    let primary = Prepared::careful(15, "wal_log_hints = off");
    let before = configuration(&primary.node);
    primary.setup(&[]).well();
    let own = primary.node.data().join("pgtlsproxy.conf");
    let text = fs::read_to_string(&own).unwrap() + "work_mem = '5MB' # mine\n";
    put(text, &own);
    give_to_postgres(&own);
    primary.setup(&["--rewind"]).well();
    let text = fs::read_to_string(&own).unwrap();
    assert!(
        text.contains("work_mem = '5MB' # mine") && text.contains("wal_log_hints"),
        "{text}"
    );
    assert!(
        primary
            .setup(&["--rewind"])
            .well()
            .contains("nothing to do")
    );
    primary.undo().well();
    assert_eq!(configuration(&primary.node), before);
}
