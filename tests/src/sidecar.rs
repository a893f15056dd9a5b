//! A running `pgtlsproxy`: started with the TOML that a test gives, on free ports that it tells in its log.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::files::Scratch;
use crate::log::Log;
use crate::process::{Process, mortal, run};
use crate::programs::pgtlsproxy;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A sidecar of a test. It is killed on drop.
#[derive(Debug)]
pub struct Sidecar {
    process: Process,
    addresses: Vec<String>,
    log: Log,
    dir: Scratch,
}

impl Sidecar {
    /// Starts `pgtlsproxy run` with this configuration and waits until every tunnel listens.
    #[track_caller]
    pub fn run(name: &str, config: &str) -> Self {
        let dir = Scratch::new(name);
        Self::start(name, dir, mortal(pgtlsproxy(), "KILL"), config)
    }

    /// As [`Sidecar::run`], with this in its environment, as systemd would start it.
    #[track_caller]
    pub fn run_with_env(name: &str, config: &str, env: &[(&str, &str)]) -> Self {
        let mut command = mortal(pgtlsproxy(), "KILL");
        command.envs(env.iter().copied());
        Self::start(name, Scratch::new(name), command, config)
    }

    /// As [`Sidecar::run`], inside a network namespace.
    #[track_caller]
    pub fn run_in(namespace: &str, name: &str, config: &str) -> Self {
        let dir = Scratch::new(name);
        let mut command = mortal("ip", "KILL");
        command.args(["netns", "exec", namespace]).arg(pgtlsproxy());
        Self::start(name, dir, command, config)
    }

    /// As [`Sidecar::run`], with the /proc of a service that has `ProcSubset=pid`; none where only root could.
    #[track_caller]
    pub fn run_as_a_service_sees_proc(name: &str, config: &str) -> Option<Self> {
        let within = |script: &str| {
            let script = format!("mount -t proc -o subset=pid none /proc && {script}");
            let mut command = mortal("unshare", "KILL");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
            command
        };
        run(&mut within("true")).ok()?;
        let mut command = within("exec \"$0\" \"$@\"");
        command.arg(pgtlsproxy());
        Some(Self::start(name, Scratch::new(name), command, config))
    }

    /// Starts `pgtlsproxy run` in a directory that has a configuration already, which gets a log to be read by field.
    #[track_caller]
    pub fn run_there(name: &str, dir: Scratch) -> Self {
        let config = fs::read_to_string(dir.path().join("pgtlsproxy.toml")).unwrap();
        Self::start(name, dir, mortal(pgtlsproxy(), "KILL"), &config)
    }

    /// As [`Sidecar::run`], on a port that the configuration names: for a log that is not JSON.
    #[track_caller]
    pub fn run_at(port: u16, name: &str, config: &str) -> Self {
        let mut command = mortal(pgtlsproxy(), "KILL");
        let dir = Scratch::new(name);
        let file = dir.path().join("pgtlsproxy.toml");
        fs::write(&file, config).unwrap();
        command.arg("run").arg("--config").arg(file);
        let mut sidecar = Self::spawn(name, dir, command, 0);
        sidecar.addresses = vec![format!("127.0.0.1:{port}")];
        let address = sidecar.address();
        wait_until("the port to be opened", || {
            TcpStream::connect(address).is_ok()
        });
        sidecar
    }

    #[track_caller]
    fn start(name: &str, dir: Scratch, mut command: Command, config: &str) -> Self {
        let file = dir.path().join("pgtlsproxy.toml");
        fs::write(&file, completed(config, dir.path())).unwrap();
        command.arg("run").arg("--config").arg(&file);
        let tunnels = config.matches("[[server]]").count() + config.matches("[[client]]").count();
        Self::spawn(name, dir, command, tunnels)
    }

    /// Starts `pgtlsproxy server` or `client` with these flags and waits until it listens.
    #[track_caller]
    pub fn with_flags(kind: &str, flags: &[&str]) -> Self {
        let mut command = mortal(pgtlsproxy(), "KILL");
        command.arg(kind).args(flags).args(["--log-format", "json"]);
        Self::spawn(kind, Scratch::new(kind), command, 1)
    }

    #[track_caller]
    fn spawn(name: &str, dir: Scratch, mut command: Command, tunnels: usize) -> Self {
        let log = Log::new(name, dir.path().join("log"));
        let process = Process::start(&mut command, &log);
        let mut sidecar = Self {
            process,
            addresses: Vec::new(),
            log,
            dir,
        };
        sidecar.addresses = wait_for(&format!("{name} to listen"), PATIENCE, || {
            let exit = sidecar.process.ended();
            assert!(
                exit.is_none(),
                "{name} ended at its start with {exit:?}:\n{}",
                sidecar.log.text()
            );
            let addresses = sidecar.listening();
            (addresses.len() >= tunnels).then_some(addresses)
        });
        sidecar
    }

