//! From fresh clusters to a stream, again without effect, and back to the last byte of the whole data directory. What is
//! refused leaves the old server running.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod needed;
mod places;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use testbed::host::said;
use testbed::setup::{Seen, configuration, same_tree, tree};
use testbed::{Host, Scratch, Stop, programs, run};

const PRIMARY: [&str; 5] = ["--name", "db1", "--standby", "standby1", "--restart"];

/// A primary that is set up, and a host that has joined it and still has what its package left.
fn joined(major: u32, words: &[&str]) -> (Host, Host) {
    let mut primary = Host::new("db1", major);
    primary.node.start();
    primary.setup_primary(&[&PRIMARY, words].concat()).unwrap();
    primary.serve();
    let standby = member(&mut primary, "standby1");
    (primary, standby)
}

fn member(primary: &mut Host, name: &str) -> Host {
    let mut standby = Host::new(name, primary.node.major());
    let (token, mut inviting) = primary.invite(name);
    standby.join(&token, &["--no-setup"]).unwrap();
    assert!(inviting.wait().unwrap().success());
    standby
}

/// The proxy's own files, but for sockets, and for what setup needs to know for undo.
fn own_files(host: &Host) -> BTreeMap<PathBuf, Seen> {
    let mut files = tree(host.dir());
    files.retain(|path, _| {
        !["run", "log", "setup"]
            .iter()
            .any(|name| path.starts_with(name))
            && path != Path::new("")
    });
    files
}

/// Without the times, which a file that comes back does not keep.
fn timeless(mut files: BTreeMap<PathBuf, Seen>) -> BTreeMap<PathBuf, Seen> {
    for seen in files.values_mut() {
        seen.modified = None;
    }
    files
}

/// What setup may write in a data directory whose server runs.
fn written(host: &Host) -> BTreeMap<PathBuf, Seen> {
    let mut files = tree(&host.node.data());
    files.retain(|path, _| {
        let name = path.to_string_lossy();
        !name.contains('/')
            && (name.contains(".conf") || name.ends_with(".signal") || name.starts_with('.'))
    });
    files
}

fn beside(host: &Host) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(host.node.socket_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("data") && name != "data" && name != "data.log")
        .collect();
    names.sort();
    names
}

fn stop(host: &Host) {
    let mut stop = host.node.program("pg_ctl");
    let data = host.node.data();
    run(stop.args(["stop", "-w", "-m", "fast", "-D"]).arg(data)).unwrap();
}

/// `setup standby --json` with these words, and what it says.
fn json(host: &mut Host, words: &[&str]) -> Value {
    let words = [&["--json"], words].concat();
    let output = host.standby_command(&words).stdin(Stdio::null()).output();
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn every_major_streams_repeats_and_comes_back_to_the_last_byte() {
    for major in programs::majors() {
        let begun = std::time::Instant::now();
        let mut primary = Host::new("db1", major);
        let fresh = configuration(&primary.node);
        primary.node.start();
        primary.setup_primary(&PRIMARY).unwrap();
        primary.serve();
        let mut standby = member(&mut primary, "standby1");
        let (old, own) = (tree(&standby.node.data()), own_files(&standby));

        let shown = standby.setup_standby(&["--replace", "--dry-run"]).unwrap();
        same_tree(&tree(&standby.node.data()), &old);
        same_tree(&own_files(&standby), &own);
        let hba = format!(
            "+++ {}\n",
            standby.node.data().join("pg_hba.conf").display()
        );
        for expected in [
            hba.as_str(),
            "+local replication replicator peer map=pgtlsproxy",
            "primary_conninfo = '",
            "application_name=standby1",
            "# pg_basebackup from localhost:",
            "aside to ",
            if major < 12 {
                "recovery.conf"
            } else {
                "standby.signal is made"
            },
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }

        let done = json(&mut standby, &["--replace"]);
        primary.node.wait_for_standby("standby1");
        assert_eq!(done["changed"], true, "{done:#}");
        assert!(done["stream"]["replayed"].is_string(), "{done:#}");
        assert_eq!(
            done["moved"][0]["from"],
            *standby.node.data().to_str().unwrap()
        );
        // What was shown is what was written.
        for file in done["files"].as_array().unwrap() {
            let name = file["path"].as_str().unwrap();
            let expected = name.ends_with("postgresql.auto.conf") || shown.contains(name);
            assert!(expected, "{name} was not shown: {shown}");
        }

        let hosts = [&primary, &standby];
        let before = hosts.map(|host| {
            (
                written(host),
                tree(&host.dir().join("setup")),
                own_files(host),
            )
        });
        let again = json(&mut standby, &["--replace"]);
        assert_eq!(again["changed"], false, "{again:#}");
        assert_eq!(again["files"].as_array().unwrap().len(), 0, "{again:#}");
        let shown = standby.setup_standby(&["--dry-run"]).unwrap();
        assert!(
            shown.contains("nothing to do") && !shown.contains("+++"),
            "{shown}"
        );
        let said = primary.setup_primary(&PRIMARY).unwrap();
        assert!(said.contains("nothing to do"), "{said}");
        for (host, (conf, journal, own)) in [&primary, &standby].into_iter().zip(before) {
            same_tree(&written(host), &conf);
            same_tree(&tree(&host.dir().join("setup")), &journal);
            same_tree(&own_files(host), &own);
        }

        standby.undo_with(&["--bring-back"]).unwrap();
        same_tree(&tree(&standby.node.data()), &old);
        same_tree(&timeless(own_files(&standby)), &timeless(own));
        assert_eq!(beside(&standby), ["data.standby"]);
        standby.node.start();
        assert_eq!(standby.node.query("select pg_is_in_recovery()"), "f");
        let said = standby.undo().unwrap();
        assert!(said.contains("nothing to undo"), "{said}");

        let slots = "select count(*) from pg_replication_slots";
        assert_eq!(primary.node.query(slots), "0");
        primary.undo().unwrap();
        assert_eq!(configuration(&primary.node), fresh);
        println!("PostgreSQL {major}: {:.1} s", begun.elapsed().as_secs_f32());
    }
}

/// Whether a text is in any file below a directory.
fn is_in(directory: &Path, text: &str) -> bool {
    let paths = tree(directory).into_keys().map(|path| directory.join(path));
    let mut files = paths.filter(|path| path.is_file());
    files.any(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).contains(text))
}

