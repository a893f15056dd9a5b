//! Ctrl-C and SIGTERM end a run in order: what was started ends, certificates go, what was measured is reported. The
//! second one ends at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::problem::{Doing, Problem};

static CAME: AtomicBool = AtomicBool::new(false);

/// Begins to listen.
pub(crate) fn listen() -> Result<(), Problem> {
    let what = || "cannot listen to signals".to_owned();
    let runtime = Builder::new_current_thread()
        .enable_io()
        .build()
        .doing(what)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).doing(what)?;
        (interrupt, signal(SignalKind::terminate()).doing(what)?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if CAME.swap(true, Ordering::Relaxed) {
                    #[expect(clippy::exit, reason = "the user insists")]
                    std::process::exit(130);
                }
            }
        });
    });
    Ok(())
}

/// Whether the run shall end.
pub(crate) fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}
