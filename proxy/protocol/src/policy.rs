//! Who may do what: an identity (or an OS user) and a request in, a [`Permit`] or a [`Refusal`] out.
//!
//! Only this room makes a Permit, and dialling PostgreSQL takes one. A refusal is read by a DBA in the standby's log,
//! so it says what was refused for whom, which field of which rule said no, and what to change in which file. It never
//! tells what a rule would admit: whoever asks may guess wrong, and is not helped.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error_response::{Refusal, SqlState};
use crate::escape::escape;
use crate::identity::{Identity, IdentityPattern};
use crate::startup::{MAX_NAME, Replication, StartupMessage};

/// Proof that a connection may go on to PostgreSQL.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    rule: Option<usize>,
}

impl Permit {
    /// Which rule gave it, counted from 0 as in the file; `None` if it took none.
    #[must_use]
    pub const fn rule(&self) -> Option<usize> {
        self.rule
    }
}

/// One `[[server.allow]]`: it admits what matches in every field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whose certificate.
    pub identity: IdentityPattern,
    /// From which networks; `None`: from anywhere.
    pub from: Option<Vec<IpNet>>,
    /// Whether physical replication is admitted.
    pub physical: bool,
    /// Whether logical replication is admitted.
    pub logical: bool,
    /// Whether ordinary sessions are admitted.
    pub ordinary: bool,
    /// As which roles.
    pub users: Names,
    /// To which databases; not looked at for physical replication, which has none.
    pub databases: Names,
    /// Under which application_name. In a logical session it is advisory, since SET can change it.
    pub application_names: Names,
}

/// Names that a rule admits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// All of them, and none at all.
    Any,
    /// These, letter by letter.
    Only(Vec<String>),
}

impl Names {
    /// What was written: nothing, or a list with `"*"` in it, is any.
    #[must_use]
    pub fn new(written: Option<Vec<String>>) -> Self {
        match written {
            Some(names) if !names.iter().any(|name| name == "*") => Self::Only(names),
            _ => Self::Any,
        }
    }

    fn admit(&self, name: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.iter().any(|known| known.as_bytes() == name),
        }
    }

    /// Each one counts, since which of them lasts is PostgreSQL's business; and none is not any name.
    fn admit_all(&self, names: &[Vec<u8>]) -> bool {
        match self {
            Self::Any => true,
            Self::Only(_) => !names.is_empty() && names.iter().all(|name| self.admit(name)),
        }
    }

    /// Why no session can have one of these names.
    fn dead(&self, field: &str) -> Option<String> {
        let Self::Only(names) = self else { return None };
        if names.is_empty() {
            return Some(format!("{field} is empty, which admits nobody"));
        }
        let possible = |name: &String| name.len() <= MAX_NAME && !name.contains('\0');
        (!names.iter().any(possible)).then(|| {
            format!("no name in {field} can occur: PostgreSQL has none over {MAX_NAME} bytes")
        })
    }
}

/// What a tunnel's rules say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `None`: whoever has a certificate of the CA may replicate.
    rules: Option<Vec<Rule>>,
}