#[test]
fn a_password_is_shown_nowhere_kept_nowhere_and_taken_back() {
    const PASSWORD: &str = "pässwörd:1";
    let mut primary = Host::new("db1", 15);
    primary.node.start();
    primary.password(PASSWORD);
    primary
        .setup_primary(&[&PRIMARY[..], &["--password"]].concat())
        .unwrap();
    primary.serve();
    let mut standby = member(&mut primary, "standby1");
    let passfile = standby.dir().join("pgpass");
    let theirs = "else.example.com:5432:*:me:theirs\n";
    fs::write(&passfile, theirs).unwrap();
    // As an editor of root's leaves it: libpq would not even look at it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&passfile, open).unwrap();
    let rights = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).unwrap();
        (metadata.mode() & 0o777, metadata.uid())
    };
    let (before, (_, owner)) = (rights(&passfile), rights(&standby.node.data()));

    let words = ["--replace", "--password"];
    let shown = standby
        .setup_standby(&[&words[..], &["--dry-run"]].concat())
        .unwrap();
    assert!(shown.contains(":*:replicator:(not shown)"), "{shown}");
    standby.password(PASSWORD);
    let said = standby.setup_standby(&words).unwrap();
    assert!(said.contains("It streams"), "{said}");
    let now = fs::read_to_string(&passfile).unwrap();
    assert!(
        now.ends_with(theirs) && now.contains("pässwörd\\:1"),
        "{now}"
    );
    for secret in ["pässwörd", "theirs"] {
        assert!(!shown.contains(secret) && !said.contains(secret));
        assert!(!is_in(&standby.dir().join("setup"), secret), "{secret}");
    }
    assert_eq!(rights(&passfile), (0o600, owner));
    standby.undo_with(&["--bring-back"]).unwrap();
    assert_eq!(fs::read_to_string(&passfile).unwrap(), theirs);
    assert_eq!(rights(&passfile), before);
}

fn running(standby: &mut Host) {
    standby.node.start();
    standby.node.query("create table before as select 1 as n");
}

#[test]
fn an_old_primary_comes_back_with_nothing_of_setup_in_it() {
    let mut primary = Host::new("db1", 15);
    let before = configuration(&primary.node);
    primary.node.start();
    primary.setup_primary(&PRIMARY).unwrap();
    primary.serve();
    let mut standby = Host::new("standby1", 15);
    let (token, mut inviting) = primary.invite("standby1");
    standby.join(&token, &["--replace"]).unwrap();
    assert!(inviting.wait().unwrap().success());
    standby.node.catch_up_with(&primary.node);
    standby.node.promote();
    primary.node.query("create table lost as select 1 as n");
    let public = standby.public();
    primary
        .setup_standby(&["--from", &public, "--replace"])
        .unwrap();
    standby.node.wait_for_standby("db1");
    let said = primary.undo_with(&["--bring-back"]).unwrap();
    assert_eq!(configuration(&primary.node), before, "{said}");
    assert!(!primary.node.data().join("standby.signal").exists());
    primary.node.start();
    assert_eq!(primary.node.query("select n from lost"), "1");
}

