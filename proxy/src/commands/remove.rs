//! `pgtlsproxy remove`: shows what will be done, asks, does it step by step.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::io::{self, BufRead, IsTerminal, Read};

use certs_tool::key::PassphraseSource;

use crate::cli::RemoveFlags;
use crate::problem::Problem;
use crate::remove::{Removal, Remove, Step};

/// Longer than any answer.
const LONGEST_ANSWER: u64 = 64;

pub(super) fn run(flags: RemoveFlags) -> Result<(), Vec<Problem>> {
    let name = flags.name.clone();
    let removal = Removal::gather(Remove {
        name: flags.name,
        pki: flags.pki.unwrap_or_else(|| flags.dir.join("pki")),
        directory: flags.dir,
        passphrase: flags
            .passphrase_file
            .map_or(PassphraseSource::Prompt, PassphraseSource::File),
        cluster: flags.cluster,
        pgdata: flags.pgdata,
    })?;
    let plan = removal.plan().map_err(|problem| vec![problem])?;
    if flags.dry_run {
        for step in &plan {
            println!("{step}");
        }
        if plan.is_empty() {
            eprintln!("{name}: nothing is left to do");
        }
        return Ok(());
    }
    if !flags.yes && !plan.is_empty() {
        confirm(name.as_str(), &plan).map_err(|problem| vec![problem])?;
    }
    if removal.run(&mut show)? {
        eprintln!(
            "{name} is removed. On its host, what is left there can be deleted with its directory."
        );
    } else {
        eprintln!("{name}: nothing is left to do");
    }
    Ok(())
}

fn show(step: &Step) {
    match step {
        Step::Done(what) => eprintln!("done:           {what}"),
        Step::WasSo(what) => eprintln!("was already so: {what}"),
        Step::Remains(problem) => eprintln!("remains:        {} [{}]", problem.what, problem.id),
        Step::Note(problem) => eprintln!("warning: {problem}"),
    }
}

fn confirm(name: &str, plan: &[String]) -> Result<(), Problem> {
    let refused = |why: &str| {
        Problem::new(
            "M04",
            format!("{name} is not removed; nothing was changed"),
            why,
            "answer with y, or run it with --yes",
        )
    };
    if !io::stdin().is_terminal() {
        return Err(refused("nobody is at a terminal to be asked"));
    }
    eprintln!("To remove {name}:");
    for step in plan {
        eprintln!("  {step}");
    }
    eprint!("A certificate that was revoked never counts again. Go on? [y/N] ");
    let mut answer = String::new();
    let read = io::stdin()
        .lock()
        .take(LONGEST_ANSWER)
        .read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused("the answer was not yes")),
    }
}
