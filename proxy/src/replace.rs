//! A file of this node is replaced whole: whatever happens, the old one or the new one is there.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use tempfile::Builder;

/// What files under way begin with; `pgtlsproxy renew` sweeps what a killed one has left.
pub(crate) const PREFIX: &str = ".pgtlsproxy-renew-";

/// Writes a file whole, with owner, group and mode of another one, which it replaces or lies beside.
pub(crate) fn replace(path: &Path, content: &[u8], like: &Path) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let like = fs::metadata(like)?;
    let mut file = Builder::new().prefix(PREFIX).tempfile_in(directory)?;
    let own = file.as_file().metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        fchown(file.as_file(), Some(like.uid()), Some(like.gid()))?;
    }
    file.as_file()
        .set_permissions(Permissions::from_mode(like.mode() & 0o777))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_directory(path)
}

/// Makes what was renamed or removed in the directory of this file last.
pub(crate) fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(of.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}