#[test]
fn a_dry_run_is_told_before_there_is_a_tunnel_or_a_primary() {
    let mut host = Host::new("db1", 15);
    host.node.start();
    host.setup_primary(&["--name", "db1"]).unwrap();
    let before = (own_files(&host), configuration(&host.node));
    let words = ["--from", "db9.example.com:5443", "--replace", "--dry-run"];
    let shown = host.setup_standby(&words).unwrap();
    let expected = "+connect = [\"db9.example.com:5443\"]";
    assert!(shown.contains(expected), "{shown}");

    let (_primary, mut standby) = joined(15, &[]);
    standby.stop_serving();
    let shown = standby.setup_standby(&["--replace", "--dry-run"]).unwrap();
    for expected in [
        "[V03]",
        "does not run",
        "+primary_conninfo = '",
        "# pg_basebackup from",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert_eq!((own_files(&host), configuration(&host.node)), before);
}

/// A copy of the primary made by hand in the standby's place, with the standby's own configuration.
fn copy_by_hand(standby: &Host, copy: impl FnOnce(&Path)) {
    let (data, old) = (
        standby.node.data(),
        standby.node.socket_dir().join("data.old"),
    );
    fs::rename(&data, &old).unwrap();
    copy(&data);
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        run(Command::new("cp")
            .arg("-a")
            .arg(old.join(name))
            .arg(data.join(name)))
        .unwrap();
    }
}

#[test]
fn copies_made_by_hand_are_taken_as_they_are() {
    for major in programs::majors() {
        println!("PostgreSQL {major}: pg_basebackup");
        let (mut primary, mut standby) = joined(major, &[]);
        primary.node.query("create table t as select 5 as n");
        primary
            .node
            .prepend_hba("local replication postgres peer map=tests");
        primary.node.reload();
        copy_by_hand(&standby, |data| {
            let mut backup = standby
                .node
                .program(programs::client_tool("pg_basebackup").to_str().unwrap());
            let conninfo = primary.node.conninfo().replace(" dbname=postgres", "");
            backup.args(["-X", "stream", "-c", "fast", "-d", &conninfo, "-D"]);
            run(backup.arg(data)).unwrap();
        });
        let before = configuration(&standby.node);
        let shown = standby
            .setup_standby(&["--config-only", "--dry-run"])
            .unwrap();
        assert_eq!(configuration(&standby.node), before);
        let said = standby.setup_standby(&["--config-only"]).unwrap();
        assert!(said.contains("It streams"), "{said}");
        primary.node.wait_for_standby("standby1");
        standby.node.catch_up_with(&primary.node);
        assert_eq!(standby.node.query("select n from t"), "5");
        for path in configuration(&standby.node).keys() {
            let is_new = before.get(path) != configuration(&standby.node).get(path);
            assert!(
                !is_new || shown.contains(path.to_str().unwrap()),
                "{} was not shown: {shown}",
                path.display()
            );
        }
        stop(&standby);
        let said = standby.undo().unwrap();
        let mut now = configuration(&standby.node);
        // What says that it is a standby stays, and that is said.
        assert!(said.contains("second primary"), "{said}");
        now.remove(&standby.node.data().join("recovery.conf"));
        assert_eq!(now, before);
        drop(standby);

        println!("PostgreSQL {major}: a cold copy");
        let mut standby = member(&mut primary, "standby2");
        primary.node.stop(Stop::Fast);
        copy_by_hand(&standby, |data| {
            run(Command::new("cp")
                .arg("-a")
                .arg(primary.node.data())
                .arg(data))
            .unwrap();
        });
        primary.node.start();
        if major < 12 {
            // One that a person wrote comes back as it was.
            standby
                .node
                .write("recovery.conf", "standby_mode = on # mine\n");
        }
        let before = configuration(&standby.node);
        let said = standby.setup_standby(&["--config-only"]).unwrap();
        assert!(said.contains("It streams"), "{said}");
        primary.node.wait_for_standby("standby2");
        stop(&standby);
        let said_ = said;
        standby.undo().unwrap();
        assert_eq!(configuration(&standby.node), before, "{said_}");
    }
}

