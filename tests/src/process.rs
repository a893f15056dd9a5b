//! Programs that must not outlive the test, and programs that are run to their end.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::files::postgres_user;
use crate::log::Log;
use crate::wait::wait_for;

/// A command that gets `signal` when the thread that started it ends, even by SIGKILL.
pub(crate) fn mortal(program: impl AsRef<OsStr>, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// As `mortal`, run as the user `postgres` where we are root.
pub fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if postgres_user().is_some() {
        command.args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--init-groups",
        ]);
    }
    command.arg(program).current_dir("/");
    command
}

/// Runs a command to its end and returns what it wrote to stdout, or all it said when it failed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    ))
}

/// A program that runs beside the test and is killed on drop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: Log,
}

impl Process {
    /// Starts it; both of its outputs are appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Log) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log.path())
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            child,
            log: log.clone(),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The exit status, if it has ended: the code, or 128 and the signal.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.try_wait().unwrap()?;
        Some(
            status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        )
    }

    /// Waits until it ends by itself and returns its exit status.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, patience: Duration) -> i32 {
        wait_for(what, patience, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.log.show(60);
        }
    }
}
