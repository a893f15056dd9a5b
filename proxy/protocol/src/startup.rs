//! The packets without a type byte that begin a connection: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
//!
//! As strict as PostgreSQL's ProcessStartupPacket, and stricter where PostgreSQL would run something else than what
//! was judged: a parameter sent twice, a name that PostgreSQL would cut. A StartupMessage keeps the very bytes that
//! came, since these are forwarded. See "Message Formats" in the PostgreSQL manual and backend_startup.c.

use std::collections::BTreeSet;
use std::fmt;

use crate::error_response::{Refusal, SqlState};
use crate::escape::escape;

/// The longest first packet: MAX_STARTUP_PACKET_LENGTH of PostgreSQL and its length word.
pub const MAX_STARTUP_PACKET: usize = 10_004;

/// The whole of SSLRequest.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The whole of GSSENCRequest.
pub const GSS_ENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// NAMEDATALEN - 1: PostgreSQL cuts longer names and goes on with the rest, so that is what a rule would have to know.
pub const MAX_NAME: usize = 63;

const MIN_STARTUP_PACKET: usize = 8;
const CANCEL_REQUEST_CODE: u32 = 0x04d2_162e;
const SSL_REQUEST_CODE: u32 = 0x04d2_162f;
const GSS_ENC_REQUEST_CODE: u32 = 0x04d2_1630;

/// Reads the length word that opens each of these packets: the whole packet's length, from 8 to 10,004.
pub fn parse_packet_length(head: [u8; 4]) -> Result<usize, StartupError> {
    let stated = u32::from_be_bytes(head);
    usize::try_from(stated)
        .ok()
        .filter(|length| (MIN_STARTUP_PACKET..=MAX_STARTUP_PACKET).contains(length))
        .ok_or(StartupError::Length(stated))
}

/// Reads exactly one whole packet, length word included.
pub fn parse_packet(packet: &[u8]) -> Result<FirstPacket, StartupError> {
    let (head, rest) = packet.split_first_chunk().ok_or(StartupError::NotWhole)?;
    let length = parse_packet_length(*head)?;
    let (code, body) = rest.split_first_chunk().ok_or(StartupError::NotWhole)?;
    if length != packet.len() {
        return Err(StartupError::NotWhole);
    }
    match u32::from_be_bytes(*code) {
        // PostgreSQL does not look at the length of these two; nothing that follows the rules is longer.
        SSL_REQUEST_CODE | GSS_ENC_REQUEST_CODE if !body.is_empty() => {
            Err(StartupError::RequestLength(length))
        }
        SSL_REQUEST_CODE => Ok(FirstPacket::SslRequest),
        GSS_ENC_REQUEST_CODE => Ok(FirstPacket::GssEncRequest),
        CANCEL_REQUEST_CODE => CancelKey::parse(body)
            .map(|key| FirstPacket::Cancel(CancelRequest { key }))
            .ok_or(StartupError::CancelLength(length)),
        _ => StartupMessage::parse(packet, *code, body).map(FirstPacket::Startup),
    }
}

/// The first packet of a connection, or the one after a request for encryption was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// TLS, please: answered `S` or `N`.
    SslRequest,
    /// Encryption by GSSAPI, please: answered `N`.
    GssEncRequest,
    /// Cancel the query of the session with this key.
    Cancel(CancelRequest),
    /// A session begins.
    Startup(StartupMessage),
}

impl FirstPacket {
    /// The whole packet as it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::SslRequest => SSL_REQUEST.to_vec(),
            Self::GssEncRequest => GSS_ENC_REQUEST.to_vec(),
            Self::Cancel(request) => request.encode(),
            Self::Startup(startup) => startup.packet.clone(),
        }
    }
}

/// Asks for the query of another connection to be cancelled. It is never answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelRequest {
    /// Names the session, and proves that its BackendKeyData was seen.
    pub key: CancelKey,
}

impl CancelRequest {
    /// The whole packet as it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_packet(
            CANCEL_REQUEST_CODE,
            &[&self.key.pid.to_be_bytes(), &self.key.secret],
        )
    }
}

/// What BackendKeyData gives and CancelRequest gives back. The secret is never shown.
#[derive(Clone)]
pub struct CancelKey {
    pid: u32,
    secret: Vec<u8>,
}

