//! Arguments, and nothing else.

mod ca;
mod look;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::authority::{KeyChoice, Renewal};
use crate::key::PassphraseSource;
use crate::profile::{AltName, KeyAlgorithm, NodeName, Period};
use crate::report::Date;
use crate::store::Existing;

pub use ca::{CaBackup, CaCommand, CaInit, CaRestore, CaRotate, RotateCommand, RotateStart};
pub use look::{Inspect, List, Negotiation, Purpose, Verify};

/// CA and certificates for pgtlsproxy
#[derive(Debug, Parser)]
#[command(
    name = "certs-tool",
    version,
    after_help = "\
Example, a CA and two nodes:
  certs-tool ca init
  certs-tool issue db1 --san db1.example.com --san 10.0.0.1
  certs-tool issue db2 --san db2.example.com
  certs-tool list"
)]
pub struct Arguments {
    /// The CA's directory [default: /etc/pgtlsproxy/pki where it exists, else ./pki]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// The CA's directory.
    pub fn directory(&self) -> PathBuf {
        let system = Path::new("/etc/pgtlsproxy/pki");
        match &self.dir {
            Some(directory) => directory.clone(),
            None if system.is_dir() => system.to_owned(),
            None => PathBuf::from("pki"),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The CA itself
    #[command(subcommand, after_help = "Example:\n  certs-tool ca init")]
    Ca(CaCommand),
    /// Make a key and a certificate: NAME.key and NAME.crt
    Issue(Issue),
    /// Make a key and ask for a certificate: NAME.key and NAME.csr
    Request(Request),
    /// Make a certificate for a request: NAME.crt
    Sign(Sign),
    /// Make the next certificate of a node, if it is due
    Renew(Renew),
    /// Revoke what was issued under a name, one serial number, or one certificate
    Revoke(Revoke),
    /// Sign the revocation list anew
    Crl(Crl),
    /// Show what was issued, and what became of it
    List(List),
    /// Show what is in a file, or what a server presents, and what is wrong with it for our use
    Inspect(Inspect),
    /// Say whether the proxy would take a certificate: exit status 0 if so, 1 if not
    Verify(Verify),
}

/// `issue`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  certs-tool issue db1 --san db1.example.com --san 10.0.0.1 --out /etc/pgtlsproxy"
)]
pub struct Issue {
    /// The node: its common name and the name of its files
    pub name: NodeName,
    #[command(flatten)]
    pub names: Names,
    /// Where to write NAME.crt and NAME.key [default: the CA's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The kind of key
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub key_alg: KeyAlgorithm,
    #[command(flatten)]
    pub period: PeriodArguments,
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

/// `request`
#[derive(Debug, Args)]
#[command(
    after_help = "Example, on the node; then NAME.csr goes to the CA's host:
  certs-tool request db2 --san db2.example.com --out /etc/pgtlsproxy
As one pipe:
  certs-tool request db2 --out . --stdout | ssh CA_HOST certs-tool sign - --name db2 --san db2.example.com --stdout > db2.crt"
)]
pub struct Request {
    /// The node: its common name and the name of its files
    pub name: NodeName,
    #[command(flatten)]
    pub names: Names,
    /// Where to write NAME.key and NAME.csr [default: the CA's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the request to standard output, and only the key into a file
    #[arg(long)]
    pub stdout: bool,
    /// The kind of key
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub key_alg: KeyAlgorithm,
    #[command(flatten)]
    pub force: Force,
}

