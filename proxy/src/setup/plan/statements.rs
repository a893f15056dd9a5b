//! What a running server is told: the role, its password, its rights, the slots.

use postgres_protocol::password;

use super::super::facts::Facts;
use super::super::server::{identifier, literal};
use super::super::version::{Major, Thing, V9_6, V11, has, wants};
use super::{LoginBy, Plan, SqlChange, Wishes, making_slot, slot_name};

pub(super) fn sql(facts: &Facts, wishes: &Wishes, plan: &mut Plan) {
    let Some(running) = facts
        .running
        .as_ref()
        .filter(|running| !running.in_recovery)
    else {
        return;
    };
    let role = identifier(&wishes.role);
    let mut tell = |what: String, sql: String, undo: Option<String>, after_restart: bool| {
        plan.sql.push(SqlChange {
            what,
            sql: sql.into(),
            undo,
            after_restart,
        });
    };
    match running.role {
        None => {
            let sql = format!("CREATE ROLE {role} LOGIN REPLICATION");
            tell(
                format!("create role {role} with REPLICATION"),
                sql,
                None,
                false,
            );
        }
        Some(false) => {
            let sql = format!("ALTER ROLE {role} LOGIN REPLICATION");
            tell(
                format!("give role {role} LOGIN and REPLICATION"),
                sql,
                None,
                false,
            );
        }
        Some(true) => {}
    }
    if let LoginBy::Password(password) = &wishes.login
        && !running.has_password
    {
        let verifier = password
            .as_ref()
            .map(|password| literal(&verifier(password, &wishes.role, facts.major)));
        let sql = format!(
            "ALTER ROLE {role} PASSWORD {}",
            verifier.unwrap_or_default()
        );
        tell(format!("give role {role} its password"), sql, None, false);
    }
    if wishes.rewind && facts.major >= V11 && !running.may_rewind {
        // Documentation of pg_rewind, Notes.
        let functions = REWIND_FUNCTIONS.join(", ");
        tell(
            format!("let role {role} read what pg_rewind needs"),
            format!("GRANT EXECUTE ON FUNCTION {functions} TO {role}"),
            Some(format!(
                "REVOKE EXECUTE ON FUNCTION {functions} FROM {role}"
            )),
            false,
        );
    }
    if has(facts.major, Thing::Slots) && (has(facts.major, Thing::SlotBound) || wishes.slot) {
        let too_early = plan_is_due(&plan.restart_for);
        for name in wishes.standbys.iter().map(|standby| slot_name(standby)) {
            if running.slots.contains(&name) {
                continue;
            }
            let reserve = if facts.major >= V9_6 { ", true" } else { "" };
            let slot = literal(&name);
            plan.sql.push(SqlChange {
                what: making_slot(&name),
                sql: format!("SELECT pg_create_physical_replication_slot({slot}{reserve})").into(),
                undo: Some(format!(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {slot} AND NOT active"
                )),
                after_restart: too_early,
            });
        }
    }
}

/// What the server keeps of a password. Made here, as psql's \\password does, so that the password stands in no log of
/// the server, and is of the right kind whatever password_encryption says.
fn verifier(text: &str, role: &str, major: Major) -> String {
    match wants(major, Thing::PasswordMethod) {
        Some("scram-sha-256") => password::scram_sha_256(text.as_bytes()),
        _ => password::md5(text.as_bytes(), role),
    }
}

/// Slots need both of these in effect.
fn plan_is_due(restart_for: &[String]) -> bool {
    restart_for
        .iter()
        .any(|name| name == "wal_level" || name == "max_replication_slots")
}

/// What pg_rewind's role may execute from 11 on instead of being a superuser.
pub(in super::super) const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];