impl CancelKey {
    /// A key whose secret has a legal length: 4 bytes in protocol 3.0, up to 256 in 3.2.
    #[must_use]
    pub fn new(pid: u32, secret: &[u8]) -> Option<Self> {
        (4..=256).contains(&secret.len()).then(|| Self {
            pid,
            secret: secret.to_vec(),
        })
    }

    /// Reads the process id and the secret, which go to the end of the message.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let (pid, secret) = body.split_first_chunk()?;
        Self::new(u32::from_be_bytes(*pid), secret)
    }

    /// The process id of the backend; no secret.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }
}

/// Takes the same time wherever the secrets differ, so that a key cannot be guessed byte by byte.
impl PartialEq for CancelKey {
    fn eq(&self, other: &Self) -> bool {
        let differing = self
            .secret
            .iter()
            .zip(&other.secret)
            .fold(0, |seen, (a, b)| seen | (a ^ b));
        self.pid == other.pid
            && self.secret.len() == other.secret.len()
            && std::hint::black_box(differing) == 0
    }
}

impl Eq for CancelKey {}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKey")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// The packet that begins a session: the very bytes, and what PostgreSQL will take them to mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupMessage {
    packet: Vec<u8>,
    version: (u16, u16),
    parameters: Parameters,
    user: Vec<u8>,
    database: Vec<u8>,
    replication: Replication,
    application_names: Vec<Vec<u8>>,
}

impl StartupMessage {
    /// Builds a message from its parameters, in their order, and reads it as one that came from outside.
    pub fn new(version: (u16, u16), parameters: &[(&[u8], &[u8])]) -> Result<Self, StartupError> {
        match parse_packet(&encode_startup(version, parameters))? {
            FirstPacket::Startup(startup) => Ok(startup),
            _ => Err(StartupError::UnsupportedProtocol(version)),
        }
    }

    /// The whole packet as it came, to be forwarded as it is.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// The protocol's version, major 3 and any minor: which minor it will be is settled with PostgreSQL.
    #[must_use]
    pub const fn version(&self) -> (u16, u16) {
        self.version
    }

    /// The role; never empty.
    #[must_use]
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// The database: the role's name if none was given. Means nothing in a physical session.
    #[must_use]
    pub fn database(&self) -> &[u8] {
        &self.database
    }

    /// Which kind of session PostgreSQL will make of it.
    #[must_use]
    pub const fn replication(&self) -> Replication {
        self.replication
    }

    /// Every application_name that this message sets, as a parameter or within `options`: none, one or several, and
    /// which one lasts is PostgreSQL's business.
    #[must_use]
    pub fn application_names(&self) -> &[Vec<u8>] {
        &self.application_names
    }

    /// The value of a parameter, by its name as it was written.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&[u8]> {
        find(&self.parameters, name)
    }

    fn parse(packet: &[u8], code: [u8; 4], body: &[u8]) -> Result<Self, StartupError> {
        let [a, b, c, d] = code;
        let version = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        if version.0 != 3 {
            return Err(StartupError::UnsupportedProtocol(version));
        }
        let parameters = parse_parameters(body)?;
        let user = find(&parameters, "user").unwrap_or_default();
        if user.is_empty() {
            return Err(StartupError::NoUser);
        }
        let database = find(&parameters, "database")
            .filter(|name| !name.is_empty())
            .unwrap_or(user);
        let replication = match find(&parameters, "replication") {
            None => Replication::None,
            Some(value) => {
                Replication::parse(value).ok_or_else(|| StartupError::Replication(escape(value)))?
            }
        };
        let application_names = application_names(&parameters);
        let names = [("user", user), ("database", database)];
        let names = names.into_iter().chain(
            application_names
                .iter()
                .map(|name| ("application_name", name.as_slice())),
        );
        for (parameter, name) in names {
            if name.len() > MAX_NAME {
                return Err(StartupError::NameTooLong {
                    parameter,
                    length: name.len(),
                });
            }
        }
        Ok(Self {
            packet: packet.to_vec(),
            version,
            user: user.to_vec(),
            database: database.to_vec(),
            replication,
            application_names,
            parameters,
        })
    }
}

