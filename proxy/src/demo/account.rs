//! The OS user under which PostgreSQL and the sidecars run: PostgreSQL refuses to run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, chown};
use tempfile::TempDir;

use crate::problem::Problem;

/// An OS user, and whether we must change to it.
#[derive(Clone)]
pub(super) struct Account {
    user: User,
    switch: bool,
}

impl Account {
    /// Whoever runs this, or `postgres` (else `nobody`) if that is root.
    pub(super) fn unprivileged() -> Result<Self, Problem> {
        let own = Uid::effective();
        let found = if own.is_root() {
            ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| User::from_name(name).ok().flatten())
        } else {
            User::from_uid(own).ok().flatten()
        };
        let user = found.ok_or_else(|| {
            Problem::new(
                "C20",
                "there is no OS user to run PostgreSQL as",
                "it refuses to run as root, and this host has no user `postgres` or `nobody`",
                "run the demo as an ordinary user",
            )
        })?;
        Ok(Self {
            switch: own.is_root(),
            user,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.user.name
    }

    /// A command that will run under this account, in `directory`.
    pub(super) fn command(&self, program: impl AsRef<Path>, directory: &Path) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .current_dir(directory)
            .env("LC_ALL", "C")
            .env("HOME", directory);
        for inherited in [
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
            "PGSERVICE",
            "PGOPTIONS",
        ] {
            command.env_remove(inherited);
        }
        // A group of its own, so that Ctrl-C reaches the demo alone, which then ends them in order.
        command.process_group(0);
        if self.switch {
            command
                .uid(self.user.uid.as_raw())
                .gid(self.user.gid.as_raw());
        }
        command
    }

    /// A directory that only this account can enter, removed on drop. The name is short: sockets lie in it.
    pub(super) fn temporary_directory(&self) -> Result<TempDir, Problem> {
        let made = tempfile::Builder::new()
            .prefix("pgtlsproxy-demo-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in("/tmp");
        let directory = made.map_err(|error| {
            Problem::new(
                "C21",
                "no temporary directory can be made in /tmp",
                error.to_string(),
                "make room there, or let this OS user write to it",
            )
        })?;
        self.give(directory.path())?;
        Ok(directory)
    }

    /// Hands a file or directory over to this account.
    pub(super) fn give(&self, path: &Path) -> Result<(), Problem> {
        let given = fs::metadata(path).and_then(|metadata| {
            if metadata.uid() == self.user.uid.as_raw() {
                return Ok(());
            }
            let (uid, gid): (Uid, Gid) = (self.user.uid, self.user.gid);
            chown(path, Some(uid), Some(gid)).map_err(Into::into)
        });
        given.map_err(|error| {
            Problem::new(
                "C22",
                format!(
                    "{} cannot be given to the OS user {}",
                    path.display(),
                    self.name()
                ),
                error.to_string(),
                "run the demo as an ordinary user",
            )
        })
    }
}
