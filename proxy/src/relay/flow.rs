//! What goes along with one direction: the count, and towards the frontend the tap and the word to stop.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Farewell, Stop, Tap};

pub(super) struct Flow<'a, T> {
    count: &'a AtomicU64,
    frontend: Option<Frontend<T>>,
}

struct Frontend<T> {
    tap: T,
    stop: Stop,
    farewell: Option<Farewell>,
}

impl<'a, T: Tap> Flow<'a, T> {
    /// The direction towards the backend, which nobody looks at and which is not ended by a word.
    pub(super) fn to_backend(count: &'a AtomicU64) -> Self {
        Self {
            count,
            frontend: None,
        }
    }

    pub(super) fn to_frontend(count: &'a AtomicU64, tap: T, stop: Stop) -> Self {
        Self {
            count,
            frontend: Some(Frontend {
                tap,
                stop,
                farewell: None,
            }),
        }
    }

    /// Completes when this direction is told to end; once.
    pub(super) async fn told(&mut self) {
        match &mut self.frontend {
            Some(frontend) if frontend.farewell.is_none() => {
                frontend.farewell = Some(frontend.stop.told().await);
            }
            _ => std::future::pending().await,
        }
    }

    /// What is to be said now: it was told to end, and stands between two messages.
    pub(super) fn words(&self) -> Option<Farewell> {
        let frontend = self.frontend.as_ref()?;
        let farewell = frontend.farewell.as_ref()?;
        frontend
            .tap
            .at_boundary()
            .then(|| Farewell::clone(farewell))
    }

    /// Shows the payload to the tap. If this direction was told to end, cuts it behind the last whole message and
    /// gives what is to be said after that.
    pub(super) fn show(
        &mut self,
        bytes: &[u8],
        ranges: &mut Vec<Range<usize>>,
    ) -> Option<Farewell> {
        let frontend = self.frontend.as_mut()?;
        let mut cut = None;
        for (index, range) in ranges.iter().enumerate() {
            frontend
                .tap
                .show(bytes.get(range.clone()).unwrap_or_default());
            if let Some(boundary) = frontend.tap.last_boundary() {
                cut = Some((index, range.start + boundary));
            }
        }
        let farewell = frontend.farewell.as_ref()?;
        let (index, end) = cut?;
        ranges.truncate(index + 1);
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