impl Policy {
    /// Every rule, in its order; none where any certificate is admitted.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        self.rules.as_deref().unwrap_or_default()
    }

    /// These rules, of which one must match; without any rule nobody is admitted.
    #[must_use]
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self { rules: Some(rules) }
    }

    /// Any certificate of the CA, from anywhere, for replication only.
    #[must_use]
    pub const fn any_certificate() -> Self {
        Self { rules: None }
    }

    /// Whether there is no rule, so that any certificate of the CA is admitted for replication.
    #[must_use]
    pub const fn admits_any_certificate(&self) -> bool {
        self.rules.is_none()
    }

    /// Whether some rule could admit a connection from this address: asked before any work is done for it.
    #[must_use]
    pub fn address_may_connect(&self, address: IpAddr) -> bool {
        self.rules
            .as_ref()
            .is_none_or(|rules| rules.iter().any(|rule| rule.admits_address(Some(address))))
    }

    /// Whether this peer may have this session. The address is `None` on a Unix socket, which is in no network.
    pub fn authorise(
        &self,
        identity: &Identity,
        address: Option<IpAddr>,
        startup: &StartupMessage,
    ) -> Result<Permit, Refusal> {
        let asked = Asked {
            identity,
            address,
            startup,
        };
        let Some(rules) = &self.rules else {
            return match startup.replication() {
                Replication::None => Err(asked.ordinary_without_rules()),
                Replication::Physical | Replication::Logical => Ok(Permit { rule: None }),
            };
        };
        // The closest rule is the one that objects last; of several, the first.
        let mut closest: Option<(Objection, usize, &Rule)> = None;
        for (index, rule) in rules.iter().enumerate() {
            let Some(objection) = rule.objection(&asked) else {
                return Ok(Permit { rule: Some(index) });
            };
            if closest.is_none_or(|(latest, ..)| objection > latest) {
                closest = Some((objection, index, rule));
            }
        }
        Err(match closest {
            Some((objection, index, rule)) => {
                let number = index.saturating_add(1);
                asked.refusal(
                    objection,
                    &format!("[[server.allow]] rule {number} ({})", rule.identity),
                )
            }
            None => asked.refusal(Objection::Identity, ""),
        })
    }

    /// Whether some rule admits this peer for replication of either kind, as some user.
    #[must_use]
    pub fn may_replicate(&self, identity: &Identity, address: Option<IpAddr>) -> bool {
        self.rules.as_ref().is_none_or(|rules| {
            rules.iter().any(|rule| {
                rule.identity.matches(identity)
                    && rule.admits_address(address)
                    && (rule.physical || rule.logical)
            })
        })
    }

    /// The names that its rules give, in their order: what may be said of a peer where any text of its own must not.
    pub fn names(&self) -> impl Iterator<Item = &IdentityPattern> {
        self.rules.iter().flatten().map(|rule| &rule.identity)
    }

    /// The rules that can never admit anybody, by their place, and why.
    #[must_use]
    pub fn dead_rules(&self) -> Vec<(usize, String)> {
        let rules = self.rules.iter().flatten().enumerate();
        rules
            .filter_map(|(index, rule)| Some((index, rule.dead()?)))
            .collect()
    }
}

/// What stands against a connection, in the order in which a rule's fields are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Objection {
    Identity,
    From,
    Replication,
    Ordinary,
    User,
    Database,
    ApplicationName,
}

struct Asked<'a> {
    identity: &'a Identity,
    address: Option<IpAddr>,
    startup: &'a StartupMessage,
}

impl Rule {
    fn objection(&self, asked: &Asked<'_>) -> Option<Objection> {
        let startup = asked.startup;
        let kind = startup.replication();
        if !self.identity.matches(asked.identity) {
            Some(Objection::Identity)
        } else if !self.admits_address(asked.address) {
            Some(Objection::From)
        } else if kind == Replication::None && !self.ordinary {
            Some(Objection::Ordinary)
        } else if kind == Replication::Physical && !self.physical
            || kind == Replication::Logical && !self.logical
        {
            Some(Objection::Replication)
        } else if !self.users.admit(startup.user()) {
            Some(Objection::User)
        } else if kind != Replication::Physical && !self.databases.admit(startup.database()) {
            Some(Objection::Database)
        } else if !self
            .application_names
            .admit_all(startup.application_names())
        {
            Some(Objection::ApplicationName)
        } else {
            None
        }
    }

    fn admits_address(&self, address: Option<IpAddr>) -> bool {
        let Some(networks) = &self.from else {
            return true;
        };
        address.is_some_and(|address| networks.iter().any(|network| contains(network, address)))
    }

