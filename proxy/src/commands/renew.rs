//! `pgtlsproxy renew`: for cron and systemd. What was done is said on stderr; nothing to do is no failure.

use certs_tool::key::PassphraseSource;

use crate::cli::RenewFlags;
use crate::logging;
use crate::problem::Problem;
use crate::renew::{Done, Own, Renew};

pub(super) fn run(flags: RenewFlags) -> Result<(), Vec<Problem>> {
    let config = flags.config.config;
    let pki = flags.pki.unwrap_or_else(|| config.with_file_name("pki"));
    let renew = Renew {
        pki,
        config,
        passphrase: flags
            .passphrase_file
            .map_or(PassphraseSource::Prompt, PassphraseSource::File),
        wait: flags.wait,
    };
    let done = renew.run()?;
    show(&done);
    let failures = done.problems.into_iter().filter(Problem::is_error);
    let failures: Vec<Problem> = failures.collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}

fn show(done: &Done) {
    match &done.own {
        Own::Renewed { until } => eprintln!("Renewed: valid until {until}."),
        Own::NotDue { until, due } => {
            eprintln!("Not due: valid until {until}, to be renewed from {due} on.");
        }
        Own::Asked { signed: Some(last) } => eprintln!(
            "Asked: the request waits at the CA's host, where somebody signed last at {last}."
        ),
        Own::Asked { signed: None } => eprintln!(
            "Asked: the request waits at the CA's host; nobody has signed there since its daemon was started."
        ),
        Own::Busy => eprintln!("Another `pgtlsproxy renew` is at it; nothing was done."),
    }
    if let Some(cas) = &done.trust {
        eprintln!("Trusted from now on: {}.", cas.join("; "));
    }
    for name in &done.admitted {
        eprintln!("Let in from now on: {name}, which has joined.");
    }
    for one in &done.granted {
        eprintln!("Signed for {}: valid until {}.", one.name, one.until);
    }
    for warning in done.problems.iter().filter(|problem| !problem.is_error()) {
        logging::say(tracing::Level::WARN, &format!("warning: {warning}"));
    }
}
