//! The flags of `server` and `client`, written as the file they stand for, so that both mean the same.

use std::path::PathBuf;

use clap::Args;

use super::file::{
    Admin, Allow, Client, Control, File, Identity, Limits, Log, Node, Relay, Server, Timeouts,
};

/// This node's certificate and whom it trusts.
#[derive(Debug, Clone, Args)]
pub(crate) struct IdentityFlags {
    /// Certificate of this node: PEM, leaf first, then intermediates
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Private key of that certificate: PEM, mode 0600 (or 0640 root:group)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The CAs that peers' certificates must lead to: PEM
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Certificate revocation lists, one per CA: PEM
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
}

/// How to log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogFlags {
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServerFlags {
    /// Where standbys' proxies connect: IP:PORT
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// The local PostgreSQL: its Unix socket, or HOST:PORT on loopback
    #[arg(long, value_name = "ADDR|SOCKET")]
    postgres: String,
    #[command(flatten)]
    identity: IdentityFlags,
    /// Who may connect, e.g. dns:standby1.example.com; may be repeated. Without it: any certificate of the CA
    #[arg(long, value_name = "IDENTITY")]
    allow: Vec<String>,
    /// Let those identities open ordinary connections too (pg_rewind, slot sync, psql), not replication alone
    #[arg(long, requires = "allow")]
    allow_ordinary: bool,
    #[command(flatten)]
    log: LogFlags,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ClientFlags {
    /// Where the local PostgreSQL connects: a directory (the socket .s.PGSQL.5442 is made in it) or IP:PORT
    #[arg(long, value_name = "ADDR|SOCKET_DIR")]
    listen: String,
    /// The far proxy, or several, tried in order: HOST:PORT[,HOST:PORT...]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    connect: Vec<String>,
    #[command(flatten)]
    identity: IdentityFlags,
    /// The name that the far certificate must carry [default: each target's own host]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// direct (a pgtlsproxy, or PostgreSQL 17+) or postgres (SSLRequest first)
    #[arg(long, value_name = "direct|postgres")]
    sslnegotiation: Option<String>,
    #[command(flatten)]
    log: LogFlags,
}

impl ServerFlags {
    pub(super) fn to_file(&self) -> File {
        let allow = self.allow.iter().map(|identity| Allow {
            identity: identity.clone(),
            from: None,
            replication: None,
            ordinary: self.allow_ordinary,
            users: None,
            databases: None,
            application_names: None,
        });
        let server = Server {
            listen: self.listen.clone(),
            postgres: self.postgres.clone(),
            allow: allow.collect(),
            plain_cancel: false,
            plaintext_off_host: false,
        };
        file(&self.identity, &self.log, vec![server], vec![])
    }
}

impl ClientFlags {
    pub(super) fn to_file(&self) -> File {
        let client = Client {
            listen: self.listen.clone(),
            connect: self.connect.clone(),
            allow_os_users: None,
            server_name: self.server_name.clone(),
            sslnegotiation: self.sslnegotiation.clone(),
            min_tls: None,
            plaintext_off_host: false,
        };
        file(&self.identity, &self.log, vec![], vec![client])
    }
}

fn file(
    identity: &IdentityFlags,
    log: &LogFlags,
    server: Vec<Server>,
    client: Vec<Client>,
) -> File {
    File {
        identity: Identity {
            cert: identity.cert.clone(),
            key: identity.key.clone(),
            ca: identity.ca.clone(),
            crl: identity.crl.clone(),
            crl_expiry: None,
            on_expiry: None,
            on_ca_removal: None,
        },
        server,
        client,
        node: Node::default(),
        control: Control::default(),
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        log: Log {
            level: log.log_level.clone(),
            format: log.log_format.clone(),
        },
        relay: Relay::default(),
        admin: Admin::default(),
    }
}
