//! Round trips at a fixed rate. The trap of coordinated omission is avoided by an open schedule: each round trip is
//! due at its time whatever became of the one before, and is timed from when it was due, not from when it could be
//! sent. A stall of 10 ms therefore counts against each of the 40 round trips that were due in it, as it would
//! against 40 commits, and not once, as it does where the next request waits for the last answer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

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
        let mut pace = Pace::new(frontend, self.interval).doing(what)?;
        pace.warm_up().doing(what)?;
        let (mut from_due, mut from_sent) = (histogram(), histogram());
        let account = Account::open(&running);
        pace.keep(self.time, &mut from_due, &mut from_sent)
            .doing(what)?;
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

/// Round trips of a session, each due at its time.
#[derive(Debug)]
pub(super) struct Pace {
    frontend: Frontend,
    interval: Duration,
    number: u64,
}

impl Pace {
    /// For a session that echoes; the schedule is kept by the thread that asks for it.
    pub(super) fn new(frontend: Frontend, interval: Duration) -> std::io::Result<Self> {
        // The kernel's usual slack of 50 µs would blur the schedule.
        nix::sys::prctl::set_timerslack(1)?;
        Ok(Self {
            frontend,
            interval,
            number: 0,
        })
    }

    fn round_trip(&mut self) -> std::io::Result<()> {
        self.number += 1;
        self.frontend.round_trip(self.number)
    }

    pub(super) fn warm_up(&mut self) -> std::io::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < WARM_UP {
            self.round_trip()?;
        }
        Ok(())
    }

    /// Goes on for this long; what each took from when it was due, and from when it was sent.
    pub(super) fn keep(
        &mut self,
        time: Duration,
        from_due: &mut Histogram<u64>,
        from_sent: &mut Histogram<u64>,
    ) -> std::io::Result<()> {
        let begun = Instant::now();
        let mut due = begun;
        while due < begun + time {
            wait_until(due);
            let sent = Instant::now();
            self.round_trip()?;
            from_due.saturating_record(due.elapsed().as_nanos() as u64);
            from_sent.saturating_record(sent.elapsed().as_nanos() as u64);
            due += self.interval;
        }
        Ok(())
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
