//! What a peer's certificate says of its owner, and the notation in which rules name one:
//! `cn:`, `dns:`, `ip:`, `uri:` and `sha256:`.
//!
//! Nothing here says that a certificate is genuine: chain, dates and revocation are judged before its names
//! are believed (RFC 5280, section 6). Whatever comes from a certificate is escaped when displayed.

mod pattern;

pub use pattern::{IdentityPattern, NamePattern, PatternError};

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::certificate::{CertificateError, parse_x509};
use crate::escape::escape;
use crate::hex::{Hex, from_hex};

/// SHA-256 of a whole certificate in DER; shown as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of this certificate (DER).
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// The digest itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Fingerprint {
    /// A digest that was taken before.
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl FromStr for Fingerprint {
    type Err = PatternError;

    /// Takes 64 hexadecimal digits in either case, alone or as 32 pairs with colons, as `openssl x509` prints them.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let refused = || PatternError::BadFingerprint(text.to_owned());
        let digits = if text.contains(':') {
            let pairs: Vec<&str> = text.split(':').collect();
            if pairs.iter().any(|pair| pair.len() != 2) {
                return Err(refused());
            }
            Cow::Owned(pairs.concat())
        } else {
            Cow::Borrowed(text)
        };
        from_hex(&digits)
            .and_then(|digest| digest.try_into().ok())
            .map(Self)
            .ok_or_else(refused)
    }
}

/// What a certificate says of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    common_name: Option<String>,
    dns: Vec<String>,
    ip: Vec<IpAddr>,
    uri: Vec<String>,
    fingerprint: Fingerprint,
    serial: Vec<u8>,
    not_before: i64,
    not_after: i64,
}

impl Identity {
    /// Reads one certificate in DER, all of it and nothing behind it.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        Self::of(&parse_x509(der)?, der)
    }

    pub(crate) fn of(
        certificate: &X509Certificate<'_>,
        der: &[u8],
    ) -> Result<Self, CertificateError> {
        let mut identity = Self {
            common_name: only_common_name(certificate),
            dns: Vec::new(),
            ip: Vec::new(),
            uri: Vec::new(),
            fingerprint: Fingerprint::of(der),
            serial: certificate.raw_serial().to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        };
        let names = certificate
            .subject_alternative_name()
            .map_err(CertificateError::from)?;
        for name in names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => identity.dns.push((*name).to_owned()),
                GeneralName::URI(uri) => identity.uri.push((*uri).to_owned()),
                GeneralName::IPAddress(octets) => identity.ip.extend(ip_of_octets(octets)),
                // Names of other kinds, and those that cannot be read, admit nobody.
                _ => {}
            }
        }
        Ok(identity)
    }

    /// The subject's common name; none where the subject has several, since then it is anybody's guess which counts.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// Subject alternative names of type DNS, as they stand there.
    pub fn dns(&self) -> &[String] {
        &self.dns
    }

    /// Subject alternative names of type IP address; an IPv4 address mapped into IPv6 stands here as IPv4.
    pub fn ip(&self) -> &[IpAddr] {
        &self.ip
    }

    /// Subject alternative names of type URI, as they stand there.
    pub fn uri(&self) -> &[String] {
        &self.uri
    }

    /// The certificate's SHA-256 fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The certificate's serial number: the content of its DER INTEGER.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// The first second at which the certificate is valid (Unix time).
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// The last second at which the certificate is valid (Unix time).
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether both certificates name the same owner, as before and after a renewal. Certificates without any
    /// name are the same only if they are one certificate.
    pub fn same_names(&self, other: &Self) -> bool {
        if self.is_nameless() || other.is_nameless() {
            return self.fingerprint == other.fingerprint;
        }
        self.common_name == other.common_name
            && same_set(lowered(&self.dns), lowered(&other.dns))
            && same_set(self.ip.clone(), other.ip.clone())
            && same_set(self.uri.clone(), other.uri.clone())
    }

    /// An identity for tests of this crate: these DNS names and nothing else.
    #[cfg(test)]
    pub(crate) fn with_dns(names: &[&str]) -> Self {
        Self {
            common_name: None,
            dns: names.iter().map(|&name| name.to_owned()).collect(),
            ip: Vec::new(),
            uri: Vec::new(),
            fingerprint: Fingerprint([7; 32]),
            serial: vec![1],
            not_before: 0,
            not_after: 1,
        }
    }

    fn is_nameless(&self) -> bool {
        self.common_name.is_none()
            && self.dns.is_empty()
            && self.ip.is_empty()
            && self.uri.is_empty()
    }
}

/// The shortest form that tells who it is: the first DNS, IP or URI name, else the common name, else the fingerprint.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.dns.first() {
            write!(f, "dns:{}", escape(name))
        } else if let Some(address) = self.ip.first() {
            write!(f, "ip:{address}")
        } else if let Some(uri) = self.uri.first() {
            write!(f, "uri:{}", escape(uri))
        } else if let Some(name) = &self.common_name {
            write!(f, "cn:{}", escape(name))
        } else {
            write!(f, "sha256:{}", self.fingerprint)
        }
    }
}

fn only_common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let first = names.next()?;
    if names.next().is_some() {
        return None;
    }
    first.as_str().ok().map(str::to_owned)
}

fn ip_of_octets(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets)
            .ok()
            .map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(octets)
            .ok()
            .map(|octets| IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()),
        _ => None,
    }
}

fn lowered(names: &[String]) -> Vec<String> {
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

fn same_set<T: Ord>(mut one: Vec<T>, mut other: Vec<T>) -> bool {
    one.sort_unstable();
    one.dedup();
    other.sort_unstable();
    other.dedup();
    one == other
}

#[cfg(test)]
mod tests;
