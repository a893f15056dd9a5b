//! Raw PostgreSQL on the wire: any bytes over TCP, Unix sockets and TLS, and what comes back, so that refusals
//! and endings can be asserted. It verifies nothing and accepts everything.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

use crate::pki::Identity;
use crate::wait::PATIENCE;

/// The ALPN name of PostgreSQL's direct TLS.
pub const ALPN: &str = "postgresql";
/// The ALPN name of the node channel.
pub const ALPN_NODE: &str = "pgtlsproxy-node/1";
/// SSLRequest.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// GSSENCRequest.
pub const GSS_ENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// A StartupMessage 3.0 with these parameters.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 0x0003_0000_u32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    packet(&body)
}

/// What a physical standby sends.
pub fn replication_startup() -> Vec<u8> {
    startup(&[
        ("user", "postgres"),
        ("database", "replication"),
        ("replication", "true"),
    ])
}

/// A CancelRequest.
pub fn cancel_request(pid: u32, secret: &[u8]) -> Vec<u8> {
    let mut body = 0x04d2_162e_u32.to_be_bytes().to_vec();
    body.extend(pid.to_be_bytes());
    body.extend(secret);
    packet(&body)
}

/// A body with its length before it.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes(), body].concat()
}

/// A message with its type byte and length.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], packet(body).as_slice()].concat()
}

/// A connection that says what it is told to.
#[derive(Debug)]
pub struct Wire(Transport);

#[derive(Debug)]
enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    TlsClient(Box<StreamOwned<ClientConnection, TcpStream>>),
    TlsServer(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// How a connection came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A clean end; over TLS, with close_notify.
    Eof,
    /// A reset.
    Reset,
    /// The end of a TLS stream without close_notify.
    Truncated,
    /// A TLS alert.
    Alert(String),
}

/// An ErrorResponse, by field.
#[derive(Clone, Debug)]
pub struct Refusal(BTreeMap<char, String>);

impl Refusal {
    fn field(&self, name: char) -> &str {
        self.0.get(&name).map_or("", String::as_str)
    }

    /// The SQLSTATE.
    pub fn sqlstate(&self) -> &str {
        self.field('C')
    }

    /// The message.
    pub fn message(&self) -> &str {
        self.field('M')
    }

    /// The severity.
    pub fn severity(&self) -> &str {
        self.field('S')
    }

    /// The way out.
    pub fn hint(&self) -> &str {
        self.field('H')
    }

    /// All that a user sees: message, detail and hint.
    pub fn text(&self) -> String {
        ['M', 'D', 'H'].map(|name| self.field(name)).join("\n")
    }
}

