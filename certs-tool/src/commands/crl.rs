//! `crl`: the revocation list, signed anew.

use std::path::Path;

use crate::authority::CA_CRL;
use crate::cli::Crl;
use crate::commands::open;
use crate::report::Failure;

pub(super) fn run(directory: &Path, arguments: &Crl) -> Result<(), Failure> {
    let authority = open(directory, &arguments.given.source_or_prompt())?;
    let number = authority.renew_crl(arguments.not_after)?;
    eprintln!(
        "CRL number {number}, to be copied to every node:\n  {}",
        directory.join(CA_CRL).display()
    );
    Ok(())
}
