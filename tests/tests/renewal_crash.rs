//! `pgtlsproxy renew` killed at any moment, on a full disk, twice at once and under umask 0, on a node that asks and on
//! the CA's host: key and certificate match, the old ones or the new ones; no key that others can read; and the next
//! run finishes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testbed::enrolment::inviting_daemon_at;
use testbed::programs::pgtlsproxy;
use testbed::renewal::{check, last_serial, own_files, renew, toml_of};
use testbed::tunnel::client_config;
use testbed::wire::{self, Wire};
use testbed::{Disk, Identity, Pki, Scratch, Sidecar, StandIn, reserve_port, run, wait_until};

/// What changes files, or makes sure of them; a kill comes before the call is done.
const CALLS: [&str; 7] = [
    "rename", "unlink", "mkdir", "fchmod", "fchown", "fsync", "write",
];

/// The CA's host and a node that asks it, both of whose certificates are due.
struct Site {
    pki: Pki,
    host: Sidecar,
    node: Sidecar,
    host_own: Identity,
    own: Identity,
    stand_in: StandIn,
    _dirs: Vec<Scratch>,
}

impl Site {
    /// With the node's files in `place`, if it is given.
    fn new(place: Option<&Path>) -> Self {
        let (pki, stand_in) = (Pki::new(), StandIn::new());
        let due = |name| own_files(&pki, &pki.issue_for_seconds(name, -1200, 2400));
        let ((host_dir, mut host_own), (node_dir, mut own)) = (due("db1"), due("standby1"));
        host_own.ca = pki.ca();
        if let Some(place) = place {
            Saved::of(&[node_dir.path()]).restore_to(0, place);
            for path in [&mut own.cert, &mut own.key, &mut own.ca] {
                *path = place.join(path.file_name().unwrap());
            }
        }
        let host = inviting_daemon_at(reserve_port(), &pki, &host_own, &stand_in.upstream(), "");
        let config = client_config(&own, host.address(), "").replace(&own.toml(), &toml_of(&own));
        let node = Sidecar::run("node", &config);
        Self {
            pki,
            host,
            node,
            host_own,
            own,
            stand_in,
            _dirs: vec![host_dir, node_dir],
        }
    }

    /// The arguments of the CA's host's timer, and of the node's.
    fn commands(&self) -> [Vec<String>; 2] {
        let of = |daemon: &Sidecar| {
            let config = daemon.dir().join("pgtlsproxy.toml");
            ["renew", "--config"]
                .map(str::to_owned)
                .into_iter()
                .chain([config.display().to_string()])
        };
        let pki = self.pki.dir().display().to_string();
        [
            of(&self.host).chain(["--pki".to_owned(), pki]).collect(),
            of(&self.node).collect(),
        ]
    }

    /// The node has asked, and its next certificate waits for it.
    fn signed(&self) {
        done(renew(&self.node, None, &[]), "Asked");
        done(
            renew(&self.host, Some(&self.pki), &[]),
            "Signed for standby1",
        );
    }

    fn still_serves(&self) {
        Wire::tcp(self.node.address()).send(&wire::replication_startup());
        self.stand_in.accept_startup();
    }
}

#[track_caller]
fn done((status, said): (i32, String), words: &str) {
    assert!(status == 0 && said.contains(words), "{status}: {said}");
}

/// What directories held, to have it again.
struct Saved(Vec<(PathBuf, Scratch)>);

impl Saved {
    fn of(dirs: &[&Path]) -> Self {
        let save = |dir: &&Path| {
            let copy = Scratch::new("saved");
            copied(dir, copy.path());
            (dir.to_path_buf(), copy)
        };
        Self(dirs.iter().map(save).collect())
    }

    fn restore(&self) {
        for n in 0..self.0.len() {
            self.restore_to(n, &self.0[n].0);
        }
    }

    fn restore_to(&self, n: usize, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            fs::remove_file(&path)
                .or_else(|_| fs::remove_dir_all(&path))
                .unwrap();
        }
        copied(self.0[n].1.path(), dir);
    }
}

fn copied(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to)).unwrap();
}

/// Under umask 0, and under strace, which kills it at the `when`th of these calls; true if it came to that.
fn killed(arguments: &[String], call: &str, when: usize) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec strace \"$@\"", "sh"]);
    command.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
    command.arg(format!("inject={call}:signal=KILL:when={when}"));
    let output = command.arg(pgtlsproxy()).args(arguments).output().unwrap();
    let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(killed || output.status.success(), "{text}");
    killed
}

/// A daemon would start with these files, and only their owner reads a key.
#[track_caller]
fn is_sound(daemon: &Sidecar, dirs: &[&Path], when: &str) {
    let (status, said) = check(&daemon.dir().join("pgtlsproxy.toml"));
    assert!(matches!(status, 0 | 3), "{when}: {said}");
    for dir in dirs {
        no_open_key(dir, when);
    }
}

