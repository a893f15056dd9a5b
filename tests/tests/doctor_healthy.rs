//! `doctor` finds nothing where nothing is wrong, however unusual it looks.

use std::process::Command;

use testbed::programs::client_tool;
use testbed::site::{Site, doctor, primary};
use testbed::{Node, Stop};

/// Has the standby replay an hour late, or not any more; a setting of recovery.conf before 12.
fn delay(site: &mut Site, major: u32, late: bool) {
    let setting = "recovery_min_apply_delay = '1h'";
    if major < 12 {
        let path = site.standby.data().join("recovery.conf");
        let text = std::fs::read_to_string(path).expect("a standby has one");
        let text = text.replace(&format!("{setting}\n"), "");
        let more = if late { setting } else { "" };
        site.standby
            .write("recovery.conf", &format!("{text}{more}\n"));
        site.standby.restart();
        site.wait_for_stream();
    } else {
        let change = if late {
            format!("set {setting}")
        } else {
            "reset recovery_min_apply_delay".to_owned()
        };
        site.standby.query(&format!("alter system {change}"));
        site.standby.reload();
    }
}

/// Well on both hosts.
#[track_caller]
fn is_well(site: &Site) {
    site.doctor_on_standby().is_well();
    site.doctor_on_primary().is_well();
}

#[test]
fn streaming_in_every_major() {
    for major in testbed::programs::majors() {
        is_well(&Site::new(major));
    }
}

#[test]
fn idle_delayed_synchronous_and_paused_on_purpose() {
    for major in testbed::programs::majors() {
        let mut site = Site::new(major);
        is_well(&site);
        delay(&mut site, major, true);
        site.primary
            .query("create table t as select generate_series(1, 1000)");
        site.standby.poll_query_until(
            "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()",
            "t",
        );
        is_well(&site);
        delay(&mut site, major, false);
        site.standby.catch_up_with(&site.primary);

        site.primary
            .query("alter system set synchronous_standby_names = 'standby'");
        site.primary.reload();
        site.primary
            .poll_query_until("select sync_state from pg_stat_replication", "sync");
        is_well(&site);
        site.primary
            .query("alter system reset synchronous_standby_names");
        site.primary.reload();

        site.standby.query("select pg_wal_replay_pause()");
        let examined = site.doctor_on_standby();
        examined.names("Y11", 0);
        assert_eq!(examined.report["verdict"], "ok");
        site.standby.query("select pg_wal_replay_resume()");
    }
}

#[test]
fn every_walsender_taken_by_who_should() {
    let site = Site::with(18, "max_wal_senders = 2");
    let mut receiver = Command::new(client_tool("pg_receivewal"))
        .args([
            "-d",
            &site.primary.conninfo().replace("dbname=postgres", ""),
        ])
        .arg("-D")
        .arg(site.primary.socket_dir())
        .spawn()
        .expect("pg_receivewal starts");
    site.primary.wait_for_standby("pg_receivewal");
    // Doctor's own question finds no walsender free: worth a note, and no more.
    let examined = site.doctor_on_standby();
    receiver.kill().expect("it can be killed");
    receiver.wait().expect("it ends");
    examined.names("U06", 0);
}

#[test]
fn two_standbys_and_one_behind_another() {
    let site = Site::new(15);
    site.primary
        .query("select pg_create_physical_replication_slot('second', true)");
    let standby = |name: &str, conninfo: &str, slot: &str| {
        let node = Node::builder(name).init_from_backup(conninfo);
        node.signal_standby();
        node.write(
            "postgresql.auto.conf",
            &format!("primary_conninfo = '{conninfo} application_name={name}'\nprimary_slot_name = '{slot}'\n"),
        );
        node.started()
    };
    let door = site.conninfo().replace(" application_name=standby", "");
    let second = standby("second", &door, "second");
    site.primary.wait_for_standby("second");
    is_well(&site);
    doctor(&site.client, &second).is_well();

    // The same way leads to the first standby now: the second becomes its cascade.
    site.standby
        .query("select pg_create_physical_replication_slot('second', true)");
    site.primary.query(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active",
    );
    site.server
        .reconfigure(&site.serving(&site.standby.socket(), "cn:standby"));
    site.primary.query(
        "select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'second'",
    );
    site.standby.wait_for_standby("second");
    second.poll_query_until("select status from pg_stat_wal_receiver", "streaming");
    doctor(&site.client, &second).is_well();
    doctor(&site.server, &site.standby).is_well();
}

#[test]
fn just_promoted() {
    let mut site = Site::new(18);
    site.primary.stop(Stop::Fast);
    site.standby.promote();
    site.server
        .reconfigure(&site.serving(&site.standby.socket(), "cn:standby"));
    // The new primary, at its server tunnel.
    doctor(&site.server, &site.standby).is_well();
}

#[test]
fn far_behind_and_moving() {
    let site = Site::new(15);
    let startup = site
        .standby
        .query("select pid from pg_stat_activity where backend_type = 'startup'");
    let startup = nix::unistd::Pid::from_raw(startup.parse().expect("a pid"));
    let signal = |signal| nix::sys::signal::kill(startup, signal).expect("the startup process");
    signal(nix::sys::signal::Signal::SIGSTOP);
    site.primary
        .query("create table t as select i, md5(i::text) from generate_series(1, 1500000) i");
    site.standby.poll_query_until(
        "select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) > 64000000",
        "t",
    );
    signal(nix::sys::signal::Signal::SIGCONT);
    is_well(&site);
}

#[test]
fn logical() {
    let publisher = primary(18, "");
    let mut site = Site::new(15);
    site.server
        .reconfigure(&site.serving(&publisher.socket(), "cn:standby"));
    site.standby.promote();
    site.standby.write("postgresql.auto.conf", "");
    site.standby.restart();
    publisher.query("create table t (id int primary key); create publication p for table t");
    publisher.query("grant select on t to replicator");
    site.standby.query("create table t (id int primary key)");
    let connection = format!("{} dbname=postgres", site.conninfo());
    site.standby.query(&format!(
        "create subscription s connection '{connection}' publication p"
    ));
    site.standby.poll_query_until(
        "select count(*) from pg_stat_subscription where received_lsn is not null",
        "1",
    );
    site.doctor_on_standby().is_well();
    doctor(&site.server, &publisher).is_well();

    // Another subscription is of another publisher, and no matter of this tunnel.
    site.standby.query(
        "create subscription other connection 'host=127.0.0.1 port=1 dbname=postgres' publication p
            with (connect = false)",
    );
    site.standby.query("alter subscription other enable");
    site.doctor_on_standby().is_well();
    // A publisher has no need of a line for physical replication.
    publisher.write(
        "pg_hba.conf",
        "local all postgres peer map=site\nlocal postgres replicator peer map=site\n",
    );
    publisher.reload();
    doctor(&site.server, &publisher).is_well();
}

#[test]
fn other_locale() {
    // A node whose lc_messages is not C speaks German, if its programs do: Debian's own.
    let site = Site::with(
        15,
        "lc_messages = 'C.UTF-8'\nlc_time = 'C.UTF-8'\ndatestyle = 'german'",
    );
    let said = site.primary.try_query("select 1 / 0").unwrap_err();
    println!("it says: {said}");
    site.primary
        .query("alter database postgres set datestyle = 'sql, dmy'");
    is_well(&site);
}
