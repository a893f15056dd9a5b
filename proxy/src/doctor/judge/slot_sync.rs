//! Slots that a standby keeps in step with its primary's, from 17 on: what that needs here, and whether its worker gets
//! in over there.

use super::path::told;
use super::{View, words};
use crate::doctor::catalogue as found;
use crate::doctor::facts::{Answer, Cluster, Facts, ServerError, Upstream};
use crate::doctor::report::Finding;

/// What slot synchronisation needs besides the setting ("Replication Slot Synchronization", 17 and later).
pub(super) fn slot_sync(facts: &Facts, cluster: &Cluster, view: &mut View) {
    if cluster.setting("sync_replication_slots") != "on" {
        return;
    }
    let upstream = cluster.upstream.as_ref();
    let mut missing = Vec::new();
    if !upstream.is_some_and(|upstream| upstream.has_dbname) {
        missing.push("dbname in primary_conninfo");
    }
    if upstream.is_none_or(|upstream| upstream.slot.is_none()) {
        missing.push("primary_slot_name");
    }
    if cluster.setting("hot_standby_feedback") != "on" {
        missing.push("hot_standby_feedback = on");
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        view.find(Finding::new(
            &found::SLOT_SYNC,
            "sync_replication_slots = on",
            &format!("set {missing}, and reload"),
        ));
        return;
    }
    let (Some(upstream), Some(answer)) = (upstream, &facts.slot_sync) else {
        return;
    };
    let (fact, way_out) = match answer {
        Answer::Welcome(_) => return,
        Answer::Refused(error) => match told(error) {
            Some(explained) => (
                format!("{} [{}]", explained.message, explained.id),
                "in that node's [[server.allow]] rule: ordinary = true, and this database"
                    .to_owned(),
            ),
            None => (error.line(), not_let_in(error, upstream)),
        },
        Answer::NoPassword(_) => (
            "a password is asked for, and there is none for an ordinary session".to_owned(),
            "add a line for that database to the passfile".to_owned(),
        ),
        Answer::Silent | Answer::Broke(_) => return,
    };
    view.find(Finding::new(
        &found::SLOT_SYNC,
        format!("its worker logs in as an ordinary session, which is refused: {fact}"),
        &way_out,
    ));
}

fn not_let_in(error: &ServerError, upstream: &Upstream) -> String {
    match error.sqlstate.as_str() {
        "28000" => format!(
            "on the primary, with the name of the database in primary_conninfo: {}",
            words::local_line("DATABASE", &upstream.user)
        ),
        "42501" => format!(
            "on the primary, with the name of the database in primary_conninfo: GRANT CONNECT ON DATABASE NAME TO {}",
            words::name(&upstream.user)
        ),
        "3D000" => "mend dbname in primary_conninfo".to_owned(),
        _ => "look at the primary's log".to_owned(),
    }
}
