//! The only room that speaks rustls: certificate files, handshakes on both sides, and what a failed one means.
//! Who may do what is decided elsewhere, by `protocol::policy`.

mod client;
mod credentials;
mod explain;
mod hello;
mod provider;
mod server;
mod witness;

use protocol::identity::Identity;
use tokio_rustls::TlsStream;

use crate::net::Stream;

pub(crate) use client::{Dialled, connect};
pub(crate) use credentials::{Credentials, Loaded};
pub(crate) use explain::{alert_from_peer, explain_read};
pub(crate) use hello::SessionId;
pub(crate) use server::{Accepted, Asked, accept};

/// A TLS connection over one of our sockets.
pub(crate) type Tls = TlsStream<hello::Watched<Stream>>;

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
}

impl Established {
    /// Protocol, suite and key exchange, for the log.
    pub(crate) fn parameters(&self) -> String {
        parameters(&self.tls)
    }
}

/// Protocol, suite and key exchange of a connection: `TLSv1_3 TLS13_AES_256_GCM_SHA384 X25519MLKEM768`.
pub(crate) fn parameters(tls: &Tls) -> String {
    let (_, connection) = tls.get_ref();
    let show = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    format!(
        "{} {} {}",
        show(
            connection
                .protocol_version()
                .map(|version| format!("{version:?}"))
        ),
        show(
            connection
                .negotiated_cipher_suite()
                .map(|suite| format!("{:?}", suite.suite()))
        ),
        show(
            connection
                .negotiated_key_exchange_group()
                .map(|group| format!("{:?}", group.name()))
        ),
    )
}
