//! The live sessions, and the handle that ends one with a reason. Cancel, revocation, drain and status go through it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use protocol::error_response::{Refusal, SqlState};
use protocol::identity::IdentityPattern;
use protocol::startup::{CancelKey, Replication, StartupMessage};
use protocol::watch::Watch;
use tokio::sync::Notify;

use super::legs::{Settings, server_pattern};
use super::meter::Meter;
use super::names::Found;
use super::observer::now;
use super::tally::Tally;
use super::trace::Trace;
use super::upstream::FarEnd;
use super::verdict;
use crate::net::{Peer, Target};
use crate::relay::{Farewell, Stop, Traffic};
use crate::slices::in_slices;
use crate::tls::{Credentials, PeerCertificate, SessionId};

/// How long a session may take to reach a message boundary at the end of this process.
const AT_SHUTDOWN: Duration = Duration::from_secs(2);
/// The same for one that is admitted no longer: it has had enough already.
const DISMISSED: Duration = Duration::from_secs(1);
/// Sessions whose meters are read in one slice.
const METERED_AT_ONCE: usize = 128;

/// What is known of a session when it is authorised.
pub(crate) struct About {
    pub(crate) tunnel: Arc<str>,
    pub(crate) peer: Peer,
    /// Of the downstream: None on a plain leg.
    pub(crate) certificate: Option<Arc<PeerCertificate>>,
    pub(crate) startup: StartupMessage,
    /// Of the downstream's handshake: None on a plain leg.
    pub(crate) id: Option<SessionId>,
    pub(crate) since: SystemTime,
}

/// A session that was authorised and has not ended.
pub(crate) struct Live {
    pub(crate) about: About,
    /// Set when the upstream has been reached over TLS.
    far: OnceLock<Box<FarEnd>>,
    /// Known once the backend has sent BackendKeyData.
    cancel_key: Mutex<Option<CancelKey>>,
    pub(crate) traffic: Traffic,
    /// What a replication session does; None for an ordinary one.
    pub(crate) watched: Option<Watched>,
    pub(crate) meter: Meter,
    pub(crate) trace: Trace,
    /// Which name of the configuration means its peer.
    pub(super) found: Found,
    pub(crate) stop: Stop,
    /// Why it was ended by itself, if it was.
    dismissal: OnceLock<Box<Refusal>>,
}

impl Live {
    /// Ends this session. Its frontend is told why at the next message boundary, if one comes in time. The first
    /// reason stands.
    pub(crate) fn end(&self, reason: Refusal) {
        // The words for one that asks.
        let reason = Refusal {
            message: format!("terminating connection: {}", reason.message),
            ..reason
        };
        let farewell = Farewell::new(&reason, DISMISSED);
        if self.dismissal.set(Box::new(reason)).is_ok() {
            self.stop.tell(farewell);
        }
    }

    /// Why it was ended by itself.
    pub(crate) fn dismissal(&self) -> Option<&Refusal> {
        self.dismissal.get().map(AsRef::as_ref)
    }

    /// What the peers on either side showed.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = &PeerCertificate> {
        let downstream = self.about.certificate.as_deref();
        downstream
            .into_iter()
            .chain(self.far().map(|far| &*far.certificate))
    }

    /// Whether a certificate in it has expired at `now` (Unix seconds): then, why it must end.
    pub(crate) fn judge_expiry(
        &self,
        credentials: &Credentials,
        now: i64,
    ) -> Result<(), Box<Refusal>> {
        verdict::expiry(self, credentials, now).map_or(Ok(()), |refusal| Err(Box::new(refusal)))
    }

    pub(crate) fn learn_cancel_key(&self, key: CancelKey) {
        *lock(&self.cancel_key) = Some(key);
    }

    pub(crate) fn backend_pid(&self) -> Option<u32> {
        lock(&self.cancel_key).as_ref().map(CancelKey::pid)
    }

    /// The upstream that a session of a `client` tunnel reached: a cancel must go to the same.
    pub(crate) fn went_to(&self, far: FarEnd) {
        // Set once: a session never changes its upstream.
        let _ = self.far.set(Box::new(far));
    }

    /// The name that the server which it reached had to bear.
    pub(crate) fn wanted_name(&self) -> Option<IdentityPattern> {
        server_pattern(&self.far()?.server_name)
    }

    pub(crate) fn far(&self) -> Option<&FarEnd> {
        self.far.get().map(AsRef::as_ref)
    }
}

/// What the observer leaves for whoever looks on. It is small until a stream begins.
#[derive(Default)]
pub(crate) struct Watched(Mutex<Watch>);

impl Watched {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Watch> {
        lock(&self.0)
    }
}

/// All live sessions of the process.
pub(crate) struct Registry {
    limit: usize,
    sessions: Mutex<Sessions>,
    ended: Notify,
}

#[derive(Default)]
struct Sessions {
    next: u64,
    /// By number: the oldest first.
    live: BTreeMap<u64, Arc<Live>>,
    /// Set by drain: who comes later is turned away.
    closing: bool,
}

