//! Where the standby's data directory is or will be, and how the new one takes the place of the old one: the old one is
//! moved aside whole, never deleted, and only when the new one is complete.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::super::apply::Rights;
use super::super::conf;
use super::super::files::Disk;
use super::super::find::{self, Cluster, DEBIAN_CONFIGURATION, RHEL_DATA, Wanted, subdirectories};
use super::super::ownership::{self, Spot, may_write_beside};
use super::super::version::{Major, V9_1};
use super::elsewhere::is_mount_point;
use crate::problem::Problem;

/// A cluster that is there, or the place where one will be.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) cluster: Cluster,
    /// Whether there is one already.
    pub(super) occupied: bool,
}

impl Place {
    /// As `setup primary` finds it; where there is none yet, an empty or missing directory will do.
    pub(super) fn find(wanted: Wanted<'_>) -> Result<Self, Problem> {
        let found = match find::find(wanted) {
            Ok(cluster) => {
                return Ok(Self {
                    cluster,
                    occupied: true,
                });
            }
            Err(problem) => problem,
        };
        let fresh = match wanted {
            Wanted::DataDirectory(data) => fresh(data, None)?,
            Wanted::Debian(label) => label
                .split_once('/')
                .map(|(version, name)| debian(version, name))
                .transpose()?
                .flatten(),
            Wanted::Any if found.id == "G03" => only_place()?,
            Wanted::Any => None,
        };
        fresh.map_or(Err(found), |cluster| {
            Ok(Self {
                cluster,
                occupied: false,
            })
        })
    }

    pub(super) fn is_standby(&self) -> bool {
        ["standby.signal", "recovery.conf"]
            .iter()
            .any(|name| self.cluster.data.join(name).exists())
    }

    /// The system identifier: the first eight bytes of pg_control, in this machine's order.
    pub(super) fn system(&self) -> Option<u64> {
        system_of(&self.cluster.data)
    }
}

pub(super) fn system_of(data: &Path) -> Option<u64> {
    let control = fs::read(data.join("global/pg_control")).ok()?;
    control
        .first_chunk()
        .map(|bytes| u64::from_ne_bytes(*bytes))
}

