//! `issue`: a key and a certificate.

use std::path::{Path, PathBuf};

use crate::authority::NewNode;
use crate::cli::Issue;
use crate::commands::{open, show_new};
use crate::report::Failure;
use crate::store;

pub(super) fn run(directory: &Path, arguments: &Issue) -> Result<(), Failure> {
    let out = arguments.out.as_deref().unwrap_or(directory);
    // Before anybody is asked for a passphrase.
    let files = ["crt", "key"].map(|end| out.join(format!("{}.{end}", arguments.name)));
    store::refuse_existing(
        files.iter().map(PathBuf::as_path),
        arguments.force.existing(),
    )?;
    let authority = open(directory, &arguments.given.source_or_prompt())?;
    let (period, existing) = (arguments.period.period(), arguments.force.existing());
    let node = NewNode {
        name: arguments.name.clone(),
        names: arguments.names.san.clone(),
        key_algorithm: arguments.key_alg,
        period,
    };
    let made = authority.issue(&node, out, existing)?;
    show_new(&made, &authority);
    Ok(())
}
