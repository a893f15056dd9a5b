//! Whether new sessions can be had, and on demand whether a replication stream flows: what `/readyz` answers. Whatever
//! stands in the way is told as a line of text, with the tunnels it concerns.

use std::collections::BTreeMap;
use std::fmt::Write;

use protocol::watch::Activity;

use crate::snapshot::{Facts, Kind};

/// Everything that is missing, a line each; empty: ready. `now` is in Unix seconds.
pub(super) fn missing(facts: &Facts, closing: bool, replication: bool, now: i64) -> String {
    let mut missing = String::new();
    if closing {
        missing.push_str("draining: it listens no more, and takes no new session [O10]\n");
    }
    for (problem, tunnels) in lapsed(facts, now) {
        let _ = writeln!(missing, "{}: {problem}", tunnels.join(", "));
    }
    if replication && !streams(facts) {
        let _ = writeln!(missing, "{}", no_stream(facts));
    }
    missing
}

/// Certificates, CAs and CRLs without which handshakes fail, each with the tunnels that go by it.
fn lapsed(facts: &Facts, now: i64) -> BTreeMap<String, Vec<String>> {
    let mut lapsed: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for tunnel in &facts.tunnels {
        let settings = tunnel.settings.borrow();
        let credentials = settings.credentials();
        for problem in credentials.iter().flat_map(|one| one.lapsed(now)) {
            let tunnels = lapsed.entry(problem.one_line()).or_default();
            tunnels.push(settings.name.to_string());
        }
    }
    lapsed
}

fn streams(facts: &Facts) -> bool {
    facts.registry.all().iter().any(|live| {
        live.watched.as_ref().is_some_and(|watched| {
            let watch = watched.lock();
            watch.activity() == Activity::Streaming
                && Kind::of(&live.about.startup, watch.stream()) != Kind::BaseBackup
        })
    })
}

fn no_stream(facts: &Facts) -> String {
    let replicate = facts.registry.all();
    let replicate = replicate.iter().filter(|live| live.watched.is_some());
    match replicate.count() {
        0 => "no replication stream: no session replicates [O11]".to_owned(),
        count => {
            format!("no replication stream: of {count} replication session(s) none streams [O11]")
        }
    }
}