/// A place without a cluster; the error is a place that is taken by something else.
fn fresh(data: &Path, config_file: Option<&Path>) -> Result<Option<Cluster>, Problem> {
    let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    // It is to be given to PostgreSQL's OS user.
    ownership::judge_way(&data)?;
    let data = fs::canonicalize(&data).unwrap_or(data);
    if let Ok(target) = fs::read_link(&data) {
        return Err(Problem::new(
            "V05",
            format!("{} is a link that leads nowhere", data.display()),
            format!("{} does not exist", target.display()),
            "make that directory, owned by PostgreSQL's OS user, or take the link away; then run this again",
        ));
    }
    let taken = match fs::read_dir(&data) {
        // The copy of a run that was killed while it moved up.
        Ok(_) if data.join(INSIDE).join("PG_VERSION").exists() => false,
        Ok(mut entries) => {
            // What mkfs leaves in a file system of its own.
            let usual = ["lost+found", INSIDE];
            entries.any(|entry| {
                entry.is_ok_and(|entry| usual.iter().all(|name| entry.file_name() != *name))
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(_) => true,
    };
    if data.join("PG_VERSION").exists() {
        return Ok(None);
    }
    if taken {
        return Err(Problem::new(
            "V05",
            format!("{} is neither empty nor a data directory", data.display()),
            "it holds something else, which setup does not touch",
            "give another directory, or move its content away",
        ));
    }
    Ok(Some(Cluster {
        label: data.display().to_string(),
        // Until the primary has said which.
        major: rhel_version(&data).unwrap_or(V9_1),
        config_file: config_file.map_or_else(|| data.join("postgresql.conf"), Path::to_owned),
        owner: owner_of(config_file.unwrap_or(&data))?,
        data,
        debian: None,
        bindir: None,
        ran_in: None,
    }))
}

/// The version that RHEL's name of this place tells, by which its programs are found.
fn rhel_version(data: &Path) -> Option<Major> {
    let version = data.strip_prefix(RHEL_DATA).ok()?.parent()?;
    version.to_str()?.parse().ok()
}

/// Who a new data directory shall belong to: who owns its empty directory or its configuration, else `postgres`.
fn owner_of(path: &Path) -> Result<User, Problem> {
    let of_path = fs::metadata(path)
        .ok()
        .and_then(|metadata| User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten())
        .filter(|user| !user.uid.is_root());
    let me = Uid::effective();
    let user = match of_path {
        Some(user) => Some(user),
        None if me.is_root() => User::from_name("postgres").ok().flatten(),
        None => User::from_uid(me).ok().flatten(),
    };
    user.ok_or_else(|| {
        Problem::new(
            "V15",
            "there is no OS user for PostgreSQL",
            "`postgres` does not exist, and nothing there belongs to anybody else",
            "install PostgreSQL's server package first",
        )
    })
}

/// A cluster whose configuration is there and whose data are not.
fn debian(version: &str, name: &str) -> Result<Option<Cluster>, Problem> {
    let config_file = Path::new(DEBIAN_CONFIGURATION)
        .join(version)
        .join(name)
        .join("postgresql.conf");
    let Ok(major) = version.parse::<Major>() else {
        return Ok(None);
    };
    if !config_file.exists() {
        return Ok(None);
    }
    let settings = conf::read(&Disk, &config_file, Path::new("/nonexistent"), major)?;
    let data = settings
        .effective("data_directory")
        .map(|data| PathBuf::from(String::from_utf8_lossy(&data.value).into_owned()));
    let Some(data) = data else {
        return Ok(None);
    };
    let cluster = fresh(&data, Some(&config_file))?;
    Ok(cluster.map(|cluster| Cluster {
        label: format!("{version}/{name}"),
        major,
        debian: Some((version.to_owned(), name.to_owned())),
        ..cluster
    }))
}

/// The one place of Debian or RHEL that waits for data.
fn only_place() -> Result<Option<Cluster>, Problem> {
    let mut places = Vec::new();
    for version in subdirectories(Path::new(DEBIAN_CONFIGURATION)) {
        for cluster in subdirectories(&version) {
            let name = |path: &Path| {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().into_owned()
            };
            places.extend(debian(&name(&version), &name(&cluster))?);
        }
    }
    let root = Path::new(RHEL_DATA);
    let rhel = subdirectories(root)
        .into_iter()
        .map(|version| version.join("data"))
        .chain([root.join("data")]);
    for data in rhel.filter(|data| data.is_dir()) {
        places.extend(fresh(&data, None)?);
    }
    if places.len() > 1 {
        return Ok(None);
    }
    Ok(places.pop())
}

/// Where a copy grows that has no beside.
const INSIDE: &str = "pgtlsproxy-new";

/// Where the copy grows: beside its place, so that it gets there in one step. In a file system of its own, or below a
/// directory that we may not write, there is no beside: it grows inside, and an empty place is filled from there.
pub(super) fn staging(data: &Path) -> PathBuf {
    let inside = is_mount_point(data) || (data.is_dir() && !may_write_beside(data));
    if inside {
        data.join(INSIDE)
    } else {
        beside(data, ".pgtlsproxy-new")
    }
}

/// Moves the copy that grew inside its place up to it. What says that it is a standby comes first and PG_VERSION last: in
/// between it is no data directory for anybody.
pub(super) fn move_up(from: &Path, to: &Path, owner: &User) -> Result<(), Problem> {
    // PostgreSQL starts in no directory that others may enter; that of a file system is as mkfs has made it.
    make_directory(to, owner)?;
    let entries = fs::read_dir(from).map(|entries| {
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort_by_key(|name| match name.to_str() {
            Some("standby.signal" | "recovery.conf") => 0,
            Some("PG_VERSION") => 2,
            _ => 1,
        });
        names
    });
    for name in entries.unwrap_or_default() {
        rename(&from.join(&name), &to.join(&name))?;
    }
    let _ = fs::remove_dir(from);
    Ok(())
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// A directory for the server's OS user alone; missing parents are made. Its inode.
pub(super) fn make_directory(path: &Path, owner: &User) -> Result<u64, Problem> {
    let rights = Rights {
        mode: 0o700,
        uid: owner.uid.as_raw(),
        gid: owner.gid.as_raw(),
    };
    ownership::make_directory(path, rights)
}

/// A name for the old directory, with the moment in it.
pub(super) fn aside(data: &Path) -> PathBuf {
    let moment: String = certs_tool::report::Date::now()
        .to_string()
        .chars()
        .filter_map(|c| match c {
            'T' | ' ' => Some('-'),
            c if c.is_ascii_digit() || c == '-' => Some(c),
            _ => None,
        })
        .collect();
    let plain = beside(data, &format!(".{}", moment.trim_matches('-')));
    let taken = |path: &PathBuf| path.symlink_metadata().is_ok();
    let mut numbered = (2..).map(|number| beside(&plain, &format!(".{number}")));
    if taken(&plain) {
        numbered.find(|path| !taken(path)).unwrap_or(plain)
    } else {
        plain
    }
}

/// Renames, and makes it last.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Problem> {
    let (old, new) = (Spot::of(from)?, Spot::of(to)?);
    let done = fs::rename(old.path(), new.path()).and_then(|()| new.sync());
    done.map_err(|error| {
        Problem::new(
            "V07",
            format!("{} cannot be moved to {}", from.display(), to.display()),
            error.to_string(),
            "run this as root; where the directory is a file system of its own, move its content away by hand first",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::super::elsewhere::{is_wal, links};
    use super::super::part::relink;
    use super::*;

    #[test]
    fn a_copy_moves_up_and_links_are_led_elsewhere() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path();
        let grown = data.join(INSIDE);
        fs::create_dir_all(grown.join("pg_tblspc")).unwrap();
        fs::write(grown.join("PG_VERSION"), "15\n").unwrap();
        fs::write(grown.join("standby.signal"), "").unwrap();
        std::os::unix::fs::symlink("/wal", grown.join("pg_wal")).unwrap();
        std::os::unix::fs::symlink("/a", grown.join("pg_tblspc/1")).unwrap();
        assert!(fresh(data, None).unwrap().is_some(), "taken up");
        let me = User::from_uid(Uid::effective()).unwrap().unwrap();
        fs::set_permissions(data, Permissions::from_mode(0o755)).unwrap();
        move_up(&grown, data, &me).unwrap();
        let mode = fs::metadata(data).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(!grown.exists() && data.join("standby.signal").exists());
        relink(&data.join("pg_tblspc/1"), Path::new("/b")).unwrap();
        let found = links(data);
        let expected = [("pg_wal", "/wal"), ("pg_tblspc/1", "/b")];
        let expected = expected.map(|(link, to)| (data.join(link), PathBuf::from(to)));
        assert_eq!(found, expected);
        assert!(is_wal(&found[0].0) && !is_wal(&found[1].0));
    }
}
