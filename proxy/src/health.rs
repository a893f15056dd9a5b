//! What deserves a look in the running process: warnings, the last reload, and whose time runs until when. Written by
//! `reload` and `lifetime`; read by whoever shows it. A warning is logged when it begins and once a day after that.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use protocol::certificate::{Certificate, Serial, date_fault, is_last_third};
use protocol::identity::{Fingerprint, Identity};
use tokio::sync::Notify;
use tracing::warn;

use crate::problem::Problem;
use crate::tls::PeerCertificate;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Peers that are remembered; of more, the one not seen for longest is forgotten.
const PEERS: usize = 1024;

/// Something that works and deserves a look.
#[derive(Debug, Clone)]
pub(crate) struct Warning {
    pub(crate) problem: Problem,
    pub(crate) since: SystemTime,
}

/// How a reload went.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    pub(crate) at: SystemTime,
    /// What was wrong, and kept it from being taken.
    pub(crate) outcome: Result<(), Vec<Problem>>,
}

/// Whose time a [`Validity`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// This node's certificate, and the intermediates behind it.
    Own,
    Ca,
    Crl,
    /// The certificate of a peer that was met within a day.
    Peer,
}

impl Of {
    /// In snapshots and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Ca => "ca",
            Self::Crl => "crl",
            Self::Peer => "peer",
        }
    }
}

/// From when until when something counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) of: Of,
    /// Escaped.
    pub(crate) name: String,
    /// In hexadecimal digits; of a CRL, its number.
    pub(crate) serial: String,
    /// The first second, and the last one (Unix time).
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// The state of the process' health, shared by all who write and read it.
#[derive(Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What the loader found.
    found: Notices,
    /// Our own certificates and CRLs whose end is near.
    aging: Notices,
    /// Requests for renewal that nobody signs.
    unsigned: Option<Notice>,
    own: Vec<Validity>,
    peers: HashMap<Fingerprint, Met>,
    last_reload: Option<Reload>,
    last_good: Option<SystemTime>,
    good: u64,
    refused: u64,
}

/// Warnings by what they are about, whatever the words of the day are.
type Notices = BTreeMap<String, Notice>;

struct Notice {
    warning: Warning,
    told: SystemTime,
}

/// A peer whose certificate was seen.
struct Met {
    identity: Arc<Identity>,
    seen: SystemTime,
    notice: Option<Notice>,
}

impl Health {
    /// Everything that deserves a look now; what time makes worse comes first.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let state = self.state();
        let peers = state.peers.values().filter_map(|met| met.notice.as_ref());
        let dated = state.aging.values().chain(peers);
        dated
            .chain(&state.unsigned)
            .chain(state.found.values())
            .map(|notice| notice.warning.clone())
            .collect()
    }

    /// The same without what concerns peers: what whoever depends on this host may be told of it.
    pub(crate) fn own_warnings(&self) -> Vec<Warning> {
        let state = self.state();
        let notices = state.aging.values().chain(state.found.values());
        notices.map(|notice| notice.warning.clone()).collect()
    }

    /// How the last reload went; none since the start is none.
    pub(crate) fn last_reload(&self) -> Option<Reload> {
        self.state().last_reload.clone()
    }

    /// When a reload was taken last; none since the start is none.
    pub(crate) fn last_good_reload(&self) -> Option<SystemTime> {
        self.state().last_good
    }

    /// How many reloads were good, and how many were refused.
    pub(crate) fn reloads(&self) -> (u64, u64) {
        let state = self.state();
        (state.good, state.refused)
    }

    /// The time of our own certificates, CAs and CRLs, and of the peers' certificates that were met within a day.
    pub(crate) fn validities(&self) -> Vec<Validity> {
        let peers = self.peers().into_iter().map(|identity| Validity {
            of: Of::Peer,
            name: identity.to_string(),
            serial: Serial::from_bytes(identity.serial()).to_string(),
            not_before: identity.not_before(),
            not_after: identity.not_after(),
        });
        self.own_validities().into_iter().chain(peers).collect()
    }

    /// The same without the peers'.
    pub(crate) fn own_validities(&self) -> Vec<Validity> {
        self.state().own.clone()
    }

    /// What the peers' certificates say that were met within a day.
    pub(crate) fn peers(&self) -> Vec<Arc<Identity>> {
        let state = self.state();
        let peers = state.peers.values();
        peers.map(|met| Arc::clone(&met.identity)).collect()
    }

    /// What the loader found, in place of what it found before.
    pub(crate) fn found(&self, problems: &[Problem]) {
        let keyed = problems
            .iter()
            .map(|problem| (format!("{} {}", problem.id, problem.what), problem.clone()));
        replace(&mut self.state().found, keyed, SystemTime::now());
        self.changed.notify_one();
    }

    /// A reload was taken.
    pub(crate) fn reloaded(&self) {
        let mut state = self.state();
        let now = SystemTime::now();
        state.good += 1;
        state.last_good = Some(now);
        state.last_reload = Some(Reload {
            at: now,
            outcome: Ok(()),
        });
        self.changed.notify_one();
    }

    /// A reload was refused for these.
    pub(crate) fn refused(&self, problems: &[Problem]) {
        let mut state = self.state();
        state.refused += 1;
        state.last_reload = Some(Reload {
            at: SystemTime::now(),
            outcome: Err(problems.to_vec()),
        });
        self.changed.notify_one();
    }

    /// Our own certificates and CRLs, and which of them deserve a warning at `now`.
    pub(super) fn own(&self, papers: Vec<(Validity, Option<Problem>)>, now: SystemTime) {
        let mut state = self.state();
        let keyed = papers.iter().filter_map(|(validity, problem)| {
            let Validity {
                of, name, serial, ..
            } = validity;
            let problem = problem.clone()?;
            Some((format!("{of:?} {name} {serial} {}", problem.id), problem))
        });
        let changed = replace(&mut state.aging, keyed, now);
        state.own = papers.into_iter().map(|(validity, _)| validity).collect();
        if changed {
            self.changed.notify_one();
        }
    }

    /// Requests for renewal wait, and nobody signs; or no more.
    pub(super) fn unsigned(&self, problem: Option<Problem>, now: SystemTime) {
        if note(&mut self.state().unsigned, problem, now) {
            self.changed.notify_one();
        }
    }

    /// A peer showed this certificate, or goes on with it.
    pub(crate) fn met(&self, certificate: &PeerCertificate, now: SystemTime) {
        let identity = &certificate.identity;
        let fingerprint = identity.fingerprint();
        let seconds = unix(now);
        let near_its_end = seconds > identity.not_after()
            || is_last_third(identity.not_before(), identity.not_after(), seconds);
        let mut state = self.state();
        if !state.peers.contains_key(&fingerprint) {
            let mut same = state.peers.values_mut();
            if let Some(newer) = same
                .find(|met| met.identity.same_names(identity) && age(&met.identity) > age(identity))
            {
                // It has been replaced, whatever session still goes on with it.
                newer.seen = now;
                return;
            }
            // What it replaces is of no interest any more.
            state
                .peers
                .retain(|_, met| !met.identity.same_names(identity));
            if state.peers.len() >= PEERS {
                forget_one(&mut state.peers);
            }
        }
        let met = state.peers.entry(fingerprint).or_insert_with(|| Met {
            identity: Arc::new(identity.clone()),
            seen: now,
            notice: None,
        });
        met.seen = now;
        let problem = near_its_end
            .then(|| peer_problem(certificate, seconds))
            .flatten();
        if note(&mut met.notice, problem, now) {
            self.changed.notify_one();
        }
    }

    /// Forgets peers that were not seen for a day.
    pub(super) fn forget_the_gone(&self, now: SystemTime) {
        self.state()
            .peers
            .retain(|_, met| !a_day_apart(met.seen, now));
    }

    /// Completes when something has changed since it completed last. For one who waits.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub(crate) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// Makes `problems` the standing ones; whether there were others before.
