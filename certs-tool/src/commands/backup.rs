//! `ca backup` and `ca restore`: a CA must not die with its host.

use std::io::{self, Write};
use std::path::Path;

use crate::backup::Backup;
use crate::cli::{CaBackup, CaRestore};
use crate::report::Failure;
use crate::store::{self, NewFile, Readers};

pub(super) fn backup(directory: &Path, arguments: &CaBackup) -> Result<(), Failure> {
    let to_stdout = arguments.file == Path::new("-");
    if !to_stdout {
        // Before anybody has thought of a passphrase.
        store::refuse_existing([&*arguments.file], arguments.force.existing())?;
    }
    let backup = Backup::make(directory, &arguments.given.source_or_prompt())?;
    let archive = backup.encode()?;
    if to_stdout {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&archive).and_then(|()| stdout.flush());
        written.map_err(|error| super::cannot_print(&error))?;
        eprintln!("Backup of {} written to standard output.", backup.ca());
        return Ok(());
    }
    let file = NewFile {
        path: arguments.file.clone(),
        content: &archive,
        readers: Readers::Owner,
    };
    store::write_all(&[file], arguments.force.existing())?;
    eprintln!("Backup of {}, to be kept on another host:", backup.ca());
    eprintln!(
        "  {}  (its key is worth nothing without the passphrase)",
        arguments.file.display()
    );
    Ok(())
}

pub(super) fn restore(directory: &Path, arguments: &CaRestore) -> Result<(), Failure> {
    let archive = store::read_argument(&arguments.file)?;
    let backup = Backup::decode(
        &archive,
        &arguments.file,
        &arguments.given.source_or_prompt(),
    )?;
    backup.restore(directory)?;
    eprintln!(
        "CA {} of {}, as it was on {}, in {}.",
        backup.ca(),
        arguments.file.display(),
        backup.made(),
        directory.display()
    );
    eprintln!(
        "What was issued or revoked since then is not in it: `certs-tool list` shows what is."
    );
    Ok(())
}
