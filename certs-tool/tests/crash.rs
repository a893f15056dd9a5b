//! Disk full, killed at any moment, two at once, umask 0: every file is the old one or the new one, whole, and no key
//! was ever readable by others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use place::{Place, TOOL, mode, names_in, text};

/// Runs it and kills it after a part of the time that it takes; gives whether it had ended before.
fn killed(place: &Place, arguments: &str, round: u32, rounds: u32, whole: Duration) -> bool {
    let mut command = place.command(arguments);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Spread over its whole life and a little beyond; the system adds its own chance.
    thread::sleep(whole.mul_f64(1.2 * f64::from(round) / f64::from(rounds)));
    child.kill().unwrap();
    child.wait().unwrap().success()
}

fn time_of(place: &Place, arguments: &str) -> Duration {
    let begin = Instant::now();
    place.ok(arguments);
    begin.elapsed()
}

/// Whatever happened: what is there can be read, keys are secret, and what was issued is known.
fn is_sound(place: &Place, when: &str) {
    place.ledger();
    let serials: Vec<Value> = place
        .json("list --json")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["serial"].clone())
        .collect();
    for name in names_in(&place.path("pki")) {
        let path = place.pki(&name);
        if name.contains(".key") {
            assert_eq!(mode(&path), 0o600, "{name} {when}");
        }
        if name.starts_with('.')
            || Path::new(&path)
                .extension()
                .is_none_or(|end| end == "jsonl")
        {
            continue;
        }
        let found = place.json(&format!("inspect --json {path}"));
        assert!(!found.as_array().unwrap().is_empty(), "{name} {when}");
        if name.starts_with("db") && name.ends_with(".crt") {
            assert!(
                serials.contains(&found[0]["serial"]),
                "{name} is not in the ledger {when}"
            );
        }
    }
}

fn is_pair(place: &Place) -> bool {
    let verify = "verify pki/db1.crt --key pki/db1.key --ca pki/ca.crt --crl pki/ca.crl";
    place.run(verify).status.success()
}

#[test]
fn killed_while_it_issues_and_renews() {
    let place = Place::with_ca();
    place.ok("issue db1");
    for command in [
        "issue db1 --force",
        "renew db1 --force",
        "renew db1 --force --reuse-key",
    ] {
        let whole = time_of(&place, command);
        for round in 0..25 {
            killed(&place, command, round, 25, whole);
            let when = format!("after {command} was killed in round {round}");
            is_sound(&place, &when);
            // Between the two renames the pair is of two halves; the next renewal mends it.
            place.ok("renew db1");
            assert!(is_pair(&place), "{when}");
        }
    }
    place.ok("issue db1 --force");
    place.ok("crl");
    let remains: Vec<String> = names_in(&place.path("pki"))
        .into_iter()
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert_eq!(remains, [""; 0], "what the killed ones left is swept away");
}

#[test]
fn killed_while_it_revokes() {
    let place = Place::with_ca();
    place.ok("issue other");
    let whole = time_of(&place, "revoke other");
    for round in 0..25 {
        place.ok(&format!("issue db{round}"));
        let ended = killed(&place, &format!("revoke db{round}"), round, 25, whole);
        is_sound(&place, &format!("after revoke was killed in round {round}"));
        let verify = || {
            let arguments = format!("verify pki/db{round}.crt --ca pki/ca.crt --crl pki/ca.crl");
            place.run(&arguments).status.success()
        };
        assert!(!ended || !verify(), "what was reported as revoked is");
        place.ok(&format!("revoke db{round}"));
        assert!(!verify());
    }
}

#[test]
fn killed_while_it_rotates() {
    let place = Place::with_ca();
    place.ok("issue db1");
    let whole = time_of(&place, "crl") * 2;
    for round in 0..12 {
        for step in ["start", "switch", "finish"] {
            if step == "finish" {
                place.ok("renew --all");
            }
            killed(&place, &format!("ca rotate {step}"), round, 12, whole);
            let when = format!("after {step} was killed in round {round}");
            is_sound(&place, &when);
            place.ok("crl");
            assert!(is_pair(&place), "nobody is cut off {when}");
            place.ok(&format!("ca rotate {step}"));
            assert!(
                is_pair(&place),
                "nobody is cut off when {step} is run again"
            );
        }
        let shown = place.json("ca rotate --json");
        assert_eq!(shown["stage"], "none");
        assert!(
            names_in(&place.path("pki"))
                .iter()
                .all(|name| !name.starts_with("ca-")),
            "round {round}"
        );
    }
}

