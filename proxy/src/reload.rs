//! Reload: on SIGHUP, and by itself when a file holds something else than before. Builds the new settings first, then
//! publishes them to the tunnels, then judges the running sessions by them. What fails changes nothing and says so.
//! Files are read off the runtime's threads, one read at a time: a network file system may hang.

mod read; // everything that is configured, from its files
mod started; // what only a start takes

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use crate::config::{self, Config, Source};
use crate::health::Health;
use crate::logging::Level;
use crate::problem::Problem;
use crate::session::{Registry, Settings};
use crate::systemd;
use crate::tls::Credentials;
use crate::watch::Look;
use read::{InUse, read_again};
use started::Started;

pub(crate) use read::{Checked, Reading, load, read};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a change: two looks, so far apart, that agree end the wait for whoever still writes.
const SETTLE: Duration = Duration::from_millis(250);
/// A file that never stands still is read all the same.
const SETTLED_AT_LAST: Duration = Duration::from_secs(1);
/// What is wrong with files that were found changed is told when it has stood for so long: key and certificate, or
/// both halves of a file, seldom come in the same moment.
const WRONG_FOR: Duration = Duration::from_secs(2);
/// Files that change all the time and are always wrong are told after so long.
const WRONG_AT_LAST: Duration = Duration::from_secs(10);
/// A read that takes longer is told of.
const HANGS: Duration = Duration::from_secs(10);

/// The only writer of the running tunnels' settings.
pub(crate) struct Reloader {
    source: Source,
    level: Level,
    started: Started,
    drain: watch::Sender<Duration>,
    tunnels: Vec<Running>,
    credentials: watch::Sender<Arc<Credentials>>,
    registry: Arc<Registry>,
    health: Arc<Health>,
    /// The files as they were when they were read last.
    seen: Look,
    wrong: Option<Wrong>,
}

struct Running {
    tunnel: config::Tunnel,
    timeouts: config::Timeouts,
    records: config::Records,
    settings: watch::Sender<Arc<Settings>>,
}

/// Files that cannot be taken as they are.
struct Wrong {
    problems: Vec<Problem>,
    /// When the files were first found wrong, and when they became as they are.
    since: Instant,
    unchanged_since: Instant,
    told: bool,
}

/// What made us read the files again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Asked,
    Change,
}

impl Reloader {
    /// Publishes the settings of the start; gives each tunnel with its receiver.
    pub(crate) fn new(
        source: Source,
        level: Level,
        checked: &Checked,
        seen: Look,
        registry: Arc<Registry>,
        health: Arc<Health>,
    ) -> (Self, Vec<watch::Receiver<Arc<Settings>>>) {
        let mut receivers = Vec::new();
        let config = &checked.config;
        let tunnels = config
            .tunnels
            .iter()
            .map(|tunnel| {
                let running = Running {
                    tunnel: tunnel.clone(),
                    timeouts: config.timeouts,
                    records: config.records,
                    settings: watch::Sender::new(Arc::new(Settings::new(
                        tunnel,
                        config.timeouts,
                        config.records,
                        &checked.credentials,
                    ))),
                };
                receivers.push(running.settings.subscribe());
                running
            })
            .collect();
        let reloader = Self {
            source,
            level,
            started: checked.configured.clone(),
            drain: watch::Sender::new(config.timeouts.drain),
            tunnels,
            credentials: watch::Sender::new(Arc::clone(&checked.credentials)),
            registry,
            health,
            seen,
            wrong: None,
        };
        (reloader, receivers)
    }

    /// The credentials of now.
    pub(crate) fn credentials(&self) -> watch::Receiver<Arc<Credentials>> {
        self.credentials.subscribe()
    }

    /// How long sessions go on after SIGTERM.
    pub(crate) fn drain(&self) -> watch::Receiver<Duration> {
        self.drain.subscribe()
    }

    /// Watches the files, and reads them when `asked`, for as long as the process runs.
    pub(crate) async fn run(mut self, mut asked: mpsc::Receiver<Asker>) {
        loop {
            tokio::select! {
                Some(asker) = asked.recv() => {
                    systemd::reloading();
                    let outcome = self.reload(Cause::Asked).await;
                    systemd::ready();
                    // Who does not wait reads the log.
                    let _ = asker.send(outcome);
                }
                () = sleep(LOOK_EVERY) => {
                    if self.has_changed().await {
                        self.settled().await;
                        // What is wrong stands in the log when it has stood for a while.
                        let _ = self.reload(Cause::Change).await;
                    } else {
                        self.tell_what_stays_wrong();
                    }
                }
            }
        }
    }

    async fn look(&self) -> Look {
        let seen = self.seen.clone();
        patiently(move || seen.again()).await
    }

    async fn has_changed(&self) -> bool {
        self.look().await != self.seen
    }

