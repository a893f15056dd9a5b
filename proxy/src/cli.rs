//! The arguments, and nothing else.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use certs_tool::profile::{AltName, NodeName};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ClientFlags, Network, ServerFlags};
use crate::net::Target;

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
    /// Show what flows: sessions, positions, lag, certificates, warnings
    #[command(
        after_help = "Example:\n  pgtlsproxy status --watch\n\nAsks the running daemon through its status socket ([admin] socket)."
    )]
    Status(StatusFlags),
    /// Let a new node come: print one line for it, and wait until it has joined
    #[command(
        after_help = "Example:\n  pgtlsproxy invite standby1 --san standby1.example.com --from 203.0.113.7\n\nRun it beside the CA, as root. Without a name it lists the invitations that wait;\n`pgtlsproxy invite standby1 --withdraw` takes one back."
    )]
    Invite(InviteFlags),
    /// Become a node by the line that `invite` printed
    #[command(
        after_help = "Example:\n  pgtlsproxy join -        and paste the line, so that it stands in no list of processes\n\nMakes the key here; writes key, certificate, CA, CRL and configuration, all or nothing."
    )]
    Join(JoinFlags),
    /// Get the next certificate when it is due; beside the CA, sign what other nodes ask for
    #[command(
        after_help = "Example:\n  pgtlsproxy renew        from a timer or cron, on every node\n\nRun it as root. Asked for from a third of a certificate's life on.\nExit status: 0 done or nothing to do, 1 failed, 2 wrong usage."
    )]
    Renew(RenewFlags),
    /// Let a node go: revoke it, tell the others, end its sessions, drop its rule and its slot
    #[command(
        after_help = "Example:\n  pgtlsproxy remove standby1 --dry-run\n\nRun it on the CA's host, as root. A run that was interrupted is gone on with by the next.\nExit status: 0 done or nothing left to do, 1 something remains."
    )]
    Remove(RemoveFlags),
    /// Say why replication does not flow, layer by layer; changes nothing
    #[command(
        after_help = "Example:\n  pgtlsproxy doctor --cluster 15/main\n\nRun it as root or as PostgreSQL's OS user, on either host.\nExit status: 0 all well, 1 problems, 2 wrong usage, 3 warnings only."
    )]
    Doctor(DoctorFlags),
    /// Show it at work: a primary, a standby and two sidecars on this machine, streaming
    #[command(after_help = "Example:\n  pgtlsproxy demo --seconds 30")]
    Demo(DemoFlags),
    /// Write PostgreSQL's configuration and this node's own, or take back what was written
    #[command(subcommand)]
    Setup(SetupCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Make a PostgreSQL ready for standbys that come through the proxy
    #[command(
        after_help = "Example:\n  pgtlsproxy setup primary --standby standby1 --public db1.example.com:5443 --dry-run\n\nA second run changes nothing; `pgtlsproxy setup undo` puts everything back."
    )]
    Primary(Box<SetupPrimary>),
    /// Make this node's PostgreSQL a standby that streams: copy the primary through the proxy, write, start, wait
    #[command(
        after_help = "Example:\n  pgtlsproxy setup standby --replace\n  pgtlsproxy setup standby --from db2.example.com:5443 --rewind     an old primary comes back\n\nRun it as root on a node that has joined. A second run changes nothing, and takes up what was interrupted."
    )]
    Standby(Box<SetupStandby>),
    /// Put back every file that setup changed, and drop the slots that it made
    #[command(
        after_help = "Example:\n  pgtlsproxy setup undo\n  pgtlsproxy setup undo --bring-back     the data directory from before it was a standby, too"
    )]
    Undo(SetupUndo),
}

