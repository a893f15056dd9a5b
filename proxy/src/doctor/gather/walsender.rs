//! A small frontend: logs in as the standby would, and asks the far server what a walreceiver asks. libpq is of no use
//! here, since psql does not tell the SQLSTATE of a refused login, and every text may be translated.
//! Follows "Message Flow" and "Streaming Replication Protocol"; every message is bounded.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use protocol::message::{Header, encode_message};
use protocol::replication::{Clock, Lsn};
use protocol::startup::encode_startup;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use crate::doctor::facts::{Answer, FarSlot, Login, Password, ServerError};
use crate::doctor::report::visible;

/// WAL comes in messages of 128 KiB, or 1 MiB with the largest WAL pages; nothing else that is asked for is longer.
const LARGEST: u32 = 2 * 1024 * 1024;
/// A walsender that has nothing to say against a stream says so at once, or keeps quiet.
const OBJECTION: Duration = Duration::from_millis(400);
/// What a hot standby must not have less of than its primary ("Hot Standby", Administrator's Overview), and wal_level.
const SETTINGS: &[&str] = &[
    "wal_level",
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Who asks, and for what.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) user: String,
    /// None: physical replication.
    pub(super) database: Option<String>,
    /// An ordinary session in that database, as the slot sync worker has it: only its login is tried.
    pub(super) ordinary: bool,
    pub(super) application_name: String,
    pub(super) password: Result<Zeroizing<String>, Password>,
    /// Our own timeline, to see where the server's branched off.
    pub(super) timeline: Option<u32>,
    /// Where a walreceiver would go on, with its slot; only where none streams, which it would disturb.
    pub(super) stream: Option<Stream>,
    /// A subscription's slot.
    pub(super) slot: Option<String>,
}

#[derive(Clone)]
pub(super) struct Stream {
    pub(super) slot: Option<String>,
    pub(super) from: Lsn,
    pub(super) timeline: u32,
}

/// Logs in and asks, until `deadline`; what was told by then counts.
pub(super) async fn ask<S>(stream: &mut S, ask: &Ask, deadline: Instant) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut login = match timeout_at(deadline, log_in(stream, ask)).await {
        Ok(Ok(Answer::Welcome(login))) => login,
        Ok(other) => return other,
        Err(_) => return Ok(Answer::Silent),
    };
    // A server that stops answering now has let us in, which is what matters most.
    if !ask.ordinary {
        let _ = timeout_at(deadline, inquire(stream, ask, &mut login)).await;
    }
    let _ = timeout_at(deadline, stream.write_all(&encode_message(b'X', b""))).await;
    Ok(Answer::Welcome(login))
}

async fn log_in<S>(stream: &mut S, ask: &Ask) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (database, kind) = match &ask.database {
        // As the walreceiver sends it.
        None => ("replication", "true"),
        Some(database) => (database.as_str(), "database"),
    };
    let parameters = [
        ("user", ask.user.as_str()),
        ("database", database),
        ("application_name", &ask.application_name),
        ("replication", kind),
    ];
    let parameters = parameters.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let parameters = match ask.ordinary {
        true => &parameters[..3],
        false => &parameters[..],
    };
    send(stream, &encode_startup((3, 0), parameters)).await?;
    let mut scram: Option<ScramSha256> = None;
    let mut login = Login::default();
    loop {
        let (tag, body) = read(stream).await?;
        match tag {
            b'E' => return Ok(Answer::Refused(error(&body))),
            b'S' => status(&mut login, &body),
            b'Z' => return Ok(Answer::Welcome(Box::new(login))),
            b'R' => {
                let Some((code, rest)) = body.split_first_chunk() else {
                    return Err(malformed());
                };
                let code = u32::from_be_bytes(*code);
                if let (3 | 5 | 10, Err(none)) = (code, &ask.password) {
                    return Ok(Answer::NoPassword(none.clone()));
                }
                let password = ask
                    .password
                    .as_ref()
                    .map_or("", |password| password.as_str());
                let reply = match code {
                    0 => continue,
                    3 => Zeroizing::new([password.as_bytes(), b"\0"].concat()),
                    5 => {
                        let salt = rest.first_chunk().ok_or_else(malformed)?;
                        let hash = md5_hash(ask.user.as_bytes(), password.as_bytes(), *salt);
                        Zeroizing::new([hash.as_bytes(), b"\0"].concat())
                    }
                    10 => {
                        let offered = rest
                            .split(|byte| *byte == 0)
                            .any(|name| name == SCRAM_SHA_256.as_bytes());
                        if !offered {
                            return Ok(other_method("SASL without SCRAM-SHA-256"));
                        }
                        let started = scram.insert(ScramSha256::new(
                            password.as_bytes(),
                            ChannelBinding::unsupported(),
                        ));
                        let first = started.message();
                        let length = u32::try_from(first.len()).unwrap_or(0).to_be_bytes();
                        let name = [SCRAM_SHA_256.as_bytes(), b"\0"].concat();
                        Zeroizing::new([&name, &length[..], first].concat())
                    }
                    11 => {
                        let scram = scram.as_mut().ok_or_else(malformed)?;
                        scram.update(rest)?;
                        Zeroizing::new(scram.message().to_vec())
                    }
                    12 => {
                        scram.as_mut().ok_or_else(malformed)?.finish(rest)?;
                        continue;
                    }
                    other => return Ok(other_method(&format!("method {other}"))),
                };
                send(stream, &encode_message(b'p', &reply)).await?;
            }
            _ => {}
        }
    }
}

