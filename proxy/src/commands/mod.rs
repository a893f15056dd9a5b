//! One file per subcommand that does more than start the daemon: gather, decide, show.

mod check;
mod demo;
mod doctor;
mod invite;
mod join;
mod remove;
mod renew;
mod secret;
mod setup;
mod standby;
mod status;
mod undo;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::config::Source;
use crate::daemon;
use crate::problem::Problem;

/// Exit status of `check` and `doctor` where nothing but warnings was found.
const WARNINGS_ONLY: u8 = 3;

/// Runs the command; what went wrong is for `main` to print.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Vec<Problem>> {
    match cli.command {
        Command::Server(flags) => daemon::run(Source::Server(flags)).map(|()| ExitCode::SUCCESS),
        Command::Client(flags) => daemon::run(Source::Client(flags)).map(|()| ExitCode::SUCCESS),
        Command::Run(flag) => daemon::run(Source::File(flag.config)).map(|()| ExitCode::SUCCESS),
        Command::Check(flags) => check::run(&flags),
        Command::Setup(command) => setup::run(&command),
        Command::Status(flags) => status::run(&flags).map(|()| ExitCode::SUCCESS),
        Command::Invite(flags) => invite::run(flags).map(|()| ExitCode::SUCCESS),
        Command::Join(flags) => join::run(flags),
        Command::Renew(flags) => renew::run(flags).map(|()| ExitCode::SUCCESS),
        Command::Remove(flags) => remove::run(flags).map(|()| ExitCode::SUCCESS),
        Command::Doctor(flags) => doctor::run(&flags),
        Command::Demo(flags) => demo::run(&flags).map(|()| ExitCode::SUCCESS),
    }
}
