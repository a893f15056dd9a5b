//! New connections: TCP, TLS with certificates on both sides, startup, authentication, the end.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{Account, Ground, Outcome, Scenario};
use crate::contender::Contender;
use crate::measure::{Measure, histogram, micros};
use crate::problem::{Doing, Problem};
use crate::wire::frontend::Frontend;

#[derive(Debug)]
pub(super) struct Connect {
    at_once: u32,
    time: Duration,
}

impl Connect {
    pub(super) fn new(at_once: u32, seconds: f64) -> Self {
        Self {
            at_once,
            time: Duration::from_secs_f64(seconds.clamp(0.1, 600.0)),
        }
    }
}

impl Scenario for Connect {
    fn name(&self) -> &'static str {
        "connect"
    }

    fn method(&self) -> String {
        format!(
            "A connection begins with TCP, ends its startup with ReadyForQuery and is then ended by Terminate; no TLS \
             session is resumed. As many as fit into {} s, one at a time, then {} at a time. The key exchange is each \
             contender's own default: ours is a hybrid with ML-KEM.",
            self.time.as_secs_f64(),
            self.at_once
        )
    }

    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem> {
        let running = contender.start(&ground.workshop, ground.backend.address())?;
        let mut outcomes = Vec::new();
        let mut runs = vec![1, self.at_once];
        runs.dedup();
        for at_once in runs {
            let account = Account::open(&running);
            let begun = Instant::now();
            let times = connect_for(running.entry, at_once, begun + self.time)
                .doing(|| format!("connections through {} fail", contender.name()))?;
            let seconds = begun.elapsed().as_secs_f64();
            let count = times.len() as f64;
            let mut measures = account.close(
                count,
                1e3,
                [
                    Measure::CpuPerConnection,
                    Measure::CpuPerConnectionServer,
                    Measure::CpuPerConnectionClient,
                ],
            );
            measures.insert(Measure::ConnectionsPerSecond, count / seconds);
            measures.insert(Measure::P50, micros(&times, 50.0));
            measures.insert(Measure::P99, micros(&times, 99.0));
            outcomes.push((format!("connections, {at_once} at a time"), measures));
        }
        Ok(outcomes)
    }
}

fn connect_for(entry: SocketAddr, at_once: u32, end: Instant) -> io::Result<Histogram<u64>> {
    let one = || -> io::Result<Histogram<u64>> {
        let mut times = histogram();
        while Instant::now() < end {
            let begun = Instant::now();
            let frontend = Frontend::connect(entry)?;
            times.saturating_record(begun.elapsed().as_nanos() as u64);
            frontend.terminate()?;
        }
        Ok(times)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(one)).collect();
        let mut all = histogram();
        for thread in threads {
            let times = thread
                .join()
                .map_err(|_| io::Error::other("a thread of the load failed"))??;
            all.add(times).map_err(io::Error::other)?;
        }
        Ok(all)
    })
}
