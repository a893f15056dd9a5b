//! Which line of pg_hba.conf decides about a connection from the proxy. What the server reads (pg_hba_file_rules) is put
//! into the form in which setup reads the file itself, and judged by the same code: there is one reader of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::doctor::facts::{HbaRule, Role};
use crate::setup::Place;
use crate::setup::hba::{self, Address, Kind, Login, Rule, Transport, Word};

/// How the proxy reaches PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Socket,
    /// From this address of its own host.
    Tcp(IpAddr),
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
    let login = |via| Login {
        groups: role.member_of.iter().cloned().collect(),
        ..Login::new(
            database.map_or(Kind::Physical, |database| Kind::Ordinary { database }),
            &role.name,
            via,
        )
    };
    let read: Vec<Rule> = rules
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| as_read(rule, index))
        .collect();
    let told = |rule: &Rule| rules.get(rule.top_line);
    let over = match via {
        Via::Socket => hba::Via::Socket,
        Via::Tcp(ip) => hba::Via::Tcp(ip),
    };
    match hba::first_match(&read, &login(over)) {
        hba::Decision::Line(rule) => return told(rule).map_or(Decision::Nothing, Decision::Line),
        hba::Decision::CannotTell(..) => return Decision::CannotTell,
        hba::Decision::Nothing if via == Via::Socket => return Decision::Nothing,
        hba::Decision::Nothing => {}
    }
    let over_tls: Vec<Rule> = read
        .into_iter()
        .filter(|rule| rule.transport == Transport::HostSsl)
        .map(|rule| Rule {
            transport: Transport::Host,
            ..rule
        })
        .collect();
    match hba::first_match(&over_tls, &login(over)) {
        hba::Decision::Line(rule) | hba::Decision::CannotTell(rule, _) => {
            told(rule).map_or(Decision::Nothing, Decision::TlsOnly)
        }
        hba::Decision::Nothing => Decision::Nothing,
    }
}

/// None for a line that the server could not read.
fn as_read(rule: &HbaRule, index: usize) -> Option<Rule> {
    let transport = match rule.kind.as_deref()? {
        "local" => Transport::Local,
        "host" => Transport::Host,
        "hostssl" => Transport::HostSsl,
        "hostnossl" => Transport::HostNoSsl,
        "hostgssenc" => Transport::HostGssEnc,
        "hostnogssenc" => Transport::HostNoGssEnc,
        _ => return None,
    };
    let words = |list: &Option<Vec<String>>| {
        let names = list.iter().flatten();
        names
            .map(|name| Word {
                text: name.clone().into_bytes(),
                quoted: false,
                // Before 16 it would be a plain name, which the view does not tell: one that nobody can judge here.
                regex: name.starts_with('/').then(|| b"()".to_vec()),
            })
            .collect()
    };
    Some(Rule {
        place: Place {
            file: PathBuf::from(&rule.place),
            line: 0,
        },
        top_line: index,
        transport,
        databases: words(&rule.database),
        users: words(&rule.user_name),
        address: (transport != Transport::Local).then(|| address(rule)),
        method: rule.auth_method.clone().unwrap_or_default(),
        method_span: 0..0,
        options: rule.options.clone().unwrap_or_default(),
    })
}

fn address(rule: &HbaRule) -> Address {
    let text = rule.address.as_deref().unwrap_or_default();
    let mask = rule.netmask.as_deref().map(str::parse::<IpAddr>);
    match (text, text.parse(), mask) {
        ("all", ..) => Address::All,
        ("samehost", ..) => Address::SameHost,
        ("samenet", ..) => Address::SameNet,
        (_, Ok(address), Some(Ok(mask))) => Address::Net { address, mask },
        // Without a mask it is one host.
        (_, Ok(address @ IpAddr::V4(_)), _) => Address::Net {
            address,
            mask: IpAddr::V4(Ipv4Addr::BROADCAST),
        },
        (_, Ok(address @ IpAddr::V6(_)), _) => Address::Net {
            address,
            mask: IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        },
        _ => Address::Name(text.as_bytes().to_vec()),
    }
}
