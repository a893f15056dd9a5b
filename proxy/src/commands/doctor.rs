//! `pgtlsproxy doctor`: runs the examination and shows its report.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::process::ExitCode;

use super::WARNINGS_ONLY;
use crate::cli::DoctorFlags;
use crate::doctor::{Verdict, examine};
use crate::problem::Problem;

/// Exit status of a wrong use, as clap's own.
const WRONG_USAGE: u8 = 2;

pub(super) fn run(flags: &DoctorFlags) -> Result<ExitCode, Vec<Problem>> {
    let failed = |why: String| {
        vec![Problem::new(
            "C11",
            "doctor cannot do its work",
            why,
            "free memory or descriptors on this host, and try again",
        )]
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let examined = runtime.block_on(examine(flags));
    // A resolver that hangs must not keep us.
    runtime.shutdown_background();
    let report = match examined {
        Ok(report) => report,
        Err(problem) => {
            eprintln!("pgtlsproxy: {problem}");
            return Ok(ExitCode::from(WRONG_USAGE));
        }
    };
    if flags.json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|error| failed(error.to_string()))?;
        println!("{text}");
    } else {
        println!("{report}");
    }
    Ok(match report.verdict {
        Verdict::Ok => ExitCode::SUCCESS,
        Verdict::Problems => ExitCode::FAILURE,
        Verdict::Warnings => ExitCode::from(WARNINGS_ONLY),
    })
}
