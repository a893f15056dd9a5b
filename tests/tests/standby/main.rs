//! From two hosts with a package's clusters to a stream, by commands that a person types: `setup primary`, `invite`, `join`;
//! and the ways back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod own;
mod rewind;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testbed::{Host, programs, run, wait_until};

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
fn an_old_primary_comes_back_by_a_copy_and_nothing_of_it_is_deleted() {
    let (mut primary, mut standby) = pair(15, &[]);
    primary.node.query("create table kept as select 1 as n");
    standby.node.catch_up_with(&primary.node);
    fail_over(&standby);
    primary.node.query("create table lost as select 1 as n");
    let config = primary.dir().join("pgtlsproxy.toml");
    let before = fs::read(&config).unwrap();
    let refused = primary
        .setup_standby(&["--from", &standby.public()])
        .unwrap_err();
    assert!(
        refused.contains("[V05]") && refused.contains("--rewind"),
        "{refused}"
    );
    assert_eq!(fs::read(&config).unwrap(), before, "{refused}");
    let said = primary
        .setup_standby(&["--from", &standby.public(), "--replace"])
        .unwrap();
    println!("{said}");
    standby.node.wait_for_standby("db1");
    primary.node.catch_up_with(&standby.node);
    assert!(primary.node.try_query("select n from lost").is_err());
    let moved = said.lines().find_map(|line| {
        let (_, place) = line.split_once("aside: it is ")?;
        place.strip_suffix(" now")
    });
    assert!(
        Path::new(moved.unwrap()).join("PG_VERSION").exists(),
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

#[test]
fn after_a_failover_every_node_follows_the_new_primary_by_one_command() {
    for major in [15, 18] {
        println!("PostgreSQL {major}");
        let (mut primary, first) = pair(major, &["--rewind"]);
        let mut second = Host::new("standby2", major);
        follow(&mut primary, &mut second);
        let config = || fs::read_to_string(first.dir().join("pgtlsproxy.toml")).unwrap();
        assert!(!config().contains("cn:standby2"));
        let said = first.renew().unwrap();
        assert!(said.contains("Let in from now on: standby2"), "{said}");
        let now = config();
        assert!(now.contains("cn:standby2"), "{now}");
        let said = first.renew().unwrap();
        assert!(!said.contains("Let in"), "once: {said}");
        first.node.catch_up_with(&primary.node);
        second.node.catch_up_with(&primary.node);

        primary.node.stop(testbed::Stop::Immediate);
        fail_over(&first);
        let typed = second.typed.len();
        let said = second.setup_standby(&["--from", &first.public()]).unwrap();
        println!("{said}");
        assert_eq!(second.typed.len(), typed + 1);
        first.node.wait_for_standby("standby2");
        second.node.catch_up_with(&first.node);
        assert_eq!(second.node.query("select n from after_failover"), "1");
        primary
            .setup_standby(&["--from", &first.public(), "--rewind"])
            .unwrap();
        first.node.wait_for_standby("db1");
        primary.node.catch_up_with(&first.node);
        assert_eq!(primary.node.query("select n from after_failover"), "1");
        first.node.wait_for_standby("standby2");
        // What a person takes out stays out, also where it is not known any more whom the last list had.
        let without = now.replace("\"cn:standby2\"", "\"cn:nobody\"");
        fs::write(first.dir().join("pgtlsproxy.toml"), without).unwrap();
        first.renew().unwrap();
        assert!(!config().contains("cn:standby2"));
        fs::write(first.dir().join("nodes.seen"), b"\xff").unwrap();
        let said = first.renew().unwrap();
        assert!(said.contains("nodes.seen cannot be read"), "{said}");
        assert!(!config().contains("cn:standby2"));
    }
}

#[test]
fn a_copy_that_is_there_is_taken_as_it_is_and_a_dry_run_changes_nothing() {
    for major in [15, 18] {
        println!("PostgreSQL {major}");
        let (primary, mut standby) = pair(major, &[]);
        stop(&standby);
        // As a person leaves a copy that he made himself: nothing of it says whom to follow.
        let own = files(&standby.node.data());
        let config = standby.dir().join("pgtlsproxy.toml");
        let toml = fs::read(&config).unwrap();
        let said = standby
            .setup_standby(&[
                "--config-only",
                "--dry-run",
                "--from",
                "db9.example.com:5443",
            ])
            .unwrap();
        println!("{said}");
        assert!(
            said.contains("+connect = [\"db9.example.com:5443\"]"),
            "{said}"
        );
        assert_eq!(files(&standby.node.data()), own);
        assert_eq!(fs::read(&config).unwrap(), toml);
        let said = standby.setup_standby(&["--config-only"]).unwrap();
        assert!(said.contains("It streams from"), "{said}");
        primary.node.wait_for_standby("standby1");
    }
}

/// Every file of a directory that a server does not write by itself, with what is in it.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap();
    let names = ["PG_VERSION", "postmaster.opts"];
    let of_interest = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        path.is_file() && (name.ends_with(".conf") || names.contains(&&*name))
    };
    let paths = entries
        .map(|entry| entry.unwrap().path())
        .filter(of_interest);
    paths
        .map(|path| {
            (
                path.strip_prefix(directory).unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect()
}

fn stop(host: &Host) {
    let mut stop = host.node.program("pg_ctl");
    run(stop
        .args(["stop", "-w", "-m", "fast", "-D"])
        .arg(host.node.data()))
    .unwrap();
}

#[test]
fn undo_puts_every_byte_back_and_says_how_the_old_directory_comes_back() {
    let mut primary = Host::new("db1", 15);
    primary.node.start();
    let words = ["--name", "db1", "--standby", "standby1", "--restart"];
    primary.setup_primary(&words).unwrap();
    primary.serve();
    let mut standby = Host::new("standby1", 15);
    let before = files(&standby.node.data());
    follow(&mut primary, &mut standby);
    let said = standby.undo().unwrap();
    assert!(
        standby.node.data().join("standby.signal").exists(),
        "a standby stays one: {said}"
    );
    let mut now = files(&standby.node.data());
    now.remove(Path::new("postmaster.opts"));
    now.remove(Path::new("postgresql.auto.conf"));
    let mut wanted = before.clone();
    wanted.remove(Path::new("postgresql.auto.conf"));
    assert_eq!(now, wanted, "{said}");
    stop(&standby);
    let back = said
        .lines()
        .find(|line| line.trim().starts_with("mv "))
        .unwrap();
    run(Command::new("sh").args(["-c", back])).unwrap();
    assert_eq!(files(&standby.node.data()), before);
    assert!(!standby.node.data().join("standby.signal").exists());
}

/// A joined host whose PostgreSQL still is what the package left, and runs.
fn joined(major: u32) -> (Host, Host) {
    let mut primary = Host::new("db1", major);
    primary.node.start();
    let words = ["--name", "db1", "--standby", "standby1", "--restart"];
    primary.setup_primary(&words).unwrap();
    primary.serve();
    let mut standby = Host::new("standby1", major);
    let (token, mut inviting) = primary.invite("standby1");
    standby.join(&token, &["--no-setup"]).unwrap();
    assert!(inviting.wait().unwrap().success());
    standby.node.start();
    standby.node.query("create table before as select 1 as n");
    (primary, standby)
}

/// Kills `setup standby --replace` once something is there.
fn kill_when(standby: &mut Host, what: &str, is_there: impl Fn(&Host) -> bool) {
    let mut child = standby
        .standby_command(&["--replace"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(what, || {
        is_there(standby) || child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    child.wait().unwrap();
}

fn aside(standby: &Host) -> bool {
    let beside = fs::read_dir(standby.node.socket_dir()).unwrap();
    beside
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("data.2"))
}

/// A directory of root's to which PostgreSQL's OS user has led the copy, as if its exchange had not come to an end.
fn plant(standby: &Host) -> tempfile::TempDir {
    let roots = tempfile::tempdir().unwrap();
    fs::set_permissions(
        roots.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let part = roots.path().join("x.service.d.pgtlsproxy-new");
    fs::create_dir(&part).unwrap();
    testbed::give_to_postgres(&part);
    let grown = standby.node.socket_dir().join("data.pgtlsproxy-new");
    let copy = if grown.join("PG_VERSION").exists() {
        grown
    } else {
        standby.node.data()
    };
    std::os::unix::fs::symlink(&part, copy.join("pg_tblspc/99999")).unwrap();
    let state = standby.dir().join("setup/journal.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace("\"Placed\"", "\"Copied\"")).unwrap();
    roots
}

#[test]
fn a_run_that_was_killed_leaves_what_was_there_and_the_next_one_goes_on() {
    let (primary, mut standby) = joined(15);
    primary
        .node
        .query("create table big as select repeat('x', 800) as x from generate_series(1, 100000)");
    kill_when(&mut standby, "the base backup to begin", |host| {
        host.node
            .socket_dir()
            .join("data.pgtlsproxy-new/base")
            .exists()
    });
    assert!(!aside(&standby));
    assert_eq!(
        standby.node.query("select n from before"),
        "1",
        "its server runs on"
    );
    kill_when(&mut standby, "the old directory to be moved aside", aside);
    let planted = plant(&standby);
    let said = standby.setup_standby(&["--replace"]).unwrap();
    println!("{said}");
    primary.node.wait_for_standby("standby1");
    assert_eq!(standby.node.query("select count(*) from big"), "100000");
    let names: Vec<_> = fs::read_dir(planted.path()).unwrap().flatten().collect();
    assert!(
        names
            .iter()
            .all(|entry| entry.file_name() == "x.service.d.pgtlsproxy-new"),
        "{names:?}: {said}"
    );
    let copies = fs::read_dir(standby.node.socket_dir()).unwrap().flatten();
    let copies = copies.filter(|entry| entry.file_name().to_string_lossy().starts_with("data.2"));
    assert_eq!(copies.count(), 1, "moved aside once");
    let said = standby.setup_standby(&["--replace"]).unwrap();
    assert!(said.contains("nothing to do"), "{said}");
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let (primary, mut standby) = joined(15);
    primary
        .node
        .query("create table big as select repeat('x', 800) as x from generate_series(1, 100000)");
    // The place where the copy grows, as a disk that is too small for it.
    let staging = standby.node.socket_dir().join("data.pgtlsproxy-new");
    fs::create_dir(&staging).unwrap();
    let mount = run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=20m", "tmpfs"])
        .arg(&staging));
    if mount.is_err() {
        println!("left out: nothing can be mounted here");
        return;
    }
    let said = standby.setup_standby(&["--replace"]);
    run(Command::new("umount").arg(&staging)).unwrap();
    let said = said.unwrap_err();
    assert!(
        said.contains("[V08]") && said.contains("No space left"),
        "{said}"
    );
    assert_eq!(
        standby.node.query("select n from before"),
        "1",
        "its server runs on"
    );
    assert!(!aside(&standby));
    standby.setup_standby(&["--replace"]).unwrap();
    primary.node.wait_for_standby("standby1");
}

#[test]
fn a_data_directory_of_root_is_refused_and_left_alone() {
    let (_primary, mut standby) = joined(15);
    standby.node.stop(testbed::Stop::Fast);
    let before = files(&standby.node.data());
    run(Command::new("chown").arg("root").arg(standby.node.data())).unwrap();
    let said = standby.setup_standby(&["--replace"]).unwrap_err();
    assert!(said.contains("[V15]") && said.contains("chown"), "{said}");
    assert_eq!(files(&standby.node.data()), before);
    assert!(!aside(&standby));
}

#[test]
fn after_a_major_upgrade_the_same_commands_lead_to_a_stream() {
    let (mut primary, mut standby) = pair(15, &[]);
    primary
        .node
        .query("create table kept as select 'over the upgrade' as t");
    standby.upgrade(18);
    primary.pg_upgrade();
    primary.node.start();
    let words = ["--name", "db1", "--standby", "standby1", "--restart"];
    primary.setup_primary(&words).unwrap();
    let said = standby.setup_standby(&["--replace"]).unwrap();
    println!("{said}");
    primary.node.wait_for_standby("standby1");
    let version = standby.node.query("show server_version_num");
    assert!(version.starts_with("18"), "{version}");
    assert_eq!(standby.node.query("select t from kept"), "over the upgrade");
}

#[test]
fn a_role_and_a_password_of_any_letters_lead_to_a_stream() {
    let (role, password) = (r"rép o'x %41", r#"it's \ "x" %41 π : #"#);
    let mut primary = Host::new("db1", 15);
    primary.node.start();
    primary.password(password);
    let words = [
        "--name",
        "db1",
        "--standby",
        "standby1",
        "--role",
        role,
        "--password",
        "--restart",
    ];
    primary.setup_primary(&words).unwrap();
    primary.serve();
    let mut standby = Host::new("standby1", 15);
    standby.password(password);
    let (token, mut inviting) = primary.invite("standby1");
    let said = standby.join(&token, &["--replace", "--password"]).unwrap();
    assert!(said.contains("It streams from"), "{said}");
    assert!(inviting.wait().unwrap().success());
    let used = "select usename from pg_stat_replication where application_name = 'standby1'";
    assert_eq!(primary.node.query(used), role);
    assert!(
        !standby
            .node
            .query("show primary_conninfo")
            .contains(password)
    );
    standby.password("wrong");
    let said = standby.setup_standby(&[]).unwrap();
    assert!(said.contains("nothing to do"), "{said}");
}

/// A cluster that Debian's tools made; it goes with all that was moved aside.
struct Debian(String);

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = run(Command::new("pg_dropcluster").args(["--stop", "15", &self.0]));
        // What setup has written there keeps Debian from taking it away.
        let _ = fs::remove_dir_all(Path::new("/etc/postgresql/15").join(&self.0));
        for entry in fs::read_dir("/var/lib/postgresql/15")
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with(&self.0) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[test]
fn a_fresh_cluster_of_debians_becomes_a_standby_and_keeps_its_own_configuration() {
    let root = nix::unistd::geteuid().is_root();
    if !root || !Path::new("/usr/bin/pg_createcluster").exists() {
        println!("left out: this host has no pg_createcluster, or we are not root");
        return;
    }
    let cluster = Debian(format!("pgtstandby{}", std::process::id()));
    let mut create = Command::new("pg_createcluster");
    run(create.args(["15", &cluster.0, "--start", "--", "-A", "peer"])).unwrap();
    let mut primary = Host::new("db1", 15);
    primary.node.start();
    let words = ["--name", "db1", "--standby", "standby1", "--restart"];
    primary.setup_primary(&words).unwrap();
    primary.serve();
    let mut standby = Host::new("standby1", 15);
    let (token, mut inviting) = primary.invite("standby1");
    let label = format!("15/{}", cluster.0);
    let mut join = standby.command(
        &["join", &token, "--cluster", &label, "--replace"],
        &["--os-user", "root", "--listen", "127.0.0.1:0"],
    );
    let joining = join
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    standby.serve();
    let joined = joining.wait_with_output().unwrap();
    let said = String::from_utf8(joined.stderr).unwrap();
    assert!(joined.status.success(), "{said}");
    assert!(inviting.wait().unwrap().success());
    primary.node.wait_for_standby("standby1");
    let etc = Path::new("/etc/postgresql/15").join(&cluster.0);
    let own = fs::read_to_string(etc.join("conf.d/pgtlsproxy.conf")).unwrap();
    assert!(own.contains("application_name=standby1"), "{own}");
    let hba = fs::read_to_string(etc.join("pg_hba.conf")).unwrap();
    assert!(
        hba.contains("local replication replicator peer map=pgtlsproxy"),
        "ready to serve: {hba}"
    );
}
