//! The connections that have not yet shown a valid startup. They are bounded in number, and the oldest gives way to a
//! new one: ten thousand silent connections must not keep one standby out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// All connections of the process whose handshake is under way.
pub(crate) struct WaitingRoom {
    limit: usize,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// Oldest first.
    taken: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in the waiting room, given up on drop.
pub(crate) struct Slot {
    room: Arc<WaitingRoom>,
    number: u64,
    evicted: Option<oneshot::Receiver<()>>,
}

impl WaitingRoom {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            seats: Mutex::default(),
        }
    }

    /// Takes a place; where none is left, the oldest connection loses its own.
    pub(crate) fn enter(self: &Arc<Self>) -> Slot {
        let (evict, evicted) = oneshot::channel();
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.taken.len() >= self.limit
            && let Some((_, oldest)) = seats.taken.pop_first()
        {
            // It may have ended in this very moment.
            let _ = oldest.send(());
        }
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, evict);
        Slot {
            room: Arc::clone(self),
            number,
            evicted: Some(evicted),
        }
    }
}

impl Slot {
    pub(crate) fn limit(&self) -> usize {
        self.room.limit
    }

    /// Completes when this connection must give way.
    pub(crate) async fn evicted(mut self) {
        let told = match self.evicted.take() {
            Some(evicted) => evicted.await.is_ok(),
            None => false,
        };
        if !told {
            std::future::pending().await
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.room
            .seats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .taken
            .remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_to_the_newest() {
        let room = Arc::new(WaitingRoom::new(2));
        let (first, second) = (room.enter(), room.enter());
        drop(second);
        let _second = room.enter();
        let _third = room.enter();
        first.evicted().await;
    }
}
