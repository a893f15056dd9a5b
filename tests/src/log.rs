//! The log of a program under test: what it says, and waiting for it to say something.

use std::fs;
use std::path::{Path, PathBuf};

use crate::wait::{PATIENCE, wait_for};

/// A log file that a running program appends to.
#[derive(Clone, Debug)]
pub struct Log {
    owner: String,
    path: PathBuf,
}

/// A place in a log; see [`Log::mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Log {
    pub(crate) fn new(owner: &str, path: PathBuf) -> Self {
        Self {
            owner: owner.to_owned(),
            path,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything said so far.
    pub fn text(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where the log ends now, to look only at what comes later.
    pub fn mark(&self) -> Mark {
        Mark(self.text().len())
    }

    /// What was said after `mark`.
    pub fn after(&self, mark: Mark) -> String {
        self.text().get(mark.0..).unwrap_or_default().to_owned()
    }

    /// Waits for a line that contains `wanted` and returns it.
    #[track_caller]
    pub fn wait_for(&self, wanted: &str) -> String {
        self.wait_for_after(Mark(0), wanted)
    }

    /// As [`Log::wait_for`], for what comes after `mark`.
    #[track_caller]
    pub fn wait_for_after(&self, mark: Mark, wanted: &str) -> String {
        let what = format!("{} to log {wanted:?}", self.owner);
        wait_for(&what, PATIENCE, || {
            let text = self.after(mark);
            text.lines()
                .find(|line| line.contains(wanted))
                .map(str::to_owned)
        })
    }

    /// The last lines, shown when a test fails.
    pub(crate) fn show(&self, lines: usize) {
        let text = self.text();
        let all: Vec<_> = text.lines().collect();
        let tail = all[all.len().saturating_sub(lines)..].join("\n");
        println!("---- log of {} ----\n{tail}", self.owner);
    }
}
