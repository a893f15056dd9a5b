//! `pgtlsproxy status`: asks the daemon through its status socket, and shows what it says.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::io::{self, IsTerminal, Read, Write, stdout};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::admin::{Look, STATUS, screen};
use crate::cli::StatusFlags;
use crate::config::admin_socket;
use crate::problem::Problem;
use crate::snapshot::Snapshot;

/// How long the daemon may take for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// An answer is no longer, whoever answers.
const LONGEST_ANSWER: u64 = 64 * 1024 * 1024;

pub(super) fn run(flags: &StatusFlags) -> Result<(), Vec<Problem>> {
    let socket = socket(flags)?;
    loop {
        let answer = ask(&socket).map_err(|error| vec![silent(&socket, &error)])?;
        let text = if flags.json {
            answer
        } else {
            let snapshot: Snapshot = serde_json::from_str(&answer).map_err(|error| {
                vec![Problem::new(
                    "O04",
                    format!("what answers on {} is not understood", socket.display()),
                    error.to_string(),
                    "ask with the pgtlsproxy of the version that runs, or with --json",
                )]
            })?;
            let terminal = stdout().is_terminal();
            let look = Look {
                colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
                rows: (flags.watch && terminal)
                    .then(terminal_size::terminal_size)
                    .flatten()
                    .map(|(_, height)| height.0.into()),
            };
            let text = screen(&snapshot, look);
            if flags.watch && terminal {
                // Home, each line cleared behind what is written, then all below: no flicker.
                format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
            } else {
                text
            }
        };
        print!("{text}");
        // Whoever read it has gone, as `head` does.
        if stdout().flush().is_err() || !flags.watch {
            return Ok(());
        }
        sleep(BETWEEN_LOOKS);
    }
}

fn socket(flags: &StatusFlags) -> Result<PathBuf, Vec<Problem>> {
    if let Some(socket) = &flags.socket {
        return Ok(socket.clone());
    }
    let config = &flags.config.config;
    match admin_socket(config) {
        Ok(Some(socket)) => Ok(socket),
        Ok(None) => Err(vec![Problem::new(
            "O02",
            format!("{} names no status socket", config.display()),
            "there is no `socket` under [admin]",
            "add: [admin] socket = \"/run/pgtlsproxy/status.sock\", and restart",
        )]),
        Err(problem) => Err(vec![problem]),
    }
}

fn ask(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{STATUS}\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

fn silent(socket: &Path, error: &io::Error) -> Problem {
    let way_out = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "is pgtlsproxy running, and is [admin] socket set? systemctl status pgtlsproxy"
        }
        io::ErrorKind::PermissionDenied => "ask as root, or as a member of the socket's group",
        _ => "try again; if it stays so, look at the daemon's log",
    };
    Problem::new(
        "O03",
        format!("the daemon does not answer on {}", socket.display()),
        error.to_string(),
        way_out,
    )
}
