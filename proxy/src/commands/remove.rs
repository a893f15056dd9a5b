//! `pgtlsproxy remove`: shows what will be done, asks, does it step by step.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::io::{self, BufRead, IsTerminal, Read};

use certs_tool::key::PassphraseSource;
use serde::Serialize;

use crate::cli::RemoveFlags;
use crate::problem::Problem;
use crate::remove::{Removal, Remove, Step};
use crate::setup::json;

/// Of the form of `--json`; it changes when a name goes or changes its meaning.
const FORMAT: u32 = 1;
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
    let mut report = Report {
        format: FORMAT,
        node: name.as_str(),
        dry_run: flags.dry_run,
        changed: false,
        due: &plan,
        steps: Vec::new(),
    };
    if flags.dry_run {
        if plan.is_empty() {
            eprintln!("{name}: nothing is left to do");
        }
        if flags.json {
            return report.print();
        }
        for step in &plan {
            println!("{step}");
        }
        return Ok(());
    }
    if !flags.yes && !plan.is_empty() {
        confirm(name.as_str(), &plan).map_err(|problem| vec![problem])?;
    }
    let done = removal.run(&mut |step| {
        show(step);
        report.take(step);
    });
    // What was done is told, whatever remains.
    if flags.json {
        report.print()?;
    }
    if done? {
        eprintln!(
            "{name} is removed. On its host, what is left there can be deleted with its directory."
        );
    } else {
        eprintln!("{name}: nothing is left to do");
    }
    Ok(())
}

/// What is printed with `--json`. Names and meanings stay (docs/certificates.md); more may come.
#[derive(Serialize)]
struct Report<'a> {
    format: u32,
    node: &'a str,
    dry_run: bool,
    changed: bool,
    /// What was left to do before, in words.
    due: &'a [String],
    steps: Vec<ReportedStep>,
}

/// One step that was taken, or could not be.
#[derive(Serialize)]
struct ReportedStep {
    /// `done`, `was_so`, `remains` or `note`.
    result: &'static str,
    what: String,
    /// Of what remains, and of a note: id, why, way_out.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

impl Report<'_> {
    fn take(&mut self, step: &Step) {
        self.changed |= matches!(step, Step::Done(_));
        let (result, what, problem) = match step {
            Step::Done(what) => ("done", what, None),
            Step::WasSo(what) => ("was_so", what, None),
            Step::Remains(problem) => ("remains", &problem.what, Some(problem)),
            Step::Note(problem) => ("note", &problem.what, Some(problem)),
        };
        self.steps.push(ReportedStep {
            result,
            what: what.clone(),
            problem: problem.cloned(),
        });
    }

    fn print(&self) -> Result<(), Vec<Problem>> {
        println!("{}", json(self).map_err(|problem| vec![problem])?);
        Ok(())
    }
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
