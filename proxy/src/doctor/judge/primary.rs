//! PostgreSQL on this host: what would keep a standby out (slots, walsenders, wal_level), what will at the next restart,
//! and who streams from it. On a standby's host only its own configuration.

use super::answer::anew;
use super::path::words as outcome;
use super::standby::log_or;
use super::{View, admission, words};
use crate::doctor::catalogue::{self as found, Layer, Severity};
use crate::doctor::facts::{
    Backend, Cluster, Explained, Facts, HbaRule, Outcome, Sender, Server, Side,
};
use crate::doctor::report::Finding;

/// An inactive slot that holds less will do so for a while whenever a standby restarts.
const HELD: f64 = 128.0 * 1024.0 * 1024.0;

pub(super) fn postgres(facts: &Facts, view: &mut View) {
    if let Some(backend) = &facts.backend {
        behind(backend, facts.cluster.as_ref(), view);
    }
    let Some(cluster) = &facts.cluster else {
        return;
    };
    let Some(server) = &cluster.server else {
        return;
    };
    let mut own = View::default();
    configuration(cluster, server, &mut own);
    if facts.side == Side::Server {
        // Where the tunnel does not get to it, no line is to blame.
        if facts
            .backend
            .as_ref()
            .is_none_or(|backend| matches!(backend.reach.outcome, Outcome::Answered(_)))
        {
            admission::admission(facts.backend.as_ref(), cluster, server, &mut own);
        }
        supply(cluster, server, &mut own);
    } else {
        // What is wrong with a standby's own files will matter when it is a primary.
        for finding in &mut own.findings {
            finding.severity = finding.severity.min(Severity::Warning);
        }
    }
    view.seen.extend(own.seen);
    view.findings.extend(own.findings);
}

fn behind(backend: &Backend, cluster: Option<&Cluster>, view: &mut View) {
    let address = &backend.reach.address;
    let fact = format!("{address}: {}", outcome(&backend.reach.outcome));
    match &backend.reach.outcome {
        Outcome::Answered(_) => view.see(format!("PostgreSQL answers at {address}")),
        Outcome::Silent => view.find(Finding::new(&found::POSTGRES_SILENT, fact, "")),
        Outcome::NoName(_) | Outcome::Failed(_) => match cluster {
            Some(cluster) if cluster.running => {
                let real = cluster
                    .socket
                    .as_ref()
                    .map(|socket| format!("\"{}\"", socket.display()));
                let real = real.unwrap_or_else(|| "its address".to_owned());
                view.find(Finding::new(&found::POSTGRES_ELSEWHERE, fact, &real));
            }
            // The server's own check comes too late for `postgres -C`.
            Some(cluster) if minimal(cluster) => view.find(Finding::new(
                &found::WAL_LEVEL_MINIMAL,
                "wal_level = minimal, and max_wal_senders is above 0: it does not start with both",
                "",
            )),
            Some(cluster) => {
                let why = cluster
                    .conf_error
                    .clone()
                    .unwrap_or_else(|| log_or(cluster, &fact));
                view.find(Finding::new(&found::POSTGRES_DOWN, why, ""));
            }
            None => {
                let explained = Explained {
                    id: "B01".to_owned(),
                    message: format!("the tunnel cannot reach its PostgreSQL at {address}"),
                    way_out: "start PostgreSQL, or mend `postgres` in the [[server]] table"
                        .to_owned(),
                };
                view.find(Finding::explained(&explained, Layer::Postgres, fact));
            }
        },
    }
}

/// What is wrong with the files, whoever it concerns.
fn configuration(cluster: &Cluster, server: &Server, view: &mut View) {
    for error in &server.config_errors {
        let name = error.name.as_deref().unwrap_or_default();
        let fact = format!("{}: {name} {}", error.place, error.error);
        view.find(Finding::new(&found::CONF_BROKEN, fact, ""));
    }
    let rules = server.hba.as_deref().unwrap_or_default();
    for rule in rules.iter().filter(|rule| breaks(rule, tls_off(cluster))) {
        let error = rule.error.as_deref().unwrap_or_default();
        let fact = format!("{}: {error}", rule.place);
        view.find(Finding::new(&found::HBA_BROKEN, fact, ""));
    }
    // A reload that met an error does not count as one.
    if !cluster.edited.is_empty() && server.config_errors.is_empty() {
        view.find(Finding::new(
            &found::NOT_RELOADED,
            cluster.edited.join(", "),
            "",
        ));
    }
    if !server.pending_restart.is_empty() {
        view.find(Finding::new(
            &found::PENDING_RESTART,
            server.pending_restart.join(", "),
            "",
        ));
    }
    let trusting: Vec<_> = rules.iter().filter(|rule| lets_local_in(rule)).collect();
    if let Some(first) = trusting.first() {
        let more = match trusting.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let fact = format!(
            "{}: {} ... trust{more}",
            first.place,
            first.kind.as_deref().unwrap_or_default()
        );
        view.find(Finding::new(&found::HBA_TRUST, fact, ""));
    }
    if let Some(first) = cluster.unreadable.first() {
        let mend = format!(
            "chown {} {} (or move it out of the data directory)",
            cluster.owner,
            words::shell(first)
        );
        view.find(Finding::new(
            &found::FILES_UNREADABLE,
            cluster.unreadable.join(", "),
            &mend,
        ));
    }
}

fn minimal(cluster: &Cluster) -> bool {
    let senders = cluster.setting("max_wal_senders").parse::<u32>();
    cluster.setting("wal_level") == "minimal" && senders.is_ok_and(|senders| senders > 0)
}

