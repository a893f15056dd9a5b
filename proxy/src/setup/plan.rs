//! From facts and wishes to changes, and nothing else: reads files through [`Files`], changes none.

mod logins; // pg_hba.conf, pg_ident.conf
mod settings; // postgresql.conf
mod statements; // SQL

use std::collections::BTreeMap;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::facts::{Facts, RefusedLine};
use super::files::{Files, NotUnderstood, Overlay};
use super::hba;
use super::tls::{self, Tls};
use super::version::{Major, Thing, has, since};
use crate::problem::Problem;
use logins::{fix_trust, ident_lines, rules};
use settings::{check_command_line, check_effective, own_settings, same, set, settings_files};
use statements::sql;

pub(super) use settings::{own_text, wal_rank};
pub(super) use statements::REWIND_FUNCTIONS;

/// The map of pg_ident.conf by which the proxy's OS user becomes the role.
pub(crate) const MAP: &str = "pgtlsproxy";
/// The database that pg_rewind and the slot-sync worker connect to.
pub(crate) const MAINTENANCE_DATABASE: &str = "postgres";

/// Settings that take effect at a restart (context `postmaster`).
const AT_RESTART: [&str; 9] = [
    "max_connections",
    "max_worker_processes",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "hot_standby",
    "wal_log_hints",
];

/// How the role logs in.
pub(crate) enum LoginBy {
    /// By being the proxy's OS user, on the Unix socket.
    OsUser,
    /// By SCRAM (md5 before 10), with this password where the role has none that serves.
    Password(Option<Zeroizing<String>>),
    /// By a certificate, over PostgreSQL's own TLS.
    Certificate(Tls),
}

/// What the primary is to be made ready for.
pub(crate) struct Wishes {
    /// The role by which standbys log in.
    pub(crate) role: String,
    /// The OS user that the proxy runs as.
    pub(crate) os_user: String,
    /// Names of the standbys.
    pub(crate) standbys: Vec<String>,
    /// Databases for logical replication.
    pub(crate) logical: Vec<String>,
    pub(crate) rewind: bool,
    pub(crate) slot_sync: bool,
    pub(crate) fix_trust: bool,
    /// Make slots even where nothing bounds them.
    pub(crate) slot: bool,
    pub(crate) login: LoginBy,
}

/// A file as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileChange {
    pub(crate) path: PathBuf,
    pub(crate) new: Vec<u8>,
}

/// Something that the server is told.
#[derive(Debug)]
pub(crate) struct SqlChange {
    /// What it does, as a person would say it; without secrets.
    pub(crate) what: String,
    pub(crate) sql: Zeroizing<String>,
    /// What undoes it, if it is to be undone.
    pub(crate) undo: Option<String>,
    /// It cannot be done before the restart that is due.
    pub(crate) after_restart: bool,
}

/// All that is to be done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) files: Vec<FileChange>,
    pub(crate) sql: Vec<SqlChange>,
    /// Settings that wait for a restart of the server.
    pub(crate) restart_for: Vec<String>,
    pub(crate) warnings: Vec<Problem>,
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.sql.is_empty() && self.restart_for.is_empty()
    }
}

/// What the journal says of a slot's making.
pub(crate) fn making_slot(slot: &str) -> String {
    format!("create replication slot {slot}")
}

/// The name of the slot of a standby: slots know lower-case letters, digits and underscores.
pub(crate) fn slot_name(standby: &str) -> String {
    let letter = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    standby.chars().map(letter).collect()
}

/// What makes this server a primary whose standbys come through the proxy.
pub(crate) fn primary(
    files: &dyn Files,
    facts: &Facts,
    wishes: &Wishes,
) -> Result<Plan, Vec<Problem>> {
    node(files, facts, wishes, &[])
}

