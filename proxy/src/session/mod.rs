//! One connection from accept to close. The whole line is [`serve`]; each step takes what the last one gave.

mod authentication;
mod downstream;
mod end;
mod lately;
mod legs;
mod meter;
mod names;
mod observer;
mod record;
mod registry;
mod tally;
mod trace;
mod upstream;
mod verdict;

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::negotiation::Request;
use protocol::policy::{Permit, authorise_cancel, permit_local};
use protocol::startup::{CancelRequest, StartupMessage};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

use downstream::{Arrived, Opened};
use end::End;
use legs::DownstreamLeg;
use observer::Observer;
use record::SessionRecord;
use registry::{About, KeyOwner, Place};

use crate::net::{Peer, Stream};
use crate::node::{self, Holding, Served};
use crate::relay::{self, Ended, Half, Side, Wire};
use crate::waiting::Slot;

pub(crate) use lately::{Gone, Lately};
pub(crate) use legs::{Far, Settings, Shared, shutdown_farewell};
pub(crate) use names::Names;
pub(crate) use observer::now;
pub(crate) use registry::{Live, Registry};
pub(crate) use tally::{Tally, Totals};
pub(crate) use trace::EVERY_SECONDS as TRACED_EVERY_SECONDS;
pub(crate) use upstream::{broken_target, cannot_reach_target, no_tls_there, silent_target};

/// How long PostgreSQL may take to act on a cancel request and close.
const CANCEL_TAKES: Duration = Duration::from_secs(10);

/// A connection just accepted, with its place among the handshakes and the settings of that moment.
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    pub(crate) slot: Slot,
    pub(crate) settings: Arc<Settings>,
    pub(crate) shared: Arc<Shared>,
}

/// Serves one connection and logs one line of it. What leads up to the relay is a box that is freed before it begins,
/// and nothing is given to an async function that could be moved into it: most of a session's life is its relay, and
/// what is kept meanwhile is kept thousands of times.
pub(crate) fn serve(accepted: Accepted) -> impl Future<Output = ()> + Send {
    let record = SessionRecord::new(
        Arc::clone(&accepted.settings.name),
        Arc::clone(&accepted.shared.flood),
        Arc::clone(&accepted.shared.tally),
        Arc::clone(&accepted.shared.lately),
        accepted.peer,
    );
    let beginning = Box::pin(begin(accepted, record));
    async move {
        let (record, begun) = beginning.await;
        let end = match begun.map(Joined::relay) {
            Ok((place, Ok(relay))) => {
                let ended = relay.await;
                place.end(ended)
            }
            Ok((place, Err(ended))) => place.end(ended),
            Err(end) => end,
        };
        record.finish(&end);
    }
}

/// Up to the relay, if it comes to one.
async fn begin(
    accepted: Accepted,
    mut record: SessionRecord,
) -> (SessionRecord, Result<Joined, End>) {
    let begun = converse(accepted, &mut record).await;
    (record, begun)
}

async fn converse(accepted: Accepted, record: &mut SessionRecord) -> Result<Joined, End> {
    let Accepted {
        stream,
        peer,
        slot,
        settings,
        shared,
    } = accepted;
    // Boxed, so that one that stays silent pays for nothing that comes later.
    let opened = Box::pin(admit(stream, peer, slot, &settings, &shared, record)).await?;
    record.asked(&opened.request);
    match opened.request.clone() {
        Request::Startup(startup) => {
            Box::pin(join(opened, startup, peer, &settings, &shared, record)).await
        }
        Request::Cancel(request) => {
            let cancelled = cancel(opened, &request, peer, &settings, &shared, record);
            Err(Box::pin(cancelled).await)
        }
    }
}

/// Opens the connection, unless its address is refused or it must give way. A connection of the node channel ends here.
async fn admit(
    stream: Stream,
    peer: Peer,
    slot: Slot,
    settings: &Settings,
    shared: &Shared,
    record: &mut SessionRecord,
) -> Result<Opened, End> {
    if let (DownstreamLeg::Mtls { policy, .. }, Peer::Tcp(address)) = (&settings.downstream, peer)
        && !policy.address_may_connect(address.ip())
    {
        return Err(End::AddressRefused);
    }
    let prepared = stream.prepare().and_then(|()| match settings.downstream {
        DownstreamLeg::Mtls { .. } => stream.notice_dead_peer(settings.timeouts.dead_peer),
        DownstreamLeg::Plain { .. } => Ok(()),
    });
    if let Err(error) = prepared {
        return Err(End::Left {
            stage: end::Stage::Startup,
            error,
        });
    }
    let limit = slot.limit();
    let within = settings.timeouts.handshake;
    let deadline = Instant::now() + within;
    let opening = async {
        let leg = &settings.downstream;
        let tls = match downstream::open(stream, leg, (deadline, within), record).await? {
            Arrived::Session(opened) => return Ok(opened),
            Arrived::Node(tls) => tls,
        };
        let context = node::Context {
            settings,
            service: &shared.node,
            peer,
            deadline,
        };
        match Box::pin(node::serve(*tls, &context)).await {
            Served::Answered(outcome) => Err(NotOpened::Ended(End::Node(outcome))),
            Served::Held(holding) => Err(NotOpened::Held(holding)),
        }
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = slot.evicted() => Err(NotOpened::Ended(End::Evicted { limit })),
    };
    // What waits for its answer has left the waiting room: it has shown who it is.
    match opened {
        Ok(opened) => Ok(opened),
        Err(NotOpened::Ended(end)) => Err(end),
        Err(NotOpened::Held(holding)) => {
            Err(End::Node(holding.answer(shared.current.clone()).await))
        }
    }
}