#[test]
fn killed_while_it_backs_up_and_restores() {
    let place = Place::with_ca();
    place.secret("pass", "correct horse");
    place.ok("issue db1");
    let backup = "ca backup b.tar --passphrase-file pass --force";
    place.ok("ca backup b.tar --passphrase-file pass");
    let restore = |to: &str| {
        let mut command = Command::new(TOOL);
        command.current_dir(place.0.path()).stdin(Stdio::null());
        let arguments = ["ca", "restore", "b.tar", "--passphrase-file", "pass"];
        command.args(["--dir", to]).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let begin = Instant::now();
    assert!(restore("whole").status().unwrap().success());
    let whole = begin.elapsed();
    for round in 0..12 {
        killed(&place, backup, round, 12, whole);
        let when = format!("in round {round}");
        assert_eq!(mode(place.path("b.tar").to_str().unwrap()), 0o600, "{when}");
        // The old one or the new one: either can be restored.
        let to = format!("restored{round}");
        let mut child = restore(&to).spawn().unwrap();
        thread::sleep(whole.mul_f64(1.2 * f64::from(round) / 12.0));
        child.kill().unwrap();
        child.wait().unwrap();
        let key = place.path(&to).join("ca.key");
        if key.exists() {
            assert_eq!(mode(key.to_str().unwrap()), 0o600, "{when}");
        }
        assert!(restore(&to).status().unwrap().success(), "{when}");
        for name in ["ca.key", "ca.crt"] {
            let [old, new] = ["pki", &to].map(|dir| fs::read(place.path(dir).join(name)).unwrap());
            assert!(old == new, "{name} {when}");
        }
        let names = names_in(&place.path(&to));
        assert!(
            !names.iter().any(|name| name.ends_with(".tmp")),
            "{when}: {names:?}"
        );
    }
}

#[test]
fn two_at_once_wait_for_each_other() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("issue db2");
    let commands = [
        "renew db1 --force",
        "issue db1 --force",
        "revoke db2",
        "crl",
        "renew db1 --force",
        "ca rotate start",
    ];
    let running = commands.map(|arguments| {
        place
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for (child, arguments) in running.into_iter().zip(commands) {
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        // Who opened the CA before the rotation began must not use what it saw.
        assert!(
            output.status.success() || said.contains("has just been changed"),
            "{arguments}: {said}"
        );
    }
    is_sound(&place, "after all of them");
    assert!(is_pair(&place));
    place.ok("ca rotate start");
    assert_eq!(place.json("ca rotate --json")["stage"], "trust");
}

#[test]
fn of_two_renewals_one_finds_nothing_to_do() {
    let place = Place::with_ca();
    let end = time::OffsetDateTime::now_utc() + time::Duration::days(5);
    place.ok(&format!(
        "issue db1 --not-before 2026-01-01 --not-after @{}",
        end.unix_timestamp()
    ));
    let entries = place.ledger().len();
    let running = [(); 4].map(|()| {
        place
            .command("renew db1")
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(
        place.ledger().len(),
        entries + 1,
        "cron on two hosts of a shared directory"
    );
}

/// A limit on the size of files is a full disk that needs no root: writes fail half-way with EFBIG.
#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let place = Place::with_ca();
    place.secret("pass", "correct horse");
    place.ok("issue db1");
    let files = || -> Vec<(String, Vec<u8>)> {
        let names = names_in(&place.path("pki")).into_iter();
        names
            .map(|name| {
                let content = fs::read(place.pki(&name)).unwrap();
                (name, content)
            })
            .collect()
    };
    for limit in [0, 100, 300] {
        for arguments in [
            "issue db1 --force",
            "renew db1 --force",
            "issue db2",
            "revoke db1",
            "crl",
            "ca rotate start",
            "ca backup b.tar --passphrase-file pass",
        ] {
            let before = files();
            // The signal that would kill is ignored, so that the write fails.
            let script = format!("trap '' XFSZ; exec {TOOL} --dir pki {arguments}");
            let mut shell = Command::new("prlimit");
            shell
                .current_dir(place.0.path())
                .arg(format!("--fsize={limit}"))
                .args(["sh", "-c", &script]);
            let output = shell.stdin(Stdio::null()).output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(1),
                "{arguments} under {limit}: {}",
                text(&output.stderr)
            );
            assert_eq!(before, files(), "{arguments} under {limit}");
        }
    }
}

#[test]
fn a_full_file_system_leaves_everything_as_it_was() {
    let place = Place::empty();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "none"])
        .arg(&disk)
        .output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: only root mounts a file system");
        return;
    }
    let run = |arguments: &str| {
        let mut command = Command::new(TOOL);
        command
            .current_dir(place.0.path())
            .args(["--dir", "disk/pki"])
            .args(arguments.split_whitespace());
        command.output().unwrap()
    };
    assert!(run("ca init").status.success() && run("issue db1").status.success());
    let names = || names_in(&disk.join("pki"));
    let files = || {
        names()
            .into_iter()
            .map(|name| fs::read(disk.join("pki").join(name)).unwrap())
            .collect::<Vec<_>>()
    };
    let (mut failed, mut said) = (0, String::new());
    for round in 0..40 {
        let before = (names(), files());
        let output = run(&format!("issue node{round}"));
        if !output.status.success() {
            failed += 1;
            said = text(&output.stderr);
            let ledger = before
                .0
                .iter()
                .position(|name| name == "ledger.jsonl")
                .unwrap();
            let crl = before.0.iter().position(|name| name == "ca.crl").unwrap();
            for (index, old) in before
                .1
                .iter()
                .enumerate()
                .filter(|(index, _)| ![ledger, crl].contains(index))
            {
                assert_eq!(
                    Some(old),
                    fs::read(disk.join("pki").join(&before.0[index]))
                        .ok()
                        .as_ref()
                );
            }
            assert!(
                run("list").status.success() && run("inspect disk/pki/ca.crl").status.success()
            );
            assert!(
                !names().iter().any(|name| name.ends_with(".tmp")),
                "nothing half-written stays"
            );
        }
        if failed == 3 {
            break;
        }
    }
    let _ = Command::new("umount").arg("-l").arg(&disk).status();
    assert_eq!(failed, 3, "the disk was to be full");
    assert!(said.contains("make room on the disk"), "{said}");
}

