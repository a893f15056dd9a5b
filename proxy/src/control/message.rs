//! What commands and daemon say to each other on the control socket: one JSON object a line, versioned and bounded.
//! A secret is never among it: an enrolment is judged by the command, from the proof and what it is bound to.

use protocol::node::{Answer, Certificates, Enrol, Refused};
use serde::{Deserialize, Serialize};

/// Of this socket's language.
pub(crate) const VERSION: u32 = 1;
/// The longest line, in bytes: a grant with the largest CRL that the node channel carries.
pub(crate) const LONGEST_LINE: usize = 2 * protocol::node::MAX_FROM_NODE;

/// A command's first line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) version: u32,
    #[serde(flatten)]
    pub(crate) ask: Ask,
}

/// What a command wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Read every file again, and say how it went.
    Reload,
    /// Wait for who comes with this invitation, for as long as the connection stays open.
    Invite(Invitation),
    /// Which invitations wait.
    Invitations,
    /// The requests for renewal that wait, one after the other; each wants a [`Ruling`].
    Renewals,
    /// This is what every node should know of the CAs: the certificate in it is empty.
    News(Box<Certificates>),
    /// Let the invitations of this name wait no longer.
    Withdraw { name: String },
    /// Take these CRLs (PEM) as if another node had sent them, and read every file again.
    Crl { crls: Vec<String> },
    /// How far the CRLs of now have got, and what this node still does.
    Spread { name: String },
}

/// How far the CRLs of now have got.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Live sessions of the node that was asked for.
    pub(crate) sessions: usize,
    /// The SHA-256 of each CRL that handshakes go by here.
    pub(crate) crls: Vec<String>,
    /// The nodes that were heard of since the daemon's start, and whether each has shown all of these CRLs.
    pub(crate) nodes: Vec<(String, bool)>,
}

/// An invitation as the daemon knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// Made from the secret, and tells nothing of it.
    pub(crate) id: String,
    /// The node that is invited.
    pub(crate) name: String,
    /// The last second (Unix time).
    pub(crate) expires: i64,
}

/// What the daemon says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// It is not done.
    Refused { problems: Vec<Refused> },
    /// The invitation waits.
    Waiting,
    /// The invitations that wait.
    Invitations { invitations: Vec<Invitation> },
    /// Somebody came with the invitation; a [`Verdict`] is wanted.
    Enrol {
        enrol: Enrol,
        /// The TLS session's exporter, in hexadecimal.
        binding: String,
        address: String,
    },
    /// Whether the last verdict's answer was sent.
    Sent { sent: bool },
    /// The invitation's time is over.
    Late,
    /// A node asks for its next certificate; a [`Ruling`] is wanted.
    Renewal(Renewal),
    /// The invitation was withdrawn by another command.
    Withdrawn,
    /// So many invitations were withdrawn.
    WithdrawnMany { invitations: usize },
    /// How far the CRLs have got.
    Spread(Spread),
}

/// A request for renewal as the daemon holds it. Whether it is genuine, its signature tells to whoever signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Renewal {
    /// The certificate that was shown, in hexadecimal DER.
    pub(crate) certificate: String,
    /// The certificate request, as PEM.
    pub(crate) request: String,
    /// Its signature by the key of that certificate, in hexadecimal.
    pub(crate) signature: String,
}

/// The command's word on a renewal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ruling", rename_all = "snake_case")]
pub(crate) enum Ruling {
    /// The certificate, as PEM.
    Signed { certificate: String },
    /// Why there is none.
    Refused { refused: Refused },
}

/// The command's word on an enrolment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) answer: Answer,
    /// Whether the invitation is at its end with this, and how.
    pub(crate) over: Option<Over>,
}

/// How an invitation ends; later comers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Over {
    /// A node has joined with it.
    Used,
    /// Nobody came in time.
    Late,
    /// Too many came with a wrong proof.
    Void,
    /// The command was ended.
    TakenBack,
}
