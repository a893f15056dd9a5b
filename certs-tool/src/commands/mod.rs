//! One file per command: gather, decide, show.

mod backup;
mod ca;
mod crl;
mod inspect;
mod issue;
mod list;
mod renew;
mod request;
mod revoke;
mod rotate;
mod sign;
mod verify;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::authority::{Authority, NewCertificate};
use crate::cli::{Arguments, CaCommand, Command};
use crate::key::PassphraseSource;
use crate::report::{Date, Failure};

/// Does what the arguments say.
pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let directory = arguments.directory();
    match arguments.command {
        Command::Ca(CaCommand::Init(init)) => ca::init(&directory, &init)?,
        Command::Ca(CaCommand::Rotate(rotate)) => rotate::run(&directory, &rotate)?,
        Command::Ca(CaCommand::Backup(backup)) => backup::backup(&directory, &backup)?,
        Command::Ca(CaCommand::Restore(restore)) => backup::restore(&directory, &restore)?,
        Command::Issue(issue) => issue::run(&directory, &issue)?,
        Command::Request(request) => request::run(&directory, &request)?,
        Command::Sign(sign) => sign::run(&directory, sign)?,
        Command::Renew(renew) => return renew::run(&directory, &renew),
        Command::Revoke(revoke) => revoke::run(&directory, &revoke)?,
        Command::Crl(crl) => crl::run(&directory, &crl)?,
        Command::List(list) => list::run(&directory, &list)?,
        Command::Inspect(inspect) => inspect::run(&inspect)?,
        Command::Verify(verify) => return verify::run(&verify),
    }
    Ok(ExitCode::SUCCESS)
}

fn open(directory: &Path, passphrase: &PassphraseSource) -> Result<Authority, Failure> {
    Authority::open(directory, || {
        passphrase.ask(&directory.join(crate::authority::CA_KEY))
    })
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Failure::new("cannot write JSON", error.to_string(), ""))?;
    print(&(text + "\n"))
}

/// Data of which a part is worth nothing: a reader that has gone away is a failure.
fn print_whole(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(|error| cannot_print(&error))
}

fn cannot_print(error: &io::Error) -> Failure {
    Failure::new("cannot write to standard output", error.to_string(), "")
}

/// Data, to standard output. A reader that has had enough, as `head`, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot_print(&error)),
        _ => Ok(()),
    }
}

/// What was made and where, and nothing more.
fn show_new(made: &NewCertificate, authority: &Authority) {
    let until = Date::from_unix(made.certificate.not_after()).day();
    eprintln!(
        "Certificate for {}, valid until {until}:",
        made.certificate.identity()
    );
    eprintln!("  {}", made.certificate_path.display());
    if let Some(key) = &made.key_path {
        eprintln!("  {}  (secret)", key.display());
    }
    if made.cut_short {
        let ca = authority.certificate().subject();
        eprintln!("It ends with its CA ({ca}), earlier than its own term would.");
    }
}
