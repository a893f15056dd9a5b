//! TLS 1.3 records, opened and sealed where they lie (RFC 8446, section 5). The only room with secrets in hand: no
//! Debug, no log; keys are zeroized by aws-lc-rs and rustls on drop.
//!
//! Why this is safe to own, rule by rule:
//! - a nonce is used once: each direction's sequence only rises, is never set, and fails before it would wrap; the
//!   sealing key of aws-lc-rs refuses a nonce that does not rise as well. Sealer is neither Clone nor shared;
//! - a key seals no more records than its suite allows (RFC 8446, 5.5): it is renewed before;
//! - plaintext is handed out only as what rustls' decrypter returned: after its tag was verified;
//! - a length over 2^14 + 256 is refused before it is awaited;
//! - the end is close_notify: EOF without it is for the relay to report; an alert, an unexpected type or handshake
//!   message ends the session with the right alert. After either nothing more is opened, whoever asks, and after an
//!   alert of ours nothing more is sealed;
//! - a key update must end its record, and what follows is opened with the new key.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, TlsProtocolId,
    TlsRecordSealingKey, UnboundKey,
};
use tokio_rustls::rustls::client::ClientConnectionData;
use tokio_rustls::rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, Nonce as RecordNonce, make_tls13_aad,
};
use tokio_rustls::rustls::kernel::KernelConnection;
use tokio_rustls::rustls::server::ServerConnectionData;
use tokio_rustls::rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    ProtocolVersion, SupportedCipherSuite, Tls13CipherSuite,
};

use super::{BEFORE, BEHIND, Fault, LONGEST_CIPHERTEXT, Opened};

/// Encrypted records all claim to be application data, version 1.2 (RFC 8446, 5.2).
const OUTER_TYPE: u8 = 23;
const OUTER_VERSION: [u8; 2] = [3, 3];
/// Records in a row without payload (empty, key updates, tickets): more is a flood. As many as rustls and OpenSSL take.
const FRUITLESS: u32 = 32;
/// A handshake message split over records is put together up to this size, as in rustls; tickets are far smaller.
const LONGEST_HANDSHAKE: usize = 4 + 0xffff;
/// Sent before the key's limit is reached, so that the update itself still fits.
const MARGIN: u64 = 16;

/// Alert levels (RFC 8446, 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// A connection whose handshake is over and whose keys are ours.
pub(crate) struct InPlace {
    secrets: ExtractedSecrets,
    shared: Shared,
}

/// rustls' key schedule, by side: only a client takes tickets.
pub(crate) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What both directions need. They run in one task, so the lock is never waited for.
type Shared = Arc<Mutex<State>>;

struct State {
    kernel: Kernel,
    /// The peer asked for a key update of ours.
    answer_due: bool,
}

pub(in super::super) struct Opener {
    shared: Shared,
    decrypter: Box<dyn MessageDecrypter>,
    sequence: u64,
    /// The handshake message of which a part came.
    handshake: Vec<u8>,
    fruitless: u32,
    /// How the peer's records ended: nothing is opened after it.
    ended: Option<Result<(), Fault>>,
}

pub(in super::super) struct Sealer {
    shared: Shared,
    key: SealingKey,
    /// Records that this key may still seal.
    left: u64,
    control: Vec<u8>,
    /// An alert of ours was sealed: nothing is sealed after it.
    closed: bool,
}

struct SealingKey {
    aead: Aead,
    iv: tokio_rustls::rustls::crypto::cipher::Iv,
    sequence: u64,
}

enum Aead {
    Aes(TlsRecordSealingKey),
    /// aws-lc-rs has no record key for it; the sequence alone keeps its nonces apart.
    ChaCha(LessSafeKey),
}

impl InPlace {
    pub(crate) fn new(secrets: ExtractedSecrets, kernel: Kernel) -> Self {
        let state = State {
            kernel,
            answer_due: false,
        };
        Self {
            secrets,
            shared: Arc::new(Mutex::new(state)),
        }
    }

    /// The two directions.
    pub(in super::super) fn split(self) -> Result<(Opener, Sealer), Fault> {
        let suite = lock(&self.shared).kernel.suite()?;
        let (rx_sequence, rx) = self.secrets.rx;
        let (tx_sequence, tx) = self.secrets.tx;
        let opener = Opener {
            shared: Arc::clone(&self.shared),
            decrypter: decrypter(suite, rx)?,
            sequence: rx_sequence,
            handshake: Vec::new(),
            fruitless: 0,
            ended: None,
        };
        let sealer = Sealer {
            shared: self.shared,
            key: SealingKey::new(tx, tx_sequence)?,
            left: allowed(suite).saturating_sub(tx_sequence),
            control: Vec::new(),
            closed: false,
        };
        Ok((opener, sealer))
    }
}

