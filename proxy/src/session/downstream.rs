//! From an accepted socket to the request: negotiation, TLS, the first packet. Everything is bounded in bytes and time,
//! and nothing that came before TLS gets past it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::error_response::{Refusal, SqlState};
use protocol::identity::Identity;
use protocol::negotiation::{Answer, ListenerKind, Negotiation, Opening, Request, classify};
use protocol::startup::{FirstPacket, parse_packet, parse_packet_length};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::end::{End, Stage};
use super::legs::DownstreamLeg;
use super::record::SessionRecord;
use crate::config::Records;
use crate::net::{Stream, linger};
use crate::relay::Wire;
use crate::tls::{Accepted, Asked, Credentials, Handshaken, NodeTls, PeerCertificate, accept};

/// How long a refusal may take to be sent and read.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A connection past negotiation and TLS, with its request.
pub(crate) struct Opened {
    pub(crate) wire: Wire,
    /// None on a plain leg, and for a cancel in plaintext.
    pub(crate) certificate: Option<Arc<PeerCertificate>>,
    pub(crate) request: Request,
}

impl Opened {
    /// Who the downstream's certificate says it is.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.certificate
            .as_ref()
            .map(|certificate| &certificate.identity)
    }

    /// Sends the refusal and closes so that it is read.
    pub(crate) async fn refuse(self, refusal: Option<Refusal>) {
        let mut wire = self.wire;
        match refusal {
            Some(refusal) => say(&mut wire, &refusal).await,
            None => {
                let _ = timeout(LAST_WORDS, wire.shutdown()).await;
            }
        }
    }
}

/// What a connection turned out to be: a session, or the node channel, from which none can be made.
pub(crate) enum Arrived {
    Session(Opened),
    Node(Box<NodeTls>),
}

/// Opens one connection by `deadline`, which is `within` from its start; whoever is refused has been told when this
/// returns.
pub(crate) async fn open(
    stream: Stream,
    leg: &DownstreamLeg,
    (deadline, within): (Instant, Duration),
    record: &mut SessionRecord,
) -> Result<Arrived, End> {
    let clock = Clock { deadline, within };
    match leg {
        DownstreamLeg::Plain { .. } => open_plain(stream, &clock).await.map(Arrived::Session),
        DownstreamLeg::Mtls {
            credentials,
            plain_cancel,
            records,
            ..
        } => {
            // Most of a connection's state is that of its handshake: one that stays silent shall not pay for it.
            let mut stream = stream;
            let first = clock
                .within(Stage::Startup, first_byte(&mut stream))
                .await??;
            let mtls = Mtls {
                credentials,
                plain_cancel: *plain_cancel,
                records: *records,
            };
            Box::pin(open_mtls(stream, first, mtls, &clock, record)).await
        }
    }
}

async fn open_plain(mut stream: Stream, clock: &Clock) -> Result<Opened, End> {
    let mut negotiation = Negotiation::new(ListenerKind::Plain);
    let first = clock
        .within(Stage::Startup, first_byte(&mut stream))
        .await??;
    if classify(first) == Opening::DirectTls
        && let Answer::Close(reason) = negotiation.direct_tls()
    {
        return Err(End::Unspoken(reason));
    }
    match negotiate(&mut stream, &mut negotiation, Some(first), clock).await {
        Ok(Negotiated::Request(request)) => Ok(Opened {
            wire: Wire::Plain(stream),
            certificate: None,
            request,
        }),
        // A plain listener answers N, so this does not come about.
        Ok(Negotiated::Tls) => Err(End::NotPostgres { first_byte: first }),
        Err(end) => Err(told(&mut stream, end).await),
    }
}

/// What the TLS leg needs to open a connection; whom it admits is asked later.
struct Mtls<'a> {
    credentials: &'a Credentials,
    plain_cancel: bool,
    records: Records,
}

async fn open_mtls(
    mut stream: Stream,
    first: u8,
    mtls: Mtls<'_>,
    clock: &Clock,
    record: &mut SessionRecord,
) -> Result<Arrived, End> {
    let mut negotiation = Negotiation::new(ListenerKind::Tls {
        plain_cancel: mtls.plain_cancel,
    });
    let (asked, read) = match classify(first) {
        Opening::DirectTls => match negotiation.direct_tls() {
            Answer::StartTls => (Asked::Direct, vec![first]),
            _ => return Err(End::NotPostgres { first_byte: first }),
        },
        Opening::Packet | Opening::NotPostgres => {
            match negotiate(&mut stream, &mut negotiation, Some(first), clock).await {
                Ok(Negotiated::Tls) => (Asked::BySslRequest, vec![]),
                Ok(Negotiated::Request(request)) => {
                    return Ok(Arrived::Session(Opened {
                        wire: Wire::Plain(stream),
                        certificate: None,
                        request,
                    }));
                }
                Err(end) => return Err(told(&mut stream, end).await),
            }
        }
    };
    let accepted = Accepted {
        stream,
        asked,
        read,
        records: mtls.records,
    };
    let began = Instant::now();
    let accepting = accept(accepted, mtls.credentials);
    let handshaken = match clock.within(Stage::Tls, accepting).await? {
        Ok(handshaken) => handshaken,
        Err(failed) => {
            if let Some(id) = failed.id {
                record.id(id);
            }
            if let Some(mut stream) = failed.stream {
                let _ = timeout(LAST_WORDS, linger(&mut stream)).await;
            }
            return Err(End::Tls(failed.refusal));
        }
    };
    record.handshaken(began.elapsed());
    let established = match handshaken {
        Handshaken::Session(established) => established,
        Handshaken::Node(tls) => {
            record.id(tls.id());
            if let Some(certificate) = tls.certificate() {
                record.certificate(certificate);
            }
            return Ok(Arrived::Node(tls));
        }
    };
    let certificate = established.peer;
    record.id(established.id);
    record.certificate(&certificate);
    record.tls(established.parameters);
    let mut wire = Wire::Tls(established.tls);
    match negotiate(&mut wire, &mut negotiation, None, clock).await {
        Ok(Negotiated::Request(request)) => Ok(Arrived::Session(Opened {
            wire,
            certificate: Some(certificate),
            request,
        })),
        // TLS inside TLS is refused by the negotiation, so this does not come about.
        Ok(Negotiated::Tls) => Err(End::NotPostgres { first_byte: 0 }),
        Err(end) => Err(told(&mut wire, end).await),
    }
}

