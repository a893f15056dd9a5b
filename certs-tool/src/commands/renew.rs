//! `renew`: the next certificate of a node, if it is due.

use std::path::Path;
use std::process::ExitCode;

use protocol::escape::escape;

use crate::authority::{Authority, KeyChoice, Renewed};
use crate::cli::Renew;
use crate::commands::{open, show_new};
use crate::ledger::Ledger;
use crate::profile::NodeName;
use crate::report::{Date, Failure};

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
        let done = match elsewhere(&authority, name, arguments) {
            Ok(true) => continue,
            Ok(false) => renew(&authority, name, arguments),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = done
            && let Some(earlier) = last_failure.replace(failure)
        {
            eprintln!("certs-tool: {earlier}");
        }
    }
    last_failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn out<'a>(authority: &'a Authority, arguments: &'a Renew) -> &'a Path {
    arguments
        .out
        .as_deref()
        .unwrap_or_else(|| authority.directory())
}

/// With `--all`: whether this node's key is elsewhere, so that others renew it. Says who, and warns if nobody has.
fn elsewhere(authority: &Authority, name: &NodeName, arguments: &Renew) -> Result<bool, Failure> {
    if !arguments.all || arguments.renewal().key == KeyChoice::Same {
        return Ok(false);
    }
    let Some(there) = authority.key_elsewhere(name, out(authority, arguments))? else {
        return Ok(false);
    };
    let until = there.until.day();
    if Date::now() < there.due {
        eprintln!(
            "{name} is skipped, valid until {until}: its key is on its own host, whose `pgtlsproxy renew` renews it, or who runs that host by a request."
        );
    } else {
        eprintln!(
            "warning: {name} ends on {until}, and nobody has renewed it: its key is on its own host, not here\n  \
             where a pgtlsproxy runs there: pgtlsproxy renew, on both hosts\n  else {}",
            there.way_out
        );
    }
    Ok(true)
}

fn renew(authority: &Authority, name: &NodeName, arguments: &Renew) -> Result<(), Failure> {
    match authority.renew(name, &arguments.renewal(), out(authority, arguments))? {
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
