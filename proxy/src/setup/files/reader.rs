//! Files read as the OS user whom they concern. Whoever owns a directory can lead a name in it to any file in any moment; what
//! root reads there and writes again must be what he could read himself. The kernel judges that, at the one opening.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, User, getgrouplist, getgroups, setfsgid, setfsuid, setgroups};

use super::{Files, LONGEST_FILE, names_in};
use crate::setup::apply::Rights;

/// As whom files are opened.
#[derive(Debug)]
pub(in crate::setup) struct Reader(Option<Identity>);

#[derive(Debug)]
struct Identity {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// A file as it was when it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::setup) struct Opened {
    pub(in crate::setup) content: Vec<u8>,
    pub(in crate::setup) rights: Rights,
}

impl Reader {
    /// Whoever runs this.
    pub(in crate::setup) const ME: Self = Self(None);

    /// This OS user, if we may become him.
    pub(in crate::setup) fn of(user: &User) -> Self {
        let groups = CString::new(user.name.as_bytes())
            .ok()
            .and_then(|name| getgrouplist(&name, user.gid).ok());
        Self::becoming(Identity {
            name: user.name.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: groups.unwrap_or_else(|| vec![user.gid]),
        })
    }

    /// The owner of an open directory: its names lead where he wants.
    pub(in crate::setup) fn owner_of(directory: &File) -> io::Result<Self> {
        let metadata = directory.metadata()?;
        let uid = Uid::from_raw(metadata.uid());
        if let Ok(Some(user)) = User::from_uid(uid) {
            return Ok(Self::of(&user));
        }
        let gid = Gid::from_raw(metadata.gid());
        Ok(Self::becoming(Identity {
            name: uid.to_string(),
            uid,
            gid,
            groups: vec![gid],
        }))
    }

    fn becoming(identity: Identity) -> Self {
        let becomes = Uid::effective().is_root() && !identity.uid.is_root();
        Self(becomes.then_some(identity))
    }

    /// Reads a plain file; a link is followed.
    pub(in crate::setup) fn read(&self, path: &Path) -> io::Result<Opened> {
        self.open(path, OFlag::empty())
    }

    /// The same where a link is an error.
    pub(in crate::setup) fn read_no_link(&self, path: &Path) -> io::Result<Opened> {
        self.open(path, OFlag::O_NOFOLLOW)
    }

    fn open(&self, path: &Path, more: OFlag) -> io::Result<Opened> {
        // A pipe would keep us waiting for its other end.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | more;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits());
        let file = self.act(|| options.open(path))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no plain file"));
        }
        let mut content = Vec::new();
        file.take(LONGEST_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LONGEST_FILE {
            return Err(io::Error::other("it is larger than 4 MiB"));
        }
        Ok(Opened {
            content,
            rights: Rights::of_metadata(&metadata),
        })
    }

    /// Does this with the rights that he has to files.
    fn act<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(identity) = &self.0 else {
            return act();
        };
        let became = Became::become_him(identity)?;
        let done = act();
        drop(became);
        done.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => io::Error::new(
                ErrorKind::PermissionDenied,
                format!("OS user {} cannot read it", identity.name),
            ),
            _ => error,
        })
    }
}

/// This thread has the rights of another to files, until it is dropped. Groups are those of the process: to root, whose the
/// other threads stay, they make no difference.
struct Became {
    groups: Vec<Gid>,
}

impl Became {
    fn become_him(identity: &Identity) -> io::Result<Self> {
        let became = Self {
            groups: getgroups()?,
        };
        setgroups(&identity.groups)?;
        setfsgid(identity.gid);
        setfsuid(identity.uid);
        // They tell no failure, but what was there before.
        let told = (setfsgid(identity.gid), setfsuid(identity.uid));
        if told != (identity.gid, identity.uid) {
            return Err(Errno::EPERM.into());
        }
        Ok(became)
    }
}

impl Drop for Became {
    fn drop(&mut self) {
        setfsuid(Uid::effective());
        setfsgid(Gid::effective());
        let _ = setgroups(&self.groups);
    }
}

/// A content, or what kept it from being read.
type Seen = Result<Vec<u8>, (ErrorKind, String)>;

/// The files of a PostgreSQL as its OS user sees them, which is how it sees them itself. Each is opened once: what was judged
/// is what is planned from.
pub(crate) struct Theirs {
    reader: Reader,
    seen: RefCell<BTreeMap<PathBuf, Seen>>,
}

impl Theirs {
    /// Those of this user's PostgreSQL.
    pub(crate) fn of(owner: &User) -> Self {
        Self {
            reader: Reader::of(owner),
            seen: RefCell::default(),
        }
    }
}

impl Files for Theirs {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut seen = self.seen.borrow_mut();
        let found = seen.entry(path.to_owned()).or_insert_with(|| {
            let opened = self.reader.read(path);
            opened
                .map(|opened| opened.content)
                .map_err(|error| (error.kind(), error.to_string()))
        });
        found
            .clone()
            .map_err(|(kind, why)| io::Error::new(kind, why))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.reader.act(|| names_in(directory))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn only_what_he_can_read_himself_is_read() {
        if !Uid::effective().is_root() {
            println!("skipped: only root can become another");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        open(place.path(), 0o755).unwrap();
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let (his, closed) = (place.path().join("his"), place.path().join("closed"));
        for directory in [&his, &closed] {
            fs::create_dir(directory).unwrap();
            open(directory, 0o700).unwrap();
        }
        chown(&his, Some(nobody.uid.as_raw()), None).unwrap();
        let files = [
            (
                "his/plain",
                nobody.uid.as_raw(),
                nobody.gid.as_raw(),
                0o600,
                true,
            ),
            ("his/group", 0, nobody.gid.as_raw(), 0o640, true),
            ("his/roots", 0, 0, 0o640, false),
            ("open", 0, 0, 0o644, true),
            ("closed/open", 0, 0, 0o644, false),
        ];
        for (name, uid, gid, mode, readable) in files {
            let (path, link) = (place.path().join(name), his.join("link"));
            fs::write(&path, "text").unwrap();
            chown(&path, Some(uid), Some(gid)).unwrap();
            open(&path, mode).unwrap();
            symlink(&path, &link).unwrap();
            let reader = Reader::of(&nobody);
            for path in [&path, &link] {
                let read = reader.read(path).map(|opened| opened.content);
                assert_eq!(read.is_ok(), readable, "{name}: {read:?}");
            }
            assert!(reader.read_no_link(&link).is_err(), "{name}");
            assert!(Reader::ME.read(&link).is_ok(), "root is root again");
            fs::remove_file(&link).unwrap();
        }
        let groups = getgroups().unwrap();
        assert!(!groups.contains(&nobody.gid), "{groups:?}");
        // No pipe keeps it waiting.
        let pipe = his.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        assert!(Theirs::of(&nobody).read(&pipe).is_err());
    }

    #[test]
    fn what_was_read_once_is_what_it_is() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        let me = User::from_uid(Uid::effective()).unwrap().unwrap();
        let files = Theirs::of(&me);
        assert_eq!(files.read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let later = Theirs::of(&me);
        fs::write(&path, "first").unwrap();
        assert_eq!(later.read(&path).unwrap(), b"first");
        fs::write(&path, "second").unwrap();
        assert_eq!(later.read(&path).unwrap(), b"first");
        assert!(files.read(&path).is_err());
    }
}
