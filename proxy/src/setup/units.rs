//! Which unit of systemd's a server belongs to. Who stops or starts one behind systemd's back leaves it believing that the
//! server failed, or that it is not there at all.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::find::Cluster;
use super::postmaster::Postmaster;

/// Exists where systemd is the init (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Whether systemd is this host's service manager.
pub(crate) fn systemd_runs() -> bool {
    Path::new(BOOTED).is_dir()
}

/// The unit to start, other than Debian's, which pg_ctlcluster knows: the one in which the server ran, else RHEL's for this
/// data directory.
pub(super) fn to_start(cluster: &Cluster) -> Option<String> {
    let known = || cluster.ran_in.clone().or_else(|| rhel(&cluster.data));
    systemd_runs().then(known).flatten()
}

/// The unit to stop or to restart: the one in which the server runs. One that somebody started by hand is in none.
pub(super) fn to_stop(cluster: &Cluster) -> Option<String> {
    systemd_runs().then(|| of_server(&cluster.data)).flatten()
}

/// Whether systemd starts this unit at boot; none where it does not say.
pub(super) fn starts_at_boot(unit: &str) -> Option<bool> {
    let mut command = Command::new("systemctl");
    command.args(["is-enabled", unit]).stdin(Stdio::null());
    let output = command.output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim() {
        "enabled" | "enabled-runtime" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

/// What the proxy's unit is ordered before: it must outlive this server.
pub(super) fn stopped_before_the_proxy(cluster: &Cluster) -> String {
    let own = match &cluster.debian {
        Some((version, name)) => Some(format!("postgresql@{version}-{name}.service")),
        None => cluster.ran_in.clone().or_else(|| rhel(&cluster.data)),
    };
    let own = own.filter(|own| own != "postgresql.service");
    own.map_or_else(
        || "postgresql.service".to_owned(),
        |own| format!("postgresql.service {own}"),
    )
}

/// The unit of a running server, by its control group.
pub(super) fn of_server(data: &Path) -> Option<String> {
    let groups = Postmaster::of(data)?.proc_file("cgroup");
    in_groups(&fs::read_to_string(groups).ok()?)
}

fn in_groups(groups: &str) -> Option<String> {
    let mut names = groups.lines().filter_map(|line| line.rsplit('/').next());
    names
        .find(|name| name.starts_with("postgres") && name.ends_with(".service"))
        .map(str::to_owned)
}

/// RHEL's names, of PostgreSQL's own packages and of the distribution's. The version is the directory's: what is to be
/// copied there is not known yet.
fn rhel(data: &Path) -> Option<String> {
    let data = data.to_str()?;
    if data == "/var/lib/pgsql/data" {
        return Some("postgresql.service".to_owned());
    }
    let version = data
        .strip_prefix("/var/lib/pgsql/")?
        .strip_suffix("/data")?;
    let numeric = version.chars().all(|c| c.is_ascii_digit() || c == '.');
    (numeric && !version.is_empty()).then(|| format!("postgresql-{version}.service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rhels_units_are_called_as_their_directories() {
        for (data, unit) in [
            ("/var/lib/pgsql/data", Some("postgresql.service")),
            ("/var/lib/pgsql/18/data", Some("postgresql-18.service")),
            ("/var/lib/pgsql/9.6/data", Some("postgresql-9.6.service")),
            ("/var/lib/pgsql/mine/data", None),
            ("/var/lib/pgsql//data", None),
            ("/srv/pg", None),
        ] {
            assert_eq!(rhel(Path::new(data)).as_deref(), unit, "{data}");
        }
    }

    #[test]
    fn a_server_is_in_the_unit_of_its_control_group() {
        for (groups, unit) in [
            (
                "0::/system.slice/postgresql-18.service\n",
                Some("postgresql-18.service"),
            ),
            (
                "4:memory:/\n0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
                Some("postgresql@15-main.service"),
            ),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            ("0::/system.slice/ssh.service\n", None),
        ] {
            assert_eq!(in_groups(groups).as_deref(), unit, "{groups}");
        }
    }
}