#[derive(Debug, Args)]
pub(crate) struct SetupPrimary {
    /// Debian's VERSION/NAME, for example 15/main [default: the only one on this host]
    #[arg(long, value_name = "VERSION/NAME", conflicts_with = "pgdata")]
    pub(crate) cluster: Option<String>,
    /// The data directory
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Where the proxy's own files go
    #[arg(long, value_name = "DIR", default_value = "/etc/pgtlsproxy")]
    pub(crate) dir: PathBuf,
    /// This node's name, in its certificate [default: the first label of --public]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What standbys dial [default: this host's name, port 5443]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) public: Option<String>,
    /// A standby to let in; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) standby: Vec<String>,
    /// The role by which standbys log in
    #[arg(long, default_value = "replicator")]
    pub(crate) role: String,
    /// The OS user that the proxy runs as
    #[arg(long, value_name = "USER", default_value = "pgtlsproxy")]
    pub(crate) os_user: String,
    /// Let the role do what pg_rewind needs
    #[arg(long)]
    pub(crate) rewind: bool,
    /// Let the slot-sync worker of a standby (17 and later) in
    #[arg(long)]
    pub(crate) slot_sync: bool,
    /// A database for logical replication; may be given again
    #[arg(long, value_name = "DB")]
    pub(crate) logical: Vec<String>,
    /// Replace `trust` for connections from this host; else it stops setup
    #[arg(long)]
    pub(crate) fix_trust: bool,
    /// The role logs in by a password, read from standard input, instead of by the proxy's OS user
    #[arg(long)]
    pub(crate) password: bool,
    /// Make slots before PostgreSQL 13, too, where nothing bounds what they keep
    #[arg(long)]
    pub(crate) slot: bool,
    /// Instead of the proxy, PostgreSQL's own TLS: its settings, and rules that demand a certificate
    #[arg(long, conflicts_with = "password")]
    pub(crate) external_tls: bool,
    /// With --external-tls: a network that may come; may be given again [default: all]
    #[arg(long, value_name = "CIDR", requires = "external_tls")]
    pub(crate) from: Vec<String>,
    /// Restart PostgreSQL where a setting needs it
    #[arg(long)]
    pub(crate) restart: bool,
    /// Show what would change, as a unified diff, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print what was done as JSON (docs/setup.md)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetupStandby {
    #[command(flatten)]
    pub(crate) made: StandbyFlags,
    /// Where the proxy's own files are
    #[arg(long, value_name = "DIR", default_value = "/etc/pgtlsproxy")]
    pub(crate) dir: PathBuf,
    /// Whom to follow from now on: the node's HOST:PORT [default: as the configuration says]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) from: Option<Target>,
    /// Bring an old primary back by pg_rewind instead of a whole copy
    #[arg(long, conflicts_with_all = ["replace", "config_only"])]
    pub(crate) rewind: bool,
    /// Take the copy of the primary that is there, and write its configuration
    #[arg(long, conflicts_with = "replace")]
    pub(crate) config_only: bool,
    /// Show what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print what was done as JSON (docs/setup.md)
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a standby is made; `join` takes these, too.
#[derive(Debug, Args)]
pub(crate) struct StandbyFlags {
    /// Debian's VERSION/NAME, for example 15/main [default: the only one on this host]
    #[arg(long, value_name = "VERSION/NAME", conflicts_with = "pgdata")]
    pub(crate) cluster: Option<String>,
    /// The data directory; it may be missing or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Where PostgreSQL's programs are [default: found by itself]
    #[arg(long, value_name = "DIR")]
    pub(crate) bindir: Option<PathBuf>,
    /// Move the data directory that is there aside, and copy the primary
    #[arg(long)]
    pub(crate) replace: bool,
    /// The role by which it logs in [default: as the rules of this node say, else replicator]
    #[arg(long)]
    pub(crate) role: Option<String>,
    /// The OS user that the proxy runs as
    #[arg(long, value_name = "USER", default_value = "pgtlsproxy")]
    pub(crate) os_user: String,
    /// The role logs in by a password, read from standard input
    #[arg(long)]
    pub(crate) password: bool,
    /// Use slots before PostgreSQL 13, too, where nothing bounds what they keep
    #[arg(long)]
    pub(crate) slot: bool,
    /// Replace `trust` for connections from this host; else it stops setup
    #[arg(long)]
    pub(crate) fix_trust: bool,
    /// Where a tablespace of the primary goes, as pg_basebackup has it; may be given again
    #[arg(long, value_name = "OLD=NEW")]
    pub(crate) tablespace_mapping: Vec<String>,
    /// Where WAL goes, if not into the data directory [default: where the old cluster has it]
    #[arg(long, value_name = "DIR")]
    pub(crate) waldir: Option<PathBuf>,
    /// How long it may take from the start of the server until it streams
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    pub(crate) within: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct SetupUndo {
    /// Where the proxy's own files are
    #[arg(long, value_name = "DIR", default_value = "/etc/pgtlsproxy")]
    pub(crate) dir: PathBuf,
    /// Move what was there before a standby was made back to its place; the standby is stopped and moved aside
    #[arg(long)]
    pub(crate) bring_back: bool,
    /// Print what was done as JSON (docs/setup.md)
    #[arg(long)]
    pub(crate) json: bool,
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

/// What a rule admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AllowKind {
    /// Physical replication: standbys, pg_basebackup
    Physical,
    /// Logical replication: subscriptions
    Logical,
    /// Ordinary connections: pg_rewind, slot sync, psql
    Ordinary,
}

impl AllowKind {
    /// As the configuration has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
            Self::Ordinary => "ordinary",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct InviteFlags {
    /// The new node's name; without it, the invitations that wait are listed
    pub(crate) name: Option<NodeName>,
    /// A name in its certificate, by which others reach it; may be repeated [default: its name]
    #[arg(long, value_name = "NAME")]
    pub(crate) san: Vec<AltName>,
    /// The networks or addresses that it comes from; may be repeated [default: any]
    #[arg(long, value_name = "CIDR")]
    pub(crate) from: Vec<Network>,
    /// What its rule admits; may be repeated [default: physical and logical replication]
    #[arg(long, value_name = "KIND")]
    pub(crate) allow: Vec<AllowKind>,
    /// Where it reaches this node; may be repeated [default: the name in our certificate and the port we listen on]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) public: Vec<Target>,
    /// How long the invitation waits
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    pub(crate) valid: Duration,
    /// The node of that name was made anew: what it had is revoked when it joins
    #[arg(long)]
    pub(crate) replace: bool,
    /// Where pgtlsproxy.toml is
    #[arg(long, value_name = "DIR", default_value = "/etc/pgtlsproxy")]
    pub(crate) dir: PathBuf,
    /// Where the CA is [default: pki in that directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) pki: Option<PathBuf>,
    /// Read the passphrase of the CA's key from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// List the invitations that wait
    #[arg(long)]
    pub(crate) list: bool,
    /// Take the invitation of that name back, and the rule that was written for it
    #[arg(long, requires = "name", conflicts_with_all = ["list", "replace"])]
    pub(crate) withdraw: bool,
    /// List them as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveFlags {
    /// The node's name, as `certs-tool list` shows it
    pub(crate) name: NodeName,
    /// Show what is left to do, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print one object on standard output: what was done, what remains
    #[arg(long)]
    pub(crate) json: bool,
    /// The PostgreSQL that has its slot, as Debian names it: 15/main [default: the one that setup was run for]
    #[arg(long, value_name = "VERSION/NAME", conflicts_with = "pgdata")]
    pub(crate) cluster: Option<String>,
    /// The same by its data directory
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Where pgtlsproxy.toml is
    #[arg(long, value_name = "DIR", default_value = "/etc/pgtlsproxy")]
    pub(crate) dir: PathBuf,
    /// Where the CA is [default: pki in that directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) pki: Option<PathBuf>,
    /// Read the passphrase of the CA's key from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct JoinFlags {
    /// The line that `pgtlsproxy invite` printed; `-`: from standard input
    pub(crate) token: String,
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value = "/etc/pgtlsproxy")]
    pub(crate) dir: PathBuf,
    /// Where other nodes' proxies connect: IP:PORT
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:5443")]
    pub(crate) listen: String,
    /// The local PostgreSQL: its Unix socket, or HOST:PORT on loopback
    #[arg(
        long,
        value_name = "ADDR|SOCKET",
        default_value = "/run/postgresql/.s.PGSQL.5432"
    )]
    pub(crate) postgres: String,
    /// Where the local PostgreSQL connects: a directory for the socket .s.PGSQL.5442 [default: /run/pgtlsproxy, or run
    /// in another --dir]
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// Replace the files of an earlier node
    #[arg(long)]
    pub(crate) force: bool,
    /// Only become a node: leave PostgreSQL alone
    #[arg(long)]
    pub(crate) no_setup: bool,
    #[command(flatten)]
    pub(crate) standby: StandbyFlags,
}

/// Without the token.
impl fmt::Debug for JoinFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinFlags")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Args)]
pub(crate) struct RenewFlags {
    #[command(flatten)]
    pub(crate) config: ConfigFlag,
    /// Where the CA is, if it is on this host [default: pki beside the configuration]
    #[arg(long, value_name = "DIR")]
    pub(crate) pki: Option<PathBuf>,
    /// Read the passphrase of the CA's key from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Wait so long for whoever signs, instead of leaving it to the next run
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct StatusFlags {
    #[command(flatten)]
    pub(crate) config: ConfigFlag,
    /// The daemon's status socket [default: as the configuration says]
    #[arg(long, value_name = "SOCKET", conflicts_with = "config")]
    pub(crate) socket: Option<PathBuf>,
    /// Print the whole snapshot as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every second
    #[arg(long)]
    pub(crate) watch: bool,
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
