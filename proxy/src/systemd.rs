//! What systemd is told, where it asks (sd_notify(3)): ready, reloading, stopping, a line of status, and that we are
//! alive. Without NOTIFY_SOCKET nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::health::Health;

/// Between two lines of status.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Every listener is open, or a reload is over.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload that was asked for begins; [`ready`] ends it.
pub(crate) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The process drains and ends, within this time: it is asked for, where the unit's TimeoutStopSec is shorter.
pub(crate) fn stopping(within: Duration) {
    let wanted = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(wanted),
    ]);
}

/// Keeps the line of status true and the watchdog quiet, for as long as the process runs.
pub(crate) async fn run(health: &Health) {
    tokio::join!(show_status(health), stay_alive());
}

async fn show_status(health: &Health) {
    let mut shown = None;
    loop {
        let status = status(health);
        if shown.as_ref() != Some(&status) {
            tell(&[NotifyState::Status(&status)]);
            shown = Some(status);
        }
        sleep(AT_MOST_EVERY).await;
        health.changed().await;
    }
}

/// Half of the time after which systemd would restart us, as sd_watchdog_enabled(3) advises.
async fn stay_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut beat = interval((limit / 2).max(Duration::from_millis(1)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// One line, the worst first.
fn status(health: &Health) -> String {
    let refused = health.last_reload().and_then(|reload| reload.outcome.err());
    let warnings = health.warnings();
    let refused = refused.iter().flatten();
    let mut lines = refused
        .map(|problem| format!("reload refused: {}", problem.one_line()))
        .chain(warnings.iter().map(|warning| warning.problem.one_line()));
    match (lines.next(), lines.count()) {
        (None, _) => "running".to_owned(),
        (Some(first), 0) => first,
        (Some(first), more) => format!("{first} (and {more} more)"),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // Nobody is left to be told that it failed.
    let _ = sd_notify::notify(state);
}
