//! This node's certificate, key, trusted CAs and CRLs: read from files, judged, and made ready for handshakes.
//! `check`, the start and every reload load them here; what fails to load is published nowhere.

mod findings; // what is in the files, and what is wrong with it
mod key; // the private one

use std::sync::Arc;

use protocol::identity::{Fingerprint, Identity};
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio_rustls::rustls::server::ResolvesServerCert;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::met::Met;
use super::papers::Paper;
use crate::config::{CrlExpiry, IdentityFiles, Running};
use crate::health::Of;
use crate::problem::Problem;
use findings::{Findings, with_authorities};

/// Everything a handshake needs. Cheap to clone through its `Arc`s; never shows the key.
pub(crate) struct Credentials {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    /// The same with the CAs behind it, for whoever knows them by a fingerprint only.
    node_certified: Arc<CertifiedKey>,
    verifiers: Verifiers,
    authorities: Vec<CertificateDer<'static>>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    on_expiry: Running,
    on_ca_removal: Running,
    crl_expiry: CrlExpiry,
    papers: Vec<Paper>,
    met: Met,
}

struct Verifiers {
    client: Arc<dyn ClientCertVerifier>,
    /// As `client`, but no certificate at all is no fault.
    node: Arc<dyn ClientCertVerifier>,
    server: Arc<WebPkiServerVerifier>,
}

/// Credentials that can be used, and what deserves a look all the same.
pub(crate) struct Loaded {
    pub(crate) credentials: Credentials,
    pub(crate) warnings: Vec<Problem>,
    /// Warnings that come by the passing of time alone: [`Paper::problem`] finds them as well.
    pub(crate) aging: Vec<Problem>,
}

impl Credentials {
    /// Reads and judges all files, or says everything that is wrong with them. That the certificate which is `in_use`
    /// has expired or was revoked is only a warning: nothing gets worse by it, and a revocation must not wait.
    pub(crate) fn load(
        files: &IdentityFiles,
        in_use: Option<Fingerprint>,
    ) -> Result<Loaded, Vec<Problem>> {
        let mut findings = Findings {
            in_use,
            ..Findings::default()
        };
        // In this order: a renewal leaves the next key first, then puts the certificate in its place, then the key. So
        // one of the two keys read belongs to the certificate, whatever happens in between.
        let next = findings.next_key(&files.next_key());
        let key = findings.key(&files.key);
        let chain = findings.certificates(&files.cert, "certificate");
        let cas = findings.certificates(&files.ca, "CA certificate");
        let crls = match &files.crl {
            Some(path) => findings.crls(path),
            None => Some(Vec::new()),
        };
        let (Some(chain), Some(cas), Some(crls)) = (chain, cas, crls) else {
            return Err(findings.errors);
        };
        let crls = findings.with_kept(files, &cas, crls);
        let papers = findings.judge(files, &chain, &cas, &crls);
        let certified = key.and_then(|key| findings.certified(files, &chain, key, next));
        let verifiers = findings.verifiers(files, &cas, &crls);
        let (Some(certified), Some(verifiers)) = (certified, verifiers) else {
            return Err(findings.errors);
        };
        let Some(identity) = chain.first().and_then(|leaf| Identity::parse(leaf).ok()) else {
            return Err(findings.errors);
        };
        if findings.errors.is_empty() {
            findings.verify_own(files, &chain, verifiers.client.as_ref());
        }
        if findings.errors.is_empty() {
            Ok(Loaded {
                credentials: Self {
                    identity,
                    node_certified: with_authorities(&certified, &cas),
                    certified,
                    verifiers,
                    authorities: cas,
                    crls,
                    on_expiry: files.on_expiry,
                    on_ca_removal: files.on_ca_removal,
                    crl_expiry: files.crl_expiry,
                    papers,
                    met: Met::default(),
                },
                warnings: findings.warnings,
                aging: findings.aging,
            })
        } else {
            Err(findings.errors)
        }
    }

    /// Who we are.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What becomes of a live session whose peer's certificate expires.
    pub(crate) fn on_expiry(&self) -> Running {
        self.on_expiry
    }

    /// What becomes of a live session whose peer's CA is trusted no more.
    pub(crate) fn on_ca_removal(&self) -> Running {
        self.on_ca_removal
    }

    /// Our certificates, CAs and CRLs, whose time runs.
    pub(crate) fn papers(&self) -> &[Paper] {
        &self.papers
    }

    /// Those of them that do not count at `now` (Unix seconds), for which a start would fail: an expired CRL only where
    /// that is enforced.
    pub(crate) fn lapsed(&self, now: i64) -> impl Iterator<Item = Problem> {
        let papers = self.papers.iter();
        papers.filter_map(move |paper| {
            let validity = paper.validity()?;
            let counts = (validity.not_before..=validity.not_after).contains(&now);
            let tolerated = validity.of == Of::Crl && self.crl_expiry == CrlExpiry::Warn;
            paper.problem(now).filter(|_| !counts && !tolerated)
        })
    }

    /// Our certificate and what we send behind it.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The CAs that peers must lead to.
    pub(crate) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// The CRLs that handshakes go by.
    pub(crate) fn crls(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.crls
    }

    pub(super) fn met(&self) -> &Met {
        &self.met
    }

    pub(super) fn client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifiers.client)
    }

    pub(super) fn node_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifiers.node)
    }

    pub(super) fn server_verifier(&self) -> Arc<WebPkiServerVerifier> {
        Arc::clone(&self.verifiers.server)
    }

    pub(super) fn node_resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.node_certified)))
    }

    pub(super) fn server_resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified)))
    }

    pub(super) fn client_resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified)))
    }
}
