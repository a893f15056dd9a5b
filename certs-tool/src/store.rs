//! Files as a CA needs them: whole or not at all, secret from their first instant, never overwritten by surprise.
//!
//! A file is written under a temporary name in its own directory, synced, put in its place, and the directory
//! synced. A key's file is made with mode 0600 and gets a wider one only on the open file, so that no umask and no
//! moment in between makes it readable. What a killed run left under a temporary name, the next one removes.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

use crate::key::random;
use crate::report::Failure;

/// More than any file that is read here needs.
const READ_AT_MOST: u64 = 16 << 20;

/// What to do with a file that exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone and fail.
    Keep,
    /// Put the new one in its place, with the mode, owner and group of the old one.
    Replace,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Its owner alone, whatever the umask.
    Owner,
    /// Everybody whom the umask allows.
    Everybody,
}

/// A file to be written.
pub(crate) struct NewFile<'a> {
    pub(crate) path: PathBuf,
    pub(crate) content: &'a [u8],
    pub(crate) readers: Readers,
}

/// Fails if one of these exists and is to be kept: asked before anything is made.
pub(crate) fn refuse_existing<'a>(
    paths: impl IntoIterator<Item = &'a Path>,
    existing: Existing,
) -> Result<(), Failure> {
    for path in paths {
        if existing == Existing::Keep && fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
    }
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::new(
        format!("{} exists already", path.display()),
        "it was left as it is",
        "--force puts a new one in its place; --out DIR writes elsewhere",
    )
}

/// Writes these files: all are on disk under temporary names before the first is put in its place, so that a full disk
/// or a crash leaves the old ones. Then nothing but their renames follows, in this order: of a key and its certificate
/// a reader sees the old pair, the new key with the old certificate for as long as one rename takes, the new pair.
pub(crate) fn write_all(files: &[NewFile<'_>], existing: Existing) -> Result<(), Failure> {
    let mut staged = Vec::new();
    for file in files {
        staged.push(Staged::new(file, existing)?);
    }
    let mut directories: Vec<PathBuf> = Vec::new();
    for file in staged {
        let path = file.target.clone();
        file.publish(existing).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => Failure::file("write", &path, &error),
        })?;
        let directory = directory_of(&path).to_owned();
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories
        .iter()
        .try_for_each(|directory| sync_directory(directory))
}

/// A file under its temporary name; removed unless it is published.
struct Staged {
    temporary: PathBuf,
    target: PathBuf,
    // Locked until it is published: who gets this lock knows that the writer is gone.
    file: Flock<File>,
}

impl Staged {
    fn new(new: &NewFile<'_>, existing: Existing) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::file("write", &new.path, &error);
        remove_remains(&new.path);
        let staged = Self::create(new).map_err(failed)?;
        let mut file: &File = &staged.file;
        let replaced = match existing {
            Existing::Replace => fs::symlink_metadata(&new.path).ok(),
            Existing::Keep => None,
        };
        match replaced.filter(Metadata::is_file) {
            Some(old) => keep_access(file, &old, new)?,
            // The umask may have taken too much of it, for instance the owner's own right to read.
            None if new.readers == Readers::Owner => file
                .set_permissions(Permissions::from_mode(0o600))
                .map_err(failed)?,
            None => {}
        }
        file.write_all(new.content).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(staged)
    }

    fn create(new: &NewFile<'_>) -> io::Result<Self> {
        let name = new.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let name = name.to_string_lossy();
        loop {
            let suffix = u64::from_le_bytes(random()?);
            let temporary = new
                .path
                .with_file_name(format!(".{name}.{suffix:016x}.tmp"));
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(match new.readers {
                    Readers::Owner => 0o600,
                    Readers::Everybody => 0o644,
                })
                .open(&temporary)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Between its making and its lock another run may have taken it for remains.
                Ok(file) if file.metadata()?.nlink() == 1 => {
                    return Ok(Self {
                        temporary,
                        target: new.path.clone(),
                        file,
                    });
                }
                Ok(_) | Err((_, Errno::EWOULDBLOCK)) => {}
                Err((_, errno)) => {
                    let _ = fs::remove_file(&temporary);
                    return Err(errno.into());
                }
            }
        }
    }

    fn publish(self, existing: Existing) -> io::Result<()> {
        match existing {
            Existing::Replace => fs::rename(&self.temporary, &self.target),
            // A link refuses an existing name in one step, which a rename cannot.
            Existing::Keep => match fs::hard_link(&self.temporary, &self.target) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    if fs::symlink_metadata(&self.target).is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    fs::rename(&self.temporary, &self.target)
                }
                linked => linked,
            },
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename it is gone, after a link its second name goes, after a failure nothing stays behind.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Gives the new file the owner, group and mode of the old one: a service that could read the one can read the other.
/// A key is never given a wider mode than 0640; the content is written only afterwards.
fn keep_access(file: &File, old: &Metadata, new: &NewFile<'_>) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::new(
            format!("cannot keep owner and mode of {}", new.path.display()),
            error.to_string(),
            "run it as root, or as the user who owns the file",
        )
    };
    let own = file.metadata().map_err(failed)?;
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid())).map_err(failed)?;
    }
    let mode = match (new.readers, old.mode() & 0o777) {
        (Readers::Everybody, mode) => mode,
        (Readers::Owner, mode) if mode & !0o640 == 0 => mode,
        (Readers::Owner, _) => 0o600,
    };
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed)
}