/// What was no session.
enum NotOpened {
    Ended(End),
    Held(Box<Holding>),
}

impl From<End> for NotOpened {
    fn from(end: End) -> Self {
        Self::Ended(end)
    }
}

/// A session with both its ends, and its place in the registry.
struct Joined {
    downstream: Half,
    upstream: Half,
    place: Place,
    dead_after: Duration,
}

/// Authorise, take a place, reach the upstream.
async fn join(
    opened: Opened,
    startup: StartupMessage,
    peer: Peer,
    settings: &Arc<Settings>,
    shared: &Shared,
    record: &mut SessionRecord,
) -> Result<Joined, End> {
    let permit = match authorise(&opened, &startup, peer, &settings.downstream).await {
        Ok(permit) => permit,
        Err(end) => return Err(refused(opened, end).await),
    };
    let about = About {
        tunnel: Arc::clone(&settings.name),
        peer,
        certificate: opened.certificate.clone(),
        startup,
        id: record.id_so_far(),
        since: SystemTime::now(),
    };
    let place = match shared.registry.enter(about, &shared.tally) {
        Ok(place) => place,
        Err(refusal) => return Err(refused(opened, End::Refused(Box::new(refusal))).await),
    };
    record.live(&place.live);
    if let Some(objection) = judged_late(&place.live, settings, shared) {
        return Err(refused(opened, objection).await);
    }
    if let Some(certificate) = &opened.certificate {
        shared.health.met(certificate, SystemTime::now());
    }
    let upstream = tokio::select! {
        reached = Box::pin(upstream::connect(permit, settings, &opened.request, None, record)) => reached,
        _ = place.live.stop.told() => {
            let reason = place.live.dismissal().cloned();
            Err(End::Refused(Box::new(reason.unwrap_or_else(shutdown_farewell))))
        }
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(end) => return Err(refused(opened, end).await),
    };
    if let Some(far) = upstream.far {
        shared.health.met(&far.certificate, SystemTime::now());
        place.live.went_to(far);
        if let Some(objection) = judged_late(&place.live, settings, shared) {
            return Err(refused(opened, objection).await);
        }
    }
    record.joined();
    let downstream = Half {
        wire: opened.wire,
        read_ahead: Vec::new(),
    };
    Ok(Joined {
        downstream,
        upstream: upstream.half,
        place,
        dead_after: settings.timeouts.dead_peer,
    })
}

impl Joined {
    /// What relays, and the place to be kept as long as it does.
    fn relay(
        self,
    ) -> (
        Place,
        Result<Pin<Box<impl Future<Output = Ended> + Send>>, Ended>,
    ) {
        let live = &self.place.live;
        let relay = relay::run(
            self.downstream,
            self.upstream,
            Observer::both(live),
            live.stop.clone(),
            self.dead_after,
        );
        (self.place, relay)
    }
}

impl Place {
    /// What the end of its relay means, if it was told to end or not. Gives the place up.
    fn end(self, ended: Ended) -> End {
        let terminated = || {
            let watched = self.live.watched.as_ref();
            watched.is_some_and(|watched| watched.lock().is_terminated())
        };
        match (ended, self.live.dismissal()) {
            (
                Ended::Aborted {
                    side: Side::Upstream,
                    error,
                },
                _,
            ) if error.kind() == ErrorKind::ConnectionReset && terminated() => {
                End::Relayed(Ended::Finished)
            }
            (ended @ (Ended::Stopped | Ended::StoppedMidMessage), Some(reason)) => End::Dismissed {
                reason: Box::new(reason.clone()),
                told: matches!(ended, Ended::Stopped),
            },
            (ended, _) => End::Relayed(ended),
        }
    }
}

