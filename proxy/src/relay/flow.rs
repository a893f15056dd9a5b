//! What goes along with one direction: the tap, and towards the frontend the word to stop.

use std::ops::Range;

use super::{Farewell, Place, Stop, Tap};

pub(super) struct Flow<T> {
    tap: T,
    /// Towards the frontend alone: the backend is not ended by a word.
    stop: Option<Stop>,
    /// This direction knows that it is to end.
    told: bool,
}

impl<T: Tap> Flow<T> {
    pub(super) fn to_backend(tap: T) -> Self {
        Self {
            tap,
            stop: None,
            told: false,
        }
    }

    pub(super) fn to_frontend(tap: T, stop: Stop) -> Self {
        Self {
            tap,
            stop: Some(stop),
            told: false,
        }
    }

    /// Whether this direction has been told to end; true once. One look at a flag: nobody is woken for it, since the relay
    /// polls both directions when the word comes.
    pub(super) fn told(&mut self) -> bool {
        let said = self.stop.as_ref().and_then(Stop::farewell);
        if self.told || said.is_none() {
            return false;
        }
        self.told = true;
        true
    }

    /// What is to be said now: it was told to end, and stands between two messages.
    pub(super) fn words(&self) -> Option<Farewell> {
        let farewell = self.farewell()?;
        self.tap.at_boundary().then(|| farewell.clone())
    }

    /// Shows the payload to the tap. If this direction was told to end, cuts it behind the last whole message and
    /// gives what is to be said after that.
    pub(super) fn show(
        &mut self,
        bytes: &[u8],
        ranges: &mut Vec<Range<usize>>,
    ) -> Option<Farewell> {
        let boundary = self.tap.show(bytes, ranges);
        // A direction that is never without data never waits, where it would hear of it.
        self.told();
        let farewell = self.farewell()?;
        let Place { range, end } = boundary?;
        ranges.truncate(range + 1);
        if let Some(last) = ranges.last_mut() {
            last.end = end.min(last.end);
        }
        ranges.retain(|range| !range.is_empty());
        Some(farewell.clone())
    }

    pub(super) fn count(&self, bytes: usize) {
        self.tap.passed(bytes as u64);
    }

    fn farewell(&self) -> Option<&Farewell> {
        self.stop
            .as_ref()
            .filter(|_| self.told)
            .and_then(Stop::farewell)
    }
}

/// How many bytes of payload there are.
pub(super) fn total(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(ExactSizeIterator::len).sum()
}
