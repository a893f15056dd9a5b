//! A server switched on and off the way its distribution does: by pg_ctlcluster, by its systemd unit, or by pg_ctl.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::find::Cluster;
use super::owner::{as_owner, output_of};
use super::ownership::{make_log, may_write_beside, open_output_of};
use super::postmaster::Postmaster;
use super::units;
use super::version::V10;
use crate::problem::Problem;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Start,
    Stop,
    Restart,
}

impl Order {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// The command of Debian's or of systemd's; none where pg_ctl is all there is.
fn by_distribution(cluster: &Cluster, order: Order) -> Option<Command> {
    if let Some((version, name)) = &cluster.debian {
        let mut command = Command::new("pg_ctlcluster");
        command.args([version, name, order.word()]);
        if order == Order::Stop {
            command.args(["-m", "fast"]);
        }
        return Some(command);
    }
    // Behind its back systemd would take the server for a failed one.
    let unit = match order {
        Order::Start => units::to_start(cluster),
        Order::Stop | Order::Restart => units::to_stop(cluster),
    }?;
    let mut command = Command::new("systemctl");
    command.args([order.word(), &unit]);
    Some(command)
}

fn pg_ctl(cluster: &Cluster, order: Order) -> Command {
    let mut command = as_owner(&cluster.owner, &cluster.program("pg_ctl"));
    command.args([order.word(), "-s", "-D"]).arg(&cluster.data);
    command
}

/// Starts or stops it; the error is what was said.
pub(super) fn order(cluster: &Cluster, order: Order) -> Result<(), String> {
    let mut command = match by_distribution(cluster, order) {
        Some(command) => command,
        None => {
            let mut command = pg_ctl(cluster, order);
            if order == Order::Start {
                // To wait is the default from 10 on; we wait for more than that it takes connections.
                if cluster.major >= V10 {
                    command.arg("-W");
                }
                command.arg("-l").arg(log(cluster)?);
            } else {
                command.args(["-m", "fast", "-w"]);
            }
            command
        }
    };
    // A server must not hold our own outputs open.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let output = tempfile::tempfile().map_err(|error| error.to_string())?;
    command.stderr(output.try_clone().map_err(|error| error.to_string())?);
    let status = command
        .status()
        .map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    let read = std::io::Seek::rewind(&mut &output)
        .and_then(|()| std::io::Read::read_to_string(&mut &output, &mut said));
    match read {
        Ok(_) if !said.trim().is_empty() => Err(said.trim().to_owned()),
        _ => Err(format!("it ended with {status}")),
    }
}

/// Stops the server and starts it again: with the options that it was started with, as its owner with all his groups, and
/// with its log going on where it was.
pub(crate) fn restart(cluster: &Cluster) -> Result<(), Problem> {
    let failed = |why: String| {
        Problem::new(
            "G18",
            format!("{} does not restart", cluster.label),
            why,
            "look at the last lines of the server's log",
        )
    };
    if let Some(mut command) = by_distribution(cluster, Order::Restart) {
        return output_of(command.stdin(Stdio::null()))
            .map(drop)
            .map_err(failed);
    }
    // The server inherits its log from pg_ctl. The file may belong to somebody else than the server: it is opened here.
    let said = |error: std::io::Error| failed(format!("its log cannot be opened: {error}"));
    let postmaster = Postmaster::of(&cluster.data);
    let log = match &postmaster {
        Some(postmaster) => open_output_of(&postmaster.proc_file(""), 2).map_err(said)?,
        None => None,
    };
    let output = match log {
        Some(log) => log,
        None => File::options()
            .append(true)
            .open("/dev/null")
            .map_err(said)?,
    };
    let errors = output.try_clone().map_err(said)?;
    let mut command = pg_ctl(cluster, Order::Restart);
    command.args(["-w", "-m", "fast"]);
    if let Some((options, directory)) = relative_start(cluster) {
        command.arg("-o").arg(options);
        let began_in = postmaster.and_then(|postmaster| started_in(&postmaster));
        let true_there = |began_in: &PathBuf| is_same(&began_in.join(&directory), &cluster.data);
        if let Some(began_in) = began_in.filter(true_there) {
            command.current_dir(began_in);
        }
    }
    match command.stdout(output).stderr(errors).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("pg_ctl: {status}"))),
        Err(error) => Err(failed(format!("pg_ctl: {error}"))),
    }
}

