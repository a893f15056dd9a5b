//! From facts and wishes to changes, and nothing else: reads files through [`Files`], changes none.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postgres_protocol::password;
use zeroize::Zeroizing;

use super::block;
use super::conf;
use super::facts::{Facts, OWN_FILE};
use super::files::{Files, NotUnderstood, Overlay};
use super::hba::{self, Kind, Login, Rule, Transport, Via};
use super::server::{identifier, literal};
use super::tls::{self, Tls};
use super::version::{Major, Thing, V9_6, V10, V11, V14, has, since, wants};
use crate::problem::Problem;

/// The map of pg_ident.conf by which the proxy's OS user becomes the role.
pub(crate) const MAP: &str = "pgtlsproxy";
/// The database that pg_rewind and the slot-sync worker connect to.
pub(crate) const MAINTENANCE_DATABASE: &str = "postgres";

/// Settings that take effect at a restart (context `postmaster`).
const AT_RESTART: [&str; 5] = [
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
    let mut view = Overlay {
        below: files,
        new: BTreeMap::new(),
    };
    let one = |fault: NotUnderstood| vec![Problem::from(fault)];
    fix_trust(&mut view, facts, wishes, &mut plan)?;
    let (rules, logins) = rules(facts, wishes).map_err(|problem| vec![problem])?;
    let hba = hba::with_block(&view, &facts.hba_file, facts.major, &rules, &logins).map_err(one)?;
    view.new.insert(facts.hba_file.clone(), hba);
    if let LoginBy::Certificate(tls) = &wishes.login {
        let set = |name: &str| set(facts, name);
        plan.warnings
            .extend(tls::objections(tls, facts, set).map_err(|problem| vec![problem])?);
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

/// Old spellings that mean the same (documentation of 9.6, wal_level).
fn same(name: &str, now: &str, value: &str) -> bool {
    name == "wal_level" && wal_rank(now) >= wal_rank(value)
}

/// Only what really changes.
fn changed(files: &dyn Files, new: BTreeMap<PathBuf, Vec<u8>>) -> Vec<FileChange> {
    new.into_iter()
        .filter(|(path, new)| files.read(path).ok().as_ref() != Some(new))
        .map(|(path, new)| FileChange { path, new })
        .collect()
}

fn wal_rank(level: &str) -> u8 {
    match level {
        "minimal" => 0,
        "archive" => 1,
        "replica" | "hot_standby" => 2,
        "logical" => 3,
        _ => 0,
    }
}

/// What our own file is to say: only what others do not say well enough. What they say counts, not what an earlier run of
/// ours made of it, so that a second run finds the same.
fn own_settings(facts: &Facts, wishes: &Wishes) -> Vec<(&'static str, String)> {
    let major = facts.major;
    let set = |name: &str| set(facts, name);
    // Of an earlier run, which may have had other options: what it prepared stays prepared.
    let before = |name: &str| {
        let found = facts.own.effective(name)?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    };
    let at_least = |name: &str, value: u32| {
        let earlier = before(name).and_then(|value| value.parse().ok());
        value.max(earlier.unwrap_or(0)).to_string()
    };
    let number = |name: &str, default: u32| {
        set(name).map_or(default, |value| value.trim().parse().unwrap_or(default))
    };
    let mut own = Vec::new();

    // The slots that are synchronised are logical ones (documentation, 47.2.3).
    let needed = if wishes.logical.is_empty() && !wishes.slot_sync {
        Thing::WalLevel
    } else {
        Thing::WalLevelLogical
    };
    let default = if major >= V10 { "replica" } else { "minimal" };
    let earlier = before("wal_level").filter(|level| wal_rank(level) > 2);
    if let Some(level) = earlier.as_deref().or_else(|| wants(major, needed))
        && wal_rank(&set("wal_level").unwrap_or_else(|| default.to_owned())) < wal_rank(level)
    {
        own.push(("wal_level", level.to_owned()));
    }

    // The defaults of 10 (its release notes); before, both were 0.
    let default = if major >= V10 { 10 } else { 0 };
    let standbys = u32::try_from(wishes.standbys.len()).unwrap_or(u32::MAX);
    // A base backup takes two more, and room is left to look at it by hand.
    let senders = standbys.saturating_mul(2).saturating_add(4);
    if number("max_wal_senders", default) < senders {
        own.push((
            "max_wal_senders",
            at_least("max_wal_senders", senders.max(10)),
        ));
    }
    let slots = standbys.saturating_add(4);
    if let Some(name) = wants(major, Thing::Slots)
        && number(name, default) < slots
    {
        own.push((name, at_least(name, slots.max(10))));
    }
    if let Some(name) = wants(major, Thing::KeepWal)
        && set(name).is_none_or(|value| value == "0")
    {
        // 64 segments of 16 MB are the same gigabyte.
        let value = if name == "wal_keep_size" { "1GB" } else { "64" };
        own.push((name, value.to_owned()));
    }
    if let Some(name) = wants(major, Thing::SlotBound)
        && set(name).is_none_or(|value| value == "-1")
    {
        own.push((name, before(name).unwrap_or_else(|| slot_bound(facts.free))));
    }
    if let Some(value) = wants(major, Thing::HotStandby)
        && set("hot_standby").is_none_or(|value| value.eq_ignore_ascii_case("off"))
    {
        own.push(("hot_standby", value.to_owned()));
    }
    let checksums = facts
        .running
        .as_ref()
        .and_then(|running| running.settings.get("data_checksums"));
    if (wishes.rewind || before("wal_log_hints").is_some())
        && has(major, Thing::Rewind)
        && checksums.is_none_or(|value| value != "on")
        && set("wal_log_hints").is_none_or(|value| !value.eq_ignore_ascii_case("on"))
    {
        own.push(("wal_log_hints", "on".to_owned()));
    }
    if let LoginBy::Certificate(tls) = &wishes.login {
        own.extend(tls::settings(tls, facts, set));
    } else {
        let kept = tls::SETTINGS.iter();
        own.extend(kept.filter_map(|name| Some((*name, before(name)?))));
    }
    own
}

/// What others set it to: the last of them.
fn set(facts: &Facts, name: &str) -> Option<String> {
    let found = facts.settings.effective(name)?;
    Some(String::from_utf8_lossy(&found.value).into_owned())
}

/// A quarter of the free space, in whole gigabytes, between 1 and 64: a slot must not fill the disk.
fn slot_bound(free: u64) -> String {
    format!("{}GB", (free / 4 / (1 << 30)).clamp(1, 64))
}

fn settings_files(
    view: &mut Overlay<'_>,
    facts: &Facts,
    own: &[(&'static str, String)],
) -> Result<(), NotUnderstood> {
    let pairs: Vec<(&str, &[u8])> = own
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect();
    let mut text =
        b"# Written by `pgtlsproxy setup`, taken away by `pgtlsproxy setup undo`.\n".to_vec();
    text.extend(conf::render(&pairs));
    view.new.insert(facts.own_file.clone(), text);
    if facts.taken_in {
        return Ok(());
    }
    let path = &facts.config_file;
    let main = view
        .read(path)
        .map_err(|error| NotUnderstood::new(path, 0, error.to_string()))?;
    let bare = block::without(&main).map_err(|unpaired| {
        NotUnderstood::new(
            path,
            unpaired.line,
            "a mark of pgtlsproxy without its other",
        )
    })?;
    let include = format!("include '{OWN_FILE}'").into_bytes();
    let new = block::insert(&bare, bare.len(), &[include]);
    view.new.insert(path.clone(), new);
    Ok(())
}

/// Our settings must be the last word on themselves.
fn check_effective(
    view: &Overlay<'_>,
    facts: &Facts,
    own: &[(&'static str, String)],
) -> Result<(), Vec<Problem>> {
    let settings = conf::read(view, &facts.config_file, &facts.data, facts.major)
        .map_err(|fault| vec![Problem::from(fault)])?;
    let overruled = own.iter().filter_map(|(name, _)| {
        let place = &settings.effective(name)?.place;
        (place.file != facts.own_file).then(|| {
            let way_out = if place.file.ends_with("postgresql.auto.conf") {
                format!(
                    "`ALTER SYSTEM RESET {name}`, or set it well enough there; then run this again"
                )
            } else {
                "take that line out, or set it well enough there; then run this again".to_owned()
            };
            Problem::new(
                "G08",
                format!("{place} sets {name}"),
                "it comes after what setup would write, and is not enough",
                way_out,
            )
        })
    });
    let overruled: Vec<_> = overruled.collect();
    if overruled.is_empty() {
        Ok(())
    } else {
        Err(overruled)
    }
}

/// Finds lines that let in anybody on this host; replaces their method if that is wished.
fn fix_trust(
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
fn rules<'a>(facts: &Facts, wishes: &'a Wishes) -> Result<(Vec<String>, Vec<Login<'a>>), Problem> {
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

fn ident_lines(facts: &Facts, wishes: &Wishes, known: &[u8]) -> Result<Vec<String>, Problem> {
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
    let kept: Vec<_> = tls::kept_maps(&String::from_utf8_lossy(&inside), map, &lines).collect();
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

fn sql(facts: &Facts, wishes: &Wishes, plan: &mut Plan) {
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
pub(super) const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];
