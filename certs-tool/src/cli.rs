//! Arguments, and nothing else.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::key::PassphraseSource;
use crate::profile::{AltName, KeyAlgorithm, NodeName, Period};
use crate::report::Date;
use crate::store::Existing;

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
    /// Revoke what was issued under a name, or one serial number
    Revoke(Revoke),
    /// Sign the revocation list anew
    Crl(Crl),
    /// Show what was issued, and what became of it
    List(List),
    /// Show what is in a file, of whatever origin, and what is wrong with it for our use
    Inspect(Inspect),
    /// Say whether the proxy would take a certificate: exit status 0 if so, 1 if not
    Verify(Verify),
}

/// What can be done with the CA itself.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a CA: ca.crt, ca.key and ca.crl
    Init(CaInit),
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
    period: PeriodArguments,
    #[command(flatten)]
    force: Force,
}

impl CaInit {
    /// Where the passphrase comes from, if there is to be one.
    pub fn passphrase(&self) -> Option<PassphraseSource> {
        self.given
            .source()
            .or_else(|| self.passphrase.then_some(PassphraseSource::Prompt))
    }

    /// How long it lives.
    pub fn period(&self) -> Period {
        self.period.period()
    }

    /// What to do with a CA that exists.
    pub fn existing(&self) -> Existing {
        self.force.existing()
    }
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
    period: PeriodArguments,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    given: GivenPassphrase,
}

impl Issue {
    /// How long it lives.
    pub fn period(&self) -> Period {
        self.period.period()
    }

    /// What to do with files that exist.
    pub fn existing(&self) -> Existing {
        self.force.existing()
    }

    /// Where the passphrase of the CA's key comes from.
    pub fn passphrase(&self) -> PassphraseSource {
        self.given.source_or_prompt()
    }
}

/// `request`
#[derive(Debug, Args)]
#[command(
    after_help = "Example, on the node; then NAME.csr goes to the CA's host:
  certs-tool request db2 --san db2.example.com --out /etc/pgtlsproxy"
)]
pub struct Request {
    /// The node: its common name and the name of its files
    pub name: NodeName,
    #[command(flatten)]
    pub names: Names,
    /// Where to write NAME.key and NAME.csr [default: the CA's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The kind of key
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub key_alg: KeyAlgorithm,
    #[command(flatten)]
    force: Force,
}

impl Request {
    /// What to do with files that exist.
    pub fn existing(&self) -> Existing {
        self.force.existing()
    }
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
    #[command(flatten)]
    period: PeriodArguments,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    given: GivenPassphrase,
}

impl Sign {
    /// How long it lives.
    pub fn period(&self) -> Period {
        self.period.period()
    }

    /// What to do with a file that exists.
    pub fn existing(&self) -> Existing {
        self.force.existing()
    }

    /// Where the passphrase of the CA's key comes from.
    pub fn passphrase(&self) -> PassphraseSource {
        self.given.source_or_prompt()
    }
}

/// `revoke`
#[derive(Debug, Args)]
#[command(after_help = "Example, everything that db2 ever got:\n  certs-tool revoke db2")]
pub struct Revoke {
    /// The node's name (all its certificates), or one serial number
    #[arg(value_name = "NAME|SERIAL")]
    pub which: String,
    #[command(flatten)]
    given: GivenPassphrase,
}

impl Revoke {
    /// Where the passphrase of the CA's key comes from.
    pub fn passphrase(&self) -> PassphraseSource {
        self.given.source_or_prompt()
    }
}

/// `crl`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  certs-tool crl")]
pub struct Crl {
    /// The last second at which it counts, for tests [default: the CA's own end]
    #[arg(long, value_name = "DATE")]
    pub not_after: Option<Date>,
    #[command(flatten)]
    given: GivenPassphrase,
}

impl Crl {
    /// Where the passphrase of the CA's key comes from.
    pub fn passphrase(&self) -> PassphraseSource {
        self.given.source_or_prompt()
    }
}

/// `list`
#[derive(Debug, Args)]
#[command(after_help = "Example, the nodes whose certificate is valid:
  certs-tool list --json | jq -r '.[] | select(.state == \"valid\") | .name'")]
pub struct List {
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  certs-tool inspect /etc/ssl/certs/ssl-cert-snakeoil.pem")]
pub struct Inspect {
    /// Certificates, CRLs, requests in PEM or DER; `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What it is to be used for [default: as it looks]
    #[arg(long = "as", value_enum, value_name = "USE")]
    pub purpose: Option<Purpose>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// What a certificate is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// A node of ours: TLS server and client
    Node,
    /// An entry of the CA file
    Ca,
    /// PostgreSQL's own ssl_cert_file
    Postgres,
}

/// `verify`
#[derive(Debug, Args)]
#[command(after_help = "Example:
  certs-tool verify db1.crt --key db1.key --ca ca.crt --crl ca.crl --peer-name db1.example.com")]
pub struct Verify {
    /// The certificate, then its intermediates
    #[arg(value_name = "CERT")]
    pub certificate: PathBuf,
    /// Its key, to see whether it belongs to it
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The CA file
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// The CRL file; without it nothing is known of revocation
    #[arg(long, value_name = "FILE")]
    pub crl: Option<PathBuf>,
    /// The host name or address by which a peer connects to it
    #[arg(long, value_name = "NAME")]
    pub peer_name: Option<String>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// Subject alternative names.
#[derive(Debug, Args)]
pub struct Names {
    /// A name that peers know it by: host name, address or URI; may be given several times [default: NAME]
    #[arg(long = "san", value_name = "NAME")]
    pub san: Vec<AltName>,
}

#[derive(Debug, Args)]
struct PeriodArguments {
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
    fn period(&self) -> Period {
        Period {
            days: self.days,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

#[derive(Debug, Args)]
struct Force {
    /// Put new files in the place of those that exist
    #[arg(long)]
    force: bool,
}

impl Force {
    fn existing(&self) -> Existing {
        if self.force {
            Existing::Replace
        } else {
            Existing::Keep
        }
    }
}

#[derive(Debug, Args)]
struct GivenPassphrase {
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

    fn source_or_prompt(&self) -> PassphraseSource {
        self.source().unwrap_or(PassphraseSource::Prompt)
    }
}
