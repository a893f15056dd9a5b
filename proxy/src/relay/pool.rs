//! One buffer size, one pool for each thread. A direction takes a buffer when data is there and gives it back before it
//! waits, so that an idle session holds none.

use std::cell::RefCell;
use std::ops::Range;

use super::records::{BEFORE, LONGEST_CIPHERTEXT};

/// The longest TLS 1.3 ciphertext record, with its header.
pub(super) const LONGEST_RECORD: usize = BEFORE + LONGEST_CIPHERTEXT;
/// Records that one read fills. Many fit one system call; more did not make it faster (measured at 64, 128, 256 and 512
/// KiB).
pub(super) const RECORDS: usize = 16;
pub(super) const SIZE: usize = RECORDS * LONGEST_RECORD;
/// Buffers that a thread keeps; those of a burst of blocked sessions go back to the system.
const KEPT: usize = 8;

/// Room for what one system call reads, and where in it the payload lies.
pub(super) struct Buffer {
    pub(super) bytes: Box<[u8]>,
    /// Payload, in order; capacity is kept with the buffer.
    pub(super) ranges: Vec<Range<usize>>,
}

thread_local! {
    static POOL: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// A buffer borrowed from this thread's pool, given back on drop to the pool of the thread that drops it.
pub(super) struct Borrowed(Option<Buffer>);

/// Takes a buffer. Its content is what the last user left: only bytes written since are ever read.
pub(super) fn borrow() -> Borrowed {
    let pooled = POOL.with(|pool| pool.borrow_mut().pop());
    Borrowed(Some(pooled.unwrap_or_else(|| Buffer {
        bytes: vec![0; SIZE].into_boxed_slice(),
        ranges: Vec::new(),
    })))
}

impl std::ops::Deref for Borrowed {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        self.0.as_ref().expect("a buffer is there until drop")
    }
}

impl std::ops::DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut Buffer {
        self.0.as_mut().expect("a buffer is there until drop")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let Some(mut buffer) = self.0.take() else {
            return;
        };
        buffer.ranges.clear();
        // While a thread ends its pool is gone; the buffer is then simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(buffer);
            }
        });
    }
}
