//! A host as a person has it: a PostgreSQL, a directory for its proxy, a service manager that starts the proxy once it is
//! configured, and the commands that were typed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::files::{Scratch, reserve_port};
use crate::log::Log;
use crate::postgres::{Node, Stop};
use crate::process::{Process, as_postgres, mortal, run};
use crate::programs::{client_tool, pgtlsproxy, postgres_programs};
use crate::wait::{PATIENCE, wait_for};

/// One of two or more hosts on this machine. Everything that it runs ends on drop.
#[derive(Debug)]
pub struct Host {
    /// Its PostgreSQL.
    pub node: Node,
    /// What a person typed on it, without the arguments that only a machine with two hosts on it needs.
    pub typed: Vec<String>,
    name: String,
    programs: String,
    port: u16,
    service: Option<Process>,
    log: Log,
    dir: Scratch,
    /// A file with what is typed.
    typing: Option<PathBuf>,
    /// What an upgrade has left.
    old: Vec<Node>,
}

impl Host {
    /// With a cluster as a package leaves it: not started, and with nobody let in by `trust`.
    pub fn new(name: &str, major: u32) -> Self {
        let dir = Scratch::new(&format!("{name}-etc"));
        Self {
            node: cluster(name, major),
            typed: Vec::new(),
            name: name.to_owned(),
            programs: major.to_string(),
            port: reserve_port(),
            service: None,
            log: Log::new(name, dir.path().join("log")),
            dir,
            typing: None,
            old: Vec::new(),
        }
    }

    /// Its PostgreSQL's data are of version 18 now, by pg_upgrade, and are reached where the old ones were.
    pub fn pg_upgrade(&mut self) {
        let old_programs = self.bindir();
        self.upgrade(18);
        let (new, old) = (&self.node, self.old.last().unwrap());
        let (new_data, old_data) = (new.data(), old.data());
        // initdb of 18 makes checksums, which the old cluster has not.
        let mut checksums = as_postgres(&client_tool("pg_checksums"));
        run(checksums.args(["--disable", "-D"]).arg(&new_data)).unwrap();
        let mut upgrade = as_postgres(&client_tool("pg_upgrade"));
        upgrade
            .current_dir(new.socket_dir())
            .args(["--username", "postgres", "--old-bindir"])
            .arg(old_programs)
            .arg("--new-bindir")
            .arg(client_tool("postgres").parent().unwrap())
            .arg("--old-datadir")
            .arg(old_data)
            .arg("--new-datadir")
            .arg(new_data);
        run(&mut upgrade).unwrap();
    }

    /// Its PostgreSQL is another now, of a new major, empty, and reached where the old one was.
    pub fn upgrade(&mut self, major: u32) {
        let new = cluster(&self.name, major);
        let mut old = std::mem::replace(&mut self.node, new);
        if old.is_running() {
            old.stop(Stop::Fast);
        } else {
            let mut stop = old.program("pg_ctl");
            let _ = run(stop
                .args(["stop", "-w", "-m", "fast", "-D"])
                .arg(old.data()));
        }
        // A person keeps the port; here both have ports of their own.
        std::os::unix::fs::symlink(self.node.socket(), old.socket()).unwrap();
        self.programs = major.to_string();
        self.old.push(old);
    }

