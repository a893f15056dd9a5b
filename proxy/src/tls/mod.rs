//! The only room that speaks rustls: certificate files, handshakes on both sides, and what a failed one means.
//! Who may do what is decided elsewhere, by `protocol::policy`.

mod again;
mod client;
mod connection;
mod credentials;
mod crls;
mod explain;
mod handshake;
mod hello;
mod met;
mod node;
mod papers;
mod provider;
mod server;
mod signatures;
mod witness;

use std::io;
use std::sync::Arc;

use protocol::identity::Identity;
use tokio_rustls::rustls::pki_types::CertificateDer;

pub(crate) use client::{Dialled, connect};
pub(crate) use connection::Tls;
pub(crate) use credentials::{Credentials, Loaded};
pub(crate) use crls::{Merged, merge};
pub(crate) use explain::{alert_from_peer, explain_read};
pub(crate) use hello::SessionId;
pub(crate) use node::{BINDING, NodeTls, Trust, connect_node};
pub(crate) use papers::Unrenewed;
pub(crate) use server::{Accepted, Asked, Handshaken, accept};

/// ALPN of a PostgreSQL session, as libpq 17 and later offer it (protocol-flow, "SSL Session Encryption").
pub(crate) const ALPN_POSTGRESQL: &[u8] = b"postgresql";
/// ALPN of the node channel, which never leads to PostgreSQL.
pub(crate) const ALPN_NODE: &[u8] = b"pgtlsproxy-node/1";

/// The certificate that a peer proved to hold the key of.
#[derive(Debug)]
pub(crate) struct PeerCertificate {
    pub(crate) identity: Identity,
    /// As shown: the leaf first. Kept so that a live session can be judged again when CRLs or CAs change.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// The last second at which all of the chain is valid (Unix time).
    pub(crate) expires: i64,
}

impl PeerCertificate {
    /// A chain as shown, the leaf first.
    pub(crate) fn of(chain: Arc<[CertificateDer<'static>]>) -> io::Result<Self> {
        let parse = |der: &CertificateDer<'_>| {
            Identity::parse(der).map_err(|error| io::Error::other(error.to_string()))
        };
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or_else(|| io::Error::other("the peer showed no certificate"))?;
        let identity = parse(leaf)?;
        let ends = intermediates.iter().filter_map(|der| parse(der).ok());
        let expires = ends
            .map(|intermediate| intermediate.not_after())
            .fold(identity.not_after(), i64::min);
        Ok(Self {
            identity,
            chain,
            expires,
        })
    }
}

/// What both handshakes tell of the connection they made.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) tls: Box<Tls>,
    pub(crate) peer: Arc<PeerCertificate>,
    pub(crate) id: SessionId,
    /// Protocol, suite and key exchange, for the log.
    pub(crate) parameters: String,
}
