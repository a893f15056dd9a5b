//! How fast bytes flow: what is reckoned of a session beside its counters.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::relay::Traffic;

/// Seconds over which a rate is averaged: it has nearly forgotten what was three times as long ago.
const OVER: f64 = 3.0;

/// The rates of one session, smoothed over the last seconds.
pub(crate) struct Meter(Mutex<Reading>);

struct Reading {
    at: Instant,
    to_upstream: u64,
    to_downstream: u64,
    rates: Rates,
}

/// Bytes a second, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) to_upstream: f64,
    pub(crate) to_downstream: f64,
}

impl Meter {
    /// Of a session that begins now: what flows before the first tick counts, too.
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Reading {
            at: now,
            to_upstream: 0,
            to_downstream: 0,
            rates: Rates::default(),
        }))
    }

    /// Reads the counters; called about once a second.
    pub(crate) fn tick(&self, traffic: &Traffic, now: Instant) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (up, down) = (traffic.to_upstream(), traffic.to_downstream());
        let seconds = now.saturating_duration_since(last.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let weight = 1.0 - (-seconds / OVER).exp();
        let smooth = |rate: f64, bytes: u64| rate + (bytes as f64 / seconds - rate) * weight;
        last.rates = Rates {
            to_upstream: smooth(last.rates.to_upstream, up.saturating_sub(last.to_upstream)),
            to_downstream: smooth(
                last.rates.to_downstream,
                down.saturating_sub(last.to_downstream),
            ),
        };
        (last.at, last.to_upstream, last.to_downstream) = (now, up, down);
    }

    pub(crate) fn rates(&self) -> Rates {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rates
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_follows_within_seconds() {
        let start = Instant::now();
        let (meter, traffic) = (Meter::new(start), Traffic::default());
        for second in 0..15 {
            meter.tick(&traffic, start + Duration::from_secs(second));
            traffic.count_to_downstream(1_000);
        }
        let rates = meter.rates();
        assert!((950.0..1_001.0).contains(&rates.to_downstream), "{rates:?}");
        assert!(rates.to_upstream.abs() < f64::EPSILON);
    }

    #[test]
    fn what_flows_before_the_first_tick_counts() {
        let start = Instant::now();
        let (meter, traffic) = (Meter::new(start), Traffic::default());
        traffic.count_to_downstream(1_000_000);
        meter.tick(&traffic, start + Duration::from_millis(300));
        assert!(meter.rates().to_downstream > 100_000.0);
    }
}
