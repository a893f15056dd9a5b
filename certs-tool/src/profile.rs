//! What our certificates look like (RFC 5280): names, dates, usages, serial numbers.
//!
//! Nodes are both server and client, since roles swap at failover; the CA signs nodes and CRLs and no other CA.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use protocol::escape::escape;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};

use crate::key::random;
use crate::report::{Date, Failure};

/// A certificate is valid a little before it is made: the clocks of two hosts are never the same.
const BACKDATED: i64 = 3600;

const DAY: i64 = 86_400;

/// How long a CA lives, in days.
pub const CA_DAYS: u32 = 3652;

/// How long a node's certificate lives, in days.
pub const NODE_DAYS: u32 = 397;

/// The kinds of key that are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256: fast, and read by every TLS.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 3072 bits, for what reads nothing else.
    Rsa3072,
}

/// What a node is called: its common name and the name of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName(String);

impl NodeName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let begins_well = text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        // 64 characters are the most that X.509 allows a common name.
        if !begins_well || !text.bytes().all(plain) || text.len() > 64 || dns(text).is_err() {
            return Err(format!(
                "`{}` is not a node's name: letters, digits, `.`, `-` and `_`, at most 64, beginning with a letter or digit",
                escape(text)
            ));
        }
        if text.eq_ignore_ascii_case("ca") {
            return Err("`ca` is the CA's own name: ca.crt and ca.key are its files".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// A subject alternative name, its kind found by itself: an address is IP, what has `://` is a URI, the rest is DNS.
/// `ip:`, `uri:` and `dns:` before it say the kind outright.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AltName {
    /// A host name; its first label may be `*`.
    Dns(String),
    /// An address.
    Ip(IpAddr),
    /// A URI, for instance `spiffe://site/db1`.
    Uri(String),
}

impl AltName {
    fn ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }

    fn to_san(&self) -> Result<SanType, Failure> {
        let ia5 = |text: &str| {
            text.to_owned().try_into().map_err(|error: rcgen::Error| {
                Failure::new(
                    format!("`{}` cannot be written into a certificate", escape(text)),
                    error.to_string(),
                    "",
                )
            })
        };
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(ia5(name)?),
            Self::Ip(address) => SanType::IpAddress(*address),
            Self::Uri(uri) => SanType::URI(ia5(uri)?),
        })
    }
}

/// In the notation of the proxy's rules: `dns:db1.example.com`.
impl fmt::Display for AltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{}", escape(name)),
            Self::Ip(address) => write!(f, "ip:{address}"),
            Self::Uri(uri) => write!(f, "uri:{}", escape(uri)),
        }
    }
}

impl FromStr for AltName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("ip:") {
            return address
                .parse()
                .map(Self::ip)
                .map_err(|_| format!("`{}` is not an IP address", escape(address)));
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return dns(name);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::ip(address));
        }
        match text
            .strip_prefix("uri:")
            .or_else(|| text.contains("://").then_some(text))
        {
            Some(uri) => self::uri(uri),
            None => dns(text),
        }
    }
}

fn dns(text: &str) -> Result<AltName, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    if text.len() > 253 || !name.split('.').all(label) {
        return Err(format!(
            "`{}` is neither an address nor a URI nor a host name (other scripts as xn--...; no port, no network)",
            escape(text)
        ));
    }
    Ok(AltName::Dns(text.to_owned()))
}

fn uri(text: &str) -> Result<AltName, String> {
    let scheme = text.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            && !rest.is_empty()
    });
    if !scheme || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "`{}` is not a URI: a scheme, a colon and no space",
            escape(text)
        ));
    }
    Ok(AltName::Uri(text.to_owned()))
}

/// The names of a node: those given, else its own name as a DNS name.
pub(crate) fn all_names(name: &NodeName, given: &[AltName]) -> Vec<AltName> {
    if given.is_empty() {
        vec![AltName::Dns(name.to_string())]
    } else {
        given.to_vec()
    }
}

/// From when until when a certificate is to be valid; what is not said is taken from the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Period {
    /// How long, in days, if no end is given.
    pub days: Option<u32>,
    /// The first second; else an hour ago.
    pub not_before: Option<Date>,
    /// The last second; else so many days after the beginning (after now, if no beginning is given).
    pub not_after: Option<Date>,
}

impl Period {
    /// Both ends, for something that lives `days` by itself.
    pub(crate) fn ends(&self, now: Date, days: u32) -> Result<(Date, Date), Failure> {
        let begin = self.not_before.unwrap_or_else(|| now.plus(-BACKDATED));
        let life = i64::from(self.days.unwrap_or(days)) * DAY;
        let end = self
            .not_after
            .unwrap_or_else(|| self.not_before.unwrap_or(now).plus(life));
        if end <= begin {
            return Err(Failure::new(
                format!("a certificate from {begin} to {end} would never be valid"),
                "its end lies before its beginning",
                "give another --days, --not-before or --not-after",
            ));
        }
        Ok((begin, end))
    }
}

/// For how long a certificate was to live from the moment it was made.
pub(crate) fn life(begin: Date, end: Date) -> i64 {
    let whole = end.unix() - begin.unix();
    if whole > BACKDATED {
        whole - BACKDATED
    } else {
        whole
    }
}

/// From when on a node asks for the next certificate of one from `begin` to `end`: a third of its life is over, counted
/// from the moment it was made.
pub fn asks_from(begin: Date, end: Date) -> Date {
    end.plus(life(begin, end) / 3 - life(begin, end))
}