fn other_method(name: &str) -> Answer {
    Answer::NoPassword(Password::Method(name.to_owned()))
}

/// in_hot_standby is reported by 14 and later.
fn status(login: &mut Login, body: &[u8]) {
    let mut fields = body.split(|byte| *byte == 0);
    if fields.next() == Some(b"in_hot_standby") {
        login.in_recovery = fields.next().map(|value| value == b"on");
    }
}

async fn inquire<S>(stream: &mut S, ask: &Ask, login: &mut Login) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Ok(rows) = query(stream, "IDENTIFY_SYSTEM").await? {
        let mut row = rows.into_iter().flatten();
        let mut next = || row.next().flatten().unwrap_or_default();
        login.system_identifier = next();
        login.timeline = next().parse().unwrap_or_default();
        login.lsn = next().parse().unwrap_or_default();
    }
    if login.in_recovery.is_none() {
        // A transaction in recovery is read-only, whatever is set.
        let read_only = show(stream, "transaction_read_only").await?;
        login.in_recovery = read_only.map(|value| value == "on");
    }
    for name in SETTINGS {
        if let Some(value) = show(stream, name).await? {
            login.settings.insert((*name).to_owned(), value);
        }
    }
    if ask.timeline.is_some_and(|own| own < login.timeline) {
        let history = format!("TIMELINE_HISTORY {}", login.timeline);
        if let Ok(rows) = query(stream, &history).await? {
            let text = rows.into_iter().flatten().nth(1).flatten();
            login.history = text.as_deref().map(parse_history).unwrap_or_default();
        }
    }
    if let Some(slot) = &ask.slot {
        login.slot = find_slot(stream, slot).await?;
    }
    if let Some(wanted) = &ask.stream {
        follow(stream, wanted, login).await?;
    }
    Ok(())
}

/// Whether the publisher has a subscription's slot; everybody may read that. A session for logical replication takes SQL.
async fn find_slot<S>(stream: &mut S, name: &str) -> io::Result<Option<FarSlot>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Before 13 there is no wal_status.
    let sql = format!(
        "SELECT pg_catalog.to_jsonb(s)->>'wal_status' FROM pg_catalog.pg_replication_slots s WHERE slot_name = '{}'",
        name.replace('\'', "''")
    );
    let rows = query(stream, &sql).await?;
    let slot = |rows: Rows| match rows.into_iter().next() {
        None => FarSlot::Missing,
        Some(row) if row.iter().flatten().any(|status| status == "lost") => FarSlot::Lost,
        Some(_) => FarSlot::There,
    };
    Ok(rows.ok().map(slot))
}

/// Begins a stream as the walreceiver would, to hear what the server has against it, and ends it. Nothing is
/// confirmed, so the slot stays where it is.
async fn follow<S>(stream: &mut S, wanted: &Stream, login: &mut Login) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let slot = wanted.slot.as_deref().map_or_else(String::new, |slot| {
        format!("SLOT \"{}\" ", slot.replace('"', "\"\""))
    });
    let command = format!(
        "START_REPLICATION {slot}{} TIMELINE {}\0",
        wanted.from, wanted.timeline
    );
    let (asked, began) = (SystemTime::now(), Instant::now());
    send(stream, &encode_message(b'Q', command.as_bytes())).await?;
    loop {
        let (tag, body) = match timeout(OBJECTION, read(stream)).await {
            Ok(message) => message?,
            // Only a stream that has begun may be quiet; what is silent before it is cut off by the deadline.
            Err(_) if login.stream.is_some() => return Ok(()),
            Err(_) => continue,
        };
        match tag {
            b'W' => login.stream = Some(Ok(())),
            b'E' => {
                login.stream = Some(Err(error(&body)));
                return Ok(());
            }
            b'd' => {
                // It read its clock somewhere on the way: in the middle, as far as anybody knows.
                let then = asked + began.elapsed() / 2;
                login.clock_ahead = clock(&body).and_then(|clock| ahead_of(clock, then));
                send(stream, &encode_message(b'c', b"")).await?;
                return Ok(());
            }
            b'N' | b'S' => {}
            _ => return Ok(()),
        }
    }
}

