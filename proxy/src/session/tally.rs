//! What a tunnel has done since the process began: connections by how they ended, bytes, how long handshakes and sessions
//! took. Each is written once in a connection's life; while bytes flow, only the session's own counters move, and a
//! reader adds those of the living to what the ended ones left here.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use protocol::watch::Watch;

use super::end::End;
use super::registry::Live;

/// Seconds: from one round trip on this host to a handshake that nearly ran out of time.
const HANDSHAKES: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Seconds: a refused login, a base backup, a stream that lasts from one restart to the next.
const SESSIONS: [f64; 10] = [
    1.0,
    10.0,
    60.0,
    600.0,
    3_600.0,
    21_600.0,
    86_400.0,
    604_800.0,
    2_419_200.0,
    7_776_000.0,
];

/// The counts of one tunnel. Labels and causes are ids of ours, so there are few.
#[derive(Debug)]
pub(crate) struct Tally {
    accepted: AtomicU64,
    opened: AtomicU64,
    ends: Mutex<BTreeMap<(&'static str, &'static str), Ends>>,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    /// Of sessions that are over.
    past: Mutex<Totals>,
    /// Seconds that TLS handshakes took.
    pub(crate) handshakes: Histogram,
    sessions: Mutex<BTreeMap<&'static str, Histogram>>,
}

/// Connections that ended in one way.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) connections: u64,
    /// Of these.
    pub(crate) failed: u64,
}

/// What sessions moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Payload, without TLS.
    pub(crate) to_upstream: u64,
    pub(crate) to_downstream: u64,
    /// Messages, or directions, that the observer made no sense of.
    pub(crate) not_understood: u64,
}

impl Totals {
    /// What this session has moved so far.
    fn of(live: &Live) -> Self {
        let watch = live.watched.as_ref().map(|watched| watched.lock());
        Self::seen(live, watch.as_deref())
    }

    /// The same, where what the observer left is held already.
    pub(crate) fn seen(live: &Live, watch: Option<&Watch>) -> Self {
        Self {
            to_upstream: live.traffic.to_upstream(),
            to_downstream: live.traffic.to_downstream(),
            not_understood: watch.map_or(0, Watch::not_understood),
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.to_upstream += more.to_upstream;
        self.to_downstream += more.to_downstream;
        self.not_understood += more.not_understood;
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::default(),
            opened: AtomicU64::default(),
            ends: Mutex::default(),
            refusals: Mutex::default(),
            past: Mutex::default(),
            handshakes: Histogram::new(HANDSHAKES),
            sessions: Mutex::default(),
        }
    }
}

impl Tally {
    pub(super) fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A TLS handshake succeeded.
    pub(super) fn handshake(&self, took: Duration) {
        self.handshakes.observe(took.as_secs_f64());
    }

    /// A session's sides are joined.
    pub(super) fn open(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection is over; `kind` is what it asked for.
    pub(super) fn end(&self, end: &End, kind: Option<&'static str>, after: Duration) {
        let meaning = end.meaning();
        {
            let mut ends = lock(&self.ends);
            let so = ends.entry((meaning.label, end.cause())).or_default();
            so.connections += 1;
            so.failed += u64::from(meaning.is_failure());
        }
        if meaning.is_refusal {
            *lock(&self.refusals).entry(end.cause()).or_default() += 1;
        }
        if let (End::Relayed(_) | End::Dismissed { .. }, Some(kind)) = (end, kind) {
            lock(&self.sessions)
                .entry(kind)
                .or_insert_with(|| Histogram::new(SESSIONS))
                .observe(after.as_secs_f64());
        }
    }

    /// Takes over what a session moved. Called as it leaves the registry, so that a reader finds it in one of both.
    pub(super) fn settle(&self, live: &Live) {
        *lock(&self.past) += Totals::of(live);
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// What the sessions that are over moved.
    pub(crate) fn past(&self) -> Totals {
        *lock(&self.past)
    }

    /// Label, cause, and how many ended so.
    pub(crate) fn counts(&self) -> Vec<(&'static str, &'static str, Ends)> {
        let ends = lock(&self.ends);
        ends.iter()
            .map(|((label, cause), ends)| (*label, *cause, *ends))
            .collect()
    }

    /// Reason, and how many were refused for it.
    pub(crate) fn refusals(&self) -> Vec<(&'static str, u64)> {
        let refusals = lock(&self.refusals);
        refusals
            .iter()
            .map(|(reason, count)| (*reason, *count))
            .collect()
    }

    /// Seconds that sessions lasted, by kind.
    pub(crate) fn sessions(&self) -> Vec<(&'static str, Histogram)> {
        let sessions = lock(&self.sessions);
        sessions
            .iter()
            .map(|(kind, seconds)| (*kind, seconds.clone()))
            .collect()
    }
}

/// Whole at every moment, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
