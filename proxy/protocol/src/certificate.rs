//! What is wrong with a certificate for our use, at a given time.

use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer;

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

impl From<x509_parser::nom::Err<X509Error>> for CertificateError {
    fn from(error: x509_parser::nom::Err<X509Error>) -> Self {
        match error {
            x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error) => {
                error.into()
            }
            x509_parser::nom::Err::Incomplete(_) => Self::NotDer("it ends too early".to_owned()),
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
