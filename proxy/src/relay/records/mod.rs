//! The seam between the relay and TLS records. `open` finds the payload of whole records in a buffer, `seal` turns
//! payload in a buffer into records; neither does I/O. Two implementations stand behind it: `rustls.rs` leaves all of
//! TLS to rustls and copies, `in_place.rs` holds the record keys itself and copies nothing.

mod in_place;
mod rustls;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "trial"))]
pub(crate) mod trial;

use std::ops::Range;

use tokio_rustls::rustls::AlertDescription;

use super::pool::Buffer;

pub(crate) use in_place::{InPlace, Kernel};
pub(super) use rustls::Buffered;
pub(crate) use stream::RecordStream;

/// Payload of one record at most (RFC 8446, 5.1).
pub(super) const PAYLOAD: usize = 16_384;
/// An encrypted record without its header at most (RFC 8446, 5.2).
pub(super) const LONGEST_CIPHERTEXT: usize = PAYLOAD + 256;
/// What stands before the payload of a record: its header.
pub(super) const BEFORE: usize = 5;
/// What stands behind it: the inner type and the tag.
pub(super) const BEHIND: usize = 1 + 16;

/// What one call of `open` found; the payload's ranges are in the buffer.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Bytes at the end that are not yet a whole record.
    pub(super) rest: Range<usize>,
    /// The peer said close_notify: nothing comes after it.
    pub(super) closed: bool,
    /// The sealing side has something to send: the answer to a key update.
    pub(super) answer_due: bool,
    /// What is wrong with the record after the payload found: it ends the session.
    pub(super) fault: Option<Fault>,
}

/// Why records can no longer be opened or sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The peer ended the session by an alert.
    PeerAlert(AlertDescription),
    /// The peer broke the protocol, or somebody tampered with a record; it is told by this alert.
    Broken {
        alert: AlertDescription,
        why: &'static str,
    },
    /// The peer broke the protocol, and rustls tells it so by the alert that it chose.
    Misbehaved(String),
    /// Our own keys or state do not allow to go on.
    Internal(&'static str),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PeerAlert(alert) => write!(f, "TLS alert {alert:?} from the peer"),
            Self::Broken { alert, why } => write!(f, "{why} (TLS alert {alert:?} sent)"),
            Self::Misbehaved(why) => write!(f, "{why} (a TLS alert was sent)"),
            Self::Internal(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Fault {}

/// The receiving direction of a connection.
pub(super) enum Opener {
    Buffered(rustls::Opener),
    InPlace(Box<in_place::Opener>),
}

/// The sending direction of a connection: the only owner of what seals and of what is to be written.
pub(super) enum Sealer {
    Buffered(rustls::Sealer),
    InPlace(Box<in_place::Sealer>),
}

impl Opener {
    /// Room that must be left before ciphertext in a buffer.
    pub(super) const fn reserve(&self) -> usize {
        match self {
            Self::Buffered(_) => rustls::RESERVE,
            Self::InPlace(_) => 0,
        }
    }

    /// Opens every whole record between the reserve and `filled`, and lists their payload in `buffer.ranges`.
    pub(super) fn open(&mut self, buffer: &mut Buffer, filled: usize) -> Opened {
        buffer.ranges.clear();
        match self {
            Self::Buffered(opener) => opener.open(buffer, filled),
            Self::InPlace(opener) => opener.open(&mut buffer.bytes, filled, &mut buffer.ranges),
        }
    }
}

impl Sealer {
    /// Turns the payload in `buffer.ranges` into records, which `buffer.ranges` names afterwards. Each range has
    /// [`BEFORE`] bytes of room before it and [`BEHIND`] behind, and at most [`PAYLOAD`] bytes. What must be sent before
    /// is in [`Sealer::control`].
    pub(super) fn seal(&mut self, buffer: &mut Buffer) -> Result<(), Fault> {
        match self {
            Self::Buffered(sealer) => sealer.seal(buffer),
            Self::InPlace(sealer) => sealer.seal(&mut buffer.bytes, &mut buffer.ranges),
        }
    }

    /// Records of our own, sealed before the ranges of the last [`Sealer::seal`] and to be written before them.
    pub(super) fn control(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Buffered(sealer) => sealer.control(),
            Self::InPlace(sealer) => sealer.control(),
        }
    }

    /// Adds what the peer is owed, such as the answer to a key update, to [`Sealer::control`].
    pub(super) fn answer(&mut self) -> Result<(), Fault> {
        match self {
            Self::Buffered(sealer) => sealer.answer(),
            Self::InPlace(sealer) => sealer.answer(),
        }
    }

    /// Adds close_notify to [`Sealer::control`]; nothing is sealed after it.
    pub(super) fn close(&mut self) -> Result<(), Fault> {
        match self {
            Self::Buffered(sealer) => sealer.close(),
            Self::InPlace(sealer) => sealer.alert(AlertDescription::CloseNotify),
        }
    }

    /// Adds the alert that tells the peer what it did, if it is to be told.
    pub(super) fn refuse(&mut self, fault: &Fault) {
        if let (Self::InPlace(sealer), Fault::Broken { alert, .. }) = (self, fault) {
            // rustls queues its own; ours may fail only when nothing can be sealed any more.
            let _ = sealer.alert(*alert);
        }
    }
}
