//! Which line of pg_hba.conf decides about a connection from the proxy ("The pg_hba.conf File"): the first whose type,
//! database, user and address match. Works on pg_hba_file_rules, that is on what the server reads; setup has a reader
//! of the file itself, for a server that does not run.

use std::net::IpAddr;

use crate::doctor::facts::{HbaRule, Role};

/// How the proxy reaches PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Socket,
    Loopback,
}

/// What decides.
#[derive(Debug)]
pub(super) enum Decision<'a> {
    /// This line, by its method.
    Line(&'a HbaRule),
    /// No line; one over TLS would have.
    TlsOnly(&'a HbaRule),
    Nothing,
    /// A line whose reach cannot be told here: a host name, a regular expression.
    CannotTell,
}

/// `database`: None for physical replication.
pub(super) fn decide<'a>(
    rules: &'a [HbaRule],
    role: &Role,
    database: Option<&str>,
    via: Via,
) -> Decision<'a> {
    let mut over_tls = None;
    for rule in rules {
        let kind = rule.kind.as_deref().unwrap_or_default();
        let fits = match via {
            Via::Socket => kind == "local",
            Via::Loopback => matches!(kind, "host" | "hostnossl" | "hostnogssenc" | "hostssl"),
        };
        if !fits {
            continue;
        }
        let all = [
            database_fits(rule, role, database),
            user_fits(rule, role),
            address_fits(rule, via),
        ];
        if all.contains(&Some(false)) {
            continue;
        }
        if kind == "hostssl" {
            over_tls = over_tls.or(Some(rule));
            continue;
        }
        if all.contains(&None) {
            return Decision::CannotTell;
        }
        return Decision::Line(rule);
    }
    over_tls.map_or(Decision::Nothing, Decision::TlsOnly)
}

fn database_fits(rule: &HbaRule, role: &Role, database: Option<&str>) -> Option<bool> {
    let names = rule.database.as_deref().unwrap_or_default();
    let Some(database) = database else {
        return Some(names.iter().any(|name| name == "replication"));
    };
    let named = names.iter().any(|name| match name.as_str() {
        "all" => true,
        "sameuser" => role.name == database,
        "samerole" | "samegroup" => role.member_of.iter().any(|group| group == database),
        name => name == database,
    });
    or_unknown(named, names)
}

fn user_fits(rule: &HbaRule, role: &Role) -> Option<bool> {
    let names = rule.user_name.as_deref().unwrap_or_default();
    let named = names.iter().any(|name| match name.strip_prefix('+') {
        Some(group) => role.name == group || role.member_of.iter().any(|own| own == group),
        None => name == "all" || *name == role.name,
    });
    or_unknown(named, names)
}

/// A regular expression (16 and later) is not tried here.
fn or_unknown(named: bool, names: &[String]) -> Option<bool> {
    if named {
        Some(true)
    } else if names.iter().any(|name| name.starts_with('/')) {
        None
    } else {
        Some(false)
    }
}

fn address_fits(rule: &HbaRule, via: Via) -> Option<bool> {
    if via == Via::Socket {
        return Some(true);
    }
    let address = rule.address.as_deref()?;
    match address {
        "all" | "samehost" | "samenet" | "localhost" => return Some(true),
        _ => {}
    }
    let network = address.parse::<IpAddr>().ok()?;
    let mask = rule
        .netmask
        .as_deref()
        .and_then(|mask| mask.parse::<IpAddr>().ok());
    Some(match (network, mask) {
        (IpAddr::V4(network), Some(IpAddr::V4(mask))) => {
            let own = u32::from(std::net::Ipv4Addr::LOCALHOST) & u32::from(mask);
            own == u32::from(network) & u32::from(mask)
        }
        _ => false,
    })
}
