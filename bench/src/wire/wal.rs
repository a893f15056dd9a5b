//! WAL that proves itself. Each byte follows from its place in the stream, and each message says where it begins, so
//! the receiver compares every byte with what it must be: loss, doubling, reordering and corruption all show. That is
//! stricter than comparing hashes at the ends, and costs a tenth of them, which matters where both ends share the
//! processors with what is measured.

use std::io::{self, IoSlice, Read, Write};

use protocol::message::Header;
use protocol::replication::{Lsn, XLogData};
use sha2::{Digest, Sha256};

use super::{broken, now};

/// The most that a walsender puts into one message: 16 WAL pages.
const LARGEST: usize = 131_072;
/// Header of CopyData and head of XLogData.
const HEAD: usize = 5 + XLogData::LENGTH;
/// A prime, so that no loss of a round number of bytes leaves the pattern in step.
const PERIOD: usize = 1_048_573;
/// Messages of a burst: a walsender that catches up sends full ones, then what is left of the last commits.
const BURST: u64 = 16;

/// The bytes of the stream: [`PERIOD`] random ones, over and over.
#[derive(Debug)]
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    pub(super) fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut bytes: Vec<u8> = (0..PERIOD).map(|_| (random() >> 24) as u8).collect();
        bytes.extend_from_within(..LARGEST);
        Self(bytes)
    }

    fn at(&self, lsn: Lsn, length: usize) -> &[u8] {
        let from = (lsn.0 % PERIOD as u64) as usize;
        &self.0[from..from + length]
    }
}

/// How much WAL the message of this number carries: 16 full ones, then one of some single commits.
fn length_of(number: u64) -> usize {
    if number % (BURST + 1) == BURST {
        56 + (number * 397 % 1415) as usize
    } else {
        LARGEST
    }
}

/// Sends WAL message by message, each in one system call, as a walsender does.
pub(super) struct Sender<'a> {
    pattern: &'a Pattern,
    number: u64,
    position: Lsn,
    hash: Option<Sha256>,
}

impl<'a> Sender<'a> {
    pub(super) fn new(pattern: &'a Pattern, hashed: bool) -> Self {
        Self {
            pattern,
            number: 0,
            position: Lsn(0),
            hash: hashed.then(Sha256::new),
        }
    }

    /// How much was sent.
    pub(super) fn position(&self) -> Lsn {
        self.position
    }

    /// Sends the next message.
    pub(super) fn send(&mut self, stream: &mut impl Write) -> io::Result<()> {
        let wal = self.pattern.at(self.position, length_of(self.number));
        let start = self.position;
        self.number += 1;
        self.position.0 += wal.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(wal);
        }
        let mut head = Vec::with_capacity(HEAD);
        let length = (HEAD - 1 + wal.len()) as u32;
        head.extend(Header { tag: b'd', length }.encode());
        let xlog_data = XLogData {
            start,
            end: self.position,
            clock: now(),
        };
        head.extend(xlog_data.encode());
        write_both(stream, &head, wal)
    }

    /// The SHA-256 of what was sent, if it was asked for.
    pub(super) fn hash(self) -> Option<String> {
        self.hash.map(hex)
    }
}

fn write_both(stream: &mut impl Write, head: &[u8], tail: &[u8]) -> io::Result<()> {
    let written = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)])?;
    match written.checked_sub(head.len()) {
        Some(written) => stream.write_all(&tail[written..]),
        None => {
            stream.write_all(&head[written..])?;
            stream.write_all(tail)
        }
    }
}

/// What a checked read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A burst is complete: time for a status update.
    Burst,
    /// More is to come.
    More,
    /// CopyDone.
    Done,
}

/// Reads WAL in large pieces and compares every byte.
pub(super) struct Checker<'a> {
    pattern: &'a Pattern,
    buffer: Vec<u8>,
    filled: usize,
    /// Of the message being read: what is still to come.
    pending: usize,
    number: u64,
    position: Lsn,
    hash: Option<Sha256>,
}

impl<'a> Checker<'a> {
    const BUFFER: usize = 512 * 1024;

