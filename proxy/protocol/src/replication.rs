//! What flows inside CopyData once START_REPLICATION was answered with CopyBothResponse: WAL, keepalives, status.
//!
//! Only the fixed heads are read; the WAL itself is nobody's business here. Base backups of servers up to 14 carry no
//! such letters, so never look into the CopyData of a CopyOutResponse. Layouts: "Streaming Replication Protocol".

use std::fmt;
use std::str::FromStr;

use crate::message::COPY_DATA_TAG;

/// A place in the write-ahead log, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    /// As pg_lsn_in: one to eight hexadecimal digits on each side of the slash.
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            plain
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        let (high, low) = text.split_once('/').ok_or(LsnError)?;
        Ok(Self(
            (half(high).ok_or(LsnError)? << 32) | half(low).ok_or(LsnError)?,
        ))
    }
}

/// A text is no LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LsnError;

impl fmt::Display for LsnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an LSN: two hexadecimal numbers with a slash, like 0/16B3748")
    }
}

impl std::error::Error for LsnError {}

/// A clock reading as PostgreSQL sends it: microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Clock(pub i64);

impl Clock {
    /// From microseconds since 1970.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(946_684_800_000_000))
    }

    /// Microseconds since 1970; `None` where that does not fit.
    #[must_use]
    pub const fn unix_micros(self) -> Option<i64> {
        self.0.checked_add(946_684_800_000_000)
    }
}

/// The head of XLogData (`w`): WAL from the primary. What follows its 25 bytes is the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XLogData {
    /// Where the WAL in this message begins; may be 0 in logical replication.
    pub start: Lsn,
    /// How far the primary's WAL goes.
    pub end: Lsn,
    /// When it was sent.
    pub clock: Clock,
}

impl XLogData {
    /// The head's length.
    pub const LENGTH: usize = 25;

    /// Reads the head from the first bytes of a CopyData body.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(b'w', body)?;
        Some(Self {
            start: Lsn(fields.next()?),
            end: Lsn(fields.next()?),
            clock: Clock(fields.next()?.cast_signed()),
        })
    }

    /// The 25 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(
            b'w',
            &[self.start.0, self.end.0, self.clock.0.cast_unsigned()],
            None,
        )
    }
}

/// What is to be known of XLogData messages that came one behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalRun {
    pub(crate) messages: u64,
    /// Bytes behind their heads.
    pub(crate) data: u64,
    pub(crate) last: XLogData,
    /// Bytes behind the last head.
    pub(crate) last_data: u64,
    /// The farthest places that heads told, which need not be those of the last; 0 if they were not asked for.
    pub(crate) farthest_start: Lsn,
    pub(crate) farthest_end: Lsn,
}

impl WalRun {
    /// Tag, length, and the 25 bytes.
    const HEAD: usize = 5 + XLogData::LENGTH;

    /// A single message.
    pub(crate) const fn one(head: XLogData, data: u64) -> Self {
        Self {
            messages: 1,
            data,
            last: head,
            last_data: data,
            farthest_start: head.start,
            farthest_end: head.end,
        }
    }

    /// The whole messages of XLogData at the beginning of `bytes`, and what comes behind them; `None` without any. A
    /// stream of small changes brings a hundred thousand of them a second: the loop is all that each of them costs.
    pub(crate) fn pass(bytes: &[u8], farthest: bool) -> Option<(Self, &[u8])> {
        const SHORTEST: u32 = 4 + XLogData::LENGTH as u32;
        let mut rest = bytes;
        let mut last: Option<&[u8; Self::HEAD]> = None;
        let (mut messages, mut start, mut end) = (0_u64, 0, 0);
        while let Some(head) = rest.first_chunk() {
            let (tag, length, letter) = kind_of(head);
            if tag != COPY_DATA_TAG
                || letter != b'w'
                || !(SHORTEST..=i32::MAX.unsigned_abs()).contains(&length)
            {
                break;
            }
            let whole = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(next) = rest.get(whole.saturating_add(1)..) else {
                break;
            };
            if farthest {
                let mut fields = Fields(head.get(6..).unwrap_or_default());
                start = fields.next().unwrap_or(0).max(start);
                end = fields.next().unwrap_or(0).max(end);
            }
            messages = messages.wrapping_add(1);
            last = Some(head);
            rest = next;
        }
        let last = last?;
        let passed = bytes.len().saturating_sub(rest.len()) as u64;
        let heads = messages.saturating_mul(Self::HEAD as u64);
        let run = Self {
            messages,
            data: passed.saturating_sub(heads),
            last: XLogData::parse(last.get(5..)?)?,
            last_data: u64::from(kind_of(last).1.saturating_sub(SHORTEST)),
            farthest_start: Lsn(start),
            farthest_end: Lsn(end),
        };
        Some((run, rest))
    }
}

