//! The copy of the primary, and how it takes its place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::User;

use super::super::apply::{Rights, Stage, StandbyCopy, replace_theirs};
use super::super::facts::OWN_FILE;
use super::super::version::BackupSource;
use super::backup::{self, Backup};
use super::place::{self, beside};
use super::{Work, power};
use crate::problem::Problem;

/// Where a tablespace of the old cluster's grows anew.
const NEW: &str = ".pgtlsproxy-new";

impl Work<'_> {
    /// A base backup beside the place.
    pub(super) fn copy(&mut self) -> Result<(), Problem> {
        let data = self.place.cluster.data.clone();
        let staging = place::staging(&data);
        if self.place.occupied && staging == data {
            return Err(Problem::new(
                "V07",
                format!("{} is a file system of its own", data.display()),
                "it cannot be moved aside as a whole",
                "stop its server, move its content into another directory by hand, then run this again",
            ));
        }
        let earlier = self.journal.copy().filter(|copy| copy.staging == staging);
        let aside = earlier.map_or_else(Vec::new, |copy| copy.aside.clone());
        let ours = earlier.is_some_and(|copy| matches!(copy.stage, Stage::Copying | Stage::Copied));
        backup::clear(&staging, ours)?;
        let note = StandbyCopy {
            stage: Stage::Copying,
            staging: staging.clone(),
            aside,
        };
        self.journal.note_copy(note)?;
        let cluster = &self.place.cluster;
        let cannot = |path: &Path, error: std::io::Error| {
            Problem::new(
                "G05",
                format!("cannot make {}", path.display()),
                error.to_string(),
                "run setup as root, with room on that disk",
            )
        };
        place::make_directory(&staging, &cluster.owner).map_err(|error| cannot(&staging, error))?;
        let mut mappings = self.wishes.mappings.clone();
        for old in tablespaces(&data, &cluster.owner)? {
            let new = beside(&old, NEW);
            backup::clear(&new, ours)?;
            place::make_directory(&new, &cluster.owner).map_err(|error| cannot(&new, error))?;
            mappings.push(format!("{}={}", old.display(), new.display()));
        }
        let made = match &self.slot {
            Some(slot) => self.upstream.make_slot(slot, cluster.major, true)?,
            None => false,
        };
        let (host, port) = &self.node.door;
        let backup = Backup {
            cluster,
            source: BackupSource {
                host,
                port: *port,
                user: &self.role,
                // Only one that nobody uses: the old standby may still stream by it.
                slot: self.slot.as_deref().filter(|_| made),
            },
            application_name: &self.node.name,
            passfile: self.passfile.as_deref(),
            staging: &staging,
            mappings,
        };
        eprintln!("copying {} through the proxy", self.node.upstream());
        backup.run()?;
        self.note(Stage::Copied)
    }

    /// The copy takes the place; what is there is moved aside. A run that is killed in between is taken up here.
    pub(super) fn exchange(&mut self) -> Result<(), Vec<Problem>> {
        self.put_in_place().map_err(|problem| vec![problem])
    }

    fn put_in_place(&mut self) -> Result<(), Problem> {
        let cluster = self.place.cluster.clone();
        let data = cluster.data.clone();
        let copy = self.journal.copy().cloned();
        let staging = copy.map_or_else(|| place::staging(&data), |copy| copy.staging);
        if staging.exists() {
            // Before anything could start a server there: one without it is a second primary, in silence.
            self.mark(&staging)?;
            if staging != data && data.join("PG_VERSION").exists() {
                let major = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
                if major.parse() == Ok(cluster.major) {
                    // Of the primary's own setup; its line that includes it does not come along.
                    let _ = fs::remove_file(staging.join(OWN_FILE));
                    place::carry(&place::own_files(&cluster), &data, &staging)?;
                }
                if power::runs(&cluster) {
                    eprintln!("stopping {}", cluster.label);
                    power::stop(&cluster)?;
                }
                self.move_aside(&data)?;
            }
            if staging != data {
                place::rename(&staging, &data)?;
            }
        }
        self.settle_tablespaces(&data)?;
        self.complete(&data)?;
        self.note(Stage::Placed)
    }

    fn move_aside(&mut self, path: &Path) -> Result<(), Problem> {
        let aside = place::aside(path);
        let mut copy = self.journal.copy().cloned().unwrap_or_else(|| StandbyCopy {
            stage: Stage::Copied,
            staging: place::staging(path),
            aside: Vec::new(),
        });
        copy.aside.push((aside.clone(), path.to_owned()));
        self.journal.note_copy(copy)?;
        place::rename(path, &aside)?;
        eprintln!(
            "moved {} aside: it is {} now",
            path.display(),
            aside.display()
        );
        Ok(())
    }

    /// Writes `standby.signal` or `recovery.conf` into a directory, if it is not there.
    pub(super) fn mark(&self, directory: &Path) -> Result<bool, Problem> {
        let (name, content) = self.following().marker();
        let path = directory.join(name);
        if fs::read(&path).ok().as_ref() == Some(&content) {
            return Ok(false);
        }
        let owner = &self.place.cluster.owner;
        let rights = Rights {
            mode: 0o600,
            uid: owner.uid.as_raw(),
            gid: owner.gid.as_raw(),
        };
        replace_theirs(&path, &content, rights)?;
        Ok(true)
    }

    /// The old cluster's tablespaces lay where the new ones belong: they are moved aside, too.
    fn settle_tablespaces(&mut self, data: &Path) -> Result<(), Problem> {
        let links = fs::read_dir(data.join("pg_tblspc"));
        for link in links
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
        {
            let Ok(new) = fs::read_link(&link) else {
                continue;
            };
            let name = new.to_string_lossy().into_owned();
            let Some(place) = name.strip_suffix(NEW).map(PathBuf::from) else {
                continue;
            };
            if new.exists() {
                if place.exists() {
                    owned(&place, &self.place.cluster.owner)?;
                    self.move_aside(&place)?;
                }
                place::rename(&new, &place)?;
            }
            let temporary = beside(&link, ".link");
            let _ = fs::remove_file(&temporary);
            let linked = std::os::unix::fs::symlink(&place, &temporary);
            linked
                .and_then(|()| fs::rename(&temporary, &link))
                .map_err(|error| {
                    Problem::new(
                        "G05",
                        format!("cannot link {}", link.display()),
                        error.to_string(),
                        "run this again",
                    )
                })?;
        }
        Ok(())
    }

    /// A primary that keeps its configuration elsewhere (Debian) sends none.
    fn complete(&self, data: &Path) -> Result<(), Problem> {
        let cluster = &self.place.cluster;
        if cluster.config_file.exists() || !cluster.config_file.starts_with(data) {
            return Ok(());
        }
        let rights = Rights {
            mode: 0o600,
            uid: cluster.owner.uid.as_raw(),
            gid: cluster.owner.gid.as_raw(),
        };
        let files = [
            (
                "postgresql.conf",
                "# Written by `pgtlsproxy setup standby`: the primary's configuration lies elsewhere.\n",
            ),
            ("pg_hba.conf", "local all all peer\n"),
            ("pg_ident.conf", ""),
        ];
        for (name, text) in files {
            let path = data.join(name);
            if path.exists() {
                continue;
            }
            replace_theirs(&path, text.as_bytes(), rights)?;
        }
        Ok(())
    }
}

