//! Certificates and revocation lists as values, and what is wrong with them for our use at a given time.
//!
//! Nothing is verified here: signatures are webpki's business in the callers. This room reads what X.509 says
//! (RFC 5280) and words what a DBA has to mend; the time is an argument.

mod algorithm;
mod fault;
mod judge;

use std::cmp::Ordering;
use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::nom;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Name;

pub use algorithm::{KeyAlgorithm, Signature};
pub use fault::{Fault, Moment, Which};
pub use judge::{
    Use, bundle_faults, crl_date_fault, crl_faults, date_fault, faults, is_last_third, leads_to,
};

use crate::escape::escape;
use crate::hex::Hex;
use crate::identity::{Fingerprint, Identity};

/// Why a certificate or a CRL could not be read at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// Not the DER encoding of what it should be; what the parser says.
    NotDer(String),
    /// It is followed by bytes that do not belong to it.
    TrailingBytes,
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDer(why) => write!(f, "not readable as X.509 ({why})"),
            Self::TrailingBytes => f.write_str("followed by bytes that do not belong to it"),
        }
    }
}

impl std::error::Error for CertificateError {}

impl From<X509Error> for CertificateError {
    fn from(error: X509Error) -> Self {
        Self::NotDer(error.to_string())
    }
}

impl From<nom::Err<X509Error>> for CertificateError {
    fn from(error: nom::Err<X509Error>) -> Self {
        match error {
            nom::Err::Error(error) | nom::Err::Failure(error) => error.into(),
            nom::Err::Incomplete(_) => Self::NotDer("it ends too early".to_owned()),
        }
    }
}

/// Reads one certificate in DER, all of it and nothing behind it.
pub(crate) fn parse_x509(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let (rest, certificate) = X509Certificate::from_der(der)?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(CertificateError::TrailingBytes)
    }
}

/// A distinguished name: compared by its encoding, shown as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    der: Vec<u8>,
    text: String,
}

impl Name {
    fn of(name: &X509Name<'_>) -> Self {
        Self {
            der: name.as_raw().to_vec(),
            text: name.to_string(),
        }
    }

    /// Its encoding.
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

/// As `CN=db1, O=site`, escaped.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            f.write_str("(no name)")
        } else {
            f.write_str(&escape(&self.text))
        }
    }
}

/// A serial number: the bytes of a DER INTEGER, without zeros before them; shown as hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serial(Vec<u8>);

/// As numbers.
impl Ord for Serial {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for Serial {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Serial {
    /// From big-endian bytes; zeros before the number do not count.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        Self(bytes.get(zeros..).unwrap_or_default().to_vec())
    }

    /// Big-endian, no zeros before the number.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("00");
        }
        Hex(&self.0).fmt(f)
    }
}

/// What the extension ExtendedKeyUsage allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purposes {
    /// serverAuth, or any.
    pub server: bool,
    /// clientAuth, or any.
    pub client: bool,
}

/// What a certificate says, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    subject: Name,
    issuer: Name,
    identity: Identity,
    serial: Serial,
    version: u32,
    is_ca: bool,
    path_length: Option<u32>,
    may_sign_certificates: bool,
    may_sign_crls: bool,
    may_sign_handshakes: bool,
    purposes: Option<Purposes>,
    key: KeyAlgorithm,
    signature: Signature,
    subject_key_id: Option<Vec<u8>>,
    authority_key_id: Option<Vec<u8>>,
}

impl Certificate {
    /// Reads one certificate in DER, all of it and nothing behind it.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let x509 = parse_x509(der)?;
        let constraints = x509.basic_constraints()?;
        let usage = x509.key_usage()?;
        let purposes = x509.extended_key_usage()?.map(|extension| Purposes {
            server: extension.value.server_auth || extension.value.any,
            client: extension.value.client_auth || extension.value.any,
        });
        let mut certificate = Self {
            subject: Name::of(x509.subject()),
            issuer: Name::of(x509.issuer()),
            identity: Identity::of(&x509, der)?,
            serial: Serial::from_bytes(x509.raw_serial()),
            version: x509.version().0.saturating_add(1),
            is_ca: constraints
                .as_ref()
                .is_some_and(|extension| extension.value.ca),
            path_length: constraints.and_then(|extension| extension.value.path_len_constraint),
            // Without the extension a key may do everything.
            may_sign_certificates: usage
                .as_ref()
                .is_none_or(|extension| extension.value.key_cert_sign()),
            may_sign_crls: usage
                .as_ref()
                .is_none_or(|extension| extension.value.crl_sign()),
            may_sign_handshakes: usage
                .as_ref()
                .is_none_or(|extension| extension.value.digital_signature()),
            purposes,
            key: KeyAlgorithm::of(x509.public_key()),
            signature: Signature::of(&x509.signature_algorithm),
            subject_key_id: None,
            authority_key_id: None,
        };
        for extension in x509.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => {
                    certificate.subject_key_id = Some(id.0.to_vec())
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    certificate.authority_key_id =
                        id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        Ok(certificate)
    }

