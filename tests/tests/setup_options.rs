//! The options of `pgtlsproxy setup primary`, each used as a person would use what it prepares: by a standby, pg_rewind,
//! the slot-sync worker, a subscription. A second run changes nothing, and undo brings every byte back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use testbed::postgres::psql_of;
use testbed::programs::{client_tool, majors};
use testbed::setup::{Prepared, configuration, pg_rewind};
use testbed::{Node, Stop, run};

#[test]
fn a_standby_logs_in_by_password_through_the_tunnel() {
    const PASSWORD: &str = "it's a \\ pass:wörd 100%";
    for major in majors() {
        println!("PostgreSQL {major}");
        // As up to 13 by default: what is stored by itself, SCRAM could not check.
        let mut primary =
            Prepared::careful(major, "password_encryption = md5\nlog_statement = all");
        primary.node.start();
        let before = configuration(&primary.node);
        let said = primary
            .setup_with(&["--password"], &format!("{PASSWORD}\n"))
            .well();
        assert!(
            said.contains("give role \"replicator\" its password"),
            "{said}"
        );
        let log = primary.node.log().text();
        assert!(
            log.contains("ALTER ROLE") && !log.contains("pass:w"),
            "{log}"
        );
        // The second run asks for nothing: there is nothing on its standard input.
        let said = primary.setup(&["--password"]).well();
        assert!(said.contains("nothing to do"), "{said}");

        let server = primary.serve();
        let door = primary.follow(&server);
        let passfile = door.directory().join("pgpass");
        let write = |password: &str| {
            let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
            let host = door.directory().display();
            fs::write(
                &passfile,
                format!("{host}:5442:replication:replicator:{escaped}\n"),
            )
            .unwrap();
            fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(
                &passfile,
                Some(fs::metadata(primary.node.data()).unwrap().uid()),
                None,
            )
            .unwrap();
        };
        let conninfo = format!("{} passfile={}", door.conninfo(), passfile.display());
        write("wrong");
        let standby = || Node::builder("standby1").version(major);
        let refused = standby().try_init_from_backup(&conninfo).unwrap_err();
        assert!(
            refused.contains("password authentication failed"),
            "{refused}"
        );
        write(PASSWORD);
        let standby = standby().init_from_backup(&conninfo);
        standby.set_standby(&conninfo, None);
        let standby = standby.started();
        primary.node.wait_for_standby("standby1");
        primary.undo_without(standby, &before);
    }
}

#[test]
fn the_role_may_rewind_what_has_diverged() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "wal_log_hints = off");
        let Some(mut rewind) = pg_rewind(&primary.node) else {
            println!("left out: no pg_rewind of {major} can be had");
            continue;
        };
        primary.node.start();
        let before = configuration(&primary.node);
        // The options come one after the other: what the first run wrote is no hindrance.
        primary.setup(&[]).well();
        primary.setup(&["--rewind", "--slot"]).well();
        primary.node.restart();
        let said = primary.setup(&["--rewind", "--slot"]).well();
        assert!(said.contains("nothing to do"), "{said}");

        let server = primary.serve();
        let door = primary.follow(&server);
        let conninfo = door.conninfo();
        let mut standby = Node::builder("standby1")
            .version(major)
            .init_from_backup(&conninfo);
        standby.set_standby(&conninfo, Some("standby1"));
        standby.start();
        primary.node.wait_for_standby("standby1");
        // By mistake: both go on by themselves.
        standby.promote();
        standby.query("create table mistake as select 1");
        primary
            .node
            .query("create table kept as select generate_series(1, 1000) as id");
        standby.stop(Stop::Fast);
        rewind.arg("--target-pgdata").arg(standby.data());
        rewind.args(["--source-server", &format!("{conninfo} dbname=postgres")]);
        run(&mut rewind).unwrap();
        standby.set_standby(&conninfo, Some("standby1"));
        standby.start();
        primary.node.wait_for_standby("standby1");
        standby.catch_up_with(&primary.node);
        assert_eq!(standby.query("select count(*) from kept"), "1000");
        assert_eq!(
            standby.query("select count(*) from pg_class where relname = 'mistake'"),
            "0"
        );
        primary.undo_without(standby, &before);
        let may =
            "select has_function_privilege('replicator', 'pg_read_binary_file(text)', 'execute')";
        assert_eq!(
            primary.node.query(may),
            "f",
            "what was granted is taken back"
        );
    }
}

