//! Every way a session can end, and what each means: how loud it is logged, under which label it is counted,
//! whether as a refusal, and what the frontend is told if it can still be told. A new way to end does not compile until
//! all of these are decided.

use std::fmt;
use std::io;
use std::time::Duration;

use protocol::error_response::{Refusal, SqlState};
use protocol::negotiation::CloseReason;
use protocol::startup::StartupError;
use tracing::Level;

use crate::node::Outcome;
use crate::relay::{Ended, Side};

/// A step of a connection's way up to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Startup,
    Tls,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Closed before a byte was sent: a health check, a port scan.
    Silent,
    /// No rule admits this address; closed before any handshake.
    AddressRefused,
    /// Gave way to a newer connection: too many handshakes under way.
    Evicted {
        limit: usize,
    },
    NotPostgres {
        first_byte: u8,
    },
    /// Closed in the middle of a step.
    Left {
        stage: Stage,
        error: io::Error,
    },
    TimedOut {
        stage: Stage,
        after: Duration,
    },
    Malformed(StartupError),
    Unspoken(CloseReason),
    /// The TLS handshake with the downstream failed; it has had its alert.
    Tls(Box<Refusal>),
    /// Refused by the negotiation, the policy, or a limit.
    Refused(Box<Refusal>),
    /// The upstream could not be reached, or said nothing.
    Unreachable(Box<Refusal>),
    /// A cancel request was forwarded.
    Cancelled,
    /// A cancel request whose key belongs to no session of the same tunnel and identity.
    CancelUnknown,
    /// It was of the node channel, not of PostgreSQL.
    Node(Outcome),
    /// The relay ran.
    Relayed(Ended),
    /// It ran until new CAs, CRLs or rules, or the end of a certificate, admitted it no longer.
    Dismissed {
        reason: Box<Refusal>,
        /// Whether its frontend could be told; otherwise it was reset.
        told: bool,
    },
}

/// What an [`End`] means.
pub(crate) struct Meaning {
    pub(crate) level: Level,
    /// For metrics and scripts; never text from a peer.
    pub(crate) label: &'static str,
    /// Whether a flood of these is summed up instead of printed line by line.
    pub(crate) may_flood: bool,
    /// Whether it was not admitted, by rule, limit or protocol.
    pub(crate) is_refusal: bool,
}

impl Meaning {
    /// Whether somebody did not get what they came for. Health checks, questions of other nodes, drains and the like come
    /// all day and are none.
    pub(crate) fn is_failure(&self) -> bool {
        self.level <= Level::WARN
    }
}

impl End {
    pub(crate) fn meaning(&self) -> Meaning {
        let (level, label, may_flood) = match self {
            Self::Silent => (Level::DEBUG, "silent", true),
            Self::AddressRefused => (Level::WARN, "address_refused", true),
            Self::Evicted { .. } => (Level::WARN, "evicted", true),
            Self::NotPostgres { .. } => (Level::WARN, "not_postgres", true),
            Self::Left { .. } => (Level::INFO, "left", true),
            Self::TimedOut { .. } => (Level::WARN, "timed_out", true),
            Self::Malformed(_) => (Level::WARN, "malformed", true),
            Self::Unspoken(_) => (Level::WARN, "unspoken", true),
            Self::Tls(_) => (Level::WARN, "tls", true),
            Self::Refused(_) => (Level::WARN, "refused", true),
            Self::Unreachable(_) => (Level::WARN, "unreachable", false),
            Self::Cancelled => (Level::INFO, "cancelled", true),
            Self::CancelUnknown => (Level::WARN, "cancel_unknown", true),
            Self::Node(outcome) => (outcome.level, "node", true),
            Self::Relayed(Ended::Finished) => (Level::INFO, "finished", false),
            Self::Relayed(Ended::Stopped) => (Level::INFO, "stopped", false),
            Self::Relayed(Ended::StoppedMidMessage) => (Level::WARN, "stopped_mid_message", false),
            Self::Relayed(Ended::Aborted { .. }) => (Level::WARN, "aborted", false),
            Self::Relayed(Ended::PeerDead { .. }) => (Level::WARN, "peer_dead", false),
            Self::Dismissed { .. } => (Level::WARN, "dismissed", false),
        };
        let is_refusal = match self {
            Self::AddressRefused
            | Self::Evicted { .. }
            | Self::NotPostgres { .. }
            | Self::TimedOut { .. }
            | Self::Malformed(_)
            | Self::Unspoken(_)
            | Self::Tls(_)
            | Self::Refused(_)
            | Self::CancelUnknown => true,
            Self::Node(outcome) => outcome.level <= Level::WARN,
            Self::Silent
            | Self::Left { .. }
            | Self::Unreachable(_)
            | Self::Cancelled
            | Self::Relayed(_)
            | Self::Dismissed { .. } => false,
        };
        Meaning {
            level,
            label,
            may_flood,
            is_refusal,
        }
    }

