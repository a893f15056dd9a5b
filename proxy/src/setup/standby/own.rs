//! The files of a data directory that are its host's own, not the copy's: its configuration, and what that names in there.
//! They are found by the readers of the configuration themselves, and carried with mode and owner; a link stays a link.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use super::super::apply::{Rights, replace_theirs};
use super::super::conf::{self, Settings};
use super::super::files::{Disk, Files, configuration_files, relative_to};
use super::super::find::Cluster;
use super::super::hba;
use super::super::ownership::{Spot, clear_directory, make_directory};
use super::super::version::{Major, Thing, V9_1, has};
use super::place::beside;
use crate::problem::Problem;

/// Those that are carried whatever is in them.
const ALWAYS: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
/// Files of TLS, and their names where no setting says another (server.key and the like are not in any configuration file).
const OF_TLS: [(&str, &str); 5] = [
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_dh_params_file", ""),
];
/// Of 9.1, which has no settings for them.
const OF_TLS_9_1: [&str; 2] = ["root.crt", "root.crl"];
/// Files that pg_ident.conf includes may include others so deep (CONF_FILE_MAX_DEPTH).
const DEEPEST_INCLUDE: usize = 10;
/// Links that lead to links are followed so often.
const MOST_LINKS: usize = 40;
/// More than any configuration or list of revoked certificates needs.
const LONGEST: u64 = 64 << 20;

/// Files as they are, with a note of what was looked at.
#[derive(Default)]
struct Noting(RefCell<BTreeSet<PathBuf>>);

impl Files for Noting {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let content = Disk.read(path)?;
        self.0.borrow_mut().insert(path.to_owned());
        Ok(content)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let names = Disk.list(directory)?;
        self.0.borrow_mut().insert(directory.to_owned());
        Ok(names)
    }
}

/// Those files, links and directories by their paths in the data directory, what is above before what is in it. The error is a
/// configuration that PostgreSQL would refuse, too.
pub(super) fn own_files(cluster: &Cluster) -> Result<Vec<PathBuf>, Problem> {
    let (data, major) = (&cluster.data, cluster.major);
    let noting = Noting::default();
    let settings = conf::read(&noting, &cluster.config_file, data, major)?;
    let hba_file = cluster.file(&settings, "hba_file", "pg_hba.conf");
    hba::read(&noting, &hba_file, major)?;
    let ident_file = cluster.file(&settings, "ident_file", "pg_ident.conf");
    read_ident(&noting, &ident_file, major, 0);
    let mut seen = noting.0.into_inner();
    seen.extend(ALWAYS.map(|name| data.join(name)));
    seen.extend(of_tls(cluster, &settings));
    let mut found = BTreeSet::new();
    for path in &seen {
        pieces(data, path, &mut found, 0);
    }
    // That one is the server's.
    found.remove(Path::new("postgresql.auto.conf"));
    Ok(found.into_iter().collect())
}

/// What it includes from 16 on; its other lines do not matter here.
fn read_ident(files: &dyn Files, path: &Path, major: Major, depth: usize) {
    let text = files.read(path).unwrap_or_default();
    if !has(major, Thing::HbaRegexAndInclude) || depth > DEEPEST_INCLUDE {
        return;
    }
    for line in text.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        let (Some(how), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let target = relative_to(path, name.trim_matches('"').as_bytes(), major);
        let included = match how {
            "include" | "include_if_exists" => vec![target],
            "include_dir" => configuration_files(files, &target).unwrap_or_default(),
            _ => continue,
        };
        for path in included {
            read_ident(files, &path, major, depth + 1);
        }
    }
}

