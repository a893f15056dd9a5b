//! `doctor` names what keeps replication from flowing: every failure is planted on real servers, found under its id,
//! and nothing else is blamed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::pki::Wrong;
use testbed::programs::client_tool;
use testbed::site::{HBA, Site, doctor, examine, primary};
use testbed::wait::wait_until;
use testbed::{Node, Scratch, Stop, run};

/// Replaces the primary's pg_hba.conf and ends the stream, so that the standby must come in anew.
fn hba(site: &Site, text: &str) {
    site.primary.write("pg_hba.conf", text);
    site.primary.reload();
    site.break_stream();
}

/// The standby's primary_conninfo, with one more or one other option.
fn conninfo(site: &Site, conninfo: &str) {
    site.follow(&site.standby, conninfo);
    site.standby.reload();
    site.standby.poll_query_until(
        "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
        "0",
    );
}

fn healed(site: &Site) {
    site.primary.write("pg_hba.conf", HBA);
    site.primary.reload();
    site.follow(&site.standby, &site.conninfo());
    site.standby.reload();
    site.wait_for_stream();
    site.doctor_on_standby().is_well();
}

fn who_is_let_in(major: u32) {
    let site = Site::new(major);
    site.doctor_on_standby().is_well();
    site.doctor_on_primary().is_well();

    hba(&site, "local all all peer map=site\n");
    site.doctor_on_standby().names("H01", 1);
    site.doctor_on_primary().names("H01", 1);
    hba(
        &site,
        &format!("local replication replicator reject\n{HBA}"),
    );
    site.doctor_on_standby().names("H02", 1);
    site.doctor_on_primary().names("H02", 1);
    hba(&site, &format!("local replication replicator peer\n{HBA}"));
    site.doctor_on_standby().names("A07", 1);
    site.doctor_on_primary().names("A07", 1);
    // Another role gets in, once the map has it; the slot tells of a standby that does not.
    site.primary.query("create role another login replication");
    let another = "local replication another peer map=site\n";
    hba(
        &site,
        &format!("{another}local replication replicator peer\n{HBA}"),
    );
    site.doctor_on_primary().names("A07", 1);
    let ident = fs::read_to_string(site.primary.data().join("pg_ident.conf")).expect("a map");
    let mapped = ident.replace(" replicator", " another");
    site.primary
        .write("pg_ident.conf", &format!("{ident}{mapped}"));
    site.primary.reload();
    site.doctor_on_primary().names("A07", 3);
    site.primary.query("drop role another");

    site.primary.query("alter role replicator password 'right'");
    hba(
        &site,
        &format!("local replication replicator scram-sha-256\n{HBA}"),
    );
    site.doctor_on_standby().names("A03", 1);
    let passfile = site.standby.socket_dir().join("passfile");
    fs::write(&passfile, "*:*:*:*:wrong\n").expect("a passfile");
    let with_passfile = format!("{} passfile={}", site.conninfo(), passfile.display());
    conninfo(&site, &with_passfile);
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).expect("a mode");
    site.doctor_on_standby().names("A08", 1);
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).expect("a mode");
    // Root's own file, as `pg_basebackup -R` leaves it: libpq ignores it.
    site.doctor_on_standby().names("A08", 1);
    run(Command::new("chown")
        .arg("--reference")
        .arg(site.standby.data())
        .arg(&passfile))
    .expect("chown");
    site.doctor_on_standby().names("A01", 1);
    fs::write(&passfile, "*:*:replication:replicator:right\n").expect("a passfile");
    site.wait_for_stream();
    site.doctor_on_standby().is_well();
    site.primary
        .query("set password_encryption = 'md5'; alter role replicator password 'right'");
    site.doctor_on_primary().names("A06", 1);
    healed(&site);

    conninfo(&site, &site.conninfo().replace("replicator", "nobody"));
    let trusting = "local all all peer map=site\nlocal replication all trust\n";
    site.primary.write("pg_hba.conf", trusting);
    site.primary.reload();
    site.doctor_on_standby().names("A02", 1);
    site.doctor_on_primary().names("H08", 3);
    healed(&site);
    site.primary.query("alter role replicator noreplication");
    site.break_stream();
    site.doctor_on_standby().names("A04", 1);
    site.primary
        .query("alter role replicator replication nologin");
    site.doctor_on_standby().names("A05", 1);
    site.primary.query("alter role replicator login");
    healed(&site);
}

