//! What root does in directories of another OS user. Whoever runs PostgreSQL may put a link there in any moment; root must
//! not be led by it to files of its own, to give them away or to write in them. So a thing is opened first, without
//! following a link, and what was opened is judged and changed, never the name once more.

mod way; // to a directory, step by step

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, Uid, access};

use super::apply::cannot;
use crate::problem::Problem;

pub(super) use way::{Spot, judge_way, make_directory};

/// Removes what is in a directory but for what mkfs leaves in a file system of its own.
pub(super) fn clear_directory(directory: &File) -> io::Result<()> {
    for entry in fs::read_dir(by_descriptor(directory))? {
        let entry = entry?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether entries can be made and renamed where this path is one.
pub(super) fn may_write_beside(path: &Path) -> bool {
    let above = path.ancestors().skip(1).find(|above| above.exists());
    above.is_some_and(|above| access(above, AccessFlags::W_OK).is_ok())
}

/// A name of an open directory that leads nowhere else, whatever its own name leads to now.
pub(super) fn by_descriptor(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// A file for somebody's output, made if need be. A link, or one that has another name elsewhere, is none.
pub(super) fn make_log(path: &Path, uid: u32, gid: u32) -> Result<(), Problem> {
    let place = Spot::of(path)?;
    let make = || -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(place.path())?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::other("it is no plain file of one name"));
        }
        if Uid::effective().is_root() && metadata.uid() != uid {
            if metadata.len() > 0 {
                let why = format!("it belongs to OS user {}", metadata.uid());
                return Err(io::Error::other(why));
            }
            fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(())
    };
    make().map_err(|error| cannot("write", path, &error))
}

/// Opens the file that a process writes to by this descriptor, to write there as well; None if the process could not
/// write to it itself. What it may have put in that place since is seen: both are compared as they are open.
pub(super) fn open_output_of(process: &Path, descriptor: u32) -> io::Result<Option<File>> {
    let Ok(path) = fs::read_link(process.join(format!("fd/{descriptor}"))) else {
        return Ok(None);
    };
    if !path.is_file() {
        return Ok(None);
    }
    let ours = OpenOptions::new()
        .append(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(&path)?;
    let about = |path: PathBuf| Opened::parse(&fs::read_to_string(path).unwrap_or_default());
    let theirs = about(process.join(format!("fdinfo/{descriptor}")));
    let own = about(format!("/proc/self/fdinfo/{}", ours.as_raw_fd()).into());
    Ok(match (theirs, own) {
        (Some(theirs), Some(own)) if theirs.writes && theirs.file == own.file => Some(ours),
        _ => None,
    })
}

/// What /proc/PID/fdinfo/FD tells of an open file (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Opened {
    /// Mount and inode; the inode is told from Linux 5.14 on.
    file: (u64, u64),
    writes: bool,
}

impl Opened {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let flags = i32::from_str_radix(field("flags")?, 8).ok()?;
        let access = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
        Some(Self {
            file: (field("mnt_id")?.parse().ok()?, field("ino")?.parse().ok()?),
            writes: access == OFlag::O_WRONLY || access == OFlag::O_RDWR,
        })
    }
}

/// Opens the directory of a file that is to be replaced, and refuses one of root's to which another user may have led: by
/// a directory or a link of his on the way that was `asked` for.
pub(super) fn open_place(asked: &Path, directory: &Path) -> Result<File, Problem> {
    let cannot = |error: io::Error| cannot("write in", directory, &error);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECTORY.bits())
        .open(directory)
        .map_err(cannot)?;
    let owner = opened.metadata().map_err(cannot)?.uid();
    let roots = Uid::effective().is_root() && owner == 0;
    match roots.then(|| who_leads(asked)).flatten() {
        None => Ok(opened),
        Some(uid) => Err(Problem::new(
            "G26",
            format!("{} is not changed as root", asked.display()),
            format!(
                "it lies in {}, which is root's, and OS user {uid} could lead it anywhere",
                directory.display()
            ),
            "have both its directory and the way there belong to root, or to PostgreSQL's OS user",
        )),
    }
}

