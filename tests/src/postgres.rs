//! A PostgreSQL node, in the vocabulary of PostgreSQL's own `PostgreSQL::Test::Cluster`. Each node has its own
//! programs, so that majors can meet in one test. What makes a node itself (port, sockets) stands on its
//! command line, so that a backup or pg_rewind never carries it to another node.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::files::{Scratch, give_to_postgres, reserve_port};
use crate::log::Log;
use crate::pki::Identity;
use crate::process::{Process, as_postgres, run};
use crate::programs::{client_tool, postgres_programs};
use crate::wait::{PATIENCE, wait_for};

/// What every node of a test is configured with.
const SETTINGS: &str = "
fsync = off
shared_buffers = 16MB
max_connections = 60
wal_level = logical
wal_log_hints = on
max_wal_senders = 20
max_replication_slots = 20
hot_standby = on
wal_retrieve_retry_interval = '500ms'
log_line_prefix = '%m [%p] %e %a '
log_replication_commands = on
";

/// How a server is told to stop.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Ends sessions, writes a checkpoint, and waits until the standbys have it.
    Fast,
    /// As a crash.
    Immediate,
}

/// Says what a node shall be; see [`Node::builder`].
#[derive(Debug)]
pub struct NodeBuilder {
    name: String,
    programs: String,
}

impl NodeBuilder {
    /// The major version; 15 unless told.
    pub fn version(self, major: u32) -> Self {
        self.programs(&major.to_string())
    }

    /// One of the PostgreSQLs that `tests/fetch-postgres` knows by name.
    pub fn programs(mut self, name: &str) -> Self {
        name.clone_into(&mut self.programs);
        self
    }

    /// A new cluster, not started.
    pub fn init(self) -> Node {
        let node = self.node();
        let template = template(&node.programs);
        run(Command::new("cp").arg("-a").arg(template).arg(node.data())).unwrap();
        node
    }

    /// A copy of a running server, made by pg_basebackup over `conninfo`, not started.
    pub fn init_from_backup(self, conninfo: &str) -> Node {
        self.try_init_from_backup(conninfo).unwrap()
    }

    /// As [`NodeBuilder::init_from_backup`]; the error is what pg_basebackup said.
    pub fn try_init_from_backup(self, conninfo: &str) -> Result<Node, String> {
        let node = self.node();
        let mut backup = as_postgres(&client_tool("pg_basebackup"));
        backup
            .args(["-X", "stream", "-c", "fast", "-d", conninfo, "-D"])
            .arg(node.data());
        run(&mut backup)?;
        Ok(node)
    }

    fn node(self) -> Node {
        let programs = postgres_programs(&self.programs);
        let dir = Scratch::new(&self.name);
        Node {
            log: Log::new(&self.name, dir.path().join("log")),
            major: major(&programs),
            port: reserve_port(),
            name: self.name,
            process: None,
            programs,
            dir,
        }
    }
}

/// A PostgreSQL server of a test. It is stopped and removed on drop.
#[derive(Debug)]
pub struct Node {
    name: String,
    major: u32,
    port: u16,
    programs: PathBuf,
    process: Option<Process>,
    log: Log,
    dir: Scratch,
}

impl Node {
    /// Begins a node; its name is the `application_name` it takes as a standby, too.
    pub fn builder(name: &str) -> NodeBuilder {
        NodeBuilder {
            name: name.to_owned(),
            programs: "15".to_owned(),
        }
    }

    /// A running primary of version 15.
    pub fn primary() -> Self {
        Self::builder("primary").init().started()
    }

    /// A running standby: backup and stream over `conninfo`.
    pub fn standby(name: &str, conninfo: &str) -> Self {
        let node = Self::builder(name).init_from_backup(conninfo);
        node.set_standby(conninfo, None);
        node.started()
    }

