//! PostgreSQL's own programs, run as the cluster's OS user, bounded in time and output: psql for what the server says,
//! `postgres -C` for what a stopped server would do.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid};

use crate::setup::bin_directories;

const MOST_OUTPUT: u64 = 4 * 1024 * 1024;

/// The OS user that a cluster belongs to.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) name: String,
    pub(super) home: PathBuf,
}

/// What a program said.
pub(super) struct Said {
    pub(super) ok: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A command that runs as `owner` where we are root, and as ourselves otherwise, in English and with nothing of our
/// environment that speaks to libpq.
pub(super) fn command(program: &Path, owner: &Owner) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env_clear()
        .env("LC_ALL", "C")
        .env("HOME", &owner.home);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    if Uid::effective().is_root() {
        command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
    }
    command
}

/// Runs it to its end, or kills it at the deadline. `input` must fit into a pipe (64 KiB).
pub(super) fn run(mut command: Command, input: &str, until: Instant) -> io::Result<Said> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why on its own.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {:.1} s", began.elapsed().as_secs_f32()),
            ));
        }
        thread::sleep(Duration::from_millis(3));
    };
    let text = |reader: Option<thread::JoinHandle<String>>| {
        reader
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default()
    };
    Ok(Said {
        ok: status.success(),
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

fn collect(pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.take(MOST_OUTPUT).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A program beside the server's own, or else the newest one that Debian or RHEL keep, or the PATH has.
pub(super) fn find(name: &str, beside: Option<&Path>) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = beside.map(Path::to_owned).into_iter().collect();
    places.extend(bin_directories());
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path));
    }
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|path| path.is_file())
}