    pub(super) fn new(pattern: &'a Pattern, hashed: bool) -> Self {
        Self {
            pattern,
            buffer: vec![0; Self::BUFFER],
            filled: 0,
            pending: 0,
            number: 0,
            position: Lsn(0),
            hash: hashed.then(Sha256::new),
        }
    }

    /// How much has arrived and was right.
    pub(super) fn position(&self) -> Lsn {
        self.position
    }

    /// The SHA-256 of what arrived, if it was asked for.
    pub(super) fn hash(self) -> Option<String> {
        self.hash.map(hex)
    }

    /// Reads once and checks all of it.
    pub(super) fn read(&mut self, stream: &mut impl Read) -> io::Result<Progress> {
        let read = stream.read(&mut self.buffer[self.filled..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += read;
        let before = self.number / (BURST + 1);
        let mut at = 0;
        while at < self.filled {
            if self.pending > 0 {
                let length = self.pending.min(self.filled - at);
                let arrived = &self.buffer[at..at + length];
                if arrived != self.pattern.at(self.position, length) {
                    return Err(broken(format!("wrong WAL after {}", self.position)));
                }
                if let Some(hash) = &mut self.hash {
                    hash.update(arrived);
                }
                at += length;
                self.pending -= length;
                self.position.0 += length as u64;
                continue;
            }
            let rest = &self.buffer[at..self.filled];
            if rest == [b'c', 0, 0, 0, 4] {
                return Ok(Progress::Done);
            }
            let Some(head) = rest.first_chunk::<HEAD>() else {
                break;
            };
            let wal = length_of(self.number);
            let expected = Header {
                tag: b'd',
                length: (HEAD - 1 + wal) as u32,
            };
            let right = XLogData::parse(&head[5..]).is_some_and(|xlog| xlog.start == self.position);
            if head[..5] != expected.encode() || !right {
                return Err(broken(format!("wrong message after {}", self.position)));
            }
            self.number += 1;
            self.pending = wal;
            at += HEAD;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        let burst = self.number / (BURST + 1) > before;
        Ok(if burst {
            Progress::Burst
        } else {
            Progress::More
        })
    }
}

fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it holds in pieces of odd sizes.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 * 7 % 8191 + 1;
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn stream(messages: u32) -> Vec<u8> {
        let pattern = Pattern::new();
        let mut sender = Sender::new(&pattern, false);
        let mut bytes = Vec::new();
        for _ in 0..messages {
            sender.send(&mut bytes).unwrap();
        }
        bytes.extend([b'c', 0, 0, 0, 4]);
        bytes
    }

    fn check(bytes: &[u8]) -> io::Result<Lsn> {
        let pattern = Pattern::new();
        let mut checker = Checker::new(&pattern, false);
        let mut pieces = Pieces(bytes, 1);
        while checker.read(&mut pieces)? != Progress::Done {}
        Ok(checker.position())
    }

    #[test]
    fn what_was_sent_is_taken_however_it_is_split() {
        let bytes = stream(40);
        let heads = 40 * HEAD + 5;
        assert_eq!(check(&bytes).unwrap(), Lsn((bytes.len() - heads) as u64));
    }

    #[test]
    fn loss_doubling_swapping_and_corruption_are_caught() {
        let good = stream(40);
        let full = HEAD + LARGEST;
        let mut corrupt = good.clone();
        corrupt[3 * full + 777] ^= 1;
        let lost = [&good[..full], &good[2 * full..]].concat();
        let doubled = [&good[..2 * full], &good[full..]].concat();
        let swapped = [
            &good[..full],
            &good[2 * full..3 * full],
            &good[full..2 * full],
            &good[3 * full..],
        ]
        .concat();
        let bytes_lost = [&good[..100], &good[116..]].concat();
        for wrong in [corrupt, lost, doubled, swapped, bytes_lost] {
            assert!(check(&wrong).is_err());
        }
        assert!(check(&good[..good.len() - 5]).is_err(), "cut short");
    }

    #[test]
    fn a_full_message_has_131102_bytes_on_the_wire() {
        let pattern = Pattern::new();
        let mut bytes = Vec::new();
        Sender::new(&pattern, false).send(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 131_102);
    }
}
