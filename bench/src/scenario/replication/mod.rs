//! Real PostgreSQL at both ends, of the version and with the libpq that this system has: `native` needs their TLS.
//!
//! Two primaries: one holds data and WAL to be carried away, the other takes commits that wait for a standby. Clients
//! are PostgreSQL's own, but for the receiver that discards, which is libpq in a few lines of Python.

mod cluster;
mod commits;
mod transfer;

use super::{Ground, Outcome, Scenario};
use crate::cli::{Peer, ReplicationWorkload};
use crate::contender::{Contender, Pki, Running};
use crate::problem::Problem;
use crate::wire::frontend::Frontend;
use cluster::Files;
use commits::Commits;
use transfer::Transfer;

const ALL: [ReplicationWorkload; 5] = [
    ReplicationWorkload::Wal,
    ReplicationWorkload::Backup,
    ReplicationWorkload::Basebackup,
    ReplicationWorkload::Receivewal,
    ReplicationWorkload::Pgbench,
];

/// Servers are made at the first cell and kept.
#[derive(Debug)]
pub(super) struct Replication {
    mib: u32,
    seconds: u32,
    workloads: Vec<ReplicationWorkload>,
    transfer: Option<Transfer>,
    commits: Option<Commits>,
}

impl Replication {
    pub(super) fn new(mib: u32, seconds: u32, only: &[ReplicationWorkload]) -> Self {
        let workloads = ALL.into_iter();
        let workloads = workloads.filter(|workload| only.is_empty() || only.contains(workload));
        Self {
            mib: mib.max(64),
            seconds: seconds.max(1),
            workloads: workloads.collect(),
            transfer: None,
            commits: None,
        }
    }
}

impl Scenario for Replication {
    fn name(&self) -> &'static str {
        "replication"
    }

    fn method(&self) -> String {
        format!(
            "PostgreSQL 15 at both ends, in one machine, fsync off (a disk would hide what the tunnel adds), TCP on \
             loopback. {} MiB of data and as much WAL, in the page cache. WAL is taken by a libpq receiver that \
             discards it and by pg_receivewal to memory (the segments are compared with the primary's); base backups \
             by pg_basebackup to /dev/null and to memory (then verified by pg_verifybackup). pgbench is TPC-B for {} s \
             with synchronous_commit = on and a standby behind the tunnel. CPU of the whole machine includes both \
             PostgreSQLs. native is their own TLS 1.3 with certificates on both sides.",
            self.mib, self.seconds
        )
    }

    fn excludes(&self, contender: Contender) -> Option<&'static str> {
        let target = matches!(contender, Contender::Target(_));
        target.then_some(
            "replication starts its own PostgreSQLs, so it cannot use a tunnel that already runs",
        )
    }

    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem> {
        let pki = &ground.workshop.pki;
        let mut outcomes = Vec::new();
        for &workload in &self.workloads {
            let outcome = if workload == ReplicationWorkload::Pgbench {
                let commits = match self.commits.take() {
                    Some(commits) => commits,
                    None => Commits::prepare(pki)?,
                };
                let commits = self.commits.insert(commits);
                let running = before(ground, contender, commits.primary())?;
                commits.measure(&running, contender, self.seconds)?
            } else {
                let transfer = match self.transfer.take() {
                    Some(transfer) => transfer,
                    None => Transfer::prepare(pki, self.mib)?,
                };
                let transfer = self.transfer.insert(transfer);
                let running = before(ground, contender, transfer.primary())?;
                let conninfo = conninfo(&running, contender, pki);
                vec![transfer.measure(&running, &conninfo, workload)?]
            };
            outcomes.extend(outcome);
        }
        Ok(outcomes)
    }
}

/// Starts a contender before a server.
fn before(
    ground: &Ground,
    contender: Contender,
    primary: &testbed::Node,
) -> Result<Running, Problem> {
    let mut running = contender.launch(&ground.workshop, primary.address())?;
    running.wait_until(contender.name(), |entry| {
        Frontend::connect(entry)?.terminate()
    })?;
    Ok(running)
}

/// How a client of PostgreSQL takes this way, as the user that runs the bench.
fn conninfo(running: &Running, contender: Contender, pki: &Pki) -> String {
    let tls = match contender {
        Contender::Peer(Peer::Native) => Files {
            cert: pki.client.with_extension("crt"),
            key: pki.client.with_extension("key"),
            ca: pki.ca.clone(),
        }
        .conninfo(),
        _ => "sslmode=disable".to_owned(),
    };
    address(running, &tls)
}

fn address(running: &Running, tls: &str) -> String {
    let (host, port) = (running.entry.ip(), running.entry.port());
    format!("host={host} port={port} user=postgres gssencmode=disable {tls}")
}
