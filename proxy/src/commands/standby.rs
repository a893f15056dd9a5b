//! `pgtlsproxy setup standby`, and the same as the end of `join`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::secret;
use crate::cli::{ConfigFlag, DoctorFlags, SetupStandby, StandbyFlags};
use crate::doctor::examine;
use crate::problem::Problem;
use crate::setup::{self, Ended, Journal, StandbyWishes, Way};

pub(super) fn run(flags: &SetupStandby) -> Result<ExitCode, Vec<Problem>> {
    let mut wishes = wishes(&flags.made, &flags.dir)?;
    wishes.from.clone_from(&flags.from);
    wishes.dry_run = flags.dry_run;
    if flags.rewind {
        wishes.way = Way::Rewind;
    } else if flags.config_only {
        wishes.way = Way::AsItIs;
    }
    make(&wishes)
}

/// What the flags that `join` has, too, wish for.
pub(super) fn wishes(flags: &StandbyFlags, dir: &Path) -> Result<StandbyWishes, Vec<Problem>> {
    let password = flags.password.then(secret::password).transpose();
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
        password: password.map_err(|problem| vec![problem])?,
        slot: flags.slot,
        fix_trust: flags.fix_trust,
        dry_run: false,
        within: flags.within,
        mappings: flags.tablespace_mapping.clone(),
    })
}

/// Makes the standby, and says how it ended; if it does not stream, what doctor says of it.
pub(super) fn make(wishes: &StandbyWishes) -> Result<ExitCode, Vec<Problem>> {
    match setup::standby(wishes)? {
        Ended::Shown => Ok(ExitCode::SUCCESS),
        Ended::Streams {
            changed,
            upstream,
            lsn,
            behind,
        } => {
            if !changed {
                eprintln!("nothing to do");
            }
            eprintln!("It streams from {upstream}: replayed {lsn}, {behind} bytes behind.");
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

/// What undo leaves to a person: directories are never deleted, and which of two is wanted only he knows.
pub(super) fn undo(journal: &mut Journal) -> Result<(), Problem> {
    let Some(copy) = journal.copy().cloned() else {
        return Ok(());
    };
    if let Some(cluster) = journal.cluster().filter(|data| data.exists()) {
        eprintln!(
            "{} stays a standby: without its standby.signal (recovery.conf before 12) it would be a second primary.",
            cluster.display()
        );
    }
    if !copy.aside.is_empty() {
        eprintln!("What was there before was moved aside. To have it back, stop the server, then:");
    }
    for (aside, place) in copy.aside.iter().rev() {
        eprintln!(
            "  mv {place} {place}.standby && mv {} {place}",
            aside.display(),
            place = place.display()
        );
    }
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
