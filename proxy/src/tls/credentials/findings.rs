//! Reads the files of credentials, and notes all that is wrong with them, so that one look tells everything.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use protocol::certificate::{
    Certificate, Crl, Fault, Use, bundle_faults, crl_faults, date_fault, faults, leads_to,
};
use protocol::identity::Fingerprint;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error as TlsError, InconsistentKeys, RootCertStore};

use super::super::again::but_for_dates;
use super::super::crls::merge;
use super::super::explain::{explain_handshake, now};
use super::super::papers::{Paper, Unrenewed};
use super::super::provider::provider;
use super::Verifiers;
use super::key::Key;
use crate::config::{CrlExpiry, IdentityFiles};
use crate::health::Of;
use crate::problem::Problem;
use crate::watch::LARGEST_FILE;

/// What the explanation of a handshake calls a revoked certificate.
const REVOKED: &str = "T23";

#[derive(Default)]
pub(super) struct Findings {
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) aging: Vec<Problem>,
    pub(super) in_use: Option<Fingerprint>,
}

impl Findings {
    pub(super) fn error(
        &mut self,
        id: &'static str,
        what: String,
        why: impl Into<String>,
        way_out: &str,
    ) {
        self.errors.push(Problem::new(id, what, why, way_out));
    }

    fn fault(&mut self, path: &Path, fault: &Fault) {
        let what = format!("{}: {fault}", path.display());
        let problem = Problem::new(fault.id(), what, "", fault.way_out());
        if fault.is_warning() && fault.is_matter_of_time() {
            self.aging.push(problem.warning());
        } else if fault.is_warning() {
            self.warnings.push(problem.warning());
        } else {
            self.errors.push(problem);
        }
    }

    fn read(&mut self, path: &Path, kind: &str) -> Option<Vec<u8>> {
        let read = read_bounded(path);
        self.readable(path, kind, read)
    }

