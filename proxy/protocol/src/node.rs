//! The node channel's language: one request and one answer, each a length and a JSON object behind it.
//!
//! JSON by serde, not an encoding of our own: a newer node may say more than an older one knows, which is passed over,
//! and what is carried is text already (PEM). The length is judged before a byte of the body is awaited, and whoever
//! has shown no certificate gets room for nothing but an enrolment. The ALPN name carries the version.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::escape::escape;

/// The longest body from a peer that has shown no certificate, in bytes.
pub const MAX_FROM_STRANGER: usize = 16 * 1024;
/// The longest body of all: a CRL of some ten thousand entries.
pub const MAX_FROM_NODE: usize = 1024 * 1024;
/// The length before a body, big-endian.
pub const HEAD: usize = 4;

/// Why a body is not read, or not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeError {
    /// No body has this length.
    Length {
        /// What stands in the head.
        length: usize,
        /// What it may be here.
        most: usize,
    },
    /// Not an object that this version knows; what the parser says.
    NotUnderstood(String),
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { length, most } => {
                write!(f, "a body of {length} bytes, where 1 to {most} are taken")
            }
            Self::NotUnderstood(why) => write!(f, "not understood: {}", escape(why)),
        }
    }
}

impl std::error::Error for NodeError {}

/// What a node asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// To become a node, by an invitation. The only one without a client certificate.
    Enrol(Enrol),
    /// A certificate for a new key, with the names that it has.
    Renew(Renew),
    /// The newest CRLs of both sides.
    Crl(Crls),
    /// What the other side sees.
    Probe(Probe),
}

/// A request for a certificate, bound to the invitation's secret and to this TLS session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// Which invitation, in hexadecimal. It tells nothing of the secret.
    pub invitation: String,
    /// Proof of the secret over the session's exporter and the request, in hexadecimal.
    pub proof: String,
    /// The certificate request, as PEM. It is parsed only when the proof was right.
    pub request: String,
}

/// A request for a new certificate, or, with both parts empty, for what is new of the CAs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Renew {
    /// The certificate request, as PEM; its key is new, its names do not count.
    pub request: String,
    /// The request's signature by the key of the certificate that is shown, in hexadecimal: whoever signs need not
    /// believe whoever carries.
    pub signature: String,
}

/// Certificate revocation lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crls {
    /// Each as PEM.
    pub crls: Vec<String>,
    /// For so many seconds the answer may wait for a newer one; 0: it is wanted at once. Older nodes never wait.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(wait: &u32) -> bool {
    *wait == 0
}

/// The question what the other side sees; it has nothing to say itself yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// The asking program's version.
    pub version: String,
}

/// What the asked node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// A certificate, by invitation.
    Enrolled(Enrolled),
    /// A certificate, by renewal; without one, what is new of the CAs.
    Renewed(Certificates),
    /// A request for renewal waits for the CA; ask again later.
    Waiting(Waiting),
    /// The newest CRLs that the asked side has.
    Crl(Crls),
    /// What it sees.
    Probed(Box<Probed>),
    /// It does not do that.
    Refused(Refused),
}

/// What was granted, and the proof that who granted it knows the invitation's secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// A [`Grant`] as JSON; it is parsed only when the proof was right.
    pub grant: String,
    /// Proof of the secret over the session's exporter and the grant, in hexadecimal.
    pub proof: String,
}

/// What a new node gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grant {
    /// Its own certificate, the CAs and their CRLs.
    #[serde(flatten)]
    pub certificates: Certificates,
    /// Whom its own rules should admit, as `cn:db1`: the node that invited it, and others.
    pub members: Vec<String>,
    /// As which role, if only as one.
    pub role: Option<String>,
    /// Whether they come with ordinary connections to this database, too, as pg_rewind does.
    pub ordinary: Option<String>,
}

/// Certificates and what they are judged by, as PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificates {
    /// The node's certificate, leaf first.
    pub certificate: String,
    /// The CAs.
    pub ca: String,
    /// Their CRLs.
    pub crl: String,
    /// The SHA-256 of the CA that signs now, in hexadecimal.
    pub signing: String,
    /// Why one who trusts a CA may trust the one that follows it.
    pub vouchers: Vec<Word>,
    /// Which CAs are to be trusted no longer.
    pub dropped: Vec<Word>,
    /// Which nodes there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
}

/// A CA's word which nodes it has, so that those that joined earlier can let in those that joined later, not for the
/// sake of whoever brings it. It ends soon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nodes {
    /// Each of them.
    pub nodes: Vec<Node>,
    /// The SHA-256 of the CA that says so, in hexadecimal.
    pub by: String,
    /// The last second at which it counts (Unix time).
    pub until: i64,
    /// The signature of the CA, in hexadecimal.
    pub signature: String,
}

