//! `pgtlsproxy setup undo`: the server is told back, the files come back, and what does not is said at the end.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::SetupUndo;
use crate::problem::Problem;
use crate::setup::needed::{self, Needed};
use crate::setup::{
    self, Cluster, Facts, Journal, Server, SqlEntry, Stay, Theirs, UndoReport, Undone, Wanted,
};

/// SQLSTATE undefined_object, as psql shows it in its verbose form, which is the same in every language.
const GONE: &str = "  42704: ";
const DROPS_SLOT: &str = "pg_drop_replication_slot(slot_name)";

pub(super) fn run(flags: &SetupUndo) -> Result<(), Vec<Problem>> {
    let one = |problem: Problem| vec![problem];
    let mut left = Vec::new();
    let report = undo_all(flags, &mut left).map_err(one)?;
    if flags.json {
        println!("{}", setup::json(&report).map_err(one)?);
    }
    if left.is_empty() { Ok(()) } else { Err(left) }
}

/// What could not be undone is `left`, and in the journal still.
fn undo_all(flags: &SetupUndo, left: &mut Vec<Problem>) -> Result<UndoReport, Problem> {
    let mut report = UndoReport {
        format: setup::FORMAT,
        ..UndoReport::default()
    };
    let directory = flags.dir.join("setup");
    if !directory.exists() {
        eprintln!("{}: nothing to undo", flags.dir.display());
        return Ok(report);
    }
    let mut journal = Journal::open(&directory)?;
    if journal.is_empty() {
        eprintln!("{}: nothing to undo", flags.dir.display());
        return Ok(report);
    }
    report.changed = true;
    let back = flags.bring_back && journal.copy().is_some();
    // First the proxy: the slots of those that stream through it can be dropped then. But a standby drops its own slot
    // through it, at the primary.
    let mut units = None;
    if !back {
        units = Some(setup::stop_units(&journal, &flags.dir)?);
    }
    let cluster: Option<Cluster> = journal
        .cluster()
        .and_then(|data| setup::find(Wanted::DataDirectory(data)).ok());
    let server = cluster.as_ref().and_then(Server::of);
    let answers = tell_back(&mut journal, server.as_ref(), &mut report, left)?;
    if back
        && server.is_some()
        && let Some(cluster) = &cluster
    {
        setup::stop_standby(&flags.dir, &journal, cluster)?;
    }
    let units = match units {
        Some(units) => units,
        None => setup::stop_units(&journal, &flags.dir)?,
    };
    report.steps.extend(units.stopped.iter().cloned());
    let stay = Stay {
        for_good: units.kept.clone(),
        for_now: Vec::new(),
    };
    // The old directory comes back with a configuration of its own.
    let cluster = cluster.filter(|_| !back);
    files_back(
        &mut journal,
        cluster.as_ref(),
        server.as_ref(),
        stay,
        &mut report,
        left,
    )?;
    setup::forget_units(&units)?;
    if let Some(server) = server.filter(|_| !back && answers)
        && let Err(problem) = server.query("SELECT pg_reload_conf()")
    {
        left.push(problem);
    }
    super::standby::undo(&mut journal, flags.bring_back, &mut report)?;
    eprintln!(
        "Roles, certificates and the CA stay. Settings that need a restart go with the next one."
    );
    Ok(report)
}

/// Tells the server back what it was told; false if it does not answer. What fails stays in the journal, and keeps nothing
/// else from being undone.
fn tell_back(
    journal: &mut Journal,
    server: Option<&Server>,
    report: &mut UndoReport,
    left: &mut Vec<Problem>,
) -> Result<bool, Problem> {
    let told = journal.sql();
    let Some(server) = server else {
        for entry in told {
            eprintln!(
                "PostgreSQL does not run; this stays: {} (undo: {})",
                entry.what, entry.undo
            );
            report.left.push(entry.what);
        }
        return Ok(false);
    };
    // After a failover: roles and grants are the primary's, slots are each server's own.
    let follows = match server.query("SELECT pg_is_in_recovery()") {
        Ok(answer) => answer == "t",
        Err(problem) => {
            for entry in told {
                left.push(not_undone(&entry, &problem.why));
                report.left.push(entry.what);
            }
            return Ok(false);
        }
    };
    for entry in told {
        if follows && !entry.undo.contains(DROPS_SLOT) {
            eprintln!(
                "PostgreSQL is a standby now; this stays: {} (undo, on the primary: {})",
                entry.what, entry.undo
            );
            report.left.push(entry.what.clone());
        } else if let Err(why) = tell(server, &entry.undo) {
            left.push(not_undone(&entry, &why));
            report.left.push(entry.what);
            continue;
        } else if is_in_use(server, &entry.undo) {
            eprintln!(
                "the slot is in use; this stays: {} (undo: {})",
                entry.what, entry.undo
            );
            report.left.push(entry.what.clone());
        } else {
            eprintln!("undid: {}", entry.what);
            report.steps.push(entry.what.clone());
        }
        journal.strike_sql(&entry.what)?;
    }
    Ok(true)
}

