//! `pgtlsproxy invite` and `join` as a person runs them: one waits, the other is given its line.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::files::Scratch;
use crate::log::Log;
use crate::pki::{Identity, Pki};
use crate::process::{Process, mortal};
use crate::programs::pgtlsproxy;
use crate::sidecar::Sidecar;
use crate::tunnel::server_config;
use crate::wait::PATIENCE;

/// A daemon beside the CA, with a control socket and a place for CRLs.
pub fn inviting_daemon(pki: &Pki, identity: &Identity, upstream: &str, more: &str) -> Sidecar {
    inviting_daemon_at(0, pki, identity, upstream, more)
}

/// As [`inviting_daemon`], on this port.
pub fn inviting_daemon_at(
    port: u16,
    pki: &Pki,
    identity: &Identity,
    upstream: &str,
    more: &str,
) -> Sidecar {
    let scratch = Scratch::new("state");
    let with_crl = identity.toml_with_crl(&pki.crl());
    let config = server_config(identity, upstream, more)
        .replace(&identity.toml(), &with_crl)
        .replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    let dir = scratch.path().display();
    let config = format!(
        "{config}\n[control]\nsocket = \"{dir}/control.sock\"\n[node]\nstate = \"{dir}\"\n"
    );
    let sidecar = Sidecar::run("inviting", &config);
    // It lies below the directory of temporary files, which the machine empties; the daemon outlives this call.
    std::mem::forget(scratch);
    sidecar
}

/// A running `pgtlsproxy invite`. It is killed on drop.
#[derive(Debug)]
pub struct Inviting {
    process: Process,
    log: Log,
    _dir: Scratch,
}

impl Inviting {
    /// Starts it beside this daemon and CA; the endpoint in its token is the daemon's own.
    #[track_caller]
    pub fn start(daemon: &Sidecar, pki: &Pki, name: &str, more: &[&str]) -> Self {
        let public = daemon.address().to_string();
        let mut arguments = vec![name, "--public", &public];
        arguments.extend(more);
        Self::with(daemon, pki, &arguments)
    }

    /// As [`Inviting::start`], with these arguments.
    pub fn with(daemon: &Sidecar, pki: &Pki, arguments: &[&str]) -> Self {
        let dir = Scratch::new("invite");
        let log = Log::new("invite", dir.path().join("log"));
        let mut command = mortal(pgtlsproxy(), "KILL");
        command.arg("invite").args(arguments);
        command
            .arg("--dir")
            .arg(daemon.dir())
            .arg("--pki")
            .arg(pki.dir());
        let process = Process::start(&mut command, &log);
        Self {
            process,
            log,
            _dir: dir,
        }
    }

    /// The line for the new node, once it is printed.
    #[track_caller]
    pub fn token(&mut self) -> String {
        let token = crate::wait::wait_for("invite to print a token", PATIENCE, || {
            let ended = self.process.ended();
            let text = self.log.text();
            let token = text.lines().find(|line| line.starts_with("pgtlsproxy1-"));
            assert!(token.is_some() || ended.is_none(), "invite ended:\n{text}");
            token.map(str::to_owned)
        });
        self.log.wait_for("Waiting for");
        token
    }

    /// As Ctrl-C does.
    pub fn interrupt(&self) {
        self.process.signal(Signal::SIGINT);
    }

    /// Its words.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits until it ends by itself; its exit status and all it said.
    #[track_caller]
    pub fn end(&mut self) -> (i32, String) {
        let status = self.process.wait("invite to end", PATIENCE);
        (status, self.log.text())
    }
}

/// Runs `pgtlsproxy join -` with this token on its standard input; what it says, by how it ends.
pub fn join(dir: &Path, token: &str, more: &[&str]) -> Result<String, String> {
    // No umask may make a key readable.
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 0; exec \"$0\" \"$@\""])
        .arg(pgtlsproxy())
        .args([
            "join",
            "-",
            "--no-setup",
            "--listen",
            "127.0.0.1:0",
            "--dir",
        ])
        .arg(dir)
        .args(more);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{token}").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}
