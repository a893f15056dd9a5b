//! Both directions of a joined session until the end. Bytes in are bytes out, in order; while a write waits, nothing
//! is read: that is backpressure. This room parses nothing, logs nothing and knows no identity: what it must know of
//! messages, the tap tells it.

mod pump;
mod wire;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use pump::{Pumped, pump, pump_until_stopped};

pub(crate) use wire::Wire;

use crate::net::linger;

/// How long a session that was told to end may take to reach a message boundary and close.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long one direction may go on delivering after the other found that its reader is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// One side of a session: the connection, and what was read from it beyond the startup.
#[derive(Debug)]
pub(crate) struct Half {
    pub(crate) wire: Wire,
    pub(crate) read_ahead: Vec<u8>,
}

/// Looks at the bytes of one direction in passing. It never delays, copies or changes one.
pub(crate) trait Tap: Send {
    /// The next bytes, before they are written on.
    fn show(&mut self, bytes: &[u8]);
    /// Whether what was shown so far ends with a whole message.
    fn at_boundary(&self) -> bool;
    /// How much of what was shown last belongs to whole messages; None if no message ended in it.
    fn last_boundary(&self) -> Option<usize>;
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
}

/// What the frontend is told when a session is ended from outside: a whole ErrorResponse.
pub(crate) type Farewell = Arc<[u8]>;

/// Ends a relay: set once, to what is said at the next message boundary.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<Option<Farewell>>);

impl Stop {
    /// The signal and the handle that gives it.
    pub(crate) fn channel() -> (watch::Sender<Option<Farewell>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Completes when the session is told to end; never if it is not.
    pub(crate) async fn told(&mut self) -> Farewell {
        if let Ok(told) = self.0.wait_for(Option::is_some).await
            && let Some(farewell) = told.as_ref()
        {
            return Arc::clone(farewell);
        }
        std::future::pending().await
    }
}

/// Which end of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Downstream,
    Upstream,
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

/// Relays until both directions have ended, one was aborted, or `stop` tells it to end.
pub(crate) async fn run(
    downstream: Half,
    upstream: Half,
    to_downstream: impl Tap,
    stop: Stop,
    dead_peer: Duration,
    traffic: &Traffic,
) -> Ended {
    let watch_downstream = downstream.wire.watch_peer(dead_peer);
    let watch_upstream = upstream.wire.watch_peer(dead_peer);
    let (mut down_read, mut down_write) = tokio::io::split(downstream.wire);
    let (mut up_read, mut up_write) = tokio::io::split(upstream.wire);
    let mut told_to_end = stop.clone();

    let ended = {
        let both = async {
            let up = pump(
                &downstream.read_ahead,
                &mut down_read,
                &mut up_write,
                &traffic.to_upstream,
            );
            let down = pump_until_stopped(
                &upstream.read_ahead,
                &mut up_read,
                &mut down_write,
                &traffic.to_downstream,
                to_downstream,
                stop,
            );
            join_directions(up, down).await
        };
        let out_of_patience = async {
            told_to_end.told().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            ended = both => ended,
            () = watch_downstream => Ended::PeerDead { side: Side::Downstream },
            () = watch_upstream => Ended::PeerDead { side: Side::Upstream },
            () = out_of_patience => Ended::StoppedMidMessage,
        }
    };
    close(&ended, (down_read, down_write), (up_read, up_write)).await;
    ended
}

/// Runs both directions and decides how they ended together.
async fn join_directions(
    up: impl Future<Output = Pumped>,
    down: impl Future<Output = Pumped>,
) -> Ended {
    tokio::pin!(up, down);
    let (first, first_to) = tokio::select! {
        ended = &mut up => (ended, Side::Upstream),
        ended = &mut down => (ended, Side::Downstream),
    };
    let other = match first_to {
        Side::Upstream => Side::Downstream,
        Side::Downstream => Side::Upstream,
    };
    match first {
        Pumped::Stopped => return Ended::Stopped,
        Pumped::ReadFailed(error) => return Ended::Aborted { side: other, error },
        Pumped::Closed => {}
        Pumped::WriteFailed(error) => {
            // The reader is gone; what it said last may still be on its way to the other end.
            let last_words = timeout(LAST_WORDS, async {
                match first_to {
                    Side::Upstream => down.await,
                    Side::Downstream => up.await,
                }
            });
            return match last_words.await {
                Ok(Pumped::Closed) => Ended::Finished,
                Ok(Pumped::Stopped) => Ended::Stopped,
                Ok(Pumped::ReadFailed(_) | Pumped::WriteFailed(_)) | Err(_) => Ended::Aborted {
                    side: first_to,
                    error,
                },
            };
        }
    }
    // A half-closed session: the other direction goes on for as long as it likes.
    let second = match first_to {
        Side::Upstream => down.await,
        Side::Downstream => up.await,
    };
    match second {
        // The reader closed in order before; that it is gone now is no failure.
        Pumped::Closed | Pumped::WriteFailed(_) => Ended::Finished,
        Pumped::Stopped => Ended::Stopped,
        Pumped::ReadFailed(error) => Ended::Aborted {
            side: first_to,
            error,
        },
    }
}

type Parts = (ReadHalf<Wire>, WriteHalf<Wire>);

/// Closes both connections in the way that tells each peer the truth.
async fn close(ended: &Ended, downstream: Parts, upstream: Parts) {
    let downstream = downstream.0.unsplit(downstream.1);
    let upstream = upstream.0.unsplit(upstream.1);
    match ended {
        Ended::Finished => {}
        Ended::Stopped => {
            let mut downstream = downstream;
            let mut upstream = upstream;
            // The frontend must be able to read why before it sees the end; the backend only needs the end.
            let _ = timeout(LAST_WORDS, upstream.shutdown()).await;
            let _ = timeout(FAREWELL, linger(&mut downstream)).await;
        }
        Ended::StoppedMidMessage | Ended::Aborted { .. } | Ended::PeerDead { .. } => {
            downstream.abort();
            upstream.abort();
        }
    }
}
