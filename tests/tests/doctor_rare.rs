//! Failures that are met less often, planted on real servers like those of `doctor`: each is found under its id, and
//! nothing else is blamed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::programs::{client_tool, majors};
use testbed::site::{HBA, Site, doctor, primary};
use testbed::wait::wait_until;
use testbed::{Node, Stop, give_to_postgres};

/// Lets the standby come in again or not, without a restart.
fn follow(site: &Site, conninfo: &str) {
    site.follow(&site.standby, conninfo);
    site.standby.reload();
}

fn away(site: &Site) {
    follow(site, &site.conninfo().replace("port=5442", "port=5443"));
    site.standby.poll_query_until(
        "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
        "0",
    );
}

/// Serves with another configuration from now on.
fn serve(site: &Site, config: &str) {
    site.server.reconfigure(config);
}

/// A process that stands still, and goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn postmaster(node: &Node) -> Self {
        let pid = Pid::from_raw(node.pid());
        kill(pid, Signal::SIGSTOP).expect("it stops");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).expect("it goes on");
    }
}

/// idle_replication_slot_timeout is of 18.
#[test]
fn slot_that_was_given_up() {
    let site = Site::new(18);
    away(&site);
    site.primary
        .poll_query_until("select active from pg_replication_slots", "f");
    site.primary
        .query("alter system set idle_replication_slot_timeout = '1s'");
    site.primary.reload();
    wait_until("the slot to be given up", || {
        site.primary.query("checkpoint");
        site.primary
            .query("select coalesce(invalidation_reason, '') from pg_replication_slots")
            == "idle_timeout"
    });
    site.doctor_on_primary().names("U18", 1);
    follow(&site, &site.conninfo());
    site.doctor_on_standby().names("U18", 1);
}

#[test]
fn primary_that_does_not_start() {
    let mut site = Site::new(15);
    site.primary.stop(Stop::Fast);
    site.primary.append_conf("wal_level = minimal");
    site.doctor_on_primary().names("U07", 1);
    site.doctor_on_standby().names("B01", 1);
}

/// listen_addresses does not have the address that the tunnel dials.
#[test]
fn postgres_does_not_listen_there() {
    let site = Site::new(15);
    let port = site.primary.address().port();
    let socket = site.primary.socket().display().to_string();
    let serving = site.serving(&site.primary.socket(), "cn:standby");
    serve(
        &site,
        &serving.replace(&socket, &format!("127.0.0.2:{port}")),
    );
    site.break_stream();
    site.doctor_on_primary().names("U09", 1);
    site.doctor_on_standby().names("B01", 1);
}

#[test]
fn role_that_may_not_log_in_now() {
    let site = Site::new(15);
    site.primary
        .query("alter role replicator password 'right' valid until '2001-01-01'");
    let scram = format!("local replication replicator scram-sha-256\n{HBA}");
    site.primary.write("pg_hba.conf", &scram);
    site.primary.reload();
    let passfile = site.standby.socket_dir().join("passfile");
    fs::write(&passfile, "*:*:*:*:right\n").expect("a passfile");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).expect("a mode");
    give_to_postgres(&passfile);
    follow(
        &site,
        &format!("{} passfile={}", site.conninfo(), passfile.display()),
    );
    site.break_stream();
    // The server tells the same as of a wrong password; beside it the reason is seen.
    site.doctor_on_standby().names("A01", 1);
    site.doctor_on_primary().names("A05", 3);
    site.primary
        .query("alter role replicator valid until 'infinity'");
    site.wait_for_stream();
    site.doctor_on_standby().is_well();
    site.doctor_on_primary().is_well();
}

/// Sessions that do nothing, until they are dropped.
struct Sessions {
    conninfo: String,
    open: Vec<Child>,
}

impl Sessions {
    fn fill(node: &Node, count: usize) -> Self {
        let conninfo = format!("{} user=replicator", node.conninfo());
        let open = (0..count).map(|_| Self::session(&conninfo)).collect();
        Self { conninfo, open }
    }