/// Encodes a StartupMessage of any content, legal or not: for clients and tests.
#[must_use]
pub fn encode_startup(version: (u16, u16), parameters: &[(&[u8], &[u8])]) -> Vec<u8> {
    let code = (u32::from(version.0) << 16) | u32::from(version.1);
    let mut pieces: Vec<&[u8]> = Vec::new();
    for (name, value) in parameters {
        pieces.extend([name, b"\0".as_slice(), value, b"\0"]);
    }
    pieces.push(b"\0");
    encode_packet(code, &pieces)
}

/// What kind of session a StartupMessage asks for. It is told from `replication` alone: the pseudo database of that
/// name may also be a real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Replication {
    /// An ordinary session: psql, pg_rewind, the slot-sync worker.
    None,
    /// A walsender without a database: a standby, pg_basebackup, pg_receivewal.
    Physical,
    /// A walsender in a database: a subscription, pg_recvlogical. It can also run any SQL that its role may.
    Logical,
}

impl Replication {
    /// Exactly `database`, or what PostgreSQL's parse_bool accepts.
    fn parse(value: &[u8]) -> Option<Self> {
        if value == b"database" {
            return Some(Self::Logical);
        }
        // The shortest prefix that counts: `o` alone could be either.
        let words: [(&[u8], usize, Self); 8] = [
            (b"true", 1, Self::Physical),
            (b"false", 1, Self::None),
            (b"yes", 1, Self::Physical),
            (b"no", 1, Self::None),
            (b"on", 2, Self::Physical),
            (b"off", 2, Self::None),
            (b"1", 1, Self::Physical),
            (b"0", 1, Self::None),
        ];
        let value = value.to_ascii_lowercase();
        words
            .into_iter()
            .find(|(word, shortest, _)| value.len() >= *shortest && word.starts_with(&value))
            .map(|(_, _, replication)| replication)
    }
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "ordinary",
            Self::Physical => "physical",
            Self::Logical => "logical",
        })
    }
}

/// Why a first packet is none. What it holds of a peer's text is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupError {
    /// The length word is out of range: garbage, or another protocol.
    Length(u32),
    /// The bytes are not one whole packet.
    NotWhole,
    /// SSLRequest or GSSENCRequest of more than 8 bytes.
    RequestLength(usize),
    /// CancelRequest whose secret is not 4 to 256 bytes long.
    CancelLength(usize),
    /// Another protocol than 3.x.
    UnsupportedProtocol((u16, u16)),
    /// The parameters are not pairs of terminated strings with one zero behind them.
    Layout,
    /// A parameter twice, in any case of letters; PostgreSQL would let the last one win.
    Duplicate(String),
    /// No user, or an empty one.
    NoUser,
    /// A name that PostgreSQL would cut before using it.
    NameTooLong {
        /// The parameter it stands in.
        parameter: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A value of `replication` that PostgreSQL does not know.
    Replication(String),
}

impl StartupError {
    /// Whether PostgreSQL closes without a word, since nothing shows that its protocol is spoken at all, or nobody
    /// waits for an answer.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        matches!(self, Self::Length(_) | Self::CancelLength(_))
    }

    /// The problem's id in `doctor`'s catalogue.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::Length(_) | Self::NotWhole => "W01",
            Self::Layout => "W02",
            Self::RequestLength(_) => "W03",
            Self::CancelLength(_) => "W04",
            Self::UnsupportedProtocol(_) => "W05",
            Self::Duplicate(_) => "W06",
            Self::NoUser => "W07",
            Self::NameTooLong { .. } => "W08",
            Self::Replication(_) => "W09",
        }
    }
}

