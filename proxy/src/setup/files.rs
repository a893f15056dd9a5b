//! How the readers of this room see files: through a pair of questions, so that they can be asked about files on disk,
//! in memory, or on disk with changes that are not yet made.

mod reader; // as whom they are read

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use protocol::escape::escape;

use super::version::{Major, V15};
use crate::problem::Problem;

pub(crate) use reader::Theirs;
pub(super) use reader::{Opened, Reader};

/// More than any configuration file needs; a larger one is left alone.
pub(super) const LONGEST_FILE: u64 = 4 << 20;
/// More names than a directory of configuration files has.
const LONGEST_LISTING: usize = 4_096;

/// Files as somebody sees them.
pub(crate) trait Files {
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The names in a directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;
    /// Whether it is a directory.
    fn is_directory(&self, path: &Path) -> bool {
        self.list(path).is_ok()
    }
}

/// Files as they are, for whoever runs this: to be looked at. What is written again is read by [`Theirs`].
pub(crate) struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Reader::ME.read(path).map(|opened| opened.content)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        names_in(directory)
    }
}

fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(directory)?
        .take(LONGEST_LISTING)
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

/// Files as they will be: some new contents over what another sees.
pub(crate) struct Overlay<'a> {
    pub(super) below: &'a dyn Files,
    pub(super) new: BTreeMap<PathBuf, Vec<u8>>,
}

impl Files for Overlay<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self.new.get(path) {
            Some(content) => Ok(content.clone()),
            None => self.below.read(path),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let mut names = self.below.list(directory)?;
        for path in self.new.keys() {
            if path.parent() == Some(directory)
                && let Some(name) = path.file_name()
                && !names.iter().any(|known| known == name)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// A line of a file, counted from one; zero is the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = escape(self.file.as_os_str().as_encoded_bytes());
        match self.line {
            0 => f.write_str(&file),
            line => write!(f, "{file} line {line}"),
        }
    }
}

/// A line, or a whole file, that this room does not understand and therefore does not touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotUnderstood {
    pub(crate) place: Place,
    pub(crate) why: String,
}

impl NotUnderstood {
    pub(super) fn new(file: &Path, line: usize, why: impl Into<String>) -> Self {
        Self {
            place: Place {
                file: file.to_owned(),
                line,
            },
            why: why.into(),
        }
    }
}

impl From<NotUnderstood> for Problem {
    fn from(fault: NotUnderstood) -> Self {
        Self::new(
            "G01",
            format!("{} is not understood; nothing was changed", fault.place),
            fault.why,
            match fault.place.line {
                0 => {
                    "PostgreSQL itself must be able to read that file; see to that, then run this again"
                }
                _ => {
                    "mend that line (PostgreSQL's log says what it makes of it), then run this again"
                }
            },
        )
    }
}

/// `path` as PostgreSQL sees it from a file that names it: relative to the directory of that file, with `..` resolved
/// by name alone (canonicalize_path in src/port/path.c), before 15 only where it stands at the end: what stands before is
/// the kernel's then, and a symbolic link leads elsewhere.
pub(super) fn relative_to(file: &Path, path: &[u8], major: Major) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path));
    let mut canonical = PathBuf::new();
    for component in file
        .parent()
        .unwrap_or_else(|| Path::new("/"))
        .join(path)
        .components()
    {
        match component {
            Component::ParentDir if major >= V15 => {
                canonical.pop();
            }
            other => canonical.push(other),
        }
    }
    let mut up = 0;
    loop {
        match canonical.components().next_back() {
            Some(Component::ParentDir) => up += 1,
            Some(Component::Normal(_)) if up > 0 => up -= 1,
            _ => return canonical,
        }
        canonical.pop();
    }
}

/// The files that an `include_dir` takes, in its order: `*.conf`, not hidden, by bytes ("C" locale). It passes over
/// directories of such names.
pub(super) fn configuration_files(files: &dyn Files, directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = files.list(directory)?;
    names.retain(|name| {
        let name = name.as_encoded_bytes();
        name.ends_with(b".conf") && name.len() > ".conf".len() && !name.starts_with(b".")
    });
    names.sort();
    let paths = names.iter().map(|name| directory.join(name));
    Ok(paths.filter(|path| !files.is_directory(path)).collect())
}

#[cfg(test)]
pub(super) mod memory {
    use super::*;

    /// Files that exist only here.
    #[derive(Default)]
    pub(in crate::setup) struct Memory(pub(in crate::setup) BTreeMap<PathBuf, Vec<u8>>);

    impl Memory {
        pub(in crate::setup) fn of(files: &[(&str, &str)]) -> Self {
            let entry =
                |(path, text): &(&str, &str)| (PathBuf::from(path), text.as_bytes().to_vec());
            Self(files.iter().map(entry).collect())
        }
    }

    impl Files for Memory {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            let found = self.0.get(path).cloned();
            found.ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
            let inside = |path: &&PathBuf| path.parent() == Some(directory);
            let names: Vec<_> = self.0.keys().filter(inside).collect();
            if names.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let names = names.into_iter().filter_map(|path| path.file_name());
            Ok(names.map(ToOwned::to_owned).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::version::V14;
    use super::*;

    #[test]
    fn two_dots_are_resolved_as_each_version_does() {
        let seen = |path: &str, major| {
            let path = relative_to(Path::new("/etc/pg/main.conf"), path.as_bytes(), major);
            path.to_str().unwrap().to_owned()
        };
        for (path, before, since) in [
            ("one.conf", "/etc/pg/one.conf", "/etc/pg/one.conf"),
            ("/one.conf", "/one.conf", "/one.conf"),
            (
                "sub/../one.conf",
                "/etc/pg/sub/../one.conf",
                "/etc/pg/one.conf",
            ),
            ("../a/b/../..", "/etc", "/etc"),
            ("sub/..", "/etc/pg", "/etc/pg"),
        ] {
            assert_eq!(seen(path, V14), before, "{path}");
            assert_eq!(seen(path, V15), since, "{path}");
        }
    }
}
