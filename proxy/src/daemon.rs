//! The process from start to end: checks, listeners, signals, reload, drain.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admin;
use crate::config::{self, Config, Limits, Source};
use crate::control::{self, Invitations, Renewals};
use crate::flood::Flood;
use crate::health::Health;
use crate::net::Listener;
use crate::node;
use crate::problem::Problem;
use crate::reload::{Checked, Reading, ReloadHandle, Reloader, read};
use crate::session::{Lately, Registry, Shared, TRACED_EVERY_SECONDS, Tally, shutdown_farewell};
use crate::snapshot::{Facts, TunnelFacts};
use crate::tunnel::Tunnel;
use crate::waiting::WaitingRoom;
use crate::watch::Look;
use crate::workers::Workers;
use crate::{lifetime, logging, memory, systemd};

/// Plaintext cancels that may be on their way at once, per tunnel.
const PLAIN_CANCELS: usize = 4;
/// After the farewell. Sessions bound themselves to less: two seconds up to a message boundary, two for the close.
const LAST_SESSIONS: Duration = Duration::from_secs(5);

/// Runs until a signal ends it.
pub(crate) fn run(source: Source) -> Result<(), Vec<Problem>> {
    let Reading { look, result } = read(&source, None);
    let checked = result?;
    let level = logging::start(checked.config.log);
    let limits = fitting(checked.config.limits, raise_descriptor_limit());
    let no_threads = |error: io::Error| {
        vec![Problem::new(
            "C10",
            "the process cannot start its threads",
            error.to_string(),
            "look at this unit's limits (LimitNPROC, TasksMax)",
        )]
    };
    // This thread accepts, reloads and waits for signals; workers serve.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(no_threads)?;
    let workers = Arc::new(Workers::start().map_err(no_threads)?);
    let ended = runtime.block_on(serve(source, checked, look, level, limits, workers));
    // What is still under way has had its time.
    runtime.shutdown_background();
    ended
}

