//! The base backup: PostgreSQL's own pg_basebackup, through this host's proxy, into a directory beside the place.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::find::Cluster;
use super::super::owner::{as_owner, output_of};
use super::super::ownership::{Spot, by_descriptor, clear_directory};
use super::super::version::{BackupSource, Major, V9_4, V10, basebackup_arguments};
use super::progress::{Progress, Shown};
use crate::problem::Problem;

/// Lines of pg_basebackup that are shown when it fails.
const LAST_LINES: usize = 6;
const LONGEST_LINE: usize = 4096;
/// How long a pg_basebackup of a run that was killed may take to end.
const ORPHAN_ENDS: Duration = Duration::from_secs(10);

/// What is copied, and where to.
pub(super) struct Backup<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) source: BackupSource<'a>,
    pub(super) application_name: &'a str,
    pub(super) passfile: Option<&'a Path>,
    pub(super) staging: &'a Path,
    /// `OLD=NEW` for tablespaces.
    pub(super) mappings: Vec<String>,
    /// Where WAL lies, if not inside.
    pub(super) wal: Option<PathBuf>,
}

/// The version of a program of PostgreSQL.
pub(super) fn version_of(program: &Path, cluster: &Cluster) -> Option<Major> {
    let said = output_of(as_owner(&cluster.owner, program).arg("--version")).ok()?;
    // `pg_basebackup (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
    said.split_once(')')?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

impl Backup<'_> {
    /// Copies. `tablespaces` are asked for when one of them is in the way.
    pub(super) fn run(
        &self,
        tablespaces: impl FnOnce() -> Option<Vec<(String, String)>>,
    ) -> Result<(), Problem> {
        let program = self.cluster.program("pg_basebackup");
        let failed = |why: String| {
            Problem::new(
                "V08",
                "the base backup failed",
                why,
                "what was there before is untouched; mend that, and run this again",
            )
        };
        let server = self.cluster.major;
        let version = version_of(&program, self.cluster).unwrap_or(server);
        if version < server {
            return Err(failed(format!(
                "{} is of PostgreSQL {version}, the primary of {server}",
                program.display()
            )));
        }
        let target = self.staging.to_string_lossy();
        let mut command = as_owner(&self.cluster.owner, &program);
        command
            .args(basebackup_arguments(version, server, self.source, &target))
            // pg_basebackup before 9.3 takes no connection string; libpq takes the name from here.
            .env("PGAPPNAME", self.application_name)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if version >= V9_4 {
            for mapping in &self.mappings {
                command.arg("-T").arg(mapping);
            }
            if let Some(wal) = &self.wal {
                // Renamed with pg_xlog itself (release notes of 10).
                let option = if version >= V10 {
                    "--waldir"
                } else {
                    "--xlogdir"
                };
                command.arg(option).arg(wal);
            }
        }
        if let Some(passfile) = self.passfile {
            command.env("PGPASSFILE", passfile);
        }
        let mut child = command
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", program.display())))?;
        let said = child.stderr.take().map(watch);
        let status = child.wait();
        let status = status.map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        let said = said.unwrap_or_default();
        if let Some(problem) = self.in_the_way(&said, tablespaces) {
            return Err(problem);
        }
        Err(failed(if said.is_empty() {
            format!("pg_basebackup ended with {status}")
        } else {
            said
        }))
    }
}

impl Backup<'_> {
    /// pg_basebackup looks at every directory before it copies, and names the first that it cannot have.
    fn in_the_way(
        &self,
        said: &str,
        tablespaces: impl FnOnce() -> Option<Vec<(String, String)>>,
    ) -> Option<Problem> {
        let (place, why) = refused_directory(said)?;
        let here = Path::new(place);
        if here.starts_with(self.staging) {
            return None;
        }
        if self.wal.as_deref() == Some(here) {
            return Some(Problem::new(
                "V20",
                format!("{place} cannot be the directory of the copy's WAL"),
                why,
                "give --waldir an empty directory of PostgreSQL's OS user, or one that can be made; nothing was changed",
            ));
        }
        let all = tablespaces().unwrap_or_default();
        let listed = match all.as_slice() {
            [] => "`\\db` in psql on the primary lists them all".to_owned(),
            all => {
                let all: Vec<_> = all
                    .iter()
                    .map(|(name, place)| format!("{name} at {place}"))
                    .collect();
                format!("the primary has these: {}", all.join(", "))
            }
        };
        Some(Problem::new(
            "V20",
            format!(
                "the primary has a tablespace whose place here would be {place}, and that cannot be had"
            ),
            format!("{why}; {listed}"),
            "give --tablespace-mapping OLD=NEW for each, OLD as the primary has it and NEW an empty directory of PostgreSQL's OS user or one that can be made; nothing was changed",
        ))
    }
}

