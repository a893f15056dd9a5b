//! A new node's files: all are written and judged under a name of their own, by the loader that the daemon uses, and
//! put in their places only then, the configuration last. Without it nothing counts, so it is all or nothing.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use tempfile::Builder;

use super::{CONFIG, LOCK};
use crate::config::{Config, IdentityFiles, Source};
use crate::problem::Problem;
use crate::reload::{Checked, load};
use crate::turn;

/// In the order in which they are put in place: what a file names comes before it.
pub(super) struct Files<'a> {
    pub(super) key: &'a str,
    pub(super) certificate: &'a str,
    pub(super) ca: &'a str,
    pub(super) crl: &'a str,
    pub(super) config: &'a str,
    /// Those that the daemon writes in, with the mode where its group exists.
    pub(super) directories: [(&'a Path, u32); 2],
    /// Whom the daemon runs as.
    pub(super) os_user: &'a str,
}

pub(super) const KEY: &str = "node.key";
pub(super) const CERTIFICATE: &str = "node.crt";
pub(super) const CA: &str = "ca.crt";
pub(super) const CRL: &str = "ca.crl";
/// How the names begin under which files wait for their places.
const STAGING: &str = ".join-";
const NAMES: [&str; 5] = [KEY, CERTIFICATE, CA, CRL, CONFIG];

/// Refuses a directory that holds one of the files already.
pub(super) fn refuse_existing(directory: &Path) -> Result<(), Problem> {
    let existing = NAMES
        .map(|name| directory.join(name))
        .into_iter()
        .find(|path| path.symlink_metadata().is_ok());
    match existing {
        None => Ok(()),
        Some(path) => Err(Problem::new(
            "E06",
            format!("{} exists already", path.display()),
            "this host may be a node; nothing was changed, and the token has not been used",
            "`pgtlsproxy setup standby` goes on from there; --force replaces its files, --dir DIR makes a second node",
        )),
    }
}

/// Whether the directory can be written in, and the configuration would be understood; leaves nothing behind.
pub(super) fn rehearse(directory: &Path, config: &str) -> Result<(), Vec<Problem>> {
    let failed = |error: io::Error| {
        vec![Problem::new(
            "E07",
            format!("the files cannot be written in {}", directory.display()),
            error.to_string(),
            "make room, or run this as root; the token has not been used",
        )]
    };
    make(directory).map_err(failed)?;
    let mut file = Builder::new()
        .prefix(STAGING)
        .suffix(".toml")
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(config.as_bytes()).map_err(failed)?;
    Config::load(&Source::File(file.path().to_owned())).map(drop)
}

/// Writes, judges, puts in place. Gives what the daemon will see.
pub(super) fn install(directory: &Path, files: &Files<'_>) -> Result<Checked, Vec<Problem>> {
    let failed = |error: io::Error| {
        vec![Problem::new(
            "E07",
            format!("the files cannot be written in {}", directory.display()),
            error.to_string(),
            "make room, or run this as root; then ask for a new token: pgtlsproxy invite --replace NAME",
        )]
    };
    make(directory).map_err(failed)?;
    let _turn = turn::wait(&directory.join(LOCK)).map_err(failed)?;
    sweep(directory);
    // Until they are in place, the files are nobody else's business, whatever the umask.
    let staging = Builder::new()
        .prefix(STAGING)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(directory)
        .map_err(failed)?;
    let group = daemons_group(files.os_user);
    let contents = [
        files.key,
        files.certificate,
        files.ca,
        files.crl,
        files.config,
    ];
    for (name, content) in NAMES.into_iter().zip(contents) {
        let secret = name == KEY;
        let reader = group.filter(|_| secret);
        write(&staging.path().join(name), content, secret, reader).map_err(failed)?;
    }
    let checked = load(&Source::File(staging.path().join(CONFIG)))?;
    // Before the configuration, by which whoever manages services may start the daemon at once.
    for (path, mode) in files.directories {
        make_for_daemon(path, mode, group).map_err(|problem| vec![problem])?;
    }
    for name in NAMES {
        fs::rename(staging.path().join(name), directory.join(name)).map_err(failed)?;
    }
    forget_renewals(directory, &checked.config.identity).map_err(failed)?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
    Ok(checked)
}

/// Takes away what renewals of the node have left that was here before; `now` is the new one's.
fn forget_renewals(directory: &Path, now: &IdentityFiles) -> io::Result<()> {
    for left in [now.next_key(), now.renewal_note()] {
        let left = left.file_name().map(|name| directory.join(name));
        match left.map_or(Ok(()), fs::remove_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what a run has left that was killed: a key among it. Nobody else is at work here now.
fn sweep(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(STAGING.as_bytes()) {
            continue;
        }
        // What cannot be removed is told by nobody who could do more about it: its owner alone reads it.
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => fs::remove_file(entry.path()),
        };
    }
}

/// Makes a directory and those above it, if need be. Whatever the umask, the daemon gets through, and nobody else may
/// write there; one that has been there keeps its mode.
fn make(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    for path in missing {
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Makes a directory that the daemon writes in; `mode` is for where its group exists.
fn make_for_daemon(path: &Path, mode: u32, group: Option<Gid>) -> Result<(), Problem> {
    let made = || {
        make(path)?;
        let directory = File::open(path)?;
        if let Some(group) = group {
            fchown(&directory, None, Some(group.as_raw()))?;
            directory.set_permissions(Permissions::from_mode(mode))?;
        }
        io::Result::Ok(())
    };
    made().map_err(|error| {
        Problem::new(
            "E08",
            format!("the directory {} cannot be made", path.display()),
            error.to_string(),
            "make it, and let the daemon's user write in it",
        )
    })
}

fn write(path: &Path, content: &str, secret: bool, reader: Option<Gid>) -> io::Result<()> {
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The umask may have taken what the daemon needs.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    if let Some(group) = reader {
        // PostgreSQL's own rule for a server key: 0640 where root owns it.
        fchown(&file, None, Some(group.as_raw()))?;
        file.set_permissions(Permissions::from_mode(0o640))?;
    }
    file.sync_all()
}

/// The group that the daemon runs as, if it exists and we may give files to it.
fn daemons_group(os_user: &str) -> Option<Gid> {
    if !Uid::effective().is_root() {
        return None;
    }
    let user = User::from_name(os_user).ok().flatten();
    user.map(|user| user.gid).or_else(|| {
        Group::from_name(os_user)
            .ok()
            .flatten()
            .map(|group| group.gid)
    })
}
