//! Whether roles that may replicate get into the PostgreSQL behind a server tunnel, from its proxy: pg_hba.conf,
//! pg_ident.conf, and what the role itself lacks.

use super::hba::{Decision, Via, decide};
use super::primary::{breaks, tls_off};
use super::{View, words};
use crate::doctor::catalogue::{self as found, Severity};
use crate::doctor::facts::{Backend, Cluster, HbaRule, Mapping, Role, Server};
use crate::doctor::report::Finding;

/// What stands for no database's name in pg_hba.conf.
const KEYWORDS: &[&str] = &["all", "replication", "sameuser", "samerole", "samegroup"];

pub(super) fn admission(
    backend: Option<&Backend>,
    cluster: &Cluster,
    server: &Server,
    view: &mut View,
) {
    let Some(rules) = &server.hba else {
        return;
    };
    if rules.iter().any(|rule| breaks(rule, tls_off(cluster))) {
        // The rules in force are older than the file.
        return;
    }
    let gate = Gate {
        rules,
        ident: server.ident.as_deref(),
        via: match backend.and_then(|backend| backend.ip) {
            Some(ip) => Via::Tcp(ip),
            None => Via::Socket,
        },
        proxy_user: backend.and_then(|backend| backend.proxy_user.as_deref()),
    };
    let candidates = candidates(server, view);
    if backend.is_some_and(|backend| !backend.physical) {
        logical(&gate, &candidates, view);
    } else {
        physical(&gate, &candidates, server, view);
    }
}

/// Roles that may replicate; superusers only where there is no other.
fn candidates<'a>(server: &'a Server, view: &mut View) -> Vec<&'a Role> {
    let able = |role: &&Role| role.login && !role.expired && (role.replication || role.superuser);
    let able: Vec<_> = server.roles.iter().filter(able).collect();
    let plain: Vec<_> = able
        .iter()
        .copied()
        .filter(|role| !role.superuser)
        .collect();
    if plain.is_empty()
        && let Some(role) = server
            .roles
            .iter()
            .find(|role| role.replication && !role.superuser)
    {
        let why = match role.login {
            true => "its password has expired (VALID UNTIL)",
            false => "it is NOLOGIN",
        };
        let fact = format!(
            "role {}: {why}, and there is no other for replication",
            role.name
        );
        let finding = Finding::new(&found::ROLE_CANNOT_LOG_IN, fact, &words::name(&role.name));
        // A standby may come in as a superuser, or by a certificate that asks for no password.
        view.find(finding.at_most(Severity::Warning));
    }
    if plain.is_empty() { able } else { plain }
}

/// Where standbys may come. Which role is theirs only they know: one that gets in is enough, unless a slot waits.
fn physical(gate: &Gate<'_>, candidates: &[&Role], server: &Server, view: &mut View) {
    let (mut admitted, mut refused, mut publishes) = (Vec::new(), Vec::new(), false);
    for role in candidates {
        let Some(finding) = gate.barrier(role, None) else {
            admitted.push(role.name.as_str());
            continue;
        };
        // A line for `all` databases is no sign that it is meant for subscriptions.
        if let Some(database) = gate.database_of(role) {
            publishes = true;
            view.see(format!(
                "pg_hba.conf admits {} for logical replication of {database}",
                role.name
            ));
        } else {
            refused.push(finding);
        }
    }
    if !admitted.is_empty() {
        let names = admitted.join(", ");
        view.see(format!("pg_hba.conf admits {names} for replication"));
    }
    publishes |= server.senders.iter().any(|sender| sender.logical);
    let waits = server
        .slots
        .iter()
        .any(|slot| slot.physical && !slot.active);
    let streams = server.senders.iter().any(|sender| !sender.logical);
    match (admitted.is_empty(), publishes) {
        (true, false) => view.findings.extend(refused.into_iter().take(1)),
        // One of these may be the role of the standby whose slot it is.
        _ if waits && !streams => {
            let warnings = refused
                .into_iter()
                .map(|finding| finding.at_most(Severity::Warning));
            view.findings.extend(warnings);
        }
        _ => {}
    }
}

