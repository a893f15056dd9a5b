//! Which line of pg_hba.conf decides a login, as hba.c's check_hba finds it: the first whose type, database, user and
//! address fit. There is no way past it, and no line means refused.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::rule::{Address, Rule, Transport, Word};

/// What kind of session is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// `replication=true`: matches the keyword `replication` alone, never `all`.
    Physical,
    /// `replication=database`: matches as an ordinary connection to that database does.
    Logical { database: &'a str },
    /// pg_rewind, the slot-sync worker, psql.
    Ordinary { database: &'a str },
}

/// How it comes: from this host in plaintext, but for PostgreSQL's own TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Socket,
    /// From a loopback address.
    Tcp(IpAddr),
    /// Over TLS, from anywhere.
    Tls,
}

/// A login that somebody will try.
#[derive(Debug, Clone)]
pub(crate) struct Login<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) role: &'a str,
    /// All roles that it belongs to, directly or not. A superuser is no member by being one.
    pub(crate) groups: BTreeSet<String>,
    pub(crate) via: Via,
}

impl<'a> Login<'a> {
    /// Of a role that belongs to no other.
    pub(crate) fn new(kind: Kind<'a>, role: &'a str, via: Via) -> Self {
        Self {
            kind,
            role,
            groups: BTreeSet::new(),
            via,
        }
    }
}

/// The line that decides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision<'a> {
    Line(&'a Rule),
    /// None fits: refused.
    Nothing,
    /// This one may fit; whether it does, only the server knows.
    CannotTell(&'a Rule, &'static str),
}

/// The first line that decides this login.
pub(crate) fn first_match<'a>(rules: &'a [Rule], login: &Login<'_>) -> Decision<'a> {
    for rule in rules {
        match fits(rule, login) {
            Fit::No => {}
            Fit::Yes => return Decision::Line(rule),
            Fit::Perhaps(why) => return Decision::CannotTell(rule, why),
        }
    }
    Decision::Nothing
}

#[derive(Clone, Copy)]
enum Fit {
    No,
    Yes,
    Perhaps(&'static str),
}

impl Fit {
    /// As `&&`: no wins over perhaps.
    fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Yes => other(),
            Self::Perhaps(why) => match other() {
                Self::No => Self::No,
                Self::Yes | Self::Perhaps(_) => Self::Perhaps(why),
            },
        }
    }

    /// As `||` over a list: the first yes wins, else the first perhaps.
    fn any(fits: impl Iterator<Item = Self>) -> Self {
        let mut found = Self::No;
        for fit in fits {
            match (fit, found) {
                (Self::Yes, _) => return Self::Yes,
                (Self::Perhaps(_), Self::No) => found = fit,
                _ => {}
            }
        }
        found
    }
}

impl From<bool> for Fit {
    fn from(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }
}

fn fits(rule: &Rule, login: &Login<'_>) -> Fit {
    let transport = match login.via {
        Via::Socket => rule.transport == Transport::Local,
        Via::Tcp(_) => matches!(
            rule.transport,
            Transport::Host | Transport::HostNoSsl | Transport::HostNoGssEnc
        ),
        Via::Tls => matches!(
            rule.transport,
            Transport::Host | Transport::HostSsl | Transport::HostNoGssEnc
        ),
    };
    Fit::from(transport)
        .and(|| Fit::any(rule.databases.iter().map(|word| database_fits(word, login))))
        .and(|| Fit::any(rule.users.iter().map(|word| user_fits(word, login))))
        .and(|| match (&rule.address, login.via) {
            (Some(address), Via::Tcp(peer)) => match address.admits(peer) {
                Some(fits) => fits.into(),
                None => Fit::Perhaps("it names a host, and only name servers know which that is"),
            },
            (Some(Address::All), Via::Tls) => Fit::Yes,
            (_, Via::Tls) => Fit::Perhaps("from where it comes is not known"),
            _ => Fit::Yes,
        })
}

/// check_db.
fn database_fits(word: &Word, login: &Login<'_>) -> Fit {
    let (Kind::Logical { database } | Kind::Ordinary { database }) = login.kind else {
        return word.is_keyword("replication").into();
    };
    if word.is_keyword("all") {
        Fit::Yes
    } else if word.is_keyword("sameuser") {
        (database == login.role).into()
    } else if word.is_keyword("samerole") || word.is_keyword("samegroup") {
        is_member(login, database.as_bytes()).into()
    } else if word.is_keyword("replication") {
        Fit::No
    } else {
        name_fits(word, database)
    }
}

/// check_role.
fn user_fits(word: &Word, login: &Login<'_>) -> Fit {
    match word.text.strip_prefix(b"+") {
        Some(group) if !word.quoted => is_member(login, group).into(),
        _ if word.is_keyword("all") => Fit::Yes,
        _ => name_fits(word, login.role),
    }
}

/// A role is a member of itself.
fn is_member(login: &Login<'_>, group: &[u8]) -> bool {
    let mut names = login.groups.iter().map(String::as_str).chain([login.role]);
    names.any(|name| name.as_bytes() == group)
}

fn name_fits(word: &Word, name: &str) -> Fit {
    match &word.regex {
        Some(regex) => regex_fits(regex, name),
        None => (word.text == name.as_bytes()).into(),
    }
}

/// PostgreSQL's regular expressions are its own (documentation, 9.7.3): only those are judged here that are a plain text,
/// bound to the beginning, to the end, or not at all, with `.*` at either side.
fn regex_fits(regex: &[u8], name: &str) -> Fit {
    let (regex, from_start) = match regex.strip_prefix(b"^") {
        Some(rest) => (rest, true),
        None => (regex, false),
    };
    let (regex, to_end) = match regex.strip_suffix(b"$") {
        Some(rest) => (rest, true),
        None => (regex, false),
    };
    let (regex, from_start) = match regex.strip_prefix(b".*") {
        Some(rest) => (rest, false),
        None => (regex, from_start),
    };
    let (regex, to_end) = match regex.strip_suffix(b".*") {
        Some(rest) => (rest, false),
        None => (regex, to_end),
    };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-';
    if !regex.iter().all(plain) {
        return Fit::Perhaps("it holds a regular expression");
    }
    let name = name.as_bytes();
    let found = match (from_start, to_end) {
        (true, true) => name == regex,
        (true, false) => name.starts_with(regex),
        (false, true) => name.ends_with(regex),
        (false, false) => regex.is_empty() || name.windows(regex.len()).any(|part| part == regex),
    };
    found.into()
}
