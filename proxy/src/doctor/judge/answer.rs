//! What the far PostgreSQL answered on the standby's own startup, by SQLSTATE and routine: texts may be in any
//! language ("PostgreSQL Error Codes"; "Error and Notice Message Fields").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::path::{layer_of, told};
use super::{View, standby, words};
use crate::doctor::catalogue::{self as found, Entry, Layer, Severity};
use crate::doctor::facts::{
    Answer, Cluster, Facts, FarSlot, Login, Password, Route, ServerError, Side, Upstream,
};
use crate::doctor::report::Finding;

pub(super) fn postgres(facts: &Facts, view: &mut View) {
    if facts.side == Side::Server {
        return;
    }
    let (Some((route, answer)), Some(cluster)) = (best(facts), &facts.cluster) else {
        return;
    };
    let Some(upstream) = &cluster.upstream else {
        return;
    };
    let mut own = View::default();
    match answer {
        Answer::Welcome(login) => welcome(facts, login, upstream, &mut own),
        Answer::Refused(error) => own.find(refused(error, upstream)),
        Answer::NoPassword(password) => own.find(no_password(password, upstream)),
        Answer::Silent => own.find(Finding::new(
            &found::NO_ANSWER,
            format!("{} took the startup and said nothing", route.target),
            "",
        )),
        Answer::Broke(why) => own.find(Finding::new(
            &found::NO_ANSWER,
            format!("{}: {}", route.target, why),
            "",
        )),
    }
    view.seen.extend(own.seen);
    view.findings.extend(
        own.findings
            .into_iter()
            .map(|finding| while_it_flows(finding, cluster)),
    );
}

/// What stands against a new connection does not stop one that streams; and our own question takes a walsender, too.
fn while_it_flows(finding: Finding, cluster: &Cluster) -> Finding {
    if !cluster.flows() {
        finding
    } else if finding.id == found::SENDERS_USED_UP.id {
        finding.at_most(Severity::Note)
    } else {
        finding.at_most(Severity::Warning)
    }
}

/// The answer of the target that let us furthest in.
pub(super) fn best(facts: &Facts) -> Option<(&Route, &Answer)> {
    let answers = || {
        facts
            .routes
            .iter()
            .filter_map(|route| Some((route, route.answer.as_ref()?)))
    };
    answers()
        .find(|(_, answer)| matches!(answer, Answer::Welcome(_)))
        .or_else(|| answers().next())
}

pub(super) fn login(facts: &Facts) -> Option<&Login> {
    match best(facts)?.1 {
        Answer::Welcome(login) => Some(login),
        _ => None,
    }
}

fn welcome(facts: &Facts, login: &Login, upstream: &Upstream, view: &mut View) {
    let role = &upstream.user;
    view.see(format!(
        "the primary admits {role}; its WAL ends at {} on timeline {}",
        login.lsn, login.timeline
    ));
    let wal_level = login.settings.get("wal_level").map_or("", String::as_str);
    if upstream.database.is_some() && !wal_level.is_empty() && wal_level != "logical" {
        view.find(Finding::new(
            &found::WAL_LEVEL_NOT_LOGICAL,
            format!("wal_level = {wal_level} on the publisher"),
            "",
        ));
    } else if let (Some(fact), Some(slot)) = (gone(login.slot), &upstream.slot) {
        view.find(Finding::new(
            &found::SUBSCRIPTION_SLOT,
            format!("slot {slot} {fact}"),
            &logical_anew(login.slot, slot),
        ));
    }
    // Asked of another cluster, or of an old primary, the server's objections would say nothing.
    let elsewhere = facts
        .cluster
        .as_ref()
        .is_none_or(|cluster| standby::elsewhere(cluster, login).is_some());
    if let (Some(Err(error)), false) = (&login.stream, elsewhere)
        && let Some(finding) = no_stream(error, upstream)
    {
        view.find(finding);
    }
}

/// What pg_replication_slots over there says of a subscription's slot that cannot be used.
fn gone(slot: Option<FarSlot>) -> Option<&'static str> {
    match slot? {
        FarSlot::Missing => Some("is not in pg_replication_slots there"),
        FarSlot::Lost => Some("has wal_status lost there"),
        FarSlot::There => None,
    }
}