impl Wire {
    /// Connects over TCP.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new_tcp(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn new_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(Transport::Tcp(stream))
    }

    /// Connects to a Unix socket.
    pub fn unix(path: &Path) -> Self {
        Self::new_unix(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn new_unix(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(Transport::Unix(stream))
    }

    /// Connects with direct TLS and ALPN, as libpq 17 does.
    pub fn direct_tls(address: SocketAddr, identity: &Identity) -> Self {
        Self::tcp(address).tls(Some(identity), &[ALPN]).unwrap()
    }

    /// Connects with SSLRequest and then TLS, as every libpq does.
    pub fn negotiated_tls(address: SocketAddr, identity: &Identity) -> Self {
        let mut wire = Self::tcp(address);
        wire.send(&SSL_REQUEST);
        assert_eq!(wire.read_byte(), b'S');
        wire.tls(Some(identity), &[]).unwrap()
    }

    /// Goes on with TLS as its client, with or without a certificate. TLS 1.3 lets a client believe in a
    /// handshake that the server then refuses: see [`Wire::ending`].
    pub fn tls(self, identity: Option<&Identity>, alpn: &[&str]) -> io::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(
                provider.signature_verification_algorithms,
            )));
        let mut config = match identity {
            Some(identity) => {
                config.with_client_cert_resolver(Arc::new(resolver(identity, &provider)))
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.enable_sni = false;
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection =
            ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = self.into_tcp();
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Self(Transport::TlsClient(Box::new(StreamOwned::new(
            connection, stream,
        )))))
    }

    /// Goes on with TLS as its server, asking for no certificate.
    pub fn serve_tls(self, identity: &Identity) -> io::Result<Self> {
        self.serve_tls_for(identity, ALPN)
    }

    /// As [`Wire::serve_tls`], for this ALPN protocol.
    pub fn serve_tls_for(self, identity: &Identity, alpn: &str) -> io::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver(identity, &provider)));
        config.alpn_protocols = vec![alpn.into()];
        let mut connection = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
        let mut stream = self.into_tcp();
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Self(Transport::TlsServer(Box::new(StreamOwned::new(
            connection, stream,
        )))))
    }

    /// The certificate that the other side showed.
    pub fn certificate_of_peer(&self) -> CertificateDer<'static> {
        let shown = match &self.0 {
            Transport::TlsClient(stream) => stream.conn.peer_certificates(),
            other => panic!("no certificate is shown on {other:?}"),
        };
        shown.expect("a certificate")[0].clone()
    }

    /// What lies under TLS, to take records without opening them.
    pub fn under_tls(self) -> TcpStream {
        match self.0 {
            Transport::TlsClient(stream) => stream.sock,
            Transport::TlsServer(stream) => stream.sock,
            other => panic!("there is no TLS on {other:?}"),
        }
    }

    fn into_tcp(self) -> TcpStream {
        match self.0 {
            Transport::Tcp(stream) => stream,
            other => panic!("TLS goes over TCP, not over {other:?}"),
        }
    }

    fn stream(&mut self) -> &mut dyn Stream {
        match &mut self.0 {
            Transport::Tcp(stream) => stream,
            Transport::Unix(stream) => stream,
            Transport::TlsClient(stream) => &mut **stream,
            Transport::TlsServer(stream) => &mut **stream,
        }
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// From now on waits for ever where it would have given up, when sending.
    pub fn send_patiently(&mut self) {
        match &self.0 {
            Transport::Tcp(stream) => stream.set_write_timeout(None).unwrap(),
            other => panic!("not made for {other:?}"),
        }
    }

    /// Sends bytes, if the other side still takes them.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream();
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Reads one byte.
    #[track_caller]
    pub fn read_byte(&mut self) -> u8 {
        self.read_exactly(1)[0]
    }

    /// Reads so many bytes.
    #[track_caller]
    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream().read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads one packet without a type byte, as a startup is.
    #[track_caller]
    pub fn read_packet(&mut self) -> Vec<u8> {
        let head = self.read_exactly(4);
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let body = self.read_exactly(length as usize - 4);
        [head, body].concat()
    }

    /// Connects to the node channel, with or without a certificate.
    pub fn node(address: SocketAddr, identity: Option<&Identity>) -> Self {
        Self::tcp(address).tls(identity, &[ALPN_NODE]).unwrap()
    }

    /// Sends one body of the node channel, its length before it.
    pub fn send_body(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap();
        self.send(&[&length.to_be_bytes(), body].concat());
    }

    /// Reads one body of the node channel.
    #[track_caller]
    pub fn read_body(&mut self) -> Vec<u8> {
        let head = self.read_exactly(4);
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        self.read_exactly(length as usize)
    }

    /// Asks on the node channel and reads the answer.
    #[track_caller]
    pub fn ask_node(&mut self, request: &Value) -> Value {
        self.send_body(request.to_string().as_bytes());
        serde_json::from_slice(&self.read_body()).unwrap()
    }

    /// Answers a startup as PostgreSQL does, with this key for cancelling.
    pub fn greet(&mut self, pid: u32, secret: &[u8]) {
        self.send(&message(b'R', &0_u32.to_be_bytes()));
        self.send(&message(b'K', &[&pid.to_be_bytes(), secret].concat()));
        self.send(&message(b'Z', b"I"));
    }

    /// Reads until ReadyForQuery and returns the key for cancelling.
    #[track_caller]
    pub fn read_greeting(&mut self) -> (u32, Vec<u8>) {
        let mut key = None;
        loop {
            match self.read_message().expect("a message") {
                (b'K', body) => {
                    key = Some((
                        u32::from_be_bytes(body[..4].try_into().unwrap()),
                        body[4..].to_vec(),
                    ))
                }
                (b'Z', _) => return key.expect("BackendKeyData before ReadyForQuery"),
                (b'E', body) => panic!("refused: {}", String::from_utf8_lossy(&body)),
                _ => {}
            }
        }
    }

    /// Reads one typed message: its tag and body.
    pub fn read_message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        let reader = self.stream();
        reader.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; length as usize - 4];
        reader.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// Reads an ErrorResponse, behind which the connection must end.
    #[track_caller]
    pub fn read_refusal(&mut self) -> Refusal {
        let (tag, body) = self.read_message().expect("an ErrorResponse");
        assert_eq!(char::from(tag), 'E', "{}", String::from_utf8_lossy(&body));
        let fields = body
            .split(|byte| *byte == 0)
            .filter(|field| !field.is_empty());
        let refusal = Refusal(
            fields
                .map(|field| {
                    (
                        char::from(field[0]),
                        String::from_utf8(field[1..].to_vec()).unwrap(),
                    )
                })
                .collect(),
        );
        assert_eq!(self.ending(), Ending::Eof, "after {refusal:?}");
        refusal
    }

    /// Reads to the end, throws away what comes, and says how it ended.
    #[track_caller]
    pub fn ending(&mut self) -> Ending {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.stream().read(&mut buffer) {
                Ok(0) => return Ending::Eof,
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return Ending::Reset,
                    ErrorKind::UnexpectedEof => return Ending::Truncated,
                    ErrorKind::InvalidData => return Ending::Alert(error.to_string()),
                    _ => panic!("the connection does not end: {error}"),
                },
            }
        }
    }

    /// Ends our direction: with close_notify over TLS, then FIN.
    pub fn finish(&mut self) {
        self.stream().close_write().unwrap();
    }
}

/// A byte stream whose own direction can be ended.
trait Stream: Read + Write {
    fn close_write(&mut self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn close_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn close_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn close_write(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()?;
        self.sock.close_write()
    }
}

impl Stream for StreamOwned<ServerConnection, TcpStream> {
    fn close_write(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()?;
        self.sock.close_write()
    }
}

/// Takes whatever certificate is shown.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Shows this certificate, however bad it is.
fn resolver(identity: &Identity, provider: &CryptoProvider) -> SingleCertAndKey {
    let key = provider
        .key_provider
        .load_private_key(identity.private_key())
        .unwrap();
    CertifiedKey::new(identity.chain(), key).into()
}
