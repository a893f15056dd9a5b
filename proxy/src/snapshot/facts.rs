//! A snapshot is taken from what the daemon has: the registry of sessions, the tunnels and the process' health.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use protocol::escape::escape;
use protocol::hex::Hex;
use protocol::identity::Identity;
use protocol::lag::Confirmed;
use protocol::replication::{Clock, Lsn};
use protocol::startup::{Replication, StartupMessage};
use protocol::watch::{Activity, Backup, Stream, Watch};
use tokio::sync::watch;

use super::{BaseBackup, Certificate, Ended, History, Lag, Last, Overview, Past, Reload};
use super::{Position, Replicating, Session, Tunnel, Warning};
use crate::health::{self, Health, Validity};
use crate::problem::Problem;
use crate::session::{Gone, Lately, Live, Registry, Settings, TRACED_EVERY_SECONDS, Tally, now};

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

/// When a part of a snapshot is taken.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    at: SystemTime,
    clock: Clock,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            at: SystemTime::now(),
            clock: now(),
        }
    }
}

impl Facts {
    /// All but the sessions, and which these are: the oldest first.
    pub(crate) fn overview(&self) -> (Overview, Vec<Arc<Live>>) {
        let (reloads_good, reloads_refused) = self.health.reloads();
        let at = SystemTime::now();
        let live = self.registry.all();
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for live in &live {
            *count.entry(&live.about.tunnel).or_default() += 1;
        }
        let tunnels = self.tunnels.iter().map(|facts| {
            let settings = Arc::clone(&facts.settings.borrow());
            tunnel(facts, &settings, count.get(&*settings.name).copied())
        });
        let overview = Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            at: time(at),
            started: time(self.started),
            uptime_seconds: seconds_between(self.started, at),
            limit: self.registry.limit(),
            tunnels: tunnels.collect(),
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
        };
        (overview, live)
    }

    /// What is told of how streams flowed, and which sessions may have something to tell: the oldest first.
    pub(crate) fn history(&self) -> (History, Vec<Arc<Live>>) {
        let history = History {
            every_seconds: TRACED_EVERY_SECONDS,
        };
        (history, self.registry.all())
    }
}

/// How it flowed; None where nothing was remembered.
pub(crate) fn past(live: &Live) -> Option<Past<'_>> {
    let samples = live.trace.samples();
    (!samples.is_empty()).then(|| Past {
        tunnel: &live.about.tunnel,
        id: id(live),
        rate: samples.iter().map(|one| one.rate).collect(),
        write: samples.iter().map(|one| one.write).collect(),
        flush: samples.iter().map(|one| one.flush).collect(),
        apply: samples.iter().map(|one| one.apply).collect(),
    })
}

/// One session as it is now.
pub(crate) fn session(live: &Live, Moment { at, clock }: Moment) -> Session<'_> {
    let about = &live.about;
    let far = live.far();
    let certificate = about
        .certificate
        .as_deref()
        .or_else(|| far.map(|far| &*far.certificate));
    let identity = certificate.map(|certificate| &certificate.identity);
    let replication = about.startup.replication();
    let seen = Seen::take(live, clock);
    let rates = live.meter.rates();
    Session {
        id: id(live),
        tunnel: Cow::Borrowed(&about.tunnel),
        kind: Cow::Borrowed(seen.kind.name()),
        activity: seen.activity.map(Cow::Borrowed),
        identity: identity.map(ToString::to_string),
        serial: identity.map(serial),
        fingerprint: identity.map(|identity| identity.fingerprint().to_string()),
        user: escape(about.startup.user()),
        database: (replication != Replication::Physical).then(|| escape(about.startup.database())),
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
        server_version: seen.version.map(version),
        not_understood: seen.not_understood,
        replication: seen.replication,
        basebackup: seen.backup.map(|backup| BaseBackup {
            bytes: backup.bytes,
            total_bytes: backup.total,
            done_bytes: backup.done,
            tablespaces: backup.tablespaces,
            archives: backup.archives,
        }),
    }
}

/// What the observer left, taken in one go: while its lock is held, the session's bytes wait.
struct Seen {
    kind: Kind,
    activity: Option<&'static str>,
    version: Option<u32>,
    not_understood: Option<u64>,
    replication: Option<Replicating>,
    backup: Option<Backup>,
}

impl Seen {
    fn take(live: &Live, clock: Clock) -> Self {
        let watch = live.watched.as_ref().map(|watched| watched.lock());
        let watch = watch.as_deref();
        let stream = watch.and_then(Watch::stream);
        Self {
            kind: Kind::of(&live.about.startup, stream),
            activity: watch.map(activity),
            version: watch.and_then(Watch::version),
            not_understood: watch.map(Watch::not_understood),
            replication: stream
                .filter(|stream| stream.backup.is_none())
                .map(|stream| replicating(stream, clock)),
            backup: stream.and_then(|stream| stream.backup),
        }
    }
}

/// What both ends call it.
fn id(live: &Live) -> Option<String> {
    let id = live.about.id.or_else(|| live.far().map(|far| far.id));
    id.map(|id| id.to_string())
}

fn tunnel(facts: &TunnelFacts, settings: &Settings, sessions: Option<usize>) -> Tunnel {
    let ended = facts
        .tally
        .counts()
        .into_iter()
        .map(|(end, cause, ends)| Ended {
            end: end.to_owned(),
            cause: cause.to_owned(),
            connections: ends.connections,
            failed: ends.failed,
        });
    let ends = facts.lately.ends();
    Tunnel {
        last_stream: ends.stream.map(last),
        last_failure: ends.failure.map(last),
        name: settings.name.to_string(),
        side: settings.side().to_owned(),
        listen: facts.listen.clone(),
        upstream: settings.leads_to(),
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

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BaseBackup,
    Logical,
    Ordinary,
    Physical,
}

impl Kind {
    /// All of them; the place of each is its number.
    pub(crate) const ALL: [Self; 4] = [
        Self::BaseBackup,
        Self::Logical,
        Self::Ordinary,
        Self::Physical,
    ];

    /// As its startup says, unless it serves a base backup.
    pub(crate) fn of(startup: &StartupMessage, stream: Option<&Stream>) -> Self {
        match startup.replication() {
            _ if stream.is_some_and(|stream| stream.backup.is_some()) => Self::BaseBackup,
            Replication::Physical if streams_for_a_backup(startup, stream) => Self::BaseBackup,
            Replication::Physical => Self::Physical,
            Replication::Logical => Self::Logical,
            Replication::None => Self::Ordinary,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BaseBackup => "basebackup",
            Self::Logical => "logical",
            Self::Ordinary => "ordinary",
            Self::Physical => "physical",
        }
    }
}

/// Whether it is pg_basebackup's second connection, which brings the WAL that is written meanwhile and ends with it: by
/// what libpq calls it, or by the slot that it makes for itself (10 and later).
fn streams_for_a_backup(startup: &StartupMessage, stream: Option<&Stream>) -> bool {
    let named = startup.application_names().last();
    let slot = stream.and_then(|stream| stream.slot.as_deref());
    let number = slot.and_then(|slot| slot.strip_prefix("pg_basebackup_"));
    named.is_some_and(|name| name == b"pg_basebackup")
        || number.is_some_and(|pid| pid.bytes().all(|digit| digit.is_ascii_digit()))
}

fn activity(watch: &Watch) -> &'static str {
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
    Certificate {
        of: validity.of.word().to_owned(),
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
    Hex(identity.serial()).to_string()
}

fn lsn(lsn: Lsn) -> Option<Position> {
    (lsn > Lsn(0)).then_some(Position(lsn))
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
