//! The messages after the startup: type and length of each, and the few whose bodies matter to a proxy.
//!
//! [`MessageWalker`] follows a stream that arrives split anywhere and never holds it up; the three readers at the end
//! take one whole message. Numbers and layouts: "Message Formats" in the PostgreSQL manual.

use std::fmt;

pub use postgres_protocol::message::backend::{
    AUTHENTICATION_TAG, BACKEND_KEY_DATA_TAG, COPY_DATA_TAG, ERROR_RESPONSE_TAG,
    READY_FOR_QUERY_TAG,
};

use crate::error_response::SqlState;
use crate::startup::CancelKey;

/// The most of a body that is shown: BackendKeyData has up to 260 bytes.
pub const MAX_HEAD: usize = 320;
/// Room for the head of a message in pieces that is kept for the next: those of a stream are shorter.
const MOST_ROOM_KEPT: usize = 64;

const HEADER: usize = 5;

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's type.
    pub tag: u8,
    /// The length as on the wire: itself included, the tag not.
    pub length: u32,
}

impl Header {
    /// Reads a header; `None` if no message of PostgreSQL begins so.
    #[inline]
    #[must_use]
    pub fn parse(head: [u8; 5]) -> Option<Self> {
        let [tag, length @ ..] = head;
        let length = u32::from_be_bytes(length);
        // All types are letters or digits; the length is a signed number to PostgreSQL.
        (tag.is_ascii_alphanumeric() && length >= 4 && length <= i32::MAX.unsigned_abs())
            .then_some(Self { tag, length })
    }

    /// The five bytes.
    #[must_use]
    pub const fn encode(self) -> [u8; 5] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [self.tag, a, b, c, d]
    }

    /// How long what follows is.
    #[must_use]
    pub const fn body_length(self) -> u32 {
        self.length.saturating_sub(4)
    }
}

/// Is told of the messages that a [`MessageWalker`] passes.
pub trait Listener {
    /// How many bytes of this message's body, from its beginning, are wanted; more than [`MAX_HEAD`] are not given.
    fn wanted(&self, header: Header) -> usize;
    /// A message was seen to its last byte. `head` is what was wanted of its body: shorter only if the body is.
    fn message(&mut self, header: Header, head: &[u8]);
    /// Passes over whole messages at the beginning of `bytes`, where a listener knows of some that come in great number
    /// what to look for; gives what is left. Those are not told.
    fn pass<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        bytes
    }
}

/// Follows the messages of one direction of a session, whatever the pieces they come in.
///
/// It only looks. What it does not understand it gives up on for good, quietly: the stream is the peers' own.
/// A message in one piece is shown where it lies; of one in several, what is wanted is kept, and the room for it with it,
/// so that a long stream allocates nothing.
#[derive(Debug)]
pub struct MessageWalker {
    position: Position,
    kept: Vec<u8>,
    last_boundary: Option<usize>,
}

#[derive(Debug)]
enum Position {
    /// So many bytes of a header are here; none of them: between two messages.
    Head([u8; HEADER], u8),
    /// Of this message's body so many bytes are to come, and so many are wanted.
    Body(Header, u32, u16),
    Lost,
}

impl Default for MessageWalker {
    fn default() -> Self {
        Self::new()
    }
}