/// The first user other than root whose directory or link is on this way. What comes behind it, he may have changed since.
fn who_leads(path: &Path) -> Option<u32> {
    let mut prefixes: Vec<&Path> = path.ancestors().collect();
    prefixes.reverse();
    prefixes.into_iter().find_map(|prefix| {
        let link = prefix.symlink_metadata().ok()?;
        let target = prefix.metadata().ok();
        let steps = [
            link.is_symlink().then(|| link.uid()),
            target
                .filter(fs::Metadata::is_dir)
                .map(|target| target.uid()),
        ];
        steps.into_iter().flatten().find(|uid| *uid != 0)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_fdinfo_tells_is_read() {
        let of = |flags: &str| {
            Opened::parse(&format!(
                "pos:\t0\nflags:\t{flags}\nmnt_id:\t29\nino:\t1055\n"
            ))
        };
        assert_eq!(
            of("02102001"),
            Some(Opened {
                file: (29, 1055),
                writes: true
            })
        );
        assert!(!of("0100000").unwrap().writes);
        assert_eq!(Opened::parse("pos:\t0\nflags:\t02\nmnt_id:\t29\n"), None);
    }

    #[test]
    fn only_what_a_process_writes_to_is_its_output() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        fs::write(&path, "").unwrap();
        let me = Path::new("/proc/self");
        let of = |file: &File| {
            open_output_of(me, u32::try_from(file.as_raw_fd()).unwrap())
                .unwrap()
                .is_some()
        };
        let reads = File::open(&path).unwrap();
        assert!(!of(&reads));
        let writes = OpenOptions::new().append(true).open(&path).unwrap();
        assert!(of(&writes));
    }

    #[test]
    fn a_link_is_neither_emptied_nor_written_to() {
        let place = tempfile::tempdir().unwrap();
        let (real, link) = (place.path().join("real"), place.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for name in ["base", "lost+found"] {
            fs::create_dir(real.join(name)).unwrap();
            fs::write(real.join(name).join("file"), "").unwrap();
        }
        assert!(Spot::of(&link).unwrap().open().is_err());
        clear_directory(&Spot::of(&real).unwrap().open().unwrap()).unwrap();
        assert!(!real.join("base").exists() && real.join("lost+found/file").exists());

        let me = (nix::unistd::geteuid(), nix::unistd::getegid());
        let (uid, gid) = (me.0.as_raw(), me.1.as_raw());
        let (file, other) = (place.path().join("file"), place.path().join("other"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &other).unwrap();
        assert!(make_log(&other, uid, gid).is_err());
        fs::remove_file(&other).unwrap();
        fs::hard_link(&file, &other).unwrap();
        assert!(make_log(&other, uid, gid).is_err());
        fs::remove_file(&other).unwrap();
        make_log(&other, uid, gid).unwrap();
    }

    #[test]
    fn nobody_leads_root_to_its_own_files() {
        if !Uid::effective().is_root() {
            println!("skipped: only root can be led astray");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        let (his, roots) = (place.path().join("his"), place.path().join("roots"));
        for directory in [&his, &roots] {
            fs::create_dir(directory).unwrap();
        }
        std::os::unix::fs::chown(&his, Some(65534), None).unwrap();
        let link = his.join("link");
        std::os::unix::fs::symlink(&roots, &link).unwrap();
        assert!(open_place(&his.join("file"), &his).is_ok());
        assert!(open_place(&roots.join("file"), &roots).is_ok());
        assert!(open_place(&link.join("file"), &roots).is_err());
        // Even after he has taken the link away again.
        fs::remove_file(&link).unwrap();
        assert!(open_place(&link.join("file"), &roots).is_err());
    }
}
