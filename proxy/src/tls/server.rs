//! The TLS server's side: reads the ClientHello first, lets its ALPN pick the configuration, then shakes hands. A session
//! demands the client's certificate; on the node channel it may be missing, since whoever enrols has none yet. No
//! tickets, no resumption: a resumed handshake shows no certificate.

use std::io;
use std::sync::Arc;

use protocol::error_response::{Refusal, SqlState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::StartHandshake;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{
    Accepted as ClientHello, Acceptor, NoServerSessionStorage, ResolvesServerCert,
    UnbufferedServerConnection,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, CommonState, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::connection::{Buffered, Tls, parameters};
use super::explain::explain_handshake;
use super::handshake::{Shaken, shake};
use super::hello::Watched;
use super::provider::provider;
use super::witness::{Shown, Witness};
use super::{ALPN_NODE, ALPN_POSTGRESQL, Credentials, Established, NodeTls, SessionId};
use crate::config::Records;
use crate::net::Stream;
use crate::relay::{InPlace, Kernel, RecordStream};

/// How the client asked for TLS, which decides what its ALPN must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The ClientHello came first: ALPN is demanded.
    Direct,
    /// By SSLRequest: libpq before 17 offers no ALPN then.
    BySslRequest,
}

/// Who asks, and with which opening bytes.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    pub(crate) asked: Asked,
    /// Bytes of the ClientHello that were read to tell what this is. Never anything that came before it.
    pub(crate) read: Vec<u8>,
    pub(crate) records: Records,
}

/// A handshake that failed. The peer has been sent a TLS alert; the rest is for our log.
#[derive(Debug)]
pub(crate) struct AcceptError {
    pub(crate) refusal: Box<Refusal>,
    pub(crate) id: Option<SessionId>,
    /// Where the alert went, to be closed so that it is read: whoever stays shall not hide behind a timeout.
    pub(crate) stream: Option<Stream>,
}

/// What a handshake led to; the two have nothing in common from here on.
#[derive(Debug)]
pub(crate) enum Handshaken {
    Session(Box<Established>),
    Node(Box<NodeTls>),
}

/// What a connection is for, by the ALPN protocol it offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Session,
    Node,
}

/// Shakes hands as the server.
pub(crate) async fn accept(
    accepted: Accepted,
    credentials: &Credentials,
) -> Result<Handshaken, AcceptError> {
    let Accepted {
        mut stream,
        asked,
        mut read,
        records,
    } = accepted;
    let hello = match read_hello(&mut stream, &mut read).await {
        Ok(hello) => hello,
        Err(error) => {
            return Err(AcceptError {
                refusal: Box::new(explain_handshake(&error, None, None)),
                id: SessionId::of(&read),
                stream: Some(stream),
            });
        }
    };
    let id = SessionId::of(&read).unwrap_or_default();
    let offered: Vec<&[u8]> = hello.client_hello().alpn().into_iter().flatten().collect();
    let purpose = judge_alpn(&offered, asked);
    drop(offered);
    let purpose = match purpose {
        Ok(purpose) => purpose,
        Err(refusal) => {
            // One fatal alert, no_application_protocol (RFC 7301, 3.2), in a record of its own (RFC 8446, 6).
            const NO_APPLICATION_PROTOCOL: [u8; 7] = [21, 3, 3, 0, 2, 2, 120];
            let sent = stream.write_all(&NO_APPLICATION_PROTOCOL).await;
            return Err(AcceptError {
                refusal: Box::new(refusal),
                id: Some(id),
                stream: sent.is_ok().then_some(stream),
            });
        }
    };

    let shown = Shown::default();
    let failed = |error: io::Error| AcceptError {
        refusal: Box::new(explain_handshake(
            &error,
            shown.certificate().as_deref(),
            None,
        )),
        id: Some(id),
        stream: None,
    };
    if purpose == Purpose::Node {
        let config =
            node_config(credentials, &shown).map_err(|error| failed(io::Error::other(error)))?;
        let tls = match shake_buffered(stream, hello, id, config).await {
            Ok(tls) => tls,
            Err((error, stream)) => {
                return Err(AcceptError {
                    stream: Some(stream),
                    ..failed(error)
                });
            }
        };
        let certificate = match shown.certificate() {
            Some(_) => Some(shown.verified(credentials.met()).map_err(failed)?),
            None => None,
        };
        return NodeTls::new(tls.into(), certificate)
            .map(|tls| Handshaken::Node(Box::new(tls)))
            .ok_or_else(|| failed(other_protocol()));
    }
    let config = session_config(credentials, &shown, records)
        .map_err(|error| failed(io::Error::other(error)))?;
    let shaken = match records {
        Records::Rustls => shake_buffered(stream, hello, id, config).await.map(|tls| {
            let settled = Settled::of(tls.get_ref().1);
            (Tls::Buffered(Box::new(Buffered::new(tls))), settled)
        }),
        Records::InPlace => shake_in_place(stream, read, config).await,
    };
    let (tls, settled) = match shaken {
        Ok(shaken) => shaken,
        Err((error, stream)) => {
            return Err(AcceptError {
                stream: Some(stream),
                ..failed(error)
            });
        }
    };
    if settled.alpn.is_some_and(|alpn| alpn != ALPN_POSTGRESQL) {
        return Err(failed(other_protocol()));
    }
    let peer = shown.verified(credentials.met()).map_err(failed)?;
    Ok(Handshaken::Session(Box::new(Established {
        tls: Box::new(tls),
        peer,
        id,
        parameters: settled.parameters,
    })))
}

/// What both sides settled on.
struct Settled {
    alpn: Option<Vec<u8>>,
    parameters: String,
}

impl Settled {
    fn of(connection: &CommonState) -> Self {
        Self {
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            parameters: parameters(connection),
        }
    }
}

