//! Gives memory back to the system when many connections have ended. glibc gives back what lies at the end of its heaps,
//! and among thousands of sessions there is always one whose memory stands there: 5,000 that have closed would leave
//! behind all that they took. One of the three files with unsafe code: one call, malloc_trim(3).
#![expect(unsafe_code, reason = "no crate binds malloc_trim")]

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::workers::Workers;

/// Fewer are not worth it: what they leave is used by those that come.
const MANY: usize = 100;
/// How often it is looked at, and the shortest time between two times.
const PAUSE: Duration = Duration::from_secs(5);

/// Never completes.
pub(crate) async fn give_back(workers: Arc<Workers>) {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut most = 0_usize;
    loop {
        ticks.tick().await;
        let now = workers.connections();
        most = most.max(now);
        if most.saturating_sub(now) >= MANY {
            // It walks over all that is free: not for a runtime's thread.
            let _ = tokio::task::spawn_blocking(trim).await;
            most = now;
        }
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it takes no pointer, keeps what is in use where it is, and takes the locks of the heaps that it looks at.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Other allocators know by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
