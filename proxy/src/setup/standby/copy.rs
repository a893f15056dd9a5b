//! The copy of the primary, and how it takes its place.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::apply::{Rights, Stage, StandbyCopy, replace_theirs};
use super::super::facts::OWN_FILE;
use super::super::plan::FileChange;
use super::super::report::ReportedFile;
use super::super::server::runs;
use super::super::version::BackupSource;
use super::back::Moved;
use super::backup::{self, Backup};
use super::place;
use super::{Work, elsewhere, own, part, power};
use crate::problem::Problem;

/// Where a tablespace or the WAL of the old cluster's grows anew.
pub(super) const NEW: &str = ".pgtlsproxy-new";

impl Work<'_> {
    /// A base backup beside the place.
    pub(super) fn copy(&mut self) -> Result<(), Problem> {
        let data = self.place.cluster.data.clone();
        for old in self.exchanged(&data) {
            part::owned(&old, &self.place.cluster.owner)?;
        }
        let staging = place::staging(&data);
        let earlier = self.journal.copy().filter(|copy| copy.staging == staging);
        let mut note = StandbyCopy {
            stage: Stage::Copying,
            slot: self.slot.clone(),
            ..earlier
                .cloned()
                .unwrap_or_else(|| elsewhere::nothing_yet(&staging))
        };
        let made_before = std::mem::take(&mut note.made);
        backup::clear(&staging, &made_before)?;
        let (mappings, wal) = self.elsewhere(&data);
        let new_places = mappings
            .iter()
            .map(|mapping| PathBuf::from(elsewhere::parts(mapping).1));
        for directory in [staging.clone()]
            .into_iter()
            .chain(new_places)
            .chain(wal.clone())
        {
            let grows = directory == staging || elsewhere::of_new(&directory).is_some();
            if grows {
                backup::clear(&directory, &made_before)?;
            } else if directory.exists() {
                // Its owner has prepared it; pg_basebackup refuses it if there is anything in it.
                continue;
            }
            let inode = place::make_directory(&directory, &self.place.cluster.owner)?;
            note.made.push((directory, inode));
        }
        let made = note.made.clone();
        self.journal.note_copy(note)?;
        let copied = self.back_up(&staging, mappings, wal);
        if copied.is_err() {
            // pg_basebackup takes away what it has written; what is left otherwise is for the next run.
            for (directory, _) in made.iter().rev() {
                part::remove_empty(directory);
            }
        }
        copied?;
        self.report
            .steps
            .push(format!("base backup of {}", self.node.upstream()));
        self.note(Stage::Copied)
    }

    fn back_up(
        &self,
        staging: &Path,
        mappings: Vec<String>,
        wal: Option<PathBuf>,
    ) -> Result<(), Problem> {
        let cluster = &self.place.cluster;
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
            staging,
            mappings,
            wal,
        };
        eprintln!("copying {} through the proxy", self.node.upstream());
        backup.run(|| self.upstream.tablespaces())
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
        // One that grew inside is empty once all has moved up.
        let inside = staging != data && staging.starts_with(&data);
        let is_moved = inside && data.join("PG_VERSION").exists();
        if staging.exists() && !is_moved {
            // Before anything could start a server there: one without it is a second primary, in silence.
            self.mark_copy(&staging)?;
            if staging != data && data.join("PG_VERSION").exists() {
                let major = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
                if major.parse() == Ok(cluster.major) {
                    // Of the primary's own setup; its line that includes it does not come along.
                    let _ = fs::remove_file(staging.join(OWN_FILE));
                    own::carry(&own::own_files(&cluster)?, &data, &staging)?;
                }
                if runs(&cluster) {
                    eprintln!("stopping {}", cluster.label);
                    power::stop(&cluster)?;
                }
                self.move_aside(&data)?;
            }
            if inside {
                place::move_up(&staging, &data, &cluster.owner)?;
            } else if staging != data {
                place::rename(&staging, &data)?;
            }
        }
        self.settle(&data)?;
        self.complete(&data)?;
        self.note(Stage::Placed)
    }

    fn move_aside(&mut self, path: &Path) -> Result<(), Problem> {
        let aside = place::aside(path);
        let copy = self.journal.copy().cloned();
        let mut copy = copy.unwrap_or_else(|| elsewhere::nothing_yet(&place::staging(path)));
        copy.aside.push((aside.clone(), path.to_owned()));
        // What an earlier setup changed in there is undone there, too.
        self.journal.follow(path, &aside)?;
        self.journal.note_copy(copy)?;
        place::rename(path, &aside)?;
        self.report.moved.push(Moved {
            from: path.to_owned(),
            to: aside.clone(),
        });
        eprintln!(
            "moved {} aside: it is {} now",
            path.display(),
            aside.display()
        );
        Ok(())
    }

    /// Writes `standby.signal` or `recovery.conf` into a copy that has not got its place yet.
    fn mark_copy(&self, staging: &Path) -> Result<(), Problem> {
        let Some((change, rights)) = self.marker(staging) else {
            return Ok(());
        };
        replace_theirs(&change.path, &change.new, rights)
    }

    /// Writes it into the data directory, if it is not there; true if it was not.
    pub(super) fn mark(&mut self) -> Result<bool, Problem> {
        let Some((change, rights)) = self.marker(&self.place.cluster.data) else {
            return Ok(false);
        };
        self.report.files.push(ReportedFile::of(&change));
        self.journal.write_marker(&change, rights)?;
        Ok(true)
    }

    /// What says that it is a standby, if that is still to be written.
    pub(super) fn marker(&self, directory: &Path) -> Option<(FileChange, Rights)> {
        let (name, new) = self.following().marker();
        let path = directory.join(name);
        let owner = &self.place.cluster.owner;
        let rights = Rights {
            mode: 0o600,
            uid: owner.uid.as_raw(),
            gid: owner.gid.as_raw(),
        };
        let is_there = match fs::read(&path) {
            // That it exists is all that standby.signal says.
            Ok(old) => new.is_empty() || old == new,
            Err(_) => false,
        };
        (!is_there).then_some((FileChange { path, new }, rights))
    }

    /// The old cluster's tablespaces and WAL lay where the new ones belong: they are moved aside, too, and the links of
    /// the old data directory go with them, so that it never reaches into the new one. The server's OS user may have put
    /// other links there since: none but the directories that were made for this copy are moved.
    fn settle(&mut self, data: &Path) -> Result<(), Problem> {
        let copy = self.journal.copy();
        let made = copy.map_or_else(Vec::new, |copy| copy.made.clone());
        for (link, new) in elsewhere::links(data) {
            let Some(place) = elsewhere::of_new(&new) else {
                continue;
            };
            let Some((_, inode)) = made.iter().find(|(path, _)| *path == new) else {
                eprintln!(
                    "{} leads to {}, which setup has not made: both stay as they are",
                    link.display(),
                    new.display()
                );
                continue;
            };
            if part::is_there(&new, *inode)? {
                if place.symlink_metadata().is_ok() {
                    part::owned(&place, &self.place.cluster.owner)?;
                    self.move_aside(&place)?;
                }
                place::rename(&new, &place)?;
            } else if !part::is_there(&place, *inode)? {
                return Err(part::gone(&new));
            }
            part::relink(&link, &place)?;
        }
        let aside = self.journal.copy().map(|copy| copy.aside.clone());
        let aside = aside.unwrap_or_default();
        let mut old = None;
        for (now, before) in &aside {
            if before == data {
                old = Some(now);
                continue;
            }
            let links = old.map_or_else(Vec::new, |old| elsewhere::links(old));
            for (link, _) in links.iter().filter(|(_, to)| to == before) {
                part::relink(link, now)?;
            }
        }
        for directory in old.map(PathBuf::as_path).into_iter().chain([data]) {
            part::sweep(directory);
        }
        // Prepared for a tablespace that the primary does not have.
        for (path, _) in made
            .iter()
            .filter(|(path, _)| elsewhere::of_new(path).is_some())
        {
            part::remove_empty(path);
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
