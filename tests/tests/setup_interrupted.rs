//! `setup primary` and `setup undo` killed, on full disks, with files that cannot be replaced and rights that are missing:
//! every file is as it was or as it is to be, the server starts, and a second run goes on.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::programs::pgtlsproxy;
use testbed::run;
use testbed::setup::{Prepared, configuration, said};

/// What changes files; a kill comes before the call is done.
const CALLS: [&str; 5] = ["linkat", "rename", "unlink", "mkdir", "fchown"];

/// Runs it under strace, which kills it at the `when`th of these calls; true if it came to that.
fn killed(command: &Command, call: &str, when: usize) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e"]);
    strace.arg(format!("inject={call}:signal=KILL:when={when}"));
    strace.arg(command.get_program()).args(command.get_args());
    let output = strace.output().unwrap();
    let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(killed || output.status.success(), "{text}");
    killed
}

fn undo(primary: &Prepared) -> Command {
    let mut command = Command::new(pgtlsproxy());
    command.args(["setup", "undo", "--dir"]).arg(primary.dir());
    command
}

type Files = BTreeMap<PathBuf, (Vec<u8>, u32, u32)>;

/// Each file is whole: as before or as after, and what lies beside them is the server's.
#[track_caller]
fn whole(primary: &Prepared, before: &Files, after: &Files) {
    let owner = before.values().next().unwrap().2;
    for (path, now) in configuration(&primary.node) {
        let known = before.get(&path) == Some(&now) || after.get(&path) == Some(&now);
        let temporary = path.extension().is_some_and(|end| end == "pgtlsproxy");
        assert!(known || temporary && now.2 == owner, "{}", path.display());
    }
}

#[test]
fn a_kill_at_any_moment_leaves_whole_files_and_a_second_run_goes_on() {
    // What setup makes of it otherwise follows the free space, which other programs change.
    let mut primary = Prepared::careful(15, "max_slot_wal_keep_size = '2GB'\n");
    let options = ["--standby", "standby1", "--rewind"];
    let before = configuration(&primary.node);
    let setup = || primary.command(&options);
    said(&mut setup(), "").well();
    let after = configuration(&primary.node);
    primary.undo().well();
    assert_eq!(configuration(&primary.node), before);

    let mut moments = 0;
    for call in CALLS {
        for when in 1.. {
            fs::remove_dir_all(primary.dir()).unwrap();
            if !killed(&setup(), call, when) {
                primary.undo().well();
                break;
            }
            moments += 1;
            whole(&primary, &before, &after);
            // One time it goes on, the other it goes back.
            if when % 2 == 0 {
                said(&mut setup(), "").well();
                assert_eq!(configuration(&primary.node), after, "{call} {when}");
                assert!(said(&mut setup(), "").well().contains("nothing to do"));
            }
            primary.undo().well();
            assert_eq!(configuration(&primary.node), before, "{call} {when}");
            fs::create_dir_all(primary.dir()).unwrap();
        }
        for when in 1.. {
            said(&mut setup(), "").well();
            if !killed(&undo(&primary), call, when) {
                break;
            }
            moments += 1;
            whole(&primary, &before, &after);
            primary.undo().well();
            assert_eq!(configuration(&primary.node), before, "undo, {call} {when}");
        }
    }
    println!("{moments} moments");
    assert!(moments > 40, "{moments}");
    primary.node.start();
}

#[test]
fn a_kill_while_the_server_is_told_is_made_good_by_the_next_run() {
    let mut primary = Prepared::careful(15, "");
    primary.node.start();
    let before = configuration(&primary.node);
    let slots = "select count(*) from pg_replication_slots";
    for when in 1.. {
        let ended = !killed(
            &primary.command(&["--standby", "standby1"]),
            "clone,clone3,vfork,fork",
            when,
        );
        said(&mut primary.command(&["--standby", "standby1"]), "").well();
        assert_eq!(primary.node.query(slots), "1");
        killed(&undo(&primary), "clone,clone3,vfork,fork", when);
        primary.undo().well();
        assert_eq!(primary.node.query(slots), "0");
        assert_eq!(configuration(&primary.node), before);
        primary.node.query("drop role replicator");
        if ended {
            assert!(when > 5, "{when}");
            break;
        }
    }
    primary.node.restart();
}

/// Runs this test once more where mounts are its own; true in there. Says why where a machine does not permit it.
fn in_own_mounts(test: &str) -> bool {
    const INSIDE: &str = "PGTLSPROXY_TEST_OWN_MOUNTS";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if let Err(why) = run(Command::new("unshare").args(["--mount", "true"])) {
        println!("left out: mount namespaces are not permitted here: {why}");
        return false;
    }
    let mut again = Command::new("unshare");
    again.arg("--mount").arg(std::env::current_exe().unwrap());
    again
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1");
    run(&mut again).unwrap_or_else(|said| panic!("{said}"));
    false
}

fn mount(options: &[&str], to: &Path) {
    run(Command::new("mount").args(options).arg(to)).unwrap();
}

