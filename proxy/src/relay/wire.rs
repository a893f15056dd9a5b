//! A connection as the relay holds it: plain or TLS, owned, with the ways to end it.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::net::{Stream, dead_peer};
use crate::tls::Tls;

/// One connection of a session.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(Stream),
    Tls(Box<Tls>),
}

impl Wire {
    /// Ends the connection as an abort: no close_notify, and a reset where the transport has one.
    pub(crate) fn abort(self) {
        match self {
            Self::Plain(stream) => stream.abort(),
            Self::Tls(tls) => match *tls {
                TlsStream::Client(tls) => tls.into_inner().0.into_inner().abort(),
                TlsStream::Server(tls) => tls.into_inner().0.into_inner().abort(),
            },
        }
    }

    /// Completes when the TLS peer acknowledges nothing any more. The plain side ends on this host, where the kernel
    /// closes what dies.
    pub(super) fn watch_peer(&self, within: Duration) -> impl Future<Output = ()> + Send + use<> {
        let socket = match self {
            Self::Plain(_) => None,
            // A descriptor of its own, so that the watch may outlive any move of the stream.
            Self::Tls(tls) => tls.get_ref().0.get_ref().as_fd().try_clone_to_owned().ok(),
        };
        async move {
            match socket {
                Some(socket) => dead_peer(socket.as_fd(), within).await,
                None => std::future::pending().await,
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
