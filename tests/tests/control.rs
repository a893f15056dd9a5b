//! The control socket: for root and the daemon's own user, and no nonsense on it harms the daemon.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::Uid;
use testbed::enrolment::inviting_daemon;
use testbed::programs::pgtlsproxy;
use testbed::{Pki, Sidecar, StandIn, run};

fn daemon() -> (Sidecar, PathBuf) {
    let pki = Pki::new();
    let identity = pki.issue("db1");
    let daemon = inviting_daemon(&pki, &identity, &StandIn::new().upstream(), "");
    // It has read its files; what is loaded again here is its configuration alone.
    let config = daemon.config();
    let line = config
        .lines()
        .find(|line| line.starts_with("socket = "))
        .expect("a control socket");
    let socket = PathBuf::from(line.trim_start_matches("socket = ").trim_matches('"'));
    (daemon, socket)
}

fn list(daemon: &Sidecar) -> Command {
    let mut command = Command::new(pgtlsproxy());
    command
        .args(["invite", "--list", "--dir"])
        .arg(daemon.dir());
    command
}

#[test]
fn another_os_user_is_turned_away_whatever_the_mode() {
    let (daemon, socket) = daemon();
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    if !Uid::effective().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let as_postgres = || {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--init-groups",
        ]);
        command
            .arg(pgtlsproxy())
            .args(["invite", "--list", "--dir"])
            .arg(daemon.dir());
        run(&mut command)
    };
    let said = as_postgres().unwrap_err();
    assert!(said.contains("run this command as root"), "{said}");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    as_postgres().unwrap_err();
    daemon.wait_for_log("[E31]");
    run(&mut list(&daemon)).unwrap();
}

#[test]
fn nonsense_is_refused_in_words_and_harms_nobody() {
    let (mut daemon, socket) = daemon();
    for line in [
        "\n",
        "hello\n",
        "{\"version\":1}\n",
        "{\"version\":2,\"ask\":\"reload\"}\n",
        "[[[[[[\n",
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("E33"), "{line:?}: {answer:?}");
    }
    let mut endless = UnixStream::connect(&socket).unwrap();
    let piece = [b'x'; 64 * 1024];
    // Refused at its bound, long before this.
    let sent = (0..1_000)
        .take_while(|_| endless.write_all(&piece).is_ok())
        .count();
    assert!(sent < 200, "{sent} pieces were taken");
    drop(UnixStream::connect(&socket).unwrap());
    assert!(daemon.is_running());
    run(&mut list(&daemon)).unwrap();
}