fn replace(
    notices: &mut Notices,
    problems: impl Iterator<Item = (String, Problem)>,
    now: SystemTime,
) -> bool {
    let mut before = std::mem::take(notices);
    let mut changed = false;
    for (key, problem) in problems {
        let mut notice = before.remove(&key);
        changed |= note(&mut notice, Some(problem), now);
        notices.extend(notice.map(|notice| (key, notice)));
    }
    changed || !before.is_empty()
}

/// Keeps one notice up to date and logs it when it begins and every day; whether it is another than before.
fn note(notice: &mut Option<Notice>, problem: Option<Problem>, now: SystemTime) -> bool {
    let Some(problem) = problem else {
        return notice.take().is_some();
    };
    let standing = notice
        .as_ref()
        .filter(|notice| notice.warning.problem.id == problem.id);
    let (since, told) = standing.map_or((now, None), |notice| {
        (notice.warning.since, Some(notice.told))
    });
    let due = told.is_none_or(|told| a_day_apart(told, now));
    if due {
        warn!(problem = %problem.one_line(), "check");
    }
    *notice = Some(Notice {
        warning: Warning { problem, since },
        told: told.filter(|_| !due).unwrap_or(now),
    });
    told.is_none()
}

fn peer_problem(certificate: &PeerCertificate, now: i64) -> Option<Problem> {
    let leaf = Certificate::parse(certificate.chain.first()?).ok()?;
    let fault = date_fault(&leaf, now)?;
    let what = format!("the peer {}: {fault}", certificate.identity);
    Some(Problem::new(fault.id(), what, "", fault.way_out()).warning())
}

/// Of two certificates of one owner the later issued one replaces the other. No two are the same.
fn age(identity: &Identity) -> (i64, i64, Fingerprint) {
    (
        identity.not_before(),
        identity.not_after(),
        identity.fingerprint(),
    )
}

fn forget_one(peers: &mut HashMap<Fingerprint, Met>) {
    let longest_gone = peers
        .iter()
        .min_by_key(|(_, met)| met.seen)
        .map(|(fingerprint, _)| *fingerprint);
    if let Some(fingerprint) = longest_gone {
        peers.remove(&fingerprint);
    }
}

/// A clock that was set back far counts, too.
fn a_day_apart(earlier: SystemTime, now: SystemTime) -> bool {
    now.duration_since(earlier)
        .unwrap_or_else(|error| error.duration())
        >= DAY
}

#[cfg(test)]
mod tests;
