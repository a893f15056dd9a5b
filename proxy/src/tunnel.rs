//! One listener: accept, take a seat among the handshakes, start a session with the settings of this moment.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::net::Listener;
use crate::session::{self, Accepted, Shared};
use crate::waiting::WaitingRoom;
use crate::workers::Workers;

/// When the process has no descriptor or memory left, the kernel would answer the next `accept` the same at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at what a flood left untold.
const SUM_UP: Duration = Duration::from_secs(1);

/// A listener with all that its sessions need.
pub(crate) struct Tunnel {
    pub(crate) listener: Listener,
    pub(crate) shared: Arc<Shared>,
    pub(crate) room: Arc<WaitingRoom>,
    pub(crate) workers: Arc<Workers>,
}

impl Tunnel {
    /// Accepts until `closing` becomes true; then the listener is closed. Sessions go on by themselves.
    pub(crate) async fn run(self, mut closing: watch::Receiver<bool>) {
        let name = Arc::clone(&self.shared.current.borrow().name);
        let address = self.listener.address();
        info!(tunnel = &*name, address, "listening");
        let mut second = tokio::time::interval(SUM_UP);
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = second.tick() => {
                    self.shared.flood.sum_up(&name);
                    continue;
                }
                _ = closing.wait_for(|closing| *closing) => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let accepted = Accepted {
                        stream,
                        peer,
                        slot: self.room.enter(),
                        settings: Arc::clone(&self.shared.current.borrow()),
                        shared: Arc::clone(&self.shared),
                    };
                    self.serve(Box::new(accepted));
                }
                Err(error) => {
                    could_not_accept(&name, &self.shared, &error);
                    if is_exhaustion(&error) {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
        self.shared.flood.sum_up(&name);
        info!(tunnel = &*name, address, "no longer listening");
    }

    /// Boxed: what is given to a task keeps its room in it as long as it lasts.
    fn serve(&self, accepted: Box<Accepted>) {
        self.workers.serve(move || {
            let accepted = *accepted;
            match accepted.stream.settle() {
                Ok(stream) => Some(session::serve(Accepted { stream, ..accepted })),
                Err(error) => {
                    could_not_accept(&accepted.settings.name, &accepted.shared, &error);
                    None
                }
            }
        });
    }
}

fn could_not_accept(tunnel: &Arc<str>, shared: &Shared, error: &io::Error) {
    if shared.flood.admit(tunnel, "accept") {
        warn!(tunnel = &**tunnel, %error, "a connection could not be accepted");
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        matches!(
            Errno::from_raw(code),
            Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM
        )
    })
}