/// A place in the registry, given up on drop.
pub(crate) struct Place {
    registry: Arc<Registry>,
    number: u64,
    tally: Arc<Tally>,
    pub(crate) live: Arc<Live>,
}

/// The owner of a cancel key.
pub(crate) struct KeyOwner {
    pub(crate) certificate: Option<Arc<PeerCertificate>>,
    pub(crate) target: Option<Target>,
}

impl Registry {
    /// A registry for at most `limit` sessions.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            sessions: Mutex::default(),
            ended: Notify::new(),
        }
    }

    /// Takes a place for a session that was authorised; what it moves is counted for `tally`.
    pub(crate) fn enter(
        self: &Arc<Self>,
        about: About,
        tally: &Arc<Tally>,
    ) -> Result<Place, Refusal> {
        let mut sessions = lock(&self.sessions);
        if sessions.closing {
            return Err(Refusal::new(
                "D01",
                SqlState::CANNOT_CONNECT_NOW,
                "this proxy is shutting down",
            ));
        }
        if sessions.live.len() >= self.limit {
            return Err(Refusal::new(
                "L01",
                SqlState::TOO_MANY_CONNECTIONS,
                format!("all {} sessions are taken", self.limit),
            )
            .hint(
                "raise limits.sessions in pgtlsproxy.toml and restart, or find out who holds them",
            ));
        }
        let replicates = about.startup.replication() != Replication::None;
        let live = Arc::new(Live {
            watched: replicates.then(Watched::default),
            about,
            far: OnceLock::new(),
            cancel_key: Mutex::default(),
            traffic: Traffic::default(),
            meter: Meter::new(Instant::now()),
            trace: Trace::default(),
            found: Found::default(),
            stop: Stop::default(),
            dismissal: OnceLock::new(),
        });
        let number = sessions.next;
        sessions.next += 1;
        sessions.live.insert(number, Arc::clone(&live));
        Ok(Place {
            registry: Arc::clone(self),
            number,
            tally: Arc::clone(tally),
            live,
        })
    }

    /// The live sessions of `tunnel` that `key` belongs to: one, unless two upstreams happened to choose the same key.
    pub(crate) fn owners_of(&self, tunnel: &str, key: &CancelKey) -> Vec<KeyOwner> {
        lock(&self.sessions)
            .live
            .values()
            .filter(|live| {
                &*live.about.tunnel == tunnel && lock(&live.cancel_key).as_ref() == Some(key)
            })
            .map(|live| KeyOwner {
                certificate: live.about.certificate.clone(),
                target: live.far().map(|far| far.target.clone()),
            })
            .collect()
    }

    /// Judges every session of a tunnel by its new settings, which new sessions must find already, and ends those
    /// that would not be admitted any more; how many. Verifies signatures: not for the runtime's threads.
    pub(crate) fn judge_again(&self, settings: &Settings) -> usize {
        let mut ended = 0;
        for live in self.all() {
            if live.about.tunnel == settings.name
                && live.dismissal().is_none()
                && let Some(objection) = verdict::objection(&live, settings)
            {
                live.end(objection);
                ended += 1;
            }
        }
        ended
    }

    /// Tells every session to end, and lets no new one in.
    pub(crate) fn close(&self, farewell: &Refusal) {
        let words = Farewell::new(farewell, AT_SHUTDOWN);
        let mut sessions = lock(&self.sessions);
        sessions.closing = true;
        for live in sessions.live.values() {
            if live.dismissal().is_none() {
                live.stop.tell(words.clone());
            }
        }
    }

    /// Every live session, the oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        self.all_and(|| ()).0
    }

    /// Every live session, the oldest first, and what `past` tells of those that have ended by then: none is in both,
    /// and none is missing.
    pub(crate) fn all_and<T>(&self, past: impl FnOnce() -> T) -> (Vec<Arc<Live>>, T) {
        let sessions = lock(&self.sessions);
        let all = sessions.live.values().cloned().collect();
        (all, past())
    }

    /// Reads how much flowed since it was called last: about once a second.
    pub(crate) async fn meter(&self) {
        in_slices(&self.all(), METERED_AT_ONCE, |slice| {
            let now = Instant::now();
            for live in slice {
                live.meter.tick(&live.traffic, now);
            }
        })
        .await;
    }

    /// Remembers how every stream flows now: every two seconds.
    pub(crate) async fn trace(&self) {
        in_slices(&self.all(), METERED_AT_ONCE, |slice| {
            let now = now();
            for live in slice {
                if let Some(watched) = &live.watched {
                    live.trace.take(&watched.lock(), live.meter.rates(), now);
                }
            }
        })
        .await;
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.sessions).live.len()
    }

    /// Completes when no session is left.
    pub(crate) async fn emptied(&self) {
        loop {
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut sessions = lock(&self.registry.sessions);
            sessions.live.remove(&self.number);
            self.tally.settle(&self.live);
        }
        self.registry.ended.notify_waiters();
    }
}

/// What is behind these locks is whole at every moment, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
