//! What tests and fuzzing of records share: both forms of our end, handshakes in memory, and streams fed in pieces as
//! the relay feeds them, and what micro-benchmarks measure. Cases are made from choices: random ones, or the fuzzer's bytes.
#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]
#![cfg_attr(
    not(feature = "trial"),
    allow(unreachable_pub, reason = "that feature alone opens it")
)]

mod forger;
#[cfg(feature = "trial")]
mod measured;
mod script;

use std::fmt;
use std::sync::{Arc, LazyLock};

use tokio_rustls::rustls::client::UnbufferedClientConnection;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::UnbufferedServerConnection;
use tokio_rustls::rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, CommonState, Connection, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
};

use super::super::pool::{self, Buffer};
use super::*;

#[cfg(test)]
pub(super) use forger::{Forger, Inner};
#[cfg(feature = "trial")]
pub use measured::{Filled, Measured};
pub(super) use script::contend;

pub(super) const SUITES: [SupportedCipherSuite; 3] = [
    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Buffered,
    InPlace,
}

/// Our end as the relay holds it.
pub(super) struct Ours {
    pub(super) opener: Opener,
    pub(super) sealer: Sealer,
}

/// Certificate and configurations for one suite.
pub(super) struct Pki {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Pki {
    /// For each suite, servers that send no tickets of their own.
    pub(super) fn of_each_suite() -> [Self; 3] {
        SUITES.map(|suite| Self::new(suite, 0))
    }

    pub(super) fn new(suite: SupportedCipherSuite, tickets: usize) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["peer".to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        // Hundreds of thousands of handshakes: the cheap key exchange.
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![suite],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        server.send_tls13_tickets = tickets;
        server.enable_secret_extraction = true;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        client.enable_secret_extraction = true;
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
        }
    }

    pub(super) fn buffered(&self, serves: bool) -> Connection {
        if serves {
            ServerConnection::new(Arc::clone(&self.server))
                .unwrap()
                .into()
        } else {
            ClientConnection::new(Arc::clone(&self.client), name())
                .unwrap()
                .into()
        }
    }

    fn unbuffered(&self, serves: bool) -> Unbuffered {
        if serves {
            Unbuffered::Server(UnbufferedServerConnection::new(Arc::clone(&self.server)).unwrap())
        } else {
            let client = UnbufferedClientConnection::new(Arc::clone(&self.client), name());
            Unbuffered::Client(client.unwrap())
        }
    }

    /// Our end in `form`, with a buffered rustls connection as the peer; also what it sent behind the handshake.
    #[cfg(test)]
    pub(super) fn against_rustls(&self, form: Form, we_serve: bool) -> (Ours, Connection, Vec<u8>) {
        let mut peer = self.buffered(!we_serve);
        let (ours, behind) = self.shake(form, we_serve, &mut peer);
        (ours, peer, behind)
    }

    fn shake(&self, form: Form, we_serve: bool, peer: &mut impl Shakes) -> (Ours, Vec<u8>) {
        match form {
            Form::Buffered => {
                let mut ours = self.buffered(we_serve);
                let behind = shake(&mut ours, peer);
                let (opener, sealer, payload) = Buffered::new(ours).split();
                assert!(payload.is_empty());
                let ours = Ours {
                    opener: Opener::Buffered(opener),
                    sealer: Sealer::Buffered(sealer),
                };
                (ours, behind)
            }
            Form::InPlace => {
                let mut ours = self.unbuffered(we_serve);
                let behind = shake(&mut ours, peer);
                let (opener, sealer) = ours.into_records().split().unwrap();
                let ours = Ours {
                    opener: Opener::InPlace(Box::new(opener)),
                    sealer: Sealer::InPlace(Box::new(sealer)),
                };
                (ours, behind)
            }
        }
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer").unwrap()
}

/// One end of a handshake in memory.
trait Shakes {
    /// Takes what the other sent, gives what it answers.
    fn take(&mut self, incoming: &mut Vec<u8>) -> Vec<u8>;
    fn is_handshaking(&self) -> bool;
}

impl Shakes for Connection {
    fn take(&mut self, incoming: &mut Vec<u8>) -> Vec<u8> {
        let mut rest = incoming.as_slice();
        while !rest.is_empty() {
            self.read_tls(&mut rest).unwrap();
            self.process_new_packets().unwrap();
        }
        incoming.clear();
        let mut out = Vec::new();
        while self.wants_write() {
            self.write_tls(&mut out).unwrap();
        }
        out
    }

    fn is_handshaking(&self) -> bool {
        CommonState::is_handshaking(self)
    }
}

/// An unbuffered connection of either side.
enum Unbuffered {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl Unbuffered {
    fn into_records(self) -> InPlace {
        match self {
            Self::Client(client) => {
                let (secrets, kernel) = client.dangerous_into_kernel_connection().unwrap();
                InPlace::new(secrets, Kernel::Client(kernel))
            }
            Self::Server(server) => {
                let (secrets, kernel) = server.dangerous_into_kernel_connection().unwrap();
                InPlace::new(secrets, Kernel::Server(kernel))
            }
        }
    }
}

impl Shakes for Unbuffered {
    fn take(&mut self, incoming: &mut Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let (discard, goes_on) = match self {
                Self::Client(client) => step(client.process_tls_records(incoming), &mut out),
                Self::Server(server) => step(server.process_tls_records(incoming), &mut out),
            };
            incoming.drain(..discard);
            if !goes_on {
                return out;
            }
        }
    }

