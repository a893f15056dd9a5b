//! The verdict on a certificate that a live session showed at its handshake, by the verifiers of today: CAs, CRLs and
//! names may have changed since.

use std::io;
use std::time::Duration;

use protocol::error_response::Refusal;
use protocol::escape::escape;
use protocol::identity::Identity;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, Error};
use tracing::warn;

use super::explain::{explain_handshake, now};
use super::{Credentials, PeerCertificate};
use crate::config::Running;

impl Credentials {
    /// Whether a handshake with this client would succeed now; why not.
    pub(crate) fn judge_client(&self, peer: &PeerCertificate) -> Result<(), Box<Refusal>> {
        let (leaf, intermediates) = shown(peer);
        self.client_verifier()
            .verify_client_cert(leaf, intermediates, self.time_for(peer))
            .map(|_| ())
            .or_else(|error| self.without_its_ca(peer, error))
            .map_err(|error| explained(error, leaf, None))
    }

    /// Whether a handshake with this server, which must bear `name`, would succeed now; why not.
    pub(crate) fn judge_server(
        &self,
        peer: &PeerCertificate,
        name: &str,
    ) -> Result<(), Box<Refusal>> {
        let (leaf, intermediates) = shown(peer);
        ServerName::try_from(name)
            .map_err(|error| Error::General(error.to_string()))
            .and_then(|name| {
                let time = self.time_for(peer);
                self.server_verifier()
                    .verify_server_cert(leaf, intermediates, &name, &[], time)
                    .map(|_| ())
                    .or_else(|error| {
                        self.without_its_ca(peer, error)?;
                        verify_server_name(&ParsedCertificate::try_from(leaf)?, &name)
                    })
            })
            .map_err(|error| explained(error, leaf, Some(name)))
    }

    /// A live session was admitted by a CA that was trusted then. At the end of a rotation that CA goes, and takes no
    /// stream with it: its leaves are refused to whoever connects anew, and were not revoked.
    fn without_its_ca(&self, peer: &PeerCertificate, error: Error) -> Result<(), Error> {
        let is_gone = matches!(
            error,
            Error::InvalidCertificate(CertificateError::UnknownIssuer)
        );
        if !is_gone || self.on_ca_removal() == Running::Close {
            return Err(error);
        }
        warn!(
            identity = escape(peer.identity.to_string()),
            "a session goes on whose certificate is of a CA that is trusted no more; a restart ends it [R20]"
        );
        Ok(())
    }

    /// The moment at which the certificate is judged.
    fn time_for(&self, peer: &PeerCertificate) -> UnixTime {
        match self.on_expiry() {
            Running::Close => UnixTime::now(),
            Running::Keep => within_validity(&peer.chain, now()),
        }
    }
}

fn shown(peer: &PeerCertificate) -> (&CertificateDer<'static>, &[CertificateDer<'static>]) {
    const NONE: &CertificateDer<'static> = &CertificateDer::from_slice(&[]);
    peer.chain.split_first().unwrap_or((NONE, &[]))
}

fn explained(error: Error, leaf: &CertificateDer<'_>, name: Option<&str>) -> Box<Refusal> {
    Box::new(explain_handshake(
        &io::Error::other(error),
        Some(leaf),
        name,
    ))
}

/// `now`, or the nearest moment at which the whole chain is valid. webpki looks at dates before revocation: judged
/// after its end, an expired certificate could not be told from one that was revoked as well.
pub(super) fn within_validity(chain: &[CertificateDer<'_>], now: i64) -> UnixTime {
    let identities = || chain.iter().filter_map(|der| Identity::parse(der).ok());
    let begin = identities().map(|identity| identity.not_before()).max();
    let end = identities().map(|identity| identity.not_after()).min();
    let time = now.max(begin.unwrap_or(now)).min(end.unwrap_or(now));
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time).unwrap_or_default()))
}
