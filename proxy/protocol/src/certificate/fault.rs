//! Faults in words that a DBA can act upon: what is wrong with which certificate, when, and what mends it.

use std::fmt;

use time::OffsetDateTime;

use super::{Certificate, KeyAlgorithm, Signature};
use crate::escape::escape;

/// The certificate that a fault is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Which {
    shown: String,
    is_ca: bool,
    issue_again: String,
    renew: String,
}

impl Which {
    pub(super) fn of(certificate: &Certificate) -> Self {
        let identity = certificate.identity();
        let name = identity
            .common_name()
            .filter(|name| is_plain(name))
            .unwrap_or("NAME");
        let dns = identity.dns().iter().cloned();
        let ip = identity.ip().iter().map(ToString::to_string);
        let names = dns.chain(ip).chain(identity.uri().iter().cloned());
        // What a stranger wrote must not reach a shell through somebody's clipboard.
        let names = names.map(|name| {
            if is_plain(&name) {
                name
            } else {
                "...".to_owned()
            }
        });
        let sans: String = names.map(|name| format!(" --san {name}")).collect();
        Self {
            shown: format!(
                "{} (serial {})",
                certificate.subject(),
                certificate.serial()
            ),
            is_ca: certificate.is_ca(),
            issue_again: format!("certs-tool issue {name}{} --force", shortened(sans)),
            renew: format!("certs-tool renew {name}"),
        }
    }

    fn replace(&self) -> String {
        if self.is_ca {
            "certs-tool ca init --dir NEW makes a new CA; then issue every node's certificate again"
                .to_owned()
        } else {
            self.issue_again.clone()
        }
    }