async fn serve(
    source: Source,
    checked: Checked,
    look: Look,
    level: logging::Level,
    limits: Limits,
    workers: Arc<Workers>,
) -> Result<(), Vec<Problem>> {
    let mut signals = Signals::new()?;
    let health = Arc::new(Health::default());
    health.found(&checked.warnings);
    let registry = Arc::new(Registry::new(limits.sessions));
    let room = Arc::new(WaitingRoom::new(limits.handshakes));
    let listeners = open_listeners(&checked.config)?;
    let status = open_status(&checked.config)?;
    let tells_status = checked.config.admin_status;
    let http = match checked.config.admin_listen {
        Some(listen) => {
            let listener = admin::http::open(listen);
            Some((listener.map_err(|problem| vec![problem])?, listen))
        }
        None => None,
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        identity = %checked.credentials.identity(),
        "started"
    );
    let control = match &checked.config.control {
        Some(path) => Some(control::listen(path).map_err(|problem| vec![problem])?),
        None => None,
    };
    let interval = checked.config.node.crl_interval;
    let (reload, asked) = ReloadHandle::new();
    let renewals = control.is_some().then(|| Arc::new(Renewals::default()));
    let node = Arc::new(node::Service {
        keeper: node::Keeper::new(checked.config.identity.kept_crl.clone(), reload.clone()),
        invitations: Arc::new(Invitations::default()),
        renewals: renewals.clone(),
        health: Arc::clone(&health),
        heard: node::Heard::default(),
        seats: node::Seats::default(),
    });
    let exchanging: Vec<bool> = checked
        .config
        .tunnels
        .iter()
        .map(|tunnel| checked.config.identity.kept_crl.is_some() && exchanges(tunnel))
        .collect();
    let (reloader, settings) = Reloader::new(
        source,
        level,
        &checked,
        look,
        Arc::clone(&registry),
        Arc::clone(&health),
    );
    drop(checked);
    let drain = reloader.drain();
    let (close, closing) = watch::channel(false);
    let mut tunnels = Vec::new();
    if let Some((listener, renewals)) = control.zip(renewals) {
        let desk = control::Desk {
            invitations: Arc::clone(&node.invitations),
            renewals,
            reload: reload.clone(),
            node: Arc::clone(&node),
            registry: Arc::clone(&registry),
            credentials: reloader.credentials(),
        };
        tunnels.push(tokio::spawn(control::serve(
            listener,
            desk,
            closing.clone(),
        )));
    }
    let mut facts = Facts {
        started: SystemTime::now(),
        registry: Arc::clone(&registry),
        health: Arc::clone(&health),
        tunnels: Vec::new(),
    };
    for ((listener, settings), exchanging) in listeners.into_iter().zip(settings).zip(exchanging) {
        if exchanging {
            let node = Arc::clone(&node);
            let exchange = node::exchange(settings.clone(), node, interval, closing.clone());
            tunnels.push(tokio::spawn(exchange));
        }
        let (tally, lately) = (Arc::new(Tally::default()), Arc::new(Lately::default()));
        facts.tunnels.push(TunnelFacts {
            listen: listener.address(),
            settings: settings.clone(),
            tally: Arc::clone(&tally),
            lately: Arc::clone(&lately),
        });
        let tunnel = Tunnel {
            listener,
            shared: Arc::new(Shared {
                registry: Arc::clone(&registry),
                flood: Arc::new(Flood::new()),
                health: Arc::clone(&health),
                current: settings,
                tally,
                lately,
                plain_cancels: Semaphore::new(PLAIN_CANCELS),
                node: Arc::clone(&node),
            }),
            room: Arc::clone(&room),
            workers: Arc::clone(&workers),
        };
        tunnels.push(tokio::spawn(tunnel.run(closing.clone())));
    }
    tokio::spawn(lifetime::run(
        reloader.credentials(),
        Arc::clone(&registry),
        Arc::clone(&health),
        node.renewals.clone(),
    ));
    tokio::spawn(reloader.run(asked));
    tokio::spawn(memory::give_back(Arc::clone(&workers)));
    tokio::spawn(async move { systemd::run(&health).await });
    systemd::ready();
    let facts = Arc::new(facts);
    if status.is_some() || http.is_some() {
        tokio::spawn(meter(Arc::clone(&registry)));
    }
    if let Some(listener) = status {
        serve_status(listener, &facts);
    }
    if let Some((listener, listen)) = http {
        if tells_status {
            tokio::spawn(trace(Arc::clone(&registry)));
        }
        let http = admin::http::Http {
            listen,
            facts,
            status: tells_status,
            closing: close.subscribe(),
        };
        tokio::spawn(admin::http::serve(listener, http));
    }
    while signals.next().await == Asked::Reload {
        reload.ask_without_waiting();
    }
    let drain = *drain.borrow();
    systemd::stopping(drain.saturating_add(LAST_SESSIONS * 2));
    close.send_replace(true);
    for tunnel in tunnels {
        // It ends at the word, and closes its listener; a panic in it is logged by the runtime.
        let _ = tunnel.await;
    }
    tokio::select! {
        () = end_sessions(&registry, drain) => {}
        () = signals.ended() => info!("a second signal: ending at once"),
    }
    workers.end();
    info!("stopped");
    Ok(())
}

/// Whether this tunnel's targets are asked for CRLs: those that speak TLS at once, as a pgtlsproxy does.
fn exchanges(tunnel: &config::Tunnel) -> bool {
    matches!(&tunnel.side, config::Side::Client(client) if client.negotiation == config::SslNegotiation::Direct)
}

