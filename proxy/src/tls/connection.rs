//! A TLS connection past its handshake, in one of two forms: buffered by rustls, or with its records in place. Before
//! the relay both are streams.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use tokio_rustls::rustls::{CommonState, Connection};

use super::hello::Watched;
use crate::net::Stream;
use crate::relay::RecordStream;

/// A TLS connection over one of our sockets.
pub(crate) enum Tls {
    Buffered(Box<Buffered>),
    InPlace(RecordStream),
}

/// What tokio-rustls made of a handshake.
pub(crate) struct Buffered(TlsStream<Watched<Stream>>);

impl Buffered {
    pub(super) fn new(tls: impl Into<TlsStream<Watched<Stream>>>) -> Self {
        Self(tls.into())
    }

    /// The socket and rustls' connection, with whatever it has decrypted already.
    pub(crate) fn into_parts(self) -> (Stream, Connection) {
        match self.0 {
            TlsStream::Client(tls) => {
                let (stream, connection) = tls.into_inner();
                (stream.into_inner(), connection.into())
            }
            TlsStream::Server(tls) => {
                let (stream, connection) = tls.into_inner();
                (stream.into_inner(), connection.into())
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl AsFd for Tls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Buffered(tls) => tls.0.get_ref().0.get_ref().as_fd(),
            Self::InPlace(tls) => tls.stream().as_fd(),
        }
    }
}

/// Protocol, suite and key exchange of a connection: `TLSv1_3 TLS13_AES_256_GCM_SHA384 X25519MLKEM768`.
pub(super) fn parameters(connection: &CommonState) -> String {
    let show = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    let version = connection.protocol_version();
    let suite = connection.negotiated_cipher_suite();
    let group = connection.negotiated_key_exchange_group();
    format!(
        "{} {} {}",
        show(version.map(|version| format!("{version:?}"))),
        show(suite.map(|suite| format!("{:?}", suite.suite()))),
        show(group.map(|group| format!("{:?}", group.name()))),
    )
}

impl AsyncRead for Tls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Buffered(tls) => Pin::new(&mut tls.0).poll_read(cx, buf),
            Self::InPlace(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Buffered(tls) => Pin::new(&mut tls.0).poll_write(cx, buf),
            Self::InPlace(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Buffered(tls) => Pin::new(&mut tls.0).poll_flush(cx),
            Self::InPlace(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Buffered(tls) => Pin::new(&mut tls.0).poll_shutdown(cx),
            Self::InPlace(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
