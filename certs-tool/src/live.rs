//! What a server presents: a handshake that believes everything, remembers it, and sends nothing after it.
//!
//! In TLS 1.3 the server's chain comes before it asks for ours (RFC 8446, section 2), so that a server that refuses us
//! shows it all the same. Time and bytes are bounded, since anything may answer on a port.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use protocol::escape::escape;
use protocol::startup::SSL_REQUEST;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{ResolvesClientCert, Resumption};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Name};

use crate::cli::Negotiation;
use crate::report::Failure;

/// For everything, names included.
const TIME_AT_MOST: Duration = Duration::from_secs(10);
/// For one address of several.
const DIAL_AT_MOST: Duration = Duration::from_secs(3);
/// For a refusal, which in TLS 1.3 comes after the handshake.
const REFUSAL_AT_MOST: Duration = Duration::from_secs(2);
/// Sixteen times what rustls takes for one handshake message.
const BYTES_AT_MOST: usize = 1 << 20;

/// What to ask.
pub(crate) struct Question {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) server_name: ServerName<'static>,
    /// How to begin; else both ways, one after the other.
    pub(crate) negotiation: Option<Negotiation>,
    /// What to show if the server asks.
    pub(crate) identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// What a server presented.
pub(crate) struct Presented {
    pub(crate) negotiation: Negotiation,
    /// The leaf first. Never empty.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Version, cipher suite and key exchange, as far as the handshake came.
    pub(crate) parameters: Vec<String>,
    pub(crate) alpn: Option<String>,
    /// The CAs of which it wants a certificate; `None` if it wants none.
    pub(crate) asks: Option<Vec<String>>,
    /// Why the handshake failed, or what it said afterwards.
    pub(crate) refusal: Option<String>,
}

/// Connects and looks.
pub(crate) fn look(question: &Question) -> Result<Presented, Failure> {
    let deadline = Instant::now() + TIME_AT_MOST;
    let address = format!("{}:{}", escape(&question.host), question.port);
    let failed = |why: String| Failure::new(format!("cannot see what {address} presents"), why, "");
    let addresses = resolve(question, deadline).map_err(|error| failed(error.to_string()))?;
    let ways: &[Negotiation] = match &question.negotiation {
        Some(one) => std::slice::from_ref(one),
        None => &[Negotiation::Direct, Negotiation::Postgres],
    };
    let mut said = Vec::new();
    for &negotiation in ways {
        let tried = dial(&addresses, deadline)
            .map_err(|error| error.to_string())
            .and_then(|stream| shake_hands(question, negotiation, stream, deadline));
        match tried {
            Ok(presented) => return Ok(presented),
            Err(why) => said.push(format!("{negotiation}: {why}")),
        }
    }
    Err(failed(said.join("; ")))
}

impl fmt::Display for Negotiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct TLS",
            Self::Postgres => "SSLRequest",
        })
    }
}

/// In a thread of its own: the resolver knows no deadline.
fn resolve(question: &Question, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    let (answer, answered) = mpsc::channel();
    let (host, port) = (question.host.clone(), question.port);
    thread::spawn(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        // Nobody listens any more when the time was over.
        let _ = answer.send(found.map(Iterator::collect));
    });
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the name is not resolved in time");
    answered
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .map_err(late)?
}

