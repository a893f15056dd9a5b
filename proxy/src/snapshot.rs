//! What the process is and does at one moment, as one value that is written as JSON: for `status`, `doctor` and whoever
//! watches. Field names are stable; docs/observability.md tells each. Text from peers is escaped before it gets here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use protocol::escape::escape;
use protocol::identity::Identity;
use protocol::lag::Confirmed;
use protocol::replication::{Clock, Lsn};
use protocol::startup::Replication;
use protocol::watch::{Activity, Stream, Watch};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::health::{self, Health, Of, Validity};
use crate::problem::Problem;
use crate::session::{Gone, Lately, Live, Registry, Settings, TRACED_EVERY_SECONDS, Tally, now};

/// Everything, at one moment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// RFC 3339, as every time here.
    pub(crate) at: String,
    pub(crate) started: String,
    pub(crate) uptime_seconds: f64,
    /// Sessions that the process may have.
    pub(crate) limit: usize,
    pub(crate) tunnels: Vec<Tunnel>,
    pub(crate) sessions: Vec<Session>,
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
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) id: Option<String>,
    pub(crate) tunnel: String,
    /// `physical`, `logical`, `basebackup` or `ordinary`.
    pub(crate) kind: String,
    /// `streaming`, `basebackup` or `idle`; none for an ordinary session, which is not looked into.
    pub(crate) activity: Option<String>,
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
    pub(crate) start_lsn: Option<String>,
    pub(crate) server_lsn: Option<String>,
    pub(crate) sent_lsn: Option<String>,
    pub(crate) written_lsn: Option<String>,
    pub(crate) flushed_lsn: Option<String>,
    pub(crate) applied_lsn: Option<String>,
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

/// How streams flowed in the last minutes: of those that flow now, the oldest first.
#[derive(Debug, Serialize)]
pub(crate) struct History {
    /// Between two samples.
    every_seconds: u64,
    sessions: Vec<Past>,
}

/// Samples, the newest last: bytes a second, and lags in seconds.
#[derive(Debug, Serialize)]
struct Past {
    tunnel: String,
    id: Option<String>,
    rate: Vec<f32>,
    write: Vec<Option<f32>>,
    flush: Vec<Option<f32>>,
    apply: Vec<Option<f32>>,
}

/// A page shows no more.
const PASTS: usize = 100;

/// Where a snapshot is taken from: what the daemon has.
pub(crate) struct Facts {
    pub(crate) started: SystemTime,
    pub(crate) registry: Arc<Registry>,
    pub(crate) health: Arc<Health>,
    pub(crate) tunnels: Vec<TunnelFacts>,
}

pub(crate) struct TunnelFacts {
    pub(crate) listen: String,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) lately: Arc<Lately>,
}