fn of_tls(cluster: &Cluster, settings: &Settings) -> Vec<PathBuf> {
    let told = |name: &str| {
        let told = settings.effective(name)?;
        Some(String::from_utf8_lossy(&told.value).into_owned())
    };
    let mut names: Vec<String> = OF_TLS
        .iter()
        .map(|(name, default)| told(name).unwrap_or_else(|| (*default).to_owned()))
        .collect();
    if cluster.major == V9_1 {
        names.extend(OF_TLS_9_1.map(str::to_owned));
    }
    names.retain(|name| !name.is_empty());
    let mut paths: Vec<PathBuf> = names.iter().map(|name| cluster.data.join(name)).collect();
    if let Some(directory) = told("ssl_crl_dir").filter(|name| !name.is_empty()) {
        let directory = cluster.data.join(directory);
        let names = Disk.list(&directory).unwrap_or_default();
        paths.extend(names.iter().map(|name| directory.join(name)));
        paths.push(directory);
    }
    paths
}

/// What of a path lies in the data directory: the first link on it, and what that leads to; else all of it, if it is there.
fn pieces(data: &Path, path: &Path, found: &mut BTreeSet<PathBuf>, depth: usize) {
    let up = path
        .components()
        .any(|component| component == Component::ParentDir);
    let plain = match up {
        true => fs::canonicalize(path).unwrap_or_default(),
        false => path.to_owned(),
    };
    let Ok(below) = plain.strip_prefix(data) else {
        return;
    };
    if depth > MOST_LINKS {
        return;
    }
    let mut here = PathBuf::new();
    let mut rest = below.components();
    while let Some(step) = rest.next() {
        here.push(step);
        let full = data.join(&here);
        let Ok(metadata) = fs::symlink_metadata(&full) else {
            return;
        };
        if metadata.is_symlink() {
            found.insert(here);
            if let Ok(target) = fs::canonicalize(full) {
                pieces(data, &target.join(rest.as_path()), found, depth + 1);
            }
            return;
        }
    }
    let is_there = fs::symlink_metadata(&plain);
    if is_there.is_ok_and(|found| found.is_file() || found.is_dir()) && !here.as_os_str().is_empty()
    {
        found.insert(here);
    }
}

/// Carries them from one directory to another, over what is there.
pub(super) fn carry(files: &[PathBuf], from: &Path, to: &Path) -> Result<(), Problem> {
    files.iter().try_for_each(|path| {
        let (old, new) = (from.join(path), to.join(path));
        let cannot = |error: io::Error| {
            Problem::new(
                "G05",
                format!("cannot copy {} to {}", old.display(), to.display()),
                error.to_string(),
                "run setup as root, with room on that disk; then run it again",
            )
        };
        let above = path.parent().unwrap_or_else(|| Path::new(""));
        if !to.join(above).exists() {
            let rights = Rights::of(&from.join(above)).map_err(cannot)?;
            make_directory(&to.join(above), rights)?;
        }
        let place = Spot::of(&new)?;
        let metadata = fs::symlink_metadata(&old).map_err(cannot)?;
        let there = place.look().map_err(cannot)?;
        let is_directory = there.as_ref().is_some_and(fs::Metadata::is_dir);
        if metadata.is_dir() {
            if is_directory {
                return Ok(());
            }
            if there.is_some() {
                fs::remove_file(place.path()).map_err(cannot)?;
            }
            return make_directory(&new, Rights::of_metadata(&metadata)).map(drop);
        }
        if is_directory {
            let clear = || {
                clear_directory(&place.open()?)?;
                fs::remove_dir(place.path())
            };
            clear().map_err(cannot)?;
        }
        if metadata.is_symlink() {
            return link_as(&old, &metadata, &new).map_err(cannot);
        }
        let (rights, content) = read(&old).map_err(cannot)?;
        replace_theirs(&new, &content, rights)
    })
}

/// What is read is what has these rights, whatever lies there a moment later.
fn read(path: &Path) -> io::Result<(Rights, Vec<u8>)> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(io::Error::other(
            "it is no plain file, or larger than 64 MiB",
        ));
    }
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content)?;
    Ok((Rights::of_metadata(&metadata), content))
}