/// What speaks against a session under the settings of now, if they are not those that it was accepted with. A reload
/// publishes first and then judges the registry: whoever was not in it yet, or not with its upstream, asks here.
fn judged_late(live: &Live, accepted_with: &Arc<Settings>, shared: &Shared) -> Option<End> {
    let current = Arc::clone(&shared.current.borrow());
    if Arc::ptr_eq(accepted_with, &current) {
        return None;
    }
    verdict::objection(live, &current).map(|objection| End::Refused(Box::new(objection)))
}

/// The policy's verdict on a startup; the only way to a [`Permit`].
async fn authorise(
    opened: &Opened,
    startup: &StartupMessage,
    peer: Peer,
    leg: &DownstreamLeg,
) -> Result<Permit, End> {
    let identity = opened.identity();
    let verdict = match (leg, identity, peer) {
        (DownstreamLeg::Mtls { policy, .. }, Some(identity), Peer::Tcp(address)) => {
            policy.authorise(identity, Some(address.ip()), startup)
        }
        (DownstreamLeg::Mtls { policy, .. }, Some(identity), Peer::Unix { .. }) => {
            policy.authorise(identity, None, startup)
        }
        // Only a cancel gets past a TLS listener without an identity.
        (DownstreamLeg::Mtls { .. }, None, _) => return Err(End::CancelUnknown),
        (
            DownstreamLeg::Plain {
                os_users: Some(users),
            },
            _,
            Peer::Unix { uid, .. },
        ) => match users.authorise(uid, &uid.to_string(), startup) {
            // Its name is for the message alone.
            Err(_) => users.authorise(uid, &peer.os_user().await, startup),
            admitted => admitted,
        },
        (DownstreamLeg::Plain { .. }, _, _) => Ok(permit_local(startup)),
    };
    verdict.map_err(|refusal| End::Refused(Box::new(refusal)))
}

/// Forwards a cancel whose key belongs to a live session of the same tunnel and identity, to where that session went.
/// Whatever comes of it, the answer is a silent close, as PostgreSQL's is.
async fn cancel(
    opened: Opened,
    request: &CancelRequest,
    peer: Peer,
    settings: &Settings,
    shared: &Shared,
    record: &mut SessionRecord,
) -> End {
    if let (
        DownstreamLeg::Plain {
            os_users: Some(users),
        },
        Peer::Unix { uid, .. },
    ) = (&settings.downstream, peer)
        && users.authorise_cancel(uid).is_none()
    {
        return End::CancelUnknown;
    }
    let plain_on_tls =
        matches!(settings.downstream, DownstreamLeg::Mtls { .. }) && opened.certificate.is_none();
    let _turn = if plain_on_tls {
        match shared.plain_cancels.try_acquire() {
            Ok(turn) => Some(turn),
            Err(_) => return End::CancelUnknown,
        }
    } else {
        None
    };
    let owners = shared.registry.owners_of(&settings.name, &request.key);
    let permitted = owners.into_iter().find_map(
        |KeyOwner {
             certificate,
             target,
         }| {
            let asking = opened.identity();
            // With plain_cancel the key itself is the credential, as it is in PostgreSQL.
            let owner = if plain_on_tls {
                None
            } else {
                certificate.as_ref().map(|owner| &owner.identity)
            };
            Some((authorise_cancel(asking, owner)?, target))
        },
    );
    let end = match permitted {
        None => End::CancelUnknown,
        Some((permit, target)) => {
            let connected =
                upstream::connect(permit, settings, &opened.request, target.as_ref(), record);
            match Box::pin(connected).await {
                Ok(upstream) => {
                    wait_for_close(upstream.half.wire).await;
                    End::Cancelled
                }
                Err(end) => end,
            }
        }
    };
    opened.refuse(None).await;
    end
}

/// psql waits for the close of its cancel connection as the sign that the request was acted on.
async fn wait_for_close(mut wire: Wire) {
    let mut nothing = [0; 64];
    let _ = timeout(CANCEL_TAKES, async {
        while matches!(wire.read(&mut nothing).await, Ok(1..)) {}
    })
    .await;
}

async fn refused(opened: Opened, end: End) -> End {
    opened.refuse(end.refusal()).await;
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{Stop, Taps};

    fn size_of_result<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_relay<F>(
        _: impl FnOnce(Half, Half, Taps<Observer>, Stop, Duration) -> Result<Pin<Box<F>>, Ended>,
    ) -> usize {
        size_of::<F>()
    }

    /// Thousands of idle sessions each keep these (docs/performance.md). Who needs more room in them should know it.
    #[test]
    fn an_idle_session_stays_small() {
        let session = size_of_result(serve);
        assert!(session <= 384, "{session}");
        let relay = size_of_relay(relay::run);
        assert!(relay <= 2_304, "{relay}");
        let live = size_of::<Live>();
        assert!(live <= 640, "{live}");
    }
}
