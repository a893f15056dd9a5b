//! Ctrl-C and SIGTERM as a flag that the story looks at, so that it always gets to its last page.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::problem::Problem;

pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(super) fn listen() -> Result<Self, Problem> {
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
        let (mut interrupt, mut terminate) = {
            let _context = runtime.enter();
            (
                signal(SignalKind::interrupt()).map_err(problem)?,
                signal(SignalKind::terminate()).map_err(problem)?,
            )
        };
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
        });
        Ok(Self(came))
    }

    pub(super) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, or returns early when the signal comes.
    pub(super) fn sleep(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while !self.came() && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
    }
}
