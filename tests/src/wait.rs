//! Waiting for a condition, with a deadline and a message that says what did not happen.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a healthy run never comes near it.
pub const PATIENCE: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(25);

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, PATIENCE, || condition().then_some(()));
}

/// Waits until `attempt` yields something, for at most `patience`.
#[track_caller]
pub fn wait_for<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(
            start.elapsed() < patience,
            "waited {patience:?} in vain: {what}"
        );
        thread::sleep(PAUSE);
    }
}
