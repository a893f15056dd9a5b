//! What files hold at one moment, so that a change is noticed: by content, never by time stamps, so that a symlink
//! swapped by Kubernetes, an editor's rename and a restored backup are all the same. Digests stay in memory; nothing
//! of a file is logged. The calls block: they belong off the runtime's threads.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use nix::fcntl::OFlag;
use zeroize::Zeroizing;

/// No configuration, certificate, key or CRL is larger; what is, is the wrong file.
pub(crate) const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// A look at some files.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Look(Vec<(PathBuf, Seen)>);

#[derive(Clone, PartialEq, Eq)]
enum Seen {
    /// Mode and owner count, too: a key that others may read is refused.
    Holds {
        digest: Vec<u8>,
        mode: u32,
        owner: u32,
    },
    /// A pipe or the like: to read it again would take from it what it holds.
    NotAFile,
    Unreadable(io::ErrorKind),
}

impl Look {
    /// Looks at these files now.
    pub(crate) fn at<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let look = |path: &Path| (path.to_owned(), Seen::of(path));
        Self(paths.into_iter().map(look).collect())
    }

    /// Looks at the same files again.
    pub(crate) fn again(&self) -> Self {
        Self::at(self.0.iter().map(|(path, _)| path.as_path()))
    }

    /// One look at the files of both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl Seen {
    fn of(path: &Path) -> Self {
        Self::read(path).unwrap_or_else(|error| Self::Unreadable(error.kind()))
    }

    fn read(path: &Path) -> io::Result<Self> {
        // Without blocking, since the opening of a named pipe would wait for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Self::NotAFile);
        }
        Ok(Self::Holds {
            digest: digest(&file)?,
            mode: metadata.mode(),
            owner: metadata.uid(),
        })
    }
}

fn digest(file: &File) -> io::Result<Vec<u8>> {
    let mut context = Context::new(&SHA256);
    let mut file = file.take(LARGEST_FILE + 1);
    // It holds a piece of a key for a moment.
    let mut piece = Zeroizing::new([0; 8192]);
    loop {
        match file.read(&mut piece[..])? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            n => context.update(piece.get(..n).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_change_of_content_or_mode_is_seen_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let look = || Look::at([path.as_path()]);
        let missing = look();
        fs::write(&path, "one").unwrap();
        let one = look();
        assert!(one != missing);
        fs::write(&path, "two").unwrap();
        assert!(one.again() != one);
        fs::write(dir.path().join("new"), "one").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(one.again() == one);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(one.again() != one);
    }

    #[test]
    fn a_swapped_directory_behind_symlinks_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [("v1", "old"), ("v2", "new")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("tls.crt"), text).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let before = Look::at([at("tls.crt").as_path()]);
        symlink("v2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(before.again() != before);
    }

    #[test]
    fn a_pipe_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let look = Look::at([path.as_path()]);
        assert!(look.again() == look);
    }
}
