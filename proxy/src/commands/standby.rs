//! `pgtlsproxy setup standby`, and the same as the end of `join`.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::secret;
use crate::cli::{ConfigFlag, DoctorFlags, SetupStandby, StandbyFlags};
use crate::doctor::examine;
use crate::problem::Problem;
use crate::setup::{self, Ended, Journal, StandbyReport, StandbyWishes, UndoReport, Way};

pub(super) fn run(flags: &SetupStandby) -> Result<ExitCode, Vec<Problem>> {
    let mut wishes = wishes(&flags.made, &flags.dir, flags.dry_run)?;
    wishes.from.clone_from(&flags.from);
    if flags.rewind {
        wishes.way = Way::Rewind;
    } else if flags.config_only {
        wishes.way = Way::AsItIs;
    }
    make(&wishes, flags.json)
}

/// What the flags that `join` has, too, wish for.
pub(super) fn wishes(
    flags: &StandbyFlags,
    dir: &Path,
    dry_run: bool,
) -> Result<StandbyWishes, Vec<Problem>> {
    let needed = flags.password && !dry_run;
    let password = needed.then(secret::password).transpose();
    Ok(StandbyWishes {
        dir: dir.to_owned(),
        cluster: flags.cluster.clone(),
        pgdata: flags.pgdata.clone(),
        bindir: flags.bindir.clone(),
        from: None,
        way: if flags.replace {
            Way::Replace
        } else {
            Way::Fresh
        },
        role: flags.role.clone(),
        os_user: flags.os_user.clone(),
        with_password: flags.password,
        password: password.map_err(|problem| vec![problem])?,
        slot: flags.slot,
        fix_trust: flags.fix_trust,
        dry_run,
        within: flags.within,
        mappings: flags.tablespace_mapping.clone(),
        waldir: flags.waldir.clone(),
    })
}

/// Makes the standby, and says how it ended; if it does not stream, what doctor says of it.
pub(super) fn make(wishes: &StandbyWishes, json: bool) -> Result<ExitCode, Vec<Problem>> {
    match setup::standby(wishes)? {
        Ended::Shown(report) => {
            for warning in &report.warnings {
                eprintln!("pgtlsproxy: {warning}");
            }
            if json {
                print_json(&report)?;
            } else {
                show(&report);
            }
            Ok(ExitCode::SUCCESS)
        }
        Ended::Streams {
            report,
            lsn,
            behind,
        } => {
            if !report.changed {
                eprintln!("nothing to do");
            }
            eprintln!(
                "It streams from {}: replayed {lsn}, {behind} bytes behind.",
                report.upstream
            );
            if json {
                print_json(&report)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Ended::Stands { data, within } => {
            eprintln!(
                "It does not stream after {} s. What doctor finds:",
                within.as_secs()
            );
            report(wishes, data)?;
            Err(vec![Problem::new(
                "V10",
                "everything is written, and the standby does not stream",
                "the report above says which layer fails",
                "mend that; then run this again, or `pgtlsproxy doctor`",
            )])
        }
    }
}

fn print_json(report: &StandbyReport) -> Result<(), Vec<Problem>> {
    let text = setup::json(report).map_err(|problem| vec![problem])?;
    println!("{text}");
    Ok(())
}

/// What would be done, in the form of `setup primary --dry-run`.
fn show(report: &StandbyReport) {
    if !report.changed {
        eprintln!("{}: nothing to do", report.cluster);
    }
    for file in &report.files {
        if let Some(note) = &file.note {
            println!("# {}: {note}", file.path.display());
        }
        if file.diff.is_empty() {
            println!("# {} is made, empty", file.path.display());
        } else {
            print!("{}", file.diff);
        }
    }
    for step in &report.steps {
        println!("# {step}");
    }
}

/// The data directories. Which of two is wanted only a person knows: unless `back` says so, they stay, and it is told how
/// the old one comes back. Where there is none in its place, a run was killed between two steps: it comes back by itself.
pub(super) fn undo(
    journal: &mut Journal,
    back: bool,
    report: &mut UndoReport,
) -> Result<(), Problem> {
    let (Some(copy), Some(data)) = (
        journal.copy().cloned(),
        journal.cluster().map(Path::to_owned),
    ) else {
        return Ok(());
    };
    if setup::discard(journal, &data)? {
        eprintln!(
            "took away a copy that had not got its place: {}",
            copy.staging.display()
        );
    }
    if back || !data.exists() {
        report.moved = setup::bring_back(journal, &data)?;
        if report.moved.is_empty() {
            eprintln!("Nothing was moved aside, so nothing comes back.");
        } else {
            eprintln!(
                "{} is what it was before. It is not started: if it was a primary, it would be a second one.",
                data.display()
            );
        }
        return journal.forget_copy();
    }
    let marked = ["standby.signal", "recovery.conf"]
        .iter()
        .any(|name| data.join(name).exists());
    if marked {
        eprintln!(
            "{} stays a standby: without its standby.signal (recovery.conf before 12) it would be a second primary.",
            data.display()
        );
    }
    if !copy.aside.is_empty() {
        eprintln!(
            "What was there before was moved aside. To have it back (`--bring-back` would have done it), stop the server, then:"
        );
    }
    for command in setup::commands_back(&copy, &data) {
        eprintln!("  {command}");
    }
    report.aside = copy
        .aside
        .into_iter()
        .map(|(from, to)| setup::Moved { from, to })
        .collect();
    journal.forget_copy()
}

fn report(wishes: &StandbyWishes, data: PathBuf) -> Result<(), Vec<Problem>> {
    let flags = DoctorFlags {
        config: ConfigFlag {
            config: wishes.dir.join("pgtlsproxy.toml"),
        },
        tunnel: None,
        cluster: None,
        pgdata: Some(data),
        json: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return Ok(());
    };
    let examined = runtime.block_on(examine(&flags));
    // A resolver that hangs must not keep us.
    runtime.shutdown_background();
    eprintln!("{}", examined.map_err(|problem| vec![problem])?);
    Ok(())
}
