//! The proxy as a service: where systemd runs, its unit is enabled and started; elsewhere whoever starts services is asked
//! to, and waited for.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};
use protocol::escape::escape;

use super::apply::Journal;
use super::find::Cluster;
use super::owner::output_of;
use super::{unit_files, units};
use crate::directories;
use crate::problem::Problem;
use crate::renew;

/// The proxy's own unit.
pub(super) const UNIT: &str = "pgtlsproxy";
/// Its configuration, in the node's directory.
const CONFIG: &str = "pgtlsproxy.toml";
/// A unit that was started listens by then.
const UNIT_TAKES: Duration = Duration::from_secs(15);
/// A person who is asked to start it has so long.
const PERSON_TAKES: Duration = Duration::from_secs(120);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Whether systemd starts the proxy of this directory.
pub(crate) fn by_systemd(directory: &Path) -> bool {
    units::systemd_runs() && directory == Path::new(directories::USUAL)
}

/// The OS user that the proxy runs as, made where systemd will need it.
pub(crate) fn ensure_user(directory: &Path, os_user: &str) -> Result<(), Problem> {
    if !by_systemd(directory)
        || !Uid::effective().is_root()
        || matches!(User::from_name(os_user), Ok(Some(_)))
    {
        return Ok(());
    }
    let mut command = Command::new("useradd");
    command.args(["--system", "--user-group", "--no-create-home"]);
    command.args(["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]);
    output_of(command.arg(os_user).stdin(Stdio::null()))
        .map(|_| eprintln!("made the OS user {os_user}"))
        .map_err(|why| {
            Problem::new(
                "V16",
                format!("the OS user {os_user} cannot be made"),
                why,
                "make it, and run this again",
            )
        })
}

/// Has the proxy started, and waits until `is_up` says so.
pub(crate) fn ensure(
    journal: &mut Journal,
    directory: &Path,
    cluster: &Cluster,
    os_user: &str,
    is_up: impl Fn() -> bool,
) -> Result<(), Problem> {
    let config = directory.join(CONFIG);
    let (takes, way_out) = if by_systemd(directory) {
        let changes = unit_files::changes(directory, cluster, os_user)?;
        for change in &changes {
            journal.write(change, unit_files::RIGHTS)?;
            eprintln!("wrote {}", change.path.display());
        }
        start_unit(changes.iter().map(|change| &*change.path))?;
        (UNIT_TAKES, format!("journalctl -u {UNIT} says why"))
    } else {
        let run = format!("pgtlsproxy run --config {}", config.display());
        eprintln!("The proxy does not run, and there is no systemd here to start it.");
        eprintln!("Start it now: {run}");
        (PERSON_TAKES, format!("{run}; then run this again"))
    };
    let begun = Instant::now();
    while !is_up() {
        if begun.elapsed() > takes {
            return Err(Problem::new(
                "V16",
                "the proxy on this host does not run",
                format!("nothing listens where {} says", config.display()),
                way_out,
            ));
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Ok(())
}

/// Has systemd start the proxy and the timer of its renewal, now and at each boot, from units of which these were changed.
pub(crate) fn start_unit<'a>(changed: impl IntoIterator<Item = &'a Path>) -> Result<(), Problem> {
    let changed = changed.into_iter().any(|path| path == unit_files::proxy());
    let ran = systemctl(&["is-active", "--quiet", UNIT]).is_ok();
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", UNIT]).map_err(|problem| Problem {
        why: last_words().unwrap_or(problem.why),
        ..problem
    })?;
    if renew::timer_is_installed() {
        systemctl(&["enable", "--now", renew::TIMER_UNIT])?;
    }
    match (ran, changed) {
        (false, _) => eprintln!("started {UNIT}.service"),
        (true, true) => eprintln!(
            "{UNIT}.service runs as its unit was before; when its streams may break off: systemctl restart {UNIT}"
        ),
        (true, false) => {}
    }
    Ok(())
}

/// Has systemd do something.
pub(super) fn systemctl(arguments: &[&str]) -> Result<(), Problem> {
    let mut command = Command::new("systemctl");
    output_of(command.args(arguments).stdin(Stdio::null()))
        .map(drop)
        .map_err(|why| {
            Problem::new(
                "V16",
                format!("`systemctl {}` failed", arguments.join(" ")),
                why,
                format!("journalctl -u {UNIT} says more"),
            )
        })
}

/// Why the proxy did not start, in its own words.
fn last_words() -> Option<String> {
    // What was said a moment ago may not be in the journal yet.
    let _ = output_of(Command::new("journalctl").arg("--sync"));
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=cat", "--lines=3"]);
    command.args(["--unit", UNIT, "--identifier", "pgtlsproxy"]);
    let said = output_of(command.stdin(Stdio::null())).ok()?;
    let lines: Vec<_> = said
        .lines()
        .map(|line| escape(line.trim().as_bytes()))
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}
