//! `revoke`: onto the CRL.

use std::path::Path;

use protocol::escape::escape;

use crate::authority::CA_CRL;
use crate::cli::Revoke;
use crate::commands::open;
use crate::contents::{self, Item};
use crate::ledger::Ledger;
use crate::report::Failure;
use crate::verify::Encoded;

pub(super) fn run(directory: &Path, arguments: &Revoke) -> Result<(), Failure> {
    let authority = open(directory, &arguments.given.source_or_prompt())?;
    let file = Path::new(&arguments.which);
    // Names come first: that a file is called `db1` too changes nothing.
    let is_known = Ledger::read(directory)?
        .issued()
        .iter()
        .any(|issued| [&issued.record.name, &issued.record.serial].contains(&&arguments.which));
    let revoked = if !is_known && file.is_file() {
        authority.revoke_certificate(&certificate(file)?)?
    } else {
        authority.revoke(&arguments.which)?
    };
    if revoked.is_empty() {
        eprintln!("Nothing to do: it is revoked already.");
        return Ok(());
    }
    for issued in &revoked {
        eprintln!(
            "Revoked: {}, serial {}.",
            escape(&issued.record.name),
            issued.record.serial
        );
    }
    eprintln!(
        "To be copied to every node:\n  {}",
        directory.join(CA_CRL).display()
    );
    Ok(())
}

/// The first certificate of the file: the leaf, where intermediates follow.
fn certificate(path: &Path) -> Result<Encoded, Failure> {
    let found = contents::load(path)?
        .into_iter()
        .find_map(|item| match item {
            Item::Certificate(read, der) => Some((*read, der)),
            _ => None,
        });
    found.ok_or_else(|| {
        Failure::new(
            format!("there is no certificate in {}", path.display()),
            "",
            "give the right file, a name or a serial number",
        )
    })
}
