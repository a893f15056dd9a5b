//! Which cluster is meant, and where its files are: Debian's layout, RHEL's, or a plain data directory, found by itself
//! or told. Reads only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::conf::{self, Settings};
use super::files::Disk;
use super::units;
use super::version::{Major, Thing, wants};
use crate::problem::Problem;

pub(super) const DEBIAN_CONFIGURATION: &str = "/etc/postgresql";
pub(super) const RHEL_DATA: &str = "/var/lib/pgsql";

/// A cluster on this host.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// As a person calls it: `15/main`, or its data directory.
    pub(crate) label: String,
    pub(crate) major: Major,
    pub(crate) data: PathBuf,
    pub(crate) config_file: PathBuf,
    /// Debian's version and name, which its tools take.
    pub(crate) debian: Option<(String, String)>,
    /// The OS user that owns the data directory, as whom the server runs.
    pub(crate) owner: User,
    /// Where its programs are, if somebody has said so.
    pub(crate) bindir: Option<PathBuf>,
    /// The unit of systemd's in which its server ran when it was looked at.
    pub(super) ran_in: Option<String>,
}

/// What the command line says about it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The only one on this host.
    Any,
    /// `VERSION/NAME`, as pg_lsclusters has it.
    Debian(&'a str),
    DataDirectory(&'a Path),
}

/// Finds the cluster that is meant.
pub(crate) fn find(wanted: Wanted<'_>) -> Result<Cluster, Problem> {
    match wanted {
        Wanted::DataDirectory(data) => of_data_directory(data),
        Wanted::Debian(label) => label
            .split_once('/')
            .ok_or_else(|| none_found(&format!("`{label}` is not VERSION/NAME")))
            .and_then(|(version, name)| debian(version, name)),
        Wanted::Any => the_only_one(),
    }
}

/// One that is not understood is one all the same: it is never passed over for another.
fn the_only_one() -> Result<Cluster, Problem> {
    let (mut found, gone): (Vec<_>, Vec<_>) = look_debian().into_iter().partition(Found::is_one);
    found.extend(rhel_directories().iter().map(|data| Found {
        label: data.display().to_string(),
        cluster: of_data_directory(data),
    }));
    if found.len() < 2 {
        let none = || none_found("neither in /etc/postgresql nor below /var/lib/pgsql");
        let only = found.pop().or_else(|| gone.into_iter().next());
        return only.map_or_else(|| Err(none()), |only| only.cluster);
    }
    let told = |found: Found| match found.cluster {
        Ok(cluster) => cluster.label,
        Err(problem) => format!("{} ({}: {})", found.label, problem.what, problem.why),
    };
    let labels: Vec<_> = found.into_iter().map(told).collect();
    Err(Problem::new(
        "G04",
        "there are several PostgreSQL clusters on this host",
        labels.join(", "),
        "say which with --cluster VERSION/NAME or --pgdata DIR",
    ))
}

/// What looks like a cluster, and what was made of it.
struct Found {
    label: String,
    cluster: Result<Cluster, Problem>,
}

impl Found {
    /// What a package has left whose data are gone is no cluster.
    fn is_one(&self) -> bool {
        let problem = self.cluster.as_ref().err();
        problem.is_none_or(|problem| problem.id != NONE)
    }
}

/// There is none.
const NONE: &str = "G03";

fn none_found(why: &str) -> Problem {
    Problem::new(
        NONE,
        "no PostgreSQL cluster is found",
        why,
        "say where it is with --pgdata DIR (the directory that holds PG_VERSION), or --cluster VERSION/NAME",
    )
}

pub(super) fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What Debian's directories hold a configuration of.
fn look_debian() -> Vec<Found> {
    let versions = subdirectories(Path::new(DEBIAN_CONFIGURATION));
    let clusters = versions.iter().flat_map(|version| {
        let names = subdirectories(version);
        names
            .into_iter()
            .filter(|name| name.join("postgresql.conf").exists())
            .map(|name| (file_name(version), file_name(&name)))
    });
    let look = |(version, name): (String, String)| Found {
        cluster: debian(&version, &name),
        label: format!("{version}/{name}"),
    };
    clusters.map(look).collect()
}

fn rhel_directories() -> Vec<PathBuf> {
    let root = Path::new(RHEL_DATA);
    let versions = subdirectories(root)
        .into_iter()
        .map(|version| version.join("data"));
    std::iter::once(root.join("data"))
        .chain(versions)
        .filter(|data| data.join("PG_VERSION").exists())
        .collect()
}

fn debian(version: &str, name: &str) -> Result<Cluster, Problem> {
    let config_file = Path::new(DEBIAN_CONFIGURATION)
        .join(version)
        .join(name)
        .join("postgresql.conf");
    let major: Major = version.parse().map_err(|why: String| none_found(&why))?;
    // Where data lies stands in the file itself; the other arguments do not matter for that.
    let settings = conf::read(&Disk, &config_file, Path::new("/nonexistent"), major)?;
    let data = settings
        .effective("data_directory")
        .map(|data| PathBuf::from(String::from_utf8_lossy(&data.value).into_owned()))
        .ok_or_else(|| {
            none_found(&format!(
                "{} names no data_directory",
                config_file.display()
            ))
        })?;
    let cluster = inspect(&data)?;
    Ok(Cluster {
        label: format!("{version}/{name}"),
        config_file,
        debian: Some((version.to_owned(), name.to_owned())),
        ..cluster
    })
}

/// What a data directory says about itself; its configuration may lie elsewhere.
fn inspect(data: &Path) -> Result<Cluster, Problem> {
    let unreadable = |error: std::io::Error| {
        none_found(&format!("{}: {error}", data.join("PG_VERSION").display()))
    };
    let data = fs::canonicalize(data).map_err(unreadable)?;
    let version = fs::read_to_string(data.join("PG_VERSION")).map_err(unreadable)?;
    let major: Major = version.parse().map_err(|why: String| none_found(&why))?;
    if !major.is_known() {
        return Err(Problem::new(
            "G10",
            format!("{} is of PostgreSQL {major}", data.display()),
            "setup knows 9.1 to 18",
            "use a version of pgtlsproxy that knows it",
        ));
    }
    let uid = fs::metadata(&data).map_err(unreadable)?.uid();
    let owner = User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .ok_or_else(|| {
            none_found(&format!(
                "{} belongs to OS user {uid}, who does not exist",
                data.display()
            ))
        })?;
    Ok(Cluster {
        label: data.display().to_string(),
        major,
        config_file: data.join("postgresql.conf"),
        ran_in: units::of_server(&data),
        data,
        debian: None,
        owner,
        bindir: None,
    })
}

fn of_data_directory(data: &Path) -> Result<Cluster, Problem> {
    let cluster = inspect(data)?;
    if cluster.config_file.exists() {
        return Ok(cluster);
    }
    let mut missing = none_found(&format!("{} does not exist", cluster.config_file.display()));
    for found in look_debian() {
        match found.cluster {
            Ok(other) if other.data == cluster.data => return Ok(other),
            // It may be this one's.
            Err(problem) if problem.id != NONE => missing = problem,
            _ => {}
        }
    }
    Err(missing)
}

/// Where Debian and RHEL put the programs of each version, the newest first.
pub(crate) fn bin_directories() -> Vec<PathBuf> {
    let mut found = versioned("/usr/lib/postgresql", "");
    found.extend(versioned("/usr", "pgsql-"));
    found
}

/// `PARENT/PREFIX<version>/bin`, newest first.
fn versioned(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = subdirectories(Path::new(parent))
        .into_iter()
        .filter_map(|directory| {
            let version = file_name(&directory).strip_prefix(prefix)?.parse().ok()?;
            Some((version, directory.join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

impl Cluster {
    /// The path that a setting gives: relative to the data directory, in which a server is that was started by its tools.
    pub(crate) fn file(&self, settings: &Settings, name: &str, default: &str) -> PathBuf {
        match settings.effective(name) {
            Some(assignment) => self
                .data
                .join(String::from_utf8_lossy(&assignment.value).into_owned()),
            None => self.config_file.with_file_name(default),
        }
    }

    /// Where the server makes its Unix sockets, if it makes any.
    pub(crate) fn socket_directory(&self, settings: &Settings) -> PathBuf {
        let name = wants(self.major, Thing::SocketDirectory).unwrap_or("unix_socket_directories");
        let value = settings
            .effective(name)
            .map(|found| String::from_utf8_lossy(&found.value).into_owned());
        let first = value
            .as_deref()
            .and_then(|list| list.split(',').next())
            .map(str::trim);
        PathBuf::from(first.filter(|first| !first.is_empty()).unwrap_or("/tmp"))
    }

    /// A program of this major, if it is found: where it is said to be, beside the running server, where Debian and RHEL
    /// put it, or on the PATH.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let opts = fs::read_to_string(self.data.join("postmaster.opts")).unwrap_or_default();
        let server = opts.split(" \"").next().map(|path| Path::new(path.trim()));
        let beside = server
            .and_then(Path::parent)
            .map(|directory| directory.join(name));
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{}/bin/{name}", self.major));
        let rhel = PathBuf::from(format!("/usr/pgsql-{}/bin/{name}", self.major));
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        let on_path: Vec<_> = std::env::split_paths(&on_path)
            .map(|directory| directory.join(name))
            .collect();
        let told = self.bindir.as_ref().map(|directory| directory.join(name));
        let places = told
            .into_iter()
            .chain(beside)
            .chain([debian, rhel])
            .chain(on_path);
        places
            .into_iter()
            .find(|path| path.is_file())
            .unwrap_or_else(|| PathBuf::from(name))
    }
}
