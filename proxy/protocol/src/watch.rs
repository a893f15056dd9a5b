//! What can be seen of a replication connection in passing: bytes of both directions in, facts out. It looks at the
//! heads of messages alone, keeps no byte of them, and gives up quietly on what it does not understand, counting that.
//!
//! Layouts: "Streaming Replication Protocol" in the PostgreSQL manual. Before 9.3 the messages inside a stream were
//! laid out otherwise (machine dependent), so of those servers only bytes are counted.

use crate::command::Command;
use crate::lag::{Confirmed, LagTracker};
use crate::message::{
    BACKEND_KEY_DATA_TAG, COPY_DATA_TAG, Header, Listener, MAX_HEAD, MessageWalker,
    READY_FOR_QUERY_TAG, parse_backend_key_data,
};
use crate::replication::{Clock, Keepalive, Lsn, StandbyStatusUpdate, WalRun, XLogData};
use crate::startup::CancelKey;

/// A server whose streams are understood: 9.3.
const OLDEST_UNDERSTOOD: u32 = 903;
/// Most of a StandbyStatusUpdate's and a keepalive's body that is needed, and one byte more to know that it is whole.
const HEAD_OF_COPY_DATA: usize = 35;

/// What a connection does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// It logs in, or waits for a command, or runs one that is no stream.
    #[default]
    Idle,
    /// WAL or changes flow (START_REPLICATION).
    Streaming,
    /// A base backup flows.
    BaseBackup,
}

/// One replication connection as seen from between its ends. Small until a stream begins.
#[derive(Debug, Default)]
pub struct Watch {
    asked: Asked,
    phase: Phase,
    /// Major and minor, as 1500 or 902; 0: not told.
    version: u32,
    /// Result sets begun since the command.
    result_sets: u8,
    cancel_key: Option<CancelKey>,
    stream: Option<Box<Stream>>,
    not_understood: u64,
    /// The frontend has said goodbye.
    terminated: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Asked {
    #[default]
    Nothing,
    IdentifySystem,
    StartReplication,
    BaseBackup,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Messages,
    CopyBoth,
    /// A stream of a server before 9.3.
    OldCopyBoth,
    CopyOut,
}

/// What is known of a stream: of the one that flows, or of the last.
#[derive(Debug, Default)]
pub struct Stream {
    /// Changes are decoded, rather than WAL copied.
    pub logical: bool,
    /// A base backup rather than a stream of WAL.
    pub backup: Option<Backup>,
    /// As asked for, or made on this connection.
    pub slot: Option<String>,
    /// As asked for, or as the server has it.
    pub timeline: Option<u32>,
    /// Where it was asked to begin.
    pub start: Lsn,
    /// How far WAL was sent; 0: not yet.
    pub sent: Lsn,
    /// How far the server's WAL goes, as it last said.
    pub end: Lsn,
    /// The last reply of the frontend.
    pub reply: Option<StandbyStatusUpdate>,
    /// When that came by.
    pub reply_at: Option<Clock>,
    /// When the last keepalive of the server came by.
    pub keepalive_at: Option<Clock>,
    /// When the last WAL came by.
    pub wal_at: Option<Clock>,
    /// The server asked for a reply, and none came since.
    pub reply_requested: bool,
    /// Microseconds from the server's clock to ours, of its last message; below zero where clocks differ.
    pub from_server: Option<i64>,
    /// Microseconds from the frontend's clock to ours, of its last reply.
    pub from_frontend: Option<i64>,
    /// WAL, or decoded changes, in bytes.
    pub wal_bytes: u64,
    /// Messages that carried them.
    pub wal_messages: u64,
    /// Keepalives of the server.
    pub keepalives: u64,
    /// Replies of the frontend.
    pub replies: u64,
    /// Hot standby feedbacks of the frontend.
    pub feedbacks: u64,
    lags: LagTracker,
    fresh: Fresh,
}

/// What was seen since the time was last told.
#[derive(Debug, Default)]
struct Fresh {
    wal: Option<Clock>,
    keepalive: Option<Clock>,
    reply: bool,
}

/// How far a base backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backup {
    /// Bytes of archives and manifest that came by.
    pub bytes: u64,
    /// What the server estimates to send, if it was asked to (PROGRESS).
    pub total: Option<u64>,
    /// What the server last said it had sent of the total (15 and later).
    pub done: Option<u64>,
    /// Tablespaces to be sent, the main one included.
    pub tablespaces: u32,
    /// Archives begun.
    pub archives: u32,
}

impl Watch {
    /// The bytes that the backend sends next.
    pub fn backend_sent(&mut self, walker: &mut MessageWalker, bytes: &[u8]) {
        let lost = walker.is_lost();
        walker.walk(bytes, &mut Backend(self));
        self.count_if_lost(lost, walker);
    }

