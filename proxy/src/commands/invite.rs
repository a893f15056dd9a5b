//! `pgtlsproxy invite`: one line on stdout, the rest on stderr, until the node has joined.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::io::Write;
use std::path::Path;

use certs_tool::key::PassphraseSource;
use certs_tool::profile::NodeName;
use protocol::escape::escape;
use serde::Serialize;

use crate::cli::{AllowKind, InviteFlags};
use crate::control::Invitation;
use crate::enrol::{Invite, Opened, Written, left_over, pending, withdraw};
use crate::problem::Problem;

#[derive(Serialize)]
struct Pending<'a> {
    name: &'a str,
    until: String,
}

pub(super) fn run(flags: InviteFlags) -> Result<(), Vec<Problem>> {
    let pki = flags.pki.clone().unwrap_or_else(|| flags.dir.join("pki"));
    let Some(name) = flags.name.clone().filter(|_| !flags.list) else {
        let waiting = pending(&flags.dir)?;
        list(&waiting, flags.json)?;
        // Who may use the control socket need not be able to read the ledger.
        for name in left_over(&flags.dir, &pki, &waiting).unwrap_or_default() {
            let name = escape(&name);
            eprintln!(
                "The rule for cn:{name} is left of an invitation that waits no longer: pgtlsproxy invite {name} --withdraw takes it out."
            );
        }
        return Ok(());
    };
    if flags.withdraw {
        return take_back(&flags.dir, &pki, &name);
    }
    let kinds = &flags.allow;
    let replication: Vec<String> = kinds
        .iter()
        .filter(|kind| **kind != AllowKind::Ordinary)
        .map(|kind| kind.as_str().to_owned())
        .collect();
    let invite = Invite {
        name,
        names: flags.san,
        from: (!flags.from.is_empty())
            .then(|| flags.from.iter().map(ToString::to_string).collect()),
        public: flags.public,
        valid: flags.valid,
        pki,
        directory: flags.dir,
        passphrase: flags
            .passphrase_file
            .map_or(PassphraseSource::Prompt, PassphraseSource::File),
        // `ordinary` alone adds to the replication that a rule admits anyway.
        replication: (!replication.is_empty()).then_some(replication),
        ordinary: (!kinds.is_empty()).then(|| kinds.contains(&AllowKind::Ordinary)),
        replace: flags.replace,
    };
    let (name, config) = (
        invite.name.clone(),
        invite.directory.join("pgtlsproxy.toml"),
    );
    let opened = Opened::open(invite)?;
    if opened.rule != Written::AsItWas {
        eprintln!("The rule for cn:{name} stands in {}.", config.display());
    }
    eprintln!(
        "Run this on {name}, until {}; whoever has the line can join, once:",
        opened.expires()
    );
    eprintln!(
        "  pgtlsproxy join -      and give it the line below (so it stands in no list of processes)"
    );
    println!("{}", opened.token());
    // A reader of our output, a script say, shall have it now.
    std::io::stdout().flush().map_err(|error| {
        vec![Problem::new(
            "C11",
            "the token cannot be written",
            error.to_string(),
            "give it another output",
        )]
    })?;
    eprintln!("Waiting for {name} (Ctrl-C takes the invitation back) ...");
    let joined = opened.wait(|problem| eprintln!("pgtlsproxy: {problem}"))?;
    eprintln!(
        "{} has joined from {}; its certificate is {}.",
        joined.name,
        joined.address,
        joined.certificate.display()
    );
    Ok(())
}

fn take_back(directory: &Path, pki: &Path, name: &NodeName) -> Result<(), Vec<Problem>> {
    let withdrawn = withdraw(directory, pki, name)?;
    match withdrawn.invitations {
        0 => eprintln!("No invitation of {name} waits."),
        _ => eprintln!("The invitation of {name} is withdrawn."),
    }
    if withdrawn.rules > 0 {
        eprintln!("The rule that was written for it is taken out.");
    }
    if withdrawn.joined {
        eprintln!("{name} is a node, and stays one: pgtlsproxy remove {name} ends that.");
    }
    Ok(())
}

fn list(invitations: &[Invitation], json: bool) -> Result<(), Vec<Problem>> {
    let until = |invitation: &Invitation| {
        certs_tool::report::Date::from_unix(invitation.expires).to_string()
    };
    if json {
        let list: Vec<_> = invitations
            .iter()
            .map(|invitation| Pending {
                name: &invitation.name,
                until: until(invitation),
            })
            .collect();
        let text = serde_json::to_string_pretty(&list).map_err(|error| {
            vec![Problem::new(
                "C11",
                "the list cannot be written",
                error.to_string(),
                "try without --json",
            )]
        })?;
        println!("{text}");
        return Ok(());
    }
    if invitations.is_empty() {
        eprintln!("No invitation waits.");
    }
    for invitation in invitations {
        println!("{}  until {}", invitation.name, until(invitation));
    }
    Ok(())
}
