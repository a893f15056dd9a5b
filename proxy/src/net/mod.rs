//! Sockets: addresses, listening, dialling, options, and the one stream type that the rest of the proxy knows.
//! Nothing here knows TLS or PostgreSQL.

mod address;
mod dial;
mod listen;
mod liveness;
mod stream;
mod tcp_info;

pub(crate) use address::{ListenAddress, PostgresAddress, Target};
pub(crate) use dial::{DialError, dial_postgres, dial_target};
pub(crate) use listen::{Listener, listen_tcp};
pub(crate) use liveness::dead_peer;
pub(crate) use stream::{Peer, Stream, linger};