impl Facts {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let (reloads_good, reloads_refused) = self.health.reloads();
        let (at, clock) = (SystemTime::now(), now());
        let live = self.registry.all();
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for live in &live {
            *count.entry(&live.about.tunnel).or_default() += 1;
        }
        let tunnels = self.tunnels.iter().map(|facts| {
            let settings = facts.settings.borrow();
            tunnel(facts, &settings, count.get(&*settings.name).copied())
        });
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            at: time(at),
            started: time(self.started),
            uptime_seconds: seconds_between(self.started, at),
            limit: self.registry.limit(),
            tunnels: tunnels.collect(),
            sessions: live
                .iter()
                .map(|live| self.session(live, at, clock))
                .collect(),
            certificates: self
                .health
                .validities()
                .iter()
                .map(|validity| certificate(validity, at))
                .collect(),
            reloads_good,
            reloads_refused,
            last_reload: self.health.last_reload().as_ref().map(reload),
            warnings: self.health.warnings().iter().map(warning).collect(),
        }
    }

    pub(crate) fn history(&self) -> History {
        let live = self.registry.all();
        let pasts = live.iter().map(|live| (live, live.trace.samples()));
        let pasts = pasts.filter(|(_, samples)| !samples.is_empty());
        let sessions = pasts.take(PASTS).map(|(live, samples)| Past {
            tunnel: live.about.tunnel.to_string(),
            id: id(live),
            rate: samples.iter().map(|one| one.rate).collect(),
            write: samples.iter().map(|one| one.write).collect(),
            flush: samples.iter().map(|one| one.flush).collect(),
            apply: samples.iter().map(|one| one.apply).collect(),
        });
        History {
            every_seconds: TRACED_EVERY_SECONDS,
            sessions: sessions.collect(),
        }
    }

    fn session(&self, live: &Live, at: SystemTime, clock: Clock) -> Session {
        let about = &live.about;
        let far = live.far();
        let certificate = about
            .certificate
            .as_deref()
            .or_else(|| far.map(|far| &*far.certificate));
        let identity = certificate.map(|certificate| &certificate.identity);
        let watched = live.watched.as_ref().map(|watched| watched.lock());
        let replication = about.startup.replication();
        let stream = watched.as_ref().and_then(|watch| watch.stream());
        let backup = stream.and_then(|stream| stream.backup.as_ref());
        let rates = live.meter.rates();
        Session {
            id: id(live),
            tunnel: about.tunnel.to_string(),
            kind: kind(replication, stream).to_owned(),
            activity: watched.as_ref().map(|watch| activity(watch).to_owned()),
            identity: identity.map(ToString::to_string),
            serial: identity.map(serial),
            fingerprint: identity.map(|identity| identity.fingerprint().to_string()),
            user: escape(about.startup.user()),
            database: (replication != Replication::Physical)
                .then(|| escape(about.startup.database())),
            application_name: about.startup.application_names().last().map(escape),
            peer: about.peer.to_string(),
            upstream: far.map(|far| far.target.to_string()),
            since: time(about.since),
            seconds: seconds_between(about.since, at),
            bytes_to_upstream: live.traffic.to_upstream(),
            bytes_to_downstream: live.traffic.to_downstream(),
            rate_to_upstream: rates.to_upstream,
            rate_to_downstream: rates.to_downstream,
            backend_pid: live.backend_pid(),
            server_version: watched
                .as_ref()
                .and_then(|watch| watch.version())
                .map(version),
            not_understood: watched.as_ref().map(|watch| watch.not_understood()),
            replication: stream
                .filter(|stream| stream.backup.is_none())
                .map(|stream| replicating(stream, clock)),
            basebackup: backup.map(|backup| BaseBackup {
                bytes: backup.bytes,
                total_bytes: backup.total,
                done_bytes: backup.done,
                tablespaces: backup.tablespaces,
                archives: backup.archives,
            }),
        }
    }
}

/// What both ends call it.
fn id(live: &Live) -> Option<String> {
    let id = live.about.id.or_else(|| live.far().map(|far| far.id));
    id.map(|id| id.to_string())
}

fn tunnel(facts: &TunnelFacts, settings: &Settings, sessions: Option<usize>) -> Tunnel {
    let (side, upstream) = settings.side_and_upstream();
    let ended = facts
        .tally
        .counts()
        .into_iter()
        .map(|(end, cause, connections)| Ended {
            end: end.to_owned(),
            cause: cause.to_owned(),
            connections,
        });
    let ends = facts.lately.ends();
    Tunnel {
        last_stream: ends.stream.map(last),
        last_failure: ends.failure.map(last),
        name: settings.name.to_string(),
        side: side.to_owned(),
        listen: facts.listen.clone(),
        upstream,
        sessions: sessions.unwrap_or(0),
        ended: ended.collect(),
    }
}

fn last(gone: Gone) -> Last {
    Last {
        at: time(gone.at),
        who: gone.who,
        peer: gone.peer,
        kind: gone.kind.map(str::to_owned),
        end: gone.end.to_owned(),
        cause: gone.cause.to_owned(),
        reason: gone.reason,
    }
}

/// What a session is for: as its startup says, until it asks for a base backup.
pub(crate) fn kind(replication: Replication, stream: Option<&Stream>) -> &'static str {
    match replication {
        _ if stream.is_some_and(|stream| stream.backup.is_some()) => "basebackup",
        Replication::Physical => "physical",
        Replication::Logical => "logical",
        Replication::None => "ordinary",
    }
}

