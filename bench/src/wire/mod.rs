//! The built-in ends of the tunnel: a frontend that asks as a walreceiver does and a backend that answers as a
//! walsender does. What the backend shall send stands in the slot's name of START_REPLICATION, so that the far end
//! of a tunnel needs no other channel. PostgreSQL's documentation: "Streaming Replication Protocol".

pub(crate) mod backend;
pub(crate) mod frontend;
mod wal;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::message::{Header, encode_message};
use protocol::replication::{Clock, StandbyStatusUpdate};

/// No step of a healthy session takes as long; a stalled tunnel ends a cell instead of hanging it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the backend does once replication has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Send so many bytes of WAL, but not for longer than this; both ends hash it if `hashed`.
    Wal {
        bytes: u64,
        limit: Duration,
        hashed: bool,
    },
    /// Answer every status update with 64 bytes.
    Echo,
    /// Be silent.
    Idle,
}

/// As a slot's name may be: lower-case letters, digits, underscores.
impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal {
                bytes,
                limit,
                hashed,
            } => {
                let kind = if *hashed { "hashed" } else { "wal" };
                write!(f, "{kind}_{bytes}_{}", limit.as_millis())
            }
            Self::Echo => f.write_str("echo"),
            Self::Idle => f.write_str("idle"),
        }
    }
}

impl FromStr for Wish {
    type Err = io::Error;

    fn from_str(name: &str) -> io::Result<Self> {
        let mut words = name.split('_');
        let kind = words.next();
        let mut number = || words.next().and_then(|word| word.parse().ok());
        match kind {
            Some(kind @ ("wal" | "hashed")) => number().zip(number()).map(|(bytes, millis)| {
                let limit = Duration::from_millis(millis);
                let hashed = kind == "hashed";
                Self::Wal {
                    bytes,
                    limit,
                    hashed,
                }
            }),
            Some("echo") => Some(Self::Echo),
            Some("idle") => Some(Self::Idle),
            _ => None,
        }
        .ok_or_else(|| broken(format!("no such slot: {name}")))
    }
}

/// One message that is read whole: anything but bulk.
#[derive(Debug)]
struct Message {
    tag: u8,
    body: Vec<u8>,
}

impl Message {
    /// Longer messages are none of this protocol's but XLogData, which is read elsewhere.
    const LONGEST: u32 = 64 * 1024;

    fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let header = Header::parse(head)
            .filter(|header| header.length <= Self::LONGEST)
            .ok_or_else(|| broken(format!("no PostgreSQL message: {head:02x?}")))?;
        let mut body = vec![0; header.length as usize - 4];
        stream.read_exact(&mut body)?;
        Ok(Self {
            tag: header.tag,
            body,
        })
    }

    /// Reads one and demands that it be of this kind.
    fn expect(stream: &mut impl Read, tag: u8) -> io::Result<Self> {
        let message = Self::read(stream)?;
        if message.tag == tag {
            return Ok(message);
        }
        let text = protocol::escape::escape(&message.body);
        Err(broken(format!(
            "{} instead of {}: {text}",
            char::from(message.tag).escape_default(),
            char::from(tag)
        )))
    }
}

/// A whole CopyData message with a status update: 39 bytes.
fn status_update(written: protocol::replication::Lsn, reply_requested: bool) -> Vec<u8> {
    let status = StandbyStatusUpdate {
        written,
        flushed: written,
        applied: written,
        clock: now(),
        reply_requested,
    };
    encode_message(b'd', &status.encode())
}

fn now() -> Clock {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clock(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX) - 946_684_800_000_000)
}

fn prepare(stream: &TcpStream, patience: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)
}

fn send(stream: &mut impl Write, tag: u8, body: &[u8]) -> io::Result<()> {
    stream.write_all(&encode_message(tag, body))
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_as_it_was_written() {
        let limit = Duration::from_millis(1500);
        for hashed in [false, true] {
            let wish = Wish::Wal {
                bytes: 77,
                limit,
                hashed,
            };
            assert_eq!(wish.to_string().parse::<Wish>().unwrap(), wish);
        }
        for wish in [Wish::Echo, Wish::Idle] {
            assert_eq!(wish.to_string().parse::<Wish>().unwrap(), wish);
        }
        for wrong in ["", "wal", "wal_1", "wal_x_1", "standby1"] {
            assert!(wrong.parse::<Wish>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_status_update_has_39_bytes() {
        assert_eq!(status_update(protocol::replication::Lsn(1), true).len(), 39);
    }
}