    fn is_handshaking(&self) -> bool {
        match self {
            Self::Client(client) => client.is_handshaking(),
            Self::Server(server) => server.is_handshaking(),
        }
    }
}

fn step<D>(status: UnbufferedStatus<'_, '_, D>, out: &mut Vec<u8>) -> (usize, bool) {
    let goes_on = match status.state.unwrap() {
        ConnectionState::EncodeTlsData(mut data) => {
            let at = out.len();
            let n = loop {
                match data.encode(&mut out[at..]) {
                    Ok(n) => break n,
                    Err(EncodeError::InsufficientSize(size)) => {
                        out.resize(at + size.required_size, 0);
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            out.truncate(at + n);
            true
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            true
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => false,
        other => panic!("{other:?}"),
    };
    (status.discard, goes_on)
}

/// Gives what the peer sent behind the handshake.
fn shake(ours: &mut impl Shakes, peer: &mut impl Shakes) -> Vec<u8> {
    let (mut to_us, mut to_peer) = (Vec::new(), Vec::new());
    while ours.is_handshaking() || peer.is_handshaking() {
        if ours.is_handshaking() {
            to_peer.extend(ours.take(&mut to_us));
        }
        to_us.extend(peer.take(&mut to_peer));
    }
    to_us
}

/// Where a case comes from.
pub(super) trait Choices {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize;
    /// Whether the case goes on.
    fn more(&self) -> bool;

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// Mostly small, sometimes a whole record.
    fn size(&mut self) -> usize {
        match self.below(64) {
            63 => PAYLOAD,
            62 => 1 + self.below(PAYLOAD),
            _ => 1 + self.below(300),
        }
    }
}

/// xorshift64*: small, and the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        let mut bytes: Vec<u8> = words.take(length.div_ceil(8)).flatten().collect();
        bytes.truncate(length);
        bytes
    }
}

impl Choices for Random {
    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) % limit.max(1) as u64) as usize
    }

    fn more(&self) -> bool {
        true
    }
}

/// A fuzzer's input: one or two bytes for each choice, and nothing but first choices when it is used up.
struct Bytes<'a>(&'a [u8]);

/// One conversation as `input` wants it; panics where the forms differ.
pub fn contend_by(input: &[u8]) {
    static PKIS: LazyLock<[Pki; 3]> = LazyLock::new(Pki::of_each_suite);
    contend(&PKIS, &mut Bytes(input));
}

impl Choices for Bytes<'_> {
    fn below(&mut self, limit: usize) -> usize {
        let mut number = 0;
        for _ in 0..if limit > 256 { 2 } else { 1 } {
            let Some((first, rest)) = self.0.split_first() else {
                return 0;
            };
            number = number << 8 | usize::from(*first);
            self.0 = rest;
        }
        number % limit.max(1)
    }

    fn more(&self) -> bool {
        !self.0.is_empty()
    }
}

/// What came out of an opener that was fed in pieces, as the relay feeds it.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) payload: Vec<u8>,
    pub(super) closed: bool,
    pub(super) refused: bool,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, closed, refused) = (self.payload.len(), self.closed, self.refused);
        write!(f, "{length} bytes, closed {closed}, refused {refused}")
    }
}

/// Opens `stream`, which `splits` cuts into reads; `kept` is the part of a record that was left, before and after.
pub(super) fn feed(
    opener: &mut Opener,
    kept: &mut Vec<u8>,
    stream: &[u8],
    splits: &mut impl Choices,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut buffer = pool::borrow();
    let reserve = opener.reserve();
    let mut have = reserve + kept.len();
    buffer.bytes[reserve..have].copy_from_slice(kept);
    kept.clear();
    let mut rest = stream;
    while !rest.is_empty() {
        let most = match splits.below(8) {
            0 => 1 + splits.below(8),
            1 => 1 + splits.below(400),
            2 => 1 + splits.below(20_000),
            _ => usize::MAX,
        };
        let n = rest.len().min(most).min(buffer.bytes.len() - have);
        buffer.bytes[have..have + n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        have += n;
        let opened = opener.open(&mut buffer, have);
        let Buffer { bytes, ranges } = &mut *buffer;
        for range in ranges.drain(..) {
            outcome.payload.extend_from_slice(&bytes[range]);
        }
        if opened.fault.is_some() || opened.closed {
            outcome.refused = opened.fault.is_some();
            outcome.closed = opened.closed;
            return outcome;
        }
        have = reserve + opened.rest.len();
        bytes.copy_within(opened.rest, reserve);
    }
    kept.extend_from_slice(&buffer.bytes[reserve..have]);
    outcome
}

/// Seals `payload` as the relay does and gives what is to be written.
pub(super) fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut written = Vec::new();
    let mut buffer = pool::borrow();
    let stride = BEFORE + PAYLOAD + BEHIND;
    for pieces in payload.chunks(16 * PAYLOAD) {
        buffer.ranges.clear();
        for (index, piece) in pieces.chunks(PAYLOAD).enumerate() {
            let start = index * stride + BEFORE;
            let range = start..start + piece.len();
            buffer.bytes[range.clone()].copy_from_slice(piece);
            buffer.ranges.push(range);
        }
        sealer.seal(&mut buffer).unwrap();
        written.append(sealer.control());
        for range in &buffer.ranges {
            written.extend_from_slice(&buffer.bytes[range.clone()]);
        }
    }
    written
}