pub(crate) fn activity(watch: &Watch) -> &'static str {
    match watch.activity() {
        Activity::Idle => "idle",
        Activity::Streaming => "streaming",
        Activity::BaseBackup => "basebackup",
    }
}

fn replicating(stream: &Stream, now: Clock) -> Replicating {
    let reply = |what: Confirmed| stream.reply.as_ref().and_then(|reply| lsn(what.of(reply)));
    let lag = |what| Lag {
        bytes: stream.behind(what),
        seconds: stream.lag(what, now).map(|micros| micros as f64 / 1e6),
    };
    let age = |at: Option<Clock>| at.map(|at| (now.0.saturating_sub(at.0).max(0)) as f64 / 1e6);
    let transit = |micros: Option<i64>| micros.map(|micros| micros as f64 / 1e6);
    Replicating {
        slot: stream.slot.clone(),
        timeline: stream.timeline,
        start_lsn: lsn(stream.start),
        server_lsn: lsn(stream.end),
        sent_lsn: lsn(stream.sent),
        written_lsn: reply(Confirmed::Write),
        flushed_lsn: reply(Confirmed::Flush),
        applied_lsn: reply(Confirmed::Apply),
        write_lag: lag(Confirmed::Write),
        flush_lag: lag(Confirmed::Flush),
        apply_lag: lag(Confirmed::Apply),
        wal_bytes: stream.wal_bytes,
        wal_messages: stream.wal_messages,
        keepalives: stream.keepalives,
        replies: stream.replies,
        feedbacks: stream.feedbacks,
        reply_requested: stream.reply_requested,
        wal_age_seconds: age(stream.wal_at),
        keepalive_age_seconds: age(stream.keepalive_at),
        reply_age_seconds: age(stream.reply_at),
        transit_from_server_seconds: transit(stream.from_server),
        transit_from_standby_seconds: transit(stream.from_frontend),
    }
}

fn certificate(validity: &Validity, at: SystemTime) -> Certificate {
    let unix = |seconds: i64| {
        let since_1970 = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        SystemTime::UNIX_EPOCH + since_1970.min(LATEST)
    };
    let not_after = unix(validity.not_after);
    let of = match validity.of {
        Of::Own => "own",
        Of::Ca => "ca",
        Of::Crl => "crl",
        Of::Peer => "peer",
    };
    Certificate {
        of: of.to_owned(),
        name: validity.name.clone(),
        serial: validity.serial.clone(),
        not_before: time(unix(validity.not_before)),
        not_after: time(not_after),
        days_left: seconds_between(at, not_after) / 86_400.0,
    }
}

fn reload(reload: &health::Reload) -> Reload {
    let problems = reload.outcome.as_ref().err();
    Reload {
        at: time(reload.at),
        ok: problems.is_none(),
        problems: problems
            .into_iter()
            .flatten()
            .map(Problem::one_line)
            .collect(),
    }
}

fn warning(warning: &health::Warning) -> Warning {
    let problem = &warning.problem;
    Warning {
        id: problem.id.to_owned(),
        what: problem.what.clone(),
        why: problem.why.clone(),
        way_out: problem.way_out.clone(),
        since: Some(time(warning.since)),
    }
}

/// 9999-12-31: later times cannot be written as RFC 3339.
const LATEST: std::time::Duration = std::time::Duration::from_secs(253_402_300_799);

/// In hexadecimal, as `openssl x509 -serial` and certs-tool show it.
pub(crate) fn serial(identity: &Identity) -> String {
    identity
        .serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn lsn(lsn: Lsn) -> Option<String> {
    (lsn > Lsn(0)).then(|| lsn.to_string())
}

/// 1500 is shown as 15, 902 as 9.2.
fn version(version: u32) -> String {
    if version >= 1000 {
        (version / 100).to_string()
    } else {
        format!("{}.{}", version / 100, version % 100)
    }
}

fn time(at: SystemTime) -> String {
    format_rfc3339_seconds(at).to_string()
}

/// Below zero where `to` is the earlier one.
fn seconds_between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
