//! `pgtlsproxy-bench`: load against our tunnel and its peers, one after the other in turn, and what each cost.
//! It loads loopback and what the user names with `--target`, for a bounded time, and leaves nothing running.

mod cipher;
mod cli;
mod contender;
mod host;
mod interrupt;
mod measure;
mod problem;
mod report;
mod run;
mod scenario;
mod wire;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let outcome = match cli::Cli::parse().command {
        cli::Command::Measure(measurement) => run::run(&measurement),
        cli::Command::Backend(flags) => wire::backend::serve_for_ever(flags.listen),
        cli::Command::PlainRelay(flags) => contender::plain::relay(flags.listen, flags.connect),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("pgtlsproxy-bench: {problem}");
            ExitCode::FAILURE
        }
    }
}
