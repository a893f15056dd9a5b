//! The two directions. Each waits for readiness, borrows a buffer, reads much at once, opens or seals it where it lies,
//! writes it, and goes on while reads come back full; after a short read it gives the buffer back and waits. What is
//! rare is boxed: the state of both directions is most of what an idle session keeps.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use super::Tap;
use super::flow::{Flow, total};
use super::pool::{self, Buffer, RECORDS};
use super::records::{BEFORE, BEHIND, Fault, Opener, PAYLOAD, Sealer};
use crate::net::Stream;

/// Slices that one write takes.
const SLICES: usize = 64;
/// After so many full buffers in a row another session gets its turn.
const FULL_IN_A_ROW: u32 = 4;

/// How one direction ended.
#[derive(Debug)]
pub(super) enum Pumped {
    /// The reader ended in order, and the writer was told so.
    Closed,
    /// The farewell was said.
    Stopped,
    ReadFailed(io::Error),
    /// The records that were read make no sense; what came before them was delivered.
    Faulted(Fault),
    WriteFailed(io::Error),
}

/// What the opening direction starts with.
pub(super) struct Early {
    /// Ciphertext read and not opened.
    pub(super) received: Vec<u8>,
    /// Payload opened and not delivered. How the peer's records ended, if they did already, the opener knows.
    pub(super) payload: Vec<u8>,
}

/// Why a direction that waited goes on.
enum Woken {
    Told,
    AnswerDue,
    Readable,
    Failed(io::Error),
}

/// Waits until `from` can be read, or there is a word to end, or the peer is owed a record. Only the first wakes this
/// direction by itself: the other two come from the same task, which polls it then. Registering for them with every
/// message would cost more than sealing it.
async fn wait<T: Tap>(from: &Stream, flow: &mut Flow<T>, answer_due: Option<&AtomicBool>) -> Woken {
    poll_fn(|cx| {
        if flow.told() {
            return Poll::Ready(Woken::Told);
        }
        if answer_due.is_some_and(|due| due.swap(false, Ordering::Relaxed)) {
            return Poll::Ready(Woken::AnswerDue);
        }
        from.poll_readable(cx).map(|ready| match ready {
            Ok(()) => Woken::Readable,
            Err(error) => Woken::Failed(error),
        })
    })
    .await
}

