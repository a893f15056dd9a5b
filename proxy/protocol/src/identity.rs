//! What a peer's certificate says of its owner, and the notation in which rules name one:
//! `cn:`, `dns:`, `ip:`, `uri:` and `sha256:`.
//!
//! Nothing here says that a certificate is genuine: chain, dates and revocation are judged before its names
//! are believed (RFC 5280, section 6). Whatever comes from a certificate is escaped when displayed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::certificate::{CertificateError, parse_x509};
use crate::escape::escape;
use crate::hex::Hex;

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

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl FromStr for Fingerprint {
    type Err = PatternError;

    /// Takes 64 hexadecimal digits in either case, alone or as 32 pairs with colons, as `openssl x509` prints them.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let plain: Vec<u8> = if text.contains(':') {
            let pairs: Vec<&str> = text.split(':').collect();
            if pairs.iter().any(|pair| pair.len() != 2) {
                return Err(PatternError::BadFingerprint(text.to_owned()));
            }
            pairs.concat().into_bytes()
        } else {
            text.as_bytes().to_vec()
        };
        let digits: Option<Vec<u8>> = plain.iter().map(|&digit| hex_digit(digit)).collect();
        let digest = digits.and_then(|digits| {
            let bytes: Vec<u8> = digits
                .chunks_exact(2)
                .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
                .collect();
            (digits.len() == 64).then_some(bytes)?.try_into().ok()
        });
        digest
            .map(Self)
            .ok_or_else(|| PatternError::BadFingerprint(text.to_owned()))
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[u8] = include_bytes!("../testdata/names.der");
    const CONTROL: &[u8] = include_bytes!("../testdata/control.der");
    const TWO_COMMON_NAMES: &[u8] = include_bytes!("../testdata/two-cn.der");
    const OPENSSL_FINGERPRINT: &str = "4F:02:33:BD:5C:2C:61:11:FB:66:8B:85:C2:B9:6F:2E:\
                                       4D:69:84:5F:54:97:32:98:DF:E3:A5:BC:DB:34:63:6C";

    fn pattern(text: &str) -> IdentityPattern {
        text.parse().unwrap()
    }

    fn with_dns(names: &[&str]) -> Identity {
        Identity::with_dns(names)
    }

    #[test]
    fn reads_every_kind_of_name() {
        let identity = Identity::parse(NAMES).unwrap();
        assert_eq!(identity.common_name(), Some("db1"));
        assert_eq!(identity.dns(), ["DB1.example.com", "*.wild.example.com"]);
        let addresses: Vec<String> = identity.ip().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1", "10.0.0.2", "2001:db8::1"]);
        assert_eq!(identity.uri(), ["spiffe://site/db1"]);
        assert_eq!(identity.serial().len(), 20);
        assert_eq!(identity.not_after() - identity.not_before(), 3650 * 86400);
        assert_eq!(identity.to_string(), "dns:DB1.example.com");
    }

    #[test]
    fn patterns_match_as_written() {
        let identity = Identity::parse(NAMES).unwrap();
        for (text, expected) in [
            ("cn:db1", true),
            ("cn:DB1", false),
            ("cn:*", true),
            ("dns:db1.example.com", true),
            ("dns:*.example.com", true),
            ("dns:db1.*.com", true),
            ("dns:*.*.*", true),
            ("dns:example.com", false),
            ("dns:*.com", false),
            ("dns:*", false),
            ("dns:a.wild.example.com", false),
            ("dns:*.wild.example.com", true),
            ("ip:10.0.0.1", true),
            ("ip:::ffff:10.0.0.1", true),
            ("ip:10.0.0.2", true),
            ("ip:2001:db8:0::1", true),
            ("ip:10.0.0.3", false),
            ("uri:spiffe://site/db1", true),
            ("uri:spiffe://site/DB1", false),
            ("uri:spiffe://site/", false),
        ] {
            assert_eq!(pattern(text).matches(&identity), expected, "{text}");
        }
    }

    #[test]
    fn a_fingerprint_is_taken_with_and_without_colons() {
        let identity = Identity::parse(NAMES).unwrap();
        let plain = OPENSSL_FINGERPRINT.replace(':', "");
        for text in [OPENSSL_FINGERPRINT, &plain, &plain.to_lowercase()] {
            assert!(
                pattern(&format!("sha256:{text}")).matches(&identity),
                "{text}"
            );
        }
        assert_eq!(identity.fingerprint().to_string(), plain.to_lowercase());
        let other = format!("sha256:{}", plain.replace('4', "5"));
        assert!(!pattern(&other).matches(&identity));
    }

    #[test]
    fn a_star_in_the_peers_certificate_is_text() {
        let wild = with_dns(&["*.example.com"]);
        assert!(!pattern("dns:db1.example.com").matches(&wild));
        assert!(!pattern("dns:db1.*.com").matches(&wild));
        assert!(pattern("dns:*.example.com").matches(&wild));
        assert!(!pattern("dns:*.example.com").matches(&with_dns(&[".example.com", "example.com"])));
    }

    #[test]
    fn dns_and_common_name_are_not_mixed() {
        let identity = with_dns(&["db1"]);
        assert!(pattern("dns:db1").matches(&identity));
        assert!(!pattern("cn:db1").matches(&identity));
    }

    #[test]
    fn of_several_common_names_none_counts() {
        let identity = Identity::parse(TWO_COMMON_NAMES).unwrap();
        assert_eq!(identity.common_name(), None);
        assert!(identity.to_string().starts_with("sha256:"));
        assert!(!pattern("cn:db1").matches(&identity));
        assert!(!pattern("cn:Users").matches(&identity));
    }

    #[test]
    fn patterns_are_shown_as_they_are_read() {
        let fingerprint = format!("sha256:{}", "0a".repeat(32));
        for text in [
            "cn:db 1",
            "dns:*.example.com",
            "ip:2001:db8::1",
            "uri:spiffe://a/b",
            &fingerprint,
        ] {
            assert_eq!(pattern(text).to_string(), text);
            assert_eq!(pattern(&pattern(text).to_string()), pattern(text));
        }
    }

    #[test]
    fn a_wrong_pattern_says_what_to_write() {
        let long = format!("sha256:{}", "0".repeat(66));
        let ragged = format!("sha256:0:{}", "0".repeat(63));
        for (text, part) in [
            ("db1.example.com", "`dns:db1.example.com`"),
            ("2001:db8::1", "`ip:2001:db8::1`"),
            ("spiffe://site/db1", "`uri:spiffe://site/db1`"),
            ("DNS:db1", "dns:"),
            ("", "cn:, dns:, ip:"),
            ("dns:", "must follow the colon"),
            ("dns:db*.example.com", "one whole label"),
            ("cn:**", "one whole label"),
            ("dns:db1..com", "not a DNS name"),
            ("dns:db1.example.com.", "not a DNS name"),
            ("dns:bücher.example", "xn--"),
            ("dns:10.0.0.1", "`ip:10.0.0.1`"),
            ("ip:10.0.0.0/8", "no network"),
            ("uri:spiffe://*/db1", "compared whole"),
            ("sha256:12", "64 hexadecimal digits"),
            (&long, "64 hexadecimal digits"),
            (&ragged, "64 hexadecimal digits"),
            ("sha256:++", "64 hexadecimal digits"),
        ] {
            let error = text.parse::<IdentityPattern>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn same_names_survive_a_renewal_and_nothing_else() {
        let mut renewed = with_dns(&["b.example.com", "A.example.com"]);
        renewed.fingerprint = Fingerprint([8; 32]);
        assert!(renewed.same_names(&with_dns(&["a.example.com", "b.example.com"])));
        assert!(!renewed.same_names(&with_dns(&["a.example.com"])));
        let mut other = with_dns(&[]);
        other.fingerprint = Fingerprint([8; 32]);
        assert!(
            !other.same_names(&with_dns(&[])),
            "two strangers without a name are not one"
        );
        assert!(other.same_names(&other));
    }

    #[test]
    fn what_a_peer_wrote_cannot_reach_a_terminal() {
        let shown = Identity::parse(CONTROL).unwrap().to_string();
        assert_eq!(shown, r"cn:a\u{1b}[31m\u{202e}b");
        assert_eq!(escape("a\nb\\c\u{200b}'\"é"), r#"a\nb\\c\u{200b}'\"é"#);
        assert!(escape("x".repeat(100_000)).len() < 300);
    }

    #[test]
    fn damaged_certificates_are_errors() {
        for cut in 0..NAMES.len() {
            assert!(Identity::parse(&NAMES[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = NAMES.to_vec();
        longer.push(0);
        assert_eq!(
            Identity::parse(&longer),
            Err(CertificateError::TrailingBytes)
        );
        for position in 0..NAMES.len() {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut damaged = NAMES.to_vec();
                damaged[position] = value;
                // Any answer will do, as long as there is one.
                if let Ok(identity) = Identity::parse(&damaged) {
                    assert!(!identity.to_string().contains(char::is_control));
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_pattern_that_reads_back_or_an_error(text in "(cn|dns|ip|uri|sha256)?:?\\PC{0,80}") {
            if let Ok(pattern) = text.parse::<IdentityPattern>() {
                // What is shown is escaped, and so the same only where nothing had to be.
                if escape(&text) == text {
                    proptest::prop_assert_eq!(pattern.to_string().parse(), Ok(pattern));
                }
            }
        }
    }
}
