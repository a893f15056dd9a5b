//! Parts of a data directory that lie elsewhere: tablespaces and WAL behind links, file systems mounted on it or in it; and
//! what of it keeps a copy from taking its place, told before anything is done.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::apply::{Stage, StandbyCopy};
use super::super::ownership::may_write_beside;
use super::Work;
use super::copy::NEW;
use super::part::owned;
use super::place;
use crate::problem::Problem;

/// From 10 on, and before.
pub(super) const WAL_DIRECTORIES: [&str; 2] = ["pg_wal", "pg_xlog"];
/// A link that is to replace another.
pub(super) const TEMPORARY: &str = ".pgtlsproxy-link";

pub(super) fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = path.parent().and_then(device);
    let another = device(path).is_some_and(|own| parent.is_some_and(|parent| parent != own));
    // A bind mount may be of the same file system.
    another || mounts().iter().any(|mount| mount == path)
}

/// A mount point inside this directory.
pub(super) fn mount_below(directory: &Path) -> Option<PathBuf> {
    mounts()
        .into_iter()
        .find(|mount| mount != directory && mount.starts_with(directory))
}

fn mounts() -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounts_of(&text)
}

/// The fifth field of each line (proc_pid_mountinfo(5)), with its octal escapes read.
fn mounts_of(text: &[u8]) -> Vec<PathBuf> {
    let unescape = |field: &[u8]| {
        let mut path = Vec::with_capacity(field.len());
        let mut rest = field;
        while let Some((first, more)) = rest.split_first() {
            let octal = more.first_chunk::<3>().filter(|_| *first == b'\\');
            let code = octal
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| u8::from_str_radix(digits, 8).ok());
            path.push(code.unwrap_or(*first));
            rest = match code {
                Some(_) => more.get(3..).unwrap_or_default(),
                None => more,
            };
        }
        PathBuf::from(OsString::from_vec(path))
    };
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .collect()
}

/// The symbolic links by which a data directory has parts elsewhere, and where they lead: WAL and tablespaces.
pub(super) fn links(data: &Path) -> Vec<(PathBuf, PathBuf)> {
    let tablespaces = fs::read_dir(data.join("pg_tblspc"));
    let tablespaces = tablespaces.into_iter().flatten().flatten();
    WAL_DIRECTORIES
        .iter()
        .map(|name| data.join(name))
        .chain(tablespaces.map(|entry| entry.path()))
        .filter(|link| !link.to_string_lossy().ends_with(TEMPORARY))
        .filter_map(|link| fs::read_link(&link).ok().map(|to| (link, to)))
        .filter(|(_, to)| to.is_absolute())
        .collect()
}

/// Whether this link of a data directory is that of its WAL.
pub(super) fn is_wal(link: &Path) -> bool {
    WAL_DIRECTORIES.iter().any(|name| link.ends_with(name))
}

/// A copy of which nothing is made yet.
pub(super) fn nothing_yet(staging: &Path) -> StandbyCopy {
    StandbyCopy {
        stage: Stage::Copying,
        staging: staging.to_owned(),
        aside: Vec::new(),
        slot: None,
        made: Vec::new(),
    }
}

/// The place of what grows at this path, if its name says that it grows for one.
pub(super) fn of_new(path: &Path) -> Option<PathBuf> {
    let name = path.to_str()?;
    name.strip_suffix(NEW).map(PathBuf::from)
}

