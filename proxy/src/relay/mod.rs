//! Both directions of a joined session until the end. Bytes in are bytes out, in order; while a write waits, nothing
//! is read: that is backpressure. This room parses nothing, logs nothing and knows no identity: what it must know of
//! messages, the tap tells it. One side is TLS and the other plain; which of them is downstream makes no difference.

mod direction;
mod flow;
mod pool;
mod records;
mod wire;

use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use protocol::error_response::Refusal;
use tokio::sync::Notify;
use tokio::time::timeout;

use direction::{Early, Pumped, flush, open, seal, shut};
use flow::Flow;
use records::{Opener, Sealer};
use wire::Taken;

use crate::net::{Stream, dead_peer, linger};

#[cfg(feature = "trial")]
pub(crate) use records::trial;
pub(crate) use records::{Fault, InPlace, Kernel, RecordStream};
pub(crate) use wire::Wire;

/// How long the close of a session may take after its last word.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long one direction may go on delivering after the other found that its reader is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// One side of a session: the connection, and what was read from it beyond the startup.
#[derive(Debug)]
pub(crate) struct Half {
    pub(crate) wire: Wire,
    pub(crate) read_ahead: Vec<u8>,
}

/// Goes along with one direction: looks at its bytes in passing and counts them. It never delays, copies or changes one.
pub(crate) trait Tap: Send {
    /// The next bytes, before they are written on: these ranges of `bytes`, one behind the other. Gives the last place
    /// in them behind which no message is begun; None if there is no such place.
    fn show(&mut self, bytes: &[u8], ranges: &[Range<usize>]) -> Option<Place>;
    /// Whether what was shown so far ends with a whole message.
    fn at_boundary(&self) -> bool;
    /// So many bytes of what was shown have been written on.
    fn passed(&self, bytes: u64);
}

/// One for each direction.
pub(crate) struct Taps<T> {
    pub(crate) to_upstream: T,
    pub(crate) to_downstream: T,
}

/// A place in what was shown: in the range of this number, so far into all bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) range: usize,
    pub(crate) end: usize,
}

/// Bytes relayed so far, each way, for whoever looks on.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    to_upstream: AtomicU64,
    to_downstream: AtomicU64,
}

impl Traffic {
    pub(crate) fn to_upstream(&self) -> u64 {
        self.to_upstream.load(Ordering::Relaxed)
    }

    pub(crate) fn to_downstream(&self) -> u64 {
        self.to_downstream.load(Ordering::Relaxed)
    }

    pub(crate) fn count_to_upstream(&self, bytes: u64) {
        self.to_upstream.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_to_downstream(&self, bytes: u64) {
        self.to_downstream.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What the frontend is told when a session is ended from outside: a whole ErrorResponse.
#[derive(Debug, Clone)]
pub(crate) struct Farewell {
    words: Arc<[u8]>,
    /// How long it may take to reach a message boundary and say it; after that the session is reset.
    within: Duration,
}

impl Farewell {
    pub(crate) fn new(words: &Refusal, within: Duration) -> Self {
        Self {
            words: words.encode().into(),
            within,
        }
    }
}

impl Deref for Farewell {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.words
    }
}

/// Ends a relay: set once, to what is said at the next message boundary. Both ends of it are the same. (tokio's `watch`
/// would do as well, with four times the memory.)
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    farewell: OnceLock<Farewell>,
    given: Notify,
}

impl Stop {
    /// Tells the session to end. What was said first stands.
    pub(crate) fn tell(&self, farewell: Farewell) {
        if self.0.farewell.set(farewell).is_ok() {
            self.0.given.notify_waiters();
        }
    }

    /// What the session was told, if it was.
    fn farewell(&self) -> Option<&Farewell> {
        self.0.farewell.get()
    }

