//! A TCP link that can fail: it delays, stalls, cuts and ends in every way that a network between two hosts does.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::wait::wait_until;

/// How often a stalled or idle direction looks whether it shall go on.
const TICK: Duration = Duration::from_millis(10);

/// A listener that forwards every connection to `target`, until told to misbehave.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    open: AtomicBool,
    stalled: AtomicBool,
    delay_ms: AtomicU64,
    bytes: AtomicU64,
    cut_at: AtomicU64,
    connections: Mutex<Vec<Arc<Connection>>>,
}

#[derive(Debug)]
struct Connection {
    near: TcpStream,
    far: TcpStream,
    over: AtomicBool,
}

impl Link {
    /// Opens a link to `target`.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target,
            open: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            connections: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if !accepting.open.load(SeqCst) {
                    return;
                }
                accepting.forward(near);
            }
        });
        Self { address, state }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds every piece back for so long.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    /// Reads nothing any more, in either direction, and closes nothing.
    pub fn stall(&self) {
        self.state.stalled.store(true, SeqCst);
    }

    /// Goes on after [`Link::stall`].
    pub fn resume(&self) {
        self.state.stalled.store(false, SeqCst);
    }

    /// Resets every connection; new ones are let through.
    pub fn cut(&self) {
        self.end_all(Connection::reset);
    }

    /// Resets every connection when `bytes` more have passed, counting both directions.
    pub fn cut_after(&self, bytes: u64) {
        self.state
            .cut_at
            .store(self.state.bytes.load(SeqCst) + bytes, SeqCst);
    }

    /// Ends every connection with a FIN both ways, without the close_notify of TLS.
    pub fn end_without_close_notify(&self) {
        self.end_all(Connection::finish);
    }

    fn end_all(&self, end: impl Fn(&Connection)) {
        let connections = std::mem::take(&mut *self.state.connections.lock().unwrap());
        for connection in &connections {
            end(connection);
        }
        for mut connection in connections {
            wait_until("the link to let go of a connection", || {
                Arc::get_mut(&mut connection).is_some()
            });
        }
    }

    /// How many connections have not ended.
    pub fn connections(&self) -> usize {
        self.state.connections.lock().unwrap().len()
    }

    /// Bytes that have passed, both directions together.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.open.store(false, SeqCst);
        let _ = TcpStream::connect(self.address);
        for connection in &*self.state.connections.lock().unwrap() {
            connection.reset();
        }
    }
}

impl State {
    fn forward(self: &Arc<Self>, near: TcpStream) {
        let Ok(far) = TcpStream::connect(self.target) else {
            return; // dropped: the near side sees its connection end
        };
        for stream in [&near, &far] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(TICK)).unwrap();
            stream.set_write_timeout(Some(TICK)).unwrap();
        }
        let over = AtomicBool::new(false);
        let connection = Arc::new(Connection { near, far, over });
        self.connections
            .lock()
            .unwrap()
            .push(Arc::clone(&connection));
        for outward in [true, false] {
            let (state, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || {
                let (from, to) = match outward {
                    true => (&connection.near, &connection.far),
                    false => (&connection.far, &connection.near),
                };
                let ended = state.pump(from, to, &connection.over);
                if ended.is_err() && !connection.over.load(SeqCst) {
                    connection.reset();
                }
                drop(connection);
                state.forget_ended();
            });
        }
    }

    /// Closes the sockets of connections whose two directions have both let go.
    fn forget_ended(&self) {
        let mut connections = self.connections.lock().unwrap();
        connections.retain(|connection| Arc::strong_count(connection) > 1);
    }

    /// Carries one direction to its end: a clean end is passed on, any other is an error.
    fn pump(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        over: &AtomicBool,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        while !over.load(SeqCst) {
            if self.stalled.load(SeqCst) {
                thread::sleep(TICK);
                continue;
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => return to.shutdown(Shutdown::Write),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            thread::sleep(Duration::from_millis(self.delay_ms.load(SeqCst)));
            let mut rest = &buffer[..count];
            while !rest.is_empty() && !over.load(SeqCst) {
                match to.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if self.bytes.fetch_add(count as u64, SeqCst) + count as u64 >= self.cut_at.load(SeqCst)
            {
                self.cut_at.store(u64::MAX, SeqCst);
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
        }
        Ok(())
    }
}

impl Connection {
    /// The sockets are closed with a reset when both directions have let go of them.
    fn reset(&self) {
        for stream in [&self.near, &self.far] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        self.over.store(true, SeqCst);
    }

    fn finish(&self) {
        self.over.store(true, SeqCst);
        for stream in [&self.near, &self.far] {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}
