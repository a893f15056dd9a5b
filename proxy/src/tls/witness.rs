//! A verifier for one connection that remembers the certificate it was shown, so that a refused peer can be named:
//! rustls tells what was wrong, but not with whose certificate.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::PeerCertificate;
use super::met::Met;

/// The chain that the peer showed, valid or not. Shared: rustls keeps a connection's configuration, and this with it.
#[derive(Clone, Default)]
pub(super) struct Shown(Arc<Mutex<Option<Chain>>>);

type Chain = Arc<[CertificateDer<'static>]>;

impl Shown {
    /// The peer's own certificate, until [`Shown::verified`] has taken it.
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.lock().as_ref()?.first().cloned()
    }

    /// The certificate of a verified peer, and who it says it is. Takes it out: a client's configuration lasts as long
    /// as its connection, and need not keep a copy.
    pub(super) fn verified(&self, met: &Met) -> io::Result<Arc<PeerCertificate>> {
        let chain = self.lock().clone().unwrap_or_default();
        let peer = met.again(chain)?;
        *self.lock() = None;
        Ok(peer)
    }

    fn remember(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
        let chain = std::iter::once(leaf).chain(intermediates);
        // A connection has one handshake, so nothing is ever replaced.
        self.lock()
            .get_or_insert_with(|| chain.map(|shown| shown.clone().into_owned()).collect());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Chain>> {
        // Whole at every moment, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wraps a verifier and changes nothing about its verdicts.
pub(super) struct Witness<V: ?Sized> {
    pub(super) shown: Shown,
    pub(super) inner: Arc<V>,
}

impl<V: ?Sized> fmt::Debug for Witness<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Witness<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.shown.remember(end_entity, intermediates);
        self.inner
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl<V: ServerCertVerifier> ServerCertVerifier for Witness<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.shown.remember(end_entity, intermediates);
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