    /// What a flood is told apart by: a rare cause must not drown among frequent ones.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Tls(refusal) | Self::Refused(refusal) | Self::Unreachable(refusal) => refusal.id,
            Self::Malformed(error) => error.id(),
            Self::Unspoken(reason) => reason.id(),
            Self::Node(outcome) => outcome.cause,
            other => other.meaning().label,
        }
    }

    /// What the frontend is told; None where it is told nothing, as PostgreSQL would, or can no longer be told.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) | Self::Unreachable(refusal) => Some((**refusal).clone()),
            Self::Malformed(error) if !error.is_silent() => Some(Refusal::from(error)),
            Self::TimedOut {
                stage: Stage::Startup,
                after,
            } => Some(Refusal::new(
                "W20",
                SqlState::PROTOCOL_VIOLATION,
                format!("no startup packet within {} s", after.as_secs()),
            )),
            Self::TimedOut { .. }
            | Self::Malformed(_)
            | Self::Silent
            | Self::AddressRefused
            | Self::Evicted { .. }
            | Self::NotPostgres { .. }
            | Self::Left { .. }
            | Self::Unspoken(_)
            | Self::Tls(_)
            | Self::Cancelled
            | Self::CancelUnknown
            | Self::Node(_)
            | Self::Relayed(_)
            | Self::Dismissed { .. } => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("closed before a byte was sent"),
            Self::AddressRefused => f.write_str("no allow rule admits this address (`from`) [P02]"),
            Self::Evicted { limit } => write!(
                f,
                "gave way to a newer connection: more than {limit} handshakes under way (limits.handshakes) [L02]"
            ),
            Self::NotPostgres { first_byte } => write!(
                f,
                "not PostgreSQL's protocol: the first byte was 0x{first_byte:02x} [W17]"
            ),
            Self::Left { stage, error } => write!(f, "the peer left during {stage}: {error}"),
            Self::TimedOut { stage, after } => {
                write!(f, "{stage} took longer than {} s [W20]", after.as_secs())
            }
            Self::Malformed(error) => write!(f, "malformed startup: {error} [{}]", error.id()),
            Self::Unspoken(reason) => write!(f, "{reason} [{}]", reason.id()),
            Self::Tls(refusal) | Self::Refused(refusal) | Self::Unreachable(refusal) => {
                in_full(refusal, f)
            }
            Self::Dismissed { reason, told } => {
                in_full(reason, f)?;
                f.write_str(if *told {
                    ""
                } else {
                    "; no message boundary came in time, so it was reset"
                })
            }
            Self::Cancelled => f.write_str("cancel request forwarded"),
            Self::CancelUnknown => f.write_str(
                "cancel request with a key of no live session of this tunnel and identity [W15]",
            ),
            Self::Node(outcome) => f.write_str(&outcome.text),
            Self::Relayed(ended) => match ended {
                Ended::Finished => f.write_str("closed in order"),
                Ended::Stopped => f.write_str("ended from outside at a message boundary"),
                Ended::StoppedMidMessage => {
                    f.write_str("ended from outside in the middle of a message, as a reset")
                }
                Ended::Aborted { side, error } => {
                    write!(
                        f,
                        "the {side} broke off: {}; passed on as a reset",
                        broken_off(error)
                    )
                }
                Ended::PeerDead { side } => {
                    write!(
                        f,
                        "the {side} acknowledges nothing any more (timeouts.dead_peer) [N20]"
                    )
                }
            },
        }
    }
}

fn in_full(refusal: &Refusal, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{} [{}]", refusal.message, refusal.id)?;
    if let Some(detail) = &refusal.detail {
        write!(f, "; {detail}")?;
    }
    if let Some(hint) = &refusal.hint {
        write!(f, "; {hint}")?;
    }
    Ok(())
}

/// rustls' own words for a cut stream speak of its API.
fn broken_off(error: &io::Error) -> String {
    if let Some(alert) = crate::tls::alert_from_peer(error) {
        return format!("TLS alert {alert:?}");
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "TLS ended without close_notify".to_owned(),
        _ => error.to_string(),
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "the startup",
            Self::Tls => "the TLS handshake",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        })
    }
}
