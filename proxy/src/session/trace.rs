//! The last minutes of a stream, so that whoever looks when something is wrong sees how it came. A few KiB for each
//! stream, and only where somebody may ask for them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::lag::Confirmed;
use protocol::replication::Clock;
use protocol::watch::{Activity, Watch};

use super::meter::Rates;

/// Seconds between two samples: `Trace::take` is called so often.
pub(crate) const EVERY_SECONDS: u64 = 2;
/// Five minutes.
const SAMPLES: usize = 150;

/// How it flowed at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Bytes a second, both ways together.
    pub(crate) rate: f32,
    /// Seconds; None where nothing lags, or where that is not known.
    pub(crate) write: Option<f32>,
    pub(crate) flush: Option<f32>,
    pub(crate) apply: Option<f32>,
}

/// Samples of one session, the oldest first; it takes no room before the first.
#[derive(Default)]
pub(crate) struct Trace(Mutex<VecDeque<Sample>>);

impl Trace {
    /// Remembers how a stream flows now; what does not stream is not remembered.
    pub(super) fn take(&self, watch: &Watch, rates: Rates, now: Clock) {
        let Some(stream) = watch.stream() else {
            return;
        };
        if watch.activity() == Activity::Idle {
            return;
        }
        let lag = |what| stream.lag(what, now).map(|micros| micros as f32 / 1e6);
        let sample = Sample {
            rate: (rates.to_upstream + rates.to_downstream) as f32,
            write: lag(Confirmed::Write),
            flush: lag(Confirmed::Flush),
            apply: lag(Confirmed::Apply),
        };
        self.push(sample);
    }

    fn push(&self, sample: Sample) {
        let mut samples = self.lock();
        if samples.capacity() == 0 {
            samples.reserve_exact(SAMPLES);
        }
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        // Whole at every moment, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_samples_stay_and_take_no_more_room() {
        let trace = Trace::default();
        assert_eq!(trace.lock().capacity(), 0);
        for rate in 0..1_000_u16 {
            trace.push(Sample {
                rate: rate.into(),
                write: None,
                flush: None,
                apply: None,
            });
        }
        let rates: Vec<_> = trace.samples().iter().map(|sample| sample.rate).collect();
        assert_eq!((rates.len(), rates[0], rates[149]), (150, 850.0, 999.0));
        assert_eq!(trace.lock().capacity(), SAMPLES);
    }
}