#[test]
fn who_is_let_in_by_15() {
    who_is_let_in(15);
}

#[test]
fn who_is_let_in_by_18() {
    who_is_let_in(18);
}

#[test]
fn way_to_the_far_proxy() {
    let mut site = Site::new(15);
    let client = |config: &str| {
        site.client.reconfigure(config);
        site.break_stream();
        site.doctor_on_standby()
    };
    let to = |target: &str| client(&site.following(target, ""));
    to("no-such-host.invalid:5443").names("N01", 1);
    to(&format!("127.0.0.1:{}", testbed::reserve_port())).names("N02", 1);
    client(&site.following(&site.target(), "server_name = \"elsewhere.test\"")).names("T24", 1);
    client(&site.following(&site.target(), "allow_os_users = [\"root\"]")).names("P08", 1);
    let good = site.following(&site.target(), "");
    let other_pki = testbed::Pki::new();
    let other = other_pki.ca().display().to_string();
    client(&good.replace(&site.pki.ca().display().to_string(), &other)).names("T17", 1);
    site.client.reconfigure(&good);
    site.wait_for_stream();

    let server = |config: &str| {
        site.server.reconfigure(config);
        site.break_stream();
        site.doctor_on_standby()
    };
    let socket = site.primary.socket();
    server(&site.serving(&socket, "cn:other")).names("P01", 1);
    server(&site.serving(Path::new("/nonexistent/.s.PGSQL.5432"), "cn:standby")).names("B01", 1);
    site.doctor_on_primary().names("U09", 1);
    let serving = site.serving(&socket, "cn:standby");
    site.server.reconfigure(&serving);
    site.wait_for_stream();
    let good = site.pki.issue("primary");
    let expired = site.pki.issue_wrong("expired", Wrong::Expired);
    good.renew_as(&expired);
    site.doctor_on_primary().names("T01", 1);
    site.pki.issue("primary");

    site.pki.revoke("primary");
    client(&good_with_crl(&site)).names("T23", 1);
    site.client.reconfigure(&site.following(&site.target(), ""));
    site.wait_for_stream();

    site.client.signal(Signal::SIGSTOP);
    site.doctor_on_standby().names("N22", 1);
    site.client.signal(Signal::SIGCONT);
    conninfo(&site, &site.conninfo().replace("port=5442", "port=5443"));
    site.doctor_on_standby().names("N21", 1);
    conninfo(&site, "host=no-such-host.invalid port=5442 user=replicator");
    site.doctor_on_standby().names("N23", 1);
    let direct = format!(
        "host={} port={} user=replicator application_name=standby",
        site.primary.socket_dir().display(),
        site.primary.address().port()
    );
    site.follow(&site.standby, &direct);
    site.standby.reload();
    site.wait_for_stream();
    site.doctor_on_standby().names("N24", 3);
    healed(&site);

    site.pki.issue("primary");
    site.pki.revoke("standby");
    let crl = format!("crl = \"{}\"\n[[server]]", site.pki.crl().display());
    server(&serving.replace("[[server]]", &crl)).names("T43", 1);

    site.server.signal(Signal::SIGTERM);
    site.server.wait_for_exit(testbed::wait::PATIENCE);
    site.doctor_on_primary().names("N25", 1);
    site.doctor_on_standby().names("N02", 1);
}

fn good_with_crl(site: &Site) -> String {
    let plain = site.following(&site.target(), "");
    let crl = format!("crl = \"{}\"\n[[client]]", site.pki.crl().display());
    plain.replace("[[client]]", &crl)
}

