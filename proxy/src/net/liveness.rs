//! Tells a peer that is gone from one that only does not read. The kernel's TCP_USER_TIMEOUT kills both when the
//! window stays closed, so it is lifted then, and the kernel's own counters judge.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::tcp_info::{TcpState, limit_retransmission_pause, tcp_state};

/// Completes when the TCP peer behind `socket` has acknowledged nothing for `within` although it was asked to.
/// Never completes while the peer acknowledges, however long it does not read.
pub(crate) async fn dead_peer(socket: BorrowedFd<'_>, within: Duration) {
    // Where the kernel cannot (before 6.15), a peer that dies behind a closed window is noticed at the next probe.
    let _ = limit_retransmission_pause(socket, within / 4);
    let tick = (within / 8).max(Duration::from_millis(100));
    // Of a connection that has only just answered there is nothing to see yet.
    let mut ticks = interval_at(Instant::now() + tick, tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut timeout_lifted = false;
    let mut asked_before = false;
    loop {
        ticks.tick().await;
        let Ok(state) = tcp_state(socket) else {
            // Not a TCP socket, or no longer one: reads and writes will say so.
            return std::future::pending().await;
        };
        let window_closed = state.window_closed();
        if window_closed != timeout_lifted {
            let limit = (!window_closed).then_some(within);
            if SockRef::from(&socket).set_tcp_user_timeout(limit).is_ok() {
                timeout_lifted = window_closed;
            }
        }
        // One look may fall into the round trip of a question just asked; two in a row do not.
        let asked = state.asked();
        // The look after the next would come too late, and this one may have come late itself.
        if asked && asked_before && state.since_last_ack + 2 * tick >= within {
            return;
        }
        asked_before = asked;
    }
}

impl TcpState {
    /// Something waits to be sent, and nothing is on its way: only a closed window holds it back.
    fn window_closed(&self) -> bool {
        self.unacknowledged == 0 && self.queued > 0
    }

    /// The peer owes us an acknowledgement.
    fn asked(&self) -> bool {
        self.unacknowledged > 0 || self.unanswered_probes > 0
    }
}