#[test]
fn a_failover_slot_is_synchronised() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "wal_level = replica");
        primary.node.start();
        let before = configuration(&primary.node);
        if major < 17 {
            let said = primary.setup(&["--slot-sync"]).failed();
            assert!(
                said.contains("[G19]") && said.contains("came with 17"),
                "{said}"
            );
            assert_eq!(configuration(&primary.node), before);
            continue;
        }
        let said = primary.setup(&["--slot-sync"]).well();
        assert!(said.contains("must be restarted for wal_level"), "{said}");
        primary.node.restart();
        // Slots come after the restart.
        let said = primary.setup(&["--slot-sync"]).well();
        assert!(said.contains("create replication slot standby1"), "{said}");
        assert!(
            primary
                .setup(&["--slot-sync"])
                .well()
                .contains("nothing to do")
        );
        primary.node.query(
            "select pg_create_logical_replication_slot('failover', 'pgoutput', false, false, true)",
        );

        let server = primary.serve();
        let door = primary.follow(&server);
        let conninfo = format!("{} dbname=postgres", door.conninfo());
        let standby = Node::builder("standby1")
            .version(major)
            .init_from_backup(&door.conninfo());
        standby.set_standby(&conninfo, Some("standby1"));
        standby.append_conf("sync_replication_slots = on\nhot_standby_feedback = on");
        let standby = standby.started();
        standby.poll_query_until(
            "select slot_name from pg_replication_slots where synced",
            "failover",
        );
        // With it, undo would leave wal_level as it is.
        primary
            .node
            .query("select pg_drop_replication_slot('failover')");
        primary.undo_without(standby, &before);
    }
}

#[test]
fn a_subscription_comes_through_the_tunnel() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "wal_level = replica");
        primary.node.start();
        let before = configuration(&primary.node);
        primary.node.query("create database \"the app\"");
        let app = primary
            .node
            .conninfo()
            .replace("dbname=postgres", "dbname='the app'");
        let on_app = |sql: &str| psql_of(&client_tool("psql"), &app, sql).unwrap();
        let options = ["--logical", "the app"];
        let said = primary.setup(&options).well();
        assert!(said.contains("must be restarted for wal_level"), "{said}");
        primary.node.restart();
        primary.setup(&options).well();
        assert!(primary.setup(&options).well().contains("nothing to do"));
        on_app("create table t (id int primary key); insert into t select generate_series(1, 100)");
        on_app("grant select on t to replicator; create publication p for table t");

        let server = primary.serve();
        let door = primary.follow(&server);
        let subscriber = Node::builder("subscriber").version(major).init().started();
        subscriber.query("create table t (id int primary key)");
        let subscribe = |database: &str| {
            let conninfo = format!("{} dbname=''{database}''", door.conninfo());
            subscriber.try_query(&format!(
                "create subscription s connection '{conninfo}' publication p"
            ))
        };
        let refused = subscribe("postgres").unwrap_err();
        assert!(refused.contains("pgtlsproxy:"), "{refused}");
        subscribe("the app").unwrap();
        subscriber.poll_query_until("select count(*) from t", "100");
        on_app("insert into t values (1000)");
        subscriber.poll_query_until("select max(id) from t", "1000");
        subscriber.query("drop subscription s");
        drop(subscriber);
        primary.undo().well();
        assert_eq!(configuration(&primary.node), before);
    }
}

