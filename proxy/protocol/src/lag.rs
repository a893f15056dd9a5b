//! How long WAL takes to be written, flushed and applied: samples of what was sent when, read by the replies that
//! confirm it. The rule is that of PostgreSQL's walsender (LagTrackerWrite, LagTrackerRead and
//! ProcessStandbyReplyMessage in walsender.c), so that the figures are those of pg_stat_replication. Beyond it, a lag
//! that no reply measures any more goes on growing: a standby that says nothing must not look well.

use std::collections::VecDeque;

use crate::replication::{Clock, Lsn, StandbyStatusUpdate};

/// Samples that wait to be confirmed; every second one is dropped when there are more. PostgreSQL keeps 8192.
const MOST_SAMPLES: usize = 128;

/// What a standby confirms, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// Given to its operating system.
    Write,
    /// Safe on its disk.
    Flush,
    /// Visible to its queries.
    Apply,
}

impl Confirmed {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Write, Self::Flush, Self::Apply];

    /// The place of this one in a reply.
    #[must_use]
    pub const fn of(self, reply: &StandbyStatusUpdate) -> Lsn {
        match self {
            Self::Write => reply.written,
            Self::Flush => reply.flushed,
            Self::Apply => reply.applied,
        }
    }
}

/// WAL was sent up to here at this time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    lsn: Lsn,
    at: Clock,
}

/// What was sent and is not confirmed, and how long the last confirmation took.
#[derive(Debug, Default)]
pub struct LagTracker {
    samples: VecDeque<Sample>,
    /// Microseconds that samples are apart at least, since there were too many.
    apart: u64,
    heads: [Head; 3],
    last_reply: Option<StandbyStatusUpdate>,
}

/// How far one of the three confirmations is.
#[derive(Debug, Default)]
struct Head {
    /// Samples before this one are confirmed.
    next: usize,
    /// The last one confirmed, unless all are.
    before: Option<Sample>,
    lsn: Lsn,
    /// This client never confirms that: pg_receivewal applies nothing.
    silent: bool,
    /// Microseconds; as last measured by a reply.
    lag: Option<u64>,
}

impl LagTracker {
    /// WAL was sent up to `lsn`.
    pub fn sent(&mut self, lsn: Lsn, now: Clock) {
        if self.samples.back().is_some_and(|last| lsn <= last.lsn) {
            return;
        }
        if self.samples.is_empty() {
            self.apart = 0;
        }
        if self.samples.len() >= MOST_SAMPLES {
            self.thin();
        }
        let sample = Sample { lsn, at: now };
        let count = self.samples.len();
        let too_close = count
            .checked_sub(2)
            .and_then(|before| self.samples.get(before))
            .is_some_and(|before| since(before.at, now) < self.apart);
        // One that was confirmed stays: what comes after it is not.
        if too_close && self.heads.iter().all(|head| head.next < count) {
            self.samples.pop_back();
        }
        self.samples.push_back(sample);
    }

    /// Half the samples tell the same in less detail; those to come stand as far apart.
    fn thin(&mut self) {
        let mut odd = true;
        self.samples.retain(|_| {
            odd = !odd;
            !odd
        });
        for head in &mut self.heads {
            head.next = head.next.div_ceil(2);
        }
        if let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) {
            self.apart = since(first.at, last.at)
                .checked_div(MOST_SAMPLES as u64 / 2)
                .unwrap_or(0);
        }
    }

    /// The standby replied. `sent` is how far WAL was sent.
    pub fn replied(&mut self, reply: &StandbyStatusUpdate, sent: Lsn, now: Clock) {
        // Nothing moved since the reply before, and nothing is left to do: what was measured is of the past.
        let forget = reply.applied == sent
            && self.last_reply.is_some_and(|last| {
                Confirmed::ALL
                    .iter()
                    .all(|what| what.of(&last) == what.of(reply))
            });
        for (what, head) in Confirmed::ALL.iter().zip(&mut self.heads) {
            let lsn = what.of(reply);
            let measured = head.confirm(&self.samples, lsn, now);
            if measured.is_some() || forget {
                head.lag = measured;
            }
        }
        self.last_reply = Some(*reply);
        let passed_by_all = self.heads.iter().map(|head| head.next).min().unwrap_or(0);
        self.samples.drain(..passed_by_all);
        for head in &mut self.heads {
            head.next = head.next.saturating_sub(passed_by_all);
        }
    }

    /// Microseconds that WAL takes, or has taken so far, from being sent to being confirmed. `None` while nothing is
    /// under way and nothing has been for a while.
    #[must_use]
    pub fn lag(&self, what: Confirmed, now: Clock) -> Option<u64> {
        let head = match what {
            Confirmed::Write => self.heads.first(),
            Confirmed::Flush => self.heads.get(1),
            Confirmed::Apply => self.heads.get(2),
        }?;
        head.outstanding(&self.samples, now).or(head.lag)
    }
}

impl Head {
    /// Moves to what was confirmed; gives how long the last of it took.
    fn confirm(&mut self, samples: &VecDeque<Sample>, lsn: Lsn, now: Clock) -> Option<u64> {
        self.lsn = lsn;
        self.silent = lsn == Lsn(0);
        if self.silent {
            self.next = samples.len();
            self.before = None;
            return None;
        }
        let mut passed = None;
        while let Some(sample) = samples.get(self.next).filter(|sample| sample.lsn <= lsn) {
            passed = Some(*sample);
            self.next = self.next.saturating_add(1);
        }
        self.before = passed.or(self.before);
        if self.next == samples.len() {
            self.before = None;
        }
        match passed {
            Some(sample) => Some(since(sample.at, now)),
            None => self.outstanding(samples, now),
        }
    }

