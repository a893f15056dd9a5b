//! Ctrl-C, SIGTERM and the end of the terminal for a command that has to clear away: a flag that it looks at, and a word
//! to what it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::problem::Problem;

pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn listen() -> Result<Self, Problem> {
        Self::then(|| {})
    }

    /// Calls `act` when the signal has come, on a thread of its own.
    pub(crate) fn then(act: impl FnOnce() + Send + 'static) -> Result<Self, Problem> {
        let came = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&came);
        let runtime = Builder::new_current_thread().enable_all().build();
        let problem = |error: std::io::Error| {
            Problem::new(
                "C10",
                "signals cannot be received",
                error.to_string(),
                "start it again",
            )
        };
        let runtime = runtime.map_err(problem)?;
        let (mut interrupt, mut terminate, mut hangup) = {
            let _context = runtime.enter();
            (
                signal(SignalKind::interrupt()).map_err(problem)?,
                signal(SignalKind::terminate()).map_err(problem)?,
                signal(SignalKind::hangup()).map_err(problem)?,
            )
        };
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
            act();
        });
        Ok(Self(came))
    }

    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, or returns early when the signal comes.
    pub(crate) fn sleep(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while !self.came() && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
    }
}
