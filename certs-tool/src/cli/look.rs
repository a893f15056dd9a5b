//! Arguments of the commands that only look: `list`, `inspect`, `verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// `list`
#[derive(Debug, Args)]
#[command(after_help = "Example, the nodes whose certificate is valid:
  certs-tool list --json | jq -r '.[] | select(.state == \"valid\") | .name'")]
pub struct List {
    /// Only what ends within this time, of each node the last certificate: `30d`, `12h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub expiring: Option<Duration>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  certs-tool inspect /etc/ssl/certs/ssl-cert-snakeoil.pem
  certs-tool inspect db1.example.com:5443 --ca ca.crt --crl ca.crl
A server shows its certificate before it asks for ours, so none is needed to see it.")]
pub struct Inspect {
    /// Certificates, CRLs, requests in PEM or DER; `-` for standard input; or a server, as HOST:PORT
    #[arg(required = true, value_name = "FILE|HOST:PORT")]
    pub what: Vec<PathBuf>,
    /// Of a server: the CA file that its certificate must lead to
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Of a server: the CRL file
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub crl: Option<PathBuf>,
    /// Of a server: the name that its certificate must have [default: HOST]
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// Of a server: how to begin [default: direct, then postgres]
    #[arg(long, value_enum, value_name = "HOW")]
    pub sslnegotiation: Option<Negotiation>,
    /// Of a server: a certificate to show to it
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Of a server: the key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
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

/// How TLS begins, as libpq's `sslnegotiation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Negotiation {
    /// With the first byte: pgtlsproxy, PostgreSQL 17 and later.
    Direct,
    /// After an SSLRequest: any PostgreSQL with `ssl = on`.
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