    /// Where its proxy's files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What others dial.
    pub fn public(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The directory of its PostgreSQL's programs.
    pub fn bindir(&self) -> PathBuf {
        postgres_programs(&self.programs)
    }

    /// The log of its proxy.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// `pgtlsproxy` with these words, on this host; `hidden` are for the machine, not for the person.
    pub fn command(&mut self, words: &[&str], hidden: &[&str]) -> Command {
        self.typed.push(format!("pgtlsproxy {}", words.join(" ")));
        let mut command = mortal(pgtlsproxy(), "KILL");
        command.args(words).args(hidden);
        command.arg("--dir").arg(self.dir());
        let tools = client_tool("psql").parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(tools).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all).unwrap());
        command
    }

    /// `pgtlsproxy setup primary` with these words.
    pub fn setup_primary(&mut self, words: &[&str]) -> Result<String, String> {
        let (data, public) = (self.data(), self.public());
        let words = [&["setup", "primary"], words].concat();
        let hidden = ["--pgdata", &data, "--public", &public, "--os-user", "root"];
        let input = self.input();
        said(self.command(&words, &hidden).stdin(input))
    }

    /// `pgtlsproxy setup standby` with these words.
    pub fn setup_standby(&mut self, words: &[&str]) -> Result<String, String> {
        let input = self.input();
        said(self.standby_command(words).stdin(input))
    }

    /// The same, to be started.
    pub fn standby_command(&mut self, words: &[&str]) -> Command {
        let words = [&["setup", "standby"], words].concat();
        self.with_cluster(&words, &[])
    }

    /// A command that is told which PostgreSQL is this host's.
    pub fn with_cluster(&mut self, words: &[&str], more: &[&str]) -> Command {
        let (data, bindir) = (self.data(), self.bindir());
        let bindir = bindir.display().to_string();
        let hidden = ["--pgdata", &data, "--bindir", &bindir, "--os-user", "root"];
        self.command(words, &[&hidden, more].concat())
    }

    /// `pgtlsproxy setup undo`.
    pub fn undo(&mut self) -> Result<String, String> {
        self.undo_with(&[])
    }

    /// The same, with these words.
    pub fn undo_with(&mut self, words: &[&str]) -> Result<String, String> {
        let words = [&["setup", "undo"], words].concat();
        said(self.command(&words, &[]).stdin(Stdio::null()))
    }

    /// What the timer of `pgtlsproxy renew` does on each host.
    pub fn renew(&self) -> Result<String, String> {
        let mut command = mortal(pgtlsproxy(), "KILL");
        command.args(["renew", "--config"]);
        said(command.arg(self.dir().join("pgtlsproxy.toml")))
    }

    /// What is typed when a password is asked for.
    pub fn password(&mut self, text: &str) {
        let path = self.dir.path().with_extension("typed");
        std::fs::write(&path, format!("{text}\n")).unwrap();
        self.typing = Some(path);
    }

    fn input(&self) -> Stdio {
        match &self.typing {
            Some(path) => std::fs::File::open(path).unwrap().into(),
            None => Stdio::null(),
        }
    }

    fn data(&self) -> String {
        self.node.data().display().to_string()
    }

    /// What a service manager does: once there is a configuration, the proxy runs.
    #[track_caller]
    pub fn serve(&mut self) {
        let config = self.dir().join("pgtlsproxy.toml");
        wait_for("a configuration to start by", PATIENCE, || {
            config.exists().then_some(())
        });
        let mut command = mortal(pgtlsproxy(), "KILL");
        command.args(["run", "--config"]).arg(config);
        self.service = Some(Process::start(&mut command, &self.log));
    }

    /// Stops the proxy.
    pub fn stop_serving(&mut self) {
        self.service = None;
    }

    /// `pgtlsproxy invite NAME`, up to its line, and the command that waits.
    #[track_caller]
    pub fn invite(&mut self, name: &str) -> (String, Child) {
        let control = self.dir().join("run/control.sock");
        wait_for("the proxy to be there", PATIENCE, || {
            control.exists().then_some(())
        });
        let mut command = self.command(&["invite", name], &["--san", "localhost"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        (line.trim().to_owned(), child)
    }

    /// `pgtlsproxy join` with this line, beside which the service manager starts the proxy.
    pub fn join(&mut self, token: &str, words: &[&str]) -> Result<String, String> {
        let listen = format!("127.0.0.1:{}", self.port);
        let words = [&["join", token], words].concat();
        let mut command = self.with_cluster(&words, &["--listen", &listen]);
        command.stdin(self.input());
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        self.serve();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then(|| said.clone()).ok_or(said)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn cluster(name: &str, major: u32) -> Node {
    let node = Node::builder(name).version(major).init();
    node.write(
        "pg_hba.conf",
        "local all postgres peer map=tests # keep\r\nlocal replication all reject\r\n",
    );
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap();
    node.write(
        "pg_ident.conf",
        &format!("tests {} postgres\ntests postgres postgres\n", user.name),
    );
    // What makes it this host's stands in its own file here, since its server is started by others, too.
    node.append_conf(&format!(
        "port = {}\nlisten_addresses = ''\nunix_socket_directories = '{}'\n",
        node.address().port(),
        node.socket_dir().display()
    ));
    node
}

/// What a command said, by how it ended.
pub fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    output.status.success().then(|| text.clone()).ok_or(text)
}
