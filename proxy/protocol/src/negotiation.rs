//! The first bytes of a connection: which encryption is asked for, what is answered, and when the request is reached.
//!
//! Pure: the caller reads packets and does what the [`Answer`] says. What must never happen here is that a
//! StartupMessage gets past a TLS listener in plaintext. Follows "SSL Session Encryption" and "GSSAPI Session
//! Encryption" of the PostgreSQL manual; libpq throws away an error that answers SSLRequest, so none is sent there.

use std::fmt;

use crate::error_response::{Refusal, SqlState};
use crate::startup::{CancelRequest, FirstPacket, StartupMessage};

/// What a listener expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Plaintext from this host's own PostgreSQL or tools.
    Plain,
    /// TLS with a client certificate.
    Tls {
        /// Whether a CancelRequest may come in plaintext, as psql sends it whatever its session runs on.
        plain_cancel: bool,
    },
}

/// What the first byte of a connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A TLS handshake record: TLS without asking first, as libpq 17 does with `sslnegotiation=direct`.
    DirectTls,
    /// The length word of a first packet: all legal ones begin with a zero.
    Packet,
    /// HTTP, SSLv2, a PROXY header, noise.
    NotPostgres,
}

/// Tells from the first byte what is being spoken.
#[must_use]
pub const fn classify(first_byte: u8) -> Opening {
    match first_byte {
        0x16 => Opening::DirectTls,
        0x00 => Opening::Packet,
        _ => Opening::NotPostgres,
    }
}

/// Where one connection is in its negotiation.
#[derive(Clone, Debug)]
pub struct Negotiation {
    listener: ListenerKind,
    encrypted: bool,
    ssl_asked: bool,
    gss_asked: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// Send this byte, then read the next packet.
    Reply(u8),
    /// Do the TLS handshake, after sending `S` if SSLRequest asked for it; then read the next packet, inside TLS.
    /// Bytes that came before the handshake must not reach that packet.
    StartTls,
    /// The negotiation is over.
    HandOver(Request),
    /// Send this and close.
    Refuse(Refusal),
    /// Close without a word.
    Close(CloseReason),
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A session.
    Startup(StartupMessage),
    /// Cancelling the query of another session.
    Cancel(CancelRequest),
}

/// Why a connection is closed without an answer: nobody would understand one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// TLS at once on a plain listener. PostgreSQL without TLS closes as silently.
    TlsOnPlainListener,
    /// TLS at once after SSLRequest or GSSENCRequest was answered.
    TlsUnannounced,
    /// A CancelRequest in plaintext on a TLS listener without `plain_cancel`.
    PlaintextCancel,
}

impl CloseReason {
    /// The problem's id in `doctor`'s catalogue.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::TlsOnPlainListener => "W12",
            Self::TlsUnannounced => "W13",
            Self::PlaintextCancel => "W14",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsOnPlainListener => "TLS on a plaintext listener",
            Self::TlsUnannounced => "TLS where a packet was expected",
            Self::PlaintextCancel => {
                "cancel request in plaintext on a TLS listener without plain_cancel"
            }
        })
    }
}

impl Negotiation {
    /// A connection just accepted.
    #[must_use]
    pub const fn new(listener: ListenerKind) -> Self {
        Self {
            listener,
            encrypted: false,
            ssl_asked: false,
            gss_asked: false,
        }
    }

    /// The connection begins with a TLS handshake.
    pub const fn direct_tls(&mut self) -> Answer {
        match self.listener {
            ListenerKind::Plain => Answer::Close(CloseReason::TlsOnPlainListener),
            ListenerKind::Tls { .. } if self.encrypted || self.ssl_asked || self.gss_asked => {
                Answer::Close(CloseReason::TlsUnannounced)
            }
            ListenerKind::Tls { .. } => {
                self.encrypted = true;
                Answer::StartTls
            }
        }
    }

    /// The next whole packet has come.
    pub fn packet(&mut self, packet: FirstPacket) -> Answer {
        let plaintext_on_tls = !self.encrypted && self.listener != ListenerKind::Plain;
        match packet {
            FirstPacket::SslRequest if self.encrypted || self.ssl_asked => {
                Answer::Refuse(again("SSLRequest", 5679))
            }
            // Behind TLS there is nothing left to encrypt; PostgreSQL refuses it there, too.
            FirstPacket::GssEncRequest if self.encrypted || self.gss_asked => {
                Answer::Refuse(again("GSSENCRequest", 5680))
            }
            FirstPacket::SslRequest => {
                self.ssl_asked = true;
                if plaintext_on_tls {
                    self.encrypted = true;
                    Answer::StartTls
                } else {
                    Answer::Reply(b'N')
                }
            }
            FirstPacket::GssEncRequest => {
                self.gss_asked = true;
                Answer::Reply(b'N')
            }
            FirstPacket::Startup(_) if plaintext_on_tls => Answer::Refuse(plaintext_startup()),
            FirstPacket::Startup(startup) => Answer::HandOver(Request::Startup(startup)),
            FirstPacket::Cancel(_)
                if plaintext_on_tls
                    && self.listener
                        == (ListenerKind::Tls {
                            plain_cancel: false,
                        }) =>
            {
                Answer::Close(CloseReason::PlaintextCancel)
            }
            FirstPacket::Cancel(cancel) => Answer::HandOver(Request::Cancel(cancel)),
        }
    }
}