    fn renew(&self) -> String {
        if self.is_ca {
            "certs-tool ca rotate".to_owned()
        } else {
            self.renew.clone()
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// A line that nobody can read helps nobody: of very many names none is given.
fn shortened(sans: String) -> String {
    if sans.len() > 400 {
        " --san ...".to_owned()
    } else {
        sans
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    text.len() <= 100
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(plain)
}

/// A moment and the time at which it is looked at, both in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub(super) at: i64,
    pub(super) now: i64,
}

impl Moment {
    /// A time in Unix seconds, seen from another.
    pub fn new(at: i64, now: i64) -> Self {
        Self { at, now }
    }
}

/// `2026-11-24 10:00:00 UTC, 3 days ago`
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match OffsetDateTime::from_unix_timestamp(self.at) {
            Ok(at) => {
                let (hour, minute, second) = at.to_hms();
                write!(f, "{} {hour:02}:{minute:02}:{second:02} UTC, ", at.date())?;
            }
            Err(_) => write!(f, "second {} of 1970, ", self.at)?,
        }
        let distance = self.at.saturating_sub(self.now);
        let (count, unit) = match distance.unsigned_abs() {
            seconds @ 0..120 => (seconds, "seconds"),
            seconds @ 120..7200 => (seconds / 60, "minutes"),
            seconds @ 7200..172_800 => (seconds / 3600, "hours"),
            seconds => (seconds / 86_400, "days"),
        };
        if distance < 0 {
            write!(f, "{count} {unit} ago")
        } else {
            write!(f, "in {count} {unit}")
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its time is over.
    Expired(Which, Moment),
    /// Its time has not come.
    NotYetValid(Which, Moment),
    /// Less than a third of its life is left.
    ExpiresSoon(Which, Moment),
    /// X.509 version 1 or 2, which TLS libraries refuse.
    OldVersion(Which, u32),
    /// Signed by itself instead of a CA.
    SelfSigned(Which),
    /// A CA's certificate where a node's is needed.
    CaAsNode(Which),
    /// Extended key usage without serverAuth.
    NotForServers(Which),
    /// Extended key usage without clientAuth.
    NotForClients(Which),
    /// Key usage without digitalSignature.
    NotForHandshakes(Which),
    /// No subject alternative name; common names count no more.
    NoNames(Which),
    /// A key that TLS 1.3 or our library does not take.
    UnusableKey(Which, KeyAlgorithm),
    /// A signature that TLS 1.3 or our library does not take.
    UnusableSignature(Which, Signature),
    /// Ed25519, for which PostgreSQL's channel binding knows no hash.
    Ed25519(Which),
    /// An entry of the CA bundle that is no CA.
    NotACa(Which),
    /// A CA whose key usage forbids it to sign certificates.
    CaMayNotSign(Which),
    /// A CA bundle in which no CA is.
    NoCa,
    /// A certificate whose issuer is not in the CA bundle.
    NoPath {
        /// The node's certificate.
        leaf: Which,
        /// The issuer that is missing, as text.
        missing: String,
        /// Whether a CA of that name is there, with another key.
        namesake: bool,
    },
    /// A CRL whose time is over; whether that ends connections is configured.
    CrlExpired {
        /// Whose list, as text.
        issuer: String,
        /// When it ended.
        next_update: Moment,
    },
    /// A CRL of which less than a third of its life is left.
    CrlExpiresSoon {
        /// Whose list, as text.
        issuer: String,
        /// When it ends.
        next_update: Moment,
    },
    /// A CRL that no CA of the bundle signed.
    ForeignCrl {
        /// Whose list, as text.
        issuer: String,
        /// Whether a CA of that name is there, with another key.
        namesake: bool,
    },
    /// A CA of the bundle for which there is no CRL.
    NoCrl(Which),
    /// A CA whose key usage forbids it to sign CRLs.
    CaMayNotSignCrls(Which),
    /// A CA of the same name as another one, with another key, where there are CRLs.
    SameName(Which),
}

impl Fault {
    /// The name of the fault, the same in every version: `T01`.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Expired(..) => "T01",
            Self::NotYetValid(..) => "T02",
            Self::ExpiresSoon(..) => "T03",
            Self::OldVersion(..) => "T04",
            Self::SelfSigned(_) => "T05",
            Self::CaAsNode(_) => "T06",
            Self::NotForServers(_) => "T07",
            Self::NotForClients(_) => "T08",
            Self::NotForHandshakes(_) => "T09",
            Self::NoNames(_) => "T10",
            Self::UnusableKey(..) => "T11",
            Self::UnusableSignature(..) => "T12",
            Self::Ed25519(_) => "T13",
            Self::NotACa(_) => "T14",
            Self::CaMayNotSign(_) => "T15",
            Self::NoCa => "T16",
            Self::NoPath { .. } => "T17",
            Self::CrlExpired { .. } => "T18",
            Self::CrlExpiresSoon { .. } => "T19",
            Self::ForeignCrl { .. } => "T20",
            Self::NoCrl(_) => "T21",
            Self::CaMayNotSignCrls(_) => "T22",
            Self::SameName(_) => "T27",
        }
    }

    /// Whether it comes about by the passing of time alone, with no file changed.
    pub fn is_matter_of_time(&self) -> bool {
        matches!(
            self,
            Self::Expired(..)
                | Self::NotYetValid(..)
                | Self::ExpiresSoon(..)
                | Self::CrlExpired { .. }
                | Self::CrlExpiresSoon { .. }
        )
    }

    /// Whether connections work all the same.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::ExpiresSoon(..)
            | Self::Ed25519(_)
            | Self::CrlExpired { .. }
            | Self::CrlExpiresSoon { .. }
            | Self::ForeignCrl { .. }
            | Self::SameName(_) => true,
            Self::Expired(..)
            | Self::NotYetValid(..)
            | Self::OldVersion(..)
            | Self::SelfSigned(_)
            | Self::CaAsNode(_)
            | Self::NotForServers(_)
            | Self::NotForClients(_)
            | Self::NotForHandshakes(_)
            | Self::NoNames(_)
            | Self::UnusableKey(..)
            | Self::UnusableSignature(..)
            | Self::NotACa(_)
            | Self::CaMayNotSign(_)
            | Self::NoCa
            | Self::NoPath { .. }
            | Self::NoCrl(_)
            | Self::CaMayNotSignCrls(_) => false,
        }
    }

    /// What to do about it: the command that mends it, where one does.
    pub fn way_out(&self) -> String {
        match self {
            Self::NotYetValid(which, _) => format!("check the clock of this host; if it is right: {}", which.replace()),
            Self::Expired(which, _) | Self::ExpiresSoon(which, _) => {
                format!("on the CA's host: {}", which.renew())
            }
            Self::OldVersion(which, _)
            | Self::UnusableKey(which, _)
            | Self::UnusableSignature(which, _) => which.replace(),
            Self::SelfSigned(which) => format!("certs-tool ca init, then {}", which.issue_again),
            Self::CaAsNode(_) => "certs-tool issue NAME makes a node's certificate; ca.crt belongs to `ca` alone".to_owned(),
            Self::NotForServers(which)
            | Self::NotForClients(which)
            | Self::NotForHandshakes(which)
            | Self::NoNames(which) => which.issue_again.clone(),
            Self::Ed25519(_) => "certs-tool ca init makes a CA with P-256".to_owned(),
            Self::NotACa(_) => "take it out of the CA file; nodes' certificates belong to `cert`".to_owned(),
            Self::CaMayNotSign(_) | Self::CaMayNotSignCrls(_) => {
                "certs-tool ca init --dir NEW makes a CA that may; then issue every node's certificate again".to_owned()
            }
            Self::NoCa => "put the ca.crt that `certs-tool ca init` made in its place".to_owned(),
            Self::NoPath { namesake: true, leaf, .. } => {
                format!("copy the ca.crt of the CA that signs now; or have it sign again: {}", leaf.issue_again)
            }
            Self::NoPath { leaf, .. } => {
                format!("add that CA to the CA file, or put its certificate behind the node's; or {}", leaf.issue_again)
            }
            Self::CrlExpired { .. } | Self::CrlExpiresSoon { .. } => {
                "certs-tool crl signs it anew; then copy ca.crl to every node".to_owned()
            }
            Self::SameName(_) => "certs-tool ca rotate start, on one of their hosts, makes a CA of another name".to_owned(),
            Self::ForeignCrl { .. } | Self::NoCrl(_) => {
                "copy ca.crl from the directory of the CA whose ca.crt is used".to_owned()
            }
        }
    }
}

