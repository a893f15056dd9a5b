//! One suite over both forms of records, with rustls itself as the peer: the same bytes or the same refusal, for any
//! split, any record size, key updates in between, tampered and truncated streams. Each case is made from a seed.
//! `PGTLSPROXY_RECORDS=100000000 cargo test --release differential` runs until so many records were compared.

use std::io::{Read, Write};
use std::sync::Arc;

use tokio_rustls::rustls::client::UnbufferedClientConnection;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::UnbufferedServerConnection;
use tokio_rustls::rustls::unbuffered::{ConnectionState, EncodeError};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};

use super::super::pool::{self, Buffer};
use super::*;

const SUITES: [SupportedCipherSuite; 3] = [
    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Buffered,
    InPlace,
}

/// Our end as the relay holds it, and a rustls connection as the peer.
struct Ends {
    opener: Opener,
    sealer: Sealer,
    peer: Connection,
    /// What came along with the end of the handshake: tickets.
    early: Vec<u8>,
}

struct Pki {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Pki {
    fn new(suite: SupportedCipherSuite, tickets: usize) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["peer".to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![suite],
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
        client.enable_secret_extraction = true;
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
        }
    }

    fn ends(&self, form: Form, we_serve: bool) -> Ends {
        let name = || ServerName::try_from("peer").unwrap();
        let server = || ServerConnection::new(Arc::clone(&self.server)).unwrap();
        let client = || ClientConnection::new(Arc::clone(&self.client), name()).unwrap();
        let mut peer = if we_serve {
            Connection::from(client())
        } else {
            Connection::from(server())
        };
        match form {
            Form::Buffered => {
                let mut ours = if we_serve {
                    Connection::from(server())
                } else {
                    Connection::from(client())
                };
                while ours.is_handshaking() || peer.is_handshaking() {
                    carry(&mut peer, &mut ours);
                    carry(&mut ours, &mut peer);
                }
                let mut early = Vec::new();
                while peer.wants_write() {
                    peer.write_tls(&mut early).unwrap();
                }
                let (opener, sealer, payload) = Buffered::new(ours).split();
                assert!(payload.is_empty());
                Ends {
                    opener: Opener::Buffered(opener),
                    sealer: Sealer::Buffered(sealer),
                    peer,
                    early,
                }
            }
            Form::InPlace => {
                let (records, early) = if we_serve {
                    let mut ours =
                        UnbufferedServerConnection::new(Arc::clone(&self.server)).unwrap();
                    let early = shake(|bytes| step(ours.process_tls_records(bytes)), &mut peer);
                    let (secrets, kernel) = ours.dangerous_into_kernel_connection().unwrap();
                    (InPlace::new(secrets, Kernel::Server(kernel)), early)
                } else {
                    let mut ours =
                        UnbufferedClientConnection::new(Arc::clone(&self.client), name()).unwrap();
                    let early = shake(|bytes| step(ours.process_tls_records(bytes)), &mut peer);
                    let (secrets, kernel) = ours.dangerous_into_kernel_connection().unwrap();
                    (InPlace::new(secrets, Kernel::Client(kernel)), early)
                };
                let (opener, sealer) = records.split().unwrap();
                Ends {
                    opener: Opener::InPlace(Box::new(opener)),
                    sealer: Sealer::InPlace(Box::new(sealer)),
                    peer,
                    early,
                }
            }
        }
    }
}

fn carry(from: &mut Connection, to: &mut Connection) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
}

enum Step {
    Sent(Vec<u8>),
    Nothing,
    Read,
    Done,
}