    fn dead(&self) -> Option<String> {
        if !(self.physical || self.logical || self.ordinary) {
            return Some(
                "replication is empty and ordinary is false, which admits no session".into(),
            );
        }
        if self.from.as_ref().is_some_and(Vec::is_empty) {
            return Some("from is empty, which admits no address".into());
        }
        let databases = || {
            if self.physical {
                None
            } else {
                self.databases.dead("databases")
            }
        };
        self.users
            .dead("users")
            .or_else(databases)
            .or_else(|| self.application_names.dead("application_names"))
    }
}

/// A dual-stack listener sees IPv4 as addresses mapped into IPv6, and a rule may be written so, too: both are IPv4.
fn contains(network: &IpNet, address: IpAddr) -> bool {
    let network = match network {
        IpNet::V6(mapped) => mapped
            .addr()
            .to_ipv4_mapped()
            .and_then(|v4| IpNet::new(v4.into(), mapped.prefix_len().checked_sub(96)?).ok())
            .unwrap_or(*network),
        IpNet::V4(_) => *network,
    };
    network.contains(&address.to_canonical())
}

const IN_FILE: &str = "in the server's pgtlsproxy.toml, then reload.";

impl Asked<'_> {
    /// What to tell of an objection of this rule, which is named by its place in the file.
    fn refusal(&self, objection: Objection, rule: &str) -> Refusal {
        let Self {
            identity, startup, ..
        } = self;
        let kind = startup.replication();
        match objection {
            Objection::Identity => refusal("P01", format!("no rule admits {identity}"))
                .detail(format!(
                    "Its certificate (SHA-256 {}) matches the identity of no [[server.allow]] rule.",
                    identity.fingerprint()
                ))
                .hint(format!("Add a [[server.allow]] rule for {identity} {IN_FILE}")),
            Objection::From => {
                let (from, network) = match self.address.map(|address| address.to_canonical()) {
                    Some(address) => (address.to_string(), IpNet::from(address).to_string()),
                    None => ("a Unix socket".into(), "the peer's network".into()),
                };
                refusal("P02", format!("{identity} may not connect from {from}"))
                    .detail(format!("No network in \"from\" of {rule} contains this address."))
                    .hint(format!("Add \"{network}\" to its \"from\" {IN_FILE}"))
            }
            Objection::Replication => refusal("P03", format!("{kind} replication is not allowed for {identity}"))
                .detail(format!("It is not listed in \"replication\" of {rule}."))
                .hint(format!("Add \"{kind}\" to its \"replication\" {IN_FILE}")),
            Objection::Ordinary => ordinary(identity)
                .detail(format!("It needs \"ordinary\" in {rule}."))
                .hint(format!("{WHO_IS_ORDINARY}: set ordinary = true in that rule {IN_FILE}")),
            Objection::User => {
                let user = escape(startup.user());
                refusal("P05", format!("user \"{user}\" is not allowed for {identity}"))
                    .detail(format!("It is not listed in \"users\" of {rule}."))
                    .hint(format!("Connect as another user, or add \"{user}\" to its \"users\" {IN_FILE}"))
            }
            Objection::Database => {
                let database = escape(startup.database());
                refusal("P06", format!("database \"{database}\" is not allowed for {identity}"))
                    .detail(format!("It is not listed in \"databases\" of {rule}."))
                    .hint(format!("Add \"{database}\" to its \"databases\" {IN_FILE}"))
            }
            Objection::ApplicationName => self.application_name(rule),
        }
    }

    fn application_name(&self, rule: &str) -> Refusal {
        let identity = self.identity;
        let names: Vec<String> = self
            .startup
            .application_names()
            .iter()
            .map(escape)
            .collect();
        let set_it = "Set application_name in primary_conninfo (or the connection string)";
        match names.as_slice() {
            [] => refusal(
                "P07",
                format!("no application_name is set, which {identity} needs"),
            )
            .detail(format!(
                "\"application_names\" of {rule} admits certain names only."
            ))
            .hint(format!("{set_it} to one of them.")),
            [name] => refusal(
                "P07",
                format!("application_name \"{name}\" is not allowed for {identity}"),
            )
            .detail(format!(
                "It is not listed in \"application_names\" of {rule}."
            ))
            .hint(format!(
                "{set_it} to one that is, or add \"{name}\" there {IN_FILE}"
            )),
            names => refusal(
                "P07",
                format!(
                    "application_name \"{}\" is not allowed for {identity}",
                    names.join("\", \"")
                ),
            )
            .detail(format!(
                "It is set {} times, and \"application_names\" of {rule} must list each.",
                names.len()
            ))
            .hint(format!("{set_it} once, to one that is listed.")),
        }
    }

    /// Without rules, only a rule can let it in.
    fn ordinary_without_rules(&self) -> Refusal {
        let identity = self.identity;
        ordinary(identity)
            .detail("No [[server.allow]] rule is set, and then replication alone is admitted.")
            .hint(format!(
                "{WHO_IS_ORDINARY}: add a [[server.allow]] rule for {identity} with ordinary = true {IN_FILE}"
            ))
    }
}

