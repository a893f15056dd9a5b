//! `renew`: the next certificate of a node, if it is due.

use std::path::Path;
use std::process::ExitCode;

use protocol::escape::escape;

use crate::authority::{Authority, Renewed};
use crate::cli::Renew;
use crate::commands::{open, show_new};
use crate::ledger::Ledger;
use crate::profile::NodeName;
use crate::report::Failure;

pub(super) fn run(directory: &Path, arguments: &Renew) -> Result<ExitCode, Failure> {
    let authority = open(directory, &arguments.given.source_or_prompt())?;
    let names = if arguments.all {
        unrevoked(directory)?
    } else {
        arguments.names.clone()
    };
    if names.is_empty() {
        eprintln!("Nothing was issued yet.");
    }
    // One that cannot be renewed must not keep the others from it.
    let mut last_failure = None;
    for name in &names {
        if let Err(failure) = renew(&authority, name, arguments)
            && let Some(earlier) = last_failure.replace(failure)
        {
            eprintln!("certs-tool: {earlier}");
        }
    }
    last_failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn renew(authority: &Authority, name: &NodeName, arguments: &Renew) -> Result<(), Failure> {
    let out = arguments
        .out
        .as_deref()
        .unwrap_or_else(|| authority.directory());
    match authority.renew(name, &arguments.renewal(), out)? {
        Renewed::Made(made) => show_new(&made, authority),
        Renewed::NotDue { until, due } => eprintln!(
            "{name} is not due: valid until {}, due from {} on.",
            until.day(),
            due.day()
        ),
        Renewed::EndsWithCa { until } => {
            eprintln!(
                "{name} cannot live longer: its CA ends with it, on {}.",
                until.day()
            );
            eprintln!("`certs-tool ca rotate start` begins another CA.");
        }
    }
    Ok(())
}

fn unrevoked(directory: &Path) -> Result<Vec<NodeName>, Failure> {
    let newest = Ledger::read(directory)?.newest().into_iter();
    let names = newest
        .filter(|issued| issued.revoked.is_none())
        .map(|issued| {
            issued.record.name.parse().map_err(|why: String| {
                Failure::new(
                    format!(
                        "`{}` in the ledger is no node's name",
                        escape(&issued.record.name)
                    ),
                    why,
                    "",
                )
            })
        });
    names.collect()
}
