//! A connection with records in place as an ordinary stream, for what comes before the relay: one startup, one refusal,
//! one first answer. Small and copying; the relay takes the parts out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::AlertDescription;

use super::in_place::{InPlace, Opener, Sealer};
use super::{BEFORE, BEHIND, Fault, Opened, PAYLOAD};
use crate::net::Stream;
use crate::relay::pool::LONGEST_RECORD;

/// A client's last flight: two certificates of an RSA key's size at least.
const MOST_UNSENT: usize = 16 * 1024;
/// What one read takes at most.
const PIECE: usize = 4096;

pub(crate) struct RecordStream {
    stream: Stream,
    opener: Box<Opener>,
    sealer: Box<Sealer>,
    /// Ciphertext read and not yet opened.
    received: Vec<u8>,
    /// Payload opened and not yet read.
    payload: Vec<u8>,
    /// Records sealed and not yet written.
    sealed: Vec<u8>,
    ended: Option<Result<(), Fault>>,
}

/// What the relay goes on with.
pub(in super::super) struct Parts {
    pub(in super::super) stream: Stream,
    pub(in super::super) opener: Box<Opener>,
    pub(in super::super) sealer: Box<Sealer>,
    pub(in super::super) received: Vec<u8>,
    pub(in super::super) payload: Vec<u8>,
}

impl RecordStream {
    /// `received` is ciphertext that came along with the end of the handshake, `unsent` what of it is still to be written.
    pub(crate) fn new(
        stream: Stream,
        records: InPlace,
        received: Vec<u8>,
        unsent: Vec<u8>,
    ) -> Result<Self, (Fault, Stream)> {
        let (opener, sealer) = match records.split() {
            Ok(split) => split,
            Err(fault) => return Err((fault, stream)),
        };
        Ok(Self {
            stream,
            opener: Box::new(opener),
            sealer: Box::new(sealer),
            received,
            payload: Vec::new(),
            sealed: unsent,
            ended: None,
        })
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(in super::super) fn into_parts(mut self) -> Parts {
        // What was sealed and not written goes before all that is sealed from now on.
        self.sealed.append(self.sealer.control());
        *self.sealer.control() = self.sealed;
        Parts {
            stream: self.stream,
            opener: self.opener,
            sealer: self.sealer,
            received: self.received,
            payload: self.payload,
        }
    }

    /// Opens what was received.
    fn open(&mut self) {
        let mut ranges = Vec::new();
        let filled = self.received.len();
        let Opened {
            rest,
            closed,
            answer_due: _,
            fault,
        } = self.opener.open(&mut self.received, filled, &mut ranges);
        for range in ranges {
            self.payload
                .extend(self.received.get(range).unwrap_or_default());
        }
        self.received.drain(..rest.start);
        if let Some(fault) = fault {
            if let Fault::Broken { alert, .. } = fault {
                let _ = self.sealer.alert(alert);
            }
            self.ended = Some(Err(fault));
        } else if closed {
            self.ended = Some(Ok(()));
        }
    }

    fn poll_write_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sealer.answer().map_err(io::Error::other)?;
        self.sealed.append(self.sealer.control());
        while !self.sealed.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.sealed))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for RecordStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.payload.is_empty() {
                let n = this.payload.len().min(buf.remaining());
                buf.put_slice(this.payload.get(..n).unwrap_or_default());
                this.payload.drain(..n);
                return Poll::Ready(Ok(()));
            }
            match &this.ended {
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(fault)) => {
                    let error = io::Error::other(fault.clone());
                    // The alert goes out now if it can: whoever cannot read does not write any more.
                    let _ = this.poll_write_sealed(cx);
                    return Poll::Ready(Err(error));
                }
                None => {}
            }
            if !this.sealed.is_empty() {
                // Whoever waits for an answer has been silent for long enough. A failure is told by the read.
                let _ = this.poll_write_sealed(cx);
            }
            let before = this.received.len();
            this.open();
            if this.received.len() != before || this.ended.is_some() {
                continue;
            }
            let have = this.received.len();
            this.received.resize(LONGEST_RECORD.min(have + PIECE), 0);
            let room = this.received.get_mut(have..).unwrap_or_default();
            let mut read = ReadBuf::new(room);
            let polled = Pin::new(&mut this.stream).poll_read(cx, &mut read);
            let n = read.filled().len();
            this.received.truncate(have + n);
            ready!(polled)?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl AsyncWrite for RecordStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // What is left of the handshake goes out with the first words; a backlog must not grow.
        if this.sealed.len() > MOST_UNSENT {
            ready!(this.poll_write_sealed(cx))?;
        }
        let n = buf.len().min(PAYLOAD);
        let mut record = vec![0; BEFORE + n + BEHIND];
        for (place, byte) in record.iter_mut().skip(BEFORE).zip(buf) {
            *place = *byte;
        }
        let payload = BEFORE..BEFORE + n;
        this.sealer
            .seal(&mut record, &mut [payload])
            .map_err(io::Error::other)?;
        // A key update may have become due, which goes first.
        this.sealed.append(this.sealer.control());
        this.sealed.append(&mut record);
        match this.poll_write_sealed(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // It is taken; the rest goes out by the next write or flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_write_sealed(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.sealer
            .alert(AlertDescription::CloseNotify)
            .map_err(io::Error::other)?;
        ready!(this.poll_write_sealed(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
