//! The sidecar `pgtlsproxy`. The map, one line per room; ARCHITECTURE.md tells the story.

mod admin; // answers who asks what flows
mod cli; // arguments, and nothing else
mod commands; // one per subcommand: gather, decide, show
mod config; // as written, then as meant
mod control; // the socket through which commands ask the daemon
mod daemon; // starts tunnels and reload; signals; drain
mod demo; // the main job, shown on this machine
mod directories; // where a daemon's sockets are, and what it keeps
mod doctor; // why replication does not flow
mod enrol; // a node comes: invitation and token, invite and join
mod flood; // keeps refused connections from flooding the log
mod health; // what deserves a look in the running process
mod interrupt; // Ctrl-C, for a command that has to clear away
mod lifetime; // warns before certificates end, and ends their sessions where asked
mod logging; // where the log goes
mod memory; // goes back to the system when many connections have ended
mod net; // sockets: listen, dial, options, liveness
mod node; // the node channel: both ends of enrol, renew, crl, probe
mod problem; // what is wrong before any connection: what, why, what to do
mod relay; // both directions of a joined session
mod reload; // checks, then publishes
mod remove; // a node goes: remove
mod renew; // the next certificate: asked for, signed, put in place
mod replace; // a file of this node, whole
mod session; // one connection from accept to close
mod setup; // PostgreSQL's configuration: read, planned, applied, undone
mod slices; // long work beside the sessions, so that they do not notice
mod snapshot; // what flows, at one moment, as one value
mod systemd; // what systemd is told
mod tls; // the only room that speaks rustls
mod tunnel; // one listener
mod turn; // one command at a time in a node's directory
mod waiting; // the handshakes under way, bounded
mod watch; // what files hold, so that a change is noticed
mod workers; // the threads that serve connections

use std::process::ExitCode;

use clap::Parser;

/// The records, for `proxy/fuzz` and the micro-benchmarks.
#[cfg(feature = "trial")]
pub mod trial {
    pub use crate::relay::trial::{Filled, Measured, contend_by};
}

/// Parses the arguments, runs the command, prints the error. The whole program behind a thin `main`.
pub fn main() -> ExitCode {
    match commands::run(cli::Cli::parse()) {
        Ok(status) => status,
        Err(problems) => {
            for problem in problems {
                logging::say(tracing::Level::ERROR, &format!("pgtlsproxy: {problem}"));
            }
            ExitCode::FAILURE
        }
    }
}