    /// Starts it and gives it back.
    pub fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts the server and waits until it takes connections.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch();
        let pid_file = self.data().join("postmaster.pid");
        let log = self.log.clone();
        let process = self.process.as_mut().unwrap();
        wait_for(&format!("{} to start", self.name), PATIENCE, || {
            let exit = process.ended();
            assert!(exit.is_none(), "the server did not start:\n{}", log.text());
            let state = fs::read_to_string(&pid_file).ok()?;
            (state.lines().nth(7)?.trim() == "ready").then_some(())
        });
    }

    /// Starts the server and does not wait: it may never become ready.
    pub fn launch(&mut self) {
        assert!(!self.is_running(), "{} runs already", self.name);
        let mut server = as_postgres(&self.programs.join("postgres"));
        server.arg("-D").arg(self.data());
        server.args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            &format!("port={}", self.port),
        ]);
        server.arg("-c").arg(format!(
            "unix_socket_directories={}",
            self.socket_dir().display()
        ));
        // German where lc_messages is anything but C, and the programs have it: no locale need be installed for that.
        server.env("LC_ALL", "C").env("LANGUAGE", "de");
        self.process = Some(Process::start(&mut server, &self.log));
    }

    /// Stops the server and waits until it has ended.
    #[track_caller]
    pub fn stop(&mut self, how: Stop) {
        assert!(self.try_stop(how, PATIENCE), "{} does not stop", self.name);
    }

    /// Stops the server; false if it has not ended after `patience`.
    pub fn try_stop(&mut self, how: Stop, patience: Duration) -> bool {
        let process = self.process.as_mut().expect("the server runs");
        process.signal(match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        });
        let deadline = std::time::Instant::now() + patience;
        while process.ended().is_none() {
            if std::time::Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process = None;
        true
    }

    /// Stops and starts.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Makes a standby a primary and waits until it is one.
    #[track_caller]
    pub fn promote(&self) {
        let mut promote = as_postgres(&self.programs.join("pg_ctl"));
        run(promote.arg("promote").arg("-D").arg(self.data())).unwrap();
        self.poll_query_until("select pg_is_in_recovery()", "f");
    }

    /// Reads the configuration again.
    pub fn reload(&self) {
        self.query("select pg_reload_conf()");
    }

    /// Appends to postgresql.conf.
    pub fn append_conf(&self, text: &str) {
        self.append("postgresql.conf", text);
    }

    /// Puts lines before all others of pg_hba.conf.
    pub fn prepend_hba(&self, lines: &str) {
        let path = self.data().join("pg_hba.conf");
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{lines}\n{old}")).unwrap();
    }

    fn append(&self, file: &str, text: &str) {
        let path = self.data().join(file);
        let mut open = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        writeln!(open, "{text}").unwrap();
        give_to_postgres(&path);
    }

    /// Makes it a standby from the next start on (12 and later), whatever it is told to connect to.
    pub fn signal_standby(&self) {
        self.append("standby.signal", "");
    }

    /// Replaces a file in its data directory.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.data().join(file);
        fs::write(&path, text).unwrap();
        give_to_postgres(&path);
    }

    /// Makes it a standby that streams over `conninfo`, from the next start on.
    pub fn set_standby(&self, conninfo: &str, slot: Option<&str>) {
        let conninfo = format!("{conninfo} application_name={}", self.name).replace('\'', "''");
        let mut settings =
            format!("primary_conninfo = '{conninfo}'\nrecovery_target_timeline = 'latest'\n");
        if let Some(slot) = slot {
            settings.push_str(&format!("primary_slot_name = '{slot}'\n"));
        }
        if self.major < 12 {
            self.append("recovery.conf", &format!("standby_mode = 'on'\n{settings}"));
        } else {
            self.append("standby.signal", "");
            self.append_conf(&settings);
        }
    }

    /// Runs SQL and returns what it yields; columns are parted by `|`.
    #[track_caller]
    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// As [`Node::query`]; the error is what psql said.
    pub fn try_query(&self, sql: &str) -> Result<String, String> {
        psql(&self.conninfo(), sql)
    }

    /// Runs a query until it yields `expected`.
    #[track_caller]
    pub fn poll_query_until(&self, sql: &str, expected: &str) {
        let mut last = String::new();
        let what = format!("{} to answer {expected:?} to {sql}", self.name);
        let start = std::time::Instant::now();
        while last != expected {
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain: {what}; last answer: {last}"
            );
            last = self.try_query(sql).unwrap_or_else(|error| error);
        }
    }

    /// Where its WAL ends: written as a primary, replayed as a standby.
    pub fn lsn(&self) -> String {
        self.query("select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end")
    }

    /// Waits until it has replayed all that `source` has now.
    #[track_caller]
    pub fn catch_up_with(&self, source: &Self) {
        let lsn = source.lsn();
        self.poll_query_until(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"), "t");
    }

    /// Waits until a standby of that `application_name` streams from here.
    #[track_caller]
    pub fn wait_for_standby(&self, application_name: &str) {
        let sql = format!(
            "select count(*) from pg_stat_replication \
             where application_name = '{application_name}' and state = 'streaming'"
        );
        self.poll_query_until(&sql, "1");
    }

    /// The server's log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a line of the server's log.
    #[track_caller]
    pub fn wait_for_log(&self, wanted: &str) -> String {
        self.log.wait_for(wanted)
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Its TCP address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir().join(format!(".s.PGSQL.{}", self.port))
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Whether the test itself has started it, and it has not been stopped by the test.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }

    /// The process id of the server.
    pub fn pid(&self) -> i32 {
        self.process
            .as_ref()
            .expect("the server runs")
            .pid()
            .as_raw()
    }

    /// How to reach it without any proxy.
    pub fn conninfo(&self) -> String {
        let dir = self.socket_dir().display();
        format!(
            "host={dir} port={} user=postgres dbname=postgres",
            self.port
        )
    }

    /// A copy of this certificate and key that the server's user may read, beside the data directory.
    pub fn own_identity(&self, identity: &Identity) -> Identity {
        identity.copy_to(self.dir.path())
    }

    /// One of this PostgreSQL's own programs, run as the server's user.
    pub fn program(&self, name: &str) -> Command {
        as_postgres(&self.programs.join(name))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.try_stop(Stop::Immediate, Duration::from_secs(5));
        }
        if self.data().join("postmaster.pid").exists() {
            // Somebody else has started it.
            let mut stop = as_postgres(&self.programs.join("pg_ctl"));
            stop.args(["stop", "-m", "immediate", "-D"]);
            let _ = run(stop.arg(self.data()));
        }
    }
}