fn no_open_key(dir: &Path, when: &str) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let name = path.display();
        if path.is_dir() {
            // Others may neither look at what is under way nor put theirs in its place.
            assert_eq!(mode & 0o077, 0, "{mode:o} {name} {when}");
        } else if String::from_utf8_lossy(&fs::read(&path).unwrap()).contains("PRIVATE KEY") {
            assert!(mode & !0o640 == 0, "{mode:o} {name} {when}");
        } else {
            assert_eq!(mode & 0o002, 0, "{mode:o} {name} {when}");
        }
    }
}

/// The node's key and certificate are a pair by themselves, and nothing is left beside them.
#[track_caller]
fn is_finished(own: &Identity, when: &str) {
    let public = |kind: &[&str], path: &Path| {
        let mut openssl = Command::new("openssl");
        run(openssl.args(kind).arg("-in").arg(path)).expect(when)
    };
    assert_eq!(
        public(&["x509", "-noout", "-pubkey"], &own.cert),
        public(&["pkey", "-pubout"], &own.key),
        "{when}"
    );
    let key = fs::read_to_string(&own.key).unwrap();
    assert_eq!(key.matches("BEGIN").count(), 1, "{when}");
    for entry in fs::read_dir(own.cert.parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let left = name.ends_with(".next") || name.starts_with(".pgtlsproxy-renew-");
        assert!(!left, "{name} {when}");
    }
}

fn at_each_moment(mut moment: impl FnMut(&str, usize) -> bool) {
    let mut moments = 0;
    for call in CALLS {
        for when in 1.. {
            if !moment(call, when) {
                break;
            }
            moments += 1;
        }
    }
    assert!(moments > 15, "{moments}");
}

#[test]
fn a_node_that_is_killed_while_it_takes_its_certificate_has_it_after_the_next_run() {
    let site = Site::new(None);
    let dir = site.own.cert.parent().unwrap();
    site.signed();
    let [_, command] = site.commands();
    let before = Saved::of(&[dir]);
    let serial = last_serial(&site.pki, "standby1");
    at_each_moment(|call, when| {
        before.restore();
        let moment = format!("at {call} {when}");
        let killed = killed(&command, call, when);
        is_sound(&site.node, &[dir], &moment);
        let (status, said) = renew(&site.node, None, &[]);
        assert_eq!(status, 0, "{moment}: {said}");
        assert!(!said.contains("Asked"), "{moment}: {said}");
        is_finished(&site.own, &moment);
        // No second one was asked for.
        assert_eq!(last_serial(&site.pki, "standby1"), serial, "{moment}");
        killed
    });
    wait_until("the new certificate to be used", || {
        Wire::tcp(site.node.address()).send(&wire::replication_startup());
        site.host.log().text().contains(&serial)
    });
}

#[test]
fn a_node_that_is_killed_while_it_asks_asks_again() {
    let site = Site::new(None);
    let dir = site.own.cert.parent().unwrap();
    let [_, command] = site.commands();
    let before = Saved::of(&[dir]);
    let mut moments = 0;
    for call in CALLS {
        for when in 1.. {
            before.restore();
            let moment = format!("at {call} {when}");
            let killed = killed(&command, call, when);
            is_sound(&site.node, &[dir], &moment);
            done(renew(&site.node, None, &[]), "Asked");
            is_sound(&site.node, &[dir], &moment);
            if !killed {
                break;
            }
            moments += 1;
        }
    }
    assert!(moments > 4, "{moments}");
    done(
        renew(&site.host, Some(&site.pki), &[]),
        "Signed for standby1",
    );
    done(renew(&site.node, None, &[]), "Renewed");
    is_finished(&site.own, "at the end");
    site.still_serves();
}

#[test]
fn the_cas_host_that_is_killed_goes_on_with_the_next_run() {
    let site = Site::new(None);
    let (dir, pki) = (site.host_own.cert.parent().unwrap(), site.pki.dir());
    let [command, _] = site.commands();
    let before = Saved::of(&[dir, pki]);
    at_each_moment(|call, when| {
        before.restore();
        let moment = format!("at {call} {when}");
        let killed = killed(&command, call, when);
        is_sound(&site.host, &[dir, pki], &moment);
        let (status, said) = renew(&site.host, Some(&site.pki), &[]);
        assert_eq!(status, 0, "{moment}: {said}");
        is_finished(&site.host_own, &moment);
        done(renew(&site.host, Some(&site.pki), &[]), "Not due");
        site.pki.certs_tool(&["list"]).expect(&moment);
        killed
    });
    site.still_serves();
}