/// Makes a link like another one, in one step.
fn link_as(old: &Path, metadata: &fs::Metadata, new: &Path) -> io::Result<()> {
    let spot = |path: &Path| Spot::of(path).map_err(|problem| io::Error::other(problem.why));
    let (place, temporary) = (spot(new)?, spot(&beside(new, ".pgtlsproxy-link"))?);
    let _ = fs::remove_file(temporary.path());
    symlink(fs::read_link(old)?, temporary.path())?;
    let _ = lchown(temporary.path(), Some(metadata.uid()), Some(metadata.gid()));
    fs::rename(temporary.path(), place.path())?;
    place.sync()
}

/// Takes those of these files away that are links: pg_rewind would write through them, or refuse them. Which they were.
pub(super) fn take_links(files: &[PathBuf], data: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut taken = Vec::new();
    for path in files {
        let place = Spot::of(&data.join(path))?;
        if matches!(place.look(), Ok(Some(found)) if found.is_symlink()) {
            let _ = fs::remove_file(place.path());
            taken.push(path.clone());
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Uid, User};

    use super::super::super::version::V18;
    use super::*;

    fn cluster(data: &Path) -> Cluster {
        Cluster {
            label: "test".to_owned(),
            major: V18,
            data: data.to_owned(),
            config_file: data.join("postgresql.conf"),
            debian: None,
            owner: User::from_uid(Uid::effective()).unwrap().unwrap(),
            bindir: None,
            ran_in: None,
        }
    }

    #[test]
    fn all_that_the_configuration_names_is_found_and_carried() {
        let place = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(place.path()).unwrap();
        let (data, outside) = (root.join("data"), root.join("outside"));
        for directory in [&data, &data.join("conf.d"), &data.join("real"), &outside] {
            fs::create_dir(directory).unwrap();
        }
        for (name, text) in [
            (
                "postgresql.conf",
                "include_dir 'conf.d'\ninclude_if_exists 'gone.conf'\ninclude 'managed/one.conf'\n\
                 hba_file = 'real/hba.conf'\nssl_cert_file = 'own.crt'\nssl_ca_file = '/elsewhere/ca.crt'\n",
            ),
            ("conf.d/empty.conf", "# nothing yet\n"),
            (
                "real/hba.conf",
                "local all @who peer\ninclude ../more_hba\n",
            ),
            ("real/who", "me\n"),
            ("more_hba", "local all all reject\n"),
            ("pg_hba.conf", ""),
            ("pg_ident.conf", "include ident.more\n"),
            ("ident.more", "map me you\n"),
            ("own.crt", "certificate"),
            ("server.key", "key"),
            ("server.crt", "not in use"),
            ("postgresql.auto.conf", "work_mem = '5MB'\n"),
            ("PG_VERSION", "18\n"),
        ] {
            fs::write(data.join(name), text).unwrap();
        }
        fs::write(outside.join("one.conf"), "port = 5433\n").unwrap();
        symlink(&outside, data.join("managed")).unwrap();
        let found = own_files(&cluster(&data)).unwrap();
        let expected = [
            "conf.d",
            "conf.d/empty.conf",
            "ident.more",
            "managed",
            "more_hba",
            "own.crt",
            "pg_hba.conf",
            "pg_ident.conf",
            "postgresql.conf",
            "real/hba.conf",
            "real/who",
            "server.key",
        ];
        assert_eq!(found, expected.map(PathBuf::from));

        // Over what came with the copy.
        let copy = root.join("copy");
        fs::create_dir_all(copy.join("managed/of/the/primary")).unwrap();
        fs::write(copy.join("postgresql.conf"), "# the primary's\n").unwrap();
        carry(&found, &data, &copy).unwrap();
        assert_eq!(fs::read_link(copy.join("managed")).unwrap(), outside);
        let same = |name: &&str| fs::read(data.join(name)).ok() == fs::read(copy.join(name)).ok();
        assert!(expected.iter().all(same));
        assert_eq!(own_files(&cluster(&copy)).unwrap(), found);

        let taken = take_links(&found, &copy).unwrap();
        assert_eq!(taken, [PathBuf::from("managed")]);
        assert!(!copy.join("managed").exists());
        // What PostgreSQL would refuse is told.
        let fault = own_files(&cluster(&copy)).unwrap_err();
        assert_eq!(fault.id, "G01", "{fault}");
    }
}
