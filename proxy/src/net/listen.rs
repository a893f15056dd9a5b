//! The one place where listeners are made. A listener that cannot be opened ends the start.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::{ListenAddress, Peer, Stream};

/// Connections that may wait for `accept`: a flood must not push a standby out of the queue. The kernel cuts it to
/// net.core.somaxconn (listen(2)).
const BACKLOG: i32 = 4096;

/// An open listener, TCP or Unix. A Unix socket is removed from its directory when this is dropped.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: SocketPath,
    },
}

/// Why a listener could not be opened: what was tried and what to do.
#[derive(Debug)]
pub(crate) struct BindError {
    pub(crate) address: ListenAddress,
    pub(crate) source: io::Error,
    pub(crate) way_out: String,
}

impl BindError {
    fn new(address: ListenAddress, source: io::Error) -> Self {
        Self {
            way_out: way_out(&address, &source),
            address,
            source,
        }
    }
}

impl Listener {
    pub(crate) fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddress::Tcp(address) => listen_tcp(*address).map(Self::Tcp),
            // Who may connect is decided by SO_PEERCRED on each connection; the mode is as wide as PostgreSQL's own
            // (unix_socket_permissions, 0777), so that a refused user is told why.
            ListenAddress::Unix(path) => bind_unix(path, 0o777),
        };
        bound.map_err(|source| BindError::new(address.clone(), source))
    }

    /// A Unix socket of this mode that is no tunnel's.
    pub(crate) fn bind_socket(path: &Path, mode: u32) -> Result<Self, BindError> {
        bind_unix(path, mode)
            .map_err(|source| BindError::new(ListenAddress::Unix(path.to_owned()), source))
    }

    /// The next connection with its peer. Errors are the kernel's: most concern one connection that is already gone.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred()?;
                let peer = Peer::Unix {
                    uid: credentials.uid(),
                    pid: credentials.pid().unwrap_or(0),
                };
                Ok((Stream::Unix(stream), peer))
            }
        }
    }

    /// The address taken: with port 0 in the configuration, the port that the kernel chose.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "unknown".to_owned(), |address| address.to_string()),
            Self::Unix { path, .. } => path.path.display().to_string(),
        }
    }
}

/// Listens on TCP; a tunnel does so by [`Listener::bind`].
pub(crate) fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Makes the socket. A file that a dead process left behind is replaced; anything else that lies there is kept.
fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is not a socket lies there",
            ));
        }
        Ok(_) => match BlockingUnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process listens there",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let inode = fs::symlink_metadata(path)?.ino();
    let path = SocketPath {
        path: path.to_owned(),
        inode,
    };
    fs::set_permissions(&path.path, fs::Permissions::from_mode(mode))?;
    Ok(Listener::Unix { listener, path })
}

/// Removes the socket file on drop, unless somebody has put another in its place.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // Nothing depends on it: a stale socket is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn way_out(address: &ListenAddress, error: &io::Error) -> String {
    match (address, error.kind()) {
        (_, io::ErrorKind::AddrInUse) => {
            format!("stop what listens on {address}, or choose another `listen` address")
        }
        (ListenAddress::Tcp(_), io::ErrorKind::AddrNotAvailable) => {
            "listen on an address of this host, or on 0.0.0.0".to_owned()
        }
        (ListenAddress::Tcp(_), io::ErrorKind::PermissionDenied) => {
            "choose a port above 1023, or grant CAP_NET_BIND_SERVICE".to_owned()
        }
        (ListenAddress::Unix(path), io::ErrorKind::NotFound) => format!(
            "make the directory {} (with systemd: RuntimeDirectory=)",
            path.parent().unwrap_or(path).display()
        ),
        (ListenAddress::Unix(path), io::ErrorKind::PermissionDenied) => format!(
            "let this OS user write in {}",
            path.parent().unwrap_or(path).display()
        ),
        (ListenAddress::Unix(path), _) => format!("look at {} and remove it", path.display()),
        _ => "choose another `listen` address".to_owned(),
    }
}