#[test]
fn on_a_full_disk_the_old_certificate_stays_until_there_is_room() {
    let Some(disk) = Disk::mount(4 * 32) else {
        println!("skipped: only root mounts a file system");
        return;
    };
    let (place, filler) = (disk.path().join("node"), disk.path().join("filler"));
    fs::create_dir(&place).unwrap();
    let site = Site::new(Some(&place));
    site.signed();
    let before = Saved::of(&[&place]);
    let (mut full, mut whole) = (0, 0);
    for pages in 0..16 {
        before.restore();
        disk.fill(&filler, pages);
        let moment = format!("with {pages} pages");
        let (status, said) = renew(&site.node, None, &[]);
        is_sound(&site.node, &[&place], &moment);
        if status == 0 {
            whole += 1;
            assert!(said.contains("Renewed"), "{moment}: {said}");
        } else {
            full += 1;
            assert!(said.contains("make room"), "{moment}: {said}");
            fs::remove_file(&filler).unwrap();
            let (status, said) = renew(&site.node, None, &[]);
            assert_eq!(status, 0, "{moment}: {said}");
        }
        is_finished(&site.own, &moment);
    }
    assert!(full > 2 && whole > 0, "{full} failed, {whole} did not");
    site.still_serves();
}

#[test]
fn on_a_full_disk_the_cas_host_signs_nothing_by_halves_and_goes_on_when_there_is_room() {
    let site = Site::new(None);
    let own = site.host_own.cert.parent().unwrap();
    let node = site.own.cert.parent().unwrap();
    let dirs = [own, site.pki.dir(), node];
    let before = Saved::of(&dirs);
    // Its own certificate and the CA may lie on two disks.
    for place in &dirs[..2] {
        let Some(disk) = Disk::over(place, 4 * 32) else {
            println!("skipped: only root mounts a file system");
            return;
        };
        let filler = place.join("filler");
        let (mut full, mut whole) = (0, 0);
        for pages in 0..16 {
            before.restore();
            let moment = format!("with {pages} pages in {}", place.display());
            done(renew(&site.node, None, &[]), "Asked");
            disk.fill(&filler, pages);
            let (status, said) = renew(&site.host, Some(&site.pki), &[]);
            is_sound(&site.host, &dirs[..2], &moment);
            site.pki.certs_tool(&["list"]).expect(&moment);
            fs::remove_file(&filler).unwrap();
            if status == 0 {
                whole += 1;
            } else {
                full += 1;
                assert!(said.contains("make room"), "{moment}: {said}");
                let (status, said) = renew(&site.host, Some(&site.pki), &[]);
                assert_eq!(status, 0, "{moment}: {said}");
            }
            is_finished(&site.host_own, &moment);
            let (status, said) = renew(&site.node, None, &[]);
            if status != 0 {
                // It was told why it got none, and asks again.
                assert!(said.contains("make room"), "{moment}: {said}");
                done(renew(&site.node, None, &[]), "Asked");
                let again = renew(&site.host, Some(&site.pki), &[]);
                done(again, "Signed for standby1");
                done(renew(&site.node, None, &[]), "Renewed");
            }
            is_finished(&site.own, &moment);
        }
        println!("{}: {full} failed, {whole} did not", place.display());
        assert!(full > 0 && whole > 0, "{full} failed, {whole} did not");
    }
    site.still_serves();
}

fn started(arguments: &[String]) -> Child {
    let mut command = Command::new(pgtlsproxy());
    command.args(arguments).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn two_runs_at_once_make_one_certificate() {
    let site = Site::new(None);
    let [beside, asking] = site.commands();
    let (host_dir, dir) = (
        site.host_own.cert.parent().unwrap(),
        site.own.cert.parent().unwrap(),
    );
    let at_once = |command: &[String]| {
        for child in [started(command), started(command)] {
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
        }
    };
    let made = |name: &str| {
        let ledger = fs::read_to_string(site.pki.dir().join("ledger.jsonl")).unwrap();
        let name = format!("\"name\":\"{name}\"");
        ledger.lines().filter(|line| line.contains(&name)).count()
    };
    let before = Saved::of(&[host_dir, site.pki.dir(), dir]);
    for round in 0..6 {
        before.restore();
        let moment = format!("in round {round}");
        let (one, other) = (made("db1"), made("standby1"));
        at_once(&asking);
        at_once(&beside);
        at_once(&asking);
        is_sound(&site.node, &[dir], &moment);
        is_sound(&site.host, &[host_dir], &moment);
        is_finished(&site.own, &moment);
        is_finished(&site.host_own, &moment);
        assert_eq!(
            (made("db1"), made("standby1")),
            (one + 1, other + 1),
            "{moment}"
        );
    }
    site.still_serves();
}
