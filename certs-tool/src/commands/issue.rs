//! `issue`: a key and a certificate.

use std::path::Path;

use crate::authority::NewNode;
use crate::cli::Issue;
use crate::commands::{open, show_new};
use crate::report::Failure;

pub(super) fn run(directory: &Path, arguments: Issue) -> Result<(), Failure> {
    let authority = open(directory, &arguments.passphrase())?;
    let (period, existing) = (arguments.period(), arguments.existing());
    let node = NewNode {
        name: arguments.name,
        names: arguments.names.san,
        key_algorithm: arguments.key_alg,
        period,
    };
    let made = authority.issue(
        &node,
        arguments.out.as_deref().unwrap_or(directory),
        existing,
    )?;
    show_new(&made, &authority);
    Ok(())
}