fn step<D>(status: tokio_rustls::rustls::unbuffered::UnbufferedStatus<'_, '_, D>) -> (usize, Step) {
    let step = match status.state.unwrap() {
        ConnectionState::EncodeTlsData(mut data) => {
            let mut out = Vec::new();
            let n = loop {
                match data.encode(&mut out) {
                    Ok(n) => break n,
                    Err(EncodeError::InsufficientSize(size)) => out.resize(size.required_size, 0),
                    Err(error) => panic!("{error}"),
                }
            };
            out.truncate(n);
            Step::Sent(out)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Step::Nothing
        }
        ConnectionState::BlockedHandshake => Step::Read,
        ConnectionState::WriteTraffic(_) => Step::Done,
        other => panic!("{other:?}"),
    };
    (status.discard, step)
}

/// A handshake in memory; gives what the peer sent behind it.
fn shake(mut ours: impl FnMut(&mut [u8]) -> (usize, Step), peer: &mut Connection) -> Vec<u8> {
    let mut incoming = Vec::new();
    loop {
        let (discard, step) = ours(&mut incoming);
        incoming.drain(..discard);
        match step {
            Step::Sent(bytes) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    peer.read_tls(&mut rest).unwrap();
                    peer.process_new_packets().unwrap();
                }
            }
            Step::Nothing => {}
            Step::Read => {
                while peer.wants_write() {
                    peer.write_tls(&mut incoming).unwrap();
                }
            }
            Step::Done => {
                while peer.wants_write() {
                    peer.write_tls(&mut incoming).unwrap();
                }
                return incoming;
            }
        }
    }
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Mostly small, sometimes a whole record and more.
    fn size(&mut self) -> usize {
        match self.below(10) {
            0 => self.below(40_000),
            1 => PAYLOAD,
            _ => 1 + self.below(300),
        }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// What came out of an opener that was fed in pieces, as the relay feeds it.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    payload: Vec<u8>,
    closed: bool,
    refused: bool,
}

fn feed(ends: &mut Ends, stream: &[u8], random: &mut Random) -> Outcome {
    let mut outcome = Outcome {
        payload: Vec::new(),
        closed: false,
        refused: false,
    };
    let mut buffer = pool::borrow();
    let reserve = ends.opener.reserve();
    let mut have = reserve;
    let mut rest = stream;
    while !rest.is_empty() {
        let most = match random.below(4) {
            0 => 1 + random.below(40),
            1 => 1 + random.below(20_000),
            _ => usize::MAX,
        };
        let n = rest.len().min(most).min(buffer.bytes.len() - have);
        buffer.bytes[have..have + n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        have += n;
        let opened = ends.opener.open(&mut buffer, have);
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
    outcome
}

/// Seals `payload` as the relay does and gives what is to be written.
fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut written = Vec::new();
    for piece in payload.chunks(PAYLOAD) {
        let mut buffer = pool::borrow();
        buffer.bytes[BEFORE..BEFORE + piece.len()].copy_from_slice(piece);
        buffer.ranges.clear();
        buffer.ranges.push(BEFORE..BEFORE + piece.len());
        sealer.seal(&mut buffer).unwrap();
        written.append(sealer.control());
        for range in &buffer.ranges {
            written.extend_from_slice(&buffer.bytes[range.clone()]);
        }
    }
    written
}

fn peer_reads(peer: &mut Connection, stream: &[u8], random: &mut Random) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let n = rest.len().min(1 + random.below(9000));
        let mut piece = &rest[..n];
        while !piece.is_empty() {
            peer.read_tls(&mut piece).unwrap();
            peer.process_new_packets().unwrap();
            let mut out = [0; 20_000];
            while let Ok(n @ 1..) = peer.reader().read(&mut out) {
                payload.extend_from_slice(&out[..n]);
            }
        }
        rest = &rest[n..];
    }
    payload
}

/// What the peer sends: records of random sizes, with key updates between them. Gives payload, stream, records.
fn peer_sends(peer: &mut Connection, random: &mut Random, most: usize) -> (Vec<u8>, Vec<u8>, u64) {
    let (mut payload, mut stream, mut records) = (Vec::new(), Vec::new(), 0);
    for _ in 0..1 + random.below(most) {
        if random.below(12) == 0 {
            peer.refresh_traffic_keys().unwrap();
        }
        let size = random.size();
        let bytes = random.bytes(size);
        records += bytes.len().div_ceil(PAYLOAD) as u64;
        peer.writer().write_all(&bytes).unwrap();
        payload.extend_from_slice(&bytes);
        while peer.wants_write() {
            peer.write_tls(&mut stream).unwrap();
        }
    }
    (payload, stream, records)
}