enum Negotiated {
    Tls,
    Request(Request),
}

/// A connection that packets are read from and answers written to, before or inside TLS.
trait Negotiable: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether bytes lie ready behind what was read, in plaintext.
    fn has_sent_more(&self) -> bool;
}

impl Negotiable for Stream {
    fn has_sent_more(&self) -> bool {
        Self::has_sent_more(self)
    }
}

impl Negotiable for Wire {
    /// Inside TLS nothing can be stuffed in.
    fn has_sent_more(&self) -> bool {
        false
    }
}

/// Reads and answers packets until the request is there or TLS begins.
async fn negotiate<S: Negotiable>(
    stream: &mut S,
    negotiation: &mut Negotiation,
    mut first: Option<u8>,
    clock: &Clock,
) -> Result<Negotiated, End> {
    loop {
        let packet = clock
            .within(Stage::Startup, read_packet(stream, first.take()))
            .await??;
        let asks = matches!(packet, FirstPacket::SslRequest | FirstPacket::GssEncRequest);
        // PostgreSQL's own rule (CVE-2021-23214): what was sent along with the question would be taken for plaintext.
        if asks && stream.has_sent_more() {
            return Err(End::Refused(Box::new(Refusal::new(
                "W16",
                SqlState::PROTOCOL_VIOLATION,
                "received unencrypted data after an encryption request",
            ).hint("this is a client with a fault, or somebody between it and us who puts bytes in"))));
        }
        match negotiation.packet(packet) {
            Answer::Reply(byte) => reply(stream, byte, clock).await?,
            Answer::StartTls => {
                reply(stream, b'S', clock).await?;
                return Ok(Negotiated::Tls);
            }
            Answer::HandOver(request) => return Ok(Negotiated::Request(request)),
            Answer::Refuse(refusal) => return Err(End::Refused(Box::new(refusal))),
            Answer::Close(reason) => return Err(End::Unspoken(reason)),
        }
    }
}

async fn reply<S: Negotiable>(stream: &mut S, byte: u8, clock: &Clock) -> Result<(), End> {
    let written = async {
        stream.write_all(&[byte]).await?;
        stream.flush().await
    };
    clock
        .within(Stage::Startup, written)
        .await?
        .map_err(|error| End::Left {
            stage: Stage::Startup,
            error,
        })
}

async fn first_byte(stream: &mut Stream) -> Result<u8, End> {
    let mut byte = [0];
    match stream.read(&mut byte).await {
        Ok(0) => Err(End::Silent),
        Ok(_) => Ok(byte[0]),
        Err(error) => Err(End::Left {
            stage: Stage::Startup,
            error,
        }),
    }
}

/// One whole packet; never more, so that what follows stays where it is.
async fn read_packet<S: Negotiable>(stream: &mut S, first: Option<u8>) -> Result<FirstPacket, End> {
    let left = |error: io::Error| End::Left {
        stage: Stage::Startup,
        error,
    };
    let mut head = [0; 4];
    match first {
        Some(byte) if classify(byte) == Opening::NotPostgres => {
            return Err(End::NotPostgres { first_byte: byte });
        }
        Some(byte) => {
            head[0] = byte;
            stream.read_exact(&mut head[1..]).await.map_err(left)?;
        }
        None => {
            stream.read_exact(&mut head).await.map_err(left)?;
        }
    }
    let length = parse_packet_length(head).map_err(End::Malformed)?;
    let mut packet = vec![0; length];
    let (start, body) = packet
        .split_at_mut_checked(head.len())
        .ok_or_else(|| left(io::ErrorKind::InvalidData.into()))?;
    start.copy_from_slice(&head);
    stream.read_exact(body).await.map_err(left)?;
    parse_packet(&packet).map_err(End::Malformed)
}

/// Tells the peer why it is refused, where it can be told; hands the end back.
async fn told<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, end: End) -> End {
    match end.refusal() {
        Some(refusal) => say(stream, &refusal).await,
        // Without a word, but in order: inside TLS a bare close would look like a cut.
        None => {
            let _ = timeout(LAST_WORDS, stream.shutdown()).await;
        }
    }
    end
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, refusal: &Refusal) {
    let said = async {
        stream.write_all(&refusal.encode()).await?;
        stream.flush().await?;
        linger(stream).await;
        io::Result::Ok(())
    };
    // Whoever does not read it in time cannot be helped.
    let _ = timeout(LAST_WORDS, said).await;
}

/// One deadline for all steps up to the request.
struct Clock {
    deadline: Instant,
    within: Duration,
}

impl Clock {
    async fn within<F: Future>(&self, stage: Stage, future: F) -> Result<F::Output, End> {
        timeout_at(self.deadline, future)
            .await
            .map_err(|_| End::TimedOut {
                stage,
                after: self.within,
            })
    }
}