/// A message's tag and length, and the first byte of its body.
const fn kind_of(head: &[u8; WalRun::HEAD]) -> (u8, u32, u8) {
    let [tag, a, b, c, d, letter, ..] = *head;
    (tag, u32::from_be_bytes([a, b, c, d]), letter)
}

/// A keepalive of the primary (`k`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How far the primary's WAL goes.
    pub end: Lsn,
    /// When it was sent.
    pub clock: Clock,
    /// Whether a status is wanted at once.
    pub reply_requested: bool,
}

impl Keepalive {
    /// Reads a whole CopyData body.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(b'k', body)?;
        Some(Self {
            end: Lsn(fields.next()?),
            clock: Clock(fields.next()?.cast_signed()),
            reply_requested: fields.last_flag()?,
        })
    }

    /// The whole body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(
            b'k',
            &[self.end.0, self.clock.0.cast_unsigned()],
            Some(self.reply_requested),
        )
    }
}

/// How far a standby is (`r`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// Written to the standby's disk cache.
    pub written: Lsn,
    /// Safely on its disk.
    pub flushed: Lsn,
    /// Visible to its queries.
    pub applied: Lsn,
    /// When it was sent.
    pub clock: Clock,
    /// Whether a keepalive is wanted at once.
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    /// Reads a whole CopyData body.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(b'r', body)?;
        Some(Self {
            written: Lsn(fields.next()?),
            flushed: Lsn(fields.next()?),
            applied: Lsn(fields.next()?),
            clock: Clock(fields.next()?.cast_signed()),
            reply_requested: fields.last_flag()?,
        })
    }

    /// The whole body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let numbers = [
            self.written.0,
            self.flushed.0,
            self.applied.0,
            self.clock.0.cast_unsigned(),
        ];
        encode(b'r', &numbers, Some(self.reply_requested))
    }
}

/// Big-endian numbers of eight bytes behind a letter, then perhaps one byte.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn of(letter: u8, body: &'a [u8]) -> Option<Self> {
        body.strip_prefix(&[letter]).map(Self)
    }

    fn next(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    fn last_flag(self) -> Option<bool> {
        match self.0 {
            [flag] => Some(*flag != 0),
            _ => None,
        }
    }
}

fn encode(letter: u8, numbers: &[u64], flag: Option<bool>) -> Vec<u8> {
    let mut body = vec![letter];
    body.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    body.extend(flag.map(u8::from));
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_is_shown_as_postgresql_shows_it() {
        for (text, number) in [
            ("0/16B3748", 0x16b_3748),
            ("0/0", 0),
            ("16/B374D848", 0x16_b374_d848),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Lsn(number)));
            assert_eq!(Lsn(number).to_string(), text);
        }
        assert_eq!("0/0016b3748".parse::<Lsn>(), Err(LsnError));
        assert_eq!("0/016b3748".parse(), Ok(Lsn(0x16b_3748)));
        for wrong in ["", "/", "0", "0/", "/0", "0/G", "+1/0", "0/1/2", " 0/1"] {
            assert_eq!(wrong.parse::<Lsn>(), Err(LsnError), "{wrong}");
        }
    }

    #[test]
    fn a_standby_status_has_34_bytes() {
        let status = StandbyStatusUpdate {
            written: Lsn(3),
            flushed: Lsn(2),
            applied: Lsn(1),
            clock: Clock(-1),
            reply_requested: true,
        };
        let body = status.encode();
        assert_eq!(body.len(), 39 - 5);
        assert_eq!(StandbyStatusUpdate::parse(&body), Some(status));
        assert_eq!(StandbyStatusUpdate::parse(&body[..33]), None);
        assert_eq!(
            StandbyStatusUpdate::parse(&[body.as_slice(), b"x"].concat()),
            None
        );
    }

    #[test]
    fn a_keepalive_has_18_bytes() {
        let keepalive = Keepalive {
            end: Lsn(u64::MAX),
            clock: Clock(0),
            reply_requested: false,
        };
        assert_eq!(keepalive.encode().len(), 23 - 5);
        assert_eq!(Keepalive::parse(&keepalive.encode()), Some(keepalive));
        assert_eq!(StandbyStatusUpdate::parse(&keepalive.encode()), None);
    }

    #[test]
    fn wal_is_told_by_its_head_alone() {
        let head = XLogData {
            start: Lsn(1),
            end: Lsn(2),
            clock: Clock(3),
        };
        assert_eq!(head.encode().len(), XLogData::LENGTH);
        assert_eq!(
            XLogData::parse(&[head.encode(), vec![b'k'; 100]].concat()),
            Some(head)
        );
        assert_eq!(XLogData::parse(&head.encode()[..24]), None);
    }

    #[test]
    fn the_clock_counts_from_2000() {
        assert_eq!(Clock(0).unix_micros(), Some(946_684_800_000_000));
        assert_eq!(Clock(i64::MAX).unix_micros(), None);
    }
}
