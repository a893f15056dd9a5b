//! The one id of a session in both logs: taken from the ClientHello's random, which both ends see as it passes, so
//! that no byte is added to the wire (RFC 8446, 4.1.2).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Record header (5), handshake header (4), legacy_version (2): then come 32 bytes of random.
const RANDOM_AT: usize = 11;
const ID_LENGTH: usize = 8;

/// Eight bytes of the ClientHello's random, shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId([u8; ID_LENGTH]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which way the ClientHello passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hello {
    /// We are the TLS server.
    Read,
    /// We are the TLS client.
    Written,
}

/// A stream that replays bytes read before TLS began (the ClientHello's first), and remembers the session's id.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    inner: S,
    hello: Hello,
    seen: usize,
    id: SessionId,
    replay: Option<Box<[u8]>>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, hello: Hello, replay: &[u8]) -> Self {
        Self {
            inner,
            hello,
            seen: 0,
            id: SessionId([0; ID_LENGTH]),
            replay: (!replay.is_empty()).then(|| replay.into()),
        }
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(crate) fn into_inner(self) -> S {
        self.inner
    }

    fn watch(&mut self, way: Hello, bytes: &[u8]) {
        if way != self.hello || self.seen >= RANDOM_AT + ID_LENGTH {
            return;
        }
        for byte in bytes {
            if let Some(place) = self
                .seen
                .checked_sub(RANDOM_AT)
                .and_then(|index| self.id.0.get_mut(index))
            {
                *place = *byte;
            }
            self.seen += 1;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Some(replay) = this.replay.take() {
            let (now, later) = replay.split_at(replay.len().min(buf.remaining()));
            buf.put_slice(now);
            this.replay = (!later.is_empty()).then(|| later.into());
        } else {
            match Pin::new(&mut this.inner).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        if let Some(new) = buf.filled().get(before..) {
            this.watch(Hello::Read, new);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = written {
            this.watch(Hello::Written, buf.get(..n).unwrap_or(buf));
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = written {
            for buf in bufs {
                let n = left.min(buf.len());
                this.watch(Hello::Written, buf.get(..n).unwrap_or(buf));
                left -= n;
            }
        }
        written
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
