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
mod tests {
    use super::*;
    use crate::error_response::Refusal;

    type Seen = Vec<(u8, u32, Vec<u8>)>;

    /// Wants so much of the messages with these tags.
    struct Wants(&'static [u8], usize, Seen);

    impl Listener for Wants {
        fn wanted(&self, header: Header) -> usize {
            if self.0.contains(&header.tag) {
                self.1
            } else {
                0
            }
        }

        fn message(&mut self, header: Header, head: &[u8]) {
            self.2.push((header.tag, header.length, head.to_vec()));
        }
    }

    /// Walks over a stream in pieces of this size, again and again.
    fn walk(
        walker: &mut MessageWalker,
        wants: (&'static [u8], usize),
        stream: &[u8],
        size: usize,
    ) -> Seen {
        let mut seen = Wants(wants.0, wants.1, Seen::new());
        for piece in stream.chunks(size) {
            walker.walk(piece, &mut seen);
        }
        seen.2
    }

    fn login() -> Vec<u8> {
        [
            encode_message(b'R', &[0, 0, 0, 0]),
            encode_message(b'S', b"server_version\x0018.4\0"),
            encode_message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
            encode_message(b'Z', b"I"),
            encode_message(b'c', b""),
            encode_message(b'd', &[0; 1_000]),
        ]
        .concat()
    }

    #[test]
    fn every_message_is_told_once_however_it_is_split() {
        let expected = vec![
            (b'R', 8, vec![]),
            (b'S', 24, vec![]),
            (b'K', 12, vec![0, 0, 0, 7, 1, 2, 3, 4]),
            (b'Z', 5, b"I".to_vec()),
            (b'c', 4, vec![]),
            (b'd', 1_004, vec![0; 25]),
        ];
        for size in 1..login().len() + 1 {
            let mut walker = MessageWalker::new();
            assert_eq!(
                walk(&mut walker, (b"KZdc", 25), &login(), size),
                expected,
                "pieces of {size}"
            );
            assert!(walker.at_boundary());
        }
    }

    #[test]
    fn boundaries_are_known_within_the_bytes_last_walked_over() {
        let ready = encode_message(b'Z', b"I");
        let mut walker = MessageWalker::new();
        let mut walk = |bytes: &[u8]| {
            walker.walk(bytes, &mut Wants(b"", 0, Seen::new()));
            (walker.last_boundary(), walker.at_boundary())
        };
        assert_eq!(walk(&ready), (Some(6), true));
        assert_eq!(walk(&[]), (Some(0), true));
        assert_eq!(walk(&ready[..3]), (Some(0), false));
        assert_eq!(walk(&ready[3..5]), (None, false));
        assert_eq!(
            walk(&[&ready[5..], &ready, &ready[..5]].concat()),
            (Some(7), false)
        );
        assert_eq!(walk(&ready[5..]), (Some(1), true));
    }

    #[test]
    fn nonsense_is_given_up_on_for_good() {
        for nonsense in [
            b"Z\0\0\0\x03".as_slice(),
            b"Z\x80\0\0\0",
            b"\0\0\0\0\x05",
            b"\x16\x03\x01\x02\0",
        ] {
            let mut walker = MessageWalker::new();
            let wants: (&[u8], usize) = (b"Z", 1);
            let stream = [
                &encode_message(b'Z', b"I"),
                nonsense,
                &encode_message(b'Z', b"I"),
            ]
            .concat();
            assert_eq!(walk(&mut walker, wants, &stream, stream.len()).len(), 1);
            assert!(walker.is_lost() && !walker.at_boundary());
            assert_eq!(walker.last_boundary(), None);
            assert_eq!(walk(&mut walker, wants, &encode_message(b'Z', b"I"), 6), []);
            assert_eq!(walker.last_boundary(), None);
        }
    }

    #[test]
    fn a_walker_is_small() {
        assert!(size_of::<MessageWalker>() <= 64);
    }

    #[test]
    fn of_a_long_body_its_head_is_shown() {
        for size in [100, 1_000] {
            for (wanted, shown) in [(0, 0), (25, 25), (320, 320), (400, 320)] {
                let mut walker = MessageWalker::new();
                let message = encode_message(b'd', &[1; 900]);
                let seen = walk(&mut walker, (b"d", wanted), &message, size);
                assert_eq!(seen[0].2, vec![1; shown], "{wanted} in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_stream_in_pieces_takes_no_more_room() {
        let mut walker = MessageWalker::new();
        let message = encode_message(b'd', &[1; 131_072]).repeat(3);
        walk(&mut walker, (b"d", 25), &message, 16_384);
        let room = walker.kept.capacity();
        assert!(room <= MOST_ROOM_KEPT);
        walk(&mut walker, (b"d", 25), &message, 10);
        assert_eq!(walker.kept.capacity(), room);
    }

    #[test]
    fn backend_keys_of_both_protocols_are_read() {
        for length in [4, 32, 256] {
            let key = parse_backend_key_data(&[&[0, 0, 1, 0], vec![5; length].as_slice()].concat());
            assert_eq!(key, CancelKey::new(256, &vec![5; length]));
        }
        for length in [0, 3, 7, 261] {
            assert_eq!(parse_backend_key_data(&vec![0; length]), None);
        }
    }

    fn sasl(mechanisms: &[u8]) -> Vec<u8> {
        encode_message(b'R', &[&[0, 0, 0, 10], mechanisms].concat())
    }

    #[test]
    fn channel_binding_is_taken_out() {
        for (offered, left) in [
            (
                b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".as_slice(),
                Ok(SaslEdit::Edited(sasl(b"SCRAM-SHA-256\0\0"))),
            ),
            (b"SCRAM-SHA-256\0\0", Ok(SaslEdit::Unchanged)),
            (b"OAUTHBEARER\0\0", Ok(SaslEdit::Unchanged)),
            (b"SCRAM-SHA-256-PLUS\0\0", Ok(SaslEdit::OnlyChannelBinding)),
            (b"\0", Ok(SaslEdit::Unchanged)),
            (b"", Err(AuthenticationError::Layout)),
            (b"SCRAM-SHA-256\0", Err(AuthenticationError::Layout)),
            (b"SCRAM-SHA-256", Err(AuthenticationError::Layout)),
            (b"SCRAM-SHA-256\0\0\0", Err(AuthenticationError::Layout)),
        ] {
            assert_eq!(without_scram_plus(&sasl(offered)), left, "{offered:?}");
        }
        assert_eq!(
            without_scram_plus(&encode_message(b'R', &[0, 0, 0, 0])),
            Ok(SaslEdit::Unchanged)
        );
        assert_eq!(
            without_scram_plus(&encode_message(b'R', &[0])),
            Err(AuthenticationError::Layout)
        );
        assert_eq!(
            without_scram_plus(&encode_message(b'E', &[0; 4])),
            Err(AuthenticationError::NotWhole)
        );
        assert_eq!(
            without_scram_plus(b"R\0\0"),
            Err(AuthenticationError::NotWhole)
        );
    }

    #[test]
    fn the_sqlstate_of_an_error_is_found() {
        let starting = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0Fpostmaster.c\0L2\0RProcess\0\0";
        assert_eq!(
            sqlstate_of_error(&encode_message(b'E', starting)),
            Some(SqlState::CANNOT_CONNECT_NOW)
        );
        let ours = Refusal::new("P01", SqlState::INVALID_AUTHORIZATION, "no").encode();
        assert_eq!(
            sqlstate_of_error(&ours),
            Some(SqlState::INVALID_AUTHORIZATION)
        );
        for not_one in [
            encode_message(b'E', b"SFATAL\0\0"),
            encode_message(b'E', b"SFATAL\0\0C57P03\0"),
            encode_message(b'N', starting),
            b"EFATAL:  unsupported frontend protocol\n\0".to_vec(),
            ours[..ours.len() - 1].to_vec(),
        ] {
            assert_eq!(sqlstate_of_error(&not_one), None);
        }
    }
}
