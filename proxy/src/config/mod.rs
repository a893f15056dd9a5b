//! The configuration as it is meant: paths absolute, durations typed, rules compiled. After [`Config::load`]
//! nothing is checked again; `check`, the start and a reload run exactly this code.

mod file;
mod flags;
mod meaning;
mod network;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::policy::Policy;
use tracing::level_filters::LevelFilter;

use crate::net::{ListenAddress, PostgresAddress, Target};
use crate::problem::Problem;

pub(crate) use flags::{ClientFlags, ServerFlags};
pub(crate) use network::Network;

/// Where a configuration comes from, so that a reload can read it again.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    File(PathBuf),
    Server(ServerFlags),
    Client(ClientFlags),
}

/// Everything the daemon needs to know, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) identity: IdentityFiles,
    pub(crate) tunnels: Vec<Tunnel>,
    pub(crate) node: Node,
    /// Where commands ask the daemon; None: nowhere.
    pub(crate) control: Option<PathBuf>,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) log: Log,
    pub(crate) records: Records,
    /// Where `status` asks.
    pub(crate) admin_socket: Option<PathBuf>,
    /// Where HTTP is answered, on loopback, and whether it tells the snapshot.
    pub(crate) admin_listen: Option<SocketAddr>,
    pub(crate) admin_status: bool,
    /// What works but deserves a look: a rule that can never match, a listener open to every local user.
    pub(crate) warnings: Vec<Problem>,
}

/// This node's certificate, key, trusted CAs and CRLs, as absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentityFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) crl: Option<PathBuf>,
    pub(crate) crl_expiry: CrlExpiry,
    pub(crate) on_expiry: Running,
    pub(crate) on_ca_removal: Running,
    /// Where CRLs are kept that came from other nodes; the newer of it and `crl` counts.
    pub(crate) kept_crl: Option<PathBuf>,
}

impl IdentityFiles {
    /// Every file that is read, so that a change of one can be noticed. The next key does not count before its
    /// certificate is there.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key, &self.ca]
            .into_iter()
            .chain(&self.crl)
            .chain(&self.kept_crl)
            .cloned()
            .chain([self.renewal_note()])
            .collect()
    }

    /// The key that a renewal puts in the place of `key`. Until it lies there, after the certificate, it counts here.
    pub(crate) fn next_key(&self) -> PathBuf {
        beside(&self.key, "next")
    }

    /// What keeps the certificate from being renewed, while something does.
    pub(crate) fn renewal_note(&self) -> PathBuf {
        beside(&self.cert, "renewal")
    }
}

/// What goes on between nodes beside the sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// How often CRLs are exchanged with the targets of client tunnels.
    pub(crate) crl_interval: Duration,
    /// The CA's host, which is asked for the next certificate; empty: the targets of the client tunnels.
    pub(crate) renew_from: Vec<Target>,
    /// The name in its certificate; None: each target's own host.
    pub(crate) renew_name: Option<String>,
}

/// `PATH.END`.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

/// What an expired CRL means. An expired CRL is the commonest outage that people make for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrlExpiry {
    Warn,
    Enforce,
}

/// What becomes of a running session when the certificate that its peer showed would not be accepted any more, though
/// nobody has revoked it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Running {
    /// It goes on, with a warning.
    Keep,
    /// It is ended at once.
    Close,
}

/// One listener and what it forwards to.
#[derive(Debug, Clone)]
pub(crate) struct Tunnel {
    /// `server`, `client`, or with a number where there are several.
    pub(crate) name: String,
    pub(crate) listen: ListenAddress,
    pub(crate) side: Side,
}

/// Which end of the TLS connection a tunnel is.
#[derive(Debug, Clone)]
pub(crate) enum Side {
    Server(Server),
    Client(Client),
}

#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) postgres: PostgresAddress,
    pub(crate) policy: Policy,
    pub(crate) plain_cancel: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) targets: Vec<Target>,
    /// Numeric ids and names of the OS users that may use the Unix socket; none on a TCP listener.
    pub(crate) os_users: Option<Vec<(u32, String)>>,
    pub(crate) server_name: Option<String>,
    pub(crate) negotiation: SslNegotiation,
    pub(crate) tls12: bool,
}

/// How a client tunnel opens TLS; the names are libpq's (`sslnegotiation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslNegotiation {
    /// The ClientHello at once, ALPN `postgresql`: a pgtlsproxy, or PostgreSQL 17 and later.
    Direct,
    /// SSLRequest first: any PostgreSQL with `ssl = on`.
    Postgres,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Sessions of the whole process.
    pub(crate) sessions: usize,
    /// Connections that have not yet shown a valid startup; the oldest gives way to a new one.
    pub(crate) handshakes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// From accept to the whole startup.
    pub(crate) handshake: Duration,
    /// A server tunnel's dial of PostgreSQL.
    pub(crate) dial: Duration,
    /// A client tunnel's whole way from dial to the forwarded startup, divided among its targets.
    pub(crate) connect: Duration,
    /// The wait for the upstream's first message after the startup was forwarded.
    pub(crate) answer: Duration,
    /// How long a TLS peer may acknowledge nothing.
    pub(crate) dead_peer: Duration,
    /// How long sessions live on after SIGTERM.
    pub(crate) drain: Duration,
}

/// Who opens and seals TLS records in the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Records {
    /// rustls, with a copy and an allocation for each.
    Rustls,
    /// The relay itself, where they lie.
    InPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: LevelFilter,
    pub(crate) format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Source {
    /// The file to read, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) | Self::Client(_) => None,
        }
    }
}

impl Config {
    /// Reads `source` and gives its meaning, or every error found.
    pub(crate) fn load(source: &Source) -> Result<Self, Vec<Problem>> {
        let (file, base) = match source {
            Source::File(path) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let base = absolute.parent().map(PathBuf::from).unwrap_or_default();
                (
                    file::File::load(path).map_err(|problem| vec![problem])?,
                    base,
                )
            }
            Source::Server(flags) => (flags.to_file(), current_directory()),
            Source::Client(flags) => (flags.to_file(), current_directory()),
        };
        meaning::interpret(file, &base)
    }
}

/// Where a daemon with this configuration file answers `status`; nothing else in the file is judged.
pub(crate) fn admin_socket(path: &Path) -> Result<Option<PathBuf>, Problem> {
    let socket = file::File::load(path)?.admin.socket;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = absolute.parent().map(PathBuf::from).unwrap_or_default();
    Ok(socket.map(|socket| base.join(socket)))
}

fn current_directory() -> PathBuf {
    // Without one, relative paths stay relative, which the system resolves the same way.
    std::env::current_dir().unwrap_or_default()
}
