//! Files as a CA needs them: whole or not at all, secret from their first instant, never overwritten by surprise.
//!
//! A file is written under a temporary name in its own directory, synced, put in its place, and the directory
//! synced. The mode is set on the open file, so that no umask and no moment in between makes a key readable.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
    /// Put the new one in its place.
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

/// Writes these files: all are on disk under temporary names before the first is put in its place.
pub(crate) fn write_all(files: &[NewFile<'_>], existing: Existing) -> Result<(), Failure> {
    let mut staged = Vec::new();
    for file in files {
        staged.push(Staged::new(file).map_err(|error| Failure::file("write", &file.path, &error))?);
    }
    for file in staged {
        let path = file.target.clone();
        file.publish(existing).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => Failure::file("write", &path, &error),
        })?;
    }
    Ok(())
}

/// A file under its temporary name; removed unless it is published.
struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn new(file: &NewFile<'_>) -> io::Result<Self> {
        let name = file
            .path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_string_lossy();
        let suffix = u64::from_le_bytes(random()?);
        let temporary = file
            .path
            .with_file_name(format!(".{name}.{suffix:016x}.tmp"));
        let mode = match file.readers {
            Readers::Owner => 0o600,
            Readers::Everybody => 0o644,
        };
        let mut open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        let staged = Self {
            temporary,
            target: file.path.clone(),
        };
        if file.readers == Readers::Owner {
            // The umask may have taken too much of it, for instance the owner's own right to read.
            open.set_permissions(Permissions::from_mode(mode))?;
        }
        open.write_all(file.content)?;
        open.sync_all()?;
        Ok(staged)
    }

    fn publish(self, existing: Existing) -> io::Result<()> {
        match existing {
            Existing::Replace => fs::rename(&self.temporary, &self.target)?,
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
                    fs::rename(&self.temporary, &self.target)?;
                }
                linked => linked?,
            },
        }
        sync_directory(&self.target)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename it is gone, after a link its second name goes, after a failure nothing stays behind.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn sync_directory(of: &Path) -> io::Result<()> {
    let parent = of.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
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
    let read = io::stdin().take(READ_AT_MOST).read_to_end(&mut content);
    read.map_err(|error| Failure::file("read", Path::new("standard input"), &error))?;
    Ok(content)
}

fn read_all(file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for all of it at once: a growing Vec would leave copies behind.
    let size = file
        .metadata()
        .map_or(0, |metadata| metadata.len().min(READ_AT_MOST));
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    let read = file.take(READ_AT_MOST).read_to_end(&mut content);
    read.map_err(|error| Failure::file("read", path, &error))?;
    Ok(content)
}
