//! `join` killed at any moment, and on a full disk: nothing, or all of a node; no key that others can read, under any
//! umask; and a second run works, or says how.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use nix::unistd::{Uid, User};
use testbed::enrolment::{Inviting, inviting_daemon, join};
use testbed::programs::pgtlsproxy;
use testbed::{Disk, Pki, Scratch, Sidecar, StandIn, run};

const CONFIG: &str = "pgtlsproxy.toml";

fn site() -> (Pki, Sidecar) {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let rules = "[[server.allow]]\nidentity = \"cn:db1\"\n";
    let daemon = inviting_daemon(&pki, &pki.issue("db1"), &stand_in.upstream(), rules);
    (pki, daemon)
}

/// A `join` under this umask that can be killed.
fn joining(umask: &str, dir: &Path, token: &str) -> Child {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("umask {umask}; exec \"$0\" \"$@\""))
        .arg(pgtlsproxy())
        .args(["join", token, "--no-setup", "--listen", "127.0.0.1:0"])
        .args(["--os-user", "postgres", "--dir"])
        .arg(dir);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// A configuration is there only with all that it names; a key is never half there, nor readable by others.
#[track_caller]
fn is_sound(dir: &Path, when: &str) {
    if dir.join(CONFIG).exists() {
        let mut check = Command::new(pgtlsproxy());
        check.args(["check", "--config"]).arg(dir.join(CONFIG));
        let status = check.output().unwrap().status.code();
        assert!(matches!(status, Some(0 | 3)), "{when}");
    }
    for path in below(dir).iter().filter(|path| path.ends_with("node.key")) {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let alone = fs::metadata(path.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o77
            == 0;
        assert!(
            mode == 0o600 || mode == 0o640,
            "{mode:o} {} {when}",
            path.display()
        );
        let staged = path.parent() != Some(dir);
        assert!(alone || !staged, "{} {when}", path.display());
        if !staged {
            run(Command::new("openssl")
                .args(["pkey", "-noout", "-in"])
                .arg(path))
            .expect(when);
        }
    }
}

#[test]
fn killed_at_any_moment_it_can_be_run_again() {
    const ROUNDS: u32 = 16;
    let (pki, daemon) = site();
    let (mut inviting, first) = (
        Inviting::start(&daemon, &pki, "first", &[]),
        Scratch::new("first"),
    );
    let token = inviting.token();
    let begin = Instant::now();
    assert!(joining("0", first.path(), &token).wait().unwrap().success());
    let whole = begin.elapsed();
    for round in 0..ROUNDS {
        let (name, dir) = (format!("node{round}"), Scratch::new("killed"));
        let mut inviting = Inviting::start(&daemon, &pki, &name, &[]);
        let token = inviting.token();
        let mut child = joining("0", dir.path(), &token);
        thread::sleep(whole.mul_f64(1.1 * f64::from(round) / f64::from(ROUNDS)));
        child.kill().unwrap();
        child.wait().unwrap();
        let when = format!("in round {round}");
        is_sound(dir.path(), &when);
        if dir.path().join(CONFIG).exists() {
            continue;
        }
        // The same line again, unless it has been used; what is said then is what to do.
        match join(dir.path(), &token, &[]).or_else(|said| {
            assert!(
                said.contains("[E06]") || said.contains("[E10]") || said.contains("[E15]"),
                "{when}: {said}"
            );
            join(dir.path(), &token, &["--force"])
        }) {
            Ok(_) => {}
            Err(said) => {
                assert!(said.contains("pgtlsproxy invite"), "{when}: {said}");
                drop(inviting);
                let mut inviting = Inviting::start(&daemon, &pki, &name, &["--replace"]);
                let token = inviting.token();
                join(dir.path(), &token, &["--force"]).unwrap();
            }
        }
        is_sound(dir.path(), &when);
        let left: Vec<_> = below(dir.path())
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("/.join-"))
            .collect();
        assert!(left.is_empty(), "{when}: {left:?}");
    }
}

#[test]
fn on_a_full_disk_nothing_is_written_and_the_way_out_is_said() {
    let (pki, daemon) = site();
    let (mut full, mut whole) = (0, 0);
    for pages in 0..9 {
        let Some(disk) = Disk::mount(4 * 16) else {
            println!("skipped: only root mounts a file system");
            return;
        };
        // All but so many pages are taken.
        let dir = disk.path().join("etc");
        fs::create_dir(&dir).unwrap();
        fs::write(disk.path().join("filler"), vec![0; 4096 * (16 - pages)]).ok();
        let mut inviting = Inviting::start(&daemon, &pki, &format!("node{pages}"), &[]);
        let token = inviting.token();
        match join(&dir, &token, &[]) {
            Ok(_) => {
                whole += 1;
                is_sound(&dir, &format!("with {pages} pages"));
                assert!(dir.join(CONFIG).exists());
            }
            Err(said) => {
                full += 1;
                assert!(
                    said.contains("[E07]") && said.contains("make room"),
                    "{pages}: {said}"
                );
                // By which two commands keep out of each other's way; it is empty.
                let lock = dir.join(".lock");
                let left: Vec<_> = below(&dir)
                    .into_iter()
                    .filter(|path| *path != lock)
                    .collect();
                assert!(left.is_empty(), "{pages}: {left:?}");
                let unused = said.contains("the token has not been used");
                assert!(
                    unused || said.contains("pgtlsproxy invite --replace"),
                    "{pages}: {said}"
                );
                fs::remove_file(disk.path().join("filler")).unwrap();
                if !unused {
                    drop(inviting);
                    let name = format!("node{pages}");
                    let mut inviting = Inviting::start(&daemon, &pki, &name, &["--replace"]);
                    let token = inviting.token();
                    join(&dir, &token, &[]).unwrap();
                } else {
                    join(&dir, &token, &[]).unwrap();
                }
                is_sound(&dir, &format!("with room, after {pages} pages"));
            }
        }
    }
    assert!(full > 3 && whole > 0, "{full} failed, {whole} did not");
}

#[test]
fn under_a_strict_umask_the_os_user_of_the_daemon_gets_at_its_files() {
    let (pki, daemon) = site();
    let mut inviting = Inviting::start(&daemon, &pki, "db2", &[]);
    let (token, above) = (inviting.token(), Scratch::new("etc"));
    let dir = above.path().join("etc").join("pgtlsproxy");
    let joined = joining("077", &dir, &token).wait().unwrap();
    assert!(joined.success());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for directory in [dir.parent().unwrap(), &dir] {
        assert_eq!(mode(directory), 0o755, "{}", directory.display());
    }
    for name in ["node.crt", "ca.crt", "ca.crl", CONFIG] {
        assert_eq!(mode(&dir.join(name)), 0o644, "{name}");
    }
    let key = dir.join("node.key");
    if Uid::effective().is_root() {
        let postgres = User::from_name("postgres").unwrap().unwrap();
        assert_eq!(fs::metadata(&key).unwrap().gid(), postgres.gid.as_raw());
        assert_eq!(mode(&key), 0o640);
    } else {
        assert_eq!(mode(&key), 0o600);
    }
}
