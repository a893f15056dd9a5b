//! The threads that serve connections: a single-threaded runtime for each processor. A session begins and ends on the
//! one that had the fewest, so that two base backups do not share a processor while another idles. Threads are not
//! pinned: what PostgreSQL needs the kernel sees better.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// How long the workers may take to drop what is still under way.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// All workers.
pub(crate) struct Workers {
    workers: Vec<Worker>,
    /// Where the search for the fewest begins: with as many everywhere they take turns.
    turn: AtomicUsize,
}

struct Worker {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
    life: Mutex<Option<Life>>,
}

/// Given up, it ends the worker's runtime.
struct Life {
    end: oneshot::Sender<()>,
    ended: Receiver<()>,
}

impl Workers {
    /// Starts one for each processor that this process may use.
    pub(crate) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            workers: (0..count).map(Worker::start).collect::<io::Result<_>>()?,
            turn: AtomicUsize::new(0),
        })
    }

    /// Ends all of them and what they serve, so that each session still under way has its line in the log. A worker that
    /// does not come to it in time is left: a log that nobody reads must not keep the process.
    pub(crate) fn end(&self) {
        let lives = self.workers.iter().filter_map(|worker| {
            // Whole at every moment, so a panic elsewhere does not spoil it.
            let mut life = worker.life.lock().unwrap_or_else(PoisonError::into_inner);
            life.take()
        });
        let ended: Vec<_> = lives
            .map(|Life { end, ended }| {
                drop(end);
                ended
            })
            .collect();
        let deadline = Instant::now() + ENDS_WITHIN;
        for ended in ended {
            // Nothing is ever sent: what is waited for is the worker's end.
            let _ = ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// How many connections are served now.
    pub(crate) fn connections(&self) -> usize {
        self.workers
            .iter()
            .map(|worker| worker.sessions.load(Ordering::Relaxed))
            .sum()
    }

    /// Serves a connection on the worker that has the fewest; `session` is called there, and may find that there is none.
    pub(crate) fn serve<F>(&self, session: impl FnOnce() -> Option<F> + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        let (before, from) = self.workers.split_at_checked(turn).unwrap_or_default();
        let by_turns = from.iter().chain(before);
        let Some(worker) = by_turns.min_by_key(|worker| worker.sessions.load(Ordering::Relaxed))
        else {
            return;
        };
        let counted = Counted::new(&worker.sessions);
        worker.handle.spawn(async move {
            if let Some(session) = session() {
                session.await;
            }
            drop(counted);
        });
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, asked_to_end) = oneshot::channel();
        let (ending, ended) = channel();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                // Nothing is sent: it completes when the other end is dropped.
                let _ = runtime.block_on(asked_to_end);
                // Its sessions are dropped here; what may hang on a blocking thread is not waited for.
                runtime.shutdown_background();
                drop(ending);
            })?;
        Ok(Self {
            handle,
            sessions: Arc::default(),
            life: Mutex::new(Some(Life { end, ended })),
        })
    }
}

/// One session of a worker, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(sessions: &Arc<AtomicUsize>) -> Self {
        sessions.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(sessions))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    fn three() -> Workers {
        Workers {
            workers: (0..3).map(|n| Worker::start(n).unwrap()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Begins a session that lasts until its end is dropped, and tells where it is served.
    async fn begin(workers: &Workers) -> (oneshot::Sender<()>, Option<String>) {
        let (end, ended) = oneshot::channel::<()>();
        let (tell, mut told) = mpsc::unbounded_channel();
        workers.serve(move || {
            Some(async move {
                tell.send(thread::current().name().map(str::to_owned))
                    .unwrap();
                let _ = ended.await;
            })
        });
        (end, told.recv().await.unwrap())
    }

    #[tokio::test]
    async fn what_is_under_way_at_the_end_is_dropped_before_it_is_over() {
        let workers = three();
        let mut begun = Vec::new();
        for _ in 0..6 {
            begun.push(begin(&workers).await.0);
        }
        workers.end();
        assert_eq!(workers.connections(), 0);
        workers.end();
    }

    #[tokio::test]
    async fn sessions_spread_and_a_place_that_is_given_up_is_taken_next() {
        let workers = three();
        let mut first = Vec::new();
        for _ in 0..6 {
            first.push(begin(&workers).await);
        }
        let places = |sessions: &[(_, Option<String>)]| {
            let mut places: Vec<_> = sessions.iter().map(|(_, place)| place.clone()).collect();
            places.sort_unstable();
            places
        };
        let mut expected: Vec<_> = (0..3).map(|n| Some(format!("worker-{n}"))).collect();
        expected = [expected.clone(), expected].concat();
        expected.sort_unstable();
        assert_eq!(places(&first), expected);
        let (end, freed) = first.remove(4);
        drop(end);
        while workers.connections() > 5 {
            tokio::task::yield_now().await;
        }
        assert_eq!(begin(&workers).await.1, freed);
    }
}