/// A rename that outlives the power while what it names does not would leave an empty file: first the content, then the
/// name, then the directory.
#[test]
fn what_is_put_in_its_place_is_on_disk_before_and_the_place_after() {
    let place = Place::with_ca();
    place.ok("issue db1");
    for arguments in ["issue db1 --force", "issue db2", "revoke db2", "crl"] {
        let trace = place.path("trace");
        let mut command = Command::new("strace");
        command
            .current_dir(place.0.path())
            .args(["-f", "-qq", "-y"]);
        command.args([
            "-e",
            "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat",
            "-o",
        ]);
        command
            .arg(&trace)
            .args([TOOL, "--dir", "pki"])
            .args(arguments.split(' '));
        match command.output() {
            Ok(output) if output.status.success() => {}
            _ => {
                eprintln!("skipped: strace does not run here");
                return;
            }
        }
        let calls = fs::read_to_string(&trace).unwrap();
        let calls: Vec<&str> = calls.lines().collect();
        let placed: Vec<(usize, &str)> = calls
            .iter()
            .enumerate()
            .filter(|(_, call)| call.contains("rename") || call.contains("link"))
            .filter_map(|(at, call)| Some((at, call.split('"').nth(1)?.rsplit('/').next()?)))
            .collect();
        assert!(placed.len() >= 2, "{arguments}: {calls:#?}");
        for (at, temporary) in placed {
            let synced = |call: &&str| call.contains("sync(") && call.contains(temporary);
            assert!(
                calls[..at].iter().any(synced),
                "{arguments}: {temporary} {calls:#?}"
            );
            let directory = |call: &&str| call.contains("sync(") && call.contains("/pki>");
            assert!(calls[at..].iter().any(directory), "{arguments}: {calls:#?}");
        }
    }
}

/// What the kernel was asked for, not what was left afterwards: a moment of 0644 would be seen.
#[test]
fn no_key_was_ever_readable_by_others() {
    let place = Place::empty();
    fs::create_dir(place.path("pki")).unwrap();
    place.secret("pass", "correct horse");
    let steps = "ca init; issue db1; issue db1 --force; renew db1 --force; request db2; ca rotate start; ca rotate switch; \
        renew db1; revoke db2; ca backup b.tar --passphrase-file pass; request db3 --force --stdout";
    for (number, arguments) in steps.split(';').map(str::trim).enumerate() {
        let trace = place.path(&format!("trace{number}"));
        let mut command = Command::new("strace");
        command.current_dir(place.0.path()).args([
            "-f",
            "-qq",
            "-e",
            "trace=open,openat,creat,chmod,fchmod,fchmodat,mkdir",
            "-o",
        ]);
        command.arg(&trace).args([
            "sh",
            "-c",
            &format!("umask 0; exec {TOOL} --dir pki {arguments}"),
        ]);
        match command.output() {
            Ok(output) if trace.exists() && fs::metadata(&trace).unwrap().len() > 0 => {
                // Revoking what was never issued fails, and opens keys all the same.
                assert!(
                    output.status.success() || arguments == "revoke db2",
                    "{arguments}: {}",
                    text(&output.stderr)
                );
            }
            _ => {
                eprintln!("skipped: strace does not run here");
                return;
            }
        }
        let calls = fs::read_to_string(&trace).unwrap();
        let is_secret = |call: &&str| call.contains(".key") || call.contains("b.tar");
        let made: Vec<&str> = calls
            .lines()
            .filter(|call| call.contains("O_CREAT"))
            .filter(is_secret)
            .collect();
        for call in &made {
            assert!(
                call.contains("O_EXCL") && call.contains(", 0600)"),
                "{arguments}: {call}"
            );
        }
        for call in calls.lines().filter(|call| call.contains("chmod(")) {
            let is_plain =
                call.contains(", 0600)") || call.contains(", 0644)") || call.contains(", 0666)");
            assert!(is_plain, "{arguments}: {call}");
        }
        let makes_keys = !["revoke db2"].contains(&arguments) && arguments != "ca rotate switch";
        assert_eq!(
            makes_keys,
            !made.is_empty(),
            "{arguments} makes a secret file or not:\n{calls}"
        );
    }
    for name in names_in(&place.path("pki"))
        .iter()
        .filter(|name| name.contains(".key"))
    {
        assert_eq!(mode(place.pki(name)), 0o600, "{name}");
    }
}