/// `sign`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  certs-tool sign db2.csr --name db2 --san db2.example.com
The names are those given here: what the request asks for is shown and not followed."
)]
pub struct Sign {
    /// The request, in PEM or DER; `-` for standard input
    #[arg(value_name = "FILE")]
    pub request: PathBuf,
    /// The node: its common name and the name of its file
    #[arg(long)]
    pub name: NodeName,
    #[command(flatten)]
    pub names: Names,
    /// Where to write NAME.crt [default: the CA's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the certificate to standard output, and into no file
    #[arg(long, conflicts_with = "out")]
    pub stdout: bool,
    #[command(flatten)]
    pub period: PeriodArguments,
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

/// `renew`
#[derive(Debug, Args)]
#[command(
    after_help = "Example, for cron: it does something once two thirds of a certificate's life are over
  certs-tool renew --all
The names stay as they were, the key is new. A certificate that was made for a request is asked for again, or keeps its
key (--reuse-key); --all skips it, and warns if it ends soon. Its term is that of the one before."
)]
pub struct Renew {
    /// The nodes
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub names: Vec<NodeName>,
    /// Every node whose last certificate is not revoked
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// A new certificate for the old key
    #[arg(long)]
    reuse_key: bool,
    /// Also if more than a third of its life is left
    #[arg(long)]
    force: bool,
    /// Where NAME.crt and NAME.key lie [default: the CA's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    period: PeriodArguments,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

impl Renew {
    /// How to renew.
    pub fn renewal(&self) -> Renewal {
        Renewal {
            key: if self.reuse_key {
                KeyChoice::Same
            } else {
                KeyChoice::New
            },
            force: self.force,
            period: self.period.period(),
        }
    }
}

/// `revoke`
#[derive(Debug, Args)]
#[command(after_help = "Example, everything that db2 ever got:\n  certs-tool revoke db2")]
pub struct Revoke {
    /// The node's name (all its certificates), one serial number, or the file of one certificate
    #[arg(value_name = "NAME|SERIAL|FILE")]
    pub which: String,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

/// `crl`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  certs-tool crl")]
pub struct Crl {
    /// The last second at which it counts, for tests [default: the CA's own end]
    #[arg(long, value_name = "DATE")]
    pub not_after: Option<Date>,
    #[command(flatten)]
    pub given: GivenPassphrase,
}

/// Subject alternative names.
#[derive(Debug, Args)]
pub struct Names {
    /// A name that peers know it by: host name, address or URI; may be given several times [default: NAME]
    #[arg(long = "san", value_name = "NAME")]
    pub san: Vec<AltName>,
}

/// When a certificate counts.
#[derive(Debug, Args)]
pub struct PeriodArguments {
    /// How many days it is valid
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "not_after")]
    days: Option<u32>,
    /// The first second at which it is valid: 2026-11-24, 2026-11-24T10:00:00Z or @UNIX [default: an hour ago]
    #[arg(long, value_name = "DATE")]
    not_before: Option<Date>,
    /// The last second at which it is valid
    #[arg(long, value_name = "DATE")]
    not_after: Option<Date>,
}

impl PeriodArguments {
    /// How long it lives.
    pub fn period(&self) -> Period {
        Period {
            days: self.days,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

/// Whether files that exist may be replaced.
#[derive(Debug, Args)]
pub struct Force {
    /// Put new files in the place of those that exist
    #[arg(long)]
    force: bool,
}

impl Force {
    /// What to do with files that exist.
    pub fn existing(&self) -> Existing {
        if self.force {
            Existing::Replace
        } else {
            Existing::Keep
        }
    }
}

/// The passphrase of the CA's key.
#[derive(Debug, Args)]
pub struct GivenPassphrase {
    /// Read the passphrase of the CA's key from a file
    #[arg(long, value_name = "FILE", group = "source")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase of the CA's key from an open descriptor
    #[arg(long, value_name = "N", group = "source")]
    passphrase_fd: Option<u32>,
}

impl GivenPassphrase {
    fn source(&self) -> Option<PassphraseSource> {
        let file = self.passphrase_file.clone().map(PassphraseSource::File);
        file.or_else(|| self.passphrase_fd.map(PassphraseSource::Descriptor))
    }

    /// Where it comes from.
    pub fn source_or_prompt(&self) -> PassphraseSource {
        self.source().unwrap_or(PassphraseSource::Prompt)
    }
}
