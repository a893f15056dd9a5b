//! Files written and then judged by PostgreSQL itself before anything relies on them; what it refuses is put back at once.

use std::path::Path;

use super::apply::{Journal, Rights};
use super::facts::refused_lines;
use super::find::Cluster;
use super::owner::{as_owner, output_of};
use super::plan::FileChange;
use super::server::Server;
use super::tls::Tls;
use crate::problem::Problem;

/// Writes these files and lets the server load them; if it would not start with them, all of them are put back.
pub(crate) fn apply_files(
    journal: &mut Journal,
    changes: &[FileChange],
    rights: Rights,
    cluster: &Cluster,
    config_file: &Path,
    server: Option<&Server>,
) -> Result<(), Problem> {
    if changes.is_empty() {
        return Ok(());
    }
    // On a full disk none of them changes, not the first half.
    let mut staged = changes
        .iter()
        .map(|change| journal.stage(change, rights))
        .collect::<Result<Vec<_>, _>>()?;
    let before: Vec<_> = staged
        .iter_mut()
        .zip(changes)
        .map(|(staged, change)| (change, staged.old.take()))
        .collect();
    let mut begun = 0;
    let written = staged
        .into_iter()
        .zip(changes)
        .try_for_each(|(staged, change)| {
            begun += 1;
            staged.commit()?;
            eprintln!("wrote {}", change.path.display());
            Ok(())
        });
    let judged = written.and_then(|()| judge(cluster, config_file, server));
    if let Err(problem) = judged {
        for (change, old) in before.into_iter().take(begun).rev() {
            let path = change.path.clone();
            let put_back = match old {
                Some(new) => journal.write(&FileChange { path, new }, rights),
                None => journal.take_away(&path),
            };
            if put_back.is_err() {
                eprintln!(
                    "{} could not be put back; `pgtlsproxy setup undo` tries again",
                    change.path.display()
                );
            }
        }
        return Err(problem);
    }
    if let Some(server) = server {
        server.query("SELECT pg_reload_conf()")?;
    }
    Ok(())
}

/// PostgreSQL must be able to read the files of its TLS: with one that it cannot, it would not start again.
pub(crate) fn check_readable(cluster: &Cluster, tls: &Tls) -> Result<(), Problem> {
    for path in [&tls.certificate, &tls.key, &tls.ca, &tls.crl] {
        let mut test = as_owner(&cluster.owner, Path::new("test"));
        if let Err(why) = output_of(test.arg("-r").arg(path)) {
            return Err(Problem::new(
                "G25",
                format!(
                    "OS user {} cannot read {}",
                    cluster.owner.name,
                    path.display()
                ),
                format!("the directories above it must be open to him {why}")
                    .trim()
                    .to_owned(),
                "give --dir a place that others may enter, then run this again; nothing of PostgreSQL was changed",
            ));
        }
    }
    Ok(())
}

fn judge(cluster: &Cluster, config_file: &Path, server: Option<&Server>) -> Result<(), Problem> {
    let refused = |why: String| {
        Problem::new(
            "G12",
            "PostgreSQL refuses what was written; every file is as it was",
            why,
            "this is a fault of setup: please report it with that line",
        )
    };
    let postgres = cluster.program("postgres");
    // The option is of 9.2 (its release notes), and needs the server's programs on this host.
    if postgres.is_file() && cluster.major >= super::version::V9_2 {
        let mut command = as_owner(&cluster.owner, &postgres);
        command.arg("-D").arg(&cluster.data).arg("-c");
        command
            .arg(format!("config_file={}", config_file.display()))
            .args(["-C", "wal_level"]);
        output_of(&mut command).map_err(refused)?;
    }
    // Before it there was none: what was refused already is told before anything is written.
    let faults = match server {
        Some(server) => refused_lines(server, cluster.major)?,
        None => Vec::new(),
    };
    match faults.first() {
        None => Ok(()),
        Some(fault) => Err(refused(format!("{}: {}", fault.place, fault.why))),
    }
}
