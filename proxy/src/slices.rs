//! Long work beside the sessions, in slices: each is over before a round trip that waits for its processor would notice,
//! and between two of them the thread sleeps, so that the kernel gives the processor away.

use std::time::Duration;

use tokio::time::sleep;

/// Between two slices: as short as the runtime's timer allows, and many times as long as a slice.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// Shows `all` in slices of at most this length.
pub(crate) async fn in_slices<T>(all: &[T], length: usize, mut each: impl FnMut(&[T])) {
    for (number, slice) in all.chunks(length.max(1)).enumerate() {
        if number > 0 {
            sleep(PAUSE).await;
        }
        each(slice);
    }
}