impl Work<'_> {
    /// What stands in the way of a copy's taking its place, told before anything is done for it.
    pub(super) fn may_be_replaced(&self) -> Result<(), Problem> {
        let cluster = &self.place.cluster;
        let data = &cluster.data;
        let refused =
            |what: String, why: &str, way_out: String| Err(Problem::new("V07", what, why, way_out));
        let shown = data.display();
        if !self.place.occupied {
            return match may_write_beside(data) || data.is_dir() {
                true => Ok(()),
                false => refused(
                    format!("{shown} cannot be made"),
                    "the directory above it is not ours to write, or is read-only",
                    "run this as root, or make an empty directory there that belongs to PostgreSQL's OS user".to_owned(),
                ),
            };
        }
        if is_mount_point(data) {
            return refused(
                format!("{shown} is a file system of its own and cannot be moved aside"),
                "the old cluster would have to lie inside the new data directory, where every base backup would copy it",
                format!(
                    "either stop its server, move what is in {shown} (all but lost+found) to another file system, and run this again: an empty one is filled where it is; or give --pgdata a new directory in it, such as {shown}/main (documentation of PostgreSQL, 18.2.1), and have the server started with that"
                ),
            );
        }
        if let Some(mount) = mount_below(data) {
            let mount = mount.display();
            return refused(
                format!("a file system is mounted at {mount}, inside the data directory"),
                "it would go aside with the old cluster, and at its next mount cover what the new one has there",
                format!(
                    "stop the server, mount it elsewhere, and give that with --waldir DIR (WAL) or --tablespace-mapping OLD=NEW; {mount} itself may stay as an empty directory"
                ),
            );
        }
        if !may_write_beside(data) {
            return refused(
                format!("{shown} cannot be moved aside"),
                "the directory above it is not ours to write, or is read-only",
                "run this as root; or give --pgdata a directory elsewhere".to_owned(),
            );
        }
        let (told, exchanged) = (self.told_places(), self.exchanged(data));
        for (link, to) in links(data) {
            let is_wal = is_wal(&link);
            let is_told = match is_wal {
                true => self.wishes.waldir.is_some(),
                // Which of the primary's would come here is not known; pg_basebackup looks.
                false => !self.wishes.mappings.is_empty(),
            };
            if exchanged.contains(&to) {
                owned(&to, &cluster.owner)?;
            }
            if movable(&to) || (is_told && !told.contains(&to)) {
                continue;
            }
            let (shown, name) = (to.display(), &self.node.name);
            let (what, way_out) = if is_wal {
                (
                    "WAL",
                    format!("say where that of the copy goes: --waldir {shown}/{name}"),
                )
            } else {
                (
                    "a tablespace",
                    format!(
                        "say where the primary's goes: --tablespace-mapping OLD=NEW, OLD as the primary has it and NEW a new directory such as {shown}/{name}"
                    ),
                )
            };
            return refused(
                format!("{shown}, where the old cluster has {what}, cannot be moved aside"),
                "it is a file system of its own, or the directory above it is not ours to write",
                way_out,
            );
        }
        Ok(())
    }

    /// Whether the person has said where the primary's tablespace of this place goes.
    fn maps(&self, old: &Path) -> bool {
        let mut mappings = self.wishes.mappings.iter();
        mappings.any(|mapping| Path::new(&parts(mapping).0) == old)
    }

    /// Where the person wants tablespaces and WAL.
    fn told_places(&self) -> Vec<PathBuf> {
        let mappings = self.wishes.mappings.iter();
        mappings
            .map(|mapping| PathBuf::from(parts(mapping).1))
            .chain(self.wishes.waldir.clone())
            .collect()
    }

    /// The parts of the old cluster in whose places new ones are to come.
    pub(super) fn exchanged(&self, data: &Path) -> Vec<PathBuf> {
        let (mappings, wal) = self.elsewhere(data);
        let new = mappings
            .iter()
            .map(|mapping| PathBuf::from(parts(mapping).1));
        new.chain(wal).filter_map(|path| of_new(&path)).collect()
    }

    /// Directories for the parts of the copy that lie elsewhere: `OLD=NEW` for tablespaces, and one for WAL. Where the old
    /// cluster has its own, they grow beside it.
    pub(super) fn elsewhere(&self, data: &Path) -> (Vec<String>, Option<PathBuf>) {
        let links = links(data);
        let of_old = |path: &Path| links.iter().any(|(_, to)| to == path);
        let grows = |path: PathBuf| match of_old(&path) {
            true => place::beside(&path, NEW),
            false => path,
        };
        let mut mappings = Vec::new();
        for mapping in &self.wishes.mappings {
            let (old, new) = parts(mapping);
            let new = grows(PathBuf::from(new));
            mappings.push(format!(
                "{}={}",
                escaped(&old),
                escaped(&new.to_string_lossy())
            ));
        }
        let told = self.told_places();
        for (link, to) in &links {
            if !is_wal(link) && movable(to) && !self.maps(to) && !told.contains(to) {
                let old = to.to_string_lossy();
                let new = place::beside(to, NEW);
                mappings.push(format!(
                    "{}={}",
                    escaped(&old),
                    escaped(&new.to_string_lossy())
                ));
            }
        }
        let old_wal = links.iter().find(|(link, _)| is_wal(link));
        let old_wal = old_wal.map(|(_, to)| to.clone());
        let wal = self.wishes.waldir.clone().or(old_wal).map(grows);
        (mappings, wal)
    }
}

/// Whether a directory that is a part of the old cluster can be moved aside.
fn movable(path: &Path) -> bool {
    may_write_beside(path) && !is_mount_point(path)
}

/// The two parts of `OLD=NEW`, as pg_basebackup reads them: `\=` is no sign between them.
pub(super) fn parts(mapping: &str) -> (String, String) {
    let mut split = None;
    let mut before = ' ';
    for (index, c) in mapping.char_indices() {
        if c == '=' && before != '\\' {
            split = Some(index);
            break;
        }
        before = c;
    }
    let (old, new) = match split {
        Some(index) => (
            mapping.get(..index).unwrap_or_default(),
            mapping.get(index + 1..).unwrap_or_default(),
        ),
        None => (mapping, ""),
    };
    (old.replace("\\=", "="), new.replace("\\=", "="))
}

fn escaped(path: &str) -> String {
    path.replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            23 22 0:5 / /srv/my\\040disk rw,nosuid shared:2 - tmpfs tmpfs rw\n\
            24 22 0:6 / /a\\134b\\x rw - tmpfs none rw\nbroken\n";
        let expected = ["/", "/srv/my disk", "/a\\b\\x"].map(PathBuf::from);
        assert_eq!(mounts_of(text), expected);
        assert!(is_mount_point(Path::new("/proc")));
        assert!(mount_below(Path::new("/proc/self/nothing")).is_none());
    }

    #[test]
    fn mappings_are_taken_apart_as_pg_basebackup_does() {
        for (text, old, new) in [
            ("/a=/b", "/a", "/b"),
            (r"/a\=b=/c\=d", "/a=b", "/c=d"),
            ("/a", "/a", ""),
        ] {
            assert_eq!(parts(text), (old.to_owned(), new.to_owned()), "{text}");
        }
        assert_eq!(escaped("/a=b"), r"/a\=b");
    }
}
