//! A PostgreSQL server of the demo: a primary made by initdb, or a standby made by pg_basebackup through the sidecars.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::account::Account;
use super::process::{Process, output_of};
use super::sidecar::Sidecar;
use super::{PATIENCE, say};
use crate::problem::Problem;
use crate::setup::bin_directories;

/// Only part of the sockets' names: nothing listens on TCP.
const PRIMARY_PORT: u16 = 5432;
const STANDBY_PORT: u16 = 5433;
const SHUTDOWN: Duration = Duration::from_secs(20);

/// PostgreSQL's programs.
pub(super) struct Programs(PathBuf);

impl Programs {
    /// In `given`, on the PATH, or where Debian and RHEL put them; the newest.
    pub(super) fn find(given: Option<&Path>) -> Result<Self, Problem> {
        let complete = |directory: &PathBuf| {
            ["initdb", "postgres", "pg_basebackup", "psql"]
                .iter()
                .all(|program| directory.join(program).is_file())
        };
        let mut places: Vec<PathBuf> = match given {
            Some(directory) => vec![directory.to_owned()],
            None => std::env::var_os("PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
        };
        if given.is_none() {
            places.extend(bin_directories());
        }
        places.into_iter().find(complete).map(Self).ok_or_else(|| {
            Problem::new(
                "C25",
                "PostgreSQL's programs are not found",
                "initdb, postgres, pg_basebackup and psql must lie in one directory",
                "install them (Debian: apt install postgresql), or name the directory with --bindir",
            )
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0
    }

    pub(super) fn version(&self) -> Result<String, Problem> {
        let mut command = Command::new(self.0.join("postgres"));
        command.arg("--version");
        Ok(output_of(command)?
            .split_whitespace()
            .nth(2)
            .unwrap_or("?")
            .to_owned())
    }
}

/// A running server; ended by a fast shutdown on drop.
pub(super) struct Server {
    process: Process,
    account: Account,
    psql: PathBuf,
    directory: PathBuf,
    port: u16,
    log: PathBuf,
}

impl Server {
    /// A primary with a role for replication, and rows.
    pub(super) fn primary(
        programs: &Programs,
        account: &Account,
        root: &Path,
    ) -> Result<Self, Problem> {
        let data = root.join("primary");
        let mut initdb = account.command(programs.0.join("initdb"), root);
        initdb
            .args([
                "--no-sync",
                "--auth=peer",
                "--encoding=UTF8",
                "--locale=C",
                "--username",
            ])
            .arg(account.name())
            .arg("--pgdata")
            .arg(&data);
        output_of(initdb)?;
        // What `setup` will write: the certificate is the credential, and the sidecar's OS user stands for it.
        append(
            &data.join("pg_ident.conf"),
            &format!("pgtlsproxy {} replicator\n", account.name()),
        )?;
        prepend(
            &data.join("pg_hba.conf"),
            "local replication replicator peer map=pgtlsproxy\n",
        )?;
        let server = Self::start(programs, account, root, &data, PRIMARY_PORT)?;
        server.query("CREATE ROLE replicator LOGIN REPLICATION")?;
        server.query("CREATE TABLE measurements(taken timestamptz, value float8)")?;
        server.query(
            "INSERT INTO measurements SELECT now(), random() FROM generate_series(1, 10000)",
        )?;
        Ok(server)
    }

    /// A standby whose data and stream come through `sidecar`.
    pub(super) fn standby(
        programs: &Programs,
        account: &Account,
        root: &Path,
        sidecar: &Sidecar,
    ) -> Result<Self, Problem> {
        let data = root.join("standby");
        let conninfo = format!(
            "host={} port={} user=replicator application_name=standby1",
            sidecar.socket_directory().display(),
            sidecar.socket_port(),
        );
        let mut backup = account.command(programs.0.join("pg_basebackup"), root);
        backup
            .args([
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",
            ])
            .args(["--create-slot", "--slot=standby1", "--dbname"])
            .arg(&conninfo)
            .arg("--pgdata")
            .arg(&data);
        output_of(backup)?;
        say(&format!("standby: primary_conninfo = '{conninfo}'"));
        Self::start(programs, account, root, &data, STANDBY_PORT)
    }

    fn start(
        programs: &Programs,
        account: &Account,
        root: &Path,
        data: &Path,
        port: u16,
    ) -> Result<Self, Problem> {
        let log = data.with_extension("log");
        let output = File::create(&log).map_err(|error| file_problem(&log, &error))?;
        let errors = output
            .try_clone()
            .map_err(|error| file_problem(&log, &error))?;
        let mut command = account.command(programs.0.join("postgres"), root);
        command
            .arg("-D")
            .arg(data)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "wal_retrieve_retry_interval=1s",
            ])
            .arg("-c")
            .arg(format!("port={port}"))
            .arg("-c")
            .arg(format!("unix_socket_directories={}", root.display()))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        // SIGINT is PostgreSQL's fast shutdown.
        let process = Process::start(command, Signal::SIGINT)?;
        let mut server = Self {
            process,
            account: account.clone(),
            psql: programs.0.join("psql"),
            directory: root.to_owned(),
            port,
            log,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<(), Problem> {
        let deadline = Instant::now() + PATIENCE;
        while self.query("SELECT 1").is_err() {
            if self.process.has_ended() || Instant::now() > deadline {
                return Err(Problem::new(
                    "S02",
                    "PostgreSQL does not start",
                    self.log_tail(),
                    "look at its last log lines above",
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// One value by SQL, over the socket.
    pub(super) fn query(&self, sql: &str) -> Result<String, Problem> {
        let mut command = self.account.command(&self.psql, &self.directory);
        command
            .args([
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--quiet",
                "--set=ON_ERROR_STOP=1",
            ])
            .arg("--host")
            .arg(&self.directory)
            .args([
                "--port",
                &self.port.to_string(),
                "--dbname=postgres",
                "--username",
            ])
            .arg(self.account.name())
            .args(["--command", sql]);
        output_of(command)
    }

    /// The Unix socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(format!(".s.PGSQL.{}", self.port))
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines
            .get(lines.len().saturating_sub(12)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// A fast shutdown.
    pub(super) fn stop(mut self) {
        self.process.end(SHUTDOWN);
    }
}

fn append(path: &Path, text: &str) -> Result<(), Problem> {
    OpenOptions::new()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| file_problem(path, &error))
}

fn prepend(path: &Path, text: &str) -> Result<(), Problem> {
    fs::read_to_string(path)
        .and_then(|rest| fs::write(path, format!("{text}{rest}")))
        .map_err(|error| file_problem(path, &error))
}

fn file_problem(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(
        "C22",
        format!("{} cannot be written", path.display()),
        error.to_string(),
        "make room in /tmp",
    )
}
