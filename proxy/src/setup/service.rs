//! The proxy as a service: where systemd runs, its unit is enabled and started; elsewhere whoever starts services is asked
//! to, and waited for.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

use super::apply::{Journal, Rights};
use super::find::Cluster;
use super::server::output_of;
use super::sidecar::Sidecar;
use crate::directories;
use crate::problem::Problem;
use crate::renew;

const UNIT: &str = "pgtlsproxy";
/// A unit that was started listens by then.
const UNIT_TAKES: Duration = Duration::from_secs(15);
/// A person who is asked to start it has so long.
const PERSON_TAKES: Duration = Duration::from_secs(120);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Whether systemd starts the proxy of this directory.
pub(crate) fn by_systemd(directory: &Path) -> bool {
    Path::new("/run/systemd/system").is_dir() && directory == Path::new(directories::USUAL)
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
    let sidecar = Sidecar {
        directory,
        name: "",
        host: "",
        port: 0,
    };
    let config = sidecar.configuration();
    let (takes, way_out) = if by_systemd(directory) {
        if let Some(change) = sidecar.unit_change(cluster, os_user) {
            let rights = Rights {
                mode: 0o644,
                uid: 0,
                gid: 0,
            };
            journal.write(&change, rights)?;
            eprintln!("wrote {}", change.path.display());
        }
        start_unit()?;
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

/// Has systemd start the proxy and the timer of its renewal, now and at each boot.
pub(crate) fn start_unit() -> Result<(), Problem> {
    let mut steps = vec![vec!["daemon-reload"], vec!["enable", "--now", UNIT]];
    if renew::timer_is_installed() {
        steps.push(vec!["enable", "--now", renew::TIMER_UNIT]);
    }
    for arguments in steps {
        let mut command = Command::new("systemctl");
        output_of(command.args(&arguments).stdin(Stdio::null())).map_err(|why| {
            Problem::new(
                "V16",
                format!("`systemctl {}` failed", arguments.join(" ")),
                why,
                format!("journalctl -u {UNIT} says more"),
            )
        })?;
    }
    eprintln!("started {UNIT}.service");
    Ok(())
}
