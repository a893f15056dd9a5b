//! Bulk from a real primary: WAL and base backups, thrown away or kept in memory, then checked.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testbed::Node;

use super::super::{Account, Outcome};
use super::cluster::{client, finish, limited, primary};
use crate::cli::ReplicationWorkload;
use crate::contender::{Pki, Running};
use crate::host::busy_seconds;
use crate::measure::Measure;
use crate::problem::{Doing, Problem};

const GIB: f64 = (1_u64 << 30) as f64;
/// Of WAL, as initdb makes them.
const SEGMENT: u64 = 16 << 20;
/// A whole segment; others end in `.partial`.
const SEGMENT_NAME: usize = 24;
const DISCARD: &str = include_str!("discard.py");

/// A primary with data, and WAL held by a slot.
#[derive(Debug)]
pub(super) struct Transfer {
    primary: Node,
    start: String,
    end: String,
    backup_bytes: u64,
}

impl Transfer {
    /// Fills a primary; the WAL of the filling is what is carried away later.
    pub(super) fn prepare(pki: &Pki, mib: u32) -> Result<Self, Problem> {
        eprintln!("making a primary with {mib} MiB of data and WAL");
        let primary = primary("bulk", pki)?;
        let query = |sql: &str| {
            primary
                .try_query(sql)
                .doing(|| "the primary cannot be filled".to_owned())
        };
        query("create table filler (bytes bytea)")?;
        query("alter table filler alter column bytes set storage external")?;
        query("select pg_create_physical_replication_slot('kept', true)")?;
        let start = query("select restart_lsn from pg_replication_slots where slot_name = 'kept'")?;
        // Nothing on the way compresses; a row nearly fills a page, as wide tables do.
        query(&format!(
            "insert into filler select convert_to(repeat(md5(i::text), 240), 'UTF8') \
             from generate_series(1, {mib} * 128) i"
        ))?;
        query("select pg_switch_wal()")?;
        query("checkpoint")?;
        // What is still to be written to disk would slow the first cells.
        nix::unistd::sync();
        let end = query("select pg_walfile_name(pg_current_wal_lsn())")?;
        // The last whole segment: what is streamed ends on its border.
        let end = segment_start(&end).unwrap_or_else(|| start.clone());
        Ok(Self {
            primary,
            start,
            end,
            backup_bytes: 0,
        })
    }

    pub(super) fn primary(&self) -> &Node {
        &self.primary
    }

    pub(super) fn measure(
        &mut self,
        running: &Running,
        conninfo: &str,
        workload: ReplicationWorkload,
    ) -> Result<Outcome, Problem> {
        // The first one shows how large a backup is, and brings it into the page cache.
        if workload == ReplicationWorkload::Backup && self.backup_bytes == 0 {
            self.backup_bytes = self.size_of_backup()?;
        }
        let account = Account::open(running);
        let busy = busy_seconds();
        let (name, work) = match workload {
            ReplicationWorkload::Wal => ("WAL to a receiver that discards", self.wal(conninfo)?),
            ReplicationWorkload::Backup => ("base backup to /dev/null", self.backup(conninfo)?),
            ReplicationWorkload::Basebackup => ("pg_basebackup to memory", basebackup(conninfo)?),
            ReplicationWorkload::Receivewal | ReplicationWorkload::Pgbench => {
                ("pg_receivewal to memory", self.receivewal(conninfo)?)
            }
        };
        let busy = busy_seconds() - busy;
        let gib = work.bytes as f64 / GIB;
        let measures = [
            Measure::CpuPerGib,
            Measure::CpuPerGibServer,
            Measure::CpuPerGibClient,
        ];
        let mut measures = account.close(gib, 1.0, measures);
        measures.insert(Measure::MachineCpuPerGib, busy / gib);
        measures.insert(Measure::GibPerSecond, gib / work.time.as_secs_f64());
        if let Some(received) = work.received {
            self.check(workload, received.path())?;
        }
        Ok((name.to_owned(), measures))
    }

    fn wal(&self, conninfo: &str) -> Result<Work, Problem> {
        let mut receiver = limited("python3");
        receiver.args(["-c", DISCARD, conninfo, &self.start, &self.end]);
        let said = finish(&mut receiver, "the receiver that discards WAL")?;
        let mut numbers = said.split(' ');
        let bytes = numbers.next().and_then(|bytes| bytes.parse().ok());
        let seconds = numbers.next().and_then(|seconds| seconds.parse().ok());
        let (Some(bytes), Some(seconds)) = (bytes, seconds) else {
            return Err(Problem::new(format!("the receiver said: {said}")));
        };
        Ok(Work {
            bytes,
            time: Duration::from_secs_f64(seconds),
            received: None,
        })
    }

