//! A listening socket in PostgreSQL's place: it shows what passes a sidecar, and that nothing else does.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use crate::files::Scratch;
use crate::wait::{PATIENCE, wait_for};
use crate::wire::Wire;

/// A listening socket that stands for PostgreSQL: what reaches it has passed the sidecar.
#[derive(Debug)]
pub enum StandIn {
    /// On TCP.
    Tcp(TcpListener),
    /// On a Unix socket, which can be reached from every network namespace.
    Unix(UnixListener, Scratch),
}

impl StandIn {
    /// Opens one on TCP.
    #[expect(clippy::new_without_default, reason = "it opens a socket")]
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::Tcp(listener)
    }

    /// Opens one on a Unix socket.
    pub fn unix() -> Self {
        let dir = Scratch::new("stand-in");
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::Unix(listener, dir)
    }

    /// Where it listens on TCP.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr().unwrap(),
            Self::Unix(..) => panic!("it listens on a Unix socket"),
        }
    }

    /// Where it listens, as `server.postgres` has it.
    pub fn upstream(&self) -> String {
        match self {
            Self::Tcp(_) => self.address().to_string(),
            Self::Unix(_, dir) => dir.path().join("socket").display().to_string(),
        }
    }

    /// Waits for the next connection.
    #[track_caller]
    pub fn accept(&self) -> Wire {
        wait_for(
            "a connection to the stand-in for PostgreSQL",
            PATIENCE,
            || self.accepted(),
        )
    }

    /// As [`StandIn::accept`]; reads the startup packet, too.
    #[track_caller]
    pub fn accept_startup(&self) -> (Wire, Vec<u8>) {
        let mut wire = self.accept();
        let packet = wire.read_packet();
        (wire, packet)
    }

    /// A connection, if one has come.
    pub fn accepted(&self) -> Option<Wire> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().ok()?;
                stream.set_nonblocking(false).unwrap();
                Some(Wire::new_tcp(stream))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().ok()?;
                stream.set_nonblocking(false).unwrap();
                Some(Wire::new_unix(stream))
            }
        }
    }
}