    /// Completes when the session is told to end; never if it is not.
    pub(crate) async fn told(&self) -> &Farewell {
        loop {
            // Made before it is looked: from then on it hears of what is set.
            let given = self.0.given.notified();
            if let Some(farewell) = self.farewell() {
                return farewell;
            }
            given.await;
        }
    }
}

/// Which end of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Downstream,
    Upstream,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Both directions were closed in order.
    Finished,
    /// It was told to end, and the frontend was told why.
    Stopped,
    /// It was told to end, but no message boundary was reached in time; closed as an abort.
    StoppedMidMessage,
    /// `side` ended without a close of its own; passed on as an abort to the other.
    Aborted { side: Side, error: io::Error },
    /// `side` acknowledges nothing any more.
    PeerDead { side: Side },
}

/// Relays until both directions have ended, one was aborted, or `stop` tells it to end. What is given is taken apart
/// here and moved into the future once: an async function would keep its arguments beside what it makes of them, for
/// as long as an idle session lasts.
///
/// All that waits in here waits in one task, and whatever wakes it is followed by a look at everything. So the word to
/// stop, which one part waits for, and the answer that the opening direction finds due are flags that others look at when
/// they are polled: each is polled behind whoever may set its flag, which is what `biased` is for.
pub(crate) fn run<T: Tap>(
    downstream: Half,
    upstream: Half,
    taps: Taps<T>,
    stop: Stop,
    dead_after: Duration,
) -> Result<Pin<Box<impl Future<Output = Ended> + use<T>>>, Ended> {
    let to_frontend = Flow::to_frontend(taps.to_downstream, stop.clone());
    let to_backend = Flow::to_backend(taps.to_upstream);
    let (mut opened, mut sealed) = match (&downstream.wire, &upstream.wire) {
        (Wire::Tls(_), _) => (to_backend, to_frontend),
        (Wire::Plain(_), _) => (to_frontend, to_backend),
    };
    let Pair {
        tls,
        mut opener,
        mut sealer,
        tls_side,
        early,
        plain,
        read_ahead,
    } = Pair::of(downstream, upstream)?;
    Ok(Box::pin(async move {
        let answer_due = AtomicBool::new(false);
        let ended = {
            // Pinned where they are made: a future that is moved stands in the session's state twice.
            let open = pin!(open(
                &tls,
                &mut opener,
                early,
                &plain,
                &mut opened,
                &answer_due
            ));
            let seal = pin!(seal(
                &plain,
                read_ahead,
                &mut sealer,
                &tls,
                &mut sealed,
                &answer_due
            ));
            let mut both = pin!(join_directions(open, seal, tls_side));
            let mut dead = pin!(dead_peer(tls.as_fd(), dead_after));
            // It alone is woken by the word to end. Both directions are polled behind it, and look for themselves: a word
            // that comes later finds it registered.
            let mut out_of_patience = pin!(async {
                let within = stop.told().await.within;
                Box::pin(tokio::time::sleep(within)).await;
            });
            tokio::select! {
                biased;
                () = &mut out_of_patience => Ended::StoppedMidMessage,
                ended = &mut both => ended,
                () = &mut dead => Ended::PeerDead { side: tls_side },
            }
        };
        Box::pin(close(&ended, tls, &mut sealer, tls_side, plain)).await;
        ended
    }))
}

/// A session taken apart: one side TLS, the other plain.
struct Pair {
    tls: Stream,
    opener: Opener,
    sealer: Sealer,
    tls_side: Side,
    early: Box<Early>,
    plain: Stream,
    read_ahead: Vec<u8>,
}

impl Pair {
    fn of(downstream: Half, upstream: Half) -> Result<Self, Ended> {
        let (downstream, upstream) = (Taken::from(downstream), Taken::from(upstream));
        let (tls_side, tls, plain) = match (&downstream.records, &upstream.records) {
            (Some(_), None) => (Side::Downstream, downstream, upstream),
            (None, _) | (Some(_), Some(_)) => (Side::Upstream, upstream, downstream),
        };
        match (tls.records, plain.records) {
            (Some((opener, sealer)), None) => Ok(Self {
                tls: tls.stream,
                opener,
                sealer,
                tls_side,
                early: Box::new(tls.early),
                plain: plain.stream,
                read_ahead: plain.early.payload,
            }),
            // A tunnel has one leg of each kind; there is nothing to open or seal otherwise.
            _ => Err(Ended::Aborted {
                side: Side::Upstream,
                error: io::Error::other("a relay joins TLS with plain"),
            }),
        }
    }
}