#[test]
fn undo_takes_away_a_copy_that_never_got_its_place() {
    let (primary, mut standby) = joined(15, &[]);
    primary
        .node
        .query("create table big as select repeat('x', 800) as x from generate_series(1, 100000)");
    let before = tree(&standby.node.data());
    let mut child = standby.standby_command(&["--replace"]);
    let mut child = child.stdin(Stdio::null()).spawn().unwrap();
    let staging = standby.node.socket_dir().join("data.pgtlsproxy-new");
    testbed::wait_until("the base backup to begin", || {
        staging.join("base").exists() || child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    child.wait().unwrap();
    assert!(staging.exists());
    let mut undo = standby.command(&["setup", "undo"], &[]);
    said(undo.stdin(Stdio::null())).unwrap();
    assert!(!staging.exists());
    same_tree(&tree(&standby.node.data()), &before);
}

/// Runs it under strace; with `kill` it is killed at that rename. True if it was; else the renames that it made.
fn traced(command: &Command, kill: Option<usize>, log: &Path) -> (bool, Vec<String>) {
    use std::os::unix::process::ExitStatusExt;
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-e", "trace=rename", "-o"]).arg(log);
    if let Some(when) = kill {
        strace.args(["-e", &format!("inject=rename:signal=KILL:when={when}")]);
    }
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        strace.env(name, value.unwrap());
    }
    let output = strace.stdin(Stdio::null()).output().unwrap();
    let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "{text}");
    let calls = fs::read_to_string(log).unwrap();
    (killed, calls.lines().map(str::to_owned).collect())
}

/// What a kill, or a standby's own copy, leaves beside.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.contains(".standby") || name.ends_with(".pgtlsproxy-new") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_kill_between_any_two_steps_of_the_exchange_is_made_good() {
    let (primary, mut standby) = joined(15, &[]);
    let (far, here) = (Scratch::new("far"), Scratch::new("here"));
    running(&mut standby);
    let mut mapping = Vec::new();
    for (host, place) in [(&primary, &far), (&standby, &here)] {
        let location = place.path().join("space");
        fs::create_dir(&location).unwrap();
        let mut chown = Command::new("chown");
        run(chown.arg("--reference").arg(place.path()).arg(&location)).unwrap();
        let location = location.display().to_string();
        host.node
            .query(&format!("create tablespace space location '{location}'"));
        host.node
            .query("create table spread tablespace space as select 7 as n");
        mapping.push(location);
    }
    standby.node.stop(Stop::Fast);
    let mapping = mapping.join("=");
    let words = ["--replace", "--tablespace-mapping", &mapping];
    let (data, log) = (standby.node.data(), far.path().join("strace"));
    let before = (tree(&data), tree(here.path()));
    let back = |standby: &mut Host| {
        let said = standby.undo_with(&["--bring-back"]).unwrap();
        sweep(standby.node.socket_dir());
        sweep(here.path());
        same_tree(&tree(&standby.node.data()), &before.0);
        same_tree(&tree(here.path()), &before.1);
        said
    };

    let command = mortal_free(&mut standby, &words);
    let (_, calls) = traced(&command, None, &log);
    back(&mut standby);
    // Directories are reached by descriptors, which have other numbers each time.
    let first = calls
        .iter()
        .position(|call| call.contains("/data\", \"") && call.contains("/data.2"))
        .unwrap();
    let mut kills = 0;
    // From the note before the old directory goes to the note that the new one is in its place.
    for when in first..first + 12 {
        let command = mortal_free(&mut standby, &words);
        let (killed, _) = traced(&command, Some(when), &log);
        assert!(killed);
        kills += 1;
        if when % 2 == 0 {
            let said = standby.setup_standby(&words).unwrap();
            assert!(said.contains("It streams"), "{said}");
            assert_eq!(standby.node.query("select n from spread"), "7");
        }
        let said = back(&mut standby);
        println!("{when} of {}: {said}", calls.len());
    }
    assert_eq!(kills, 12);
    standby.node.start();
    assert_eq!(standby.node.query("select n from before"), "1");
    assert_eq!(standby.node.query("select n from spread"), "7");
}

/// The command itself, without what ends it with the test.
fn mortal_free(host: &mut Host, words: &[&str]) -> Command {
    let made = host.standby_command(words);
    let arguments: Vec<_> = made.get_args().map(ToOwned::to_owned).collect();
    let mut command = Command::new(programs::pgtlsproxy());
    // setpriv --pdeathsig KILL PROGRAM ...
    command.args(&arguments[3..]);
    for (name, value) in made.get_envs() {
        command.env(name, value.unwrap());
    }
    command
}
