//! What is in a file of whatever origin: certificates, CRLs, requests and keys, in PEM (any number) or DER (one).

use std::path::Path;

use protocol::certificate::{Certificate, CertificateError, Crl};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

use crate::report::Failure;
use crate::request::Request;
use crate::store;

/// One thing that a file holds.
pub(crate) enum Item {
    Certificate(Box<Certificate>, CertificateDer<'static>),
    Crl(Crl, CertificateRevocationListDer<'static>),
    Request(Request),
    Key { encrypted: bool },
}

/// Everything that a file holds, in its order.
pub(crate) fn load(path: &Path) -> Result<Vec<Item>, Failure> {
    parse(&store::read(path)?, path)
}

/// Everything that these bytes hold; `path` is for the words only.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Item>, Failure> {
    let is_pem = bytes.windows(11).any(|window| window == b"-----BEGIN ");
    let items = if is_pem {
        parse_pem(bytes, path)?
    } else {
        vec![parse_der(bytes, path)?]
    };
    if items.is_empty() {
        return Err(nothing(
            path,
            "no certificate, CRL, request or key is in it",
        ));
    }
    Ok(items)
}

/// Some DER as PEM.
pub(crate) fn to_pem(label: &str, der: &[u8]) -> Result<String, Failure> {
    pkcs8::der::pem::encode_string(label, pkcs8::LineEnding::LF, der)
        .map_err(|error| Failure::new(format!("cannot encode a {label}"), error.to_string(), ""))
}

fn parse_pem(bytes: &[u8], path: &Path) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let (kind, der) = section.map_err(|error| nothing(path, &error.to_string()))?;
        match kind {
            SectionKind::Certificate => items.push(certificate(der, path)?),
            SectionKind::Crl => items.push(crl(der, path)?),
            SectionKind::Csr => items.push(Item::Request(Request::parse(&der, path)?)),
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                drop(Zeroizing::new(der));
                items.push(Item::Key { encrypted: false });
            }
            _ => {}
        }
    }
    if items.is_empty()
        && bytes
            .windows(26)
            .any(|window| window == b"BEGIN ENCRYPTED PRIVATE KE")
    {
        items.push(Item::Key { encrypted: true });
    }
    Ok(items)
}

fn parse_der(bytes: &[u8], path: &Path) -> Result<Item, Failure> {
    certificate(bytes.to_vec(), path)
        .or_else(|_| crl(bytes.to_vec(), path))
        .or_else(|_| Request::parse(bytes, path).map(Item::Request))
        .map_err(|_| {
            nothing(
                path,
                "it is neither PEM nor the DER of a certificate, a CRL or a request",
            )
        })
}

fn certificate(der: Vec<u8>, path: &Path) -> Result<Item, Failure> {
    let read = Certificate::parse(&der).map_err(|error| damaged("certificate", path, &error))?;
    Ok(Item::Certificate(Box::new(read), der.into()))
}

fn crl(der: Vec<u8>, path: &Path) -> Result<Item, Failure> {
    let read = Crl::parse(&der).map_err(|error| damaged("CRL", path, &error))?;
    Ok(Item::Crl(read, der.into()))
}

fn damaged(what: &str, path: &Path, error: &CertificateError) -> Failure {
    Failure::new(
        format!("a {what} in {} cannot be read", path.display()),
        error.to_string(),
        "have it sent again",
    )
}

fn nothing(path: &Path, why: &str) -> Failure {
    Failure::new(
        format!("{} holds nothing that is read here", path.display()),
        why,
        "give a file in PEM or DER; PKCS#12 can be turned into PEM by `openssl pkcs12`",
    )
}