/// Removes what killed runs have left of this file; a run that lives holds the lock of what it writes.
fn remove_remains(of: &Path) {
    let Some(name) = of.file_name() else { return };
    let begin = format!(".{}.", name.to_string_lossy());
    let Ok(entries) = fs::read_dir(directory_of(of)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let suffix = name.to_str().and_then(|name| {
            name.strip_prefix(&begin)?
                .strip_suffix(".tmp")
                .filter(|digits| digits.len() == 16)
        });
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || suffix.is_none_or(|digits| u64::from_str_radix(digits, 16).is_err()) {
            continue;
        }
        let locked = File::open(entry.path())
            .ok()
            .and_then(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).ok());
        if locked.is_some() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Renames within one directory, for good.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(|error| Failure::file("write", to, &error))?;
    sync_directory(directory_of(to))
}

/// Removes a file, if there is one, for good.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::file("remove", path, &error)),
        Ok(()) => sync_directory(directory_of(path)),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

fn sync_directory(path: &Path) -> Result<(), Failure> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Failure::file("write", path, &error))
}

/// Makes a directory and those above it, if need be; nobody else may write into it, whatever the umask.
pub(crate) fn make_directory(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| Failure::file("make the directory", path, &error))
}

/// Reads a file of a sane size; it may hold a key, so what is read is wiped when dropped.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let file = File::open(path).map_err(|error| Failure::file("read", path, &error))?;
    read_all(file, path)
}

/// Reads a private key, and refuses one that others can read.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| Failure::file("read", path, &error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    // A service may share its key with its own group, as PostgreSQL allows too.
    if metadata.is_file() && mode & 0o077 != 0 && mode != 0o640 {
        return Err(Failure::new(
            format!(
                "{} can be read or changed by others (mode {mode:04o})",
                path.display()
            ),
            "a key that others have seen is no secret",
            format!("chmod 600 {}", path.display()),
        ));
    }
    read_all(file, path)
}

/// Reads the file that an argument names; `-` is standard input.
pub(crate) fn read_argument(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if path != Path::new("-") {
        return read(path);
    }
    let mut content = Zeroizing::new(Vec::new());
    let path = Path::new("standard input");
    let read = io::stdin().take(READ_AT_MOST + 1).read_to_end(&mut content);
    read.map_err(|error| Failure::file("read", path, &error))?;
    sane(content, path)
}

fn read_all(file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for all of it at once: a growing Vec would leave copies behind.
    let size = file
        .metadata()
        .map_or(0, |metadata| metadata.len().min(READ_AT_MOST));
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    let read = file.take(READ_AT_MOST + 1).read_to_end(&mut content);
    read.map_err(|error| Failure::file("read", path, &error))?;
    sane(content, path)
}

/// Refuses what was cut at the limit: half a ledger, written back with one line more, would forget the other half.
fn sane(content: Zeroizing<Vec<u8>>, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if content.len() as u64 > READ_AT_MOST {
        return Err(Failure::new(
            format!("{} is larger than 16 MiB", path.display()),
            "no key, certificate, CRL or ledger is",
            "name another file; this one was left as it is",
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beyond_the_limit_is_refused_and_not_cut() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ledger");
        let file = File::create(&path).unwrap();
        file.set_len(READ_AT_MOST).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, READ_AT_MOST);
        file.set_len(READ_AT_MOST + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("16 MiB"));
    }
}
