//! The arguments, and nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{ClientFlags, ServerFlags};

/// PostgreSQL replication over mutual TLS 1.3, one sidecar beside each server.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Accept TLS from other hosts and hand the stream to the local PostgreSQL
    #[command(
        after_help = "Example:\n  pgtlsproxy server --listen 0.0.0.0:5443 --postgres /run/postgresql/.s.PGSQL.5432 \\\n    --cert db1.crt --key db1.key --ca ca.crt --crl ca.crl --allow dns:standby1.example.com"
    )]
    Server(ServerFlags),
    /// Accept the local PostgreSQL and carry its stream to another host over TLS
    #[command(
        after_help = "Example:\n  pgtlsproxy client --listen /run/pgtlsproxy --connect db1.example.com:5443 \\\n    --cert standby1.crt --key standby1.key --ca ca.crt --crl ca.crl\n  and in the standby: primary_conninfo = 'host=/run/pgtlsproxy port=5442 user=replicator application_name=standby1'"
    )]
    Client(ClientFlags),
    /// Run every tunnel of a configuration file
    #[command(
        after_help = "Example:\n  pgtlsproxy run --config /etc/pgtlsproxy/pgtlsproxy.toml\n\nSIGHUP reloads certificates, CRLs, rules and log level; SIGTERM drains and ends."
    )]
    Run(ConfigFlag),
    /// Validate configuration, files and certificates; changes nothing
    #[command(
        after_help = "Example:\n  pgtlsproxy check --config pgtlsproxy.toml && systemctl reload pgtlsproxy\n\nExit status: 0 all well, 1 problems, 3 warnings only."
    )]
    Check(CheckFlags),
    /// Say why replication does not flow, layer by layer; changes nothing
    #[command(
        after_help = "Example:\n  pgtlsproxy doctor --cluster 15/main\n\nRun it as root or as PostgreSQL's OS user, on either host.\nExit status: 0 all well, 1 problems, 2 wrong usage, 3 warnings only."
    )]
    Doctor(DoctorFlags),
    /// Show it at work: a primary, a standby and two sidecars on this machine, streaming
    #[command(after_help = "Example:\n  pgtlsproxy demo --seconds 30")]
    Demo(DemoFlags),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFlag {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/pgtlsproxy/pgtlsproxy.toml"
    )]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CheckFlags {
    #[command(flatten)]
    pub(crate) config: ConfigFlag,
    /// Print findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorFlags {
    #[command(flatten)]
    pub(crate) config: ConfigFlag,
    /// The tunnel: server, client, or server-1, client-2 where there are several [default: by PostgreSQL's role]
    #[arg(long, value_name = "NAME")]
    pub(crate) tunnel: Option<String>,
    /// The cluster, as Debian names it: 15/main [default: found by itself]
    #[arg(long, value_name = "VERSION/NAME", conflicts_with = "pgdata")]
    pub(crate) cluster: Option<String>,
    /// The cluster's data directory
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Print the report as JSON (docs/doctor.md)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoFlags {
    /// End by itself after so many seconds of streaming [default: on Ctrl-C]
    #[arg(long, value_name = "N")]
    pub(crate) seconds: Option<u64>,
    /// Where PostgreSQL's programs are [default: found by itself]
    #[arg(long, value_name = "DIR")]
    pub(crate) bindir: Option<PathBuf>,
}