impl Kernel {
    pub(super) fn suite(&self) -> Result<&'static Tls13CipherSuite, Fault> {
        let suite = match self {
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
            Self::Server(kernel) => kernel.negotiated_cipher_suite(),
        };
        match suite {
            SupportedCipherSuite::Tls13(suite) => Ok(suite),
            SupportedCipherSuite::Tls12(_) => Err(Fault::Internal("records in place need TLS 1.3")),
        }
    }

    pub(super) fn next_receiving_secret(
        &mut self,
    ) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }

    pub(super) fn next_sending_secret(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }
}

impl Opener {
    /// Opens the whole records at the start of `bytes[..filled]`; their payload is listed in `ranges`.
    pub(in super::super) fn open(
        &mut self,
        bytes: &mut [u8],
        filled: usize,
        ranges: &mut Vec<Range<usize>>,
    ) -> Opened {
        let mut at = 0;
        let mut opened = Opened::default();
        while self.ended.is_none() {
            match self.open_one(bytes, at, filled, ranges, &mut opened) {
                Ok(Some(next)) => at = next,
                Ok(None) => break,
                Err(fault) => self.ended = Some(Err(fault)),
            }
        }
        match &self.ended {
            None => {}
            Some(Ok(())) => opened.closed = true,
            Some(Err(fault)) => opened.fault = Some(fault.clone()),
        }
        opened.rest = at..filled;
        opened
    }

    /// Opens the record at `at` and gives where the next one begins; None if it is not whole.
    fn open_one(
        &mut self,
        bytes: &mut [u8],
        at: usize,
        filled: usize,
        ranges: &mut Vec<Range<usize>>,
        opened: &mut Opened,
    ) -> Result<Option<usize>, Fault> {
        let Some(&[outer, major, minor, high, low]) =
            bytes.get(at..filled).and_then(<[u8]>::first_chunk)
        else {
            return Ok(None);
        };
        if outer != OUTER_TYPE {
            return Err(unexpected("a record in plaintext after the handshake"));
        }
        // The tag covers the version as well, and peers seal this one; rustls' decrypter takes it for granted.
        if [major, minor] != OUTER_VERSION {
            return Err(undecryptable(&Error::DecryptError));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > LONGEST_CIPHERTEXT {
            return Err(Fault::Broken {
                alert: AlertDescription::RecordOverflow,
                why: "a record is longer than TLS allows",
            });
        }
        let start = at + BEFORE;
        let end = start + length;
        if end > filled {
            return Ok(None);
        }
        let Some(ciphertext) = bytes.get_mut(start..end) else {
            return Ok(None);
        };
        let sequence = self.sequence;
        self.sequence = sequence
            .checked_add(1)
            .ok_or(Fault::Internal("all receiving sequence numbers are used"))?;
        let message = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            ciphertext,
        );
        let plain = self
            .decrypter
            .decrypt(message, sequence)
            .map_err(|error| undecryptable(&error))?;
        let payload = plain.payload;
        self.fruitless += 1;
        if plain.typ != ContentType::Handshake && !self.handshake.is_empty() {
            return Err(unexpected("a handshake message is interrupted"));
        }
        match plain.typ {
            ContentType::ApplicationData => {
                if !payload.is_empty() {
                    self.fruitless = 0;
                    ranges.push(start..start + payload.len());
                }
            }
            ContentType::Alert => match *payload {
                [level @ (WARNING | FATAL), description] => {
                    match AlertDescription::from(description) {
                        AlertDescription::CloseNotify => self.ended = Some(Ok(())),
                        // close_notify is to follow it (RFC 8446, 6.1).
                        AlertDescription::UserCanceled if level == WARNING => {}
                        alert => return Err(Fault::PeerAlert(alert)),
                    }
                }
                [_, _] => return Err(illegal("an alert of an unknown level")),
                [] => return Err(unexpected("an empty alert")),
                _ => return Err(undecodable("an alert of a wrong length")),
            },
            ContentType::Handshake => {
                if payload.is_empty() {
                    return Err(unexpected("an empty handshake record"));
                }
                if self.handshake.len() + payload.len() > LONGEST_HANDSHAKE {
                    return Err(undecodable("a handshake message is too long"));
                }
                self.handshake.extend_from_slice(payload);
                self.handshake_messages(opened)?;
            }
            _ => return Err(unexpected("a record of a type that has no place here")),
        }
        if self.fruitless > FRUITLESS {
            return Err(unexpected("too many records without data"));
        }
        Ok(Some(end))
    }