fn not_undone(entry: &SqlEntry, why: &str) -> Problem {
    Problem::new(
        "G29",
        format!("not undone: {}", entry.what),
        why,
        format!(
            "`pgtlsproxy setup undo` again once that is mended, or by hand: {}",
            entry.undo
        ),
    )
}

/// What is gone already needs no undoing.
fn tell(server: &Server, undo: &str) -> Result<(), String> {
    match server.query(&format!("\\set VERBOSITY verbose\n{undo}")) {
        Err(problem) if !problem.why.contains(GONE) => Err(problem.why),
        _ => Ok(()),
    }
}

/// Whether the slot that this should have dropped is still there: one in use is not dropped.
fn is_in_use(server: &Server, undo: &str) -> bool {
    if !undo.contains(DROPS_SLOT) {
        return false;
    }
    let look = undo
        .replace(DROPS_SLOT, "slot_name")
        .replace(" AND NOT active", "");
    server.query(&look).is_ok_and(|found| !found.is_empty())
}

/// Puts the files back, but for what the server could not start without.
fn files_back(
    journal: &mut Journal,
    cluster: Option<&Cluster>,
    server: Option<&Server>,
    mut stay: Stay,
    report: &mut UndoReport,
    left: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let facts = cluster.and_then(|cluster| {
        let files = Theirs::of(&cluster.owner);
        let facts = |server| setup::gather(&files, cluster, server, "").ok();
        let facts = facts(server).or_else(|| facts(None))?;
        let needed = needed::settings(&files, cluster, &facts);
        Some((cluster, facts, needed))
    });
    let mut undone = Vec::new();
    let mut undo = |journal: &mut Journal, stay: &Stay| {
        if let Err(problem) = journal.undo_files(stay, &mut undone)
            && !left.contains(&problem)
        {
            left.push(problem);
        }
    };
    match facts {
        None => undo(journal, &stay),
        Some((cluster, facts, needed)) => {
            let own = real(&facts.own_file);
            let there = journal.has(&own);
            if there && !needed.is_empty() {
                needed::keep(journal, &own, &needed)?;
                stay.for_now.push(real(&facts.config_file));
            }
            // Last of all, when it is seen whether anything takes it in.
            stay.for_now.push(own.clone());
            undo(journal, &stay);
            let problems = held(cluster, &facts, &needed);
            if !there || problems.is_empty() {
                stay.for_now.clear();
                undo(journal, &stay);
            } else {
                undone.push(Undone::Needed(own));
                left.extend(problems);
            }
        }
    }
    for undone in &undone {
        say(undone);
    }
    report.files = undone;
    Ok(())
}

/// Why our own file cannot go.
fn held(cluster: &Cluster, facts: &Facts, needed: &[Needed]) -> Vec<Problem> {
    if !needed.is_empty() {
        let problem = |needed: &Needed| needed.problem(&facts.own_file);
        return needed.iter().map(problem).collect();
    }
    let files = Theirs::of(&cluster.owner);
    let problem = |place: setup::Place| {
        Problem::new(
            "G29",
            format!("{} stays", facts.own_file.display()),
            format!("{place} still includes it, and without it the server would not start"),
            "take that line out, then `pgtlsproxy setup undo` again",
        )
    };
    let included = needed::included(&files, cluster, facts);
    included.map(problem).into_iter().collect()
}

/// As it stands in the journal.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn say(undone: &Undone) {
    match undone {
        Undone::Restored(path) => eprintln!("restored {}", path.display()),
        Undone::Removed(path) => eprintln!("removed {}", path.display()),
        Undone::Unchanged(path) => eprintln!("{} has nothing of setup in it", path.display()),
        Undone::BlockTaken(path) => eprintln!(
            "{} was changed by others since: only the block of pgtlsproxy was taken out",
            path.display()
        ),
        Undone::LineTaken(path) => eprintln!(
            "{} holds what is of others: only the line of pgtlsproxy was taken out",
            path.display()
        ),
        Undone::Kept(path) => eprintln!(
            "{} stays: without it this would be a second primary",
            path.display()
        ),
        Undone::Needed(path) => eprintln!(
            "{} stays for now: the server would not start without it",
            path.display()
        ),
        Undone::Left(path) => eprintln!(
            "{} was changed by others since: it stays as it is",
            path.display()
        ),
    }
}
