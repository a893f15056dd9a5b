//! What ended lately in a tunnel: the last replication session and the last failure, so that "since when, and why" can
//! be told once there is nothing left to look at. Text from peers is escaped before it gets here.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A connection that is over.
#[derive(Debug, Clone)]
pub(crate) struct Gone {
    pub(crate) at: SystemTime,
    /// What its certificate says, or its address.
    pub(crate) who: String,
    pub(crate) peer: String,
    /// `physical`, `logical`, ...; None if it ended before it asked for something.
    pub(crate) kind: Option<&'static str>,
    /// How, as in the log: for scripts, and in words.
    pub(crate) end: &'static str,
    pub(crate) cause: &'static str,
    pub(crate) reason: String,
}

/// Two of them for each tunnel, however many come.
#[derive(Default)]
pub(crate) struct Lately(Mutex<Ends>);

#[derive(Debug, Clone, Default)]
pub(crate) struct Ends {
    /// Had streamed.
    pub(crate) stream: Option<Gone>,
    pub(crate) failure: Option<Gone>,
}

impl Lately {
    /// One that `streamed`, or `failed`, or both.
    pub(super) fn ended(&self, gone: &Gone, streamed: bool, failed: bool) {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if streamed {
            ends.stream = Some(gone.clone());
        }
        if failed {
            ends.failure = Some(gone.clone());
        }
    }

    pub(crate) fn ends(&self) -> Ends {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.clone()
    }
}