    /// Acts on the whole handshake messages that came.
    fn handshake_messages(&mut self, opened: &mut Opened) -> Result<(), Fault> {
        while let Some(&[kind, a, b, c]) = self.handshake.first_chunk() {
            let length = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if length > LONGEST_HANDSHAKE {
                return Err(undecodable("a handshake message is too long"));
            }
            let Some(body) = self.handshake.get(4..length) else {
                return Ok(());
            };
            match (kind, body) {
                (KEY_UPDATE, &[asked @ (0 | 1)]) => {
                    if self.handshake.len() != length {
                        return Err(unexpected("a key update that does not end its record"));
                    }
                    let mut state = lock(&self.shared);
                    let suite = state.kernel.suite()?;
                    let (sequence, secret) = state
                        .kernel
                        .next_receiving_secret()
                        .map_err(|_| Fault::Internal("the receiving key cannot be renewed"))?;
                    self.decrypter = decrypter(suite, secret)?;
                    self.sequence = sequence;
                    if asked == 1 {
                        state.answer_due = true;
                        opened.answer_due = true;
                    }
                }
                // The alerts are RFC 8446's, 4.6.3 and 6.2.
                (KEY_UPDATE, &[_]) => {
                    return Err(illegal("a key update that asks for what nobody knows"));
                }
                (KEY_UPDATE, _) => return Err(undecodable("a key update of a wrong length")),
                (NEW_SESSION_TICKET, body) => match &mut lock(&self.shared).kernel {
                    Kernel::Client(kernel) => kernel
                        .handle_new_session_ticket(body)
                        .map_err(|_| undecodable("a session ticket that cannot be read"))?,
                    Kernel::Server(_) => {
                        return Err(unexpected("a session ticket from a client"));
                    }
                },
                _ => return Err(unexpected("a handshake message that has no place here")),
            }
            self.handshake.drain(..length);
        }
        if self.handshake.is_empty() {
            // Room for a ticket is not kept as long as the session lives.
            self.handshake = Vec::new();
        }
        Ok(())
    }
}

impl Sealer {
    /// Seals each range where it lies.
    pub(in super::super) fn seal(
        &mut self,
        bytes: &mut [u8],
        ranges: &mut [Range<usize>],
    ) -> Result<(), Fault> {
        if self.closed {
            return Err(Fault::Internal("nothing may be sealed after an alert"));
        }
        // Before any range is sealed: what is written first must be sealed first.
        self.answer()?;
        if self.left <= ranges.len() as u64 {
            self.update_key()?;
        }
        for range in ranges {
            let record = range.start.saturating_sub(BEFORE)..range.end + BEHIND;
            let room = bytes
                .get_mut(record.clone())
                .ok_or(Fault::Internal("no room for a record's header and tag"))?;
            self.key.seal(room, ContentType::ApplicationData)?;
            self.left = self.left.saturating_sub(1);
            *range = record;
        }
        Ok(())
    }

    /// Records of our own that were sealed before everything sealed after them.
    pub(in super::super) fn control(&mut self) -> &mut Vec<u8> {
        &mut self.control
    }

    /// Seals the key update that the peer is owed.
    pub(in super::super) fn answer(&mut self) -> Result<(), Fault> {
        if self.closed {
            return Ok(());
        }
        let due = std::mem::take(&mut lock(&self.shared).answer_due);
        if due { self.update_key() } else { Ok(()) }
    }

    /// Adds an alert, close_notify among them, if it is the first.
    pub(in super::super) fn alert(&mut self, alert: AlertDescription) -> Result<(), Fault> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let level = if alert == AlertDescription::CloseNotify {
            WARNING
        } else {
            FATAL
        };
        self.own_record(&[level, u8::from(alert)], ContentType::Alert)
    }

    #[cfg(any(test, feature = "trial"))]
    pub(super) fn limit_records(&mut self, left: u64) {
        self.left = self.left.min(left);
    }

    /// KeyUpdate is the last record under the old key.
    fn update_key(&mut self) -> Result<(), Fault> {
        self.own_record(&KEY_UPDATE_MESSAGE, ContentType::Handshake)?;
        let mut state = lock(&self.shared);
        let suite = state.kernel.suite()?;
        let (sequence, secret) = state
            .kernel
            .next_sending_secret()
            .map_err(|_| Fault::Internal("the sending key cannot be renewed"))?;
        self.key = SealingKey::new(secret, sequence)?;
        self.left = allowed(suite);
        Ok(())
    }

    fn own_record(&mut self, payload: &[u8], kind: ContentType) -> Result<(), Fault> {
        let mut record = vec![0; BEFORE + payload.len() + BEHIND];
        for (place, byte) in record.iter_mut().skip(BEFORE).zip(payload) {
            *place = *byte;
        }
        self.key.seal(&mut record, kind)?;
        self.left = self.left.saturating_sub(1);
        self.control.append(&mut record);
        Ok(())
    }
}

