//! A connection of a session: plain or TLS, owned. Before the relay it is read and written as a stream; the relay takes
//! it apart.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Half;
use super::direction::Early;
use super::records::{Buffered, Opener, Sealer};
use crate::net::Stream;
use crate::tls::Tls;

/// One connection of a session.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(Stream),
    Tls(Box<Tls>),
}

/// One side of a session taken apart: the socket, and for TLS what opens and seals its records.
pub(super) struct Taken {
    pub(super) stream: Stream,
    pub(super) records: Option<(Opener, Sealer)>,
    pub(super) early: Early,
}

impl From<Half> for Taken {
    fn from(half: Half) -> Self {
        let (stream, records, received, decrypted) = match half.wire {
            Wire::Plain(stream) => (stream, None, Vec::new(), Vec::new()),
            Wire::Tls(tls) => match *tls {
                Tls::Buffered(tls) => {
                    let (stream, connection) = tls.into_parts();
                    let (opener, sealer, payload) = Buffered::new(connection).split();
                    let records = (Opener::Buffered(opener), Sealer::Buffered(sealer));
                    (stream, Some(records), Vec::new(), payload)
                }
                Tls::InPlace(stream) => {
                    let parts = stream.into_parts();
                    let records = (Opener::InPlace(parts.opener), Sealer::InPlace(parts.sealer));
                    (parts.stream, Some(records), parts.received, parts.payload)
                }
            },
        };
        let mut payload = half.read_ahead;
        payload.extend(decrypted);
        Self {
            stream,
            records,
            early: Early { received, payload },
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