/// Opens every listener or none: one that cannot be opened ends the start.
fn open_listeners(config: &Config) -> Result<Vec<Listener>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut listeners = Vec::new();
    for tunnel in &config.tunnels {
        match Listener::bind(&tunnel.listen) {
            Ok(listener) => listeners.push(listener),
            Err(error) => problems.push(Problem::new(
                "N10",
                format!("{} cannot listen on {}", tunnel.name, error.address),
                error.source.to_string(),
                error.way_out,
            )),
        }
    }
    if problems.is_empty() {
        Ok(listeners)
    } else {
        Err(problems)
    }
}

/// Opens the status socket, if there shall be one.
fn open_status(config: &Config) -> Result<Option<Listener>, Vec<Problem>> {
    let Some(path) = &config.admin_socket else {
        return Ok(None);
    };
    match Listener::bind_socket(path, admin::SOCKET_MODE) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(vec![Problem::new(
            "O01",
            format!("the status socket cannot be made at {}", error.address),
            error.source.to_string(),
            error.way_out,
        )]),
    }
}

/// Answers on the status socket until the process ends: what is drained can be watched.
fn serve_status(listener: Listener, facts: &Arc<Facts>) {
    let listener = Arc::new(listener);
    for _ in 0..admin::AT_A_TIME {
        tokio::spawn(admin::answer(Arc::clone(&listener), Arc::clone(facts)));
    }
}

/// Reads the meters that answers tell.
async fn meter(registry: Arc<Registry>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        registry.meter().await;
    }
}

/// Remembers how streams flow, for the page.
async fn trace(registry: Arc<Registry>) {
    let mut moment = tokio::time::interval(Duration::from_secs(TRACED_EVERY_SECONDS));
    loop {
        moment.tick().await;
        registry.trace().await;
    }
}

/// Lets sessions go on for a while, then ends them with a word at a message boundary.
async fn end_sessions(registry: &Registry, drain: Duration) {
    let sessions = registry.len();
    if sessions > 0 {
        info!(sessions, seconds = drain.as_secs_f64(), "draining");
    }
    if timeout(drain, registry.emptied()).await.is_ok() {
        return;
    }
    registry.close(&shutdown_farewell());
    if timeout(LAST_SESSIONS, registry.emptied()).await.is_err() {
        warn!(
            sessions = registry.len(),
            "sessions that did not end in time are cut off"
        );
    }
}

/// What a signal asks for.
#[derive(PartialEq, Eq)]
enum Asked {
    Reload,
    End,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Vec<Problem>> {
        let open = |kind| {
            signal(kind).map_err(|error| {
                vec![Problem::new(
                    "C10",
                    "the process cannot receive signals",
                    error.to_string(),
                    "start it again",
                )]
            })
        };
        Ok(Self {
            hangup: open(SignalKind::hangup())?,
            terminate: open(SignalKind::terminate())?,
            interrupt: open(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
        }
    }

    async fn ended(&mut self) {
        while self.next().await != Asked::End {}
    }
}

/// Raises the soft limit of open files to the hard one, and gives it. Two descriptors a session are soon more than
/// the usual 1024.
fn raise_descriptor_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_or(soft, |()| hard)
        }
        Ok((soft, _)) => soft,
        Err(_) => 1024,
    }
}

/// Limits that the process' descriptors suffice for: a session takes two, a handshake one, and some are needed for
/// files. At most half go to sessions, so that handshakes have their share.
fn fitting(limits: Limits, descriptors: u64) -> Limits {
    const FOR_FILES: usize = 64;
    let available = usize::try_from(descriptors)
        .unwrap_or(usize::MAX)
        .saturating_sub(FOR_FILES);
    let sessions = limits.sessions.min((available / 4).max(1));
    let handshakes = limits
        .handshakes
        .min(available.saturating_sub(sessions * 2).max(1));
    let fitting = Limits {
        sessions,
        handshakes,
    };
    if fitting != limits {
        warn!(
            descriptors,
            sessions,
            handshakes,
            "the limit of open files (ulimit -n, LimitNOFILE) allows less than was configured"
        );
    }
    fitting
}
