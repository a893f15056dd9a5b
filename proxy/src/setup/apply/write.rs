//! One file changed: in the directory that was judged, with a note of what was there before it changes.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::super::block;
use super::super::facts::OWN_FILE;
use super::super::files::{Opened, Reader};
use super::super::ownership;
use super::super::plan::FileChange;
use super::staged::{Staged, directory_of, name_of, remove_if_there};
use super::{FileEntry, Journal, Rights, cannot};
use crate::problem::Problem;

impl Journal {
    /// Makes one change. A file that is new gets `rights`; any other keeps its own.
    pub(crate) fn write(&mut self, change: &FileChange, rights: Rights) -> Result<(), Problem> {
        self.stage(change, rights)?.commit()
    }

    /// Everything that may fail for want of room or rights, and the note for undo: after it only a rename is left.
    pub(crate) fn stage(&mut self, change: &FileChange, rights: Rights) -> Result<Staged, Problem> {
        // A link is followed: what it points to is PostgreSQL's file.
        let path = fs::canonicalize(&change.path).unwrap_or_else(|_| change.path.clone());
        let place = self.open_place(&change.path, directory_of(&path))?;
        let opened = self
            .open_old(&place, &change.path, &path)
            .map_err(|error| cannot("read", &path, &error))?;
        let rights = opened.as_ref().map_or(rights, |opened| opened.rights);
        let old = opened.map(|opened| opened.content);
        let index = self
            .content
            .files
            .iter()
            .position(|entry| entry.path == path);
        let known = index.and_then(|index| self.content.files.get(index));
        let number = known.and_then(FileEntry::number);
        let number = number.unwrap_or_else(|| self.free_number());
        let original = match known {
            // All of it is ours, with what others have put in.
            Some(entry) if entry.original.is_none() && path.ends_with(OWN_FILE) => None,
            // What was there before the first run, unless others have changed the file since the last.
            Some(entry) if self.kept(&entry.written).ok() == old || old.is_none() => {
                entry.original.clone()
            }
            _ => match &old {
                Some(old) => {
                    let before = block::without(old).unwrap_or_else(|_| old.clone());
                    Some(self.keep(&format!("{number}.original"), &before)?)
                }
                None => None,
            },
        };
        let entry = FileEntry {
            path: path.clone(),
            original,
            written: self.keep(&format!("{number}.written"), &change.new)?,
            rights,
            lines: Vec::new(),
            made: false,
            marker: false,
        };
        match index.and_then(|index| self.content.files.get_mut(index)) {
            Some(known) => *known = entry,
            None => self.content.files.push(entry),
        }
        // First the note: undo takes away what a kill leaves beside the file.
        self.save()?;
        let mut staged = Staged::write(place, &path, &change.new, rights)
            .map_err(|error| cannot("write", &path, &error))?;
        staged.old = old;
        Ok(staged)
    }

    /// Where the node's own files lie is the choice of who runs setup.
    fn is_of_node(&self, asked: &Path) -> bool {
        let node = self.directory.parent();
        let node = node.and_then(|node| std::path::absolute(node).ok());
        node.is_some_and(|node| asked.starts_with(node))
    }

    /// The directory of a file that is to be replaced.
    pub(super) fn open_place(&self, asked: &Path, directory: &Path) -> Result<File, Problem> {
        if self.is_of_node(asked) {
            return File::open(directory).map_err(|error| cannot("write in", directory, &error));
        }
        ownership::open_place(asked, directory)
    }

    /// What is there before, if anything: in the directory that was judged, with no link followed, and nothing that the
    /// owner of that directory could not read himself, since he gets it.
    pub(super) fn open_old(
        &self,
        place: &File,
        asked: &Path,
        path: &Path,
    ) -> io::Result<Option<Opened>> {
        let reader = match self.is_of_node(asked) {
            true => Reader::ME,
            false => Reader::owner_of(place)?,
        };
        match reader.read_no_link(&ownership::by_descriptor(place).join(name_of(path)?)) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes away a file that was not there before.
    pub(in super::super) fn take_away(&self, path: &Path) -> Result<(), Problem> {
        let place = self.open_place(path, directory_of(path))?;
        name_of(path)
            .and_then(|name| remove_if_there(&ownership::by_descriptor(&place).join(name)))
            .map_err(|error| cannot("remove", path, &error))
    }

    /// Makes one change in what says that the server is a standby; undo leaves it if nothing was there before.
    pub(crate) fn write_marker(
        &mut self,
        change: &FileChange,
        rights: Rights,
    ) -> Result<(), Problem> {
        let staged = self.stage(change, rights)?;
        let path = &staged.path;
        if let Some(entry) = self.content.files.iter_mut().find(|one| one.path == *path) {
            entry.marker = true;
        }
        self.save()?;
        staged.commit()
    }
}