impl SealingKey {
    fn new(secret: ConnectionTrafficSecrets, sequence: u64) -> Result<Self, Fault> {
        const UNUSABLE: Fault = Fault::Internal("a sending key cannot be used");
        let aes = |algorithm, key: &[u8]| {
            TlsRecordSealingKey::new(algorithm, TlsProtocolId::TLS13, key)
                .map(Aead::Aes)
                .map_err(|_| UNUSABLE)
        };
        let (aead, iv) = match secret {
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                (aes(&AES_256_GCM, key.as_ref())?, iv)
            }
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                (aes(&AES_128_GCM, key.as_ref())?, iv)
            }
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                let key =
                    UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).map_err(|_| UNUSABLE)?;
                (Aead::ChaCha(LessSafeKey::new(key)), iv)
            }
            _ => return Err(UNUSABLE),
        };
        let mut key = Self { aead, iv, sequence };
        if sequence > 0 {
            key.prime()?;
        }
        Ok(key)
    }

    /// aws-lc takes the first nonce that it sees for sequence 0 and counts from there, so it is shown that one first;
    /// what comes out is thrown away. Sequence 0 was used by the handshake before, for other bytes; no one sees these.
    fn prime(&mut self) -> Result<(), Fault> {
        if let Aead::Aes(key) = &mut self.aead {
            let nonce = Nonce::assume_unique_for_key(RecordNonce::new(&self.iv, 0).0);
            let _thrown_away = key
                .seal_in_place_separate_tag(nonce, Aad::empty(), &mut [])
                .map_err(|_| Fault::Internal("a sending key cannot be used"))?;
        }
        Ok(())
    }

    /// `record` is header, payload, inner type and tag; only the payload is filled.
    fn seal(&mut self, record: &mut [u8], kind: ContentType) -> Result<(), Fault> {
        const NO_ROOM: Fault = Fault::Internal("no room for a record's header and tag");
        const TAG: usize = 16;
        let body = record.len().checked_sub(BEFORE).ok_or(NO_ROOM)?;
        let length = u16::try_from(body).map_err(|_| NO_ROOM)?.to_be_bytes();
        let (header, rest) = record.split_first_chunk_mut::<BEFORE>().ok_or(NO_ROOM)?;
        let [major, minor] = OUTER_VERSION;
        *header = [OUTER_TYPE, major, minor, length[0], length[1]];
        let (inner, tag_place) = rest.split_last_chunk_mut::<TAG>().ok_or(NO_ROOM)?;
        *inner.last_mut().ok_or(NO_ROOM)? = u8::from(kind);

        let nonce = Nonce::assume_unique_for_key(RecordNonce::new(&self.iv, self.sequence).0);
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or(Fault::Internal("all sending sequence numbers are used"))?;
        let aad = Aad::from(make_tls13_aad(body));
        let tag: Tag = match &mut self.aead {
            Aead::Aes(key) => key.seal_in_place_separate_tag(nonce, aad, inner),
            Aead::ChaCha(key) => key.seal_in_place_separate_tag(nonce, aad, inner),
        }
        .map_err(|_| Fault::Internal("a record cannot be sealed"))?;
        tag_place.copy_from_slice(tag.as_ref());
        Ok(())
    }
}

pub(super) fn decrypter(
    suite: &'static Tls13CipherSuite,
    secret: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Fault> {
    match secret {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            Ok(suite.aead_alg.decrypter(key, iv))
        }
        _ => Err(Fault::Internal("a receiving key cannot be used")),
    }
}

/// Records that one key may seal, with room for the key update that ends its use. A build for a test of endurance may
/// be told to renew its keys sooner, never later.
fn allowed(suite: &Tls13CipherSuite) -> u64 {
    let sooner = option_env!("PGTLSPROXY_RECORDS_PER_KEY").and_then(|number| number.parse().ok());
    let limit = suite.common.confidentiality_limit;
    limit.min(sooner.unwrap_or(limit)).saturating_sub(MARGIN)
}

fn undecryptable(error: &Error) -> Fault {
    match error {
        Error::PeerSentOversizedRecord => Fault::Broken {
            alert: AlertDescription::RecordOverflow,
            why: "a record is longer than TLS allows",
        },
        Error::DecryptError => Fault::Broken {
            alert: AlertDescription::BadRecordMac,
            why: "a record cannot be decrypted",
        },
        _ => unexpected("a record without an inner type"),
    }
}

fn unexpected(why: &'static str) -> Fault {
    Fault::Broken {
        alert: AlertDescription::UnexpectedMessage,
        why,
    }
}

fn illegal(why: &'static str) -> Fault {
    Fault::Broken {
        alert: AlertDescription::IllegalParameter,
        why,
    }
}

fn undecodable(why: &'static str) -> Fault {
    Fault::Broken {
        alert: AlertDescription::DecodeError,
        why,
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
