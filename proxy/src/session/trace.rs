//! The last minutes of a stream, so that whoever looks when something is wrong sees how it came. 2.4 KB for each
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

/// A sample in four words, what is not known as NaN: there are as many of them as streams times 150.
#[derive(Clone, Copy)]
struct Packed([f32; 4]);

impl From<Sample> for Packed {
    fn from(sample: Sample) -> Self {
        let Sample {
            rate,
            write,
            flush,
            apply,
        } = sample;
        Self([rate, of(write), of(flush), of(apply)])
    }
}

fn of(lag: Option<f32>) -> f32 {
    lag.unwrap_or(f32::NAN)
}

impl From<Packed> for Sample {
    fn from(Packed([rate, write, flush, apply]): Packed) -> Self {
        let known = |lag: f32| (!lag.is_nan()).then_some(lag);
        Self {
            rate,
            write: known(write),
            flush: known(flush),
            apply: known(apply),
        }
    }
}

/// Samples of one session, the oldest first; it takes no room before the first.
#[derive(Default)]
pub(crate) struct Trace(Mutex<VecDeque<Packed>>);

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
        samples.push_back(sample.into());
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.lock().iter().copied().map(Sample::from).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Packed>> {
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

    #[test]
    fn what_is_not_known_of_a_lag_stays_so() {
        let trace = Trace::default();
        trace.push(Sample {
            rate: 1.0,
            write: Some(0.0),
            flush: None,
            apply: Some(2.5),
        });
        let told: Vec<_> = trace.samples();
        assert_eq!(told[0].write, Some(0.0));
        assert_eq!((told[0].flush, told[0].apply), (None, Some(2.5)));
    }
}