    /// The bytes that the frontend sends next, behind its startup.
    pub fn frontend_sent(&mut self, walker: &mut MessageWalker, bytes: &[u8]) {
        let lost = walker.is_lost();
        walker.walk(bytes, &mut Frontend(self));
        self.count_if_lost(lost, walker);
    }

    fn count_if_lost(&mut self, before: bool, walker: &MessageWalker) {
        if walker.is_lost() && !before {
            self.not_understood = self.not_understood.saturating_add(1);
        }
    }

    /// Tells the time to what was seen since this was called last: once for as many bytes as were read at once.
    pub fn settle(&mut self, now: Clock) {
        if let Some(stream) = &mut self.stream {
            stream.settle(now);
        }
    }

    /// The server's major and minor version, as 1500 or 902.
    #[must_use]
    pub fn version(&self) -> Option<u32> {
        (self.version > 0).then_some(self.version)
    }

    /// The key that the backend gave since this was asked last.
    pub fn take_cancel_key(&mut self) -> Option<CancelKey> {
        self.cancel_key.take()
    }

    /// What it does.
    #[must_use]
    pub fn activity(&self) -> Activity {
        match (self.phase, &self.asked) {
            (Phase::CopyBoth | Phase::OldCopyBoth, _) => Activity::Streaming,
            (Phase::CopyOut, _) | (Phase::Messages, Asked::BaseBackup) => Activity::BaseBackup,
            (Phase::Messages, _) => Activity::Idle,
        }
    }

    /// What flows, or flowed last.
    #[must_use]
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_deref()
    }

    /// Whether the frontend has sent Terminate: what it wanted it has, however the backend closes then. A backend goes at the
    /// first one, and pg_basebackup's second process sends another on the same connection, so that often it closes with
    /// bytes unread, which resets the connection.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.terminated
    }

    /// Messages that were passed on and not understood; a direction that made no sense counts once.
    #[must_use]
    pub fn not_understood(&self) -> u64 {
        self.not_understood
    }

    fn stream_mut(&mut self) -> &mut Stream {
        self.stream.get_or_insert_default()
    }

    fn misunderstood(&mut self) {
        self.not_understood = self.not_understood.saturating_add(1);
    }

    fn command(&mut self, query: &[u8]) {
        self.result_sets = 0;
        self.asked = match Command::parse(query) {
            Command::IdentifySystem => Asked::IdentifySystem,
            Command::StartReplication {
                slot,
                logical,
                start,
                timeline,
            } => {
                let known = self.stream.take().map_or(Lsn(0), |stream| stream.end);
                *self.stream_mut() = Stream {
                    logical,
                    slot,
                    timeline,
                    start,
                    sent: start,
                    end: known.max(start),
                    ..Stream::default()
                };
                Asked::StartReplication
            }
            Command::BaseBackup => {
                *self.stream_mut() = Stream {
                    backup: Some(Backup::default()),
                    ..Stream::default()
                };
                Asked::BaseBackup
            }
            Command::CreateReplicationSlot(slot) => {
                self.stream_mut().slot = Some(slot);
                Asked::Nothing
            }
            Command::TimelineHistory(timeline) => {
                self.stream_mut().timeline = Some(timeline);
                Asked::Nothing
            }
            Command::Other => Asked::Nothing,
        };
    }

    /// A row of the few results that tell something.
    fn row(&mut self, row: &[u8]) {
        match (&self.asked, self.result_sets) {
            // systemid, timeline, xlogpos, dbname
            (Asked::IdentifySystem, 1) => {
                let mut columns = Columns::of(row);
                let timeline = columns.nth(1).flatten().and_then(number);
                let end = columns.next().flatten().and_then(|lsn| lsn.parse().ok());
                let stream = self.stream_mut();
                stream.timeline = timeline.and_then(|timeline| u32::try_from(timeline).ok());
                stream.end = end.unwrap_or_default();
            }
            // recptr, tli
            (Asked::BaseBackup, 1) => {
                let mut columns = Columns::of(row);
                let start = columns.next().flatten().and_then(|lsn| lsn.parse().ok());
                let timeline = columns.next().flatten().and_then(number);
                let stream = self.stream_mut();
                stream.start = start.unwrap_or_default();
                stream.timeline = timeline.and_then(|timeline| u32::try_from(timeline).ok());
            }
            // spcoid, spclocation, size: in KiB, NULL unless PROGRESS was asked for
            (Asked::BaseBackup, 2) => {
                let size = Columns::of(row).nth(2).flatten().and_then(number);
                if let Some(backup) = &mut self.stream_mut().backup {
                    backup.tablespaces = backup.tablespaces.saturating_add(1);
                    if let Some(size) = size.and_then(|size| size.checked_mul(1024)) {
                        backup.total = backup.total.unwrap_or(0).checked_add(size);
                    }
                }
            }
            _ => {}
        }
    }

    fn copy_both(&mut self) {
        self.phase = match self.version {
            1..OLDEST_UNDERSTOOD => Phase::OldCopyBoth,
            _ => Phase::CopyBoth,
        };
    }

    fn backend_copy_data(&mut self, header: Header, head: &[u8]) {
        let length = u64::from(header.body_length());
        let Some(stream) = &mut self.stream else {
            return;
        };
        match self.phase {
            Phase::CopyBoth => {
                if !stream.server_data(length, head) {
                    self.misunderstood();
                }
            }
            Phase::OldCopyBoth => stream.wal_bytes = stream.wal_bytes.saturating_add(length),
            Phase::CopyOut => stream.backup_data(self.version, length, head),
            Phase::Messages => {}
        }
    }
}

