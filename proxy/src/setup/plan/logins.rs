//! Who gets in: the lines of pg_hba.conf and pg_ident.conf, and those that let in too many.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::block;
use super::super::facts::Facts;
use super::super::files::{Files, NotUnderstood, Overlay};
use super::super::hba::{self, Kind, Login, Rule, Transport, Via};
use super::super::tls;
use super::super::version::{Major, Thing, V14, wants};
use super::{LoginBy, MAINTENANCE_DATABASE, MAP, Plan, Wishes};
use crate::problem::Problem;

/// Finds lines that let in anybody on this host; replaces their method if that is wished.
pub(super) fn fix_trust(
    view: &mut Overlay<'_>,
    facts: &Facts,
    wishes: &Wishes,
    plan: &mut Plan,
) -> Result<(), Vec<Problem>> {
    let rules = hba::read(view, &facts.hba_file, facts.major)
        .map_err(|fault| vec![Problem::from(fault)])?;
    let trusting = hba::loopback_trust(&rules);
    if trusting.is_empty() {
        return Ok(());
    }
    if !wishes.fix_trust {
        let problem = |rule: &&Rule| {
            Problem::new(
                "G07",
                format!("{} lets in everybody on this host as any role", rule.place),
                "its method is `trust`, and whoever comes through the proxy is on this host for PostgreSQL",
                format!(
                    "let it ask (`{}`), or run this with --fix-trust, which writes that",
                    asking(rule, facts)
                ),
            )
        };
        return Err(trusting.iter().map(problem).collect());
    }
    let mut by_file: BTreeMap<PathBuf, Vec<(&Rule, &str)>> = BTreeMap::new();
    for rule in trusting {
        let method = asking(rule, facts);
        plan.warnings.push(
            Problem::new(
                "G11",
                format!("{} asks with `{method}` from now on", rule.place),
                "it was `trust`; local programs that relied on it need a password, or the OS user of that name",
                "`pgtlsproxy setup undo` puts it back",
            )
            .warning(),
        );
        by_file
            .entry(rule.place.file.clone())
            .or_default()
            .push((rule, method));
    }
    for (path, changes) in by_file {
        let text = view
            .read(&path)
            .map_err(|error| vec![NotUnderstood::new(&path, 0, error.to_string()).into()])?;
        view.new.insert(path, hba::with_methods(&text, &changes));
    }
    Ok(())
}

/// `md5` takes passwords of both kinds from 10 on, `scram-sha-256` only its own (documentation, 20.5): nobody who has a
/// password may be shut out. Up to 13 new ones are of the old kind by default.
fn asking(rule: &Rule, facts: &Facts) -> &'static str {
    let md5 = facts
        .running
        .as_ref()
        .map_or(facts.major < V14, |running| running.md5_passwords);
    match rule.transport {
        Transport::Local => "peer",
        _ if md5 => "md5",
        _ => wants(facts.major, Thing::PasswordMethod).unwrap_or("md5"),
    }
}

/// The lines of pg_hba.conf, and the logins that they are for.
pub(super) fn rules<'a>(
    facts: &Facts,
    wishes: &'a Wishes,
) -> Result<(Vec<String>, Vec<Login<'a>>), Problem> {
    let method = match wishes.login {
        LoginBy::Certificate(_) => tls::method(facts.major),
        LoginBy::OsUser => format!("peer map={MAP}"),
        LoginBy::Password(_) => wants(facts.major, Thing::PasswordMethod)
            .unwrap_or("md5")
            .to_owned(),
    };
    let role = word(&wishes.role, facts.major)?;
    let (via, from) = match &wishes.login {
        LoginBy::Certificate(tls) => (Via::Tls, &*tls.from),
        _ => (Via::Socket, [].as_slice()),
    };
    let line = |database: &str| match from {
        [] => vec![format!("local {database} {role} {method}")],
        from => from
            .iter()
            .map(|from| format!("hostssl {database} {role} {from} {method}"))
            .collect(),
    };
    let mut lines = line("replication");
    let mut kinds = vec![Kind::Physical];
    if wishes.rewind || wishes.slot_sync {
        lines.extend(line(MAINTENANCE_DATABASE));
        kinds.push(Kind::Ordinary {
            database: MAINTENANCE_DATABASE,
        });
    }
    for database in &wishes.logical {
        lines.extend(line(&word(database, facts.major)?));
        kinds.push(Kind::Logical { database });
    }
    lines.dedup();
    let groups = facts.running.as_ref().map(|running| running.groups.clone());
    let login = |kind| Login {
        groups: groups.clone().unwrap_or_default(),
        ..Login::new(kind, &wishes.role, via)
    };
    Ok((lines, kinds.into_iter().map(login).collect()))
}

pub(super) fn ident_lines(
    facts: &Facts,
    wishes: &Wishes,
    known: &[u8],
) -> Result<Vec<String>, Problem> {
    let (map, users) = match &wishes.login {
        LoginBy::Certificate(_) => (tls::TLS_MAP, &*wishes.standbys),
        _ => (MAP, std::slice::from_ref(&wishes.os_user)),
    };
    let role = word(&wishes.role, facts.major)?;
    let mut lines = users
        .iter()
        .map(|user| Ok(format!("{map} {} {role}", word(user, facts.major)?)))
        .collect::<Result<Vec<_>, Problem>>()?;
    let inside = block::find(known).map_or(Vec::new(), |(_, inside)| inside.to_vec());
    let kept: Vec<_> =
        tls::kept_maps(&String::from_utf8_lossy(&inside), map, &role, &lines).collect();
    lines.extend(kept);
    Ok(lines)
}

fn word(name: &str, major: Major) -> Result<String, Problem> {
    hba::quote(name, major).ok_or_else(|| {
        Problem::new(
            "G09",
            format!(
                "the name `{}` cannot stand in pg_hba.conf",
                protocol::escape::escape(name)
            ),
            "it is empty, too long, holds a line break, or would be taken for a regular expression",
            "choose another name",
        )
    })
}
