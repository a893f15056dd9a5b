//! The arguments, and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Load and comparison for pgtlsproxy: what a tunnel costs, beside its peers, in turn on one machine.
#[derive(Debug, Parser)]
#[command(name = "pgtlsproxy-bench", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Measure(Measurement),
    /// Serve as the far end of a tunnel that is loaded with --target from another host
    #[command(
        after_help = "Example:\n  pgtlsproxy-bench backend --listen 127.0.0.1:5499\n  and in the tunnel's server: postgres = \"127.0.0.1:5499\""
    )]
    Backend(BackendFlags),
    /// Forward TCP without TLS: the contender `plain`
    #[command(hide = true)]
    PlainRelay(PlainRelayFlags),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Measurement {
    /// Stream WAL, as a walsender that catches up: CPU per GiB and rate
    #[command(
        after_help = "Example:\n  pgtlsproxy-bench throughput --against direct,plain,nginx,haproxy,stunnel --report report"
    )]
    Throughput {
        #[command(flatten)]
        common: Common,
        /// GiB per cell
        #[arg(long, value_name = "N", default_value_t = 2.0)]
        gib: f64,
        /// Seconds a cell may last at most
        #[arg(long, value_name = "N", default_value_t = 20.0)]
        seconds: f64,
    },
    /// Round trips of 64 bytes at a fixed rate, timed from when each was due
    #[command(
        after_help = "Example:\n  pgtlsproxy-bench latency --against direct,nginx --rate 4000"
    )]
    Latency {
        #[command(flatten)]
        common: Common,
        /// Round trips due per second
        #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// Seconds per cell
        #[arg(long, value_name = "N", default_value_t = 3.0)]
        seconds: f64,
    },
    /// New connections, full mutual handshakes: CPU per connection
    #[command(after_help = "Example:\n  pgtlsproxy-bench connect --against nginx,haproxy")]
    Connect {
        #[command(flatten)]
        common: Common,
        /// Connections made at the same time, in a second cell beside one at a time
        #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
        at_once: u32,
        /// Seconds per cell
        #[arg(long, value_name = "N", default_value_t = 2.0)]
        seconds: f64,
    },
    /// Sessions that are open and silent: memory per session
    #[command(
        after_help = "Example:\n  pgtlsproxy-bench idle --against nginx,haproxy --sessions 5000"
    )]
    Idle {
        #[command(flatten)]
        common: Common,
        /// Sessions opened
        #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        sessions: u32,
    },
    /// Monitoring of many sessions: what an answer costs, and whether a round trip beside it notices
    #[command(after_help = "Example:\n  pgtlsproxy-bench scrape --sessions 1000 --report report")]
    Scrape {
        #[command(flatten)]
        common: Common,
        /// Replication sessions that are open meanwhile, each with a status update every 10 s
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        sessions: u32,
        /// Round trips due per second
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// Seconds of a window; a cell has eight: two for each path, and four without scrapes
        #[arg(long, value_name = "N", default_value_t = 5.0)]
        seconds: f64,
    },
    /// Real PostgreSQL: base backup, pg_receivewal, a discarding receiver, commits that wait for a standby
    #[command(
        after_help = "Example:\n  pgtlsproxy-bench replication --against direct,native,nginx --repetitions 5 --report report"
    )]
    Replication {
        #[command(flatten)]
        common: Common,
        /// MiB of data in the primary, and of WAL per cell
        #[arg(long, value_name = "N", default_value_t = 1024)]
        mib: u32,
        /// Seconds of pgbench per cell
        #[arg(long, value_name = "N", default_value_t = 10)]
        seconds: u32,
        /// Only these workloads [default: all]
        #[arg(long, value_delimiter = ',', value_name = "WORKLOAD,...")]
        only: Vec<ReplicationWorkload>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReplicationWorkload {
    /// WAL from a walsender to a receiver that throws it away
    Wal,
    /// A base backup that is thrown away
    Backup,
    /// pg_basebackup to memory
    Basebackup,
    /// pg_receivewal to memory
    Receivewal,
    /// pgbench while a synchronous standby follows through the tunnel
    Pgbench,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Whom to measure beside ours, in turn
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "CONTENDER,...",
        default_value = "direct,nginx"
    )]
    pub(crate) against: Vec<Peer>,
    /// Our relay's modes to measure, each as a contender of its own
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "MODE,...",
        default_value = "default"
    )]
    pub(crate) records: Vec<Records>,
    /// Rounds; in each every contender is measured once, in another order
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,
    /// Write DIR/index.html, and every cell as it is measured to DIR/cells.jsonl; further scenarios may share DIR
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Print every cell as a line of JSON instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Whom ratios refer to [default: nginx where it takes part, else direct]
    #[arg(long, value_name = "CONTENDER")]
    pub(crate) base: Option<Peer>,
    /// Where pgtlsproxy and certs-tool are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin: Option<PathBuf>,
    /// Load a tunnel that already runs, nothing else; its far end must be `pgtlsproxy-bench backend`
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["against", "base", "records"])]
    pub(crate) target: Option<String>,
}

/// Who can be measured beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// No proxy at all
    Direct,
    /// Two relays of the same loop as ours, without TLS: the floor
    Plain,
    /// PostgreSQL's own TLS (replication only)
    Native,
    /// Two stunnels
    Stunnel,
    /// Two haproxies
    Haproxy,
    /// Two nginxes with the stream module
    Nginx,
}

/// Who opens and seals TLS records in our relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Records {
    /// What pgtlsproxy does without being told
    Default,
    /// rustls
    Rustls,
    /// The relay itself, where they lie
    InPlace,
}

#[derive(Debug, Args)]
pub(crate) struct BackendFlags {
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5499")]
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct PlainRelayFlags {
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    #[arg(long)]
    pub(crate) connect: SocketAddr,
}

impl Measurement {
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Throughput { common, .. }
            | Self::Latency { common, .. }
            | Self::Connect { common, .. }
            | Self::Idle { common, .. }
            | Self::Scrape { common, .. }
            | Self::Replication { common, .. } => common,
        }
    }
}
