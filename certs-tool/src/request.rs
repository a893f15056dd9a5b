//! A certificate request (PKCS#10, RFC 2986): what it asks for, and the key that it proves to hold.

use std::fmt;
use std::path::Path;

use protocol::certificate::KeyAlgorithm;
use protocol::escape::escape;
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::key;
use crate::profile::{self, NodeName};
use crate::report::Failure;

/// A request whose signature was made with the key in it.
#[derive(Debug)]
pub struct Request {
    public_key: SubjectPublicKeyInfo,
    subject: String,
    names: Vec<String>,
    ignored: Vec<String>,
}

impl Request {
    /// Reads a request in PEM or DER and verifies its signature; `path` is for the words only.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, Failure> {
        let unreadable = |why: &dyn fmt::Display| {
            Failure::new(
                format!("{} is not a certificate request", path.display()),
                why.to_string(),
                "`certs-tool request NAME` makes one",
            )
        };
        let der = if bytes.starts_with(b"-----")
            || bytes.windows(11).any(|window| window == b"-----BEGIN ")
        {
            CertificateSigningRequestDer::from_pem_slice(bytes)
                .map_err(|error| unreadable(&error))?
        } else {
            CertificateSigningRequestDer::from(bytes)
        };
        let (rest, request) =
            X509CertificationRequest::from_der(&der).map_err(|error| unreadable(&error))?;
        if !rest.is_empty() {
            return Err(unreadable(
                &"it is followed by bytes that do not belong to it",
            ));
        }
        let info = &request.certification_request_info;
        let unusable = |what: &dyn fmt::Display| {
            Failure::new(
                format!("the key in {} is not signed here", path.display()),
                format!("TLS 1.3 does not take it ({what})"),
                "ask for a certificate with P-256, P-384 or RSA of 2048 bits and more",
            )
        };
        // Before the signature, which a library refuses to check for a key that is too weak.
        let kind = KeyAlgorithm::parse(info.subject_pki.raw).map_err(|error| unreadable(&error))?;
        if !kind.is_usable() {
            return Err(unusable(&escape(kind.to_string())));
        }
        let public_key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|error| unusable(&error))?;
        request.verify_signature().map_err(|_| {
            Failure::new(
                format!("the signature of {} is wrong", path.display()),
                "whoever made it does not hold the key in it, or it was changed on the way",
                "have it sent again",
            )
        })?;
        let mut names = Vec::new();
        let mut ignored = Vec::new();
        for extension in request.requested_extensions().into_iter().flatten() {
            match extension {
                ParsedExtension::SubjectAlternativeName(wanted) => {
                    names.extend(wanted.general_names.iter().map(name_in_words));
                }
                ParsedExtension::KeyUsage(usage) => ignored.push(format!("key usage {usage}")),
                ParsedExtension::ExtendedKeyUsage(_) => {
                    ignored.push("extended key usage".to_owned())
                }
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    ignored.push("to be a CA".to_owned());
                }
                ParsedExtension::BasicConstraints(_) => {}
                _ => ignored.push("other extensions".to_owned()),
            }
        }
        Ok(Self {
            public_key,
            subject: escape(info.subject.to_string()),
            names,
            ignored,
        })
    }

    /// The key, which is all that is taken from a request.
    pub fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }

    /// The subject that it asks for, escaped.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The alternative names that it asks for, escaped.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What else it asks for and does not get.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

fn name_in_words(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("dns:{}", escape(name)),
        GeneralName::URI(uri) => format!("uri:{}", escape(uri)),
        GeneralName::IPAddress(octets) => match **octets {
            [a, b, c, d] => format!("ip:{}", std::net::Ipv4Addr::new(a, b, c, d)),
            _ => match <[u8; 16]>::try_from(*octets) {
                Ok(octets) => format!("ip:{}", std::net::Ipv6Addr::from(octets)),
                Err(_) => "ip:(damaged)".to_owned(),
            },
        },
        other => escape(other.to_string()),
    }
}

/// A key made here, and the request for its certificate, both as PEM: for programs that send the one and keep the other.
pub fn make(name: &NodeName) -> Result<(Zeroizing<String>, String), Failure> {
    let failed =
        |error: rcgen::Error| Failure::new("cannot make the request", error.to_string(), "");
    let key = key::generate(profile::KeyAlgorithm::default())?;
    let params = profile::request(name, &profile::all_names(name, &[]))?;
    let request = params
        .serialize_request(&*key)
        .and_then(|request| request.pem())
        .map_err(failed)?;
    Ok((key::to_pem(&key, None)?, request))
}
