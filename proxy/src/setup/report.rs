//! What `setup primary` and `setup undo` print with `--json`. Names and meanings stay (docs/setup.md); more may come.

use std::path::PathBuf;

use serde::Serialize;

use super::apply::Undone;
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
    /// The change as a unified diff.
    pub(crate) diff: String,
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