/// A disk of its own for this directory, with what is in it.
fn own_disk(directory: &Path, size: &str) {
    let aside = directory.with_extension("aside");
    fs::rename(directory, &aside).unwrap();
    fs::create_dir(directory).unwrap();
    mount(
        &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"],
        directory,
    );
    let mut copy = Command::new("cp");
    run(copy.arg("-a").arg(aside.join(".")).arg(directory)).unwrap();
    for program in ["chown", "chmod"] {
        let mut like = Command::new(program);
        run(like.arg("--reference").arg(&aside).arg(directory)).unwrap();
    }
}

/// Fills the disk up to so many bytes.
fn fill(directory: &Path, free: u64) {
    let path = directory.join("ballast");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    file.set_len(file.metadata().unwrap().len().saturating_sub(free))
        .unwrap();
}

#[test]
fn a_full_disk_changes_nothing() {
    if !in_own_mounts("a_full_disk_changes_nothing") {
        return;
    }
    let mut primary = Prepared::careful(15, "");
    let data = primary.node.data();
    own_disk(&data, "120m");
    primary.node.start();
    let before = configuration(&primary.node);
    primary.setup(&[]).well();
    let after = configuration(&primary.node);
    primary.undo().well();
    let mut failed = 0;
    for free in [0, 4 << 10, 8 << 10, 16 << 10, 32 << 10] {
        fill(&data, free);
        let said = primary.setup(&[]);
        if !said.done {
            failed += 1;
            // Either we had no room, or the server itself had none when it was asked.
            let room = ["No space left on device", "could not write"];
            let text = &said.text;
            assert!(room.iter().any(|why| text.contains(why)), "{text}");
            whole(&primary, &before, &after);
        }
        fs::remove_file(data.join("ballast")).unwrap();
        primary.undo().well();
        assert_eq!(configuration(&primary.node), before);
    }
    assert!(failed > 2, "{failed}");
    primary.node.restart();
    primary.setup(&[]).well();
    fill(&data, 0);
    primary.undo().failed();
    whole(&primary, &before, &after);
    fs::remove_file(data.join("ballast")).unwrap();
    primary.node.restart();
    primary.undo().well();
    assert_eq!(configuration(&primary.node), before);

    // The other disk: that of our own files.
    fs::remove_dir_all(primary.dir()).unwrap();
    fs::create_dir(primary.dir()).unwrap();
    for size in ["8k", "16k", "24k", "32k", "40k", "48k", "56k"] {
        mount(
            &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"],
            &primary.dir(),
        );
        let said = primary.setup(&[]);
        assert!(
            said.done || said.text.contains("No space left"),
            "{size}: {}",
            said.text
        );
        if !said.done {
            assert_eq!(
                configuration(&primary.node),
                before,
                "{size}: {}",
                said.text
            );
        }
        mount(&["-o", "remount,size=4m"], &primary.dir());
        primary.setup(&[]).well();
        primary.undo().well();
        assert_eq!(configuration(&primary.node), before);
        run(Command::new("umount").arg(primary.dir())).unwrap();
    }
    primary.node.restart();
}

#[test]
fn a_file_that_cannot_be_replaced_puts_back_the_others() {
    if !in_own_mounts("a_file_that_cannot_be_replaced_puts_back_the_others") {
        return;
    }
    let mut primary = Prepared::careful(15, "");
    primary.node.start();
    let before = configuration(&primary.node);
    for name in ["postgresql.conf", "pg_hba.conf"] {
        let path = primary.node.data().join(name);
        // As a container's configuration often is: a mount of its own, read-only.
        mount(&["--bind", path.to_str().unwrap()], &path);
        mount(&["-o", "remount,ro,bind"], &path);
        let refused = primary.setup(&[]).failed();
        assert!(
            refused.contains("[G05]") && refused.contains(name),
            "{refused}"
        );
        assert_eq!(configuration(&primary.node), before);
        run(Command::new("umount").arg(&path)).unwrap();
        primary.setup(&[]).well();
        let after = configuration(&primary.node);
        mount(&["--bind", path.to_str().unwrap()], &path);
        let refused = primary.undo().failed();
        assert!(refused.contains(name), "{refused}");
        whole(&primary, &before, &after);
        primary.node.restart();
        run(Command::new("umount").arg(&path)).unwrap();
        primary.undo().well();
        assert_eq!(configuration(&primary.node), before);
    }
    primary.node.restart();
}

#[test]
fn rights_that_are_missing_change_nothing_and_modes_stay() {
    let mut primary = Prepared::careful(15, "");
    let data = primary.node.data();
    // What is read-only for its owner stays so.
    let hba = data.join("pg_hba.conf");
    fs::set_permissions(&hba, std::os::unix::fs::PermissionsExt::from_mode(0o440)).unwrap();
    primary.node.start();
    let before = configuration(&primary.node);
    if nix::unistd::geteuid().is_root() {
        let command = primary.command(&["--standby", "standby1"]);
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "nobody", "--clear-groups"]);
        other.arg(command.get_program()).args(command.get_args());
        let refused = said(&mut other, "").failed();
        assert!(refused.contains("do:"), "{refused}");
        assert_eq!(configuration(&primary.node), before);
    }
    primary.setup(&[]).well();
    let after = configuration(&primary.node);
    assert_eq!(after[&hba].1 & 0o777, 0o440);
    primary.node.restart();
    primary.undo().well();
    assert_eq!(configuration(&primary.node), before);
    primary.node.restart();
}
