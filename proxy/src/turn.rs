//! One command at a time in a node's directory: a lock on a file that nobody else may open. One on the directory itself,
//! or on a file that others may read, every user of the host could hold for ever (flock(2) asks for no right to write).

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// Held until it is dropped, or its process ends.
pub(crate) type Turn = Flock<File>;

/// Waits for whoever is at it.
pub(crate) fn wait(lock: &Path) -> io::Result<Turn> {
    Flock::lock(open(lock)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// None while another one is at it.
pub(crate) fn take(lock: &Path) -> io::Result<Option<Turn>> {
    match Flock::lock(open(lock)?, FlockArg::LockExclusiveNonblock) {
        Ok(turn) => Ok(Some(turn)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn open(lock: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(lock)?;
    // An earlier version left it for everybody to read.
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_open_it_whatever_was_there() {
        let place = tempfile::tempdir().unwrap();
        let lock = place.path().join(".lock");
        std::fs::write(&lock, "").unwrap();
        std::fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
        let turn = wait(&lock).unwrap();
        let mode = std::fs::metadata(&lock).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(take(&lock).unwrap().is_none());
        drop(turn);
        assert!(take(&lock).unwrap().is_some());
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&lock, &link).unwrap();
        assert!(wait(&link).is_err());
    }
}
