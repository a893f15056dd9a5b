//! Goes along with both directions of a session: counts their bytes, and looks for where messages end, for the cancel key
//! that the backend gives, and in a replication session for all that `protocol::watch` can tell. It cannot delay, copy or
//! change a byte, and gives up quietly on what it does not understand. What it learned is left in the registry, under a
//! lock that is taken once for as many bytes as were read at once.

use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::message::{
    BACKEND_KEY_DATA_TAG, Header, Listener, MAX_HEAD, MessageWalker, parse_backend_key_data,
};
use protocol::replication::Clock;

use super::registry::Live;
use crate::relay::{Place, Tap, Taps};

/// Looks at one direction.
pub(super) struct Observer {
    looks: Looks,
    walker: MessageWalker,
    live: Arc<Live>,
}

/// What is looked at.
#[derive(Clone, Copy)]
enum Looks {
    /// Everything that a replication session says this way.
    FromBackend,
    FromFrontend,
    /// An ordinary session's cancel key, and where its messages end.
    ForKey,
    /// Nothing: what an ordinary frontend says.
    Away,
}

impl Observer {
    /// Observers for both directions of a session.
    pub(super) fn both(live: &Arc<Live>) -> Taps<Self> {
        let (from_frontend, from_backend) = if live.watched.is_some() {
            (Looks::FromFrontend, Looks::FromBackend)
        } else {
            (Looks::Away, Looks::ForKey)
        };
        let observer = |looks| Self {
            looks,
            walker: MessageWalker::new(),
            live: Arc::clone(live),
        };
        Taps {
            to_upstream: observer(from_frontend),
            to_downstream: observer(from_backend),
        }
    }
}

impl Tap for Observer {
    // Once for each read; apart, so that a profile tells what it costs.
    #[inline(never)]
    fn show(&mut self, bytes: &[u8], ranges: &[Range<usize>]) -> Option<Place> {
        let walker = &mut self.walker;
        match (self.looks, &self.live.watched) {
            (Looks::FromBackend, Some(watched)) => {
                let mut watch = watched.lock();
                let place = each(bytes, ranges, |piece| {
                    watch.backend_sent(walker, piece);
                    walker.last_boundary()
                });
                watch.settle(now());
                if let Some(key) = watch.take_cancel_key() {
                    drop(watch);
                    self.live.learn_cancel_key(key);
                }
                place
            }
            (Looks::FromFrontend, Some(watched)) => {
                let mut watch = watched.lock();
                let place = each(bytes, ranges, |piece| {
                    watch.frontend_sent(walker, piece);
                    walker.last_boundary()
                });
                watch.settle(now());
                place
            }
            (Looks::ForKey, _) => each(bytes, ranges, |piece| {
                walker.walk(piece, &mut ForKey(&self.live));
                walker.last_boundary()
            }),
            (Looks::Away | Looks::FromBackend | Looks::FromFrontend, _) => None,
        }
    }

    fn at_boundary(&self) -> bool {
        self.walker.at_boundary()
    }

    fn passed(&self, bytes: u64) {
        let traffic = &self.live.traffic;
        match self.looks {
            Looks::FromFrontend | Looks::Away => traffic.count_to_upstream(bytes),
            Looks::FromBackend | Looks::ForKey => traffic.count_to_downstream(bytes),
        }
    }
}

/// Shows each range to `walk`, which gives the last boundary in it.
fn each(
    bytes: &[u8],
    ranges: &[Range<usize>],
    mut walk: impl FnMut(&[u8]) -> Option<usize>,
) -> Option<Place> {
    let mut place = None;
    for (index, range) in ranges.iter().enumerate() {
        if let Some(boundary) = walk(bytes.get(range.clone()).unwrap_or_default()) {
            place = Some(Place {
                range: index,
                end: range.start + boundary,
            });
        }
    }
    place
}

/// Waits for BackendKeyData.
struct ForKey<'a>(&'a Live);

impl Listener for ForKey<'_> {
    fn wanted(&self, header: Header) -> usize {
        match header.tag {
            BACKEND_KEY_DATA_TAG => MAX_HEAD,
            _ => 0,
        }
    }

    fn message(&mut self, header: Header, head: &[u8]) {
        if header.tag == BACKEND_KEY_DATA_TAG
            && let Some(key) = parse_backend_key_data(head)
        {
            self.0.learn_cancel_key(key);
        }
    }
}

/// The time as PostgreSQL tells it; its own lags are reckoned by the same clock.
pub(crate) fn now() -> Clock {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clock::from_unix_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}
