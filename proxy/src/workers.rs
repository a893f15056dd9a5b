//! The threads that serve connections: a single-threaded runtime for each processor. A session begins and ends on the
//! one that had the fewest, so that two base backups do not share a processor while another idles. Threads are not
//! pinned: what PostgreSQL needs the kernel sees better.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};

/// All workers. They last as long as the process.
pub(crate) struct Workers {
    workers: Vec<Worker>,
    /// Where the search for the fewest begins: with as many everywhere they take turns.
    turn: AtomicUsize,
}

struct Worker {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
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
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self {
            handle,
            sessions: Arc::default(),
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