fn plaintext_startup() -> Refusal {
    Refusal::new(
        "W10",
        SqlState::INVALID_AUTHORIZATION,
        "this port takes TLS connections only",
    )
    .detail("The connection was attempted without encryption.")
    .hint("Connect with sslmode=verify-full, sslcert and sslkey, or through pgtlsproxy client.")
}

/// PostgreSQL takes a repeated request for a protocol version, and says so.
fn again(request: &str, minor: u16) -> Refusal {
    let message =
        format!("unsupported frontend protocol 1234.{minor}: {request} was answered before");
    Refusal::new("W11", SqlState::FEATURE_NOT_SUPPORTED, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::startup::CancelKey;

    const TLS: ListenerKind = ListenerKind::Tls {
        plain_cancel: false,
    };
    const TLS_PLAIN_CANCEL: ListenerKind = ListenerKind::Tls { plain_cancel: true };
    use ListenerKind::Plain;

    /// Plays steps, one letter each: t = TLS at once, s = SSLRequest, g = GSSENCRequest, m = StartupMessage,
    /// c = CancelRequest; and tells the answers as words.
    fn play(listener: ListenerKind, steps: &str) -> String {
        let mut negotiation = Negotiation::new(listener);
        let mut answers = Vec::new();
        for step in steps.chars() {
            let startup = StartupMessage::new((3, 0), &[(b"user", b"rep")]).unwrap();
            let key = CancelKey::new(1, &[0; 4]).unwrap();
            let answer = match step {
                't' => negotiation.direct_tls(),
                's' => negotiation.packet(FirstPacket::SslRequest),
                'g' => negotiation.packet(FirstPacket::GssEncRequest),
                'm' => negotiation.packet(FirstPacket::Startup(startup)),
                'c' => negotiation.packet(FirstPacket::Cancel(CancelRequest { key })),
                _ => unreachable!(),
            };
            answers.push(match answer {
                Answer::Reply(byte) => char::from(byte).to_string(),
                Answer::StartTls => "tls".into(),
                Answer::HandOver(Request::Startup(_)) => "startup".into(),
                Answer::HandOver(Request::Cancel(_)) => "cancel".into(),
                Answer::Refuse(refusal) => refusal.id.into(),
                Answer::Close(reason) => reason.id().into(),
            });
        }
        answers.join(" ")
    }

    #[test]
    fn every_order_of_requests_has_its_answers() {
        for (listener, steps, answers) in [
            (Plain, "m", "startup"),
            (Plain, "c", "cancel"),
            (Plain, "sm", "N startup"),
            (Plain, "gm", "N startup"),
            (Plain, "gsm", "N N startup"),
            (Plain, "sgm", "N N startup"),
            (Plain, "sc", "N cancel"),
            (Plain, "ss", "N W11"),
            (Plain, "gg", "N W11"),
            (Plain, "sgs", "N N W11"),
            (Plain, "t", "W12"),
            (Plain, "st", "N W12"),
            (TLS, "m", "W10"),
            (TLS, "gm", "N W10"),
            (TLS, "c", "W14"),
            (TLS, "gc", "N W14"),
            (TLS, "tm", "tls startup"),
            (TLS, "tc", "tls cancel"),
            (TLS, "sm", "tls startup"),
            (TLS, "sc", "tls cancel"),
            (TLS, "gsm", "N tls startup"),
            (TLS, "ss", "tls W11"),
            (TLS, "ts", "tls W11"),
            (TLS, "sg", "tls W11"),
            (TLS, "tg", "tls W11"),
            (TLS, "gg", "N W11"),
            (TLS, "gt", "N W13"),
            (TLS, "st", "tls W13"),
            (TLS, "tt", "tls W13"),
            (TLS_PLAIN_CANCEL, "c", "cancel"),
            (TLS_PLAIN_CANCEL, "gc", "N cancel"),
            (TLS_PLAIN_CANCEL, "m", "W10"),
            (TLS_PLAIN_CANCEL, "tc", "tls cancel"),
        ] {
            assert_eq!(play(listener, steps), answers, "{listener:?} {steps}");
        }
    }

    #[test]
    fn the_first_byte_classifies() {
        assert_eq!(classify(0x16), Opening::DirectTls);
        assert_eq!(classify(0x00), Opening::Packet);
        for byte in [b'G', b'P', 0x80, 0x15, 0x17, 0xff] {
            assert_eq!(classify(byte), Opening::NotPostgres);
        }
    }

    #[test]
    fn plaintext_on_a_tls_listener_is_told_the_way_out() {
        let refusal = plaintext_startup();
        assert_eq!(refusal.sqlstate, SqlState::INVALID_AUTHORIZATION);
        assert!(refusal.hint.unwrap().contains("sslmode=verify-full"));
    }
}
