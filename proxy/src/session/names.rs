//! What peers are called in figures: by the names of this host's configuration, of which there are few. Which of them
//! means a session's peer is found once for each session and each configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use protocol::identity::{Identity, IdentityPattern};

use super::registry::Live;

/// Whoever no name means.
const OTHER: &str = "other";

/// The names of one tunnel, as patterns and as labels. A place is an index into them; the last place is `other`.
#[derive(Debug)]
pub(crate) struct Names {
    /// Tells these names from those of another configuration.
    number: u32,
    patterns: Vec<IdentityPattern>,
    /// One more than there are patterns.
    labels: Vec<Arc<str>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// A place in the names that was found before, and in which names.
#[derive(Debug, Default)]
pub(crate) struct Found(AtomicU64);

impl Names {
    pub(super) fn new(patterns: Vec<IdentityPattern>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let labels = patterns.iter().map(|pattern| pattern.to_string().into());
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            labels: labels.chain([OTHER.into()]).collect(),
            patterns,
        }
    }

    /// Each place's, in order.
    pub(crate) fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// That of one place.
    pub(crate) fn label(&self, place: usize) -> Arc<str> {
        let label = self.labels.get(place);
        label.map_or_else(Self::other_label, Arc::clone)
    }

    /// That of whoever no name means.
    pub(crate) fn other_label() -> Arc<str> {
        OTHER.into()
    }

    fn other(&self) -> usize {
        self.patterns.len()
    }

    /// The first that means this one.
    pub(crate) fn of(&self, identity: &Identity) -> Option<usize> {
        let mut patterns = self.patterns.iter();
        patterns.position(|pattern| pattern.matches(identity))
    }

    /// Of whoever is at the other end of TLS: a server goes by the name that was asked for, which a wildcard in its
    /// certificate may have borne.
    pub(crate) fn of_peer(&self, live: &Live) -> usize {
        if let Some(place) = live.found.in_names(self.number) {
            return place;
        }
        let place = match &live.about.certificate {
            Some(certificate) => self.of(&certificate.identity),
            None => match live.wanted_name() {
                Some(wanted) => self.patterns.iter().position(|name| *name == wanted),
                // Its server is not reached yet: that will be another answer.
                None => return self.other(),
            },
        };
        let place = place.unwrap_or_else(|| self.other());
        live.found.remember(self.number, place);
        place
    }
}

impl Found {
    fn in_names(&self, number: u32) -> Option<usize> {
        let found = self.0.load(Ordering::Relaxed);
        let place = usize::try_from(found & u64::from(u32::MAX)).ok()?;
        (found >> 32 == u64::from(number)).then_some(place)
    }

    fn remember(&self, number: u32, place: usize) {
        if let Ok(place) = u32::try_from(place) {
            let found = u64::from(number) << 32 | u64::from(place);
            self.0.store(found, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_in_other_names_is_forgotten() {
        let found = Found::default();
        assert_eq!(found.in_names(1), None);
        found.remember(1, 7);
        assert_eq!(found.in_names(1), Some(7));
        assert_eq!(found.in_names(2), None);
        found.remember(2, 0);
        assert_eq!((found.in_names(1), found.in_names(2)), (None, Some(0)));
    }
}
