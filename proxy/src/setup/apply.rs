//! The only writer of PostgreSQL's files: atomically, with mode and owner kept, and with a journal of what was there before,
//! outside the data directory. The journal is on disk before the file changes, so that a kill at any moment can be undone.

mod lines; // of a password file

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::unistd::linkat;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::block;
use super::files::{Disk, Files};
use super::ownership;
use super::passfile;
use super::plan::FileChange;
use crate::problem::Problem;

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

/// What undo made of a file.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "path", rename_all = "snake_case")]
pub(crate) enum Undone {
    /// As it was before, byte by byte.
    Restored(PathBuf),
    /// It was not there before.
    Removed(PathBuf),
    /// Nothing of setup is in it.
    Unchanged(PathBuf),
    /// Others changed it since: only the marked block went.
    BlockTaken(PathBuf),
    /// Only the line of setup's went: what else is in it is of others.
    LineTaken(PathBuf),
    /// Others changed it since, and what is ours in it cannot be told from theirs.
    Left(PathBuf),
    /// It says that the server is a standby: it was not there before, and without it there would be a second primary.
    Kept(PathBuf),
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
            let again = |name: &str| {
                let number = self.content.files.len();
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

    /// Makes one change. A file that is new gets `rights`; any other keeps its own.
    pub(crate) fn write(&mut self, change: &FileChange, rights: Rights) -> Result<(), Problem> {
        self.stage(change, rights)?.commit()
    }

    /// Everything that may fail for want of room or rights, and the note for undo: after it only a rename is left.
    pub(crate) fn stage(&mut self, change: &FileChange, rights: Rights) -> Result<Staged, Problem> {
        // A link is followed: what it points to is PostgreSQL's file.
        let path = fs::canonicalize(&change.path).unwrap_or_else(|_| change.path.clone());
        let place = self.open_place(&change.path, directory_of(&path))?;
        let old = match Disk.read(&path) {
            Ok(old) => Some(old),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let rights = match old {
            Some(_) => Rights::of(&path).map_err(|error| cannot("read", &path, &error))?,
            None => rights,
        };
        let index = self
            .content
            .files
            .iter()
            .position(|entry| entry.path == path);
        let number = index.unwrap_or(self.content.files.len());
        let original = match index.and_then(|index| self.content.files.get(index)) {
            // What was there before the first run, unless others have changed the file since the last.
            Some(entry) if self.kept(&entry.written).ok() == old || old.is_none() => {
                entry.original.clone()
            }
            _ => match &old {
                Some(old) => {
                    let before = block::without(old).unwrap_or_else(|_| old.clone());
                    Some(self.keep(&format!("{number}.original"), &before)?)
                }
                None => None,
            },
        };
        let entry = FileEntry {
            path: path.clone(),
            original,
            written: self.keep(&format!("{number}.written"), &change.new)?,
            rights,
            lines: Vec::new(),
            made: false,
            marker: false,
        };
        match index.and_then(|index| self.content.files.get_mut(index)) {
            Some(known) => *known = entry,
            None => self.content.files.push(entry),
        }
        // First the note: undo takes away what a kill leaves beside the file.
        self.save()?;
        Staged::write(place, &path, &change.new, rights)
            .map_err(|error| cannot("write", &path, &error))
    }

    /// The directory of a file that is to be replaced. Where the node's own files lie is the choice of who runs setup.
    fn open_place(&self, asked: &Path, directory: &Path) -> Result<File, Problem> {
        let node = self
            .directory
            .parent()
            .and_then(|node| std::path::absolute(node).ok());
        if node.is_some_and(|node| asked.starts_with(node)) {
            return File::open(directory).map_err(|error| cannot("write in", directory, &error));
        }
        ownership::open_place(asked, directory)
    }

    /// Makes one change in what says that the server is a standby; undo leaves it if nothing was there before.
    pub(crate) fn write_marker(
        &mut self,
        change: &FileChange,
        rights: Rights,
    ) -> Result<(), Problem> {
        let staged = self.stage(change, rights)?;
        let path = &staged.path;
        if let Some(entry) = self.content.files.iter_mut().find(|one| one.path == *path) {
            entry.marker = true;
        }
        self.save()?;
        staged.commit()
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

    /// Puts back every file, the last first, as far as others have not changed it since; those that are to be kept stay.
    pub(crate) fn undo_files(&mut self, keep: &[PathBuf]) -> Result<Vec<Undone>, Problem> {
        let mut undone = Vec::new();
        while let Some(entry) = self.content.files.last() {
            let done = if keep.contains(&entry.path) {
                Ok(Undone::Left(entry.path.clone()))
            } else {
                self.undo_file(entry)
            };
            undone.push(done.map_err(|error| cannot("put back", &entry.path, &error))?);
            let entry = self.content.files.pop();
            self.save()?;
            if let Some(entry) = entry.filter(|entry| entry.path.ends_with(passfile::NAME)) {
                self.forget_kept(&entry)?;
            }
        }
        Ok(undone)
    }

    /// Setup of before kept whole password files.
    fn forget_kept(&self, entry: &FileEntry) -> Result<(), Problem> {
        let kept = entry.original.iter().chain([&entry.written]);
        for name in kept.filter(|name| !name.is_empty()) {
            let path = self.directory.join(name);
            remove_if_there(&path).map_err(|error| cannot("remove", &path, &error))?;
        }
        Ok(())
    }

    fn undo_file(&self, entry: &FileEntry) -> io::Result<Undone> {
        let path = entry.path.clone();
        // Of a run that was killed.
        remove_if_there(&temporary_of(&path)?)?;
        let now = match Disk.read(&path) {
            Ok(now) => now,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Undone::Unchanged(path));
            }
            Err(error) => return Err(error),
        };
        let original = entry
            .original
            .as_deref()
            .map(|name| self.kept(name))
            .transpose()?;
        if !entry.lines.is_empty() {
            return lines::take(entry, &Zeroizing::new(now), original);
        }
        if now == self.kept(&entry.written)? {
            return match original {
                Some(original) => {
                    replace(&path, &original, entry.rights)?;
                    Ok(Undone::Restored(path))
                }
                None if entry.marker => Ok(Undone::Kept(path)),
                None => {
                    fs::remove_file(&path)?;
                    Ok(Undone::Removed(path))
                }
            };
        }
        if original.as_ref() == Some(&now) {
            return Ok(Undone::Unchanged(path));
        }
        match block::without(&now) {
            Ok(bare) if bare != now => {
                replace(&path, &bare, Rights::of(&path)?)?;
                Ok(Undone::BlockTaken(path))
            }
            _ => Ok(Undone::Left(path)),
        }
    }

    /// Forgets what the server was told.
    pub(crate) fn forget_sql(&mut self) -> Result<(), Problem> {
        self.content.sql.clear();
        self.save()
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

/// A new file in the place of the old one in one step.
fn replace(path: &Path, content: &[u8], rights: Rights) -> io::Result<()> {
    let place = File::open(directory_of(path))?;
    Staged::write(place, path, content, rights)?.rename()
}

/// The same in a directory of PostgreSQL's OS user.
pub(super) fn replace_theirs(path: &Path, content: &[u8], rights: Rights) -> Result<(), Problem> {
    let place = ownership::open_place(path, directory_of(path))?;
    Staged::write(place, path, content, rights)
        .and_then(Staged::rename)
        .map_err(|error| cannot("write", path, &error))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

fn name_of(path: &Path) -> io::Result<&OsStr> {
    path.file_name()
        .ok_or_else(|| ErrorKind::InvalidInput.into())
}

fn temporary_of(path: &Path) -> io::Result<PathBuf> {
    let name = name_of(path)?.to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.pgtlsproxy")))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file's new content on its disk, whole, beside it; gone on drop.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    /// Its directory, as it was judged: by the name of it there may be another one since.
    place: File,
    temporary: PathBuf,
}

impl Staged {
    fn write(place: File, path: &Path, content: &[u8], rights: Rights) -> io::Result<Self> {
        let directory = ownership::by_descriptor(&place);
        let temporary = temporary_of(&directory.join(name_of(path)?))?;
        // Of an earlier run that was killed.
        remove_if_there(&temporary)?;
        let staged = Self {
            path: path.to_owned(),
            place,
            temporary,
        };
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(directory);
        match unnamed {
            // It has a name only when all is in it: one in a data directory that the server cannot read, left there by a
            // kill, would break every base backup.
            Ok(file) => {
                fill(&file, content, rights)?;
                let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(
                    AT_FDCWD,
                    &*unnamed,
                    AT_FDCWD,
                    &staged.temporary,
                    AtFlags::AT_SYMLINK_FOLLOW,
                )?;
            }
            Err(error) if no_such_kind(&error) => {
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&staged.temporary)?;
                fill(&file, content, rights)?;
            }
            Err(error) => return Err(error),
        }
        Ok(staged)
    }

    /// Puts it in the old one's place.
    pub(crate) fn commit(self) -> Result<(), Problem> {
        let path = self.path.clone();
        self.rename()
            .map_err(|error| cannot("write", &path, &error))
    }

    fn rename(self) -> io::Result<()> {
        let target = self.temporary.with_file_name(name_of(&self.path)?);
        fs::rename(&self.temporary, target)?;
        self.place.sync_all()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Not every file system has files without a name (NFS has none).
fn no_such_kind(error: &io::Error) -> bool {
    let kinds = [Errno::EOPNOTSUPP, Errno::EISDIR, Errno::EINVAL];
    kinds
        .iter()
        .any(|kind| error.raw_os_error() == Some(*kind as i32))
}

fn fill(mut file: &File, content: &[u8], rights: Rights) -> io::Result<()> {
    fchown(file, Some(rights.uid), Some(rights.gid))?;
    file.set_permissions(Permissions::from_mode(rights.mode))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn change(path: &Path, text: &str) -> FileChange {
        FileChange {
            path: path.to_owned(),
            new: text.as_bytes().to_vec(),
        }
    }

    pub(super) fn own() -> Rights {
        Rights {
            mode: 0o640,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        }
    }

    #[test]
    fn every_byte_and_mode_comes_back() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("hba"), place.path().join("own.conf"));
        fs::write(&old, "first\r\n").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o604)).unwrap();
        let state = place.path().join("state");
        for text in ["second\n", "third\n"] {
            let mut journal = Journal::open(&state).unwrap();
            journal.write(&change(&old, text), own()).unwrap();
            journal.write(&change(&new, text), own()).unwrap();
            assert_eq!(fs::read_to_string(&old).unwrap(), text);
            assert_eq!(Rights::of(&old).unwrap().mode, 0o604);
            assert_eq!(Rights::of(&new).unwrap().mode, 0o640);
        }
        let undone = Journal::open(&state).unwrap().undo_files(&[]).unwrap();
        assert_eq!(
            undone,
            [Undone::Removed(new.clone()), Undone::Restored(old.clone())]
        );
        assert_eq!(fs::read_to_string(&old).unwrap(), "first\r\n");
        assert_eq!(Rights::of(&old).unwrap().mode, 0o604);
        assert!(!new.exists() && Journal::open(&state).unwrap().is_empty());
    }

    #[test]
    fn what_others_changed_since_stays() {
        let place = tempfile::tempdir().unwrap();
        let (hba, own_file) = (place.path().join("hba"), place.path().join("own.conf"));
        fs::write(&hba, "a\n").unwrap();
        let with = |text: &str| {
            String::from_utf8(block::insert(text.as_bytes(), 0, &[b"ours".to_vec()])).unwrap()
        };
        let mut journal = Journal::open(&place.path().join("state")).unwrap();
        journal.write(&change(&hba, &with("a\n")), own()).unwrap();
        journal.write(&change(&own_file, "x = 1\n"), own()).unwrap();
        fs::write(&hba, with("a\n") + "theirs\n").unwrap();
        fs::write(&own_file, "x = 1\ntheirs = 2\n").unwrap();
        let undone = journal.undo_files(&[]).unwrap();
        assert_eq!(
            undone,
            [Undone::Left(own_file), Undone::BlockTaken(hba.clone())]
        );
        assert_eq!(fs::read_to_string(&hba).unwrap(), "a\ntheirs\n");
    }

    #[test]
    fn a_change_of_others_between_two_runs_stays() {
        let place = tempfile::tempdir().unwrap();
        let hba = place.path().join("hba");
        let with = |text: &str| {
            String::from_utf8(block::insert(text.as_bytes(), 0, &[b"ours".to_vec()])).unwrap()
        };
        fs::write(&hba, "a\n").unwrap();
        let mut journal = Journal::open(&place.path().join("state")).unwrap();
        journal.write(&change(&hba, &with("a\n")), own()).unwrap();
        fs::write(&hba, with("a\n") + "theirs\n").unwrap();
        journal
            .write(&change(&hba, &with("a\ntheirs\n")), own())
            .unwrap();
        journal.undo_files(&[]).unwrap();
        assert_eq!(fs::read_to_string(&hba).unwrap(), "a\ntheirs\n");
    }

    #[test]
    fn a_kill_before_the_file_was_replaced_is_undone_as_well() {
        let place = tempfile::tempdir().unwrap();
        let (hba, state) = (place.path().join("hba"), place.path().join("state"));
        fs::write(&hba, "a\n").unwrap();
        let mut journal = Journal::open(&state).unwrap();
        journal.write(&change(&hba, "b\n"), own()).unwrap();
        drop(journal);
        // As if the last step had not happened.
        fs::write(&hba, "a\n").unwrap();
        let undone = Journal::open(&state).unwrap().undo_files(&[]).unwrap();
        assert_eq!(undone, [Undone::Unchanged(hba)]);
    }

    #[test]
    fn no_link_of_another_user_leads_root_to_its_own_files() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can be led astray");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let (data, etc) = (place.path().join("data"), place.path().join("etc"));
        for directory in [&data, &etc] {
            fs::create_dir(directory).unwrap();
        }
        std::os::unix::fs::chown(&data, Some(65534), None).unwrap();
        let (hba, crontab) = (data.join("pg_hba.conf"), etc.join("crontab"));
        fs::write(&crontab, "root's\n").unwrap();
        std::os::unix::fs::symlink(&crontab, &hba).unwrap();
        let mut journal = Journal::open(&place.path().join("node/state")).unwrap();
        let refused = journal.write(&change(&hba, "his\n"), own()).unwrap_err();
        assert_eq!(refused.id, "G26");
        assert_eq!(fs::read_to_string(&crontab).unwrap(), "root's\n");
        assert!(journal.is_empty());
        fs::remove_file(&hba).unwrap();
        journal.write(&change(&hba, "ours\n"), own()).unwrap();
        // Root's own links are root's business.
        let link = etc.join("link");
        std::os::unix::fs::symlink(&crontab, &link).unwrap();
        journal.write(&change(&link, "ours\n"), own()).unwrap();
        assert_eq!(fs::read_to_string(&crontab).unwrap(), "ours\n");
    }
}