fn logical_anew(state: Option<FarSlot>, slot: &str) -> String {
    let drop = match state {
        Some(FarSlot::Lost) => format!("SELECT pg_drop_replication_slot('{slot}'); "),
        _ => String::new(),
    };
    format!("{drop}SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
}

/// START_REPLICATION was refused.
fn no_stream(error: &ServerError, upstream: &Upstream) -> Option<Finding> {
    let slot = upstream.slot.as_deref();
    let fact = format!("START_REPLICATION: {}", error.line());
    let found = |entry: &Entry, fill: &str| Some(Finding::new(entry, fact.clone(), fill));
    match (error.sqlstate.as_str(), slot) {
        ("42704", Some(slot)) => found(&found::SLOT_MISSING, slot),
        ("55006", _) => found(&found::SLOT_IN_USE, ""),
        // A name of a setting, which is not translated.
        ("55000", Some(slot)) if error.line().contains("idle_timeout") => {
            found(&found::SLOT_IDLE, &anew(slot))
        }
        ("55000", Some(slot)) => found(&found::SLOT_LOST, &anew(slot)),
        // The file of WAL is gone: with a slot, it has been invalidated, or was never reserved.
        ("58P01", Some(slot)) => found(&found::SLOT_LOST, &anew(slot)),
        ("58P01", None) => found(&found::WAL_REMOVED, ""),
        // What else it says concerns timelines: the next layer.
        _ => None,
    }
}

pub(super) fn anew(slot: &str) -> String {
    format!(
        "SELECT pg_drop_replication_slot('{slot}'), pg_create_physical_replication_slot('{slot}', true)"
    )
}

fn refused(error: &ServerError, upstream: &Upstream) -> Finding {
    let role = words::name(&upstream.user);
    let role = role.as_str();
    let fact = format!("the primary answers: {}", error.line());
    if let Some(explained) = told(error) {
        // Only what lies behind the far proxy comes here.
        return Finding::explained(
            &explained,
            layer_of(&explained.id).max(Layer::Postgres),
            fact,
        );
    }
    let line = hba_line(error, upstream);
    let database = words::name(upstream.database.as_deref().unwrap_or_default());
    let grant = format!("{database} TO {role}");
    let (entry, fill) = match (error.sqlstate.as_str(), error.routine.as_str()) {
        // Both "no entry" and "rejects" come from there.
        ("28000", "ClientAuthentication") if error.message.contains("pg_hba.conf rejects") => {
            (&found::HBA_REJECTS, line.as_str())
        }
        ("28000", "ClientAuthentication") if upstream.database.is_some() => {
            (&found::HBA_DATABASE, line.as_str())
        }
        ("28000", "ClientAuthentication") => (&found::HBA_NO_LINE, line.as_str()),
        ("28000", "auth_failed") => (&found::PEER_REFUSED, role),
        ("28000", "InitializeSessionUserId") if error.message.contains("does not exist") => {
            (&found::ROLE_MISSING, role)
        }
        ("28000", "InitializeSessionUserId")
            if error.message.contains("not permitted to log in") =>
        {
            (&found::ROLE_CANNOT_LOG_IN, role)
        }
        ("28P01", _) => (&found::PASSWORD_WRONG, role),
        ("42501", "CheckMyDatabase") => (&found::NO_CONNECT, grant.as_str()),
        ("42501", "InitPostgres") => (&found::ROLE_CANNOT_REPLICATE, role),
        ("3D000", _) => (&found::DATABASE_MISSING, ""),
        ("53300", "InitializeSessionUserId") => (&found::ROLE_CANNOT_LOG_IN, role),
        // A walsender has a place of its own since 12; before, InitProcess speaks of all connections.
        ("53300", "InitProcess" | "InitWalSenderSlot" | "InitWalSnd") => {
            (&found::SENDERS_USED_UP, "")
        }
        ("53300", "CheckMyDatabase") => (&found::DATABASE_FULL, database.as_str()),
        ("53300", _) => (&found::CONNECTIONS_USED_UP, ""),
        ("57P03", _) => (&found::POSTGRES_NOT_READY, ""),
        _ => (&found::REFUSED, ""),
    };
    Finding::new(entry, fact, fill)
}

/// The line that would admit it. `[local]` is in no language's message translated.
fn hba_line(error: &ServerError, upstream: &Upstream) -> String {
    let database = upstream.database.as_deref().unwrap_or("replication");
    let role = &upstream.user;
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let from = loopback
        .into_iter()
        .find(|ip| error.message.contains(&format!("\"{ip}\"")));
    match from {
        Some(ip) => words::host_line(database, role, ip),
        None => words::local_line(database, role),
    }
}

fn no_password(password: &Password, upstream: &Upstream) -> Finding {
    match password {
        Password::Missing { passfile, line } => Finding::new(
            &found::PASSWORD_NONE,
            format!(
                "neither primary_conninfo nor {passfile} has one for {}",
                upstream.user
            ),
            line,
        ),
        Password::Ignored {
            passfile,
            why,
            mend,
        } => Finding::new(&found::PASSFILE, format!("{passfile}: {why}"), mend),
        Password::Method(method) => Finding::new(
            &found::REFUSED,
            format!("it asks for an authentication that a standby does not have: {method}"),
            "",
        ),
    }
}