/// Each configuration knows one protocol, so this does not come about; it is looked at all the same.
fn other_protocol() -> io::Error {
    io::Error::other(rustls::Error::NoApplicationProtocol)
}

/// Reads until the ClientHello is whole. All that was read stands in `read`; a failure has sent its alert.
async fn read_hello(stream: &mut Stream, read: &mut Vec<u8>) -> io::Result<ClientHello> {
    const PIECE: usize = 4096;
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        while let Some(mut rest) = read.get(fed..).filter(|rest| !rest.is_empty()) {
            match acceptor.read_tls(&mut rest)? {
                0 => break,
                n => fed += n,
            }
        }
        match acceptor.accept() {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut sent = Vec::new();
                alert.write_all(&mut sent)?;
                stream.write_all(&sent).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        let have = read.len();
        read.resize(have + PIECE, 0);
        let n = stream.read(read.get_mut(have..).unwrap_or_default()).await;
        read.truncate(have + *n.as_ref().unwrap_or(&0));
        if n? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn shake_buffered(
    stream: Stream,
    hello: ClientHello,
    id: SessionId,
    config: Arc<ServerConfig>,
) -> Result<TlsStream<Watched<Stream>>, (io::Error, Stream)> {
    let start = StartHandshake::from_parts(hello, Watched::new(stream, Some(id)));
    let shaken = start.into_stream(config).into_fallible().await;
    shaken.map_err(|(error, stream)| (error, stream.into_inner()))
}

async fn shake_in_place(
    mut stream: Stream,
    read: Vec<u8>,
    config: Arc<ServerConfig>,
) -> Result<(Tls, Settled), (io::Error, Stream)> {
    let mut connection = match UnbufferedServerConnection::new(config) {
        Ok(connection) => connection,
        Err(error) => return Err((io::Error::other(error), stream)),
    };
    let Shaken { behind, unsent } = match shake(&mut connection, &mut stream, read, |_| {}).await {
        Ok(shaken) => shaken,
        Err(error) => return Err((error, stream)),
    };
    let settled = Settled::of(&connection);
    let (secrets, kernel) = match connection.dangerous_into_kernel_connection() {
        Ok(kernel) => kernel,
        Err(error) => return Err((io::Error::other(error), stream)),
    };
    let records = InPlace::new(secrets, Kernel::Server(kernel));
    RecordStream::new(stream, records, behind, unsent)
        .map(|stream| (Tls::InPlace(stream), settled))
        .map_err(|(fault, stream)| (io::Error::other(fault), stream))
}

/// Exactly one of our two protocols, and `postgresql` where a session is asked for.
fn judge_alpn(offered: &[&[u8]], asked: Asked) -> Result<Purpose, Refusal> {
    let session = offered.contains(&ALPN_POSTGRESQL);
    let node = offered.contains(&ALPN_NODE);
    let refusal = |message: &str, hint: &str| {
        Err(Refusal::new("T31", SqlState::PROTOCOL_VIOLATION, message).hint(hint))
    };
    match (session, node, asked) {
        (true, false, _) => Ok(Purpose::Session),
        (false, false, Asked::BySslRequest) if offered.is_empty() => Ok(Purpose::Session),
        (false, true, Asked::Direct) => Ok(Purpose::Node),
        (true, true, _) => refusal(
            "the client offered the protocols of a session and of the node channel at once",
            "this is no client of ours: look at the address it came from",
        ),
        _ => refusal(
            "the client did not offer the ALPN protocol postgresql",
            "connect with pgtlsproxy client, or with libpq 17 or later (sslnegotiation=direct)",
        ),
    }
}

/// The configuration for one session: cheap to make, and the only way to let the verifier remember whom it saw.
fn session_config(
    credentials: &Credentials,
    shown: &Shown,
    records: Records,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = config(
        ALPN_POSTGRESQL,
        shown,
        credentials.client_verifier(),
        credentials.server_resolver(),
    )?;
    config.enable_secret_extraction = records == Records::InPlace;
    Ok(Arc::new(config))
}

/// The configuration for one connection of the node channel: a certificate that is shown is verified as ever, and the
/// CAs are sent along, since who enrols knows them by a fingerprint only.
fn node_config(
    credentials: &Credentials,
    shown: &Shown,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let (verifier, resolver) = (credentials.node_verifier(), credentials.node_resolver());
    config(ALPN_NODE, shown, verifier, resolver).map(Arc::new)
}

fn config(
    alpn: &[u8],
    shown: &Shown,
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Witness {
            shown: shown.clone(),
            inner: verifier,
        }))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpn_picks_one_protocol_or_none() {
        use Purpose::{Node, Session};
        type Offered = &'static [&'static [u8]];
        let cases: &[(Offered, Asked, Option<Purpose>)] = &[
            (&[b"postgresql"], Asked::Direct, Some(Session)),
            (&[b"postgresql"], Asked::BySslRequest, Some(Session)),
            (&[b"h2", b"postgresql"], Asked::Direct, Some(Session)),
            (&[], Asked::BySslRequest, Some(Session)),
            (&[], Asked::Direct, None),
            (&[b"h2"], Asked::BySslRequest, None),
            (&[b"pgtlsproxy-node/1"], Asked::Direct, Some(Node)),
            (&[b"pgtlsproxy-node/1"], Asked::BySslRequest, None),
            (&[b"postgresql", b"pgtlsproxy-node/1"], Asked::Direct, None),
            (
                &[b"pgtlsproxy-node/1", b"postgresql"],
                Asked::BySslRequest,
                None,
            ),
        ];
        for (offered, asked, purpose) in cases {
            assert_eq!(
                judge_alpn(offered, *asked).ok(),
                *purpose,
                "{offered:?} {asked:?}"
            );
        }
    }
}
