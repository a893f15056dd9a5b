//! Keeps a flood of refused connections from flooding the log: so many lines a second, the rest summed up.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// Lines a second that are printed one by one.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// One tunnel's count of what was printed and what was not.
pub(crate) struct Flood(Mutex<Window>);

struct Window {
    began: Instant,
    printed: u32,
    suppressed: u64,
}

impl Flood {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Window {
            began: Instant::now(),
            printed: 0,
            suppressed: 0,
        }))
    }

    /// Whether the next line may be printed. The first one of a new window tells how many were not.
    pub(crate) fn admit(&self, tunnel: &str) -> bool {
        let suppressed = {
            let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if window.began.elapsed() < WINDOW {
                if window.printed >= LINES {
                    window.suppressed += 1;
                    return false;
                }
                window.printed += 1;
                return true;
            }
            window.began = Instant::now();
            window.printed = 1;
            std::mem::take(&mut window.suppressed)
        };
        if suppressed > 0 {
            warn!(
                tunnel,
                connections = suppressed,
                "more connections ended early than are logged one by one"
            );
        }
        true
    }
}