    pub(super) fn readable<T>(
        &mut self,
        path: &Path,
        kind: &str,
        read: io::Result<T>,
    ) -> Option<T> {
        match read {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.error(
                    "F01",
                    format!("the {kind} file {} cannot be read", path.display()),
                    error.to_string(),
                    "mend the path in the configuration, or let this OS user read the file",
                );
                None
            }
        }
    }

    pub(super) fn certificates(
        &mut self,
        path: &Path,
        kind: &str,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let pem = self.read(path, kind)?;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match parsed {
            Ok(certificates) if !certificates.is_empty() => Some(certificates),
            Ok(_) => {
                self.error(
                    "F02",
                    format!("{} holds no certificate", path.display()),
                    "no -----BEGIN CERTIFICATE----- was found",
                    "put a PEM file there",
                );
                None
            }
            Err(error) => {
                self.damaged(path, &error);
                None
            }
        }
    }

    pub(super) fn crls(
        &mut self,
        path: &Path,
    ) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        let pem = self.read(path, "CRL")?;
        let parsed: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&pem).collect();
        match parsed {
            Ok(crls) if !crls.is_empty() => Some(crls),
            Ok(_) => {
                self.error(
                    "F04",
                    format!("{} holds no CRL", path.display()),
                    "no -----BEGIN X509 CRL----- was found",
                    "put the CA's CRL there (certs-tool crl), or take identity.crl out",
                );
                None
            }
            Err(error) => {
                self.damaged(path, &error);
                None
            }
        }
    }

    /// The newer of what the file has and what came from other nodes; what cannot be read of the latter is passed over,
    /// since it comes again.
    pub(super) fn with_kept(
        &mut self,
        files: &IdentityFiles,
        cas: &[CertificateDer<'static>],
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Vec<CertificateRevocationListDer<'static>> {
        let Some(path) = files.kept_crl.as_ref().filter(|path| path.exists()) else {
            return crls;
        };
        let kept = read_bounded(path)
            .map_err(|error| error.to_string())
            .and_then(|pem| {
                CertificateRevocationListDer::pem_slice_iter(&pem)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| error.to_string())
            });
        let unused = |what: String, why: String, way_out: &str| {
            Problem::new("K05", what, why, way_out).warning()
        };
        let kept = match kept {
            Ok(kept) => kept,
            Err(why) => {
                self.warnings.push(unused(
                    format!("{} is not used", path.display()),
                    why,
                    "remove it; the other nodes send their CRL again",
                ));
                return crls;
            }
        };
        // What a CA left that is trusted no more means nothing, and goes when the file is written anew.
        let merged = merge(cas, &crls, kept);
        let refused = merged.refused.into_iter().map(|why| {
            let what = format!("a CRL in {} is passed over", path.display());
            let way_out = "leave it there: what else the file has counts, and it is written anew with the next newer CRL";
            unused(what, why, way_out)
        });
        self.warnings.extend(refused);
        merged.crls
    }

    pub(super) fn damaged(&mut self, path: &Path, error: &impl Display) {
        self.error(
            "F03",
            format!("{} is damaged", path.display()),
            error.to_string(),
            "copy the file again from where it was made",
        );
    }

    /// What can be said without cryptography: dates, purposes, names, who issued what.
    pub(super) fn judge(
        &mut self,
        files: &IdentityFiles,
        chain: &[CertificateDer<'_>],
        cas: &[CertificateDer<'_>],
        crls: &[CertificateRevocationListDer<'_>],
    ) -> Vec<Paper> {
        let now = now();
        let chain = self.parsed(&files.cert, chain);
        let cas = self.parsed(&files.ca, cas);
        if let Some((leaf, intermediates)) = chain.split_first() {
            for fault in faults(leaf, Use::Node, now) {
                self.fault(&files.cert, &fault);
                if matches!(fault, Fault::Expired(..)) && self.in_use == Some(leaf.fingerprint()) {
                    self.aging.extend(self.errors.pop().map(Problem::warning));
                }
            }
            if let Some(fault) = leads_to(leaf, intermediates, &cas) {
                self.fault(&files.cert, &fault);
            }
            // Whether one that has expired is needed, the verifier knows.
            let aging = intermediates.iter().filter_map(|der| date_fault(der, now));
            for fault in aging.filter(Fault::is_warning) {
                self.fault(&files.cert, &fault);
            }
        }
        for fault in bundle_faults(&cas, now) {
            self.fault(&files.ca, &fault);
        }
        let mut parsed = Vec::new();
        if let Some(path) = &files.crl {
            for crl in crls {
                match Crl::parse(crl) {
                    Ok(crl) => parsed.push(crl),
                    Err(error) => self.error(
                        "F03",
                        format!("{} is damaged", path.display()),
                        error.to_string(),
                        "make it again (certs-tool crl)",
                    ),
                }
            }
            for fault in crl_faults(&parsed, &cas, now) {
                self.fault(path, &fault);
                // A warning by itself; where expiry is enforced, every handshake would fail.
                if matches!(fault, Fault::CrlExpired { .. })
                    && files.crl_expiry == CrlExpiry::Enforce
                {
                    self.errors
                        .extend(self.aging.pop().map(Problem::into_error));
                }
            }
        }
        let mut own: Vec<Paper> = chain
            .into_iter()
            .map(|certificate| Paper::certificate(&files.cert, Of::Own, certificate))
            .collect();
        if let Some(leaf) = own.first_mut() {
            leaf.note(Unrenewed::read(&files.renewal_note()));
            self.aging.extend(leaf.unrenewed(now));
        }
        let cas = cas
            .into_iter()
            .map(|ca| Paper::certificate(&files.ca, Of::Ca, ca));
        let crls = parsed
            .into_iter()
            .map(|crl| Paper::crl(files.crl.as_ref().unwrap_or(&files.ca), crl));
        own.into_iter().chain(cas).chain(crls).collect()
    }

    fn parsed(&mut self, path: &Path, certificates: &[CertificateDer<'_>]) -> Vec<Certificate> {
        let mut parsed = Vec::new();
        for certificate in certificates {
            match Certificate::parse(certificate) {
                Ok(certificate) => parsed.push(certificate),
                Err(error) => self.error(
                    "F03",
                    format!("{} holds a damaged certificate", path.display()),
                    error.to_string(),
                    "copy the file again from where it was made",
                ),
            }
        }
        parsed
    }

    /// The certificate with its key: `key`, or the `next` one where a renewal was stopped between two renames.
    pub(super) fn certified(
        &mut self,
        files: &IdentityFiles,
        chain: &[CertificateDer<'static>],
        key: Key,
        next: Option<Key>,
    ) -> Option<Arc<CertifiedKey>> {
        let certified = |key: Key| {
            // It wipes its own copy.
            let signing = provider().key_provider.load_private_key(key.clone_key())?;
            let certified = CertifiedKey::new(chain.to_vec(), signing);
            match certified.keys_match() {
                Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => {
                    Ok(Some(Arc::new(certified)))
                }
                Err(_) => Ok(None),
            }
        };
        let pair = match (certified(key), next.map(certified)) {
            (Ok(None) | Err(_), Some(Ok(Some(pair)))) => Ok(Some(pair)),
            (pair, _) => pair,
        };
        match pair {
            Ok(Some(pair)) => Some(pair),
            Ok(None) => {
                self.error(
                    "F08",
                    format!(
                        "{} and {} do not belong together",
                        files.key.display(),
                        files.cert.display()
                    ),
                    "the certificate was issued for another key",
                    "copy key and certificate from the same issue (certs-tool issue)",
                );
                None
            }
            Err(error) => {
                let error: TlsError = error;
                self.error(
                    "F07",
                    format!("the key {} cannot be used", files.key.display()),
                    error.to_string(),
                    "use a P-256, P-384, Ed25519 or RSA key (certs-tool makes P-256)",
                );
                None
            }
        }
    }

    pub(super) fn verifiers(
        &mut self,
        files: &IdentityFiles,
        cas: &[CertificateDer<'static>],
        crls: &[CertificateRevocationListDer<'static>],
    ) -> Option<Verifiers> {
        let mut roots = RootCertStore::empty();
        let (_, unusable) = roots.add_parsable_certificates(cas.iter().cloned());
        if roots.is_empty() || unusable > 0 {
            self.error(
                "T16",
                format!(
                    "{} holds a certificate that cannot be a CA",
                    files.ca.display()
                ),
                "its form is not one that TLS can build a chain to",
                "put the CA's own certificate there (ca.crt)",
            );
            return None;
        }
        let roots = Arc::new(roots);
        let mut client =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
                .with_crls(crls.iter().cloned());
        let mut server = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .with_crls(crls.iter().cloned());
        if files.crl_expiry == CrlExpiry::Enforce {
            client = client.enforce_revocation_expiration();
            server = server.enforce_revocation_expiration();
        }
        let node = client.clone().allow_unauthenticated();
        match (client.build(), node.build(), server.build()) {
            (Ok(client), Ok(node), Ok(server)) => Some(Verifiers {
                client,
                node,
                server,
            }),
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                let path = files.crl.as_ref().unwrap_or(&files.ca);
                self.error(
                    "F03",
                    format!("{} cannot be used", path.display()),
                    error.to_string(),
                    "make it again (certs-tool crl)",
                );
                None
            }
        }
    }

    /// Our own certificate as the far side will see it: signatures, dates, revocation.
    pub(super) fn verify_own(
        &mut self,
        files: &IdentityFiles,
        chain: &[CertificateDer<'_>],
        verifier: &dyn ClientCertVerifier,
    ) {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return;
        };
        let in_use = self.in_use == Some(Fingerprint::of(leaf));
        let verify = |leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], time| {
            let verified = verifier.verify_client_cert(leaf, intermediates, time);
            verified.map(|_| ())
        };
        let verdict = if in_use {
            but_for_dates(chain, now(), verify)
        } else {
            verify(leaf, intermediates, UnixTime::now())
        };
        if let Err(error) = verdict {
            let error = io::Error::other(error);
            let explained = explain_handshake(&error, Some(leaf), None);
            let message = explained
                .message
                .replace("the client's certificate", "our certificate");
            let problem = Problem::new(
                explained.id,
                format!("{}: {message}", files.cert.display()),
                "the far side would refuse it",
                explained
                    .hint
                    .as_deref()
                    .unwrap_or("issue it again with certs-tool"),
            );
            // The list that revokes us counts all the same: else whoever stole our key could still come in here.
            if explained.id == REVOKED && in_use {
                self.warnings.push(problem.warning());
            } else {
                self.errors.push(problem);
            }
        }
    }
}

/// The chain with every CA behind it that is not in it already.
pub(super) fn with_authorities(
    certified: &CertifiedKey,
    cas: &[CertificateDer<'static>],
) -> Arc<CertifiedKey> {
    let mut chain = certified.cert.clone();
    for ca in cas {
        if !chain.contains(ca) {
            chain.push(ca.clone());
        }
    }
    Arc::new(CertifiedKey::new(chain, Arc::clone(&certified.key)))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than 16 MiB",
        ));
    }
    Ok(bytes)
}