/// The sender's clock in XLogData and keepalive messages.
fn clock(body: &[u8]) -> Option<Clock> {
    let at = match body.first()? {
        b'w' => 17,
        b'k' => 9,
        _ => return None,
    };
    let bytes = body.get(at..at + 8)?;
    Some(Clock(i64::from_be_bytes(bytes.try_into().ok()?)))
}

fn ahead_of(clock: Clock, ours: SystemTime) -> Option<f64> {
    let theirs = clock.unix_micros()? as f64 / 1e6;
    let ours = ours.duration_since(UNIX_EPOCH).ok()?;
    Some(theirs - ours.as_secs_f64())
}

/// A timeline history file: `PARENT LSN REASON` a line ("Continuous Archiving", Timelines).
fn parse_history(text: &str) -> Vec<(u32, Lsn)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect()
}

async fn show<S>(stream: &mut S, name: &str) -> io::Result<Option<String>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let rows = query(stream, &format!("SHOW {name}")).await?;
    Ok(rows
        .ok()
        .and_then(|rows| rows.into_iter().flatten().next().flatten()))
}

type Rows = Vec<Vec<Option<String>>>;

async fn query<S>(stream: &mut S, text: &str) -> io::Result<Result<Rows, ServerError>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send(
        stream,
        &encode_message(b'Q', format!("{text}\0").as_bytes()),
    )
    .await?;
    let mut outcome = Ok(Rows::new());
    loop {
        let (tag, body) = read(stream).await?;
        match (tag, &mut outcome) {
            (b'Z', _) => return Ok(outcome),
            (b'E', _) => outcome = Err(error(&body)),
            (b'D', Ok(rows)) => rows.push(row(&body).ok_or_else(malformed)?),
            _ => {}
        }
    }
}

/// DataRow: a count, then for each column its length (-1 for NULL) and bytes.
fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk()?;
        rest = after;
        columns.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => None,
            Ok(length) => {
                let (value, after) = rest.split_at_checked(length)?;
                rest = after;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        });
    }
    Some(columns)
}

fn error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|byte| *byte == 0) {
        let Some((tag, text)) = field.split_first() else {
            break;
        };
        let place = match tag {
            b'C' => &mut error.sqlstate,
            b'M' => &mut error.message,
            b'D' => &mut error.detail,
            b'H' => &mut error.hint,
            b'R' => &mut error.routine,
            _ => continue,
        };
        *place = plain(text);
    }
    error
}

/// A peer's text as it may stand on a terminal, cut where it is endless.
pub(super) fn plain(text: &[u8]) -> String {
    const LONGEST: usize = 600;
    let text = String::from_utf8_lossy(text);
    visible(&text.chars().take(LONGEST).collect::<String>())
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let header = Header::parse(head)
        .filter(|header| header.length <= LARGEST)
        .ok_or_else(malformed)?;
    let length = header.length.saturating_sub(4);
    let mut body = Vec::new();
    stream.take(length.into()).read_to_end(&mut body).await?;
    if u32::try_from(body.len()) == Ok(length) {
        Ok((header.tag, body))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not PostgreSQL's protocol")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_fields_and_rows_are_read() {
        let fields =
            b"SFATAL\0VFATAL\0C28000\0Mno entry\0Dwhy\0Fauth.c\0L1\0RClientAuthentication\0\0";
        let read = error(fields);
        assert_eq!(
            (read.sqlstate.as_str(), read.routine.as_str()),
            ("28000", "ClientAuthentication")
        );
        let body = [&[0, 2, 0, 0, 0, 1][..], b"7", &[0xff; 4]].concat();
        assert_eq!(row(&body), Some(vec![Some("7".to_owned()), None]));
        assert_eq!(row(&body[..body.len() - 1]), None);
    }

    #[test]
    fn history_names_each_branch() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tx\n";
        assert_eq!(
            parse_history(text),
            [(1, Lsn(0x300_0148)), (2, Lsn(0x500_0000))]
        );
    }
}