    fn session(conninfo: &str) -> Child {
        Command::new(client_tool("psql"))
            .args(["-X", "-d", conninfo, "-c", "select pg_sleep(600)"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql starts")
    }

    /// Those that did not get in try again.
    fn again(&mut self) {
        for child in &mut self.open {
            if child.try_wait().expect("it can be waited for").is_some() {
                *child = Self::session(&self.conninfo);
            }
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for child in &mut self.open {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }
}

/// A walsender has a place of its own from 12 on.
#[test]
fn every_connection_taken() {
    for major in majors().into_iter().filter(|major| *major < 12) {
        let mut site = Site::with(major, "max_connections = 25\nmax_wal_senders = 5");
        site.standby.stop(Stop::Fast);
        let mut sessions = Sessions::fill(&site.primary, 22);
        // Three are kept for superusers; while one of these asks, it may stand in the way of a session.
        wait_until("22 sessions of the role are open", || {
            sessions.again();
            let count = "select count(*) from pg_stat_activity where usename = 'replicator'";
            site.primary.query(count) == "22"
        });
        site.standby.start();
        site.doctor_on_standby().names("U14", 1);
        drop(sessions);
    }
}

#[test]
fn postgres_takes_connections_and_says_nothing() {
    let site = Site::new(15);
    site.doctor_on_primary().is_well();
    {
        let _hangs = Stopped::postmaster(&site.standby);
        let examined = site.doctor_on_standby();
        examined.names("Y22", 1);
    }
    let sender = site.primary.query("select pid from pg_stat_replication");
    let _hangs = Stopped::postmaster(&site.primary);
    let sender = Pid::from_raw(sender.parse().expect("one process"));
    kill(sender, Signal::SIGTERM).expect("it ends");
    site.standby.poll_query_until(
        "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
        "0",
    );
    site.doctor_on_primary().names("U11", 1);
    site.doctor_on_standby().names("U16", 1);
}

#[test]
fn standby_that_does_not_ask() {
    let mut site = Site::new(15);
    // After a failover pg_control tells of the timeline before, until the standby's next restartpoint.
    site.primary.stop(Stop::Fast);
    site.primary.signal_standby();
    site.primary.start();
    site.primary.promote();
    site.primary.query("create table t as select 1");
    site.wait_for_stream();
    site.standby.catch_up_with(&site.primary);
    let timeline = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(site.standby.query(timeline), "1");
    site.doctor_on_standby().is_well();
    site.stand_still();
    site.doctor_on_standby().names("Y17", 1);
    site.primary
        .poll_query_until("select active from pg_replication_slots", "f");
    site.primary
        .query("select pg_drop_replication_slot('standby')");
    site.doctor_on_standby().names("U01", 1);
}

#[test]
fn subscription_that_stands() {
    let publisher = primary(15, "");
    let mut site = Site::new(15);
    serve(&site, &site.serving(&publisher.socket(), "cn:standby"));
    site.standby.promote();
    site.standby.write("postgresql.auto.conf", "");
    site.standby
        .append_conf("max_logical_replication_workers = 0");
    site.standby.restart();
    publisher.query("create table t (id int primary key); create publication p for table t");
    site.standby.query("create table t (id int primary key)");
    let subscribe = |database: &str| {
        let connection = format!("{} dbname={database}", site.conninfo());
        site.standby.query(&format!(
            "create subscription s connection '{connection}' publication p with (connect = false)"
        ));
        site.standby.query("alter subscription s enable");
    };
    subscribe("nowhere");
    site.doctor_on_standby().names("A09", 1);
    site.standby
        .query("alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s");
    subscribe("postgres");
    let examined = site.doctor_on_standby();
    examined.names("U20", 1);
    let way_out = examined.report["findings"][0]["way_out"].to_string();
    let create = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    assert!(way_out.contains(create), "{way_out}");
    publisher.query(create);
    site.doctor_on_standby().names("Y21", 1);
}

/// Newer ones do not count a walsender against its database.
#[test]
fn database_that_is_full() {
    for major in majors().into_iter().filter(|major| *major < 12) {
        let publisher = primary(major, "");
        let mut site = Site::new(15);
        serve(&site, &site.serving(&publisher.socket(), "cn:standby"));
        site.standby.promote();
        site.standby.write("postgresql.auto.conf", "");
        site.standby.restart();
        let connection = format!("{} dbname=postgres", site.conninfo());
        site.standby.query(&format!(
            "create subscription s connection '{connection}' publication p with (connect = false)"
        ));
        site.standby.query("alter subscription s enable");
        publisher.query("alter database postgres connection limit 0");
        site.doctor_on_standby().names("U19", 1);
    }
}

/// 17 and later: the worker comes as an ordinary session, which rule and pg_hba.conf must let in, too.
#[test]
fn slots_that_are_not_synchronised() {
    let mut site = Site::new(18);
    site.standby.append_conf("sync_replication_slots = on");
    site.standby.reload();
    site.standby
        .poll_query_until("show sync_replication_slots", "on");
    let lacking = site.doctor_on_standby();
    lacking.names("Y16", 3);
    assert_eq!(
        lacking.report["findings"][0]["way_out"],
        "set dbname in primary_conninfo, hot_standby_feedback = on, and reload"
    );
    site.standby.append_conf("hot_standby_feedback = on");
    site.follow(
        &site.standby,
        &format!("{} dbname=postgres", site.conninfo()),
    );
    site.standby.restart();
    site.wait_for_stream();
    let said = |site: &Site| {
        let examined = site.doctor_on_standby();
        examined.names("Y16", 3);
        examined.report["findings"][0].to_string()
    };
    let refused = said(&site);
    assert!(refused.contains("ordinary = true"), "{refused}");
    let serving = site.serving(&site.primary.socket(), "cn:standby");
    let open = serving.replace(
        "identity = \"cn:standby\"\n",
        "identity = \"cn:standby\"\nordinary = true\n",
    );
    serve(&site, &open);
    site.wait_for_stream();
    site.doctor_on_standby().is_well();
    site.primary.write(
        "pg_hba.conf",
        "local all postgres peer map=site\nlocal replication all peer map=site\n",
    );
    site.primary.reload();
    let refused = said(&site);
    assert!(refused.contains("local DATABASE replicator"), "{refused}");
    site.primary.write("pg_hba.conf", HBA);
    site.primary.reload();
    site.doctor_on_standby().is_well();
}

/// The causes that are told by SQLSTATE are told in any language; where only the text tells, it is shown and nothing
/// is made up.
#[test]
fn primary_that_speaks_german() {
    let site = Site::with(15, "lc_messages = 'C.UTF-8'");
    let said = site.primary.try_query("select 1 / 0").unwrap_err();
    if !said.contains("durch Null") {
        println!("left out: this PostgreSQL speaks English alone ({said})");
        return;
    }
    let hba = |text: &str| {
        site.primary.write("pg_hba.conf", text);
        site.primary.reload();
        site.break_stream();
    };
    hba("local all all peer map=site\n");
    site.doctor_on_standby().names("H01", 1);
    hba(&format!("local replication replicator peer\n{HBA}"));
    site.doctor_on_standby().names("A07", 1);
    hba(&format!(
        "local replication replicator scram-sha-256\n{HBA}"
    ));
    site.doctor_on_standby().names("A03", 1);
    hba(HBA);
    site.wait_for_stream();
    site.primary.query("alter role replicator noreplication");
    site.break_stream();
    site.doctor_on_standby().names("A04", 1);
    site.primary
        .query("alter role replicator replication nologin");
    let examined = site.doctor_on_standby();
    examined.names("U15", 1);
    let fact = examined.report["findings"][0]["fact"].to_string();
    assert!(
        fact.contains("hat keine Berechtigung zum Einloggen"),
        "{fact}"
    );
    site.primary.query("alter role replicator login");
    away(&site);
    site.primary
        .poll_query_until("select active from pg_replication_slots", "f");
    site.primary
        .query("select pg_drop_replication_slot('standby')");
    follow(&site, &site.conninfo());
    site.doctor_on_standby().names("U01", 1);
    doctor(&site.server, &site.primary).is_well();
}
