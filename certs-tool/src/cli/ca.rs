//! Arguments of `ca`: what is done with the CA itself.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Force, GivenPassphrase, PeriodArguments};
use crate::authority::NewAuthority;
use crate::key::PassphraseSource;
use crate::profile::KeyAlgorithm;

/// What can be done with the CA itself.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a CA: ca.crt, ca.key and ca.crl
    Init(CaInit),
    /// Let another CA follow this one, in stages, while everything streams
    Rotate(CaRotate),
    /// Write the CA with all it knows into one file, its key under a passphrase
    Backup(CaBackup),
    /// Put a CA from such a file into a directory that has none
    Restore(CaRestore),
}

/// `ca init`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  certs-tool ca init --passphrase")]
pub struct CaInit {
    /// The CA's name [default: `pgtlsproxy CA` and 8 random digits]
    #[arg(long)]
    pub name: Option<String>,
    /// The kind of key
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub key_alg: KeyAlgorithm,
    /// Ask for a passphrase to lie on the CA's key
    #[arg(long, group = "source")]
    passphrase: bool,
    #[command(flatten)]
    given: GivenPassphrase,
    #[command(flatten)]
    pub period: PeriodArguments,
    #[command(flatten)]
    pub force: Force,
}

impl CaInit {
    /// Where the passphrase comes from, if there is to be one.
    pub fn passphrase(&self) -> Option<PassphraseSource> {
        self.given
            .source()
            .or_else(|| self.passphrase.then_some(PassphraseSource::Prompt))
    }
}

/// `ca rotate`
#[derive(Debug, Args)]
#[command(
    after_help = "Example, what is to be done next and which file goes where:\n  certs-tool ca rotate"
)]
pub struct CaRotate {
    /// The next stage; without it, how far it is
    #[command(subcommand)]
    pub command: Option<RotateCommand>,
    /// For programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

/// The stages of a rotation. Each may be run again, and does nothing then.
#[derive(Debug, Subcommand)]
pub enum RotateCommand {
    /// Make the new CA, to be trusted beside the old one, which still signs
    #[command(after_help = "Example:\n  certs-tool ca rotate start")]
    Start(RotateStart),
    /// Let the new CA sign from now on, once every node trusts it
    #[command(after_help = "Example:\n  certs-tool ca rotate switch")]
    Switch,
    /// Drop the old CA, once every node has a certificate of the new one
    #[command(after_help = "Example:\n  certs-tool ca rotate finish")]
    Finish,
    /// Drop the new CA, as long as it has signed nothing
    #[command(after_help = "Example:\n  certs-tool ca rotate abort")]
    Abort,
}

/// `ca rotate start`
#[derive(Debug, Args)]
pub struct RotateStart {
    /// The new CA's name [default: `pgtlsproxy CA` and 8 random digits]
    #[arg(long)]
    name: Option<String>,
    /// The kind of its key
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    key_alg: KeyAlgorithm,
    #[command(flatten)]
    period: PeriodArguments,
}

impl RotateStart {
    /// What the new CA is to be like; its key gets the passphrase of the old one.
    pub fn new_authority(&self) -> NewAuthority {
        NewAuthority {
            name: self.name.clone(),
            key_algorithm: self.key_alg,
            period: self.period.period(),
            passphrase: None,
        }
    }
}

/// `ca backup`
#[derive(Debug, Args)]
#[command(after_help = "Example, onto another host:
  certs-tool ca backup - | ssh OTHER_HOST 'umask 077; cat > ca-backup.tar'
If the CA's key has a passphrase, it lies on the backup too; else one is asked for. It is a tar archive, and its README
says how to open it without this program.")]
pub struct CaBackup {
    /// The file to be written; `-` for standard output
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

/// `ca restore`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  certs-tool --dir /etc/pgtlsproxy/pki ca restore ca-backup.tar
Nothing is overwritten. It is restored when every part is found to belong to the others, or not at all."
)]
pub struct CaRestore {
    /// The backup; `-` for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub given: GivenPassphrase,
}
