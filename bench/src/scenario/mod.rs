//! What is done to a contender. A scenario measures one cell at a time: it starts the contender, warms it up, takes
//! the processes' account before and after, and ends it, so that nothing of one cell is left in the next.

mod connect;
mod idle;
mod latency;
mod replication;
mod scrape;
mod throughput;

use crate::cli::{Measurement, Peer};
use crate::contender::{Contender, Running, Side, Workshop};
use crate::measure::{Measure, Measures};
use crate::problem::Problem;
use crate::wire::backend::Backend;

/// The built-in backend, programs and certificates: what all cells share.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) workshop: Workshop,
    pub(crate) backend: Backend,
}

/// What one workload of a cell brought.
pub(crate) type Outcome = (String, Measures);

/// One of the six.
pub(crate) trait Scenario {
    /// As on the command line.
    fn name(&self) -> &'static str;

    /// How it was measured, for the report.
    fn method(&self) -> String;

    /// What this contender cannot take part in, and why.
    fn excludes(&self, contender: Contender) -> Option<&'static str> {
        let native = contender == Contender::Peer(Peer::Native);
        native.then_some(
            "native is PostgreSQL's own TLS; the built-in backend has none (see `replication`)",
        )
    }

    /// Whether ours answer monitoring meanwhile, with the page's history of each session. By default they do not.
    fn is_monitored(&self) -> bool {
        false
    }

    /// Measures once.
    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem>;
}

pub(crate) fn of(measurement: &Measurement) -> Box<dyn Scenario> {
    match measurement {
        Measurement::Throughput { gib, seconds, .. } => {
            Box::new(throughput::Throughput::new(*gib, *seconds))
        }
        Measurement::Latency { rate, seconds, .. } => {
            Box::new(latency::Latency::new(*rate, *seconds))
        }
        Measurement::Connect {
            at_once, seconds, ..
        } => Box::new(connect::Connect::new(*at_once, *seconds)),
        Measurement::Idle { sessions, .. } => Box::new(idle::Idle::new(*sessions)),
        Measurement::Scrape {
            sessions,
            rate,
            seconds,
            ..
        } => Box::new(scrape::Scrape::new(*sessions, *rate, *seconds)),
        Measurement::Replication {
            mib, seconds, only, ..
        } => Box::new(replication::Replication::new(*mib, *seconds, only)),
    }
}

/// Processor time of a tunnel's sides over a stretch of work.
struct Account<'a> {
    running: &'a Running,
    before: [Option<f64>; 2],
}

impl<'a> Account<'a> {
    const SIDES: [Side; 2] = [Side::Server, Side::Client];

    fn open(running: &'a Running) -> Self {
        let before = Self::SIDES.map(|side| running.usage(side).map(|usage| usage.cpu));
        Self { running, before }
    }

    /// CPU seconds of the server's side and the client's since it was opened. None where there are no processes.
    fn spent(&self) -> [Option<f64>; 2] {
        let after = Self::open(self.running).before;
        [0, 1].map(|side| Some(after[side]? - self.before[side]?))
    }

    /// CPU seconds per unit of work, times `scale`: both sides, server, client. Nothing where there are no processes.
    fn close(self, work: f64, scale: f64, measures: [Measure; 3]) -> Measures {
        per_unit(self.spent(), scale / work, measures)
    }
}

/// CPU seconds of the server's side and the client's, times `scale`: both together, server, client.
fn per_unit(spent: [Option<f64>; 2], scale: f64, [both, server, client]: [Measure; 3]) -> Measures {
    let sides = [server, client].into_iter().zip(spent);
    let mut measures: Measures = sides
        .filter_map(|(measure, spent)| Some((measure, spent? * scale)))
        .collect();
    if !measures.is_empty() {
        measures.insert(both, measures.values().sum());
    }
    measures
}
