//! Kinds of keys and signatures, by their object identifiers, and which of them TLS 1.3 takes.

use std::fmt;

use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::CertificateError;

/// What kind of key a certificate holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// An elliptic curve that TLS 1.3 knows: P-256, P-384 or P-521.
    Ec(&'static str),
    /// RSA of this many bits.
    Rsa(usize),
    /// Ed25519.
    Ed25519,
    /// Anything else, by its object identifier.
    Other(String),
}

impl KeyAlgorithm {
    /// Reads a SubjectPublicKeyInfo in DER.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, key) = SubjectPublicKeyInfo::from_der(der)?;
        if rest.is_empty() {
            Ok(Self::of(&key))
        } else {
            Err(CertificateError::TrailingBytes)
        }
    }

    /// Whether TLS 1.3 and our library take it.
    pub fn is_usable(&self) -> bool {
        match self {
            Self::Ec(_) | Self::Ed25519 => true,
            Self::Rsa(bits) => (2048..=8192).contains(bits),
            Self::Other(_) => false,
        }
    }

    pub(super) fn of(key: &SubjectPublicKeyInfo<'_>) -> Self {
        let oid = key.algorithm.algorithm.to_id_string();
        let curve = || {
            key.algorithm
                .parameters
                .as_ref()
                .and_then(|any| any.as_oid().ok())
                .map(|oid| oid.to_id_string())
        };
        match oid.as_str() {
            "1.2.840.10045.2.1" => match curve().as_deref() {
                Some("1.2.840.10045.3.1.7") => Self::Ec("P-256"),
                Some("1.3.132.0.34") => Self::Ec("P-384"),
                Some("1.3.132.0.35") => Self::Ec("P-521"),
                other => Self::Other(format!(
                    "elliptic curve {}",
                    other.unwrap_or("without a name")
                )),
            },
            "1.2.840.113549.1.1.1" => match key.parsed() {
                Ok(PublicKey::RSA(rsa)) => Self::Rsa(bits_of(rsa.modulus)),
                _ => Self::Other("damaged RSA key".to_owned()),
            },
            "1.3.101.112" => Self::Ed25519,
            _ => Self::Other(oid),
        }
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ec(curve) => write!(f, "ECDSA {curve}"),
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

fn bits_of(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    number.get(zeros).map_or(0, |first| {
        let bytes = number.len().saturating_sub(zeros);
        bytes
            .saturating_mul(8)
            .saturating_sub(first.leading_zeros() as usize)
    })
}

/// How a certificate or a CRL is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// A name and strength that TLS 1.3 accepts.
    Sound(&'static str),
    /// Ed25519: sound, but PostgreSQL's channel binding knows no hash for it.
    Ed25519,
    /// MD5 or SHA-1.
    Broken(&'static str),
    /// Not known here.
    Unknown,
}

impl Signature {
    pub(super) fn of(algorithm: &AlgorithmIdentifier<'_>) -> Self {
        match algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.10045.4.3.2" => Self::Sound("ECDSA with SHA-256"),
            "1.2.840.10045.4.3.3" => Self::Sound("ECDSA with SHA-384"),
            "1.2.840.10045.4.3.4" => Self::Sound("ECDSA with SHA-512"),
            "1.2.840.113549.1.1.10" => Self::Sound("RSA-PSS"),
            "1.2.840.113549.1.1.11" => Self::Sound("RSA with SHA-256"),
            "1.2.840.113549.1.1.12" => Self::Sound("RSA with SHA-384"),
            "1.2.840.113549.1.1.13" => Self::Sound("RSA with SHA-512"),
            "1.3.101.112" => Self::Ed25519,
            "1.2.840.113549.1.1.4" => Self::Broken("MD5"),
            "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Self::Broken("SHA-1"),
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sound(name) | Self::Broken(name) => name,
            Self::Ed25519 => "Ed25519",
            Self::Unknown => "an unknown algorithm",
        })
    }
}