/// One conversation from a seed; gives all that our side delivered, and how many records were compared.
fn converse(pki: &Pki, form: Form, seed: u64) -> (Vec<Outcome>, u64) {
    let mut random = Random(seed | 1);
    let we_serve = random.below(2) == 0;
    let mut ends = pki.ends(form, we_serve);
    let mut records = 0;
    let mut outcomes = Vec::new();
    let mut prefix = std::mem::take(&mut ends.early);
    for _ in 0..1 + random.below(4) {
        let mut of_both = Random(random.next() | 1);
        let mut of_splits = Random(random.next() | 1);
        let (payload, mut stream, sent) = peer_sends(&mut ends.peer, &mut of_both, 30);
        records += sent;
        let tickets = prefix.len();
        let mut whole = std::mem::take(&mut prefix);
        whole.append(&mut stream);
        let fate = random.below(6);
        let at = random.next();
        match fate {
            0 => {
                // Anywhere behind the tickets, whose length the forms need not share.
                let index = tickets + (at % (whole.len() - tickets) as u64) as usize;
                whole[index] ^= 1 << (at % 8);
            }
            1 => whole.truncate(tickets + (at % (whole.len() - tickets) as u64) as usize),
            _ => {}
        }
        let outcome = feed(&mut ends, &whole, &mut of_splits);
        if fate > 1 {
            assert!(
                !outcome.refused && outcome.payload == payload,
                "seed {seed} {form:?}"
            );
        } else {
            assert!(
                payload.starts_with(&outcome.payload),
                "seed {seed} {form:?}"
            );
        }
        outcomes.push(outcome);
        if fate <= 1 {
            return (outcomes, records);
        }
        let length = of_both.size();
        let answer = of_both.bytes(length);
        records += answer.len().div_ceil(PAYLOAD) as u64;
        let sealed = seal(&mut ends.sealer, &answer);
        assert_eq!(
            peer_reads(&mut ends.peer, &sealed, &mut of_splits),
            answer,
            "seed {seed} {form:?}"
        );
    }
    ends.sealer.close().unwrap();
    let closing = std::mem::take(ends.sealer.control());
    assert!(peer_reads(&mut ends.peer, &closing, &mut random).is_empty());
    assert!(
        matches!(ends.peer.reader().read(&mut [0; 1]), Ok(0)),
        "close_notify"
    );
    ends.peer.send_close_notify();
    let mut closing = Vec::new();
    ends.peer.write_tls(&mut closing).unwrap();
    outcomes.push(feed(&mut ends, &closing, &mut random));
    (outcomes, records)
}