    /// The addresses that the log says are listened on, in its order.
    fn listening(&self) -> Vec<String> {
        let listening = self
            .events()
            .into_iter()
            .filter(|event| event["message"] == "listening");
        listening
            .filter_map(|event| event["address"].as_str().map(str::to_owned))
            .collect()
    }

    /// Every event of the log, with its fields at the top.
    pub fn events(&self) -> Vec<Value> {
        let text = self.log.text();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .map(|mut event| {
                if event["fields"].is_object() {
                    event["fields"].take()
                } else {
                    event
                }
            })
            .collect()
    }

    /// Where the first of its tunnels that listens on TCP does.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        let mut parsed = self.addresses.iter().filter_map(|one| one.parse().ok());
        parsed
            .next()
            .unwrap_or_else(|| panic!("none of {:?} is a TCP address", self.addresses))
    }

    /// Where its tunnels listen, in the order of the log.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// A connection string for PostgreSQL's clients to its first tunnel.
    #[track_caller]
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres",
            self.address().port()
        )
    }

    /// Its log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a line of its log.
    #[track_caller]
    pub fn wait_for_log(&self, wanted: &str) -> String {
        self.log.wait_for(wanted)
    }

    /// What `pgtlsproxy status --json` says of it.
    #[track_caller]
    pub fn status(&self) -> Value {
        let mut status = Command::new(pgtlsproxy());
        status.args(["status", "--json", "--socket"]);
        let answer = run(status.arg(self.status_socket())).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// Its live sessions of one kind, as `status` tells them.
    #[track_caller]
    pub fn sessions(&self, kind: &str) -> Vec<Value> {
        let mut status = self.status();
        let Value::Array(mut sessions) = status["sessions"].take() else {
            panic!("no sessions in {status}");
        };
        sessions.retain(|session| session["kind"] == kind);
        sessions
    }

    /// Where it answers `status`.
    pub fn status_socket(&self) -> PathBuf {
        self.dir.path().join("status.sock")
    }

    /// Its own directory; the configuration file is `pgtlsproxy.toml` in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces its configuration file, which it notices by itself.
    pub fn rewrite(&self, config: &str) {
        let path = self.dir.path().join("pgtlsproxy.toml");
        let new = path.with_extension("new");
        fs::write(&new, completed(config, self.dir.path())).unwrap();
        fs::rename(new, path).unwrap(); // never half of it, whenever it looks
    }

    /// As [`Sidecar::rewrite`], and waits until it has taken the new configuration or refused it.
    #[track_caller]
    pub fn reconfigure(&self, config: &str) {
        let mark = self.log().mark();
        self.rewrite(config);
        self.reload();
        self.log().wait_for_after(mark, "\"reload");
    }

    /// Its configuration file as it is now.
    pub fn config(&self) -> String {
        fs::read_to_string(self.dir.path().join("pgtlsproxy.toml")).unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Tells it to read its files again, which it does when it comes to it.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Waits until it ends by itself and returns its exit status.
    #[track_caller]
    pub fn wait_for_exit(&mut self, patience: Duration) -> i32 {
        self.process.wait("the sidecar to end", patience)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw()
    }

    /// Its resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.proc_kib("status", "VmRSS:")
    }

    /// Its proportional share of memory in KiB.
    pub fn pss_kib(&self) -> u64 {
        self.proc_kib("smaps_rollup", "Pss:")
    }

    fn proc_kib(&self, file: &str, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The processor time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<_> = text
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }
}

/// Tests read the log by field, and ask for the status.
fn completed(config: &str, dir: &Path) -> String {
    let config = &with_records(config);
    let socket = dir.join("status.sock");
    let admin = format!("[admin]\nsocket = \"{}\"\n", socket.display());
    let config = &if config.contains("[admin]") {
        config.to_owned()
    } else {
        format!("{config}\n{admin}")
    };
    if config.contains("[log]") {
        return config.to_owned();
    }
    format!("{config}\n[log]\nformat = \"json\"\nlevel = \"debug\"\n")
}

/// The same tests over both forms of records: `PGTLSPROXY_TEST_RECORDS=rustls`.
fn with_records(config: &str) -> String {
    match std::env::var("PGTLSPROXY_TEST_RECORDS") {
        Ok(records) if !config.contains("[relay]") => {
            format!("{config}\n[relay]\nrecords = \"{records}\"\n")
        }
        _ => config.to_owned(),
    }
}
