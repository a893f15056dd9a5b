//! A child process that ends when its owner is dropped.

use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::problem::Problem;

pub(super) struct Process {
    child: Child,
    end_with: Signal,
}

impl Process {
    /// Starts `command`; `end_with` is the signal that asks it to end.
    pub(super) fn start(mut command: Command, end_with: Signal) -> Result<Self, Problem> {
        let child = command
            .spawn()
            .map_err(|error| cannot_run(command.get_program().as_ref(), &error.to_string()))?;
        Ok(Self { child, end_with })
    }

    /// The same with its standard error, which the caller must read.
    pub(super) fn start_piped(
        mut command: Command,
        end_with: Signal,
    ) -> Result<(Self, ChildStderr), Problem> {
        let program = command.get_program().to_owned();
        command.stderr(Stdio::piped());
        let mut process = Self::start(command, end_with)?;
        match process.child.stderr.take() {
            Some(stderr) => Ok((process, stderr)),
            None => Err(cannot_run(program.as_ref(), "its log cannot be read")),
        }
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits; kills it when it does not.
    pub(super) fn end(&mut self, patience: Duration) {
        if self.has_ended() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), self.end_with);
        }
        let deadline = Instant::now() + patience;
        while !self.has_ended() {
            if Instant::now() > deadline {
                self.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Duration::from_secs(10));
    }
}

/// Runs a command to its end and gives its standard output.
pub(super) fn output_of(mut command: Command) -> Result<String, Problem> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .map_err(|error| cannot_run(program.as_ref(), &error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(cannot_run(
            program.as_ref(),
            String::from_utf8_lossy(&output.stderr).trim(),
        ))
    }
}

fn cannot_run(program: &Path, why: &str) -> Problem {
    Problem::new(
        "C24",
        format!("{} failed", program.display()),
        why,
        "look at what it says; is PostgreSQL's server installed (Debian: apt install postgresql)?",
    )
}