/// What comes from the backend.
struct Backend<'a>(&'a mut Watch);

impl Listener for Backend<'_> {
    fn wanted(&self, header: Header) -> usize {
        match header.tag {
            COPY_DATA_TAG => HEAD_OF_COPY_DATA,
            BACKEND_KEY_DATA_TAG | b'S' => MAX_HEAD,
            b'D' if matches!(self.0.asked, Asked::IdentifySystem | Asked::BaseBackup) => MAX_HEAD,
            _ => 0,
        }
    }

    fn message(&mut self, header: Header, head: &[u8]) {
        let watch = &mut *self.0;
        match header.tag {
            COPY_DATA_TAG => watch.backend_copy_data(header, head),
            b'W' if watch.asked == Asked::StartReplication => watch.copy_both(),
            b'H' if watch.asked == Asked::BaseBackup => {
                watch.phase = Phase::CopyOut;
                // Before 15 each tablespace has a copy of its own.
                if let Some(backup) = &mut watch.stream_mut().backup {
                    backup.archives = backup.archives.saturating_add(1);
                }
            }
            // The end of a copy: in order, by an error, or by the shutdown of the server, which sends no CopyDone.
            b'c' | b'C' | b'E' => watch.phase = Phase::Messages,
            b'T' => watch.result_sets = watch.result_sets.saturating_add(1),
            b'D' => watch.row(head),
            b'S' => {
                if let Some(version) = server_version(head) {
                    watch.version = version;
                }
            }
            BACKEND_KEY_DATA_TAG => watch.cancel_key = parse_backend_key_data(head),
            READY_FOR_QUERY_TAG => {
                watch.phase = Phase::Messages;
                watch.asked = Asked::Nothing;
            }
            _ => {}
        }
    }

    fn pass<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match (self.0.phase, &mut self.0.stream) {
            (Phase::CopyBoth, Some(stream)) => match WalRun::pass(bytes, stream.logical) {
                Some((run, rest)) => {
                    stream.wal(&run);
                    rest
                }
                None => bytes,
            },
            _ => bytes,
        }
    }
}

/// What comes from the frontend.
struct Frontend<'a>(&'a mut Watch);

impl Listener for Frontend<'_> {
    fn wanted(&self, header: Header) -> usize {
        match header.tag {
            COPY_DATA_TAG => HEAD_OF_COPY_DATA,
            b'Q' => MAX_HEAD,
            _ => 0,
        }
    }

    fn message(&mut self, header: Header, head: &[u8]) {
        let watch = &mut *self.0;
        match header.tag {
            b'Q' => watch.command(head),
            b'X' => watch.terminated = true,
            COPY_DATA_TAG if watch.phase == Phase::CopyBoth => {
                if let Some(stream) = &mut watch.stream
                    && !stream.frontend_data(head)
                {
                    watch.misunderstood();
                }
            }
            _ => {}
        }
    }
}

impl Stream {
    /// Microseconds from WAL being sent by to its confirmation, as [`LagTracker::lag`] reckons it.
    #[must_use]
    pub fn lag(&self, what: Confirmed, now: Clock) -> Option<u64> {
        self.lags.lag(what, now)
    }

    /// Bytes of WAL between the server's end and what is confirmed; `None` if that was never confirmed.
    #[must_use]
    pub fn behind(&self, what: Confirmed) -> Option<u64> {
        let lsn = what.of(self.reply.as_ref()?);
        (lsn > Lsn(0)).then(|| self.end.max(self.sent).0.saturating_sub(lsn.0))
    }

