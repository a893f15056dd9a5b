//! A password file in the journal: a line of ours goes in before all others and comes out again, whatever else others do
//! with the file; and no password is kept.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use nix::unistd::Uid;
use zeroize::Zeroizing;

use super::super::files::Reader;
use super::super::{ownership, passfile};
use super::staged::{name_of, remove_if_there, replace, replace_in};
use super::{FileEntry, Journal, Rights, Undone, cannot};
use crate::problem::Problem;

impl Journal {
    /// The lines of a password file that are ours.
    pub(in crate::setup) fn lines_of(&self, path: &Path) -> &[passfile::Mark] {
        let entry = self.content.files.iter().find(|entry| entry.path == path);
        entry.map_or(&[], |entry| &entry.lines)
    }

    /// Puts a line into a password file, before all others; true if it was not there yet. What is kept of it tells it
    /// again, and holds no password.
    pub(crate) fn write_line(
        &mut self,
        path: &Path,
        line: &str,
        rights: Rights,
    ) -> Result<bool, Problem> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (old, found) = match Reader::ME.read(&path) {
            Ok(opened) => (Some(Zeroizing::new(opened.content)), Some(opened.rights)),
            Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let wanted = found.map_or(rights, |found| private(found, rights));
        let files = &self.content.files;
        let index = files.iter().position(|entry| entry.path == path);
        let known = index.and_then(|index| files.get(index));
        let mut ours = known.map_or_else(Vec::new, |entry| entry.lines.clone());
        // Setup of before kept what it wrote.
        let whole = known
            .filter(|entry| !entry.written.is_empty())
            .map(|entry| entry.written.clone());
        let failed = |error: io::Error| cannot("note what is written to", &path, &error);
        if let Some(name) = &whole {
            let written = Zeroizing::new(self.kept(name).map_err(failed)?);
            let written = String::from_utf8_lossy(&written);
            ours.push(passfile::Mark::of(&written).map_err(failed)?);
        }
        let before = old.as_deref().map_or(&[][..], Vec::as_slice);
        let new = passfile::with_line(before, line, &ours);
        let opens = found.is_some_and(|found| found != wanted);
        if new.is_none() && whole.is_none() && !opens {
            return Ok(false);
        }
        ours.retain(|mark| {
            let mut lines = before.split_inclusive(|byte| *byte == b'\n');
            lines.any(|line| mark.is(line))
        });
        ours.push(passfile::Mark::of(line).map_err(failed)?);
        let entry = FileEntry {
            path: path.clone(),
            original: known.and_then(|entry| entry.original.clone()),
            written: String::new(),
            // As it was before the first run, to which undo brings it back.
            rights: known.map_or_else(|| found.unwrap_or(rights), |entry| entry.rights),
            lines: ours,
            made: match known {
                // What setup of before wrote, it made whole.
                Some(entry) => entry.made || whole.is_some(),
                None => old.is_none(),
            },
            marker: false,
        };
        match index.and_then(|index| self.content.files.get_mut(index)) {
            Some(known) => *known = entry,
            None => self.content.files.push(entry),
        }
        self.save()?;
        if let Some(name) = whole {
            remove_if_there(&self.directory.join(name)).map_err(failed)?;
        }
        if new.is_none() && !opens {
            return Ok(false);
        }
        let new = new.unwrap_or_else(|| Zeroizing::new(before.to_vec()));
        replace(&path, &new, wanted).map_err(|error| cannot("write", &path, &error))?;
        Ok(true)
    }
}

/// The rights that a password file is to have, by those that it has: libpq takes none that others may read, and its server's
/// OS user must.
fn private(found: Rights, wanted: Rights) -> Rights {
    let is_private = found.mode & 0o477 == 0o400;
    if is_private && found.uid == wanted.uid {
        found
    } else if Uid::effective().is_root() {
        wanted
    } else {
        // Whom it belongs to is not ours to change.
        Rights {
            mode: wanted.mode,
            ..found
        }
    }
}