impl fmt::Display for StartupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "invalid length of startup packet: {length}"),
            Self::NotWhole => f.write_str("incomplete startup packet"),
            Self::RequestLength(length) => write!(
                f,
                "invalid length of encryption request: {length} instead of 8"
            ),
            Self::CancelLength(length) => write!(f, "invalid length of cancel request: {length}"),
            Self::UnsupportedProtocol((major, minor)) => {
                write!(
                    f,
                    "unsupported frontend protocol {major}.{minor}: 3.x is supported"
                )
            }
            Self::Layout => {
                f.write_str("invalid startup packet layout: expected terminator as last byte")
            }
            Self::Duplicate(name) => {
                write!(f, "startup parameter \"{name}\" is sent more than once")
            }
            Self::NoUser => f.write_str("no PostgreSQL user name specified in startup packet"),
            Self::NameTooLong { parameter, length } => {
                write!(
                    f,
                    "{parameter} of {length} bytes is too long: PostgreSQL uses {MAX_NAME}"
                )
            }
            Self::Replication(value) => write!(
                f,
                "invalid value for parameter \"replication\": \"{value}\""
            ),
        }
    }
}

impl std::error::Error for StartupError {}

impl From<&StartupError> for Refusal {
    fn from(error: &StartupError) -> Self {
        let sqlstate = match error {
            StartupError::NoUser => SqlState::INVALID_AUTHORIZATION,
            StartupError::UnsupportedProtocol(_) => SqlState::FEATURE_NOT_SUPPORTED,
            StartupError::NameTooLong { .. } | StartupError::Replication(_) => {
                SqlState::INVALID_PARAMETER_VALUE
            }
            StartupError::Length(_)
            | StartupError::NotWhole
            | StartupError::Layout
            | StartupError::RequestLength(_)
            | StartupError::CancelLength(_)
            | StartupError::Duplicate(_) => SqlState::PROTOCOL_VIOLATION,
        };
        let refusal = Self::new(error.id(), sqlstate, error.to_string());
        match error {
            StartupError::Duplicate(_) => refusal
                .detail("PostgreSQL would let the last one win, so what was allowed might not be what runs.")
                .hint("Send each parameter once, whatever the case of its letters."),
            StartupError::NameTooLong { parameter, .. } => refusal
                .detail("PostgreSQL would cut it, so what was allowed might not be what runs.")
                .hint(format!("Shorten {parameter} to {MAX_NAME} bytes, in primary_conninfo or wherever it is set.")),
            StartupError::Replication(_) => {
                refusal.hint("Valid values are: true, false, database, and the spellings of a boolean.")
            }
            StartupError::NoUser => refusal.hint("Set user in primary_conninfo or the connection string."),
            _ => refusal,
        }
    }
}

/// Names and values in the order they came.
type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// Pairs of zero-terminated name and value, then one zero as the last byte.
fn parse_parameters(body: &[u8]) -> Result<Parameters, StartupError> {
    let mut parameters = Vec::new();
    let mut seen = BTreeSet::new();
    let mut rest = body;
    loop {
        let (name, after) = split_at_zero(rest).ok_or(StartupError::Layout)?;
        if name.is_empty() {
            return if after.is_empty() {
                Ok(parameters)
            } else {
                Err(StartupError::Layout)
            };
        }
        let (value, after) = split_at_zero(after).ok_or(StartupError::Layout)?;
        // PostgreSQL's settings are found in any case of letters, the first few parameters only as they are.
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(StartupError::Duplicate(escape(name)));
        }
        parameters.push((name.to_vec(), value.to_vec()));
        rest = after;
    }
}

fn split_at_zero(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (text, rest) = bytes.split_at_checked(end)?;
    Some((text, rest.split_first()?.1))
}

fn find<'a>(parameters: &'a [(Vec<u8>, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    parameters
        .iter()
        .find(|(known, _)| known == name.as_bytes())
        .map(|(_, value)| value.as_slice())
}

fn application_names(parameters: &Parameters) -> Vec<Vec<u8>> {
    let named = parameters
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case(b"application_name"))
        .map(|(_, value)| value.clone());
    let switched = find(parameters, "options").map(options::application_names);
    named.chain(switched.unwrap_or_default()).collect()
}

fn encode_packet(code: u32, pieces: &[&[u8]]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend_from_slice(&code.to_be_bytes());
    for piece in pieces {
        packet.extend_from_slice(piece);
    }
    // Nobody parses a packet that does not fit a length word: such a length is refused.
    let length = u32::try_from(packet.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    if let Some(head) = packet.first_chunk_mut() {
        *head = length;
    }
    packet
}

mod options;
#[cfg(test)]
mod tests;