impl MessageWalker {
    /// A walker at the beginning of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            position: Position::Head([0; HEADER], 0),
            kept: Vec::new(),
            last_boundary: Some(0),
        }
    }

    /// Walks over the next bytes of the stream. Each message is told once, when its last byte was seen.
    pub fn walk(&mut self, bytes: &[u8], listener: &mut impl Listener) {
        if self.is_filled_by(bytes) {
            return;
        }
        self.last_boundary = self.at_boundary().then_some(0);
        let mut rest = bytes;
        loop {
            match &mut self.position {
                Position::Lost => return,
                Position::Head(_, 0) => match whole_messages(rest, listener) {
                    Walked::Begun(after) => {
                        rest = after;
                        self.last_boundary = bytes.len().checked_sub(rest.len());
                        if rest.is_empty() {
                            return;
                        }
                        let (taken, after) = split_at_most(rest, HEADER);
                        let mut head = [0; HEADER];
                        for (place, byte) in head.iter_mut().zip(taken) {
                            *place = *byte;
                        }
                        if after.is_empty() && taken.len() < HEADER {
                            let have = u8::try_from(taken.len()).unwrap_or(0);
                            self.position = Position::Head(head, have);
                            return;
                        }
                        rest = after;
                        self.begin(head, listener);
                    }
                    Walked::Nonsense => self.lose(),
                },
                Position::Head(head, have) => {
                    let already = usize::from(*have);
                    let (taken, after) = split_at_most(rest, HEADER.saturating_sub(already));
                    for (place, byte) in head.iter_mut().skip(already).zip(taken) {
                        *place = *byte;
                    }
                    *have = have.saturating_add(u8::try_from(taken.len()).unwrap_or(0));
                    rest = after;
                    if usize::from(*have) < HEADER {
                        return;
                    }
                    let head = *head;
                    self.begin(head, listener);
                }
                Position::Body(header, missing, wanted) => {
                    let (taken, after) =
                        split_at_most(rest, usize::try_from(*missing).unwrap_or(usize::MAX));
                    // No more was taken than is missing, which is a u32.
                    *missing =
                        missing.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
                    rest = after;
                    let room = usize::from(*wanted).saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(split_at_most(taken, room).0);
                    if *missing > 0 {
                        return;
                    }
                    listener.message(*header, &self.kept);
                    self.position = Position::Head([0; HEADER], 0);
                    self.last_boundary = bytes.len().checked_sub(rest.len());
                    if self.kept.capacity() > MOST_ROOM_KEPT {
                        self.kept = Vec::new();
                    }
                }
            }
        }
    }

    /// The common case of a long message: these bytes neither end it nor hold anything wanted of it.
    #[inline]
    fn is_filled_by(&mut self, bytes: &[u8]) -> bool {
        let (Position::Body(_, missing, wanted), Ok(length)) =
            (&mut self.position, u32::try_from(bytes.len()))
        else {
            return false;
        };
        if length >= *missing || self.kept.len() < usize::from(*wanted) {
            return false;
        }
        *missing = missing.saturating_sub(length);
        self.last_boundary = None;
        true
    }

    /// Begins a message that did not come in one piece.
    fn begin(&mut self, head: [u8; HEADER], listener: &impl Listener) {
        match Header::parse(head) {
            Some(header) => {
                let wanted = listener.wanted(header).min(MAX_HEAD);
                self.kept.clear();
                self.position = Position::Body(
                    header,
                    header.body_length(),
                    u16::try_from(wanted).unwrap_or(u16::MAX),
                );
            }
            None => self.lose(),
        }
    }

    fn lose(&mut self) {
        self.position = Position::Lost;
        self.last_boundary = None;
        self.kept = Vec::new();
    }

    /// Whether nothing of a message is pending, so that one of our own could stand here.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        matches!(self.position, Position::Head(_, 0))
    }

    /// Whether the stream made no sense at some point; nothing is told from there on.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self.position, Position::Lost)
    }

    /// The offset in the bytes last walked over behind which no message is begun: 0 if none ended there, but one
    /// could have begun. `None` if there is no such place.
    #[must_use]
    pub const fn last_boundary(&self) -> Option<usize> {
        self.last_boundary
    }
}

enum Walked<'a> {
    /// What is left begins with a message that is not whole, or is empty.
    Begun(&'a [u8]),
    Nonsense,
}

/// The common case without a state: messages that lie there whole.
fn whole_messages<'a>(bytes: &'a [u8], listener: &mut impl Listener) -> Walked<'a> {
    let mut rest = listener.pass(bytes);
    while let Some((head, after)) = rest.split_first_chunk() {
        let Some(header) = Header::parse(*head) else {
            return Walked::Nonsense;
        };
        let length = usize::try_from(header.body_length()).unwrap_or(usize::MAX);
        let Some((body, next)) = after.split_at_checked(length) else {
            break;
        };
        let wanted = listener.wanted(header).min(MAX_HEAD);
        listener.message(header, split_at_most(body, wanted).0);
        rest = listener.pass(next);
    }
    Walked::Begun(rest)
}

