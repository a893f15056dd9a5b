//! The way to a directory, gone step by step, with links followed by hand. Each step is judged as it is open: whatever
//! another user puts in its place meanwhile, what was judged is what is used.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::Uid;

use super::super::apply::{Rights, cannot};
use super::by_descriptor;
use crate::problem::Problem;

/// Links on one way; the kernel follows no more (path_resolution(7)).
const MOST_LINKS: u32 = 40;
/// Steps that links may leave to be gone: more than any path has.
const MOST_STEPS: usize = 4_096;

/// How far a way leads.
struct Walked {
    /// The last directory that is there; opened as a place only.
    here: File,
    /// The first user other than root to whom a directory or a link before it belongs.
    led_by: Option<u32>,
    /// What is not there, from `here` on.
    missing: Vec<OsString>,
}

fn steps_of(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
}

fn walk(path: &Path) -> io::Result<Walked> {
    let root = || {
        let mut place = OpenOptions::new();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        place.read(true).custom_flags(flags.bits()).open("/")
    };
    let path = std::path::absolute(path)?;
    let mut here = root()?;
    let (mut led_by, mut links) = (None, 0);
    let mut rest: Vec<OsString> = steps_of(&path).collect();
    while let Some(step) = rest.pop() {
        let whose = here.metadata()?.uid();
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let next = match openat(&here, step.as_os_str(), flags, Mode::empty()) {
            Ok(next) => File::from(next),
            Err(Errno::ENOENT) => {
                let missing = std::iter::once(step).chain(rest.into_iter().rev());
                return Ok(Walked {
                    here,
                    led_by,
                    missing: missing.collect(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        led_by = led_by.or_else(|| (whose != 0).then_some(whose));
        let found = next.metadata()?;
        if found.is_symlink() {
            links += 1;
            if links > MOST_LINKS || rest.len() > MOST_STEPS {
                return Err(Errno::ELOOP.into());
            }
            let whose = found.uid();
            led_by = led_by.or_else(|| (whose != 0).then_some(whose));
            let target = PathBuf::from(readlinkat(&next, "")?);
            if target.is_absolute() {
                here = root()?;
            }
            rest.extend(steps_of(&target));
        } else if found.is_dir() {
            here = next;
        } else {
            return Err(Errno::ENOTDIR.into());
        }
    }
    Ok(Walked {
        here,
        led_by,
        missing: Vec::new(),
    })
}

impl Walked {
    /// Refuses a directory of root's to which another user may have led.
    fn judged(self, asked: &Path) -> Result<Self, Problem> {
        let own = self.here.metadata();
        let own = own.map_err(|error| cannot("look at", asked, &error))?;
        let roots = Uid::effective().is_root() && own.uid() == 0;
        match self.led_by.filter(|_| roots) {
            None => Ok(self),
            Some(uid) => Err(Problem::new(
                "G26",
                format!("{} is not changed as root", asked.display()),
                format!(
                    "it or the directory where it lies is root's, and OS user {uid} could lead the way there anywhere"
                ),
                "have both the directory and the way there belong to root, or to PostgreSQL's OS user",
            )),
        }
    }
}

fn open_in(directory: &File, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?.into())
}

fn parted(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let (above, name) = (path.parent(), path.file_name());
    above
        .zip(name)
        .ok_or_else(|| ErrorKind::InvalidInput.into())
}

/// A name in a directory that is held open.
#[derive(Debug)]
pub(in crate::setup) struct Spot {
    directory: File,
    name: OsString,
    /// The first user other than root who could have led to the directory.
    led_by: Option<u32>,
}

impl Spot {
    /// Where this path lies, whose last step is not followed; None if there is no such directory. One of root's to which
    /// another user may have led is refused.
    pub(in crate::setup) fn find(path: &Path) -> Result<Option<Self>, Problem> {
        let wrong = |error: io::Error| cannot("reach", path, &error);
        let (above, name) = parted(path).map_err(wrong)?;
        let walked = walk(above).map_err(wrong)?;
        if !walked.missing.is_empty() {
            return Ok(None);
        }
        let walked = walked.judged(path)?;
        Ok(Some(Self {
            directory: walked.here,
            name: name.to_owned(),
            led_by: walked.led_by,
        }))
    }

    /// The same, where there must be such a directory.
    pub(in crate::setup) fn of(path: &Path) -> Result<Self, Problem> {
        let missing = || cannot("reach", path, &ErrorKind::NotFound.into());
        Self::find(path)?.ok_or_else(missing)
    }

    /// A path that leads there, whatever its own name leads to now.
    pub(in crate::setup) fn path(&self) -> PathBuf {
        by_descriptor(&self.directory).join(&self.name)
    }

    /// What is there, if anything is: of a link the link.
    pub(in crate::setup) fn look(&self) -> io::Result<Option<fs::Metadata>> {
        match fs::symlink_metadata(self.path()) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the directory that is there; a link is none.
    pub(in crate::setup) fn open(&self) -> io::Result<File> {
        open_in(&self.directory, &self.name)
    }

    /// Whether it lies in a directory of this user's, or in one of root's to which root's alone lead.
    pub(in crate::setup) fn is_in_hands_of(&self, uid: u32) -> io::Result<bool> {
        let owner = self.directory.metadata()?.uid();
        Ok(owner == uid || (owner == 0 && self.led_by.is_none()))
    }

    /// Makes the entries of its directory last.
    pub(in crate::setup) fn sync(&self) -> io::Result<()> {
        File::open(by_descriptor(&self.directory))?.sync_all()
    }
}

/// Refuses a directory of root's, which may have yet to be made, to which another user may have led.
pub(in crate::setup) fn judge_way(path: &Path) -> Result<(), Problem> {
    let walked = walk(path).map_err(|error| cannot("reach", path, &error))?;
    walked.judged(path).map(drop)
}

/// Makes a directory with these rights, and what is missing above it; one that is there and belongs to that user or to
/// root gets them. Its inode tells it again: the device may have another number after the next start of the machine.
pub(in crate::setup) fn make_directory(path: &Path, rights: Rights) -> Result<u64, Problem> {
    let wrong = |error: io::Error| cannot("make", path, &error);
    let (above, name) = parted(path).map_err(wrong)?;
    let Walked { here, missing, .. } = walk(above).map_err(wrong)?.judged(path)?;
    let make = || -> io::Result<u64> {
        let mut place = here;
        let make_in = |place: &File, name: &OsStr, mode| {
            let made = DirBuilder::new()
                .mode(mode)
                .create(by_descriptor(place).join(name));
            match made {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                made => made.map(|()| true),
            }
        };
        for name in &missing {
            make_in(&place, name, 0o755)?;
            place = open_in(&place, name)?;
        }
        let is_new = make_in(&place, name, 0o700)?;
        let directory = open_in(&place, name)?;
        let found = directory.metadata()?;
        if Uid::effective().is_root() && found.uid() != rights.uid {
            let others = found.uid() != 0;
            // In a directory of his, somebody else may have put it there.
            let doubtful = !is_new && place.metadata()?.uid() != 0 && !is_bare(&directory)?;
            if others || doubtful {
                let why = format!("it is there, and belongs to OS user {}", found.uid());
                return Err(io::Error::other(why));
            }
            fchown(&directory, Some(rights.uid), Some(rights.gid))?;
        }
        directory.set_permissions(Permissions::from_mode(rights.mode))?;
        Ok(found.ino())
    };
    make().map_err(wrong)
}

/// Whether there is nothing in it but what mkfs leaves.
fn is_bare(directory: &File) -> io::Result<bool> {
    let mut entries = fs::read_dir(by_descriptor(directory))?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    const HIS: u32 = 65534;

    fn rights() -> Rights {
        Rights {
            mode: 0o700,
            uid: if Uid::effective().is_root() {
                HIS
            } else {
                Uid::effective().as_raw()
            },
            gid: nix::unistd::getegid().as_raw(),
        }
    }

    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        place
    }

    #[test]
    fn a_directory_is_made_given_and_told_again() {
        let place = place();
        let path = place.path().join("a/b/new");
        let inode = make_directory(&path, rights()).unwrap();
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.ino(), made.uid()), (inode, rights().uid));
        assert_eq!(make_directory(&path, rights()).unwrap(), inode, "twice");
        let link = place.path().join("link");
        symlink(&path, &link).unwrap();
        make_directory(&link, rights()).unwrap_err();
        // Through a link of root's it is the same place.
        let there = Spot::of(&link.join("PG_VERSION")).unwrap();
        assert!(there.look().unwrap().is_none());
        fs::write(path.join("PG_VERSION"), "").unwrap();
        assert!(there.look().unwrap().is_some());
        assert!(Spot::find(&path.join("gone/file")).unwrap().is_none());
        symlink("circle", place.path().join("circle")).unwrap();
        assert!(Spot::find(&place.path().join("circle/file")).is_err());
    }

    #[test]
    fn nobody_has_root_give_a_directory_away() {
        if !Uid::effective().is_root() {
            println!("skipped: only root can be led astray");
            return;
        }
        let place = place();
        let (his, roots) = (place.path().join("his"), place.path().join("roots"));
        fs::create_dir(&his).unwrap();
        fs::create_dir_all(roots.join("full/inside")).unwrap();
        chown(&his, Some(HIS), None).unwrap();
        symlink(&roots, his.join("link")).unwrap();
        for path in [his.join("link/new"), his.join("link/full")] {
            assert_eq!(make_directory(&path, rights()).unwrap_err().id, "G26");
            assert_eq!(Spot::find(&path).unwrap_err().id, "G26");
            assert_eq!(judge_way(&path).unwrap_err().id, "G26");
        }
        assert_eq!(fs::read_dir(&roots).unwrap().count(), 1);
        // A link of his may lead to what is his, and root's own way to what is root's.
        symlink(&his, his.join("again")).unwrap();
        make_directory(&his.join("again/new"), rights()).unwrap();
        make_directory(&roots.join("new"), rights()).unwrap();
        // Root's in his directory is given only if there is nothing in it.
        fs::create_dir_all(his.join("roots/inside")).unwrap();
        make_directory(&his.join("roots"), rights()).unwrap_err();
        fs::remove_dir(his.join("roots/inside")).unwrap();
        make_directory(&his.join("roots"), rights()).unwrap();
        // What is a third one's is never given.
        fs::create_dir(roots.join("third")).unwrap();
        chown(roots.join("third"), Some(1234), None).unwrap();
        make_directory(&roots.join("third"), rights()).unwrap_err();
    }
}