/// Where the tunnel's rules admit subscriptions alone.
fn logical(gate: &Gate<'_>, candidates: &[&Role], view: &mut View) {
    let mut refused = Vec::new();
    for role in candidates {
        let some = gate.database_of(role).unwrap_or("postgres");
        match gate.barrier(role, Some(some)) {
            None => {
                view.see(format!(
                    "pg_hba.conf admits {} for logical replication",
                    role.name
                ));
                return;
            }
            Some(finding) => refused.push(finding),
        }
    }
    view.findings.extend(refused.into_iter().take(1));
}

/// What stands between the proxy and a role's session.
struct Gate<'a> {
    rules: &'a [HbaRule],
    ident: Option<&'a [Mapping]>,
    via: Via,
    proxy_user: Option<&'a str>,
}

impl Gate<'_> {
    /// A database that some line names, and to which the role gets in.
    fn database_of(&self, role: &Role) -> Option<&str> {
        let named = self
            .rules
            .iter()
            .flat_map(|rule| rule.database.iter().flatten());
        named
            .map(String::as_str)
            .filter(|name| !KEYWORDS.contains(name) && !name.starts_with('/'))
            .find(|name| self.barrier(role, Some(name)).is_none())
    }

    /// What keeps it out; `database`: None for physical replication.
    fn barrier(&self, role: &Role, database: Option<&str>) -> Option<Finding> {
        let name = &role.name;
        let wanted = database.unwrap_or("replication");
        let line = match self.via {
            Via::Socket => words::local_line(wanted, name),
            Via::Tcp(ip) => words::host_line(wanted, name, ip),
        };
        match decide(self.rules, role, database, self.via) {
            Decision::CannotTell => None,
            Decision::Nothing => Some(Finding::new(
                match database {
                    None => &found::HBA_NO_LINE,
                    Some(_) => &found::HBA_DATABASE,
                },
                format!(
                    "none of its {} lines matches role {name} for `{wanted}`",
                    self.rules.len()
                ),
                &line,
            )),
            Decision::TlsOnly(rule) => Some(Finding::new(
                &found::HBA_TLS_ONLY,
                format!(
                    "{} is the only line for role {name}, and it is hostssl",
                    rule.place
                ),
                &line,
            )),
            Decision::Line(rule) => self.by_line(rule, role, &line),
        }
    }

    /// What the line that decides asks for, and the role or the proxy does not have.
    fn by_line(&self, rule: &HbaRule, role: &Role, line: &str) -> Option<Finding> {
        let (name, place) = (&role.name, &rule.place);
        let method = rule.auth_method.as_deref().unwrap_or_default();
        match (method, role.password.as_deref()) {
            ("reject", _) => Some(Finding::new(
                &found::HBA_REJECTS,
                format!("{place} decides about role {name}: reject"),
                line,
            )),
            ("peer", _) => self.peer(rule, name).map(|why| {
                Finding::new(
                    &found::PEER_REFUSED,
                    format!("{place} decides about role {name}: peer, and {why}"),
                    &words::name(name),
                )
            }),
            ("scram-sha-256", Some("md5")) => Some(Finding::new(
                &found::PASSWORD_FORM,
                format!("{place} decides about role {name}"),
                &words::name(name),
            )),
            ("scram-sha-256" | "md5" | "password", Some("")) => Some(Finding::new(
                &found::PASSWORD_WRONG,
                format!("{place} asks for a password, and role {name} has none"),
                &words::name(name),
            )),
            _ => None,
        }
    }

    /// Why the proxy's OS user may not be that role; None where that cannot be told, too.
    fn peer(&self, rule: &HbaRule, role: &str) -> Option<String> {
        let os_user = self.proxy_user?;
        let options = rule.options.iter().flatten();
        let Some(map) = options
            .filter_map(|option| option.strip_prefix("map="))
            .next_back()
        else {
            return (os_user != role)
                .then(|| format!("the proxy runs as {os_user}; the line has no map"));
        };
        let lines = self.ident?;
        let may = |line: &Mapping| {
            // Patterns and groups are PostgreSQL's to judge; with an error the older file is in force.
            let fits = |word: &Option<String>, wanted: &str| {
                let word = word.as_deref().unwrap_or_default();
                word == wanted
                    || word == "all"
                    || word.starts_with(['/', '+'])
                    || word.contains('\\')
            };
            line.error.is_some()
                || line.map.as_deref() == Some(map)
                    && fits(&line.os_user, os_user)
                    && fits(&line.role, role)
        };
        (!lines.iter().any(may))
            .then(|| format!("map {map} in pg_ident.conf does not let OS user {os_user} be {role}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{Outcome, Reach, Sender, Slot};

    fn role(name: &str) -> Role {
        Role {
            name: name.to_owned(),
            replication: true,
            login: true,
            ..Role::default()
        }
    }

    /// `local DATABASE USER METHOD [map=...]`.
    fn rule(line: &str) -> HbaRule {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        HbaRule {
            place: line.to_owned(),
            kind: Some(words[0].clone()),
            database: Some(vec![words[1].clone()]),
            user_name: Some(vec![words[2].clone()]),
            auth_method: Some(words[3].clone()),
            options: words.get(4).map(|option| vec![option.clone()]),
            ..HbaRule::default()
        }
    }

    /// Roles `rep` and `sub`, and a proxy that runs as `proxy`.
    fn found(lines: &[&str], plant: fn(&mut Backend, &mut Server)) -> Vec<(String, Severity)> {
        let mut backend = Backend {
            reach: Reach {
                address: String::new(),
                outcome: Outcome::Silent,
            },
            ip: None,
            proxy_user: Some("proxy".to_owned()),
            physical: true,
        };
        let mut server = Server {
            hba: Some(lines.iter().map(|line| rule(line)).collect()),
            roles: vec![role("rep"), role("sub")],
            ..Server::default()
        };
        plant(&mut backend, &mut server);
        let mut view = View::default();
        admission(Some(&backend), &Cluster::default(), &server, &mut view);
        let findings = view.findings.into_iter();
        findings
            .map(|finding| (finding.id, finding.severity))
            .collect()
    }

    fn waiting_slot(_: &mut Backend, server: &mut Server) {
        server.slots.push(Slot {
            physical: true,
            ..Slot::default()
        });
    }

    fn mapping(os_user: &str, role: &str) -> Option<Vec<Mapping>> {
        Some(vec![Mapping {
            map: Some("m".to_owned()),
            os_user: Some(os_user.to_owned()),
            role: Some(role.to_owned()),
            error: None,
        }])
    }

    #[test]
    fn one_role_that_gets_in_is_enough_unless_a_slot_waits() {
        use Severity::{Error, Warning};
        type Plant = fn(&mut Backend, &mut Server);
        let plain: Plant = |_, _| ();
        type Case = (
            &'static [&'static str],
            Plant,
            &'static [(&'static str, Severity)],
        );
        let cases: &[Case] = &[
            (&["local replication all peer map=m"], plain, &[]),
            (&["local replication all peer"], plain, &[("A07", Error)]),
            // Whom the proxy runs as is not known, or it is the role.
            (
                &["local replication all peer"],
                |backend, _| backend.proxy_user = None,
                &[],
            ),
            (
                &["local replication all peer"],
                |backend, _| backend.proxy_user = Some("rep".to_owned()),
                &[],
            ),
            (
                &["local replication rep peer map=m"],
                |_, server| server.ident = mapping("proxy", "rep"),
                &[],
            ),
            (
                &["local replication rep peer map=m"],
                |_, server| server.ident = mapping("/^pr", "rep"),
                &[],
            ),
            (
                &["local replication rep peer map=m"],
                |_, server| server.ident = mapping("other", "rep"),
                &[("A07", Error)],
            ),
            (&["local replication sub trust"], plain, &[]),
            (
                &["local replication sub trust"],
                waiting_slot,
                &[("H01", Warning)],
            ),
            // A publisher; `all` is no sign of one, but a session is.
            (&["local app sub peer map=m"], plain, &[]),
            (
                &["local app sub peer map=m"],
                waiting_slot,
                &[("H01", Warning)],
            ),
            (&["local all all peer map=m"], plain, &[("H01", Error)]),
            (
                &["local all all peer map=m"],
                |_, server| {
                    server.senders.push(Sender {
                        logical: true,
                        ..Sender::default()
                    });
                },
                &[],
            ),
            (
                &["local all all peer map=m"],
                |backend, _| backend.physical = false,
                &[],
            ),
            (
                &["local replication all peer map=m"],
                |backend, _| backend.physical = false,
                &[("H06", Error)],
            ),
        ];
        for (number, (lines, plant, expected)) in cases.iter().enumerate() {
            let expected: Vec<_> = expected
                .iter()
                .map(|(id, severity)| ((*id).to_owned(), *severity))
                .collect();
            assert_eq!(found(lines, *plant), expected, "case {number}: {lines:?}");
        }
    }
}