    fn backup(&self, conninfo: &str) -> Result<Work, Problem> {
        let begun = Instant::now();
        let mut backup = limited(client("pg_basebackup"));
        backup.args([
            "-X", "none", "-c", "fast", "-F", "tar", "-D", "-", "-d", conninfo,
        ]);
        let status = backup
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match status.doing(|| "pg_basebackup cannot be run".to_owned())? {
            status if status.success() => Ok(Work {
                bytes: self.backup_bytes,
                time: begun.elapsed(),
                received: None,
            }),
            status => Err(Problem::new(format!("pg_basebackup failed: {status}"))),
        }
    }

    fn size_of_backup(&self) -> Result<u64, Problem> {
        let mut counted = limited("sh");
        counted.args(["-c", "\"$0\" -X none -c fast -F tar -D - -d \"$1\" | wc -c"]);
        counted.arg(client("pg_basebackup"));
        counted.arg(self.primary.conninfo().replace(" dbname=postgres", ""));
        let said = finish(&mut counted, "pg_basebackup")?;
        said.parse().doing(|| format!("wc said {said}"))
    }

    /// A copy of the slot for each time: pg_receivewal moves the one that it uses.
    fn receivewal(&self, conninfo: &str) -> Result<Work, Problem> {
        let what = || "the slot cannot be copied".to_owned();
        let drop_copy = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                         where slot_name = 'copy'";
        self.primary.try_query(drop_copy).doing(what)?;
        self.primary
            .try_query("select pg_copy_physical_replication_slot('kept', 'copy')")
            .doing(what)?;
        let dir = memory_dir()?;
        let begun = Instant::now();
        let mut receiver = limited(client("pg_receivewal"));
        receiver.args([
            "--no-loop",
            "--no-sync",
            "--slot",
            "copy",
            "--endpos",
            &self.end,
        ]);
        receiver.args(["-d", conninfo, "-D"]).arg(dir.path());
        finish(&mut receiver, "pg_receivewal")?;
        let time = begun.elapsed();
        let whole = |name: &OsStr| name.len() == SEGMENT_NAME;
        let entries = fs::read_dir(dir.path()).into_iter().flatten().flatten();
        let segments = entries.filter(|entry| whole(&entry.file_name())).count();
        Ok(Work {
            bytes: segments as u64 * SEGMENT,
            time,
            received: Some(dir),
        })
    }

    /// What arrived is what the primary has.
    fn check(&self, workload: ReplicationWorkload, received: &Path) -> Result<(), Problem> {
        if workload == ReplicationWorkload::Basebackup {
            let mut verify = limited(client("pg_verifybackup"));
            return finish(verify.arg("-n").arg(received), "pg_verifybackup").map(drop);
        }
        let pg_wal = self.primary.data().join("pg_wal");
        let mut segments = 0;
        for entry in fs::read_dir(received).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.len() != SEGMENT_NAME {
                continue;
            }
            let (here, there) = (fs::read(entry.path()), fs::read(pg_wal.join(&name)));
            if !matches!((here, there), (Ok(here), Ok(there)) if here == there) {
                return Err(Problem::new(format!(
                    "{} is not the primary's",
                    name.display()
                )));
            }
            segments += 1;
        }
        match segments {
            0 => Err(Problem::new("pg_receivewal wrote no whole segment")),
            _ => Ok(()),
        }
    }
}

/// What was carried in which time.
struct Work {
    bytes: u64,
    time: Duration,
    received: Option<TempDir>,
}

fn basebackup(conninfo: &str) -> Result<Work, Problem> {
    let dir = memory_dir()?;
    let begun = Instant::now();
    let mut backup = limited(client("pg_basebackup"));
    backup.args([
        "-X",
        "none",
        "-c",
        "fast",
        "--no-sync",
        "-d",
        conninfo,
        "-D",
    ]);
    finish(backup.arg(dir.path()), "pg_basebackup")?;
    let time = begun.elapsed();
    Ok(Work {
        bytes: size_of(dir.path()),
        time,
        received: Some(dir),
    })
}

/// In memory, so that no disk is measured.
fn memory_dir() -> Result<TempDir, Problem> {
    tempfile::Builder::new()
        .prefix("pgtlsproxy-bench-")
        .tempdir_in("/dev/shm")
        .doing(|| "cannot make a directory in /dev/shm".to_owned())
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| {
        let path: PathBuf = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => size_of(&path),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        }
    });
    sizes.sum()
}

/// Where a segment of 16 MiB begins, from its file's name.
fn segment_start(file: &str) -> Option<String> {
    let high = u32::from_str_radix(file.get(8..16)?, 16).ok()?;
    let low = u32::from_str_radix(file.get(16..24)?, 16).ok()?;
    Some(format!("{high:X}/{:X}", low.checked_mul(16 << 20)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_begins_where_its_name_says() {
        let start = segment_start("000000010000000A00000003").unwrap();
        assert_eq!(start, "A/3000000");
        assert_eq!(segment_start("history"), None);
    }
}
