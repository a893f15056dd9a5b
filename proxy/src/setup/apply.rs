//! The only writer of PostgreSQL's files: atomically, with mode and owner kept, and with a journal of what was there before,
//! outside the data directory. The journal is on disk before the file changes, so that a kill at any moment can be undone.

mod lines; // of a password file
mod staged; // one file, in one step
mod undo; // every file put back
mod write; // one file changed

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::files::{Disk, Files};
use super::passfile;
use crate::problem::Problem;

use staged::replace;
pub(super) use staged::replace_theirs;
pub(crate) use undo::{Stay, Undone};

const JOURNAL: &str = "journal.json";

/// Mode and owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rights {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Rights {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of_metadata(&metadata))
    }

    pub(super) fn of_metadata(metadata: &fs::Metadata) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }
}

/// One file that setup changed.
#[derive(Debug, Serialize, Deserialize)]
struct FileEntry {
    path: PathBuf,
    /// The copy of what was there, in the directory of the journal; none if nothing was.
    original: Option<String>,
    /// The copy of what setup wrote; empty where only `lines` are ours.
    written: String,
    rights: Rights,
    /// The lines of a password file that setup wrote: the last, and those before that it may still hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lines: Vec<passfile::Mark>,
    /// Setup made that password file.
    #[serde(default)]
    made: bool,
    /// It says that the server is a standby, and stays where nothing was before: without it there would be two primaries.
    #[serde(default)]
    marker: bool,
}

impl FileEntry {
    /// The number in the names of its copies, if it has any.
    fn number(&self) -> Option<usize> {
        let mut names = self.original.iter().chain([&self.written]);
        names.find_map(|name| name.split('.').next()?.parse().ok())
    }
}

/// One thing that the server was told and can be told back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SqlEntry {
    pub(crate) what: String,
    pub(crate) undo: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// The data directory of the cluster, so that undo finds its server.
    cluster: Option<PathBuf>,
    files: Vec<FileEntry>,
    sql: Vec<SqlEntry>,
    /// CA and certificate are being made: what is there of them without the rest is of a run that was killed.
    #[serde(default)]
    making_certificates: bool,
    /// How far a standby's copy is.
    #[serde(default)]
    copy: Option<StandbyCopy>,
}

/// A standby's copy on its way to its place, so that a run that was killed can be taken up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandbyCopy {
    pub(crate) stage: Stage,
    /// Where it grows.
    pub(crate) staging: PathBuf,
    /// Directories that were moved aside, and where they had been.
    pub(crate) aside: Vec<(PathBuf, PathBuf)>,
    /// The slot that is made for it at the primary.
    #[serde(default)]
    pub(crate) slot: Option<String>,
    /// Directories that were made for it, with their inodes: what others put in their places is not moved.
    #[serde(default)]
    pub(crate) made: Vec<(PathBuf, u64)>,
}

/// What is done, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// pg_basebackup has begun.
    Copying,
    /// It has ended well; old and new are still to be exchanged.
    Copied,
    /// pg_rewind has begun.
    Rewinding,
    /// The copy is in its place; it may not have streamed yet.
    Placed,
    /// It was seen to stream.
    Streamed,
}

/// What setup did, so that it can be undone; locked while it is open.
pub(crate) struct Journal {
    directory: PathBuf,
    content: Content,
    /// None: it was opened to be looked at.
    lock: Option<Flock<File>>,
}

impl Journal {
    /// Opens the journal in this directory, which is made if need be: for its owner alone, since pg_hba.conf is.
    pub(crate) fn open(directory: &Path) -> Result<Self, Problem> {
        let wrong = |error: io::Error| cannot("use", directory, &error);
        if let Some(node) = directory.parent().filter(|node| !node.exists()) {
            // The proxy's OS user reads its configuration there, whatever the umask of who runs setup.
            fs::create_dir_all(node)
                .and_then(|()| fs::set_permissions(node, Permissions::from_mode(0o755)))
                .map_err(wrong)?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(wrong)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(wrong)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| {
            Problem::new(
                "G14",
                "another setup is at work",
                format!("{} is locked", directory.display()),
                "wait for it to end",
            )
        })?;
        Ok(Self {
            lock: Some(lock),
            ..Self::look(directory)?
        })
    }