#[test]
fn a_wal_level_in_capitals_is_what_it_says() {
    let mut primary = Prepared::careful(15, "wal_level = LOGICAL");
    primary.node.start();
    let slot = "select pg_create_logical_replication_slot('sub1', 'pgoutput')";
    primary.node.query(slot);
    primary.setup(&[]).well();
    primary.node.restart();
    assert_eq!(primary.node.query("show wal_level"), "logical");
    // What runs is not lowered either, whatever the file says by now.
    primary.node.append_conf("wal_level = minimal");
    primary.setup(&[]).well();
    primary.node.restart();
    assert_eq!(primary.node.query("show wal_level"), "logical");
}

#[test]
fn a_second_role_does_not_lock_the_first_one_out() {
    let mut primary = Prepared::careful(15, "");
    primary.node.start();
    let before = configuration(&primary.node);
    let enters = |role: &str| {
        let socket = primary.node.socket_dir().display().to_string();
        let port = primary.node.address().port();
        let conninfo = format!("host={socket} port={port} user={role} replication=true");
        psql_of(&client_tool("psql"), &conninfo, "IDENTIFY_SYSTEM").unwrap()
    };
    primary.setup(&[]).well();
    enters("replicator");
    primary.setup(&["--role", "logrep"]).well();
    enters("logrep");
    enters("replicator");
    primary.undo().well();
    assert_eq!(configuration(&primary.node), before);
}

#[test]
fn mended_trust_shuts_nobody_out_who_has_a_password() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::of(Node::builder("primary").version(major).init());
        primary.node.start();
        let before = configuration(&primary.node);
        primary.node.query(
            "set password_encryption = 'md5'; create role old login password 'old'; \
             set password_encryption = 'scram-sha-256'; create role new login password 'new'; create role bare login",
        );
        let tcp = |user: &str| {
            let port = primary.node.address().port();
            let conninfo =
                format!("host=127.0.0.1 port={port} user={user} password={user} dbname=postgres");
            psql_of(&client_tool("psql"), &conninfo, "select 1")
        };
        let said = primary.setup(&[]).failed();
        let line = said.lines().find(|line| line.contains("[G07]")).unwrap();
        assert!(line.contains("pg_hba.conf line"), "{said}");
        assert_eq!(configuration(&primary.node), before);
        assert_eq!(tcp("bare").unwrap(), "1", "anybody is anybody");

        let said = primary.setup(&["--fix-trust"]).well();
        assert!(said.contains("[G11]"), "{said}");
        assert!(primary.setup(&[]).well().contains("nothing to do"));
        assert_eq!(tcp("old").unwrap(), "1");
        assert_eq!(tcp("new").unwrap(), "1");
        let refused = tcp("bare").unwrap_err();
        assert!(
            refused.contains("password authentication failed"),
            "{refused}"
        );

        primary.undo().well();
        assert_eq!(configuration(&primary.node), before);
        assert_eq!(tcp("bare").unwrap(), "1");
    }
}

#[test]
fn a_restart_is_done_where_it_is_asked_for() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "wal_level = minimal\nmax_wal_senders = 0");
        primary.node.start();
        let mark = primary.node.log().mark();
        let said = primary.setup(&["--restart", "--slot"]).well();
        assert!(said.contains("restarted"), "{said}");
        assert!(said.contains("create replication slot standby1"), "{said}");
        primary
            .node
            .log()
            .wait_for_after(mark, "ready to accept connections");
        assert_eq!(primary.node.query("show wal_level"), "replica");
        assert_eq!(
            primary
                .node
                .query("select slot_name from pg_replication_slots"),
            "standby1"
        );
        let said = primary.setup(&["--restart", "--slot"]).well();
        assert!(said.contains("nothing to do"), "{said}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_not_replaced() {
    let primary = Prepared::careful(15, "");
    let config = primary.dir().join("pgtlsproxy.toml");
    fs::create_dir_all(primary.dir()).unwrap();
    let theirs = b"# caf\xe9\n[[server]]\n";
    fs::write(&config, theirs).unwrap();
    let said = primary.setup(&[]).failed();
    assert!(said.contains("[G05]"), "{said}");
    assert_eq!(fs::read(&config).unwrap(), theirs);
}