/// The directory that pg_basebackup could not have, and why (its verify_dir_is_empty_or_create).
fn refused_directory(said: &str) -> Option<(&str, &str)> {
    if let Some((before, _)) = said.split_once("\" exists but is not empty") {
        return Some((before.rsplit_once('"')?.1, "it exists and is not empty"));
    }
    let (_, rest) = said.split_once("could not create directory \"")?;
    let (place, why) = rest.split_once("\": ")?;
    Some((place, why.split(';').next()?))
}

/// Shows progress until it ends; gives the last of what else it said.
fn watch(mut stderr: impl Read) -> String {
    let mut shown = Shown::begin();
    let mut last: VecDeque<String> = VecDeque::new();
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = match stderr.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in buffer.iter().take(read) {
            if !matches!(byte, b'\r' | b'\n') {
                if line.len() < LONGEST_LINE {
                    line.push(*byte);
                }
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            match Progress::parse(&text) {
                Some(progress) => shown.show(progress),
                None if text.is_empty() => {}
                None => {
                    last.push_back(text);
                    if last.len() > LAST_LINES {
                        last.pop_front();
                    }
                }
            }
        }
    }
    shown.end();
    let errors: Vec<&String> = last
        .iter()
        .filter(|line| line.contains("rror:") || line.contains("FATAL"))
        .collect();
    let lines = if errors.is_empty() {
        last.iter().collect()
    } else {
        errors
    };
    let lines: Vec<&str> = lines.into_iter().map(String::as_str).collect();
    lines.join("; ")
}

/// Ends the pg_basebackup of a run that was killed, and takes away what it left: it is of nobody's use. What is not one of
/// the directories that were `made` for it is not touched.
pub(super) fn clear(grown: &Path, made: &[(PathBuf, u64)]) -> Result<(), Problem> {
    let Some(place) = Spot::find(grown)?.filter(|place| !matches!(place.look(), Ok(None))) else {
        return Ok(());
    };
    let cannot = |error: io::Error| {
        Problem::new(
            "G05",
            format!("cannot clear {}", grown.display()),
            error.to_string(),
            "run setup as root, and again",
        )
    };
    let directory = place.open().map_err(cannot)?;
    let inode = directory.metadata().map_err(cannot)?.ino();
    let is_ours = made.iter().any(|made| *made == (grown.to_owned(), inode));
    if is_ours {
        end_orphans(grown);
    }
    let mut entries = fs::read_dir(by_descriptor(&directory)).map_err(cannot)?;
    if entries.next().is_none() {
        return Ok(());
    }
    if !is_ours {
        return Err(Problem::new(
            "V05",
            format!("{} is there, and is not of this setup", grown.display()),
            "the copy would grow there",
            "move it away, and run this again",
        ));
    }
    eprintln!(
        "taking away what an interrupted base backup left in {}",
        grown.display()
    );
    clear_directory(&directory).map_err(cannot)
}

/// Every pg_basebackup that has our directory on its command line: its second process, which receives WAL, outlives the
/// first for a moment, and would write into the next copy.
fn end_orphans(staging: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < ORPHAN_ENDS.saturating_mul(2) {
        let orphans = orphans(staging);
        if orphans.is_empty() {
            return;
        }
        let signal = if begun.elapsed() > ORPHAN_ENDS {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        for pid in orphans {
            let _ = kill(pid, signal);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn orphans(staging: &Path) -> Vec<Pid> {
    let staging = staging.as_os_str().as_encoded_bytes();
    let copies_there = |process: &Path| {
        let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
        read("comm").trim_ascii_end() == b"pg_basebackup"
            && read("cmdline")
                .split(|byte| *byte == 0)
                .any(|argument| argument == staging)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            copies_there(&entry.path()).then(|| Pid::from_raw(pid))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_read_from_pg_basebackup() {
        for (said, expected) in [
            (
                "pg_basebackup: error: directory \"/srv/ts\" exists but is not empty",
                Some(("/srv/ts", "it exists and is not empty")),
            ),
            (
                "pg_basebackup: could not create directory \"/srv/ts\": Permission denied; pg_basebackup: removing",
                Some(("/srv/ts", "Permission denied")),
            ),
            ("FATAL:  no pg_hba.conf entry", None),
        ] {
            assert_eq!(refused_directory(said), expected);
        }
    }
}
