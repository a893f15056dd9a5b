//! A sidecar of the demo: this very program, started as a user would start it, its JSON log read for what it tells.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::PATIENCE;
use super::account::Account;
use super::process::Process;
use super::server::Server;
use crate::problem::Problem;

/// This program by a path that works for the unprivileged user even where the file's own directory does not.
const OWN_PROGRAM: &str = "/proc/self/exe";
const SOCKET_PORT: u16 = 5442;

pub(super) struct Sidecar {
    process: Process,
    log: Receiver<Value>,
    address: String,
    directory: PathBuf,
}

impl Sidecar {
    /// Beside the primary: TLS in, the primary's Unix socket out.
    pub(super) fn server(
        account: &Account,
        root: &Path,
        primary: &Server,
        listen: Option<&str>,
    ) -> Result<Self, Problem> {
        let socket = primary.socket().display().to_string();
        let arguments = [
            "server",
            "--listen",
            listen.unwrap_or("127.0.0.1:0"),
            "--postgres",
            &socket,
            "--allow",
            "dns:standby1.example.com",
        ];
        Self::start(account, root, "db1", &arguments)
    }

    /// Beside the standby: a Unix socket in, TLS out.
    pub(super) fn client(account: &Account, root: &Path, connect: &str) -> Result<Self, Problem> {
        let directory = root.display().to_string();
        let arguments = [
            "client",
            "--listen",
            &directory,
            "--connect",
            connect,
            "--server-name",
            "db1.example.com",
        ];
        Self::start(account, root, "standby1", &arguments)
    }

    fn start(
        account: &Account,
        root: &Path,
        node: &str,
        arguments: &[&str],
    ) -> Result<Self, Problem> {
        let pki = |file: String| root.join("pki").join(file);
        let mut command = account.command(OWN_PROGRAM, root);
        command
            .args(arguments)
            .args(["--log-format", "json", "--log-level", "debug"])
            .arg("--cert")
            .arg(pki(format!("{node}.crt")))
            .arg("--key")
            .arg(pki(format!("{node}.key")))
            .arg("--ca")
            .arg(pki("ca.crt".to_owned()))
            .arg("--crl")
            .arg(pki("ca.crl".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (mut process, stderr) = Process::start_piped(command, Signal::SIGTERM)?;
        let (sender, log) = channel();
        let mut refused = Vec::new();
        // Reads to the end, so that the sidecar never waits for its log.
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    continue;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            match log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line["message"] == "listening" => {
                    break line["address"].as_str().unwrap_or_default().to_owned();
                }
                Ok(Value::String(line)) => refused.push(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    process.kill();
                    return Err(Problem::new(
                        "C26",
                        "a sidecar does not start",
                        refused.join("\n"),
                        "look at what it says above",
                    ));
                }
            }
        };
        Ok(Self {
            process,
            log,
            address,
            directory: root.to_owned(),
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn socket_directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn socket_port(&self) -> u16 {
        SOCKET_PORT
    }

    /// The next log line with this message.
    pub(super) fn wait_for(&self, message: &str, patience: Duration) -> Option<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let line = self
                .log
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok()?;
            if line["message"] == message {
                return Some(line);
            }
        }
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }
}
