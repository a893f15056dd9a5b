//! Verification as the proxy does it: our own faults first, since they have words, then webpki with aws-lc-rs, which
//! has the last one: chain, signatures, both purposes, revocation, name.

use protocol::certificate::{
    Certificate, Crl, Fault, Use, bundle_faults, crl_faults, faults, leads_to,
};
use protocol::escape::escape;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use std::time::Duration;
use webpki::{
    ALL_VERIFICATION_ALGS, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage,
    OwnedCertRevocationList, RevocationOptionsBuilder, anchor_from_trusted_cert,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::report::{Date, Problem};

/// A certificate with its encoding.
pub(crate) type Encoded = (Certificate, CertificateDer<'static>);

/// What is to be verified, against what.
pub(crate) struct Case {
    /// As what it is to be taken: a node of ours is server and client, PostgreSQL itself a server.
    pub(crate) purpose: Use,
    pub(crate) leaf: Encoded,
    pub(crate) intermediates: Vec<Encoded>,
    pub(crate) cas: Vec<Encoded>,
    pub(crate) crls: Option<Vec<(Crl, CertificateRevocationListDer<'static>)>>,
    pub(crate) peer_name: Option<ServerName<'static>>,
}

impl Case {
    /// Everything that speaks against it at this time; warnings are among it.
    pub(crate) fn problems(&self, now: Date) -> Vec<Problem> {
        let read = |encoded: &[Encoded]| -> Vec<Certificate> {
            encoded.iter().map(|(read, _)| read.clone()).collect()
        };
        let cas = read(&self.cas);
        let mut found: Vec<Fault> = faults(&self.leaf.0, self.purpose, now.unix());
        found.extend(leads_to(&self.leaf.0, &read(&self.intermediates), &cas));
        found.extend(bundle_faults(&cas, now.unix()));
        if let Some(crls) = &self.crls {
            let crls: Vec<Crl> = crls.iter().map(|(read, _)| read.clone()).collect();
            found.extend(crl_faults(&crls, &cas, now.unix()));
        }
        let mut known = Vec::new();
        found.retain(|fault| {
            let new = !known.contains(&fault.id());
            known.push(fault.id());
            new
        });
        let mut problems: Vec<Problem> = found.iter().map(Problem::from).collect();
        let already_told = problems.iter().any(|problem| !problem.warning);
        if let Err(problem) = self.ask_webpki(now, already_told) {
            problems.extend(problem);
        }
        problems
    }

    fn ask_webpki(&self, now: Date, already_told: bool) -> Result<(), Option<Problem>> {
        let refuse = |error: webpki::Error| match (&error, already_told) {
            (webpki::Error::CertRevoked, _) => Some(Problem::new(
                format!(
                    "the certificate of {} (serial {}) is revoked",
                    self.leaf.0.subject(),
                    self.leaf.0.serial()
                ),
                "certs-tool issue NAME --force makes a new one",
            )),
            // In its own words it would only repeat what was said.
            (_, true) => None,
            _ => Some(translate(&error)),
        };
        let leaf = EndEntityCert::try_from(&self.leaf.1).map_err(refuse)?;
        let anchors: Result<Vec<_>, _> = self
            .cas
            .iter()
            .map(|(_, der)| anchor_from_trusted_cert(der))
            .collect();
        let anchors = anchors.map_err(refuse)?;
        let intermediates: Vec<CertificateDer<'_>> = self
            .intermediates
            .iter()
            .map(|(_, der)| der.clone())
            .collect();
        let crls: Result<Vec<CertRevocationList<'_>>, _> = self
            .crls
            .iter()
            .flatten()
            .map(|(_, der)| OwnedCertRevocationList::from_der(der).map(CertRevocationList::from))
            .collect();
        let crls = crls.map_err(refuse)?;
        let crls: Vec<&CertRevocationList<'_>> = crls.iter().collect();
        let time =
            UnixTime::since_unix_epoch(Duration::from_secs(now.unix().try_into().unwrap_or(0)));
        let mut usages = vec![KeyUsage::server_auth()];
        if self.purpose == Use::Node {
            usages.push(KeyUsage::client_auth());
        }
        for usage in usages {
            // An expired CRL is a warning of its own, as in the proxy unless it is told to enforce.
            let revocation = RevocationOptionsBuilder::new(&crls).ok();
            let revocation = revocation.map(|options| {
                options
                    .with_expiration_policy(ExpirationPolicy::Ignore)
                    .build()
            });
            leaf.verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors,
                &intermediates,
                time,
                usage,
                revocation,
                None,
            )
            .map_err(refuse)?;
        }
        let wrong_name = self
            .peer_name
            .as_ref()
            .and_then(|name| name_problem(&self.leaf, name));
        wrong_name.map_or(Ok(()), |problem| Err(Some(problem)))
    }
}

/// What is wrong if a peer that goes by this name shows this certificate.
pub(crate) fn name_problem((leaf, der): &Encoded, wanted: &ServerName<'_>) -> Option<Problem> {
    let is_right = EndEntityCert::try_from(der)
        .is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(wanted).is_ok());
    if is_right {
        return None;
    }
    let identity = leaf.identity();
    let ip = identity.ip().iter().map(ToString::to_string);
    let names: Vec<String> = identity.dns().iter().map(escape).chain(ip).collect();
    let has = if names.is_empty() {
        "no host name and no address".to_owned()
    } else {
        names.join(", ")
    };
    let wanted = wanted.to_str();
    Some(Problem::new(
        format!(
            "the certificate of {} is not for {wanted}: it has {has}",
            leaf.subject()
        ),
        format!(
            "connect by a name that it has (server_name), or issue it again with --san {wanted}"
        ),
    ))
}

/// Whether the key of this certificate, of whatever kind, made the signature.
pub(crate) fn has_signed(
    certificate: &CertificateDer<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
        ALL_VERIFICATION_ALGS.iter().any(|algorithm| {
            certificate
                .verify_signature(*algorithm, message, signature)
                .is_ok()
        })
    })
}

/// Whether the key belongs to the certificate.
pub(crate) fn belongs_to(key: &KeyPair, certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, read)| {
        read.public_key().subject_public_key.data.as_ref() == key.der_bytes()
    })
}

fn translate(error: &webpki::Error) -> Problem {
    let (what, way_out) = match error {
        webpki::Error::InvalidSignatureForPublicKey => (
            "the signature of the certificate is wrong: a CA of the same name, or nobody, made it",
            "copy the ca.crt of the CA that really signed it",
        ),
        webpki::Error::InvalidCrlSignatureForPublicKey => (
            "the signature of the CRL is wrong: a CA of the same name, or nobody, made it",
            "copy ca.crl from the directory of the CA",
        ),
        webpki::Error::UnknownRevocationStatus => (
            "the CRLs given do not say whether the certificate is revoked",
            "give a CRL of every CA between the certificate and the CA file",
        ),
        webpki::Error::NameConstraintViolation => (
            "the CA may not sign certificates for these names (name constraints)",
            "have another CA sign it",
        ),
        webpki::Error::PathLenConstraintViolated => (
            "there are more CAs between the certificate and the CA file than the CA allows",
            "have a higher CA sign it",
        ),
        webpki::Error::UnsupportedCriticalExtension => (
            "the certificate has a critical extension that is not known here",
            "have it issued again without",
        ),
        other => {
            return Problem::new(
                format!("the TLS library refuses the certificate: {other}"),
                String::new(),
            );
        }
    };
    Problem::new(what, way_out)
}