    /// Completes when nobody seems to write any more.
    async fn settled(&self) {
        let begin = Instant::now();
        let mut before = self.look().await;
        while begin.elapsed() < SETTLED_AT_LAST {
            sleep(SETTLE).await;
            let now = self.look().await;
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// Reads everything again. Certificates, CRLs, rules, timeouts, targets and the log level take effect for new
    /// connections; running sessions that would not be admitted any more are ended; what needs a restart is named.
    async fn reload(&mut self, cause: Cause) -> Result<(), Vec<Problem>> {
        let source = self.source.clone();
        let in_use = InUse {
            certificate: self.credentials.borrow().identity().fingerprint(),
            kept_crl: self.started.kept_crl.clone(),
        };
        let Reading { look, result } = patiently(move || read_again(&source, in_use)).await;
        self.seen = look;
        match result {
            Ok(checked) => {
                self.wrong = None;
                self.publish(checked).await;
                Ok(())
            }
            Err(problems) => {
                let now = Instant::now();
                let before = self.wrong.take();
                let same = before
                    .as_ref()
                    .is_some_and(|wrong| wrong.problems == problems);
                self.wrong = Some(Wrong {
                    problems: problems.clone(),
                    since: before.as_ref().map_or(now, |wrong| wrong.since),
                    unchanged_since: now,
                    told: same && before.is_some_and(|wrong| wrong.told),
                });
                if cause == Cause::Asked {
                    self.tell_what_is_wrong();
                } else {
                    self.tell_what_stays_wrong();
                }
                Err(problems)
            }
        }
    }

    fn tell_what_stays_wrong(&mut self) {
        if self.wrong.as_ref().is_some_and(|wrong| {
            !wrong.told
                && (wrong.unchanged_since.elapsed() >= WRONG_FOR
                    || wrong.since.elapsed() >= WRONG_AT_LAST)
        }) {
            self.tell_what_is_wrong();
        }
    }

    fn tell_what_is_wrong(&mut self) {
        if let Some(wrong) = &mut self.wrong {
            wrong.told = true;
            for problem in &wrong.problems {
                error!(problem = %problem.one_line(), "reload refused; what worked is kept");
            }
            self.health.refused(&wrong.problems);
        }
    }

    async fn publish(&mut self, checked: Checked) {
        let config = &checked.config;
        let unheeded = self.started.unlike(&checked.configured);
        if !unheeded.is_empty() {
            warn!(
                "what has changed of {} takes effect at the next restart",
                unheeded.join(", ")
            );
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
        for running in &mut self.tunnels {
            match config
                .tunnels
                .iter()
                .find(|new| same_place(&running.tunnel, new))
            {
                Some(new) => running.take(new, config),
                None => warn!(
                    tunnel = running.tunnel.name,
                    "this tunnel is no longer configured; it goes on with its last rules until the next restart"
                ),
            }
            // Revocation reaches every tunnel, also one that is no longer configured.
            running.publish(&checked.credentials);
        }
        self.credentials
            .send_replace(Arc::clone(&checked.credentials));
        self.level.set(config.log.level);
        self.drain.send_replace(config.timeouts.drain);
        self.health.found(&checked.warnings);
        self.health.reloaded();
        let sessions_ended = self.judge_again().await;
        info!(identity = %checked.credentials.identity(), sessions_ended, "reloaded");
    }

    /// Ends the sessions that the settings just published do not admit; how many.
    async fn judge_again(&self) -> usize {
        let registry = Arc::clone(&self.registry);
        let settings: Vec<_> = self
            .tunnels
            .iter()
            .map(|running| Arc::clone(&running.settings.borrow()))
            .collect();
        let judged = spawn_blocking(move || {
            let ended = settings
                .iter()
                .map(|settings| registry.judge_again(settings));
            ended.sum()
        });
        // A panic in it is logged by the runtime.
        judged.await.unwrap_or_default()
    }
}

/// Where a reload's outcome is told.
pub(crate) type Asker = oneshot::Sender<Result<(), Vec<Problem>>>;

/// Asks for a reload: by a signal, through the control socket, for a CRL that came from another node.
#[derive(Clone)]
pub(crate) struct ReloadHandle(mpsc::Sender<Asker>);

impl ReloadHandle {
    /// The handle, and where the reloader hears of it.
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

impl Running {
    /// Takes what is configured for it now. It keeps its name, by which its sessions know it.
    fn take(&mut self, new: &config::Tunnel, config: &Config) {
        self.tunnel.side = new.side.clone();
        self.timeouts = config.timeouts;
        self.records = config.records;
    }

    fn publish(&self, credentials: &Arc<Credentials>) {
        self.settings.send_replace(Arc::new(Settings::new(
            &self.tunnel,
            self.timeouts,
            self.records,
            credentials,
        )));
    }
}

/// A listener is known by its address: names are numbers where there are several, and change with them. Where the
/// system chose the port, only the name is left.
fn same_place(running: &config::Tunnel, new: &config::Tunnel) -> bool {
    let same_side = matches!(
        (&running.side, &new.side),
        (config::Side::Server(_), config::Side::Server(_))
            | (config::Side::Client(_), config::Side::Client(_))
    );
    same_side
        && running.listen == new.listen
        && (running.name == new.name || !running.listen.is_any_port())
}

/// Runs what reads files off the runtime's threads, and says so if it hangs.
async fn patiently<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    let mut reading = spawn_blocking(read);
    let mut told = false;
    loop {
        match timeout(HANGS, &mut reading).await {
            Ok(Ok(value)) => return value,
            // It never panics; if it did, there would be nothing to go on with.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) if told => {}
            Err(_) => {
                told = true;
                warn!(
                    "[R01] reading configuration and certificates takes more than {} s; until it is over no change is noticed: look at the file system they are on",
                    HANGS.as_secs()
                );
            }
        }
    }
}
