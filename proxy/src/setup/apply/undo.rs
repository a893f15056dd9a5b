//! Undo: every file put back as far as others have not changed it since, where its name leads by now.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use super::super::block;
use super::super::files::Opened;
use super::super::{ownership, passfile};
use super::staged::{directory_of, name_of, remove_if_there, replace_in, temporary_of};
use super::{FileEntry, Journal, cannot, lines};
use crate::problem::Problem;

/// What undo made of a file.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "path", rename_all = "snake_case")]
pub(crate) enum Undone {
    /// As it was before, byte by byte.
    Restored(PathBuf),
    /// It was not there before.
    Removed(PathBuf),
    /// Nothing of setup is in it.
    Unchanged(PathBuf),
    /// Others changed it since: only the marked block went.
    BlockTaken(PathBuf),
    /// Only the line of setup's went: what else is in it is of others.
    LineTaken(PathBuf),
    /// Others changed it since, and what is ours in it cannot be told from theirs.
    Left(PathBuf),
    /// It says that the server is a standby: it was not there before, and without it there would be a second primary.
    Kept(PathBuf),
}

impl Journal {
    /// Puts back every file, the last first, as far as others have not changed it since; those that are to be kept stay.
    pub(crate) fn undo_files(&mut self, keep: &[PathBuf]) -> Result<Vec<Undone>, Problem> {
        let mut undone = Vec::new();
        while let Some(entry) = self.content.files.last() {
            undone.push(if keep.contains(&entry.path) {
                Undone::Left(entry.path.clone())
            } else {
                self.undo_file(entry)?
            });
            let entry = self.content.files.pop();
            self.save()?;
            if let Some(entry) = entry.filter(|entry| entry.path.ends_with(passfile::NAME)) {
                self.forget_kept(&entry)?;
            }
        }
        Ok(undone)
    }

    /// Setup of before kept whole password files.
    fn forget_kept(&self, entry: &FileEntry) -> Result<(), Problem> {
        let kept = entry.original.iter().chain([&entry.written]);
        for name in kept.filter(|name| !name.is_empty()) {
            let path = self.directory.join(name);
            remove_if_there(&path).map_err(|error| cannot("remove", &path, &error))?;
        }
        Ok(())
    }

    fn undo_file(&self, entry: &FileEntry) -> Result<Undone, Problem> {
        let directory = directory_of(&entry.path);
        if !directory.exists() {
            return Ok(Undone::Unchanged(entry.path.clone()));
        }
        // Since setup, others may have led its name elsewhere.
        let path = fs::canonicalize(&entry.path).unwrap_or_else(|_| entry.path.clone());
        let place = self.open_place(&entry.path, directory_of(&path))?;
        self.undo_in(&place, &path, entry)
            .map_err(|error| cannot("put back", &entry.path, &error))
    }

    /// `led` is where its name leads by now.
    fn undo_in(&self, place: &File, led: &Path, entry: &FileEntry) -> io::Result<Undone> {
        let path = entry.path.clone();
        let file = ownership::by_descriptor(place).join(name_of(led)?);
        // Of a run that was killed.
        remove_if_there(&temporary_of(&file)?)?;
        let Some(Opened {
            content: now,
            rights,
        }) = self.open_old(place, &entry.path, led)?
        else {
            return Ok(Undone::Unchanged(path));
        };
        let original = entry
            .original
            .as_deref()
            .map(|name| self.kept(name))
            .transpose()?;
        if !entry.lines.is_empty() {
            return lines::take(place, led, entry, (&Zeroizing::new(now), rights), original);
        }
        if now == self.kept(&entry.written)? {
            return match original {
                Some(original) => {
                    replace_in(place, led, &original, entry.rights)?;
                    Ok(Undone::Restored(path))
                }
                None if entry.marker => Ok(Undone::Kept(path)),
                None => {
                    fs::remove_file(&file)?;
                    Ok(Undone::Removed(path))
                }
            };
        }
        if original.as_ref() == Some(&now) {
            return Ok(Undone::Unchanged(path));
        }
        match block::without(&now) {
            Ok(bare) if bare != now => {
                replace_in(place, led, &bare, rights)?;
                Ok(Undone::BlockTaken(path))
            }
            _ => Ok(Undone::Left(path)),
        }
    }
}
