//! Where the log goes and how it looks: stderr, text or JSON, with a level that a reload may change.

use std::io::{IsTerminal, stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// Changes the level of the running log.
pub(crate) struct Level(reload::Handle<LevelFilter, Registry>);

/// Starts logging; once per process.
pub(crate) fn start(log: Log) -> Level {
    let (filter, handle) = reload::Layer::new(log.level);
    let layer = match log.format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_target(false)
            .with_writer(stderr)
            .boxed(),
        LogFormat::Text => fmt::layer()
            .with_target(false)
            .with_ansi(stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_writer(stderr)
            .boxed(),
    };
    // A second start in one process keeps the first log, which is as good.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init();
    Level(handle)
}

impl Level {
    pub(crate) fn set(&self, level: LevelFilter) {
        // It fails only when the log is gone, and then there is nothing to set.
        let _ = self.0.reload(level);
    }
}
