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
    /// The server would not start without it; the next undo looks at it again.
    Needed(PathBuf),
}

/// Files that undo does not touch.
#[derive(Debug, Default)]
pub(crate) struct Stay {
    /// They are their owners' from now on.
    pub(crate) for_good: Vec<PathBuf>,
    /// The next undo looks at them again.
    pub(crate) for_now: Vec<PathBuf>,
}

/// The text without the line by which our block took in our settings, where only the marks around it are gone: with that
/// line the server would not start once our file is.
fn without_include(now: &[u8], written: &[u8]) -> Option<Vec<u8>> {
    let lines = |text: &'_ [u8]| -> Vec<Vec<u8>> {
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        lines.map(<[u8]>::to_vec).collect()
    };
    let (_, inside) = block::find(written)?;
    let mut ours = lines(inside);
    ours.retain(|line| line.starts_with(b"include "));
    let is_ours = |line: &Vec<u8>| {
        ours.iter()
            .any(|our| our.trim_ascii_end() == line.trim_ascii_end())
    };
    let mut left = lines(now);
    let before = left.len();
    left.retain(|line| !is_ours(line));
    (left.len() < before).then(|| left.concat())
}

impl Journal {
    /// Puts back every file, the last first, as far as others have not changed it since. One that cannot be put back keeps
    /// no other from it; the first such problem is returned at the end.
    pub(crate) fn undo_files(
        &mut self,
        stay: &Stay,
        undone: &mut Vec<Undone>,
    ) -> Result<(), Problem> {
        let mut failed = None;
        for index in (0..self.content.files.len()).rev() {
            let Some(entry) = self.content.files.get(index) else {
                continue;
            };
            if stay.for_now.contains(&entry.path) {
                continue;
            }
            let done = match stay.for_good.contains(&entry.path) {
                true => Ok(Undone::Left(entry.path.clone())),
                false => self.undo_file(entry),
            };
            match done {
                Ok(done) => undone.push(done),
                Err(problem) => {
                    failed.get_or_insert(problem);
                    continue;
                }
            }
            let entry = self.content.files.remove(index);
            self.save()?;
            if entry.path.ends_with(passfile::NAME) {
                self.forget_kept(&entry)?;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether a file is still to be put back.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.content.files.iter().any(|entry| entry.path == path)
    }

    /// Whether a file is still what was written.
    pub(crate) fn is_as_written(&self, path: &Path) -> bool {
        let mut there = self.files_in(directory_of(path)).into_iter();
        there.any(|(known, same)| known == path && same)
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
        if let Ok(bare) = block::without(&now)
            && bare != now
        {
            replace_in(place, led, &bare, rights)?;
            return Ok(Undone::BlockTaken(path));
        }
        match without_include(&now, &self.kept(&entry.written)?) {
            Some(left) => {
                replace_in(place, led, &left, rights)?;
                Ok(Undone::LineTaken(path))
            }
            None => Ok(Undone::Left(path)),
        }
    }
}

#[cfg(test)]
impl Journal {
    /// All of it.
    pub(super) fn undone(&mut self) -> Result<Vec<Undone>, Problem> {
        let mut undone = Vec::new();
        self.undo_files(&Stay::default(), &mut undone)?;
        Ok(undone)
    }
}
