//! Parse, call, print the failure, exit.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = certs_tool::cli::Arguments::parse();
    match certs_tool::commands::run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("certs-tool: {failure}");
            ExitCode::FAILURE
        }
    }
}
