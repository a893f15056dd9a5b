//! The notation in which rules name certificates: `cn:`, `dns:`, `ip:`, `uri:` and `sha256:`, with `*` for one whole label.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{Fingerprint, Identity};
use crate::escape::escape;

/// A name in which each `*` stands for one whole label: `*.example.com` is `db1.example.com`, and neither
/// `example.com` nor `a.b.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    fn matches(&self, name: &str, same_label: fn(&str, &str) -> bool) -> bool {
        // A `*` of the peer is text like any other: it is never on the left side here.
        let mut labels = name.split('.');
        let all = self.0.split('.').all(|wanted| {
            labels.next().is_some_and(|label| {
                if wanted == "*" {
                    !label.is_empty()
                } else {
                    same_label(wanted, label)
                }
            })
        });
        all && labels.next().is_none()
    }
}

/// Which certificates a rule admits: `cn:db1`, `dns:*.example.com`, `ip:10.0.0.1`, `uri:spiffe://site/db1`,
/// `sha256:` and a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPattern {
    /// The subject's common name; case counts.
    Cn(NamePattern),
    /// One of the DNS names; case does not count.
    Dns(NamePattern),
    /// One of the IP addresses.
    Ip(IpAddr),
    /// One of the URIs, letter by letter.
    Uri(String),
    /// This one certificate.
    Sha256(Fingerprint),
}

impl IdentityPattern {
    /// Whether the certificate that says this is one of those meant.
    pub fn matches(&self, identity: &Identity) -> bool {
        match self {
            Self::Cn(pattern) => identity
                .common_name()
                .is_some_and(|name| pattern.matches(name, |a, b| a == b)),
            Self::Dns(pattern) => identity
                .dns
                .iter()
                .any(|name| pattern.matches(name, str::eq_ignore_ascii_case)),
            Self::Ip(address) => identity.ip.contains(address),
            Self::Uri(uri) => identity.uri.contains(uri),
            Self::Sha256(fingerprint) => identity.fingerprint == *fingerprint,
        }
    }
}

impl IdentityPattern {
    /// Whether a certificate in which this name stands is one of those meant: `name` is taken letter by letter, and a `*`
    /// in it is no wildcard.
    pub fn covers(&self, name: &Self) -> bool {
        match (self, name) {
            (Self::Cn(pattern), Self::Cn(name)) => pattern.matches(&name.0, |a, b| a == b),
            (Self::Dns(pattern), Self::Dns(name)) => {
                pattern.matches(&name.0, str::eq_ignore_ascii_case)
            }
            (own, other) => own == other,
        }
    }

    /// Whether it has a `*` in it, which stands for any label.
    pub fn is_wild(&self) -> bool {
        match self {
            Self::Cn(pattern) | Self::Dns(pattern) => pattern.0.contains('*'),
            Self::Ip(_) | Self::Uri(_) | Self::Sha256(_) => false,
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cn(pattern) => write!(f, "cn:{}", escape(&pattern.0)),
            Self::Dns(pattern) => write!(f, "dns:{}", escape(&pattern.0)),
            Self::Ip(address) => write!(f, "ip:{address}"),
            Self::Uri(uri) => write!(f, "uri:{}", escape(uri)),
            Self::Sha256(fingerprint) => write!(f, "sha256:{fingerprint}"),
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let Some((kind, value)) = text.split_once(':') else {
            return Err(PatternError::NoKind(text.to_owned()));
        };
        if value.is_empty() {
            return Err(PatternError::Empty(text.to_owned()));
        }
        match kind {
            "cn" => Ok(Self::Cn(name_pattern(text, value)?)),
            "dns" => dns_pattern(text, value).map(Self::Dns),
            "ip" => {
                let address: IpAddr = value
                    .parse()
                    .map_err(|_| PatternError::BadAddress(value.to_owned()))?;
                Ok(Self::Ip(address.to_canonical()))
            }
            "uri" if value.contains('*') => Err(PatternError::WildcardInUri(text.to_owned())),
            "uri" => Ok(Self::Uri(value.to_owned())),
            "sha256" => value.parse().map(Self::Sha256),
            // `2001:db8::1` and `spiffe://...` have a colon of their own.
            _ => Err(PatternError::NoKind(text.to_owned())),
        }
    }
}

fn name_pattern(text: &str, value: &str) -> Result<NamePattern, PatternError> {
    if value
        .split('.')
        .any(|label| label.contains('*') && label != "*")
    {
        return Err(PatternError::PartOfLabel(text.to_owned()));
    }
    Ok(NamePattern(value.to_owned()))
}

fn dns_pattern(text: &str, value: &str) -> Result<NamePattern, PatternError> {
    if value.parse::<IpAddr>().is_ok() {
        return Err(PatternError::AddressAsDns(value.to_owned()));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*');
    if value
        .split('.')
        .any(|label| label.is_empty() || !label.bytes().all(plain))
    {
        return Err(PatternError::BadDns(value.to_owned()));
    }
    name_pattern(text, value)
}

/// Why a text is not an identity pattern; says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// No known kind stands before the first colon.
    NoKind(String),
    /// Nothing stands behind the colon.
    Empty(String),
    /// `*` together with other letters in one label.
    PartOfLabel(String),
    /// No name that DNS could hold.
    BadDns(String),
    /// An IP address behind `dns:`.
    AddressAsDns(String),
    /// No IP address behind `ip:`.
    BadAddress(String),
    /// `*` in a URI.
    WildcardInUri(String),
    /// Not 64 hexadecimal digits.
    BadFingerprint(String),
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKind(text) => {
                let guess = if text.parse::<IpAddr>().is_ok() {
                    "ip"
                } else if text.contains("://") {
                    "uri"
                } else {
                    "dns"
                };
                write!(
                    f,
                    "`{0}` does not say what it names: cn:, dns:, ip:, uri: or sha256: (perhaps `{guess}:{0}`)",
                    escape(text)
                )
            }
            Self::Empty(text) => write!(
                f,
                "`{}` names nothing: a name must follow the colon",
                escape(text)
            ),
            Self::PartOfLabel(text) => {
                write!(
                    f,
                    "`{}`: `*` stands for one whole label, as in `dns:*.example.com`",
                    escape(text)
                )
            }
            Self::BadDns(name) => write!(
                f,
                "`{}` is not a DNS name: letters, digits, `-` and `_` in labels joined by single dots \
                 (other scripts as `xn--...`)",
                escape(name)
            ),
            Self::AddressAsDns(address) => {
                write!(
                    f,
                    "`{0}` is an address, not a DNS name: write `ip:{0}`",
                    escape(address)
                )
            }
            Self::BadAddress(text) => {
                write!(
                    f,
                    "`{}` is not an IP address (one address, no network, no port)",
                    escape(text)
                )
            }
            Self::WildcardInUri(text) => {
                write!(
                    f,
                    "`{}`: a URI is compared whole, `*` stands for nothing in it",
                    escape(text)
                )
            }
            Self::BadFingerprint(text) => {
                write!(
                    f,
                    "`{}` is not a SHA-256 fingerprint: 64 hexadecimal digits, colons allowed",
                    escape(text)
                )
            }
        }
    }
}

impl std::error::Error for PatternError {}