/// From TLS to plain. `answer_due` is left for the other direction, which must be polled after this one, when the peer is
/// owed a record.
pub(super) async fn open<T: Tap>(
    tls: &Stream,
    opener: &mut Opener,
    early: Box<Early>,
    plain: &Stream,
    flow: &mut Flow<T>,
    answer_due: &AtomicBool,
) -> Pumped {
    let Early {
        received: mut kept,
        payload,
    } = *early;
    if let Err(ended) = Box::pin(deliver(payload, plain, flow)).await {
        return ended;
    }
    let mut untried = true;
    loop {
        if let Some(words) = flow.words() {
            return Box::pin(say_plain(plain, &words)).await;
        }
        if !untried {
            match wait(tls, flow, None).await {
                Woken::Readable => {}
                Woken::Told | Woken::AnswerDue => continue,
                Woken::Failed(error) => return Pumped::ReadFailed(error),
            }
        }
        let mut buffer = pool::borrow();
        let reserve = opener.reserve();
        let mut have = reserve + kept.len();
        if let Some(place) = buffer.bytes.get_mut(reserve..have) {
            place.copy_from_slice(&kept);
        }
        kept = Vec::new();
        let mut in_a_row = 0;
        loop {
            // What came behind the handshake is opened before anything is read.
            let mut full = true;
            if !std::mem::take(&mut untried) {
                let room = buffer.bytes.get_mut(have..).unwrap_or_default();
                let most = room.len();
                match tls.try_read(room) {
                    Ok(0) => return Pumped::ReadFailed(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => {
                        full = n == most;
                        have += n;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Pumped::ReadFailed(error),
                }
            }
            let opened = opener.open(&mut buffer, have);
            if opened.answer_due {
                answer_due.store(true, Ordering::Relaxed);
            }
            let Buffer { bytes, ranges } = &mut *buffer;
            let words = flow.show(bytes, ranges);
            if let Err(error) = write(plain, &[], bytes, ranges).await {
                return Pumped::WriteFailed(error);
            }
            flow.count(total(ranges));
            if let Some(words) = words {
                return Box::pin(say_plain(plain, &words)).await;
            }
            if let Some(fault) = opened.fault {
                return Pumped::Faulted(fault);
            }
            if opened.closed {
                // A reader that is gone already has nothing left to be told.
                let _ = plain.shutdown_write();
                return Pumped::Closed;
            }
            have = reserve + opened.rest.len();
            bytes.copy_within(opened.rest, reserve);
            if !full {
                break;
            }
            in_a_row += 1;
            if in_a_row == FULL_IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
        // Half a record waits in a vector of its own size, not in a buffer.
        kept.extend(buffer.bytes.get(reserve..have).unwrap_or_default());
    }
}

/// From plain to TLS: the only one that seals, and that writes to the TLS socket.
pub(super) async fn seal<T: Tap>(
    plain: &Stream,
    read_ahead: Vec<u8>,
    sealer: &mut Sealer,
    tls: &Stream,
    flow: &mut Flow<T>,
    answer_due: &AtomicBool,
) -> Pumped {
    if let Err(ended) = Box::pin(seal_ahead(read_ahead, sealer, tls, flow)).await {
        return ended;
    }
    // Room for how many records the next read gets: small messages fill one, and many slices cost the kernel time.
    let mut records = 1;
    loop {
        if let Some(words) = flow.words() {
            return Box::pin(say_sealed(sealer, tls, &words)).await;
        }
        match wait(plain, flow, Some(answer_due)).await {
            Woken::Readable => {}
            Woken::Told => continue,
            Woken::AnswerDue => {
                if let Err(ended) = Box::pin(flush(sealer, tls)).await {
                    return ended;
                }
                continue;
            }
            Woken::Failed(error) => return Pumped::ReadFailed(error),
        }
        let mut buffer = pool::borrow();
        let mut in_a_row = 0;
        loop {
            let n = match read_apart(plain, &mut buffer.bytes, records) {
                Ok(0) => return Box::pin(shut(sealer, tls)).await,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Pumped::ReadFailed(error),
            };
            buffer.ranges.clear();
            buffer.ranges.extend(slots(n));
            if let Err(ended) = pass(&mut buffer, sealer, tls, flow).await {
                return ended;
            }
            let full = n == records * PAYLOAD;
            records = if n < PAYLOAD { 1 } else { RECORDS };
            if !full {
                break;
            }
            in_a_row += 1;
            if in_a_row == FULL_IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Passes what was read before the relay began.
async fn seal_ahead<T: Tap>(
    read_ahead: Vec<u8>,
    sealer: &mut Sealer,
    tls: &Stream,
    flow: &mut Flow<T>,
) -> Result<(), Pumped> {
    for piece in read_ahead.chunks(RECORDS * PAYLOAD) {
        let mut buffer = pool::borrow();
        let Buffer { bytes, ranges } = &mut *buffer;
        place(piece, bytes, ranges);
        pass(&mut buffer, sealer, tls, flow).await?;
    }
    Ok(())
}

/// Shows, seals and writes the payload in the buffer.
async fn pass<T: Tap>(
    buffer: &mut Buffer,
    sealer: &mut Sealer,
    tls: &Stream,
    flow: &mut Flow<T>,
) -> Result<(), Pumped> {
    let words = flow.show(&buffer.bytes, &mut buffer.ranges);
    let payload = total(&buffer.ranges);
    sealer.seal(buffer).map_err(Pumped::Faulted)?;
    write_sealed(sealer, tls, &buffer.bytes, &buffer.ranges).await?;
    flow.count(payload);
    match words {
        Some(words) => Err(Box::pin(say_sealed(sealer, tls, &words)).await),
        None => Ok(()),
    }
}

/// Writes payload that was opened before the relay began.
async fn deliver<T: Tap>(
    payload: Vec<u8>,
    plain: &Stream,
    flow: &mut Flow<T>,
) -> Result<(), Pumped> {
    if payload.is_empty() {
        return Ok(());
    }
    let mut ranges = Vec::new();
    ranges.push(0..payload.len());
    let words = flow.show(&payload, &mut ranges);
    write(plain, &[], &payload, &ranges)
        .await
        .map_err(Pumped::WriteFailed)?;
    flow.count(payload.len());
    match words {
        Some(words) => Err(Box::pin(say_plain(plain, &words)).await),
        None => Ok(()),
    }
}

/// Where the payload of record `index` lies, at most [`PAYLOAD`] bytes of it.
fn slot(index: usize, length: usize) -> Range<usize> {
    let start = index * (BEFORE + PAYLOAD + BEHIND) + BEFORE;
    start..start + length
}

/// The slots that `n` bytes fill.
fn slots(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n.div_ceil(PAYLOAD)).map(move |index| slot(index, PAYLOAD.min(n - index * PAYLOAD)))
}

fn place(piece: &[u8], bytes: &mut [u8], ranges: &mut Vec<Range<usize>>) {
    ranges.clear();
    for (range, part) in slots(piece.len()).zip(piece.chunks(PAYLOAD)) {
        if let Some(room) = bytes.get_mut(range.clone()) {
            room.copy_from_slice(part);
            ranges.push(range);
        }
    }
}

/// One read into the slots of so many records, with room left for headers and tags.
fn read_apart(plain: &Stream, bytes: &mut [u8], records: usize) -> io::Result<usize> {
    if records == 1 {
        return plain.try_read(bytes.get_mut(slot(0, PAYLOAD)).unwrap_or_default());
    }
    let mut slices: [IoSliceMut<'_>; RECORDS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let strides = bytes.chunks_exact_mut(BEFORE + PAYLOAD + BEHIND);
    for (slice, stride) in slices.iter_mut().zip(strides) {
        *slice = IoSliceMut::new(stride.get_mut(BEFORE..BEFORE + PAYLOAD).unwrap_or_default());
    }
    plain.try_read_vectored(&mut slices)
}

/// Writes what the sealer has due, then the sealed records.
async fn write_sealed(
    sealer: &mut Sealer,
    tls: &Stream,
    bytes: &[u8],
    ranges: &[Range<usize>],
) -> Result<(), Pumped> {
    let control = std::mem::take(sealer.control());
    write(tls, &control, bytes, ranges)
        .await
        .map_err(Pumped::WriteFailed)
}

/// Writes what the sealer has due.
pub(super) async fn flush(sealer: &mut Sealer, tls: &Stream) -> Result<(), Pumped> {
    sealer.answer().map_err(Pumped::Faulted)?;
    write_sealed(sealer, tls, &[], &[]).await
}

/// Writes `first` and then the ranges, waiting for room as often as need be.
async fn write(
    stream: &Stream,
    mut first: &[u8],
    bytes: &[u8],
    ranges: &[Range<usize>],
) -> io::Result<()> {
    let mut ranges = ranges;
    // How much of the first range is written already.
    let mut into = 0;
    while !first.is_empty() || !ranges.is_empty() {
        let mut written = match try_write(stream, first, bytes, ranges, into) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.writable().await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let of_first = written.min(first.len());
        first = first.get(of_first..).unwrap_or_default();
        written -= of_first;
        while let Some((range, rest)) = ranges.split_first() {
            let left = range.len() - into;
            if written < left {
                into += written;
                break;
            }
            written -= left;
            into = 0;
            ranges = rest;
        }
    }
    Ok(())
}

/// Writes what the half-close follows at once, which sends it.
async fn write_last(stream: &Stream, mut last: &[u8]) -> io::Result<()> {
    while !last.is_empty() {
        match stream.try_write_more(last) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => last = last.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One call that writes `first` and as many ranges as fit. Not part of the waiting, whose state every idle session keeps.
fn try_write(
    stream: &Stream,
    first: &[u8],
    bytes: &[u8],
    ranges: &[Range<usize>],
    into: usize,
) -> io::Result<usize> {
    if let (true, [range]) = (first.is_empty(), ranges) {
        let piece = bytes.get(range.start + into..range.end);
        return stream.try_write(piece.unwrap_or_default());
    }
    let mut slices = [IoSlice::new(&[]); SLICES];
    let mut used = 0;
    let pieces = ranges.iter().enumerate().map(|(index, range)| {
        let start = if index == 0 {
            range.start + into
        } else {
            range.start
        };
        bytes.get(start..range.end).unwrap_or_default()
    });
    let first = (!first.is_empty()).then_some(first);
    for (slice, piece) in slices.iter_mut().zip(first.into_iter().chain(pieces)) {
        *slice = IoSlice::new(piece);
        used += 1;
    }
    stream.try_write_vectored(slices.get(..used).unwrap_or(&slices))
}

async fn say_plain(plain: &Stream, words: &[u8]) -> Pumped {
    match write(plain, words, &[], &[]).await {
        Ok(()) => {
            let _ = plain.shutdown_write();
            Pumped::Stopped
        }
        Err(error) => Pumped::WriteFailed(error),
    }
}

async fn say_sealed(sealer: &mut Sealer, tls: &Stream, words: &[u8]) -> Pumped {
    let mut buffer = pool::borrow();
    {
        let Buffer { bytes, ranges } = &mut *buffer;
        place(words.get(..PAYLOAD).unwrap_or(words), bytes, ranges);
    }
    if let Err(fault) = sealer.seal(&mut buffer) {
        return Pumped::Faulted(fault);
    }
    let Buffer { bytes, ranges } = &mut *buffer;
    if let Err(ended) = write_sealed(sealer, tls, bytes, ranges).await {
        return ended;
    }
    match shut(sealer, tls).await {
        Pumped::Closed => Pumped::Stopped,
        other => other,
    }
}

/// Passes an orderly end on: close_notify, then the socket's half-close, together in one segment.
pub(super) async fn shut(sealer: &mut Sealer, tls: &Stream) -> Pumped {
    let closed = match sealer.close().and_then(|()| sealer.answer()) {
        Ok(()) => {
            let last = std::mem::take(sealer.control());
            write_last(tls, &last).await.map_err(Pumped::WriteFailed)
        }
        Err(fault) => Err(Pumped::Faulted(fault)),
    };
    match closed {
        Ok(()) => {
            let _ = tls.shutdown_write();
            Pumped::Closed
        }
        // A peer that is gone already has nothing left to be told.
        Err(Pumped::WriteFailed(_)) => Pumped::Closed,
        Err(ended) => ended,
    }
}
