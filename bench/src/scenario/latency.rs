//! Round trips at a fixed rate. The trap of coordinated omission is avoided by an open schedule: each round trip is
//! due at its time whatever became of the one before, and is timed from when it was due, not from when it could be
//! sent. A stall of 10 ms therefore counts against each of the 40 round trips that were due in it, as it would
//! against 40 commits, and not once, as it does where the next request waits for the last answer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Account, Ground, Outcome, Scenario};
use crate::contender::Contender;
use crate::measure::{Measure, histogram, micros};
use crate::problem::{Doing, Problem};
use crate::wire::Wish;
use crate::wire::frontend::Frontend;

/// A sleeping thread wakes late; the last moment is awaited awake, lest the clock's error be counted as the tunnel's.
const AWAKE: Duration = Duration::from_micros(60);
/// Of round trips before the clock starts.
const WARM_UP: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) struct Latency {
    interval: Duration,
    time: Duration,
}

impl Latency {
    pub(super) fn new(rate: u32, seconds: f64) -> Self {
        Self {
            interval: Duration::from_secs(1) / rate,
            time: Duration::from_secs_f64(seconds.clamp(0.1, 3600.0)),
        }
    }
}

impl Scenario for Latency {
    fn name(&self) -> &'static str {
        "latency"
    }

    fn method(&self) -> String {
        format!(
            "One session. A status update of 39 bytes goes up, XLogData of 64 bytes comes back. One is due every {} µs \
             for {} s and is timed from when it was due, whatever became of the one before (no coordinated omission); \
             `p99 from sending` is what a closed loop would have said. Percentiles by HdrHistogram, three digits.",
            self.interval.as_micros(),
            self.time.as_secs_f64()
        )
    }

    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem> {
        let running = contender.start(&ground.workshop, ground.backend.address())?;
        let what = || format!("round trips through {} fail", contender.name());
        let mut frontend = Frontend::connect(running.entry).doing(what)?;
        frontend.replicate(Wish::Echo).doing(what)?;
        // The kernel's usual slack of 50 µs would blur the schedule.
        nix::sys::prctl::set_timerslack(1).doing(what)?;

        let begun = Instant::now();
        let mut number = 0;
        while begun.elapsed() < WARM_UP {
            frontend.round_trip(number).doing(what)?;
            number += 1;
        }
        let (mut from_due, mut from_sent) = (histogram(), histogram());
        let account = Account::open(&running);
        let begun = Instant::now();
        let mut due = begun;
        while due < begun + self.time {
            wait_until(due);
            let sent = Instant::now();
            frontend.round_trip(number).doing(what)?;
            from_due.saturating_record(due.elapsed().as_nanos() as u64);
            from_sent.saturating_record(sent.elapsed().as_nanos() as u64);
            number += 1;
            due += self.interval;
        }
        let mut measures = account.close(
            from_due.len() as f64,
            1e6,
            [
                Measure::CpuPerRoundTrip,
                Measure::CpuPerRoundTripServer,
                Measure::CpuPerRoundTripClient,
            ],
        );
        for (measure, percentile) in [
            (Measure::P50, 50.0),
            (Measure::P99, 99.0),
            (Measure::P999, 99.9),
            (Measure::Max, 100.0),
        ] {
            measures.insert(measure, micros(&from_due, percentile));
        }
        measures.insert(Measure::AsSentP99, micros(&from_sent, 99.0));
        Ok(vec![("round trips of 64 bytes".to_owned(), measures)])
    }
}

fn wait_until(due: Instant) {
    if let Some(early) = due.checked_duration_since(Instant::now() + AWAKE) {
        sleep(early);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}