/// Takes our lines out of a password file; with nothing left in it, it is as it was before.
pub(super) fn take(
    place: &File,
    led: &Path,
    entry: &FileEntry,
    (now, rights): (&[u8], Rights),
    original: Option<Vec<u8>>,
) -> io::Result<Undone> {
    let path = entry.path.clone();
    let file = ownership::by_descriptor(place).join(name_of(led)?);
    let left = passfile::without(now, &entry.lines);
    if left.len() == now.len() {
        let is_for = |line: &[u8]| entry.lines.iter().any(|mark| mark.is_for(line));
        let mut lines = now.split_inclusive(|byte| *byte == b'\n');
        return Ok(match lines.any(is_for) {
            true => Undone::Left(path),
            false => Undone::Unchanged(path),
        });
    }
    match original {
        Some(original) if left.is_empty() => {
            replace_in(place, led, &original, entry.rights)?;
            Ok(Undone::Restored(path))
        }
        None if left.is_empty() && entry.made => {
            fs::remove_file(&file)?;
            Ok(Undone::Removed(path))
        }
        _ => {
            let rights = if entry.made { rights } else { entry.rights };
            replace_in(place, led, &left, rights)?;
            Ok(Undone::LineTaken(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::JOURNAL;
    use super::super::tests::{change, own};
    use super::*;

    /// Whether a password is anywhere in what is kept.
    fn is_kept(state: &Path, password: &str) -> bool {
        let files = fs::read_dir(state).unwrap().flatten();
        files
            .map(|file| fs::read_to_string(file.path()).unwrap())
            .any(|text| text.contains(password))
    }

    #[test]
    fn a_password_is_not_kept_and_its_line_goes() {
        let place = tempfile::tempdir().unwrap();
        let (state, file) = (place.path().join("state"), place.path().join("pgpass"));
        let open = || Journal::open(&state).unwrap();
        for theirs in [None, Some("db:1:*:me:theirs"), Some("")] {
            if let Some(text) = theirs {
                fs::write(&file, text).unwrap();
            }
            for line in ["h:1:*:r:first\n", "h:1:*:r:second\n"] {
                assert!(open().write_line(&file, line, own()).unwrap());
                assert!(!open().write_line(&file, line, own()).unwrap());
                let expected = format!("{line}{}", theirs.unwrap_or_default());
                assert_eq!(fs::read_to_string(&file).unwrap(), expected);
            }
            for password in ["first", "second", "theirs"] {
                assert!(!is_kept(&state, password), "{password}");
            }
            let undone = open().undone().unwrap();
            match theirs {
                None => assert_eq!(undone, [Undone::Removed(file.clone())]),
                Some(_) => assert_eq!(undone, [Undone::LineTaken(file.clone())]),
            }
            assert_eq!(fs::read_to_string(&file).ok().as_deref(), theirs);
        }
        // A password that somebody else has changed is his.
        open().write_line(&file, "h:1:*:r:ours\n", own()).unwrap();
        fs::write(&file, "h:1:*:r:his\n").unwrap();
        assert_eq!(open().undone().unwrap(), [Undone::Left(file)]);
    }

    #[test]
    fn a_journal_that_holds_a_password_is_read_and_rid_of_it() {
        let place = tempfile::tempdir().unwrap();
        let (state, file) = (place.path().join("state"), place.path().join("pgpass"));
        let old = || {
            let mut journal = Journal::open(&state).unwrap();
            journal
                .write(&change(&file, "h:1:*:r:old\n"), own())
                .unwrap();
            drop(journal);
            // As it was written before: without what is new.
            let text = fs::read_to_string(state.join(JOURNAL)).unwrap();
            let mut content: serde_json::Value = serde_json::from_str(&text).unwrap();
            let entry = content["files"][0].as_object_mut().unwrap();
            for name in ["lines", "made", "marker"] {
                entry.remove(name);
            }
            fs::write(state.join(JOURNAL), content.to_string()).unwrap();
            assert!(is_kept(&state, "old"));
        };
        old();
        let undone = Journal::open(&state).unwrap().undone().unwrap();
        assert_eq!(undone, [Undone::Removed(file.clone())]);
        assert!(!is_kept(&state, "old"));
        for (next, changes) in [("h:1:*:r:old\n", false), ("h:1:*:r:new\n", true)] {
            old();
            let mut journal = Journal::open(&state).unwrap();
            assert_eq!(journal.write_line(&file, next, own()).unwrap(), changes);
            assert_eq!(fs::read_to_string(&file).unwrap(), next);
            assert!(!is_kept(&state, "old") && !is_kept(&state, "new"));
            assert_eq!(journal.undone().unwrap(), [Undone::Removed(file.clone())]);
        }
    }
}