    /// Messages of WAL, or of changes.
    fn wal(&mut self, run: &WalRun) {
        if self.logical {
            // What it sends is not as long as the WAL it came from, may come from before what was sent last, and may
            // tell no place at all.
            self.sent = self.sent.max(run.farthest_start);
            self.end = self.end.max(run.farthest_end).max(self.sent);
        } else {
            self.sent = Lsn(run.last.start.0.saturating_add(run.last_data));
            self.end = run.last.end.max(self.sent);
        }
        self.wal_bytes = self.wal_bytes.saturating_add(run.data);
        self.wal_messages = self.wal_messages.saturating_add(run.messages);
        self.fresh.wal = Some(run.last.clock);
    }

    /// The body of a CopyData of the server; false if it is not understood.
    fn server_data(&mut self, length: u64, head: &[u8]) -> bool {
        if let Some(wal) = XLogData::parse(head) {
            self.wal(&WalRun::one(
                wal,
                length.saturating_sub(XLogData::LENGTH as u64),
            ));
            true
        } else if let Some(keepalive) = Keepalive::parse(head) {
            // It tells how far it has sent (WalSndKeepalive): without WAL to send, that is how far its WAL goes.
            self.sent = self.sent.max(keepalive.end);
            self.end = self.end.max(keepalive.end);
            self.reply_requested = keepalive.reply_requested;
            self.keepalives = self.keepalives.saturating_add(1);
            self.fresh.keepalive = Some(keepalive.clock);
            true
        } else {
            false
        }
    }

    /// The body of a CopyData of the frontend; false if it is not understood.
    fn frontend_data(&mut self, head: &[u8]) -> bool {
        if let Some(reply) = StandbyStatusUpdate::parse(head) {
            self.reply = Some(reply);
            self.replies = self.replies.saturating_add(1);
            self.reply_requested = false;
            self.fresh.reply = true;
            true
        } else if head.first() == Some(&b'h') {
            self.feedbacks = self.feedbacks.saturating_add(1);
            true
        } else {
            false
        }
    }

    fn backup_data(&mut self, version: u32, length: u64, head: &[u8]) {
        let Some(backup) = &mut self.backup else {
            return;
        };
        // Since 15 one copy holds everything, and a letter tells what follows.
        let of_archive = match head.split_first() {
            Some((b'd', _)) if version >= 1500 => length.saturating_sub(1),
            Some((b'n', _)) if version >= 1500 => {
                // The copy itself was counted as the first.
                backup.archives = backup.archives.saturating_add(u32::from(backup.bytes > 0));
                0
            }
            Some((b'p', done)) if version >= 1500 => {
                backup.done = done.first_chunk().map(|done| u64::from_be_bytes(*done));
                0
            }
            _ if version >= 1500 => 0,
            _ => length,
        };
        backup.bytes = backup.bytes.saturating_add(of_archive);
    }

    fn settle(&mut self, now: Clock) {
        let Fresh {
            wal,
            keepalive,
            reply,
        } = std::mem::take(&mut self.fresh);
        if wal.is_some() {
            self.wal_at = Some(now);
            self.lags.sent(self.sent, now);
        }
        if keepalive.is_some() {
            self.keepalive_at = Some(now);
        }
        if let Some(clock) = wal.max(keepalive) {
            self.from_server = now.0.checked_sub(clock.0);
        }
        if let Some(reply) = self.reply.filter(|_| reply) {
            self.reply_at = Some(now);
            self.from_frontend = now.0.checked_sub(reply.clock.0);
            self.lags.replied(&reply, self.sent, now);
        }
    }
}

/// The values of a DataRow, as text; a NULL is `None`.
struct Columns<'a>(&'a [u8]);

impl<'a> Columns<'a> {
    fn of(row: &'a [u8]) -> Self {
        // Two bytes count them.
        Self(row.get(2..).unwrap_or_default())
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = Option<&'a str>;

    fn next(&mut self) -> Option<Option<&'a str>> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = i32::from_be_bytes(*length);
        let (value, rest) = match usize::try_from(length) {
            Ok(length) => {
                let (value, rest) = rest.split_at_checked(length)?;
                (std::str::from_utf8(value).ok(), rest)
            }
            Err(_) => (None, rest),
        };
        self.0 = rest;
        Some(value)
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// From ParameterStatus: "server_version", as 15.18, 9.2.24 or 18beta1, with what a packager added.
fn server_version(body: &[u8]) -> Option<u32> {
    let text = body.strip_prefix(b"server_version\0")?;
    let mut numbers = text
        .split(|byte| !byte.is_ascii_digit())
        .map(|digits| number(std::str::from_utf8(digits).ok()?));
    let major = u32::try_from(numbers.next()??).ok()?;
    let minor = if major < 10 {
        u32::try_from(numbers.next()??).ok()?
    } else {
        0
    };
    major.checked_mul(100)?.checked_add(minor)
}

#[cfg(test)]
mod tests;
