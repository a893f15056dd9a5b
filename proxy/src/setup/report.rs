//! What `setup primary`, `setup standby` and `setup undo` print with `--json`. Names and meanings stay (docs/setup.md); more may come.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::apply::Undone;
use super::diff::unified;
use super::plan::FileChange;
use super::standby::Moved;
use super::tls::Needs;
use crate::problem::Problem;

/// The version of this form; it changes when a name goes or changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// What `setup primary` did, or with `--dry-run` would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PrimaryReport {
    pub(crate) format: u32,
    /// As a person calls it: `15/main`, or its data directory.
    pub(crate) cluster: String,
    pub(crate) version: String,
    /// Whether the server runs; if not, role and slots wait for the next run.
    pub(crate) running: bool,
    pub(crate) dry_run: bool,
    pub(crate) changed: bool,
    pub(crate) files: Vec<ReportedFile>,
    /// What was done besides, in words: certificates, the role, slots.
    pub(crate) steps: Vec<String>,
    /// What waits for a restart and another run.
    pub(crate) later: Vec<String>,
    /// Settings for which a restart is due.
    pub(crate) restart_needed: Vec<String>,
    pub(crate) restarted: bool,
    pub(crate) warnings: Vec<Problem>,
    /// With `--external-tls`: what each standby connects with.
    pub(crate) standbys: Vec<Needs>,
}

/// One file.
#[derive(Debug, Serialize)]
pub(crate) struct ReportedFile {
    pub(crate) path: PathBuf,
    pub(crate) created: bool,
    /// The change as a unified diff, without secrets.
    pub(crate) diff: String,
    /// What is to be said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl ReportedFile {
    /// A change of what is there now.
    pub(crate) fn of(change: &FileChange) -> Self {
        let old = fs::read(&change.path).ok();
        Self {
            diff: unified(&change.path, old.as_deref(), &change.new),
            created: old.is_none(),
            path: change.path.clone(),
            note: None,
        }
    }

    /// A file of which it is not known what is in it before.
    pub(crate) fn anew(change: &FileChange) -> Self {
        Self {
            diff: unified(&change.path, None, &change.new),
            created: true,
            path: change.path.clone(),
            note: None,
        }
    }
}

/// What `setup standby` did, or with `--dry-run` would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct StandbyReport {
    pub(crate) format: u32,
    pub(crate) cluster: String,
    pub(crate) version: String,
    /// Whom it follows: HOST:PORT of the far proxy.
    pub(crate) upstream: String,
    pub(crate) dry_run: bool,
    pub(crate) changed: bool,
    pub(crate) files: Vec<ReportedFile>,
    /// What was done besides, in words.
    pub(crate) steps: Vec<String>,
    /// Directories that were moved aside.
    pub(crate) moved: Vec<Moved>,
    /// The stream, once it was seen.
    pub(crate) stream: Option<Stream>,
    pub(crate) warnings: Vec<Problem>,
}

/// A standby's stream as its own server tells it.
#[derive(Debug, Serialize)]
pub(crate) struct Stream {
    /// The position up to which WAL is replayed.
    pub(crate) replayed: String,
    /// Bytes of WAL received and not yet replayed; none where this version does not tell.
    pub(crate) behind_bytes: Option<u64>,
}

/// What `setup undo` did.
#[derive(Debug, Default, Serialize)]
pub(crate) struct UndoReport {
    pub(crate) format: u32,
    pub(crate) changed: bool,
    pub(crate) files: Vec<Undone>,
    /// What the server was told back, in words.
    pub(crate) steps: Vec<String>,
    /// What could not be told back, since the server does not run, or is a standby now.
    pub(crate) left: Vec<String>,
    /// Directories that `--bring-back` has moved, in this order.
    pub(crate) moved: Vec<Moved>,
    /// Directories that were moved aside and still are, and where they were.
    pub(crate) aside: Vec<Moved>,
}

/// The text for standard output.
///
/// # Errors
/// One that cannot happen with these types, as a problem.
pub(crate) fn json(report: &impl Serialize) -> Result<String, Problem> {
    serde_json::to_string_pretty(report).map_err(|error| {
        Problem::new(
            "G23",
            "the report cannot be written as JSON",
            error.to_string(),
            "try without --json",
        )
    })
}