#[test]
fn nothing_above_the_first_failure_is_blamed() {
    let mut site = Site::new(15);
    site.primary.stop(Stop::Fast);
    site.standby.stop(Stop::Fast);
    fs::remove_file(site.standby.data().join("standby.signal")).expect("there is one");
    site.client
        .reconfigure(&site.following("no-such-host.invalid:5443", ""));
    let examined = site.doctor_on_standby();
    examined.names("N01", 1);
    let states: Vec<_> = examined.report["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|layer| layer["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(
        states,
        [
            "ok", "problem", "skipped", "skipped", "skipped", "skipped", "skipped"
        ]
    );
}

/// A walsender that is taken, until it is dropped.
struct Taken {
    receiver: Child,
    _directory: Scratch,
}

impl Taken {
    fn by(node: &Node, slot: Option<&str>) -> Self {
        // Two that write to one directory get into each other's way.
        let directory = Scratch::new("receivewal");
        let mut command = Command::new(client_tool("pg_receivewal"));
        command
            .args([
                "-d",
                &node
                    .conninfo()
                    .replace("dbname=postgres", "user=replicator"),
                "-D",
            ])
            .arg(directory.path());
        command.args(slot.map(|slot| format!("--slot={slot}")));
        let receiver = command.stderr(Stdio::null()).spawn();
        Self {
            receiver: receiver.expect("pg_receivewal starts"),
            _directory: directory,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.receiver.kill().expect("it can be killed");
        self.receiver.wait().expect("it ends");
    }
}

fn what_the_primary_has_for_it(major: u32) {
    let site = Site::with(major, "max_wal_senders = 2\nmax_replication_slots = 4");
    let senders = |count: &str| {
        site.primary.poll_query_until(
            "select count(*) from pg_stat_replication where state = 'streaming'",
            count,
        );
    };
    // A walsender ends a moment after its standby has gone; whoever finds none free gives up.
    let empty = || {
        site.primary
            .poll_query_until("select count(*) from pg_stat_replication", "0");
    };
    let away = || conninfo(&site, &site.conninfo().replace("port=5442", "port=5443"));
    let back = || {
        site.follow(&site.standby, &site.conninfo());
        site.standby.reload();
    };
    away();
    empty();
    {
        let _both = [
            Taken::by(&site.primary, None),
            Taken::by(&site.primary, None),
        ];
        senders("2");
        back();
        site.doctor_on_standby().names("U06", 1);
        site.doctor_on_primary().names("U06", 3);
        away();
    }
    empty();
    {
        let _other = Taken::by(&site.primary, Some("standby"));
        senders("1");
        back();
        site.doctor_on_standby().names("U02", 1);
        away();
    }
    site.primary
        .poll_query_until("select active from pg_replication_slots", "f");
    site.primary
        .query("select pg_drop_replication_slot('standby')");
    back();
    site.doctor_on_standby().names("U01", 1);
    site.primary
        .query("select pg_create_physical_replication_slot('standby', true)");
    site.wait_for_stream();
    site.doctor_on_standby().is_well();

    // A slot that holds WAL; then that WAL is gone.
    away();
    let switch = "select pg_logical_emit_message(false, 'a', 'b'), pg_switch_wal()";
    for _ in 0..9 {
        site.primary.query(switch);
    }
    site.doctor_on_primary().names("U05", 3);
    site.primary
        .query("alter system set max_slot_wal_keep_size = '16MB'");
    site.primary.reload();
    site.primary.query("checkpoint");
    site.primary.query(switch);
    site.primary.query("checkpoint");
    site.primary
        .poll_query_until("select wal_status from pg_replication_slots", "lost");
    back();
    site.doctor_on_standby().names("U03", 1);
    site.doctor_on_primary().names("U03", 1);
    site.standby.write(
        "postgresql.auto.conf",
        &format!("primary_conninfo = '{}'\n", site.conninfo()),
    );
    site.standby.reload();
    site.doctor_on_standby().names("U04", 1);
}

#[test]
fn what_the_primary_of_15_has_for_it() {
    what_the_primary_has_for_it(15);
}

#[test]
fn what_the_primary_of_18_has_for_it() {
    what_the_primary_has_for_it(18);
}

/// The process of a server by its role.
fn process_of(node: &Node, role: &str) -> Pid {
    let pid = node.query(&format!(
        "select pid from pg_stat_activity where backend_type = '{role}'"
    ));
    Pid::from_raw(pid.parse().expect("one process"))
}

fn standby_itself(major: u32) {
    let mut site = Site::new(major);
    let data = site.standby.data();

    site.standby.query("select pg_wal_replay_pause()");
    site.doctor_on_standby().names("Y11", 0);
    site.standby.query("select pg_wal_replay_resume()");
    let startup = process_of(&site.standby, "startup");
    kill(startup, Signal::SIGSTOP).expect("it stops");
    site.primary
        .query("create table t as select generate_series(1, 1000)");
    site.standby.poll_query_until(
        "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()",
        "t",
    );
    site.doctor_on_standby().names("Y12", 3);
    kill(startup, Signal::SIGCONT).expect("it goes on");

    site.standby
        .query("alter system set wal_receiver_timeout = '3s'");
    site.standby.reload();
    let receiver = process_of(&site.standby, "walreceiver");
    kill(receiver, Signal::SIGSTOP).expect("it stops");
    site.standby.poll_query_until(
        "select clock_timestamp() - last_msg_receipt_time > '4100ms' from pg_stat_wal_receiver",
        "t",
    );
    site.doctor_on_standby().names("Y13", 1);
    kill(receiver, Signal::SIGCONT).expect("it goes on");
    site.standby
        .query("alter system reset wal_receiver_timeout");
    site.standby.reload();

    conninfo(&site, &format!("{} no_such_option=1", site.conninfo()));
    site.doctor_on_standby().names("Y09", 1);
    site.standby.write("postgresql.auto.conf", "");
    site.standby.reload();
    site.standby.poll_query_until("show primary_conninfo", "");
    site.doctor_on_standby().names("Y15", 1);
    healed(&site);
    site.standby.append_conf(&format!(
        "primary_conninfo = '{} sslmode=disable'",
        site.conninfo()
    ));
    site.standby.reload();
    site.wait_for_stream();
    site.doctor_on_standby().names("Y10", 3);
    if major >= 17 {
        site.standby.append_conf("sync_replication_slots = on");
        site.standby.reload();
        site.standby
            .poll_query_until("show sync_replication_slots", "on");
        assert!(site.doctor_on_standby().ids().contains(&"Y16"));
        site.standby.append_conf("sync_replication_slots = off");
    }

    site.standby.stop(Stop::Fast);
    site.doctor_on_standby().names("Y14", 1);
    site.standby.write("recovery.conf", "standby_mode = on\n");
    site.doctor_on_standby().names("Y06", 1);
    fs::remove_file(data.join("recovery.conf")).expect("it was there");
    let conf = fs::read_to_string(data.join("postgresql.conf")).expect("a configuration");
    site.standby.append_conf("wal_keep_segments = 10");
    site.doctor_on_standby().names("Y08", 1);
    site.standby.write(
        "postgresql.conf",
        &format!("{conf}\nmax_connections = 50\n"),
    );
    site.doctor_on_standby().names("Y07", 1);
    site.standby.write("postgresql.conf", &conf);
    fs::remove_file(data.join("standby.signal")).expect("it was there");
    site.doctor_on_standby().names("Y20", 1);
    site.standby.start();
    site.doctor_on_standby().names("Y04", 1);
}

#[test]
fn standby_of_15_itself() {
    standby_itself(15);
}

#[test]
fn standby_of_18_itself() {
    standby_itself(18);
}

#[test]
fn histories_that_do_not_belong_together() {
    let mut site = Site::new(18);
    let serve = |site: &Site, node: &Node| {
        site.server
            .reconfigure(&site.serving(&node.socket(), "cn:standby"));
    };
    // Clusters of one major are copies of one in these tests.
    let stranger = primary(15, "");
    serve(&site, &stranger);
    site.break_stream();
    site.doctor_on_standby().names("Y01", 1);
    serve(&site, &site.primary);
    site.wait_for_stream();

    site.primary.append_conf("max_connections = 70");
    site.primary.restart();
    site.wait_for_stream();
    site.standby
        .poll_query_until("select pg_is_wal_replay_paused()", "t");
    site.doctor_on_standby().names("Y19", 1);
    site.standby.append_conf("max_connections = 70");
    site.standby.restart();
    site.wait_for_stream();

    site.standby.promote();
    site.standby.query("checkpoint");
    site.doctor_on_standby().names("Y05", 1);
    site.standby.query("create table kept as select 1");
    site.standby.stop(Stop::Fast);
    site.standby.signal_standby();
    site.standby.start();
    site.doctor_on_standby().names("Y02", 1);

    // The old primary, with WAL of its own, follows the promoted one without pg_rewind.
    fs::remove_file(site.standby.data().join("standby.signal")).expect("it was there");
    site.standby.restart();
    site.primary.query("create table lost as select 1");
    site.primary.stop(Stop::Fast);
    site.primary.signal_standby();
    site.follow(&site.primary, &site.conninfo());
    serve(&site, &site.standby);
    site.primary.start();
    // The slot comes first: without it the new primary says nothing of histories.
    doctor(&site.client, &site.primary).names("U01", 1);
    site.standby
        .query("select pg_create_physical_replication_slot('standby', true)");
    doctor(&site.client, &site.primary).names("Y03", 1);
}

#[test]
fn primary_by_itself() {
    let mut site = Site::new(18);
    let reloaded = |file: &str, text: &str| {
        site.primary.write(file, text);
        site.primary.reload();
        site.doctor_on_primary()
    };
    let conf =
        fs::read_to_string(site.primary.data().join("postgresql.conf")).expect("a configuration");
    reloaded(
        "pg_hba.conf",
        &format!("{HBA}host all all 127.0.0.1/32 trust\n"),
    )
    .names("H08", 3);
    reloaded(
        "pg_hba.conf",
        &format!("{HBA}host all all 10.0.0.0/8 scram\n"),
    )
    .names("H04", 1);
    reloaded("pg_hba.conf", HBA).is_well();
    site.primary
        .write("pg_hba.conf", &format!("# changed\n{HBA}"));
    site.doctor_on_primary().names("H05", 3);
    // A file that it includes, as that of setup.
    reloaded("more.conf", "work_mem = '5MB'\n");
    let including = format!("{conf}\ninclude 'more.conf'\n");
    reloaded("postgresql.conf", &including).is_well();
    site.primary.write("more.conf", "work_mem = '6MB'\n");
    let examined = site.doctor_on_primary();
    examined.names("H05", 3);
    let fact = examined.report["findings"][0]["fact"].to_string();
    assert!(fact.contains("more.conf"), "{fact}");
    reloaded("postgresql.conf", &format!("{conf}\nno_such_setting = 1\n")).names("H07", 1);
    reloaded(
        "postgresql.conf",
        &format!("{conf}\nmax_wal_senders = 21\n"),
    )
    .names("H09", 0);
    reloaded("postgresql.conf", &conf).is_well();

    let secret = site.primary.data().join("root-only");
    fs::write(&secret, "x").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a mode");
    if nix::unistd::Uid::effective().is_root() {
        site.doctor_on_primary().names("U13", 3);
    }
    fs::remove_file(&secret).expect("it was there");

    site.primary
        .append_conf("synchronous_standby_names = 'nobody'");
    site.primary.reload();
    site.doctor_on_primary().names("Y18", 1);
    // One of two is not enough, and one of any two is.
    for (names, state, enough) in [
        ("FIRST 2 (standby, nobody)", "sync", false),
        ("ANY 1 (standby, nobody)", "quorum", true),
    ] {
        site.primary
            .append_conf(&format!("synchronous_standby_names = '{names}'"));
        site.primary.reload();
        site.primary
            .poll_query_until("select sync_state from pg_stat_replication", state);
        if enough {
            site.doctor_on_primary().is_well();
        } else {
            site.doctor_on_primary().names("Y18", 1);
        }
    }
    site.primary.write("postgresql.conf", &conf);
    site.primary.reload();

    // Over TCP, with a line for TLS alone.
    let tcp = site.serving(&site.primary.socket(), "cn:standby").replace(
        &site.primary.socket().display().to_string(),
        &site.primary.address().to_string(),
    );
    site.server.reconfigure(&tcp);
    site.primary.write(
        "pg_hba.conf",
        &format!("{HBA}hostssl replication all 127.0.0.1/32 scram-sha-256\n"),
    );
    site.primary.reload();
    site.doctor_on_primary().names("H03", 1);
    site.break_stream();
    site.doctor_on_standby().names("H01", 1);
    site.primary.write("pg_hba.conf", HBA);
    site.server
        .reconfigure(&site.serving(&site.primary.socket(), "cn:standby"));

    let bare = primary(18, "wal_level = minimal\nmax_wal_senders = 0");
    doctor(&site.server, &bare).names("U07", 1);
    site.primary.stop(Stop::Fast);
    site.doctor_on_primary().names("U10", 1);
    site.doctor_on_standby().names("B01", 1);
}

#[test]
fn subscription_that_does_not_get_in() {
    let publisher = primary(18, "wal_level = replica");
    let mut site = Site::new(15);
    site.server
        .reconfigure(&site.serving(&publisher.socket(), "cn:standby"));
    site.standby.promote();
    publisher.query("create table t (id int primary key); create publication p for table t");
    site.standby.write("postgresql.auto.conf", "");
    site.standby.restart();
    site.standby.query("create table t (id int primary key)");
    let connection = format!("{} dbname=postgres", site.conninfo());
    site.standby.query(&format!(
        "create subscription s connection '{connection}' publication p with (connect = false)"
    ));
    site.standby.query("alter subscription s enable");
    site.doctor_on_standby().names("U08", 1);
    publisher.query("revoke connect on database postgres from public");
    let examined = site.doctor_on_standby();
    examined.names("A10", 1);
    let way_out = examined.report["findings"][0]["way_out"].to_string();
    let grant = "GRANT CONNECT ON DATABASE postgres TO replicator";
    assert!(way_out.contains(grant), "{way_out}");
    publisher.write(
        "pg_hba.conf",
        &format!("local postgres replicator reject\n{HBA}"),
    );
    publisher.reload();
    site.doctor_on_standby().names("H02", 1);
    publisher.write(
        "pg_hba.conf",
        "local all postgres peer map=site\nlocal replication all peer map=site\n",
    );
    publisher.reload();
    site.doctor_on_standby().names("H06", 1);
}

#[test]
fn whoever_may_not_read_the_key_asks_through_the_local_proxy() {
    if !nix::unistd::Uid::effective().is_root() {
        return; // the key is readable then
    }
    let site = Site::new(15);
    let copy = site.standby.socket_dir().join("pgtlsproxy");
    fs::copy(testbed::programs::pgtlsproxy(), &copy).expect("a copy that everybody may run");
    let doctor = || {
        let output = Command::new("setpriv")
            .args([
                "--reuid",
                "postgres",
                "--regid",
                "postgres",
                "--init-groups",
            ])
            .arg(&copy)
            .args(["doctor", "--config"])
            .arg(site.client.dir().join("pgtlsproxy.toml"))
            .arg("--pgdata")
            .arg(site.standby.data())
            .output()
            .expect("it runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (status, said) = doctor();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("may be read by root only"), "{said}");
    assert!(said.contains("the primary admits replicator"), "{said}");
    assert!(
        said.ends_with("verdict: all well as far as could be seen\n"),
        "{said}"
    );
    hba(&site, "local all all peer map=site\n");
    let (status, said) = doctor();
    assert!(status == Some(1) && said.contains("[H01]"), "{said}");
}

/// No standby has come in from this host yet: what the far proxy says is all that is known of the other side.
#[test]
fn what_only_the_far_proxy_tells() {
    let mut site = Site::new(15);
    site.standby.write("postgresql.auto.conf", "");
    site.standby.append_conf("restore_command = 'false'");
    site.standby.restart();
    site.doctor_on_standby().is_well();

    let server = |site: &Site, config: &str| {
        site.server.reconfigure(config);
    };
    let good = site.serving(&site.primary.socket(), "cn:standby");
    server(&site, &site.serving(&site.primary.socket(), "cn:other"));
    let examined = site.doctor_on_standby();
    examined.names("P09", 1);
    let way_out = examined.report["findings"][0]["way_out"].as_str();
    assert!(
        way_out.unwrap().contains("dns:standby.test"),
        "{examined:?}"
    );
    server(&site, &good);
    site.primary.stop(Stop::Fast);
    site.doctor_on_standby().names("U17", 1);
    // Both: the rule comes first.
    server(&site, &site.serving(&site.primary.socket(), "cn:other"));
    site.doctor_on_standby().names("P09", 1);
    server(&site, &good);
    site.primary.start();
    site.doctor_on_standby().is_well();

    // A PostgreSQL that needs SSLRequest has no node channel, and is not asked.
    site.client
        .reconfigure(&site.following(&site.target(), "sslnegotiation = \"postgres\""));
    server(&site, &site.serving(&site.primary.socket(), "cn:other"));
    site.doctor_on_standby().is_well();
}

#[test]
fn far_certificate_near_its_end() {
    let site = Site::new(15);
    site.doctor_on_standby().is_well();
    let identity = site.pki.issue("primary");
    identity.renew_as(&site.pki.issue_for_seconds("aging", -3600, 900));
    site.server.reload();
    site.server.wait_for_log("[T03]");
    // It streams on.
    let examined = site.doctor_on_standby();
    examined.names("T03", 3);
    let fact = examined.report["findings"][0]["fact"].as_str();
    assert!(fact.unwrap().contains("warns of itself"), "{examined:?}");
    site.doctor_on_primary().names("T03", 3);
}

#[test]
fn configuration_and_flags() {
    let site = Site::new(15);
    let config = site.client.dir().join("pgtlsproxy.toml");
    let config = config.display().to_string();
    let doctor = |flags: &[&str]| {
        let output = Command::new(testbed::programs::pgtlsproxy())
            .args(["doctor", "--config", &config])
            .args(flags)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    assert_eq!(doctor(&["--tunnel", "server"]).0, Some(2));
    assert_eq!(doctor(&["--pgdata", "/nonexistent"]).0, Some(2));
    assert_eq!(doctor(&["--cluster", "9.9/nothing"]).0, Some(2));
    let data = site.standby.data().display().to_string();
    let (status, said) = doctor(&["--pgdata", &data, "--tunnel", "client"]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(said.lines().last(), Some("verdict: all well"), "{said}");
    assert!(said.lines().count() <= 24, "one screen: {said}");
    // PostgreSQL asks for a password here, and at a terminal there is somebody who could give one.
    site.standby
        .write("pg_hba.conf", "local all all scram-sha-256\n");
    site.standby.reload();
    let program = testbed::programs::pgtlsproxy().display().to_string();
    let typed = format!("{program} doctor --config {config} --pgdata {data} --tunnel client");
    let output = Command::new("script")
        .args(["-qec", &typed, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .expect("script runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("no password supplied")
            && said.ends_with("verdict: all well as far as could be seen\r\n"),
        "{said}"
    );
    site.client.reconfigure("nonsense = 1");
    examine(&["--config", &config, "--pgdata", &data]).names("C02", 1);
    wait_until("the standby to stream on", || {
        site.primary
            .query("select count(*) from pg_stat_replication")
            == "1"
    });
}
