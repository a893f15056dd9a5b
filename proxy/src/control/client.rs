//! A command's end of the control socket. It blocks: a command does one thing at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::escape::escape;
use serde::Serialize;

use super::line;
use super::message::{Ask, Asked, LONGEST_LINE, Reply, VERSION};
use crate::problem::Problem;

/// How long the daemon may take over anything but waiting for a node.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the running daemon.
pub(crate) struct Daemon {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Daemon {
    /// Connects and asks.
    pub(crate) fn ask(path: &Path, ask: Ask) -> Result<Self, Vec<Problem>> {
        let failed = |error: io::Error| vec![unreachable(path, &error)];
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut daemon = Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        };
        daemon.say(&Asked {
            version: VERSION,
            ask,
        })?;
        Ok(daemon)
    }

    /// What ends the waiting for the daemon's word, from another thread.
    pub(crate) fn hanging_up(&self) -> Result<impl FnOnce() + Send + 'static, Vec<Problem>> {
        let stream = self
            .stream
            .get_ref()
            .try_clone()
            .map_err(|error| vec![unreachable(&self.path, &error)])?;
        Ok(move || {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        })
    }

    /// From now on waits as long as it takes.
    pub(crate) fn wait_patiently(&self) -> Result<(), Vec<Problem>> {
        let set = self.stream.get_ref().set_read_timeout(None);
        set.map_err(|error| vec![unreachable(&self.path, &error)])
    }

    /// The daemon's next word; a refusal is an error.
    pub(crate) fn reply(&mut self) -> Result<Reply, Vec<Problem>> {
        let mut line = Vec::new();
        let most = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX);
        let read = (&mut self.stream).take(most).read_until(b'\n', &mut line);
        let reply = match read {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection",
            )),
            Ok(_) => serde_json::from_slice(&line).map_err(io::Error::other),
            Err(error) => Err(error),
        };
        match reply {
            Ok(Reply::Refused { problems }) => Err(problems
                .iter()
                .map(|refused| {
                    let what = format!("{} [{}]", escape(&refused.what), escape(&refused.id));
                    Problem::new("E34", what, escape(&refused.why), escape(&refused.way_out))
                })
                .collect()),
            Ok(reply) => Ok(reply),
            Err(error) => Err(vec![unreachable(&self.path, &error)]),
        }
    }

    /// A further word to the daemon.
    pub(crate) fn say(&mut self, word: &impl Serialize) -> Result<(), Vec<Problem>> {
        line(word)
            .and_then(|line| self.stream.get_mut().write_all(&line))
            .map_err(|error| vec![unreachable(&self.path, &error)])
    }
}

fn unreachable(path: &Path, error: &io::Error) -> Problem {
    let way_out = match error.kind() {
        io::ErrorKind::PermissionDenied => "run this command as root".to_owned(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start it: systemctl start pgtlsproxy".to_owned()
        }
        _ => "look at the daemon's log".to_owned(),
    };
    Problem::new(
        "E35",
        format!("the daemon does not answer on {}", path.display()),
        error.to_string(),
        way_out,
    )
}
