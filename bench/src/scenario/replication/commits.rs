//! Commits that wait for a standby behind the tunnel: pgbench's TPC-B against the primary itself, so that what the
//! tunnel adds is the way to the standby and back.

use testbed::{Node, Stop};

use super::super::{Account, Outcome};
use super::address;
use super::cluster::{Files, client, finish, limited, primary};
use crate::cli::Peer;
use crate::contender::{Contender, Pki, Running};
use crate::measure::{Measure, Measures};
use crate::problem::{Doing, Problem};

/// Transactions at the same time, one cell each.
const CLIENTS: [u32; 2] = [1, 8];

/// A primary and a standby that follows through whatever it is told.
#[derive(Debug)]
pub(super) struct Commits {
    primary: Node,
    standby: Node,
    /// Of the standby, where it follows by TLS of its own.
    files: Files,
}

impl Commits {
    pub(super) fn prepare(pki: &Pki) -> Result<Self, Problem> {
        eprintln!("making a primary and a standby for pgbench");
        let primary = primary("commits", pki)?;
        let mut init = limited(client("pgbench"));
        finish(
            init.args(["-i", "-q", "-s", "10", &primary.conninfo()]),
            "pgbench -i",
        )?;
        primary
            .try_query("select pg_create_physical_replication_slot('standby')")
            .doing(|| "the standby's slot cannot be made".to_owned())?;
        let standby = Node::builder("standby").init_from_backup(&primary.conninfo());
        let files = Files::copy(&standby, &pki.client, pki)?;
        Ok(Self {
            primary,
            standby,
            files,
        })
    }

    pub(super) fn primary(&self) -> &Node {
        &self.primary
    }

    pub(super) fn measure(
        &mut self,
        running: &Running,
        contender: Contender,
        seconds: u32,
    ) -> Result<Vec<Outcome>, Problem> {
        let tls = match contender {
            Contender::Peer(Peer::Native) => self.files.conninfo(),
            _ => "sslmode=disable".to_owned(),
        };
        // The last primary_conninfo in the file counts.
        self.standby
            .set_standby(&address(running, &tls), Some("standby"));
        self.standby.start();
        let measured = self.measure_following(running, seconds);
        let unhooked = self.synchronous("");
        self.standby.stop(Stop::Fast);
        unhooked.and(measured)
    }

    fn measure_following(&self, running: &Running, seconds: u32) -> Result<Vec<Outcome>, Problem> {
        self.standby.catch_up_with(&self.primary);
        self.primary.wait_for_standby("standby");
        self.synchronous("standby")?;
        self.primary.poll_query_until(
            "select sync_state from pg_stat_replication where application_name = 'standby'",
            "sync",
        );
        CLIENTS
            .into_iter()
            .map(|clients| {
                let account = Account::open(running);
                let mut pgbench = limited(client("pgbench"));
                pgbench.args(["-n", "-c", &clients.to_string(), "-j", "1"]);
                pgbench.args(["-T", &seconds.to_string(), &self.primary.conninfo()]);
                let said = finish(&mut pgbench, "pgbench")?;
                let (tps, transactions) = figures(&said)
                    .ok_or_else(|| Problem::new("pgbench gives no figures").because(&said))?;
                let mut measures = account.close(
                    transactions,
                    1e6,
                    [
                        Measure::CpuPerTransaction,
                        Measure::CpuPerRoundTripServer,
                        Measure::CpuPerRoundTripClient,
                    ],
                );
                measures.retain(|measure, _| *measure == Measure::CpuPerTransaction);
                measures.extend(Measures::from([(Measure::TransactionsPerSecond, tps)]));
                Ok((
                    format!("pgbench, synchronous standby, clients: {clients}"),
                    measures,
                ))
            })
            .collect()
    }

    fn synchronous(&self, names: &str) -> Result<(), Problem> {
        let what = || "synchronous_standby_names cannot be set".to_owned();
        let sql = format!("alter system set synchronous_standby_names = '{names}'");
        self.primary.try_query(&sql).doing(what)?;
        self.primary
            .try_query("select pg_reload_conf()")
            .doing(what)
            .map(drop)
    }
}

/// Rate and number of transactions, from pgbench's closing lines.
fn figures(said: &str) -> Option<(f64, f64)> {
    let after = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key))?;
        let number = line.trim().split([' ', '/']).next()?;
        number.parse().ok()
    };
    let transactions = after("number of transactions actually processed:")?;
    Some((after("tps =")?, transactions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_pgbench_says() {
        let said = "number of transactions actually processed: 1234\nlatency average = 0.8 ms\n\
                    initial connection time = 3 ms\ntps = 617.25 (without initial connection time)";
        assert_eq!(figures(said), Some((617.25, 1234.0)));
        assert_eq!(figures(""), None);
    }
}