/// Runs both directions and decides how they ended together.
async fn join_directions(
    mut open: Pin<&mut impl Future<Output = Pumped>>,
    mut seal: Pin<&mut impl Future<Output = Pumped>>,
    tls_side: Side,
) -> Ended {
    // The opening direction first: what it leaves for the other, that one sees in the same turn. Neither keeps the other from
    // its turn: both are polled each time, unless one has ended.
    let (first, first_opens) = tokio::select! {
        biased;
        ended = &mut open => (ended, true),
        ended = &mut seal => (ended, false),
    };
    let reader = |opens: bool| if opens { tls_side } else { tls_side.other() };
    match first {
        Pumped::Stopped => return Ended::Stopped,
        Pumped::ReadFailed(error) => {
            return Ended::Aborted {
                side: reader(first_opens),
                error,
            };
        }
        Pumped::Faulted(fault) => {
            return Ended::Aborted {
                side: tls_side,
                error: io::Error::other(fault),
            };
        }
        Pumped::Closed => {}
        Pumped::WriteFailed(error) => {
            // The reader is gone; what it said last may still be on its way to the other end.
            let last_words = timeout(LAST_WORDS, async {
                if first_opens { seal.await } else { open.await }
            });
            return match last_words.await {
                Ok(Pumped::Closed) => Ended::Finished,
                Ok(Pumped::Stopped) => Ended::Stopped,
                Ok(Pumped::ReadFailed(_) | Pumped::WriteFailed(_) | Pumped::Faulted(_))
                | Err(_) => Ended::Aborted {
                    side: reader(!first_opens),
                    error,
                },
            };
        }
    }
    // A half-closed session: the other direction goes on for as long as it likes.
    let second = if first_opens { seal.await } else { open.await };
    match second {
        // The reader closed in order before; that it is gone now is no failure.
        Pumped::Closed | Pumped::WriteFailed(_) => Ended::Finished,
        Pumped::Stopped => Ended::Stopped,
        Pumped::ReadFailed(error) => Ended::Aborted {
            side: reader(!first_opens),
            error,
        },
        Pumped::Faulted(fault) => Ended::Aborted {
            side: tls_side,
            error: io::Error::other(fault),
        },
    }
}

/// Closes both connections in the way that tells each peer the truth.
async fn close(
    ended: &Ended,
    mut tls: Stream,
    sealer: &mut Sealer,
    tls_side: Side,
    mut plain: Stream,
) {
    match ended {
        Ended::Finished => {}
        Ended::Stopped => {
            // The frontend was told and must be able to read it before it sees the end; the backend only needs the end.
            match tls_side {
                Side::Downstream => {
                    let _ = plain.shutdown_write();
                    let _ = timeout(FAREWELL, linger(&mut tls)).await;
                }
                Side::Upstream => {
                    let both = async { tokio::join!(shut(sealer, &tls), linger(&mut plain)) };
                    let _ = timeout(FAREWELL, both).await;
                }
            }
        }
        Ended::Aborted { error, .. } => {
            plain.abort();
            match error
                .get_ref()
                .and_then(|error| error.downcast_ref::<Fault>())
            {
                Some(fault) => {
                    // A peer that broke the protocol is told so by an alert, which a reset would take from it.
                    sealer.refuse(fault);
                    let _ = timeout(FAREWELL, async {
                        if flush(sealer, &tls).await.is_ok() {
                            linger(&mut tls).await;
                        }
                    })
                    .await;
                }
                None => tls.abort(),
            }
        }
        Ended::StoppedMidMessage | Ended::PeerDead { .. } => {
            plain.abort();
            tls.abort();
        }
    }
}
