//! A cluster on this host as its files show it, whether its server runs or not: where it is, whom it belongs to, its
//! signal files, pg_control, and what it would start with.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, User, getgrouplist};

use super::programs::{self, Owner};
use crate::doctor::facts::{Cluster, Control};
use crate::setup::parse_conf_line;

/// What a stopped server is asked for, one by one (`postgres -C`).
const WANTED: &[&str] = &[
    "primary_conninfo",
    "primary_slot_name",
    "cluster_name",
    "wal_level",
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];
const MOST_FILES: usize = 50_000;
const WALK: Duration = Duration::from_secs(1);
/// Unreadable files named at most.
const MOST_NAMED: usize = 3;

/// A data directory and how its server is started.
pub(super) struct Place {
    pub(super) data: PathBuf,
    pub(super) owner: Owner,
    pub(super) postgres: Option<PathBuf>,
    /// The arguments of its last start, or what Debian gives it.
    arguments: Vec<String>,
    log: Option<PathBuf>,
}

/// `VERSION/NAME` as Debian has it.
pub(super) fn debian(cluster: &str) -> Option<PathBuf> {
    let conf = Path::new("/etc/postgresql")
        .join(cluster)
        .join("postgresql.conf");
    let data = conf_value(&conf, "data_directory").map_or_else(
        || Path::new("/var/lib/postgresql").join(cluster),
        PathBuf::from,
    );
    data.join("PG_VERSION").is_file().then_some(data)
}

/// The data directory of the server behind a Unix socket, by the second line of the socket's lock file.
pub(super) fn behind(socket: &Path) -> Option<PathBuf> {
    let mut lock = socket.as_os_str().to_owned();
    lock.push(".lock");
    let text = fs::read_to_string(lock).ok()?;
    Some(PathBuf::from(text.lines().nth(1)?.trim()))
}

/// Every cluster in the places of Debian and RHEL.
pub(super) fn known() -> Vec<PathBuf> {
    let children = |parent: &Path| -> Vec<PathBuf> {
        fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    };
    let mut found: Vec<PathBuf> = children(Path::new("/etc/postgresql"))
        .iter()
        .flat_map(|version| children(version))
        .filter_map(|cluster| debian(cluster.strip_prefix("/etc/postgresql").ok()?.to_str()?))
        .collect();
    let rhel = children(Path::new("/var/lib/pgsql"));
    found.extend(rhel.iter().map(|version| version.join("data")));
    found.push(PathBuf::from("/var/lib/pgsql/data"));
    found.retain(|data| data.join("PG_VERSION").is_file());
    found
}

/// What a data directory is; the error is for whoever asked.
pub(super) fn place(data: &Path) -> Result<Place, String> {
    let shown = data.display();
    let metadata = fs::metadata(data).map_err(|error| format!("{shown}: {error}"))?;
    fs::read_dir(data).map_err(|error| format!("{shown}: {error}"))?;
    let uid = Uid::from_raw(metadata.uid());
    let user = User::from_uid(uid).ok().flatten();
    let owner = Owner {
        uid,
        gid: user
            .as_ref()
            .map_or_else(|| Gid::from_raw(metadata.gid()), |user| user.gid),
        name: user
            .as_ref()
            .map_or_else(|| uid.to_string(), |user| user.name.clone()),
        home: user.map_or_else(|| PathBuf::from("/"), |user| user.dir),
    };
    let name = data
        .strip_prefix("/var/lib/postgresql")
        .ok()
        .and_then(Path::to_str);
    let conf = name.map(|name| {
        Path::new("/etc/postgresql")
            .join(name)
            .join("postgresql.conf")
    });
    let mut words =
        quoted_words(&fs::read_to_string(data.join("postmaster.opts")).unwrap_or_default());
    if words.is_empty() {
        words = vec![String::new(), "-D".to_owned(), data.display().to_string()];
        if let Some(conf) = conf.filter(|conf| conf.is_file()) {
            words.extend(["-c".to_owned(), format!("config_file={}", conf.display())]);
        }
    }
    let started = PathBuf::from(words.remove(0));
    let version = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
    let version = version.trim();
    let packaged = [
        format!("/usr/lib/postgresql/{version}/bin/postgres"),
        format!("/usr/pgsql-{version}/bin/postgres"),
    ];
    let postgres = std::iter::once(started)
        .chain(packaged.map(PathBuf::from))
        .find(|path| path.is_file());
    let log = name.map(|name| {
        PathBuf::from(format!(
            "/var/log/postgresql/postgresql-{}.log",
            name.replace('/', "-")
        ))
    });
    Ok(Place {
        data: data.to_owned(),
        owner,
        postgres,
        arguments: words,
        log,
    })
}

