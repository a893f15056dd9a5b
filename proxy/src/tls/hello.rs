//! The one id of a session in both logs: taken from the ClientHello's random, which both ends see as it passes, so
//! that no byte is added to the wire (RFC 8446, 4.1.2).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use protocol::hex::Hex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Record header (5), handshake header (4), legacy_version (2): then come 32 bytes of random.
const RANDOM_AT: usize = 11;
const ID_LENGTH: usize = 8;

/// Eight bytes of the ClientHello's random, shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionId([u8; ID_LENGTH]);

impl SessionId {
    /// From the first bytes that a TLS client sent; None if they are too few.
    pub(super) fn of(hello: &[u8]) -> Option<Self> {
        hello
            .get(RANDOM_AT..)
            .and_then(<[u8]>::first_chunk)
            .map(|id| Self(*id))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

/// A stream that remembers the id of the ClientHello that is written to it, for handshakes whose writes are not ours.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    inner: S,
    id: Option<SessionId>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, id: Option<SessionId>) -> Self {
        Self { inner, id }
    }

    pub(super) fn id(&self) -> SessionId {
        self.id.unwrap_or_default()
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // rustls writes a ClientHello as one record, in its first write.
        this.id = this.id.or_else(|| SessionId::of(buf));
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.id = this
            .id
            .or_else(|| bufs.first().and_then(|buf| SessionId::of(buf)));
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_beginning_of_the_random() {
        let hello: Vec<u8> = (0..60).collect();
        let id = SessionId::of(&hello).unwrap();
        assert_eq!(id.to_string(), "0b0c0d0e0f101112");
        assert_eq!(SessionId::of(&hello[..18]), None);
    }
}