/// When a CRL made now begins: as far back as certificates, not before its CA, and in any case before its own end.
pub(crate) fn crl_begin(now: Date, ca_begin: Date, end: Date) -> Date {
    now.plus(-BACKDATED).max(ca_begin).min(end.plus(-1))
}

/// A serial number: 128 random bits behind a byte that keeps it positive and its length fixed (RFC 5280 allows 20).
pub(crate) fn serial() -> Result<SerialNumber, Failure> {
    let random: [u8; 16] =
        random().map_err(|error| Failure::new("cannot get random bytes", error.to_string(), ""))?;
    let mut bytes = vec![1];
    bytes.extend(random);
    Ok(SerialNumber::from_slice(&bytes))
}

/// A CA's certificate.
pub(crate) fn ca(name: &str, (begin, end): (Date, Date)) -> Result<CertificateParams, Failure> {
    if name.trim().is_empty() || name.chars().count() > 64 || name.contains(char::is_control) {
        return Err(Failure::new(
            format!("a CA cannot be called `{}`", escape(name)),
            "X.509 wants 1 to 64 characters, and a terminal no control characters",
            "give another --name, or none for one that no other CA has",
        ));
    }
    let mut params = named(name, begin, end)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A node's certificate.
pub(crate) fn node(
    name: &NodeName,
    names: &[AltName],
    (begin, end): (Date, Date),
) -> Result<CertificateParams, Failure> {
    let mut params = named(name.as_str(), begin, end)?;
    // Writes basicConstraints, and with it the subject key identifier, which plain `NoCa` leaves out.
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = sans(names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// What a node asks for: names alone, since usages are the CA's business.
pub(crate) fn request(name: &NodeName, names: &[AltName]) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name.as_str());
    params.subject_alt_names = sans(names)?;
    Ok(params)
}

fn named(name: &str, begin: Date, end: Date) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.serial_number = Some(serial()?);
    params.not_before = begin.calendar();
    params.not_after = end.calendar();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn sans(names: &[AltName]) -> Result<Vec<SanType>, Failure> {
    names.iter().map(AltName::to_san).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_name_is_found_by_itself() {
        for (text, shown) in [
            ("db1.example.com", "dns:db1.example.com"),
            ("db1", "dns:db1"),
            ("*.example.com", "dns:*.example.com"),
            ("10.0.0.1", "ip:10.0.0.1"),
            ("2001:db8::1", "ip:2001:db8::1"),
            ("::ffff:10.0.0.1", "ip:10.0.0.1"),
            ("spiffe://site/db1", "uri:spiffe://site/db1"),
            ("dns:db1", "dns:db1"),
            ("ip:10.0.0.1", "ip:10.0.0.1"),
            ("uri:urn:db1", "uri:urn:db1"),
        ] {
            let name: AltName = text.parse().unwrap();
            assert_eq!(name.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(name), "what is shown can be given");
        }
    }

    #[test]
    fn what_no_certificate_should_hold_is_refused() {
        let long = format!("{}.com", "a".repeat(64));
        for text in [
            "",
            "a b",
            "a..b",
            "a.",
            ".a",
            "-",
            "a*.b",
            "a.*.b",
            "*",
            "host:5432",
            "10.0.0.0/8",
            "x@y",
            "ä.de",
            "a\n",
            "dns:",
            "ip:db1",
            "uri:",
            "uri:x",
            "://x",
            "http://a b",
            &long,
        ] {
            assert!(text.parse::<AltName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_nodes_name_is_safe_as_a_files_name() {
        for text in ["db1", "DB-1.example_2.com", "1"] {
            assert!(text.parse::<NodeName>().is_ok(), "{text}");
        }
        let long = "a".repeat(65);
        for text in [
            "", ".", "..", "a/b", "../a", ".a", "-a", "a b", "a..b", "a.", "ca", "CA", "a\u{1b}",
            &long,
        ] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }

    #[test]
    fn periods_begin_an_hour_back_and_count_days_from_now() {
        let now: Date = "2026-11-24T10:00:00Z".parse().unwrap();
        let ends = |period: Period| {
            let (begin, end) = period.ends(now, 10).unwrap();
            (begin.to_string(), end.to_string())
        };
        let date = |text: &str| Some(text.parse().unwrap());
        let usual = ends(Period::default());
        assert_eq!(
            usual,
            (
                "2026-11-24T09:00:00Z".to_owned(),
                "2026-12-04T10:00:00Z".to_owned()
            )
        );
        let given = Period {
            days: Some(2),
            not_before: date("2020-01-01"),
            not_after: None,
        };
        assert_eq!(
            ends(given),
            (
                "2020-01-01T00:00:00Z".to_owned(),
                "2020-01-03T00:00:00Z".to_owned()
            )
        );
        let never = Period {
            days: None,
            not_before: date("2020-01-02"),
            not_after: date("2020-01-01"),
        };
        assert!(never.ends(now, 10).is_err());
        let far = Period {
            days: Some(u32::MAX),
            ..Period::default()
        };
        assert_eq!(ends(far).1, "9999-12-31T23:59:59Z");
    }

    #[test]
    fn serial_numbers_are_positive_and_of_one_length() {
        for _ in 0..100 {
            let bytes = serial().unwrap().to_bytes();
            assert!(bytes.len() == 17 && bytes[0] == 1, "{bytes:?}");
        }
    }
}