impl Place {
    /// Where its libpq looks for a server's socket if nothing is said: PostgreSQL's own default, or that of Debian's and
    /// RHEL's packages.
    pub(super) fn default_sockets(&self) -> &'static str {
        let packaged =
            |program: &PathBuf| program.starts_with("/usr") && !program.starts_with("/usr/local");
        match self.postgres.as_ref().is_some_and(packaged) {
            true => "/var/run/postgresql",
            false => "/tmp",
        }
    }

    /// What the files show.
    pub(super) fn look(&self, unseen: &mut Vec<String>, until: Instant) -> Cluster {
        let read = |name: &str| fs::read_to_string(self.data.join(name)).unwrap_or_default();
        let has = |name: &str| self.data.join(name).exists();
        let version = read("PG_VERSION");
        // `10` and later, or `9.6` and the like.
        let major = version
            .trim()
            .split('.')
            .next()
            .and_then(|major| major.parse().ok());
        let major = major.unwrap_or_default();
        let pid_file = read("postmaster.pid");
        let lines: Vec<_> = pid_file.lines().map(str::trim).collect();
        let line = |number: usize| lines.get(number).copied().unwrap_or_default();
        let running = line(0).parse::<u32>().is_ok_and(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with("post"))
        });
        let socket = (running && !line(4).is_empty())
            .then(|| Path::new(line(4)).join(format!(".s.PGSQL.{}", line(3))));
        let recovery_conf = has("recovery.conf");
        let mut cluster = Cluster {
            data: self.data.clone(),
            owner: self.owner.name.clone(),
            major,
            running,
            socket,
            standby_signal: has("standby.signal"),
            recovery_conf,
            control: fs::read(self.data.join("global/pg_control"))
                .ok()
                .as_deref()
                .and_then(control),
            log: self.log_tail(running.then(|| line(0))),
            ..Cluster::default()
        };
        if !running {
            self.ask_stopped(&mut cluster, unseen, until);
        }
        if recovery_conf && major < 12 {
            cluster
                .settings
                .extend(conf_values(&self.data.join("recovery.conf")));
            cluster.standby_signal = cluster
                .setting("standby_mode")
                .starts_with(['o', 't', 'y', '1']);
        }
        cluster
    }

    /// What a stopped server would start with, by its own reader.
    fn ask_stopped(&self, cluster: &mut Cluster, unseen: &mut Vec<String>, until: Instant) {
        let Some(postgres) = &self.postgres else {
            unseen.push(
                "what the stopped server would start with: its program is not found".to_owned(),
            );
            return;
        };
        for name in std::iter::once(&"port").chain(WANTED) {
            let mut command = programs::command(postgres, &self.owner);
            command.args(&self.arguments).args(["-C", name]);
            match programs::run(command, "", until) {
                Ok(said) if said.ok => {
                    let value = said.stdout.trim().to_owned();
                    cluster.settings.insert((*name).to_owned(), value);
                }
                Ok(said) if *name == "port" => {
                    cluster.conf_error = Some(first_lines(&said.stderr, 2));
                    return;
                }
                // Not a setting of this version.
                Ok(_) => {}
                Err(error) => {
                    unseen.push(format!("what the stopped server would start with: {error}"));
                    return;
                }
            }
        }
    }

    /// Files that the server's OS user cannot read, in the directories that it owns.
    pub(super) fn unreadable(&self) -> Vec<String> {
        let groups = std::ffi::CString::new(self.owner.name.as_str())
            .ok()
            .and_then(|name| getgrouplist(&name, self.owner.gid).ok())
            .unwrap_or_default();
        let deadline = Instant::now() + WALK;
        let mut found = Vec::new();
        let mut seen = 0;
        let mut directories = vec![self.data.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                seen += 1;
                if seen > MOST_FILES || found.len() == MOST_NAMED || Instant::now() > deadline {
                    return found;
                }
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                let readable = if metadata.uid() == self.owner.uid.as_raw() {
                    metadata.mode() & 0o400 != 0
                } else if groups.iter().any(|group| group.as_raw() == metadata.gid()) {
                    metadata.mode() & 0o040 != 0
                } else {
                    metadata.mode() & 0o004 != 0
                };
                if !readable && !metadata.is_symlink() {
                    found.push(entry.path().display().to_string());
                } else if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        found
    }

    /// The last lines of the server's log: what its standard error goes to, or Debian's file.
    fn log_tail(&self, pid: Option<&str>) -> Vec<String> {
        const TAIL: u64 = 8 * 1024;
        let stderr = pid.and_then(|pid| fs::read_link(format!("/proc/{pid}/fd/2")).ok());
        let current = fs::read_to_string(self.data.join("current_logfiles")).unwrap_or_default();
        let current = current
            .lines()
            .find_map(|line| line.strip_prefix("stderr "))
            .map(|file| self.data.join(file));
        let files = [current, stderr, self.log.clone()];
        let Some(mut file) = files
            .into_iter()
            .flatten()
            .filter(|path| path.is_file())
            .find_map(|path| fs::File::open(path).ok())
        else {
            return Vec::new();
        };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(length.saturating_sub(TAIL)))
            .and_then(|_| file.take(TAIL).read_to_end(&mut bytes));
        if read.is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !tells_a_password(line))
            .map(|line| super::walsender::plain(line.as_bytes()))
            .collect();
        lines
            .get(lines.len().saturating_sub(3)..)
            .unwrap_or_default()
            .to_vec()
    }
}