const WHO_IS_ORDINARY: &str = "pg_rewind, slot synchronization and psql connect so";

fn ordinary(identity: &Identity) -> Refusal {
    refusal(
        "P04",
        format!("ordinary (non-replication) connections are not allowed for {identity}"),
    )
}

fn refusal(id: &'static str, message: String) -> Refusal {
    Refusal::new(id, SqlState::INVALID_AUTHORIZATION, message)
}

/// Who may use a client tunnel's Unix socket, and with it this node's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUserPolicy {
    users: Vec<(u32, String)>,
}

impl OsUserPolicy {
    /// These users, by number and name.
    #[must_use]
    pub const fn new(users: Vec<(u32, String)>) -> Self {
        Self { users }
    }

    /// Whether this user may have this session. The number counts, the name is for the message.
    pub fn authorise(
        &self,
        uid: u32,
        name: &str,
        startup: &StartupMessage,
    ) -> Result<Permit, Refusal> {
        if self.admits(uid) {
            return Ok(Permit { rule: None });
        }
        let name = escape(name.as_bytes());
        let known: Vec<String> = self
            .users
            .iter()
            .map(|(_, name)| escape(name.as_bytes()))
            .collect();
        let what = match startup.replication() {
            Replication::None => "connect".into(),
            kind => format!("start {kind} replication"),
        };
        // Whoever can open the socket can also read who owns it: naming the others tells nothing new.
        Err(refusal("P08", format!("OS user \"{name}\" (uid {uid}) may not {what} through this socket"))
            .detail(format!("Allowed are: {}.", known.join(", ")))
            .hint(format!(
                "Add \"{name}\" to \"allow_os_users\" of this [[client]] in this host's pgtlsproxy.toml, then reload."
            )))
    }

    /// Whether this user may cancel what runs through the socket.
    #[must_use]
    pub fn authorise_cancel(&self, uid: u32) -> Option<Permit> {
        self.admits(uid).then_some(Permit { rule: None })
    }

    fn admits(&self, uid: u32) -> bool {
        self.users.iter().any(|(known, _)| *known == uid)
    }
}

/// Whether who asks for a cancel may have it, the key being right: the names in the certificate must be those of the
/// session's owner, so that a renewed certificate still can.
///
/// Nobody is known to ask (`None`) on a plain listener, and on a TLS listener whose `plain_cancel` let it through:
/// there the key alone decides, as it does in PostgreSQL.
#[must_use]
pub fn authorise_cancel(asking: Option<&Identity>, owner: Option<&Identity>) -> Option<Permit> {
    let permitted = match (asking, owner) {
        (None, _) => true,
        (Some(asking), Some(owner)) => asking.same_names(owner),
        (Some(_), None) => false,
    };
    permitted.then_some(Permit { rule: None })
}

/// Lets a local process in on a plain TCP listener, where nothing can be known of it: whoever configures one wants that.
pub const fn permit_local(_startup: &StartupMessage) -> Permit {
    Permit { rule: None }
}

#[cfg(test)]
mod tests;
