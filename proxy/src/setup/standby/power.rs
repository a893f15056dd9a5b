//! Starts and stops the server, says why it does not start, and waits until it streams.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::super::find::Cluster;
use super::super::server::{Server, runs};
use super::super::switch::{Order, first_log, order};
use super::super::units;
use super::super::version::{V9_6, V10};
use crate::problem::Problem;

const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// A server that is told to start has its lock file by then.
const LAUNCH_TAKES: Duration = Duration::from_secs(10);
/// Lines of the server's log that are shown.
const LAST_LINES: usize = 4;

/// What the standby's own server says of the stream.
#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) lsn: String,
    /// Bytes received and not yet replayed.
    pub(super) behind: String,
}

pub(super) fn start(cluster: &Cluster) -> Result<(), Problem> {
    order(cluster, Order::Start).map_err(|why| not_started(cluster, why))?;
    let unit = cluster.debian.is_none().then(|| units::to_start(cluster));
    if let Some(unit) = unit.flatten()
        && units::starts_at_boot(&unit) == Some(false)
    {
        eprintln!("{unit} is not started at boot; if it shall be: systemctl enable {unit}");
    }
    Ok(())
}

pub(super) fn stop(cluster: &Cluster) -> Result<(), Problem> {
    order(cluster, Order::Stop).map_err(|why| {
        Problem::new(
            "V09",
            format!("{} does not stop", cluster.label),
            why,
            "stop it, and run this again",
        )
    })
}

/// The last lines of the log that we know of.
fn last_words(cluster: &Cluster) -> String {
    let path = match &cluster.debian {
        Some((version, name)) => PathBuf::from(format!(
            "/var/log/postgresql/postgresql-{version}-{name}.log"
        )),
        None => first_log(cluster),
    };
    let text = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(LAST_LINES).collect();
    let lines: Vec<String> = lines
        .into_iter()
        .rev()
        .map(|line| protocol::escape::escape(line.as_bytes()))
        .collect();
    format!("{}: {}", path.display(), lines.join("; "))
}

fn not_started(cluster: &Cluster, why: String) -> Problem {
    let why = if why.is_empty() {
        last_words(cluster)
    } else {
        format!("{why}; {}", last_words(cluster))
    };
    Problem::new(
        "V09",
        format!("{} does not start", cluster.label),
        why,
        "mend what its log says; then run this again",
    )
}

fn not_asked(cluster: &Cluster) -> Problem {
    Problem::new(
        "V22",
        format!(
            "{} runs, and cannot be asked whether it streams",
            cluster.label
        ),
        "it makes no Unix socket (unix_socket_directories is empty), and listens on no address of this host",
        "everything is written: the primary's pg_stat_replication tells whether it streams; set unix_socket_directories, restart it, and run this again",
    )
}

/// Waits until it streams that timeline; none if it does not within that time. The error is a server that has ended, or one
/// that cannot be asked.
pub(super) fn wait_for_stream(
    cluster: &Cluster,
    timeline: u32,
    within: Duration,
) -> Result<Option<Streaming>, Problem> {
    let begun = Instant::now();
    loop {
        match Server::of(cluster) {
            Some(server) => {
                if let Some(streaming) = streaming(cluster, &server, timeline) {
                    return Ok(Some(streaming));
                }
            }
            None if begun.elapsed() < LAUNCH_TAKES => {}
            None if runs(cluster) => return Err(not_asked(cluster)),
            None => return Err(not_started(cluster, String::new())),
        }
        if begun.elapsed() > within {
            return Ok(None);
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// Whether it streams now, and at least this timeline: one that has gone on alone after the point where the primary's history
/// parted from its own streams up to that point, again and again, and never follows.
pub(super) fn streaming(cluster: &Cluster, server: &Server, timeline: u32) -> Option<Streaming> {
    // pg_stat_wal_receiver is of 9.6; before, what was received is all there is to see.
    let sql = if cluster.major >= V10 {
        "SELECT pg_last_wal_replay_lsn(), greatest(pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn(), 0) \
         FROM pg_stat_wal_receiver WHERE status = 'streaming' AND pg_last_wal_receive_lsn() IS NOT NULL \
         AND received_tli >= "
    } else if cluster.major >= V9_6 {
        "SELECT pg_last_xlog_replay_location(), \
         greatest(pg_xlog_location_diff(pg_last_xlog_receive_location(), pg_last_xlog_replay_location()), 0) \
         FROM pg_stat_wal_receiver WHERE status = 'streaming' AND received_tli >= "
    } else {
        "SELECT pg_last_xlog_replay_location(), '?' WHERE pg_last_xlog_receive_location() IS NOT NULL AND 0 < "
    };
    let said = server.query(&format!("{sql}{timeline}")).ok()?;
    let (lsn, behind) = said.lines().next()?.split_once('\t')?;
    Some(Streaming {
        lsn: lsn.to_owned(),
        behind: behind.to_owned(),
    })
}