pub(super) fn tls_off(cluster: &Cluster) -> bool {
    cluster.setting("ssl") == "off"
}

/// Whether the file cannot be loaded because of this line: a line for an encryption that the server does not have only
/// cannot match.
pub(super) fn breaks(rule: &HbaRule, tls_off: bool) -> bool {
    let harmless = match rule.kind.as_deref() {
        Some("hostgssenc") => true,
        Some("hostssl") => tls_off,
        _ => false,
    };
    rule.error.is_some() && !harmless
}

/// `trust` for a socket or a loopback address.
fn lets_local_in(rule: &HbaRule) -> bool {
    let kind = rule.kind.as_deref().unwrap_or_default();
    let address = rule.address.as_deref().unwrap_or_default();
    let local = kind == "local"
        || [
            "127.",
            "::1",
            "0.0.0.0",
            "::",
            "localhost",
            "samehost",
            "samenet",
            "all",
        ]
        .iter()
        .any(|start| address.starts_with(start));
    rule.error.is_none() && local && rule.auth_method.as_deref() == Some("trust")
}

/// What a standby that was let in needs: WAL, walsenders, slots.
fn supply(cluster: &Cluster, server: &Server, view: &mut View) {
    if cluster.setting("wal_level") == "minimal" {
        view.find(Finding::new(
            &found::WAL_LEVEL_MINIMAL,
            "wal_level = minimal",
            "",
        ));
    }
    let most = cluster.setting("max_wal_senders").parse::<usize>();
    if let Ok(most) = most
        && most > 0
        && server.senders.len() >= most
    {
        let fact = format!(
            "{} of max_wal_senders = {most} are taken",
            server.senders.len()
        );
        view.find(Finding::new(&found::SENDERS_USED_UP, fact, "").at_most(Severity::Warning));
    }
    for slot in &server.slots {
        let name = &slot.name;
        if slot.wal_status.as_deref() == Some("lost") {
            let reason = slot.reason.as_deref().unwrap_or_default();
            let entry = match reason {
                "idle_timeout" => &found::SLOT_IDLE,
                _ => &found::SLOT_LOST,
            };
            let why = match reason {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            let fill = if slot.physical {
                anew(name)
            } else {
                format!("SELECT pg_drop_replication_slot('{name}')")
            };
            view.find(Finding::new(
                entry,
                format!("pg_replication_slots: {name} has wal_status lost{why}"),
                &fill,
            ));
        } else if !slot.active && slot.held.is_some_and(|held| held > HELD) {
            let held = slot.held.unwrap_or_default() / (1024.0 * 1024.0);
            view.find(Finding::new(
                &found::SLOT_HOLDS_WAL,
                format!("slot {name} is not active and holds {held:.0} MB"),
                name,
            ));
        }
    }
}

/// Who streams from here.
pub(super) fn standbys(facts: &Facts, view: &mut View) {
    let (Side::Server, Some(cluster)) = (facts.side, &facts.cluster) else {
        return;
    };
    let Some(server) = &cluster.server else {
        return;
    };
    let streaming = server
        .senders
        .iter()
        .filter(|sender| sender.state.as_deref() == Some("streaming"));
    let names: Vec<_> = streaming
        .map(|sender| match sender.behind {
            Some(behind) => format!("{} ({behind:.0} bytes behind)", sender.application_name),
            None => sender.application_name.clone(),
        })
        .collect();
    view.see(match names.as_slice() {
        [] => "nobody streams from here".to_owned(),
        names => format!("streaming: {}", names.join(", ")),
    });
    if !server.about.in_recovery {
        synchronous(cluster, server, view);
    }
}

/// Whether as many synchronous standbys are there as a commit waits for.
fn synchronous(cluster: &Cluster, server: &Server, view: &mut View) {
    let names = cluster.setting("synchronous_standby_names");
    let commits = server.waiting_commits;
    // A role or a session may have a synchronous_commit of its own.
    let waits = commits > 0 || !matches!(cluster.setting("synchronous_commit"), "off" | "local");
    let counts = |sender: &&Sender| matches!(sender.sync_state.as_deref(), Some("sync" | "quorum"));
    let present = server.senders.iter().filter(counts).count();
    let wanted = wanted(names);
    if !names.is_empty() && waits && present < wanted {
        view.find(Finding::new(
            &found::SYNC_STANDBY_ABSENT,
            format!(
                "synchronous_standby_names = '{names}' wants {wanted}, {present} of them stream, {commits} commits wait"
            ),
            "",
        ));
    } else if commits > 0 {
        view.see(format!("{commits} commits wait for a synchronous standby"));
    }
}

/// How many standbys a commit waits for: `FIRST 2 (a, b)`, `ANY 2 (a, b)`, `2 (a, b)`; a list alone means one.
fn wanted(names: &str) -> usize {
    let number = || {
        let (before, _) = names.split_once('(')?;
        // In quotes it would belong to a name.
        let before = Some(before).filter(|before| !before.contains(['"', ',']))?;
        before.split_whitespace().last()?.parse().ok()
    };
    number().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_synchronous_standbys_is_read() {
        for (names, number) in [
            ("a", 1),
            ("a, b", 1),
            ("2 (a, b)", 2),
            ("FIRST 2 (a, b)", 2),
            ("any 3(a, b, c)", 3),
            ("2, 3", 1),
            ("\"x 2 (y\"", 1),
        ] {
            assert_eq!(wanted(names), number, "{names}");
        }
    }
}
