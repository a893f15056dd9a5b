//! What root does with the parts of a data directory that lie elsewhere. The server's OS user makes the links that name
//! them, at any moment: whatever one leads to is judged, and nothing is done by a name that he could lead elsewhere.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Uid, User};

use super::super::ownership::Spot;
use super::elsewhere::{TEMPORARY, WAL_DIRECTORIES};
use super::place;
use crate::problem::Problem;

/// Takes away links that a kill has left half-way.
pub(super) fn sweep(data: &Path) {
    let tablespaces = fs::read_dir(data.join("pg_tblspc"));
    let tablespaces = tablespaces.into_iter().flatten().flatten();
    let wal = WAL_DIRECTORIES.map(|name| place::beside(&data.join(name), TEMPORARY));
    for path in tablespaces.map(|entry| entry.path()).chain(wal) {
        if path.to_string_lossy().ends_with(TEMPORARY)
            && let Ok(Some(link)) = Spot::find(&path)
        {
            let _ = fs::remove_file(link.path());
        }
    }
}

/// Leads a link elsewhere, in one step.
pub(super) fn relink(link: &Path, to: &Path) -> Result<(), Problem> {
    let temporary = Spot::of(&place::beside(link, TEMPORARY))?;
    let place = Spot::of(link)?;
    let _ = fs::remove_file(temporary.path());
    std::os::unix::fs::symlink(to, temporary.path())
        .and_then(|()| {
            // A link's owner counts where symbolic links in sticky directories are protected.
            let metadata = fs::symlink_metadata(place.path())?;
            let (uid, gid) = (Some(metadata.uid()), Some(metadata.gid()));
            let _ = std::os::unix::fs::lchown(temporary.path(), uid, gid);
            fs::rename(temporary.path(), place.path())
        })
        .map_err(|error| {
            Problem::new(
                "G05",
                format!("cannot link {}", link.display()),
                error.to_string(),
                "run setup as root, with room on that disk; then run it again",
            )
        })
}

/// Whether the directory of this inode is at this path.
pub(super) fn is_there(path: &Path, inode: u64) -> Result<bool, Problem> {
    let Some(place) = Spot::find(path)? else {
        return Ok(false);
    };
    let found = place
        .look()
        .map_err(|error| refused(path, error.to_string()))?;
    Ok(found.is_some_and(|found| found.is_dir() && found.ino() == inode))
}

/// Takes a directory away if there is nothing in it.
pub(super) fn remove_empty(path: &Path) {
    if let Ok(Some(place)) = Spot::find(path) {
        let _ = fs::remove_dir(place.path());
    }
}

fn refused(part: &Path, why: String) -> Problem {
    Problem::new(
        "V21",
        format!("{} cannot be judged", part.display()),
        why,
        "run setup as root; a link in pg_tblspc, or that of the WAL, names it",
    )
}

/// What was made for the copy is not where it was made.
pub(super) fn gone(new: &Path) -> Problem {
    Problem::new(
        "V21",
        format!("{} is not what setup has made there", new.display()),
        "a part of the copy was moved or replaced meanwhile",
        "bring it back, or `pgtlsproxy setup undo --bring-back`, and begin anew",
    )
}

/// The server's OS user makes the links that name these parts, and root would exchange whatever one leads to. So it must be
/// there, be his, and lie where root cannot be led away from it.
pub(super) fn owned(part: &Path, owner: &User) -> Result<(), Problem> {
    let named = "a link in pg_tblspc, or that of the WAL, names it";
    let mend = |what: String, why: &str, way_out: String| {
        Err(Problem::new("V21", what, why.to_owned(), way_out))
    };
    let (shown, name) = (part.display(), &owner.name);
    let place = match Spot::find(part) {
        Err(problem) if problem.id == "G26" => {
            return Err(Problem {
                id: "V21",
                ..problem
            });
        }
        place => place?,
    };
    let unknown = |error: io::Error| refused(part, error.to_string());
    let found = place.as_ref().map(|place| place.look().map_err(unknown));
    let (Some(place), Some(found)) = (&place, found.transpose()?.flatten()) else {
        return mend(
            format!("{shown} does not exist"),
            &format!("{named}, and root would make it where that link says"),
            format!(
                "mount or make it, owned by OS user {name}, if it belongs there; else take that link away; then run this again"
            ),
        );
    };
    if !found.is_dir() {
        return mend(
            format!("{shown} is no directory"),
            &format!("{named}; it is a link itself, or a file"),
            "lead the link in the data directory straight to the directory (ln -sfn), then run this again".to_owned(),
        );
    }
    if found.uid() != owner.uid.as_raw() {
        return mend(
            format!("{shown} does not belong to OS user {name}"),
            &format!("{named}, and what they name is the server's own"),
            "look what it is; if it is the server's: chown it, then run this again".to_owned(),
        );
    }
    let in_hands = place.is_in_hands_of(owner.uid.as_raw()).map_err(unknown)?;
    if Uid::effective().is_root() && !in_hands {
        return mend(
            format!("{shown} cannot be moved aside as root"),
            &format!(
                "{named}, and the directory above it belongs to another user than root or {name}"
            ),
            format!(
                "say where the new one goes with --waldir DIR (WAL) or --tablespace-mapping OLD=NEW, in a directory of root's or of OS user {name}"
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_servers_own_is_never_exchanged() {
        let Some(owner) = User::from_uid(Uid::from_raw(65534)).unwrap() else {
            return;
        };
        if !Uid::effective().is_root() {
            println!("skipped: only root can be led astray");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(
            place.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let path = |name: &str| place.path().join(name);
        let give = |name: &str, uid| std::os::unix::fs::chown(path(name), Some(uid), None).unwrap();
        for name in ["space", "cron.d", "his/space", "third/space"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        for name in ["space", "his", "his/space", "third/space"] {
            give(name, 65534);
        }
        give("third", 1234);
        std::os::unix::fs::symlink(path("space"), path("link")).unwrap();
        std::os::unix::fs::symlink(place.path(), path("his/way")).unwrap();
        for name in ["space", "his/space"] {
            owned(&path(name), &owner).unwrap();
        }
        for name in [
            "gone",
            "no/way",
            "cron.d",
            "link",
            "third/space",
            "his/way/space",
        ] {
            assert_eq!(owned(&path(name), &owner).unwrap_err().id, "V21", "{name}");
        }
        // Nor is a link led elsewhere in a directory to which he has led root.
        std::os::unix::fs::symlink(place.path(), path("his/pg_tblspc")).unwrap();
        let led = relink(&path("his/pg_tblspc/link"), Path::new("/elsewhere"));
        assert_eq!(led.unwrap_err().id, "G26");
        assert_eq!(fs::read_link(path("link")).unwrap(), path("space"));
    }
}