/// As [`primary`], with settings that a standby needs besides; of a number in both, the larger counts.
pub(crate) fn node(
    files: &dyn Files,
    facts: &Facts,
    wishes: &Wishes,
    more: &[(&'static str, String)],
) -> Result<Plan, Vec<Problem>> {
    let mut plan = Plan::default();
    refuse_what_it_has_not(facts.major, wishes).map_err(|problem| vec![problem])?;
    let mut own = own_settings(facts, wishes);
    for (name, value) in more {
        let number = |text: &str| text.parse::<u64>().ok();
        match own.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) if number(known) >= number(value) => {}
            Some((_, known)) => known.clone_from(value),
            None => own.push((name, value.clone())),
        }
    }
    check_command_line(facts, &own)?;
    let mut view = Overlay {
        below: files,
        new: BTreeMap::new(),
    };
    let one = |fault: NotUnderstood| vec![Problem::from(fault)];
    fix_trust(&mut view, facts, wishes, &mut plan)?;
    let (rules, logins) = rules(facts, wishes).map_err(|problem| vec![problem])?;
    let hba = hba::with_block(&view, &facts.hba_file, facts.major, &rules, &logins).map_err(one)?;
    view.new.insert(facts.hba_file.clone(), hba);
    refuse_what_is_refused(facts)?;
    if let LoginBy::Certificate(tls) = &wishes.login {
        let set = |name: &str| set(facts, name);
        let shared = tls::shared(files, tls, facts, set);
        own.retain(|(name, _)| !shared.settings.contains(name));
        let objections = tls::objections(tls, &shared, facts, set);
        plan.warnings
            .extend(objections.map_err(|problem| vec![problem])?);
    }
    if !matches!(wishes.login, LoginBy::Password(_)) {
        let known = files.read(&facts.ident_file).unwrap_or_default();
        let lines = ident_lines(facts, wishes, &known).map_err(|problem| vec![problem])?;
        let ident =
            hba::ident_with_block(&view, &facts.ident_file, facts.major, &lines).map_err(one)?;
        view.new.insert(facts.ident_file.clone(), ident);
    }
    settings_files(&mut view, facts, &own).map_err(one)?;
    plan.files = changed(files, view.new.clone());
    check_effective(&view, facts, &own)?;
    if let Some(running) = &facts.running {
        for (name, value) in &own {
            let at_restart = AT_RESTART.contains(name) || tls::at_restart(name, facts.major);
            if at_restart
                && !running.fixed.contains_key(*name)
                && running
                    .settings
                    .get(*name)
                    .is_some_and(|now| now != value && !same(name, now, value))
            {
                plan.restart_for.push((*name).to_owned());
            }
        }
        sql(facts, wishes, &mut plan);
    }
    Ok(plan)
}

/// With one line that it does not take, a server goes on with the file that it had: what setup writes would not count.
fn refuse_what_is_refused(facts: &Facts) -> Result<(), Vec<Problem>> {
    let refused = facts.running.iter().flat_map(|running| &running.refused);
    let problem = |line: &RefusedLine| {
        Problem::new(
            "G28",
            format!("{} is refused by PostgreSQL", line.place),
            format!(
                "{}; with it PostgreSQL takes nothing of the file; nothing was changed",
                line.why
            ),
            "mend that line, then run this again",
        )
    };
    let problems: Vec<_> = refused.map(problem).collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// An option for what this major does not have would be silently without effect.
fn refuse_what_it_has_not(major: Major, wishes: &Wishes) -> Result<(), Problem> {
    let asked = [
        (wishes.rewind, "--rewind", Thing::Rewind),
        (wishes.slot_sync, "--slot-sync", Thing::SlotSync),
        (
            !wishes.logical.is_empty(),
            "--logical",
            Thing::LogicalDecoding,
        ),
        (wishes.slot, "--slot", Thing::Slots),
    ];
    for (wished, option, thing) in asked {
        if wished && !has(major, thing) {
            let since = since(thing).map_or_else(String::new, |major| major.to_string());
            return Err(Problem::new(
                "G19",
                format!("PostgreSQL {major} has nothing for {option}"),
                format!("what it prepares came with {since}"),
                format!("leave {option} away"),
            ));
        }
    }
    Ok(())
}

/// Only what really changes.
fn changed(files: &dyn Files, new: BTreeMap<PathBuf, Vec<u8>>) -> Vec<FileChange> {
    new.into_iter()
        .filter(|(path, new)| files.read(path).ok().as_ref() != Some(new))
        .map(|(path, new)| FileChange { path, new })
        .collect()
}
