//! What goes along with one direction: the count, the tap, and towards the frontend the word to stop.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Farewell, Place, Stop, Tap};

pub(super) struct Flow<'a, T> {
    count: &'a AtomicU64,
    tap: T,
    /// Towards the frontend alone: the backend is not ended by a word.
    stop: Option<Stopping>,
}

struct Stopping {
    stop: Stop,
    farewell: Option<Farewell>,
}

impl<'a, T: Tap> Flow<'a, T> {
    pub(super) fn to_backend(count: &'a AtomicU64, tap: T) -> Self {
        Self {
            count,
            tap,
            stop: None,
        }
    }

    pub(super) fn to_frontend(count: &'a AtomicU64, tap: T, stop: Stop) -> Self {
        Self {
            count,
            tap,
            stop: Some(Stopping {
                stop,
                farewell: None,
            }),
        }
    }

    /// Whether this direction has been told to end; true once. Nobody is woken for it: the relay polls both directions when
    /// the word comes.
    pub(super) fn told(&mut self) -> bool {
        match &mut self.stop {
            Some(stopping) if stopping.farewell.is_none() => {
                stopping.farewell = stopping.stop.told_now();
                stopping.farewell.is_some()
            }
            _ => false,
        }
    }

    /// What is to be said now: it was told to end, and stands between two messages.
    pub(super) fn words(&self) -> Option<Farewell> {
        let farewell = self.stop.as_ref()?.farewell.as_ref()?;
        self.tap.at_boundary().then(|| Farewell::clone(farewell))
    }

    /// Shows the payload to the tap. If this direction was told to end, cuts it behind the last whole message and
    /// gives what is to be said after that.
    pub(super) fn show(
        &mut self,
        bytes: &[u8],
        ranges: &mut Vec<Range<usize>>,
    ) -> Option<Farewell> {
        let boundary = self.tap.show(bytes, ranges);
        let farewell = self.stop.as_ref()?.farewell.as_ref()?;
        let Place { range, end } = boundary?;
        ranges.truncate(range + 1);
        if let Some(last) = ranges.last_mut() {
            last.end = end.min(last.end);
        }
        ranges.retain(|range| !range.is_empty());
        Some(Farewell::clone(farewell))
    }

    pub(super) fn count(&self, bytes: usize) {
        self.count.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How many bytes of payload there are.
pub(super) fn total(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(ExactSizeIterator::len).sum()
}
