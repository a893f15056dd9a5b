//! The units that setup and join write, and take away again: the proxy's own, and the timer of its renewal.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::escape::escape;

use super::apply::{Journal, Rights};
use super::find::Cluster;
use super::plan::FileChange;
use super::service::{UNIT, by_systemd, systemctl};
use super::units;
use crate::problem::Problem;
use crate::renew;

const TEXT: &str = include_str!("pgtlsproxy.service");
/// Where an administrator's units are, and a package's.
const OWN: &str = "/etc/systemd/system";
const PACKAGED: &str = "/usr/lib/systemd/system";
/// Directories that the unit hides from the proxy (ProtectHome, systemd.exec(5)).
const HIDDEN: [&str; 3] = ["/home", "/root", "/run/user"];
pub(super) const RIGHTS: Rights = Rights {
    mode: 0o644,
    uid: 0,
    gid: 0,
};

/// The file of the proxy's own unit.
pub(super) fn proxy() -> PathBuf {
    Path::new(OWN).join(format!("{UNIT}.service"))
}

/// The units that are missing or different, where systemd runs and this is the host's own node.
pub(crate) fn changes(
    directory: &Path,
    cluster: &Cluster,
    os_user: &str,
) -> Result<Vec<FileChange>, Problem> {
    if !by_systemd(directory) {
        return Ok(Vec::new());
    }
    let mut changes = timer(directory);
    if Path::new(PACKAGED).join(format!("{UNIT}.service")).exists() {
        return Ok(changes);
    }
    let program = std::env::current_exe().map_err(|error| cannot_run("it", error.to_string()))?;
    can_be_run(&program)?;
    let text = text(
        cluster,
        &program,
        &directory.join("pgtlsproxy.toml"),
        os_user,
    );
    if fs::read_to_string(proxy()).ok().as_ref() != Some(&text) {
        changes.push(FileChange {
            path: proxy(),
            new: text.into_bytes(),
        });
    }
    Ok(changes)
}

/// The timer of `pgtlsproxy renew`, as far as it is missing.
fn timer(directory: &Path) -> Vec<FileChange> {
    let units = renew::missing_units(directory).into_iter();
    units
        .map(|(path, text)| FileChange {
            path,
            new: text.into_bytes(),
        })
        .collect()
}

/// Writes that timer, so that undo knows of it; whether it was missing.
pub(crate) fn write_timer(directory: &Path) -> Result<bool, Problem> {
    let changes = timer(directory);
    if changes.is_empty() {
        return Ok(false);
    }
    let mut journal = Journal::open(&directory.join("setup"))?;
    for change in &changes {
        journal.write(change, RIGHTS)?;
    }
    Ok(true)
}

fn text(cluster: &Cluster, program: &Path, configuration: &Path, os_user: &str) -> String {
    TEXT.replace("@UNITS@", &units::stopped_before_the_proxy(cluster))
        .replace("@PROGRAM@", &program.display().to_string())
        .replace("@CONFIG@", &configuration.display().to_string())
        .replace("@USER@", os_user)
}

/// Whether the proxy's OS user gets at the program from within its unit.
fn can_be_run(program: &Path) -> Result<(), Problem> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(hidden) = HIDDEN.iter().find(|hidden| program.starts_with(hidden)) {
        return Err(cannot_run(
            &escape(program.to_string_lossy().as_bytes()),
            format!("{hidden} is hidden from the service, which has nothing to do there"),
        ));
    }
    let open_to_all = |path: &Path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    };
    match program.ancestors().find(|path| !open_to_all(path)) {
        Some(closed) => Err(cannot_run(
            &escape(program.to_string_lossy().as_bytes()),
            format!(
                "{} is closed to other OS users",
                escape(closed.to_string_lossy().as_bytes())
            ),
        )),
        None => Ok(()),
    }
}

fn cannot_run(program: &str, why: String) -> Problem {
    Problem::new(
        "V17",
        format!("the service cannot run {program}"),
        why,
        format!(
            "install -m 755 {program} /usr/local/bin/; then run this again by /usr/local/bin/pgtlsproxy"
        ),
    )
}

/// What became of the units.
#[derive(Debug, Default)]
pub(crate) struct Stopped {
    /// In words.
    pub(crate) stopped: Vec<String>,
    /// Files that stay: units that others have changed, and what they need.
    pub(crate) kept: Vec<PathBuf>,
}

/// Stops and disables those units that are as setup wrote them.
pub(crate) fn stop(journal: &Journal, directory: &Path) -> Result<Stopped, Problem> {
    let mut stopped = Stopped::default();
    let mut written = journal.files_in(Path::new(OWN));
    // The timer before what it calls, and both before the proxy.
    written.sort_by_key(|(path, _)| (*path == proxy(), path.extension() != Some("timer".as_ref())));
    for (path, same) in written {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !same || has_drop_ins(path) {
            eprintln!(
                "{name} was changed by others since: it stays, and runs; systemctl disable --now {name} stops it"
            );
            stopped.kept.push(path.to_owned());
            continue;
        }
        if !units::systemd_runs() {
            continue;
        }
        // The service of the timer has nothing to be disabled.
        if path.extension() == Some("timer".as_ref()) || path == proxy() {
            systemctl(&["disable", "--now", &name])?;
            eprintln!("stopped and disabled {name}");
            stopped.stopped.push(format!("stop and disable {name}"));
        }
    }
    let renewal = Path::new(OWN).join(renew::SERVICE_UNIT);
    if stopped
        .kept
        .iter()
        .any(|path| path.extension() == Some("timer".as_ref()))
    {
        stopped.kept.push(renewal);
    }
    if stopped.kept.contains(&proxy()) {
        stopped.kept.push(directory.join("pgtlsproxy.toml"));
    }
    Ok(stopped)
}

/// Tells systemd that the files of stopped units are gone.
pub(crate) fn forget(stopped: &Stopped) -> Result<(), Problem> {
    if stopped.stopped.is_empty() {
        return Ok(());
    }
    systemctl(&["daemon-reload"])
}

/// What `systemctl edit` writes.
fn has_drop_ins(unit: &Path) -> bool {
    let mut name = unit.file_name().unwrap_or_default().to_owned();
    name.push(".d");
    fs::read_dir(unit.with_file_name(name)).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_service_cannot_reach_is_named() {
        for place in HIDDEN {
            let hidden = can_be_run(&Path::new(place).join("pgtlsproxy")).unwrap_err();
            assert!(hidden.why.contains(&format!("{place} is hidden")));
        }
        let place = tempfile::tempdir().unwrap();
        // Such a directory is its owner's alone.
        let closed = can_be_run(&place.path().join("pgtlsproxy"));
        assert!(closed.unwrap_err().why.contains("closed to other OS users"));
        can_be_run(Path::new("/usr/bin/env")).unwrap();
    }
}
