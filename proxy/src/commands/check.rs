//! `pgtlsproxy check`: the daemon's own loader, and what it found.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::CheckFlags;
use crate::config::Source;
use crate::problem::Problem;
use crate::reload::read;

/// Exit status where nothing but warnings was found.
const WARNINGS_ONLY: u8 = 3;

#[derive(Serialize)]
struct Report<'a> {
    verdict: &'static str,
    config: String,
    findings: &'a [Problem],
}

pub(super) fn run(flags: &CheckFlags) -> Result<ExitCode, Vec<Problem>> {
    let path = &flags.config.config;
    let findings = match read(&Source::File(path.clone()), None).result {
        Ok(checked) => [checked.aging, checked.warnings].concat(),
        Err(problems) => problems,
    };
    let (verdict, status) = if findings.iter().any(Problem::is_error) {
        ("problems", ExitCode::FAILURE)
    } else if findings.is_empty() {
        ("ok", ExitCode::SUCCESS)
    } else {
        ("warnings", ExitCode::from(WARNINGS_ONLY))
    };
    if flags.json {
        let report = Report {
            verdict,
            config: path.display().to_string(),
            findings: &findings,
        };
        let text = serde_json::to_string_pretty(&report).map_err(|error| {
            vec![Problem::new(
                "C11",
                "the report cannot be written",
                error.to_string(),
                "try without --json",
            )]
        })?;
        println!("{text}");
    } else {
        for finding in &findings {
            let severity = if finding.is_error() {
                "error"
            } else {
                "warning"
            };
            println!("{severity}: {finding}");
        }
        println!("{}: {verdict}", path.display());
    }
    Ok(status)
}
