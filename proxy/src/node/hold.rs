//! A question for CRLs whose answer waits until there is a newer one: a node that only follows is reached by nobody, but it
//! can ask. So it learns in the moment in which the node that it follows learns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::identity::Fingerprint;
use rustls_pki_types::CertificateRevocationListDer;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Level;

use super::{LAST_WORDS, Outcome, crls_answer, say};
use crate::session::Settings;
use crate::tls::{Credentials, NodeTls};

type Crl = CertificateRevocationListDer<'static>;

/// Questions that may wait at a time; whoever comes beyond them is answered at once.
const MOST: usize = 64;
/// Of one certificate: a node asks once for each of its tunnels, and none shall take the places of all others.
const MOST_OF_ONE: usize = 4;
/// The longest wait, whatever is asked for: a path that died in silence is left after it.
const LONGEST: Duration = Duration::from_secs(120);

/// The places of those that wait.
#[derive(Clone, Default)]
pub(crate) struct Seats(Arc<Mutex<HashMap<Fingerprint, usize>>>);

/// A place that is taken, free again on drop.
struct Seat {
    seats: Seats,
    of: Fingerprint,
}

impl Seats {
    fn take(&self, of: Fingerprint) -> Option<Seat> {
        let mut taken = self.lock();
        let here = taken.get(&of).copied().unwrap_or(0);
        if here == MOST_OF_ONE || taken.values().sum::<usize>() >= MOST {
            return None;
        }
        taken.insert(of, here + 1);
        Some(Seat {
            seats: self.clone(),
            of,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Fingerprint, usize>> {
        // Whole at every moment, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        match taken.get_mut(&self.of) {
            Some(here) if *here > 1 => *here -= 1,
            _ => {
                taken.remove(&self.of);
            }
        }
    }
}

/// An answer that is to wait.
pub(super) struct Later {
    known: Vec<Crl>,
    until: Instant,
    seat: Seat,
}

impl Later {
    /// None if it is not to wait, or no place is free. `newest` is what the asking side has, too.
    pub(super) fn new(
        seats: &Seats,
        of: Fingerprint,
        seconds: u32,
        credentials: &Credentials,
        newest: Vec<Crl>,
    ) -> Option<Self> {
        let wait = Duration::from_secs(seconds.into()).min(LONGEST);
        let seat = seats.take(of)?;
        // What it has told us and is not loaded yet makes what is loaded now no news.
        let mut known = newest;
        known.extend_from_slice(credentials.crls());
        (!wait.is_zero()).then(|| Self {
            known,
            until: Instant::now() + wait,
            seat,
        })
    }

    pub(super) fn hold(self, tls: NodeTls) -> Holding {
        Holding { tls, later: self }
    }
}

/// A connection that waits for its answer.
pub(crate) struct Holding {
    tls: NodeTls,
    later: Later,
}

impl Holding {
    /// Waits for a newer CRL or for the end of its time, answers, and closes. A node that has been revoked meanwhile is
    /// answered as well: it shall know, and what is in a CRL is no secret.
    pub(crate) async fn answer(self, mut current: watch::Receiver<Arc<Settings>>) -> Outcome {
        let Self { mut tls, later } = self;
        let outcome = |text: &str| Outcome {
            level: Level::DEBUG,
            cause: "answered",
            text: format!("node channel, {text}"),
        };
        let mut nothing = [0; 1];
        let newest = loop {
            let now = loaded(&current);
            if now.iter().any(|crl| !later.known.contains(crl)) {
                break now;
            }
            tokio::select! {
                changed = current.changed() => if changed.is_err() {
                    return outcome("crl: this tunnel has ended");
                },
                () = sleep_until(later.until) => break now,
                // It has nothing more to say, so this is its end.
                _ = tls.read(&mut nothing) => return outcome("crl: the peer no longer waits"),
            }
        };
        drop(later.seat);
        let said = timeout(LAST_WORDS, say(&mut tls, &crls_answer(&newest))).await;
        outcome("crl answered").when_said(said)
    }
}

fn loaded(current: &watch::Receiver<Arc<Settings>>) -> Vec<Crl> {
    let settings = Arc::clone(&current.borrow());
    let near = settings.near();
    near.map_or_else(Vec::new, |(credentials, _)| credentials.crls().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_cannot_take_the_places_of_others() {
        let seats = Seats::default();
        let of = |number: u8| Fingerprint::of(&[number]);
        let mut taken: Vec<_> = (0..MOST).map_while(|_| seats.take(of(0))).collect();
        assert_eq!(taken.len(), MOST_OF_ONE);
        taken.pop();
        assert!(seats.take(of(0)).is_some());
        drop(taken);
        assert!(seats.lock().is_empty());

        let all: Vec<_> = (0..=u8::MAX).map_while(|one| seats.take(of(one))).collect();
        assert_eq!(all.len(), MOST);
    }
}
