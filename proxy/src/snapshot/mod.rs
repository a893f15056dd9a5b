//! What the process is and does at one moment, as one value that is written as JSON: for `status`, `doctor` and whoever
//! watches. Field names are stable; docs/observability.md tells each. Text from peers is escaped before it gets here.

mod facts;

use std::borrow::Cow;
use std::fmt;

use protocol::replication::Lsn;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use facts::{Facts, Kind, Moment, TunnelFacts, past, serial, session};

/// Everything, at one moment, as it is read. It is written in pieces, the sessions last: there may be thousands.
#[derive(Debug, Deserialize)]
pub(crate) struct Snapshot {
    #[serde(flatten)]
    pub(crate) overview: Overview,
    pub(crate) sessions: Vec<Session<'static>>,
}

/// All but the sessions.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Overview {
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// RFC 3339, as every time here.
    pub(crate) at: String,
    pub(crate) started: String,
    pub(crate) uptime_seconds: f64,
    /// Sessions that the process may have.
    pub(crate) limit: usize,
    pub(crate) tunnels: Vec<Tunnel>,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) last_reload: Option<Reload>,
    pub(crate) reloads_good: u64,
    pub(crate) reloads_refused: u64,
    pub(crate) warnings: Vec<Warning>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tunnel {
    pub(crate) name: String,
    /// `server` or `client`.
    pub(crate) side: String,
    pub(crate) listen: String,
    /// The PostgreSQL, or the targets.
    pub(crate) upstream: Vec<String>,
    pub(crate) sessions: usize,
    /// Connections that are over.
    pub(crate) ended: Vec<Ended>,
    /// The last replication session that is over, and the last connection that failed or was refused.
    pub(crate) last_stream: Option<Last>,
    pub(crate) last_failure: Option<Last>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) at: String,
    /// What its certificate says, or its address.
    pub(crate) who: String,
    pub(crate) peer: String,
    pub(crate) kind: Option<String>,
    pub(crate) end: String,
    pub(crate) cause: String,
    pub(crate) reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// How it ended: finished, refused, tls, ...
    pub(crate) end: String,
    /// The id of the problem, or `end` again.
    pub(crate) cause: String,
    pub(crate) connections: u64,
    /// How many of them did not get what they came for.
    #[serde(default)]
    pub(crate) failed: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Session<'a> {
    pub(crate) id: Option<String>,
    pub(crate) tunnel: Cow<'a, str>,
    /// `physical`, `logical`, `basebackup` or `ordinary`.
    pub(crate) kind: Cow<'a, str>,
    /// `streaming`, `basebackup` or `idle`; none for an ordinary session, which is not looked into.
    pub(crate) activity: Option<Cow<'a, str>>,
    /// Of the certificate at the other end of TLS.
    pub(crate) identity: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) fingerprint: Option<String>,
    pub(crate) user: String,
    pub(crate) database: Option<String>,
    pub(crate) application_name: Option<String>,
    pub(crate) peer: String,
    pub(crate) upstream: Option<String>,
    pub(crate) since: String,
    pub(crate) seconds: f64,
    pub(crate) bytes_to_upstream: u64,
    pub(crate) bytes_to_downstream: u64,
    pub(crate) rate_to_upstream: f64,
    pub(crate) rate_to_downstream: f64,
    pub(crate) backend_pid: Option<u32>,
    pub(crate) server_version: Option<String>,
    pub(crate) not_understood: Option<u64>,
    pub(crate) replication: Option<Replicating>,
    pub(crate) basebackup: Option<BaseBackup>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Replicating {
    pub(crate) slot: Option<String>,
    pub(crate) timeline: Option<u32>,
    pub(crate) start_lsn: Option<Position>,
    pub(crate) server_lsn: Option<Position>,
    pub(crate) sent_lsn: Option<Position>,
    pub(crate) written_lsn: Option<Position>,
    pub(crate) flushed_lsn: Option<Position>,
    pub(crate) applied_lsn: Option<Position>,
    pub(crate) write_lag: Lag,
    pub(crate) flush_lag: Lag,
    pub(crate) apply_lag: Lag,
    pub(crate) wal_bytes: u64,
    pub(crate) wal_messages: u64,
    pub(crate) keepalives: u64,
    pub(crate) replies: u64,
    pub(crate) feedbacks: u64,
    pub(crate) reply_requested: bool,
    pub(crate) wal_age_seconds: Option<f64>,
    pub(crate) keepalive_age_seconds: Option<f64>,
    pub(crate) reply_age_seconds: Option<f64>,
    pub(crate) transit_from_server_seconds: Option<f64>,
    pub(crate) transit_from_standby_seconds: Option<f64>,
}

/// A place in WAL, written as PostgreSQL shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position(pub(crate) Lsn);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let lsn = text.parse().map_err(|_| D::Error::custom("not an LSN"))?;
        Ok(Self(lsn))
    }
}

#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Lag {
    pub(crate) bytes: Option<u64>,
    pub(crate) seconds: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BaseBackup {
    pub(crate) bytes: u64,
    pub(crate) total_bytes: Option<u64>,
    pub(crate) done_bytes: Option<u64>,
    pub(crate) tablespaces: u32,
    pub(crate) archives: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Certificate {
    /// `own`, `ca`, `crl` or `peer`.
    pub(crate) of: String,
    pub(crate) name: String,
    pub(crate) serial: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) days_left: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reload {
    pub(crate) at: String,
    pub(crate) ok: bool,
    pub(crate) problems: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Warning {
    pub(crate) id: String,
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) way_out: String,
    pub(crate) since: Option<String>,
}

/// How streams flowed in the last minutes, but for the streams.
#[derive(Debug, Serialize)]
pub(crate) struct History {
    /// Between two samples.
    pub(crate) every_seconds: u64,
}

/// Samples of one stream, the newest last: bytes a second, and lags in seconds.
#[derive(Debug, Serialize)]
pub(crate) struct Past<'a> {
    pub(crate) tunnel: &'a str,
    pub(crate) id: Option<String>,
    pub(crate) rate: Vec<f32>,
    pub(crate) write: Vec<Option<f32>>,
    pub(crate) flush: Vec<Option<f32>>,
    pub(crate) apply: Vec<Option<f32>>,
}