    /// How long ago what is confirmed last was sent, if more is under way.
    fn outstanding(&self, samples: &VecDeque<Sample>, now: Clock) -> Option<u64> {
        let next = samples.get(self.next).filter(|_| !self.silent)?;
        let at = match self.before {
            // It caught up before this burst, so the best that can be told is the lag if it ended now.
            None => next.at,
            Some(before) => between(before, *next, self.lsn)?,
        };
        Some(since(at, now))
    }
}

/// When `lsn` was sent, if WAL flowed evenly between two samples; `None` where places went backwards, as they may when
/// the timeline changes.
fn between(before: Sample, next: Sample, lsn: Lsn) -> Option<Clock> {
    let whole = next.lsn.0.checked_sub(before.lsn.0)?;
    let part = lsn.0.checked_sub(before.lsn.0)?;
    let time = u64::try_from(next.at.0.checked_sub(before.at.0)?).ok()?;
    let scaled = u128::from(time)
        .checked_mul(part.min(whole).into())?
        .checked_div(whole.into())?;
    let at = before.at.0.checked_add(i64::try_from(scaled).ok()?)?;
    Some(Clock(at))
}

/// A clock that was set back makes no time negative.
fn since(then: Clock, now: Clock) -> u64 {
    u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(written: u64, flushed: u64, applied: u64) -> StandbyStatusUpdate {
        StandbyStatusUpdate {
            written: Lsn(written),
            flushed: Lsn(flushed),
            applied: Lsn(applied),
            clock: Clock(0),
            reply_requested: false,
        }
    }

    fn lags(tracker: &LagTracker, now: i64) -> [Option<u64>; 3] {
        Confirmed::ALL.map(|what| tracker.lag(what, Clock(now)))
    }

    #[test]
    fn a_lag_is_the_time_from_sent_to_confirmed() {
        let mut tracker = LagTracker::default();
        assert_eq!(lags(&tracker, 5), [None; 3]);
        tracker.sent(Lsn(100), Clock(1_000));
        tracker.sent(Lsn(200), Clock(2_000));
        tracker.replied(&reply(200, 200, 100), Lsn(200), Clock(2_500));
        // What is applied was sent at 1000, and more is under way.
        assert_eq!(lags(&tracker, 2_500), [Some(500), Some(500), Some(1_500)]);
        tracker.replied(&reply(200, 200, 200), Lsn(200), Clock(2_600));
        assert_eq!(lags(&tracker, 9_000), [Some(500), Some(500), Some(600)]);
    }

    #[test]
    fn a_lag_is_forgotten_when_the_standby_has_nothing_left_to_do() {
        let mut tracker = LagTracker::default();
        tracker.sent(Lsn(100), Clock(1_000));
        tracker.replied(&reply(100, 100, 100), Lsn(100), Clock(1_100));
        assert_eq!(lags(&tracker, 1_100), [Some(100); 3]);
        tracker.replied(&reply(100, 100, 100), Lsn(100), Clock(11_100));
        assert_eq!(lags(&tracker, 11_100), [None; 3]);
    }

    #[test]
    fn a_standby_that_does_not_apply_lags_more_and_more() {
        let mut tracker = LagTracker::default();
        tracker.sent(Lsn(100), Clock(0));
        tracker.replied(&reply(100, 100, 100), Lsn(100), Clock(10));
        // Idle for long; then a burst, of which nothing is applied.
        tracker.sent(Lsn(200), Clock(10_000));
        for now in [10_010, 20_000, 30_000] {
            tracker.replied(&reply(200, 200, 100), Lsn(200), Clock(now));
            assert_eq!(lags(&tracker, now)[2], Some(now.unsigned_abs() - 10_000));
        }
        assert_eq!(lags(&tracker, 30_000)[..2], [Some(10), Some(10)]);
    }

    #[test]
    fn a_standby_that_says_nothing_lags_more_and_more() {
        let mut tracker = LagTracker::default();
        tracker.sent(Lsn(100), Clock(0));
        tracker.replied(&reply(100, 100, 100), Lsn(100), Clock(10));
        tracker.sent(Lsn(200), Clock(1_000));
        assert_eq!(lags(&tracker, 61_000), [Some(60_000); 3]);
    }

    #[test]
    fn a_part_of_what_was_sent_is_reckoned_between_samples() {
        let mut tracker = LagTracker::default();
        tracker.sent(Lsn(100), Clock(0));
        tracker.sent(Lsn(200), Clock(1_000));
        tracker.replied(&reply(100, 100, 100), Lsn(200), Clock(1_000));
        tracker.replied(&reply(150, 150, 100), Lsn(200), Clock(2_000));
        assert_eq!(
            lags(&tracker, 2_000),
            [Some(1_500), Some(1_500), Some(2_000)]
        );
    }

    #[test]
    fn many_samples_are_thinned_and_the_oldest_is_not_forgotten() {
        let mut tracker = LagTracker::default();
        tracker.sent(Lsn(1), Clock(0));
        tracker.replied(&reply(1, 1, 0), Lsn(1), Clock(0));
        for i in 1..100_000_u32 {
            tracker.sent(Lsn(u64::from(i) + 1), Clock(i.into()));
            assert!(tracker.samples.len() <= MOST_SAMPLES);
        }
        tracker.replied(&reply(50_000, 50_000, 0), Lsn(100_000), Clock(100_000));
        let lag = tracker.lag(Confirmed::Write, Clock(100_000)).unwrap();
        assert!((48_000..52_000).contains(&lag), "{lag}");
        tracker.sent(Lsn(200_000), Clock(100_001));
        assert_eq!(tracker.lag(Confirmed::Apply, Clock(200_000)), None);
    }
}