/// Runs SQL over a connection string and returns what it yields, or what psql said.
pub fn psql(conninfo: &str, sql: &str) -> Result<String, String> {
    psql_of(&client_tool("psql"), conninfo, sql)
}

/// As [`psql`], with a psql of one's choice.
pub fn psql_of(psql: &Path, conninfo: &str, sql: &str) -> Result<String, String> {
    run(Command::new(psql).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-c", sql]))
}

/// The major version of a directory of programs.
fn major(programs: &Path) -> u32 {
    let version = run(Command::new(programs.join("postgres")).arg("--version")).unwrap();
    let number = version.split_whitespace().nth(2).unwrap();
    number.split('.').next().unwrap().parse().unwrap()
}

/// A cluster made by initdb once per machine, to be copied: initdb takes most of a second.
fn template(programs: &Path) -> PathBuf {
    let version = run(Command::new(programs.join("postgres")).arg("--version")).unwrap();
    let name: String = format!("{version} {}", programs.display())
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let dir = std::env::temp_dir().join(format!(
        "pgtlsproxy-test-templates-{}",
        nix::unistd::Uid::effective()
    ));
    fs::create_dir_all(&dir).unwrap();
    give_to_postgres(&dir);
    let lock = File::create(dir.join("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .unwrap();

    let path = dir.join(name);
    if !path.exists() {
        let new = dir.join("new");
        let _ = fs::remove_dir_all(&new);
        let mut initdb = as_postgres(&programs.join("initdb"));
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "--no-locale",
            "-E",
            "UTF8",
            "-D",
        ]);
        run(initdb.arg(&new)).unwrap();
        let mut conf = File::options()
            .append(true)
            .open(new.join("postgresql.conf"))
            .unwrap();
        conf.write_all(SETTINGS.as_bytes()).unwrap();
        fs::rename(&new, &path).unwrap();
    }
    path
}