fn dial(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(address, left.min(DIAL_AT_MOST)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn shake_hands(
    question: &Question,
    negotiation: Negotiation,
    stream: TcpStream,
    deadline: Instant,
) -> Result<Presented, String> {
    let mut stream = Bounded {
        stream,
        deadline,
        left: BYTES_AT_MOST,
    };
    if negotiation == Negotiation::Postgres {
        ask_for_tls(&mut stream)?;
    }
    let witness = Arc::new(Witness::new(question).map_err(|error| error.to_string())?);
    let config = ClientConfig::builder_with_provider(Arc::clone(&witness.provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let mut config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(&witness) as Arc<dyn ResolvesClientCert>);
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    config.resumption = Resumption::disabled();
    let mut connection = ClientConnection::new(Arc::new(config), question.server_name.clone())
        .map_err(|error| error.to_string())?;
    let mut refusal = connection.complete_io(&mut stream).err();
    if refusal.is_none() && witness.seen().asks.is_some() {
        stream.deadline = deadline.min(Instant::now() + REFUSAL_AT_MOST);
        refusal = await_refusal(&mut connection, &mut stream);
    }
    let seen = witness.seen().clone();
    if seen.chain.is_empty() {
        let why = refusal.map(|error| error.to_string());
        return Err(why.unwrap_or_else(|| "the server shows no certificate".to_owned()));
    }
    let parameters = [
        connection
            .protocol_version()
            .map(|version| format!("{version:?}")),
        connection
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite())),
        connection
            .negotiated_key_exchange_group()
            .map(|group| format!("{:?}", group.name())),
    ];
    Ok(Presented {
        negotiation,
        chain: seen.chain,
        parameters: parameters.into_iter().flatten().collect(),
        alpn: connection.alpn_protocol().map(escape),
        asks: seen.asks,
        refusal: refusal.map(|error| escape(error.to_string())),
    })
}

/// "SSL Session Encryption" of the PostgreSQL manual, section "Message Flow".
fn ask_for_tls(stream: &mut Bounded) -> Result<(), String> {
    let mut answer = [0];
    stream
        .write_all(&SSL_REQUEST)
        .and_then(|()| stream.read_exact(&mut answer))
        .map_err(|error| error.to_string())?;
    match &answer {
        b"S" => Ok(()),
        b"N" => Err("it answers that it has no TLS (ssl = on is missing)".to_owned()),
        b"E" => Err("it answers with an error".to_owned()),
        _ => Err("it is no PostgreSQL".to_owned()),
    }
}

/// Waits for an alert; silence is consent, as far as can be seen.
fn await_refusal(connection: &mut ClientConnection, stream: &mut Bounded) -> Option<io::Error> {
    loop {
        match connection.read_tls(stream) {
            Ok(0) => {
                return Some(io::Error::other("it closed the connection without a word"));
            }
            Ok(_) => match connection.process_new_packets() {
                Ok(state) if state.peer_has_closed() => {
                    return Some(io::Error::other("it closed the connection"));
                }
                Ok(_) => {}
                Err(error) => return Some(io::Error::other(error)),
            },
            Err(error) if is_timeout(&error) => return None,
            Err(error) => return Some(error),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// A stream with an end in time and in bytes.
struct Bounded {
    stream: TcpStream,
    deadline: Instant,
    left: usize,
}

impl Bounded {
    fn time_left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        Ok(Some(left))
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("more bytes than any handshake has"));
        }
        self.stream.set_read_timeout(self.time_left()?)?;
        let wanted = buffer.len().min(self.left);
        let read = match self
            .stream
            .read(buffer.get_mut(..wanted).unwrap_or_default())
        {
            Err(error) if is_timeout(&error) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            read => read?,
        };
        self.left = self.left.saturating_sub(read);
        Ok(read)
    }
}

impl Write for Bounded {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.time_left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes every certificate and remembers it; what it is worth is judged afterwards, in words.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    identity: Option<Arc<CertifiedKey>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default, Clone)]
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    asks: Option<Vec<String>>,
}

impl Witness {
    fn new(question: &Question) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let identity = question.identity.as_ref().map(|(chain, key)| {
            let key = provider.key_provider.load_private_key(key.clone_key())?;
            Ok::<_, Error>(Arc::new(CertifiedKey::new(chain.clone(), key)))
        });
        Ok(Self {
            identity: identity.transpose()?,
            provider,
            seen: Mutex::default(),
        })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = [leaf].into_iter().chain(intermediates);
        self.seen().chain = chain.map(|der| der.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    // These are believed only when they hold: a certificate alone, without its key, is shown by anybody.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ResolvesClientCert for Witness {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let names = hints
            .iter()
            .take(100)
            .map(|der| match X509Name::from_der(der) {
                Ok((_, name)) => escape(name.to_string()),
                Err(_) => "(damaged)".to_owned(),
            });
        self.seen().asks = Some(names.collect());
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}
