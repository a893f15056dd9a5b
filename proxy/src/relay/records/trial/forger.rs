//! A peer that seals whatever it is told, right or wrong, and reads what we seal by rustls' own decrypter.

use std::fmt;

use tokio_rustls::rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use tokio_rustls::rustls::{
    ConnectionTrafficSecrets, ContentType, ProtocolVersion, Tls13CipherSuite,
};

use super::super::in_place::Kernel;
use super::{BEFORE, Form, Ours, PAYLOAD, Pki, Shakes, Unbuffered};

/// What is to be in a record.
#[derive(Clone)]
pub(in super::super) struct Inner {
    pub(in super::super) kind: u8,
    pub(in super::super) content: Vec<u8>,
    /// Zeros behind the inner type.
    pub(in super::super) padding: usize,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, start) = (self.content.len(), self.content.get(..5));
        write!(f, "{} {length} {start:?} +{}", self.kind, self.padding)
    }
}

pub(in super::super) struct Forger {
    kernel: Kernel,
    suite: &'static Tls13CipherSuite,
    encrypter: Box<dyn MessageEncrypter>,
    sent: u64,
    decrypter: Box<dyn MessageDecrypter>,
    received: u64,
}

/// Why it can be taken apart.
const SHAKEN: &str = "the handshake is over, and secrets may be taken out";

impl Forger {
    /// A forger shaking hands with our end in `form`.
    pub(in super::super) fn meets(pki: &Pki, form: Form, we_serve: bool) -> (Ours, Self) {
        let mut peer = pki.unbuffered(!we_serve);
        let (ours, behind) = pki.shake(form, we_serve, &mut peer);
        assert!(behind.is_empty());
        assert!(!peer.is_handshaking());
        let (secrets, kernel) = match peer {
            Unbuffered::Client(client) => {
                let (secrets, kernel) = client.dangerous_into_kernel_connection().expect(SHAKEN);
                (secrets, Kernel::Client(kernel))
            }
            Unbuffered::Server(server) => {
                let (secrets, kernel) = server.dangerous_into_kernel_connection().expect(SHAKEN);
                (secrets, Kernel::Server(kernel))
            }
        };
        let suite = kernel.suite().expect("only TLS 1.3 is offered");
        let forger = Self {
            kernel,
            suite,
            encrypter: encrypter(suite, secrets.tx.1),
            sent: secrets.tx.0,
            decrypter: decrypter(suite, secrets.rx.1),
            received: secrets.rx.0,
        };
        (ours, forger)
    }

    pub(in super::super) fn seal(&mut self, inner: &Inner) -> Vec<u8> {
        let mut plain = inner.content.clone();
        let last = match inner.padding {
            0 => inner.kind,
            // rustls puts the type last: the last zero of the padding passes for it.
            padding => {
                plain.push(inner.kind);
                plain.resize(plain.len() + padding - 1, 0);
                0
            }
        };
        let message = OutboundPlainMessage {
            typ: ContentType::from(last),
            version: ProtocolVersion::TLSv1_3,
            payload: OutboundChunks::Single(&plain),
        };
        let sealed = self
            .encrypter
            .encrypt(message, self.sent)
            .expect("the sequence number is below its end");
        self.sent += 1;
        sealed.encode()
    }

    /// From now on seals with the next key.
    pub(super) fn next_key(&mut self) {
        let (sequence, secret) = self
            .kernel
            .next_sending_secret()
            .expect("TLS 1.3 has a next key");
        self.encrypter = encrypter(self.suite, secret);
        self.sent = sequence;
    }

    /// Reads whole records that we sealed: their payload, how many there were, and whether close_notify came.
    pub(super) fn read(&mut self, mut stream: Vec<u8>) -> (Vec<u8>, u64, bool) {
        let (mut payload, mut records, mut closed) = (Vec::new(), 0, false);
        let mut rest = stream.as_mut_slice();
        while !rest.is_empty() {
            assert!(!closed, "a record behind close_notify");
            let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
            assert_eq!(rest[..3], [23, 3, 3]);
            let (record, behind) = rest.split_at_mut(BEFORE + length);
            rest = behind;
            let message = InboundOpaqueMessage::new(
                ContentType::ApplicationData,
                ProtocolVersion::TLSv1_2,
                &mut record[BEFORE..],
            );
            let plain = self
                .decrypter
                .decrypt(message, self.received)
                .expect("our end seals in order, with its present key");
            self.received += 1;
            records += 1;
            match (plain.typ, plain.payload) {
                (ContentType::ApplicationData, bytes) => {
                    assert!((1..=PAYLOAD).contains(&bytes.len()));
                    payload.extend_from_slice(bytes);
                }
                (ContentType::Handshake, [24, 0, 0, 1, 0 | 1]) => {
                    let (sequence, secret) = self
                        .kernel
                        .next_receiving_secret()
                        .expect("TLS 1.3 has a next key");
                    self.decrypter = decrypter(self.suite, secret);
                    self.received = sequence;
                }
                (ContentType::Alert, [1, 0]) => closed = true,
                other => panic!("{:?}", other.0),
            }
        }
        (payload, records, closed)
    }
}

fn encrypter(
    suite: &'static Tls13CipherSuite,
    secret: ConnectionTrafficSecrets,
) -> Box<dyn MessageEncrypter> {
    match secret {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            suite.aead_alg.encrypter(key, iv)
        }
        _ => panic!("another suite"),
    }
}

fn decrypter(
    suite: &'static Tls13CipherSuite,
    secret: ConnectionTrafficSecrets,
) -> Box<dyn MessageDecrypter> {
    super::super::in_place::decrypter(suite, secret).expect("the suite is one of ours")
}
