//! TLS of the node channel: an ALPN protocol of its own, rustls' own records, and a type that leads to no session and
//! to no PostgreSQL.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use protocol::certificate::Certificate;
use protocol::error_response::Refusal;
use protocol::identity::{Fingerprint, Identity};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_rustls::{TlsConnector, TlsStream};

use super::explain::explain_handshake;
use super::hello::Watched;
use super::met::Met;
use super::provider::provider;
use super::witness::{Shown, Witness};
use super::{ALPN_NODE, Credentials, PeerCertificate, SessionId};
use crate::net::Stream;

/// Bytes of the exporter that a proof is bound to.
pub(crate) const BINDING: usize = 32;

/// A connection of the node channel. It can be read and written, and nothing else can be made of it.
pub(crate) struct NodeTls {
    stream: TlsStream<Watched<Stream>>,
    certificate: Option<Arc<PeerCertificate>>,
    id: SessionId,
}

impl NodeTls {
    /// A finished handshake. None if it did not settle on the node channel's protocol.
    pub(super) fn new(
        stream: TlsStream<Watched<Stream>>,
        certificate: Option<Arc<PeerCertificate>>,
    ) -> Option<Self> {
        let (watched, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(ALPN_NODE) {
            return None;
        }
        let id = watched.id();
        Some(Self {
            stream,
            certificate,
            id,
        })
    }

    /// Who the peer's certificate says it is; None if it showed none, as only whoever enrols may.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.certificate().map(|certificate| &certificate.identity)
    }

    /// The certificate that the peer proved to hold the key of.
    pub(crate) fn certificate(&self) -> Option<&Arc<PeerCertificate>> {
        self.certificate.as_ref()
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// What both ends of this one TLS session know and nobody else: its exporter (RFC 9266, "tls-exporter").
    pub(crate) fn binding(&self) -> io::Result<[u8; BINDING]> {
        const LABEL: &[u8] = b"EXPORTER-Channel-Binding";
        match &self.stream {
            TlsStream::Client(tls) => {
                tls.get_ref()
                    .1
                    .export_keying_material([0; BINDING], LABEL, Some(b""))
            }
            TlsStream::Server(tls) => {
                tls.get_ref()
                    .1
                    .export_keying_material([0; BINDING], LABEL, Some(b""))
            }
        }
        .map_err(io::Error::other)
    }
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeTls")
    }
}

/// How a dialled node is known.
pub(crate) enum Trust<'a> {
    /// By our CAs and CRLs; it is shown our certificate.
    Ours(&'a Credentials),
    /// By the one CA with this fingerprint, which it must send along. It is shown no certificate: we have none yet.
    Pinned(Fingerprint),
}

/// Opens the node channel on a dialled socket; the far end must be who `server_name` says.
pub(crate) async fn connect_node(
    stream: Stream,
    server_name: &str,
    trust: Trust<'_>,
) -> Result<NodeTls, Box<Refusal>> {
    let shown = Shown::default();
    let failed = |error: io::Error| {
        let certificate = shown.certificate();
        Box::new(explain_handshake(
            &error,
            certificate.as_deref(),
            Some(server_name),
        ))
    };
    let config = config(&shown, &trust).map_err(|error| failed(io::Error::other(error)))?;
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|error| failed(io::Error::other(error)))?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, Watched::new(stream, None))
        .await
        .map_err(failed)?;
    let certificate = shown.verified(&Met::default()).map_err(failed)?;
    NodeTls::new(tls.into(), Some(certificate))
        .ok_or_else(|| failed(io::Error::other(Error::NoApplicationProtocol)))
}

fn config(shown: &Shown, trust: &Trust<'_>) -> Result<ClientConfig, Error> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let mut config = match trust {
        Trust::Ours(credentials) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Witness {
                shown: shown.clone(),
                inner: credentials.server_verifier(),
            }))
            .with_client_cert_resolver(credentials.client_resolver()),
        Trust::Pinned(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Witness {
                shown: shown.clone(),
                inner: Arc::new(Pinned(*pin)),
            }))
            .with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_NODE.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Trusts one CA, known by its fingerprint and sent by the server itself, and nothing else; for the rest (dates,
/// purpose, name) as strict as ever. Of revocation nothing is known yet: the proof of the secret stands for it.
#[derive(Debug)]
struct Pinned(Fingerprint);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates
            .iter()
            .find(|der| Certificate::parse(der).is_ok_and(|ca| ca.fingerprint() == self.0))
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl AsyncRead for NodeTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for NodeTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