    /// Whom it is for.
    pub fn subject(&self) -> &Name {
        &self.subject
    }

    /// Who signed it.
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// The names that rules and peers go by.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// SHA-256 of the whole.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    /// Its number within its CA.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The first second at which it is valid (Unix time).
    pub fn not_before(&self) -> i64 {
        self.identity.not_before()
    }

    /// The last second at which it is valid (Unix time).
    pub fn not_after(&self) -> i64 {
        self.identity.not_after()
    }

    /// 3 for everything made in this century.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether it says of itself that it is a CA's.
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// How many CAs may stand below this one.
    pub fn path_length(&self) -> Option<u32> {
        self.path_length
    }

    /// The extended key usages; none means that every purpose is allowed.
    pub fn purposes(&self) -> Option<Purposes> {
        self.purposes
    }

    /// Whether its key may sign a TLS handshake (key usage digitalSignature).
    pub fn may_sign_handshakes(&self) -> bool {
        self.may_sign_handshakes
    }

    /// Whether its key may sign certificates (key usage keyCertSign).
    pub fn may_sign_certificates(&self) -> bool {
        self.may_sign_certificates
    }

    /// Whether its key may sign CRLs (key usage cRLSign).
    pub fn may_sign_crls(&self) -> bool {
        self.may_sign_crls
    }

    /// The kind of its key.
    pub fn key(&self) -> &KeyAlgorithm {
        &self.key
    }

    /// How it is signed.
    pub fn signature(&self) -> Signature {
        self.signature
    }

    /// The identifier of its own key.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.subject_key_id.as_deref()
    }

    /// The identifier of the key that signed it.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// Whether it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        self.subject.der == self.issuer.der
    }

    /// Whether its names and key identifiers say that this CA signed it.
    pub fn is_issued_by(&self, ca: &Self) -> bool {
        leads(&self.issuer, self.authority_key_id(), ca)
    }
}

/// A certificate revocation list, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    issuer: Name,
    this_update: i64,
    next_update: Option<i64>,
    number: Option<Serial>,
    authority_key_id: Option<Vec<u8>>,
    revoked: Vec<Serial>,
}

impl Crl {
    /// Reads one CRL in DER, all of it and nothing behind it.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, crl) = CertificateRevocationList::from_der(der)?;
        if !rest.is_empty() {
            return Err(CertificateError::TrailingBytes);
        }
        let authority_key_id =
            crl.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => {
                        id.key_identifier.as_ref().map(|id| id.0.to_vec())
                    }
                    _ => None,
                });
        Ok(Self {
            issuer: Name::of(crl.issuer()),
            this_update: crl.last_update().timestamp(),
            next_update: crl.next_update().map(|time| time.timestamp()),
            number: crl
                .crl_number()
                .map(|number| Serial::from_bytes(&number.to_bytes_be())),
            authority_key_id,
            revoked: crl
                .iter_revoked_certificates()
                .map(|entry| Serial::from_bytes(entry.raw_serial()))
                .collect(),
        })
    }

    /// Whose list it is.
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// When it was made (Unix time).
    pub fn this_update(&self) -> i64 {
        self.this_update
    }

    /// Until when it counts (Unix time).
    pub fn next_update(&self) -> Option<i64> {
        self.next_update
    }

    /// Its number: of two lists of one CA the one with the higher number is the newer.
    pub fn number(&self) -> Option<&Serial> {
        self.number.as_ref()
    }

    /// The serials of the certificates that it revokes.
    pub fn revoked(&self) -> &[Serial] {
        &self.revoked
    }

    /// Whether this certificate is on the list, given that both are of one CA.
    pub fn revokes(&self, certificate: &Certificate) -> bool {
        self.issuer.der == certificate.issuer.der && self.revoked.contains(&certificate.serial)
    }

    /// Whether its names and key identifiers say that this CA signed it.
    pub fn is_issued_by(&self, ca: &Certificate) -> bool {
        leads(&self.issuer, self.authority_key_id.as_deref(), ca)
    }
}

/// Key identifiers are hints (RFC 5280, section 4.2.1.1): they count where both sides have one.
fn leads(issuer: &Name, authority_key_id: Option<&[u8]>, ca: &Certificate) -> bool {
    let same_key = match (authority_key_id, ca.subject_key_id()) {
        (Some(wanted), Some(own)) => wanted == own,
        _ => true,
    };
    issuer.der == ca.subject.der && same_key
}
