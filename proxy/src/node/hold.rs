//! A question for CRLs whose answer waits until there is a newer one: a node that only follows is reached by nobody, but it
//! can ask. So it learns in the moment in which the node that it follows learns.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateRevocationListDer;
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Level;

use super::{LAST_WORDS, Outcome, crls_answer, say};
use crate::session::Settings;
use crate::tls::{Credentials, NodeTls};

type Crl = CertificateRevocationListDer<'static>;

/// Questions that may wait at a time; whoever comes beyond them is answered at once.
const MOST: usize = 64;
/// The longest wait, whatever is asked for: a path that died in silence is left after it.
const LONGEST: Duration = Duration::from_secs(120);

/// The places of those that wait.
pub(crate) struct Seats(Arc<Semaphore>);

impl Default for Seats {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }
}

/// An answer that is to wait.
pub(super) struct Later {
    known: Vec<Crl>,
    until: Instant,
    seat: OwnedSemaphorePermit,
}

impl Later {
    /// None if it is not to wait, or no place is free. `newest` is what the asking side has, too.
    pub(super) fn new(
        seats: &Seats,
        seconds: u32,
        credentials: &Credentials,
        newest: Vec<Crl>,
    ) -> Option<Self> {
        let wait = Duration::from_secs(seconds.into()).min(LONGEST);
        let seat = Arc::clone(&seats.0).try_acquire_owned().ok()?;
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