/// A node of the CA, and what the CA's host lets it do beside physical replication: no other node lets it do more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// The common name in its certificate.
    pub name: String,
    /// What else rules may know it by, as `dns:standby1.example.com`.
    pub identities: Vec<String>,
    /// Logical replication.
    pub logical: bool,
    /// Ordinary sessions.
    pub ordinary: bool,
}

/// A CA's word on another CA: that this one follows it, or that it is to be trusted no longer; which of the two, the signature
/// tells. So a CA comes and goes for the sake of one that is trusted, not for that of whoever brings it, nor because it
/// was not spoken of. It is no certificate, of no use in a chain, and ends soon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The SHA-256 of the certificate of the CA that it is about, in hexadecimal.
    pub ca: String,
    /// The same of the CA that says so.
    pub by: String,
    /// The last second at which it counts (Unix time).
    pub until: i64,
    /// The signature of the latter, in hexadecimal.
    pub signature: String,
}

/// What is known of a request that nobody has signed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// When somebody signed there last (Unix time); 0: never since that daemon was started.
    pub signed: i64,
}

/// What a node sees of the one that asks, and of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probed {
    /// The asked program's version.
    pub version: String,
    /// Its clock, in milliseconds since 1970.
    pub now_ms: i64,
    /// Who the asking node is, by its certificate, as `dns:standby1.example.com`.
    pub identity: String,
    /// The SHA-256 of that certificate.
    pub fingerprint: String,
    /// The address that it comes from.
    pub address: String,
    /// Whether a rule admits it for replication.
    pub admitted: bool,
    /// Whether the PostgreSQL behind takes connections; nothing is sent to it.
    pub postgres: Reached,
    /// The last second of the asked node's own certificate (Unix time).
    pub not_after: i64,
    /// What deserves a look on the asked node, what time makes worse first; told to nodes that a rule admits.
    pub warnings: Vec<Notice>,
}

/// Something that works and deserves a look, for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// Stable id for scripts and the manual.
    pub id: String,
    /// What it is.
    pub what: String,
    /// What to do.
    pub way_out: String,
}

/// Whether something could be connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reached {
    /// Where it is.
    pub address: String,
    /// Whether a connection was taken.
    pub reached: bool,
    /// If not, why.
    pub why: String,
}

/// Why something is not done, for the person who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// Stable id for scripts and the manual.
    pub id: String,
    /// What is refused.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub way_out: String,
}

/// The length of the body behind `head`, if it may be `most` bytes long.
pub fn parse_head(head: [u8; HEAD], most: usize) -> Result<usize, NodeError> {
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if (1..=most).contains(&length) {
        Ok(length)
    } else {
        Err(NodeError::Length { length, most })
    }
}

impl Request {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, NodeError> {
        parse(body)
    }

    /// Head and body.
    pub fn encode(&self) -> Result<Vec<u8>, NodeError> {
        encode(self)
    }

    /// Its name, for logs.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Enrol(_) => "enrol",
            Self::Renew(_) => "renew",
            Self::Crl(_) => "crl",
            Self::Probe(_) => "probe",
        }
    }
}

impl Answer {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, NodeError> {
        parse(body)
    }

    /// Head and body.
    pub fn encode(&self) -> Result<Vec<u8>, NodeError> {
        encode(self)
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, NodeError> {
    serde_json::from_slice(body).map_err(|error| NodeError::NotUnderstood(error.to_string()))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, NodeError> {
    let body =
        serde_json::to_vec(value).map_err(|error| NodeError::NotUnderstood(error.to_string()))?;
    let too_long = || NodeError::Length {
        length: body.len(),
        most: MAX_FROM_NODE,
    };
    if body.len() > MAX_FROM_NODE {
        return Err(too_long());
    }
    let length = u32::try_from(body.len()).map_err(|_| too_long())?;
    Ok([&length.to_be_bytes(), body.as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_node_says_more_is_passed_over() {
        let request = Request::parse(br#"{"verb":"crl","crls":[],"later":{"x":[1]}}"#).unwrap();
        assert_eq!(request, Request::Crl(Crls::default()));
        let answer = Answer::parse(br#"{"answer":"probed","admitted":true,"later":1}"#).unwrap();
        assert!(matches!(answer, Answer::Probed(probed) if probed.admitted));
    }

    #[test]
    fn an_unknown_verb_is_not_understood() {
        let error = Request::parse(br#"{"verb":"shutdown"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown variant"), "{error}");
    }

    #[test]
    fn a_length_is_judged_before_its_body_is_awaited() {
        assert_eq!(parse_head([0, 0, 0x40, 0], MAX_FROM_STRANGER), Ok(16_384));
        for head in [[0, 0, 0, 0], [0, 0, 0x40, 1], [0xff; 4]] {
            assert!(parse_head(head, MAX_FROM_STRANGER).is_err(), "{head:?}");
        }
    }
}
