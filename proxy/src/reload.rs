//! Reload: builds the new settings first, then publishes them to the tunnels. What fails changes nothing and says so;
//! running sessions keep what they started with.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::config::{self, Config, Source};
use crate::logging::Level;
use crate::problem::Problem;
use crate::session::Settings;
use crate::tls::{Credentials, Loaded};

/// Everything that a start or a reload needs, read and judged by the same code.
pub(crate) struct Checked {
    pub(crate) config: Config,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) warnings: Vec<Problem>,
}

/// Reads `source` and the files it names, or says everything that is wrong.
pub(crate) fn load(source: &Source) -> Result<Checked, Vec<Problem>> {
    let config = Config::load(source)?;
    let Loaded {
        credentials,
        mut warnings,
    } = Credentials::load(&config.identity)?;
    warnings.extend(config.warnings.iter().cloned());
    Ok(Checked {
        config,
        credentials: Arc::new(credentials),
        warnings,
    })
}

/// The only writer of the running tunnels' settings.
pub(crate) struct Reloader {
    source: Source,
    level: Level,
    limits: config::Limits,
    format: config::LogFormat,
    tunnels: Vec<Running>,
}

struct Running {
    tunnel: config::Tunnel,
    settings: watch::Sender<Arc<Settings>>,
}

impl Reloader {
    /// Publishes the settings of the start; gives each tunnel with its receiver.
    pub(crate) fn new(
        source: Source,
        level: Level,
        checked: &Checked,
    ) -> (Self, Vec<watch::Receiver<Arc<Settings>>>) {
        let mut receivers = Vec::new();
        let tunnels = checked
            .config
            .tunnels
            .iter()
            .map(|tunnel| {
                let (settings, receiver) = watch::channel(settings(tunnel, checked));
                receivers.push(receiver);
                Running {
                    tunnel: tunnel.clone(),
                    settings,
                }
            })
            .collect();
        let reloader = Self {
            source,
            level,
            limits: checked.config.limits,
            format: checked.config.log.format,
            tunnels,
        };
        (reloader, receivers)
    }

    /// Reads everything again. Certificates, CRLs, rules, timeouts, targets and the log level take effect for new
    /// connections; what needs a restart is named.
    pub(crate) fn reload(&mut self) -> Result<(), Vec<Problem>> {
        let checked = match load(&self.source) {
            Ok(checked) => checked,
            Err(problems) => {
                for problem in &problems {
                    error!(problem = %one_line(problem), "reload refused; what worked is kept");
                }
                return Err(problems);
            }
        };
        log_warnings(&checked.warnings);
        let config = &checked.config;
        if config.limits != self.limits || config.log.format != self.format {
            warn!("limits and log.format take effect at the next restart");
        }
        for new in &config.tunnels {
            if !self
                .tunnels
                .iter()
                .any(|running| same_place(&running.tunnel, new))
            {
                warn!(tunnel = new.name, address = %new.listen, "a new or moved listener takes effect at the next restart");
            }
        }
        for running in &self.tunnels {
            match config
                .tunnels
                .iter()
                .find(|new| same_place(&running.tunnel, new))
            {
                Some(new) => {
                    running.settings.send_replace(settings(new, &checked));
                }
                None => warn!(
                    tunnel = running.tunnel.name,
                    "this tunnel is no longer configured; it goes on with its last rules until the next restart"
                ),
            }
        }
        self.level.set(config.log.level);
        info!(identity = %checked.credentials.identity(), "reloaded");
        Ok(())
    }
}

/// Where a reload's outcome is told.
pub(crate) type Asker = oneshot::Sender<Result<(), Vec<Problem>>>;

/// Asks the daemon for a reload from within: for the control socket, and for a CRL that came from another node.
#[derive(Clone)]
pub(crate) struct ReloadHandle(mpsc::Sender<Asker>);

impl ReloadHandle {
    /// The handle, and where the daemon hears of it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Asker>) {
        let (sender, receiver) = mpsc::channel(4);
        (Self(sender), receiver)
    }

    /// Asks, and waits for the outcome.
    pub(crate) async fn ask(&self) -> Result<(), Vec<Problem>> {
        let (asker, outcome) = oneshot::channel();
        let ending = || {
            vec![Problem::new(
                "E36",
                "nothing is reloaded any more",
                "the daemon is ending",
                "start it again; it reads everything then",
            )]
        };
        self.0.send(asker).await.map_err(|_| ending())?;
        outcome.await.unwrap_or_else(|_| Err(ending()))
    }

    /// Asks; how it went stands in the log. Where others wait for a reload already, theirs serves.
    pub(crate) fn ask_without_waiting(&self) {
        let (asker, _) = oneshot::channel();
        let _ = self.0.try_send(asker);
    }
}

/// Logs what works and deserves a look.
pub(crate) fn log_warnings(warnings: &[Problem]) {
    for warning in warnings {
        warn!(problem = %one_line(warning), "check");
    }
}

fn settings(tunnel: &config::Tunnel, checked: &Checked) -> Arc<Settings> {
    Arc::new(Settings::new(
        tunnel,
        checked.config.timeouts,
        checked.config.records,
        &checked.credentials,
    ))
}

fn same_place(running: &config::Tunnel, new: &config::Tunnel) -> bool {
    running.name == new.name && running.listen == new.listen
}

fn one_line(problem: &Problem) -> String {
    problem.to_string().replace('\n', ";").replace("  ", " ")
}
