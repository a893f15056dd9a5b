//! One file replaced in one step: its new content is whole on the disk, with mode and owner, before it gets the name.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

use super::super::ownership;
use super::{Rights, cannot};
use crate::problem::Problem;

/// A new file in the place of the old one in one step, where nobody else leads to.
pub(super) fn replace(path: &Path, content: &[u8], rights: Rights) -> io::Result<()> {
    replace_in(&File::open(directory_of(path))?, path, content, rights)
}

/// The same in this directory, whatever its name leads to by now.
pub(super) fn replace_in(
    place: &File,
    path: &Path,
    content: &[u8],
    rights: Rights,
) -> io::Result<()> {
    Staged::write(place.try_clone()?, path, content, rights)?.rename()
}

/// The same in a directory of PostgreSQL's OS user.
pub(in super::super) fn replace_theirs(
    path: &Path,
    content: &[u8],
    rights: Rights,
) -> Result<(), Problem> {
    let place = ownership::open_place(path, directory_of(path))?;
    replace_in(&place, path, content, rights).map_err(|error| cannot("write", path, &error))
}

pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

pub(super) fn name_of(path: &Path) -> io::Result<&OsStr> {
    path.file_name()
        .ok_or_else(|| ErrorKind::InvalidInput.into())
}

pub(super) fn temporary_of(path: &Path) -> io::Result<PathBuf> {
    let name = name_of(path)?.to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.pgtlsproxy")))
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file's new content on its disk, whole, beside it; gone on drop.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(super) path: PathBuf,
    /// What was there, for who puts it back.
    pub(in super::super) old: Option<Vec<u8>>,
    /// Its directory, as it was judged: by the name of it there may be another one since.
    place: File,
    temporary: PathBuf,
}

impl Staged {
    pub(super) fn write(
        place: File,
        path: &Path,
        content: &[u8],
        rights: Rights,
    ) -> io::Result<Self> {
        let directory = ownership::by_descriptor(&place);
        let temporary = temporary_of(&directory.join(name_of(path)?))?;
        // Of an earlier run that was killed.
        remove_if_there(&temporary)?;
        let staged = Self {
            path: path.to_owned(),
            old: None,
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