/// A reload logs primary_conninfo as it is, and log_statement whatever is sent.
fn tells_a_password(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["primary_conninfo", "password=", "password '", "password = "]
        .iter()
        .any(|sign| line.contains(sign))
}

pub(super) fn first_lines(text: &str, count: usize) -> String {
    let lines = text.trim().lines().take(count);
    lines
        .map(|line| super::walsender::plain(line.trim().as_bytes()))
        .collect::<Vec<_>>()
        .join("; ")
}

/// postmaster.opts: the program and its arguments, each but the first in double quotes.
fn quoted_words(text: &str) -> Vec<String> {
    let line = text.lines().next().unwrap_or_default();
    let Some((program, rest)) = line.split_once(" \"") else {
        return line.split_whitespace().map(str::to_owned).collect();
    };
    let rest = rest.strip_suffix('"').unwrap_or(rest);
    std::iter::once(program)
        .chain(rest.split("\" \""))
        .map(str::to_owned)
        .collect()
}

/// pg_control (src/include/catalog/pg_control.h): system identifier, version of this file, state, and the last
/// checkpoint's timeline. Before version 11 one more LSN stood before the checkpoint.
fn control(bytes: &[u8]) -> Option<Control> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let system_identifier = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
    let timeline_at = if word(8)? < 1100 { 56 } else { 48 };
    Some(Control {
        system_identifier: system_identifier.to_string(),
        timeline: word(timeline_at)?,
        // DB_SHUTDOWNED_IN_RECOVERY and DB_IN_ARCHIVE_RECOVERY.
        in_recovery: matches!(word(16)?, 2 | 5),
    })
}

fn conf_value(path: &Path, name: &str) -> Option<String> {
    conf_values(path).remove(name)
}

/// The settings of one file, of which the last counts; includes are not followed. Serves recovery.conf and Debian's
/// data_directory. A line that PostgreSQL would not read is passed over: doctor is there for files that are broken.
fn conf_values(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read(path).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| parse_conf_line(line).ok().flatten())
        .map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_arguments_are_read() {
        let opts = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/data\" \"-c\" \"port=1\"\n";
        assert_eq!(
            quoted_words(opts),
            [
                "/usr/lib/postgresql/15/bin/postgres",
                "-D",
                "/data",
                "-c",
                "port=1"
            ]
        );
    }

    #[test]
    fn a_broken_line_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postgresql.conf");
        let text = "broken broken broken\nData_Directory = '/a'\ndata_directory='it''s' # here\nport 5433\n";
        fs::write(&path, text).unwrap();
        let values = conf_values(&path);
        assert_eq!(values["data_directory"], "it's");
        assert_eq!(values["port"], "5433");
        assert_eq!(values.len(), 2);
    }

    #[test]
    fn pg_control_of_both_layouts_is_read() {
        for (version, at) in [(1002_u32, 56), (1800, 48)] {
            let mut bytes = vec![0; 64];
            bytes[..8].copy_from_slice(&7_u64.to_ne_bytes());
            bytes[8..12].copy_from_slice(&version.to_ne_bytes());
            bytes[16..20].copy_from_slice(&5_u32.to_ne_bytes());
            bytes[at..at + 4].copy_from_slice(&3_u32.to_ne_bytes());
            let read = control(&bytes).unwrap();
            assert_eq!(
                (
                    read.system_identifier.as_str(),
                    read.timeline,
                    read.in_recovery
                ),
                ("7", 3, true)
            );
        }
        assert_eq!(control(&[0; 20]), None);
    }
}