/// Where the tablespaces of this data directory lie, but for those inside it, and those of which nothing is left.
fn tablespaces(data: &Path, owner: &User) -> Result<Vec<PathBuf>, Problem> {
    let links = fs::read_dir(data.join("pg_tblspc"));
    let places = links
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|place| place.is_absolute() && place.exists());
    places
        .map(|place| owned(&place, owner).map(|()| place))
        .collect()
}

/// The server's OS user makes these links: one to a directory that is not his would have root exchange that.
fn owned(tablespace: &Path, owner: &User) -> Result<(), Problem> {
    match fs::metadata(tablespace) {
        Ok(metadata) if metadata.uid() == owner.uid.as_raw() => Ok(()),
        _ => Err(Problem::new(
            "V21",
            format!(
                "{} does not belong to OS user {}",
                tablespace.display(),
                owner.name
            ),
            "a link in pg_tblspc names it, and every tablespace is its server's own",
            "look what it is; if it is a tablespace: chown it, then run this again",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn what_is_no_tablespace_of_this_server_is_never_exchanged() {
        let Some(owner) = User::from_uid(Uid::from_raw(65534)).unwrap() else {
            return;
        };
        if !Uid::effective().is_root() {
            println!("skipped: only root can be led astray");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let links = path("data/pg_tblspc");
        for directory in [&links, &path("space"), &path("cron.d")] {
            fs::create_dir_all(directory).unwrap();
        }
        chown(path("space"), Some(65534), None).unwrap();
        symlink(path("space"), links.join("1")).unwrap();
        symlink(path("gone"), links.join("2")).unwrap();
        let found = tablespaces(&path("data"), &owner).unwrap();
        assert_eq!(found, [path("space")]);
        symlink(path("cron.d"), links.join("3")).unwrap();
        let refused = tablespaces(&path("data"), &owner).unwrap_err();
        assert_eq!(refused.id, "V21");
    }
}
