//! The only room that speaks rustls: certificate files, handshakes on both sides, and what a failed one means.
//! Who may do what is decided elsewhere, by `protocol::policy`.

mod client;
mod connection;
mod credentials;
mod crls;
mod explain;
mod handshake;
mod hello;
mod node;
mod provider;
mod server;
mod witness;

use protocol::identity::Identity;

pub(crate) use client::{Dialled, connect};
pub(crate) use connection::Tls;
pub(crate) use credentials::{Credentials, Loaded};
pub(crate) use crls::{Merged, merge};
pub(crate) use explain::{alert_from_peer, explain_read};
pub(crate) use hello::SessionId;
pub(crate) use node::{BINDING, NodeTls, Trust, connect_node};
pub(crate) use server::{Accepted, Asked, Handshaken, accept};

/// ALPN of a PostgreSQL session, as libpq 17 and later offer it (protocol-flow, "SSL Session Encryption").
pub(crate) const ALPN_POSTGRESQL: &[u8] = b"postgresql";
/// ALPN of the node channel, which never leads to PostgreSQL.
pub(crate) const ALPN_NODE: &[u8] = b"pgtlsproxy-node/1";

/// What both handshakes tell of the connection they made.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) tls: Box<Tls>,
    pub(crate) identity: Identity,
    pub(crate) id: SessionId,
    /// Protocol, suite and key exchange, for the log.
    pub(crate) parameters: String,
}
