//! Looks at message headers on their way to the frontend, in passing: where messages end, and the cancel key that the
//! backend gives its session. It cannot delay, copy or change a byte, and gives up quietly on what it does not
//! understand (PostgreSQL manual, "Message Formats").

use std::sync::Arc;

use protocol::message::{MessageWalker, parse_backend_key_data};

use super::registry::Live;
use crate::relay::Tap;

/// Tag of BackendKeyData.
const BACKEND_KEY_DATA: u8 = b'K';

pub(super) struct Observer {
    walker: MessageWalker,
    live: Arc<Live>,
}

impl Observer {
    pub(super) fn new(live: Arc<Live>) -> Self {
        Self {
            walker: MessageWalker::new(&[BACKEND_KEY_DATA]),
            live,
        }
    }
}

impl Tap for Observer {
    fn show(&mut self, bytes: &[u8]) {
        let live = &self.live;
        self.walker.walk(bytes, |header, body| {
            if header.tag == BACKEND_KEY_DATA
                && let Some(key) = body.and_then(parse_backend_key_data)
            {
                live.learn_cancel_key(key);
            }
        });
    }

    fn at_boundary(&self) -> bool {
        self.walker.at_boundary()
    }

    fn last_boundary(&self) -> Option<usize> {
        self.walker.last_boundary()
    }
}
