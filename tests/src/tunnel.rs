//! The usual picture: a server beside one PostgreSQL, a client beside the other, with certificates of one CA.

use std::fmt::Display;
use std::net::SocketAddr;

use crate::pki::{Identity, Pki};
use crate::postgres::Node;
use crate::sidecar::Sidecar;

/// Two sidecars, `primary` (the server) and `standby` (the client), named by their certificates.
#[derive(Debug)]
pub struct Tunnel {
    /// The CA of both.
    pub pki: Pki,
    /// Beside the primary.
    pub server: Sidecar,
    /// Beside the standby.
    pub client: Sidecar,
}

impl Tunnel {
    /// A tunnel to a node's Unix socket that lets replication through.
    pub fn to(primary: &Node) -> Self {
        Self::with(primary.socket().display(), "", "")
    }

    /// A tunnel to a node that lets every connection of the standby through.
    pub fn for_all(primary: &Node) -> Self {
        let allow = "[[server.allow]]\nidentity = \"cn:standby\"\nordinary = true\n";
        Self::with(primary.socket().display(), allow, "")
    }

    /// A tunnel to any upstream, with more lines for the server's and the client's configuration: they follow
    /// the keys of the tunnel, and may open further tables.
    pub fn with(upstream: impl Display, server: &str, client: &str) -> Self {
        let pki = Pki::new();
        let server = Sidecar::run(
            "server",
            &server_config(&pki.issue("primary"), upstream, server),
        );
        let client = client_config(&pki.issue("standby"), server.address(), client);
        let client = Sidecar::run("client", &client);
        Self {
            pki,
            server,
            client,
        }
    }

    /// A connection string through the tunnel.
    pub fn conninfo(&self) -> String {
        self.client.conninfo()
    }
}

/// The configuration of a server on a free port.
pub fn server_config(identity: &Identity, upstream: impl Display, more: &str) -> String {
    let identity = identity.toml();
    format!("{identity}[[server]]\nlisten = \"127.0.0.1:0\"\npostgres = \"{upstream}\"\n{more}\n")
}

/// The configuration of a client on a free port.
pub fn client_config(identity: &Identity, server: SocketAddr, more: &str) -> String {
    let identity = identity.toml();
    format!("{identity}[[client]]\nlisten = \"127.0.0.1:0\"\nconnect = [\"{server}\"]\n{more}\n")
}
