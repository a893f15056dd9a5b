//! A running server, asked and told through its own psql, as the OS user who owns the data directory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::kill;
use nix::unistd::{Pid, Uid, User};

use super::find::Cluster;
use super::ownership::open_output_of;
use super::units;
use crate::problem::Problem;

/// psql waits no longer for a server that does not answer.
const CONNECT_SECONDS: &str = "10";

/// A command that runs as the server's OS user, if we may become him.
pub(crate) fn as_owner(owner: &User, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if Uid::effective().is_root() && !owner.uid.is_root() {
        command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
    }
    command
}

/// Runs it to its end; the error is what it said.
pub(crate) fn output_of(command: &mut Command) -> Result<String, String> {
    finished(command.output())
}

/// As [`output_of`], with this on its standard input.
pub(super) fn output_with(command: &mut Command, input: &str) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(said)?;
    // Statements are short: they fit into the pipe, and nothing waits here for psql to read.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(said)?;
    }
    finished(child.wait_with_output())
}

fn finished(output: std::io::Result<Output>) -> Result<String, String> {
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// A server that takes connections.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    psql: PathBuf,
    owner: User,
    socket_directory: PathBuf,
    port: String,
}

impl Server {
    /// The server of this cluster, if it runs: by its `postmaster.pid` (documentation, 66.1).
    pub(crate) fn of(cluster: &Cluster) -> Option<Self> {
        let state = fs::read_to_string(cluster.data.join("postmaster.pid")).ok()?;
        let mut lines = state.lines();
        let pid = Pid::from_raw(lines.next()?.trim().parse().ok()?);
        kill(pid, None).ok()?;
        let port = lines.nth(2)?.trim().to_owned();
        let socket_directory = lines
            .next()
            .map(str::trim)
            .filter(|path| !path.is_empty())?;
        Some(Self {
            psql: cluster.program("psql"),
            owner: cluster.owner.clone(),
            socket_directory: socket_directory.into(),
            port,
        })
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_directory
            .join(format!(".s.PGSQL.{}", self.port))
    }

    /// Runs SQL as the superuser of the OS user's name; a row a line, columns parted by tabs.
    pub(crate) fn query(&self, sql: &str) -> Result<String, Problem> {
        let mut psql = as_owner(&self.owner, &self.psql);
        psql.args([
            "-XAtqw",
            "-F",
            "\t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "postgres",
            "-p",
            &self.port,
            "-h",
        ])
        .arg(&self.socket_directory)
        .args(["-U", &self.owner.name, "-f", "-"])
        .env("PGCONNECT_TIMEOUT", CONNECT_SECONDS);
        // On standard input: a command line can be seen by everybody on the host.
        output_with(&mut psql, sql).map_err(|why| {
            Problem::new(
                "G06",
                "the server cannot be asked",
                why,
                format!(
                    "`psql -h {} -p {}` as OS user {} must get in as a superuser",
                    self.socket_directory.display(),
                    self.port,
                    self.owner.name
                ),
            )
        })
    }
}

/// An SQL string.
pub(crate) fn literal(text: &str) -> String {
    // With an escape string a backslash means the same whatever standard_conforming_strings says.
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    if text.contains('\\') {
        format!(" E'{escaped}'")
    } else {
        format!("'{escaped}'")
    }
}

/// An SQL name.
pub(crate) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Stops the server and starts it again, the way it was started.
pub(crate) fn restart(cluster: &Cluster) -> Result<(), Problem> {
    let failed = |why: String| {
        Problem::new(
            "G18",
            format!("{} does not restart", cluster.label),
            why,
            "look at the last lines of the server's log",
        )
    };
    let manager = match (&cluster.debian, units::to_stop(cluster)) {
        (Some((version, name)), _) => Some((
            "pg_ctlcluster",
            vec![version.clone(), name.clone(), "restart".to_owned()],
        )),
        // Behind its back systemd would take the server for a failed one.
        (None, Some(unit)) => Some(("systemctl", vec!["restart".to_owned(), unit])),
        (None, None) => None,
    };
    if let Some((program, arguments)) = manager {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        return output_of(&mut command).map(drop).map_err(failed);
    }
    // The server inherits its log from pg_ctl. The file may belong to somebody else than the server: it is opened here.
    let said = |error: std::io::Error| failed(format!("its log cannot be opened: {error}"));
    let output = match output_file(cluster).map_err(said)? {
        Some(log) => log,
        None => File::options()
            .append(true)
            .open("/dev/null")
            .map_err(said)?,
    };
    let errors = output.try_clone().map_err(said)?;
    let mut command = as_owner(&cluster.owner, &cluster.program("pg_ctl"));
    command
        .args(["restart", "-w", "-s", "-m", "fast", "-D"])
        .arg(&cluster.data);
    match command.stdout(output).stderr(errors).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("pg_ctl: {status}"))),
        Err(error) => Err(failed(format!("pg_ctl: {error}"))),
    }
}

/// The file that it writes its standard error to, so that its log goes on there.
fn output_file(cluster: &Cluster) -> std::io::Result<Option<File>> {
    match units::proc_file(&cluster.data, "") {
        Some(process) => open_output_of(&process, 2),
        None => Ok(None),
    }
}
