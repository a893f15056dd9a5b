//! Keeps a flood of refused connections from flooding the log: of each cause so many lines a second, the rest summed up.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// Lines of one cause in a second that are printed one by one.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// One tunnel's count, by cause, of what was printed and what was not. Causes are ids of ours, so there are few.
pub(crate) struct Flood(Mutex<HashMap<&'static str, Window>>);

struct Window {
    began: Instant,
    printed: u32,
    suppressed: u64,
}

impl Flood {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Whether the next line of this cause may be printed. The first one of a new window tells how many were not.
    pub(crate) fn admit(&self, tunnel: &str, cause: &'static str) -> bool {
        let suppressed = {
            let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let window = windows.entry(cause).or_insert_with(|| Window {
                began: Instant::now(),
                printed: 0,
                suppressed: 0,
            });
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
        tell(tunnel, cause, suppressed);
        true
    }

    /// Tells how many lines were not printed in windows that are over: the last ones of a flood have none behind them.
    /// Called about once a second.
    pub(crate) fn sum_up(&self, tunnel: &str) {
        let over: Vec<_> = {
            let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let over = windows
                .iter_mut()
                .filter(|(_, window)| window.suppressed > 0 && window.began.elapsed() >= WINDOW);
            over.map(|(cause, window)| (*cause, std::mem::take(&mut window.suppressed)))
                .collect()
        };
        for (cause, suppressed) in over {
            tell(tunnel, cause, suppressed);
        }
    }
}

fn tell(tunnel: &str, cause: &'static str, suppressed: u64) {
    if suppressed > 0 {
        warn!(
            tunnel,
            cause,
            connections = suppressed,
            "more connections ended so than are logged one by one"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequent_cause_does_not_drown_a_rare_one() {
        let flood = Flood::new();
        let printed = (0..1000).filter(|_| flood.admit("server", "W17")).count();
        assert!(printed < 100, "{printed}");
        assert!(flood.admit("server", "T18"));
    }
}
