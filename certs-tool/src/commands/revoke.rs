//! `revoke`: onto the CRL.

use std::path::Path;

use crate::authority::CA_CRL;
use crate::cli::Revoke;
use crate::commands::open;
use crate::report::Failure;

pub(super) fn run(directory: &Path, arguments: &Revoke) -> Result<(), Failure> {
    let authority = open(directory, &arguments.passphrase())?;
    let revoked = authority.revoke(&arguments.which)?;
    if revoked.is_empty() {
        eprintln!("Nothing to do: it is revoked already.");
        return Ok(());
    }
    for issued in &revoked {
        eprintln!(
            "Revoked: {}, serial {}.",
            issued.record.name, issued.record.serial
        );
    }
    eprintln!(
        "To be copied to every node:\n  {}",
        directory.join(CA_CRL).display()
    );
    Ok(())
}
