//! What one connection goes by: the settings of its tunnel, taken when it was accepted. A reload never changes a
//! session half-way.

use std::net::IpAddr;
use std::sync::Arc;

use protocol::error_response::{Refusal, SqlState};
use protocol::identity::IdentityPattern;
use protocol::policy::{OsUserPolicy, Policy};
use tokio::sync::{Semaphore, watch};

use super::lately::Lately;
use super::names::Names;
use super::registry::Registry;
use super::tally::Tally;
use crate::config::{self, Records, Side, SslNegotiation, Timeouts};
use crate::flood::Flood;
use crate::health::Health;
use crate::net::{PostgresAddress, Target};
use crate::node::Service;
use crate::tls::Credentials;

/// A tunnel as its connections see it: two legs, and the limits.
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) downstream: DownstreamLeg,
    pub(crate) upstream: UpstreamLeg,
    pub(crate) timeouts: Timeouts,
    /// The names that this host's configuration gives those at the other end of TLS: by its rules, or its targets.
    pub(crate) names: Arc<Names>,
}

/// What a tunnel keeps from its start to its end, whatever is reloaded.
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) flood: Arc<Flood>,
    pub(crate) health: Arc<Health>,
    /// The settings of now, for new connections.
    pub(crate) current: watch::Receiver<Arc<Settings>>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) lately: Arc<Lately>,
    /// Plaintext cancels on their way; more at once are dropped, since anybody may send them.
    pub(crate) plain_cancels: Semaphore,
    pub(crate) node: Arc<Service>,
}

pub(crate) enum DownstreamLeg {
    Plain {
        /// None: a TCP listener, where every local process is let in.
        os_users: Option<OsUserPolicy>,
    },
    Mtls {
        credentials: Arc<Credentials>,
        policy: Policy,
        plain_cancel: bool,
        records: Records,
    },
}

pub(crate) enum UpstreamLeg {
    Plain {
        postgres: PostgresAddress,
    },
    Mtls {
        credentials: Arc<Credentials>,
        targets: Vec<Target>,
        server_name: Option<String>,
        negotiation: SslNegotiation,
        tls12: bool,
        records: Records,
    },
}

impl Settings {
    pub(crate) fn new(
        tunnel: &config::Tunnel,
        timeouts: Timeouts,
        records: Records,
        credentials: &Arc<Credentials>,
    ) -> Self {
        let (downstream, upstream) = match &tunnel.side {
            Side::Server(server) => (
                DownstreamLeg::Mtls {
                    credentials: Arc::clone(credentials),
                    policy: server.policy.clone(),
                    plain_cancel: server.plain_cancel,
                    records,
                },
                UpstreamLeg::Plain {
                    postgres: server.postgres.clone(),
                },
            ),
            Side::Client(client) => (
                DownstreamLeg::Plain {
                    os_users: client.os_users.clone().map(OsUserPolicy::new),
                },
                UpstreamLeg::Mtls {
                    credentials: Arc::clone(credentials),
                    targets: client.targets.clone(),
                    server_name: client.server_name.clone(),
                    negotiation: client.negotiation,
                    tls12: client.tls12,
                    records,
                },
            ),
        };
        let mut settings = Self {
            name: tunnel.name.as_str().into(),
            downstream,
            upstream,
            timeouts,
            names: Arc::default(),
        };
        settings.names = Arc::new(Names::new(settings.patterns()));
        settings
    }
}

/// The far side of a client tunnel, for what goes beside its sessions.
pub(crate) struct Far<'a> {
    pub(crate) credentials: &'a Credentials,
    pub(crate) targets: &'a [Target],
    pub(crate) server_name: Option<&'a str>,
}

impl Settings {
    /// `server` or `client`.
    pub(crate) fn side(&self) -> &'static str {
        match &self.upstream {
            UpstreamLeg::Plain { .. } => "server",
            UpstreamLeg::Mtls { .. } => "client",
        }
    }

    /// Where it leads.
    pub(crate) fn leads_to(&self) -> Vec<String> {
        match &self.upstream {
            UpstreamLeg::Plain { postgres } => vec![postgres.to_string()],
            UpstreamLeg::Mtls { targets, .. } => targets.iter().map(ToString::to_string).collect(),
        }
    }

    /// What its handshakes go by, on whichever leg they are.
    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        let near = self.near().map(|(credentials, _)| credentials);
        near.or_else(|| self.far().map(|far| far.credentials))
    }

    /// The far side; None for a server tunnel.
    pub(crate) fn far(&self) -> Option<Far<'_>> {
        match &self.upstream {
            UpstreamLeg::Plain { .. } => None,
            UpstreamLeg::Mtls {
                credentials,
                targets,
                server_name,
                ..
            } => Some(Far {
                credentials,
                targets,
                server_name: server_name.as_deref(),
            }),
        }
    }

    /// Whoever comes by TLS: by which credentials and rules.
    pub(crate) fn near(&self) -> Option<(&Credentials, &Policy)> {
        match &self.downstream {
            DownstreamLeg::Plain { .. } => None,
            DownstreamLeg::Mtls {
                credentials,
                policy,
                ..
            } => Some((credentials, policy)),
        }
    }

    fn patterns(&self) -> Vec<IdentityPattern> {
        let near = self.near().into_iter();
        let near = near.flat_map(|(_, policy)| policy.names().cloned());
        let far = self
            .far()
            .into_iter()
            .flat_map(|far| match far.server_name {
                Some(name) => vec![server_pattern(name)],
                None => far
                    .targets
                    .iter()
                    .map(|target| server_pattern(&target.host))
                    .collect(),
            });
        let mut names: Vec<IdentityPattern> = Vec::new();
        for name in near.chain(far.flatten()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The PostgreSQL behind a server tunnel.
    pub(crate) fn postgres(&self) -> Option<&PostgresAddress> {
        match &self.upstream {
            UpstreamLeg::Plain { postgres } => Some(postgres),
            UpstreamLeg::Mtls { .. } => None,
        }
    }
}

/// The certificates that a server's name admits; None where no certificate can bear it.
pub(super) fn server_pattern(name: &str) -> Option<IdentityPattern> {
    let kind = match name.parse::<IpAddr>() {
        Ok(_) => "ip",
        Err(_) => "dns",
    };
    format!("{kind}:{name}").parse().ok()
}

/// What frontends are told when this process is stopped (SQLSTATE 57P01, as PostgreSQL's own shutdown).
pub(crate) fn shutdown_farewell() -> Refusal {
    Refusal::new(
        "D02",
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection: this proxy is being stopped",
    )
    .hint("the connection can be made again when the proxy runs again")
}