/// Where postmaster.opts names the data directory by a relative path, which is true only where that was typed: the options
/// for a shell with the absolute one, and the relative one.
fn relative_start(cluster: &Cluster) -> Option<(String, String)> {
    let options = fs::read_to_string(cluster.data.join("postmaster.opts")).ok()?;
    with_absolute(&options, &cluster.data)
}

fn with_absolute(options: &str, data: &Path) -> Option<(String, String)> {
    let (_, options) = options.trim_end().split_once(" \"")?;
    let mut options: Vec<&str> = options.strip_suffix('"')?.split("\" \"").collect();
    let at = options.iter().position(|option| option.starts_with("-D"))?;
    let option = options.remove(at);
    let directory = match option.strip_prefix("-D") {
        Some("") if at < options.len() => options.remove(at),
        Some(directory) => directory,
        None => return None,
    };
    if Path::new(directory).is_absolute() {
        return None;
    }
    let data = data.to_string_lossy();
    let all = ["-D", &*data].into_iter().chain(options);
    let quoted: Vec<String> = all
        .map(|option| format!("'{}'", option.replace('\'', r"'\''")))
        .collect();
    Some((quoted.join(" "), directory.to_owned()))
}

/// Where the shell was that started it.
fn started_in(postmaster: &Postmaster) -> Option<PathBuf> {
    let environment = fs::read(postmaster.proc_file("environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let directory = variables.find_map(|variable| variable.strip_prefix(b"PWD="))?;
    std::str::from_utf8(directory).ok().map(PathBuf::from)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| {
        fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .ok()
    };
    inode(one).is_some() && inode(one) == inode(other)
}

/// The log of a server that pg_ctl starts, before it has one of its own.
pub(super) fn first_log(cluster: &Cluster) -> PathBuf {
    let mut name = cluster.data.file_name().unwrap_or_default().to_owned();
    name.push(".log");
    let beside = cluster.data.with_file_name(name);
    if beside.exists() || may_write_beside(&cluster.data) {
        beside
    } else {
        cluster.data.join("pgtlsproxy-start.log")
    }
}

fn log(cluster: &Cluster) -> Result<PathBuf, String> {
    let path = first_log(cluster);
    let owner = &cluster.owner;
    make_log(&path, owner.uid.as_raw(), owner.gid.as_raw())
        .map_err(|problem| format!("{}: {}", problem.what, problem.why))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_data_directory_is_told_absolutely() {
        let data = Path::new("/srv/it's/d4");
        let absolute = r"'-D' '/srv/it'\''s/d4'";
        for (options, expected) in [
            (r#"/usr/bin/postgres "-D" "/srv/d4""#, None),
            (r#"/usr/bin/postgres"#, None),
            (r#"/usr/bin/postgres "-p" "5433""#, None),
            (
                r#"/usr/bin/postgres "-D" "d4""#,
                Some((absolute.to_owned(), "d4")),
            ),
            (
                r#"/my bin/postgres "-p" "5433" "-D../d4" "-c" "cluster_name=it's x""#,
                Some((
                    format!(r"{absolute} '-p' '5433' '-c' 'cluster_name=it'\''s x'"),
                    "../d4",
                )),
            ),
        ] {
            let expected = expected.map(|(options, path)| (options, path.to_owned()));
            assert_eq!(
                with_absolute(&format!("{options}\n"), data),
                expected,
                "{options}"
            );
        }
    }
}