#[test]
fn differential() {
    let wanted: u64 = std::env::var("PGTLSPROXY_RECORDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(4000);
    let pkis: Vec<Pki> = SUITES.iter().map(|suite| Pki::new(*suite, 2)).collect();
    let mut compared = 0;
    let mut seed = 1;
    while compared < wanted {
        for pki in &pkis {
            let (reference, records) = converse(pki, Form::Buffered, seed);
            let (ours, _) = converse(pki, Form::InPlace, seed);
            assert_eq!(reference, ours, "seed {seed}");
            compared += records;
            seed += 1;
        }
    }
    println!("{compared} records compared, {} conversations", seed - 1);
}

fn both(test: impl Fn(Ends, Form)) {
    let pki = Pki::new(SUITES[0], 0);
    for form in [Form::Buffered, Form::InPlace] {
        for we_serve in [true, false] {
            test(pki.ends(form, we_serve), form);
        }
    }
}

#[test]
fn a_key_update_that_asks_for_one_is_answered() {
    both(|mut ends, form| {
        let mut random = Random(7);
        ends.peer.refresh_traffic_keys().unwrap();
        let mut stream = Vec::new();
        ends.peer.write_tls(&mut stream).unwrap();
        assert_eq!(feed(&mut ends, &stream, &mut random).payload, b"");
        ends.sealer.answer().unwrap();
        let mut sealed = std::mem::take(ends.sealer.control());
        // rustls answers along with its next data.
        assert_eq!(sealed.is_empty(), form == Form::Buffered);
        sealed.extend(seal(&mut ends.sealer, b"under the new key"));
        assert_eq!(
            peer_reads(&mut ends.peer, &sealed, &mut random),
            b"under the new key"
        );
    });
}

#[test]
fn a_length_that_tls_does_not_allow_is_refused_before_it_is_awaited() {
    both(|mut ends, form| {
        // 2^14 + 257; rustls lets some more pass and refuses it when it is there.
        let header = match form {
            Form::InPlace => [23, 3, 3, 0x41, 0x01],
            Form::Buffered => [23, 3, 3, 0xff, 0xff],
        };
        let outcome = feed(&mut ends, &header, &mut Random(3));
        assert!(outcome.refused, "{form:?}");
    });
}

#[test]
fn plaintext_after_the_handshake_is_refused() {
    both(|mut ends, form| {
        for record in [&[22, 3, 3, 0, 1, 0][..], &[20, 3, 3, 0, 1, 1]] {
            let outcome = feed(&mut ends, record, &mut Random(3));
            // Once refused, always refused: rustls stays in its error.
            assert!(outcome.refused, "{form:?} {record:?}");
        }
    });
}

#[test]
fn a_fatal_alert_ends_the_session() {
    both(|mut ends, form| {
        // The peer refuses what we never sealed, and says so.
        let mut garbage: &[u8] = &[
            23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
        ];
        ends.peer.read_tls(&mut garbage).unwrap();
        assert!(ends.peer.process_new_packets().is_err());
        let mut alert = Vec::new();
        ends.peer.write_tls(&mut alert).unwrap();
        let mut buffer = pool::borrow();
        let at = ends.opener.reserve();
        buffer.bytes[at..at + alert.len()].copy_from_slice(&alert);
        let opened = ends.opener.open(&mut buffer, at + alert.len());
        assert_eq!(
            opened.fault,
            Some(Fault::PeerAlert(AlertDescription::BadRecordMac)),
            "{form:?}"
        );
    });
}

#[test]
fn a_key_is_renewed_before_its_limit() {
    let pki = Pki::new(SUITES[0], 0);
    let mut ends = pki.ends(Form::InPlace, true);
    let mut random = Random(11);
    let Sealer::InPlace(sealer) = &mut ends.sealer else {
        panic!()
    };
    sealer.limit_records(3);
    let mut received = Vec::new();
    let mut updates = 0;
    for _ in 0..20 {
        let sealed = seal(&mut ends.sealer, b"abc");
        updates += usize::from(sealed.len() > BEFORE + 3 + BEHIND);
        received.extend(peer_reads(&mut ends.peer, &sealed, &mut random));
        let Sealer::InPlace(sealer) = &mut ends.sealer else {
            panic!()
        };
        sealer.limit_records(3);
    }
    assert_eq!(received, b"abc".repeat(20));
    assert!(updates >= 5, "{updates}");
}

#[test]
fn a_flood_of_records_without_data_is_refused() {
    let pki = Pki::new(SUITES[0], 0);
    let mut ends = pki.ends(Form::InPlace, true);
    let mut stream = Vec::new();
    for _ in 0..400 {
        ends.peer.refresh_traffic_keys().unwrap();
        ends.peer.write_tls(&mut stream).unwrap();
    }
    assert!(feed(&mut ends, &stream, &mut Random(5)).refused);
}