    /// What the journal in this directory says, to be looked at alone; empty if there is none.
    pub(crate) fn look(directory: &Path) -> Result<Self, Problem> {
        let path = directory.join(JOURNAL);
        let content = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| cannot("read", &path, &error.into()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        Ok(Self {
            directory: directory.to_owned(),
            content,
            lock: None,
        })
    }

    /// The data directory of the cluster that was set up.
    pub(crate) fn cluster(&self) -> Option<&Path> {
        self.content.cluster.as_deref()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.content.files.is_empty() && self.content.sql.is_empty() && self.content.copy.is_none()
    }

    /// How far a standby's copy is, if there is one.
    pub(crate) fn copy(&self) -> Option<&StandbyCopy> {
        self.content.copy.as_ref()
    }

    /// Notes how far it is, before anything is done that relies on it.
    pub(crate) fn note_copy(&mut self, copy: StandbyCopy) -> Result<(), Problem> {
        self.content.copy = Some(copy);
        self.save()
    }

    /// Forgets it: what was moved aside is its owner's business from now on.
    pub(crate) fn forget_copy(&mut self) -> Result<(), Problem> {
        self.content.copy = None;
        self.save()
    }

    /// A directory is about to be moved: what setup changed in it before is undone where it will be as well.
    pub(crate) fn follow(&mut self, from: &Path, to: &Path) -> Result<(), Problem> {
        for index in 0..self.content.files.len() {
            let Some(entry) = self.content.files.get(index) else {
                break;
            };
            let Ok(below) = entry.path.strip_prefix(from) else {
                continue;
            };
            if entry.written.is_empty() || !entry.path.exists() {
                continue;
            }
            let number = self.free_number();
            let again = |name: &str| {
                let end = name.rsplit('.').next().unwrap_or_default();
                let text = self.kept(name);
                let text =
                    text.map_err(|error| cannot("read", &self.directory.join(name), &error))?;
                self.keep(&format!("{number}.{end}"), &text)
            };
            let entry = FileEntry {
                path: to.join(below),
                original: entry.original.as_deref().map(again).transpose()?,
                written: again(&entry.written)?,
                rights: entry.rights,
                lines: Vec::new(),
                made: false,
                marker: false,
            };
            self.content.files.push(entry);
        }
        self.save()
    }

    /// What the server can be told back, the last first.
    pub(crate) fn sql(&self) -> Vec<SqlEntry> {
        self.content.sql.iter().rev().cloned().collect()
    }

    /// Notes what the server is about to be told.
    pub(crate) fn note_sql(&mut self, entry: SqlEntry) -> Result<(), Problem> {
        if !self.content.sql.contains(&entry) {
            self.content.sql.push(entry);
        }
        self.save()
    }

    /// Forgets it: what it would take back is gone, and what is made anew under that name is another's.
    pub(crate) fn strike_sql(&mut self, what: &str) -> Result<(), Problem> {
        let before = self.content.sql.len();
        self.content.sql.retain(|entry| entry.what != what);
        if self.content.sql.len() == before {
            return Ok(());
        }
        self.save()
    }

    /// Notes that CA and certificate are about to be made, or that they are made; whether an earlier run was killed then.
    pub(crate) fn note_certificates(&mut self, making: bool) -> Result<bool, Problem> {
        let before = std::mem::replace(&mut self.content.making_certificates, making);
        if before != making {
            self.save()?;
        }
        Ok(before)
    }

    /// Notes which cluster it is.
    pub(crate) fn note_cluster(&mut self, data: &Path) -> Result<(), Problem> {
        let version = |data: &Path| fs::read_to_string(data.join("PG_VERSION")).ok();
        match self.cluster() {
            // After an upgrade there is a new one: what was changed for the old one is its own business.
            Some(other)
                if other != data
                    && version(other).is_some_and(|old| version(data) != Some(old)) =>
            {
                self.set_aside()?;
                self.note_cluster(data)
            }
            Some(other) if other != data => Err(Problem::new(
                "G15",
                format!("{} belongs to another cluster", self.directory.display()),
                format!("it holds what was changed for {}", other.display()),
                "give each cluster a --dir of its own",
            )),
            _ => {
                self.content.cluster = Some(data.to_owned());
                self.save()
            }
        }
    }

    /// Begins a new journal; the old one, with its copies, goes into a directory of its own.
    fn set_aside(&mut self) -> Result<(), Problem> {
        let mut numbered = (1_u32..).map(|number| self.directory.join(format!("before-{number}")));
        let Some(place) = numbered.find(|path| !path.exists()) else {
            return Ok(());
        };
        let move_all = || -> io::Result<()> {
            fs::DirBuilder::new().mode(0o700).create(&place)?;
            for entry in fs::read_dir(&self.directory)? {
                let entry = entry?;
                let name = entry.file_name();
                // The journal last: until it is gone, a run that was killed is taken up here.
                if entry.file_type()?.is_file() && name != "lock" && name != JOURNAL {
                    fs::rename(entry.path(), place.join(name))?;
                }
            }
            fs::rename(self.directory.join(JOURNAL), place.join(JOURNAL))
        };
        move_all().map_err(|error| cannot("use", &place, &error))?;
        eprintln!(
            "what was changed for the cluster before is noted in {}",
            place.display()
        );
        self.content = Content::default();
        Ok(())
    }

    fn save(&self) -> Result<(), Problem> {
        let path = self.directory.join(JOURNAL);
        if self.lock.is_none() {
            return Err(cannot(
                "write",
                &path,
                &ErrorKind::ReadOnlyFilesystem.into(),
            ));
        }
        let text = serde_json::to_vec_pretty(&self.content)
            .map_err(|error| cannot("write", &path, &error.into()))?;
        if fs::read(&path).ok().as_ref() == Some(&text) {
            return Ok(());
        }
        let own = Rights {
            mode: 0o600,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        };
        replace(&path, &text, own).map_err(|error| cannot("write", &path, &error))
    }

    /// A number by which nothing is kept yet.
    fn free_number(&self) -> usize {
        let numbers = self.content.files.iter().filter_map(FileEntry::number);
        numbers.max().map_or(0, |number| number + 1)
    }

    fn keep(&self, name: &str, content: &[u8]) -> Result<String, Problem> {
        let path = self.directory.join(name);
        let own = Rights {
            mode: 0o600,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        };
        replace(&path, content, own).map_err(|error| cannot("write", &path, &error))?;
        Ok(name.to_owned())
    }

    fn kept(&self, name: &str) -> io::Result<Vec<u8>> {
        Disk.read(&self.directory.join(name))
    }

    /// The files in this directory that were written, and whether each is still what was written.
    pub(super) fn files_in(&self, directory: &Path) -> Vec<(&Path, bool)> {
        let there = self.content.files.iter();
        there
            .filter(|entry| entry.path.parent() == Some(directory) && entry.path.exists())
            .map(|entry| {
                let now = Disk.read(&entry.path).ok();
                let same = now.is_some() && now == self.kept(&entry.written).ok();
                (&*entry.path, same)
            })
            .collect()
    }
}

pub(super) fn cannot(verb: &str, path: &Path, error: &io::Error) -> Problem {
    Problem::new(
        "G05",
        format!("cannot {verb} {}", path.display()),
        error.to_string(),
        "run setup as root, with room on that disk; what was changed before is undone by `pgtlsproxy setup undo`",
    )
}

#[cfg(test)]
mod tests;