/// What is wrong, with which certificate, and when.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other_key = |namesake: &bool| {
            if *namesake {
                " (the one there has the same name and another key)"
            } else {
                ""
            }
        };
        match self {
            Self::Expired(which, moment) => {
                write!(f, "the certificate of {which} expired on {moment}")
            }
            Self::NotYetValid(which, moment) => {
                write!(f, "the certificate of {which} is not valid before {moment}")
            }
            Self::ExpiresSoon(which, moment) => {
                write!(f, "the certificate of {which} expires on {moment}")
            }
            Self::OldVersion(which, version) => {
                write!(
                    f,
                    "the certificate of {which} is X.509 version {version}; TLS wants version 3"
                )
            }
            Self::SelfSigned(which) => write!(
                f,
                "the certificate of {which} is signed by itself, not by a CA"
            ),
            Self::CaAsNode(which) => {
                write!(f, "the certificate of {which} is a CA's, not a node's")
            }
            Self::NotForServers(which) => {
                write!(
                    f,
                    "the certificate of {which} is not for TLS servers (extended key usage without serverAuth)"
                )
            }
            Self::NotForClients(which) => {
                write!(
                    f,
                    "the certificate of {which} is not for TLS clients (extended key usage without clientAuth)"
                )
            }
            Self::NotForHandshakes(which) => {
                write!(
                    f,
                    "the key of {which} may not sign TLS handshakes (key usage without digitalSignature)"
                )
            }
            Self::NoNames(which) => write!(
                f,
                "the certificate of {which} has no subject alternative name, and TLS looks at no common name"
            ),
            Self::UnusableKey(which, key) => {
                write!(
                    f,
                    "the certificate of {which} holds a key that TLS 1.3 does not take here ({})",
                    escape(key.to_string())
                )
            }
            Self::UnusableSignature(which, signature) => {
                write!(
                    f,
                    "the certificate of {which} is signed with {signature}, which TLS 1.3 does not take"
                )
            }
            Self::Ed25519(which) => write!(
                f,
                "the certificate of {which} brings in Ed25519: where PostgreSQL's own TLS shows it, libpq cannot log in by SCRAM"
            ),
            Self::NotACa(which) => write!(
                f,
                "the CA file holds the certificate of {which}, which is no CA"
            ),
            Self::CaMayNotSign(which) => {
                write!(
                    f,
                    "the CA {which} may not sign certificates (key usage without keyCertSign)"
                )
            }
            Self::NoCa => f.write_str("there is no CA in the CA file"),
            Self::NoPath {
                leaf,
                missing,
                namesake,
            } => write!(
                f,
                "the certificate of {leaf} does not lead to the CA file: its issuer {missing} is not in it{}",
                other_key(namesake)
            ),
            Self::CrlExpired {
                issuer,
                next_update,
            } => write!(f, "the CRL of {issuer} expired on {next_update}"),
            Self::CrlExpiresSoon {
                issuer,
                next_update,
            } => write!(f, "the CRL of {issuer} expires on {next_update}"),
            Self::ForeignCrl { issuer, namesake } => {
                write!(
                    f,
                    "the CRL of {issuer} belongs to no CA of the CA file{}",
                    other_key(namesake)
                )
            }
            Self::NoCrl(which) => write!(
                f,
                "there is no CRL of the CA {which}, so nobody can tell what it revoked"
            ),
            Self::SameName(which) => write!(
                f,
                "another CA in the CA file is called {which}, too: a CRL is found by that name alone, so that certificates of one are judged by the list of the other, and refused"
            ),
            Self::CaMayNotSignCrls(which) => write!(
                f,
                "the CA {which} may not sign CRLs (key usage without cRLSign)"
            ),
        }
    }
}
