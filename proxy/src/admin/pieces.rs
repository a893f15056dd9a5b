//! Answers that grow with the number of sessions, as JSON in pieces: a slice of the sessions is taken and written, then
//! the next. So no answer is in memory as a whole, and whoever reads slowly is waited for before more is taken.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::session::Live;
use crate::slices::PAUSE;
use crate::snapshot::{Facts, Moment, past, session};

/// Sessions told at once: about 20 KiB, and a quarter of a millisecond on a slow machine (docs/observability.md: what
/// `/status.json` costs).
const SESSIONS_AT_ONCE: usize = 16;
/// Five minutes of a stream have many more figures.
const HISTORIES_AT_ONCE: usize = 2;
/// A page shows no more streams.
const HISTORIES: usize = 100;
/// What a piece takes, about.
const ROOM: usize = 32 * 1024;

/// A piece of JSON text, or why there is no more.
pub(super) type Piece = serde_json::Result<Vec<u8>>;
pub(super) type Pieces = mpsc::Receiver<Piece>;

/// The snapshot.
pub(super) fn snapshot(facts: &Facts) -> Pieces {
    let (overview, live) = facts.overview();
    in_pieces(overview, live, SESSIONS_AT_ONCE, |slice, list| {
        let moment = Moment::now();
        slice
            .iter()
            .try_for_each(|live| list.add(&session(live, moment)))
    })
}

/// How streams flowed in the last minutes.
pub(super) fn history(facts: &Facts) -> Pieces {
    let (history, live) = facts.history();
    in_pieces(history, live, HISTORIES_AT_ONCE, |slice, list| {
        let pasts = slice.iter().filter_map(|live| past(live));
        let room = HISTORIES.saturating_sub(list.length);
        pasts.take(room).try_for_each(|past| list.add(&past))
    })
}

/// An object with one list more than it has of itself, `sessions`, to which `tell` adds what it has to say of a slice.
/// What goes on without a reader ends with the next piece.
fn in_pieces<T, F>(object: T, live: Vec<Arc<Live>>, at_once: usize, tell: F) -> Pieces
where
    T: Serialize + Send + 'static,
    F: Fn(&[Arc<Live>], &mut List) -> serde_json::Result<()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut list = match List::begin(&object) {
            Ok(list) => list,
            Err(error) => return drop(sender.send(Err(error)).await),
        };
        for slice in live.chunks(at_once) {
            let piece = tell(slice, &mut list).map(|()| list.take());
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
            sleep(PAUSE).await;
        }
        // Whoever would have read it has gone.
        let _ = sender.send(Ok(list.end())).await;
    });
    receiver
}

/// What is written and not yet taken.
struct List {
    text: Vec<u8>,
    length: usize,
}

impl List {
    fn begin(object: &impl Serialize) -> serde_json::Result<Self> {
        let mut text = serde_json::to_vec(object)?;
        // It goes on in front of its brace.
        text.pop();
        text.extend_from_slice(b",\"sessions\":[");
        Ok(Self { text, length: 0 })
    }

    fn add(&mut self, one: &impl Serialize) -> serde_json::Result<()> {
        if self.length > 0 {
            self.text.push(b',');
        }
        self.length += 1;
        serde_json::to_writer(&mut self.text, one)
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.text, Vec::with_capacity(ROOM))
    }

    fn end(mut self) -> Vec<u8> {
        self.text.extend_from_slice(b"]}");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pieces_make_one_object() {
        for items in [0, 1, 3] {
            let mut list = List::begin(&json!({"a": {"b": 1}})).unwrap();
            let mut text = Vec::new();
            for item in 0..items {
                list.add(&json!({ "item": item })).unwrap();
                text.extend(list.take());
            }
            text.extend(list.end());
            let whole: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(whole["a"]["b"], 1);
            assert_eq!(whole["sessions"].as_array().unwrap().len(), items);
        }
    }
}