#[inline]
fn split_at_most(bytes: &[u8], most: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(most).unwrap_or((bytes, &[]))
}

/// Reads the body of BackendKeyData.
#[must_use]
pub fn parse_backend_key_data(body: &[u8]) -> Option<CancelKey> {
    CancelKey::parse(body)
}

/// What is left of AuthenticationSASL when channel binding is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaslEdit {
    /// It offers none, or is another authentication message.
    Unchanged,
    /// The whole message without it.
    Edited(Vec<u8>),
    /// It offers nothing else: no plaintext frontend can log in.
    OnlyChannelBinding,
}

/// Takes the mechanisms with channel binding (SCRAM-SHA-256-PLUS) out of a whole authentication message.
///
/// They bind to the TLS session, which ends at the proxy: a frontend behind it that speaks plaintext must refuse them,
/// and libpq does: "server offered SCRAM-SHA-256-PLUS authentication over a non-SSL connection".
pub fn without_scram_plus(message: &[u8]) -> Result<SaslEdit, AuthenticationError> {
    let body = whole_body(message, AUTHENTICATION_TAG).ok_or(AuthenticationError::NotWhole)?;
    let (code, list) = body
        .split_first_chunk()
        .ok_or(AuthenticationError::Layout)?;
    if u32::from_be_bytes(*code) != AUTHENTICATION_SASL {
        return Ok(SaslEdit::Unchanged);
    }
    // Each mechanism ends with a zero, and so does the list: "A\0B\0\0".
    let list = list
        .strip_suffix(b"\0")
        .ok_or(AuthenticationError::Layout)?;
    if !list.is_empty() && list.last() != Some(&0) {
        return Err(AuthenticationError::Layout);
    }
    let mut kept = code.to_vec();
    let (mut offered, mut passed) = (0_u32, 0_u32);
    for mechanism in list.split_inclusive(|byte| *byte == 0) {
        if mechanism == b"\0" {
            return Err(AuthenticationError::Layout);
        }
        offered = offered.saturating_add(1);
        if !mechanism.ends_with(b"-PLUS\0") {
            passed = passed.saturating_add(1);
            kept.extend_from_slice(mechanism);
        }
    }
    kept.push(0);
    Ok(match passed {
        _ if passed == offered => SaslEdit::Unchanged,
        0 => SaslEdit::OnlyChannelBinding,
        _ => SaslEdit::Edited(encode_message(AUTHENTICATION_TAG, &kept)),
    })
}

const AUTHENTICATION_SASL: u32 = 10;

/// Why an authentication message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthenticationError {
    /// The bytes are not one whole message of this type.
    NotWhole,
    /// Its body is not what the manual says.
    Layout,
}

impl fmt::Display for AuthenticationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWhole => "not a whole authentication message",
            Self::Layout => "invalid layout of an authentication message",
        })
    }
}

impl std::error::Error for AuthenticationError {}

/// The SQLSTATE of a whole ErrorResponse; `None` also for one of protocol 2.0, which has none.
#[must_use]
pub fn sqlstate_of_error(message: &[u8]) -> Option<SqlState> {
    let fields = whole_body(message, ERROR_RESPONSE_TAG)?;
    fields
        .split(|byte| *byte == 0)
        .take_while(|field| !field.is_empty())
        .find_map(|field| SqlState::parse(field.strip_prefix(b"C")?))
}

/// Puts a header before a body. A body that no length word can hold would be refused by whoever reads it.
#[must_use]
pub fn encode_message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len())
        .unwrap_or(u32::MAX)
        .saturating_add(4);
    let mut message = Header { tag, length }.encode().to_vec();
    message.extend_from_slice(body);
    message
}

fn whole_body(message: &[u8], tag: u8) -> Option<&[u8]> {
    let (head, body) = message.split_first_chunk()?;
    let header = Header::parse(*head)?;
    (header.tag == tag && usize::try_from(header.body_length()) == Ok(body.len())).then_some(body)
}

#[cfg(test)]
mod tests;
