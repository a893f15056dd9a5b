//! One stream type for TCP and Unix sockets, with the socket options every connection gets.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::libc::MSG_MORE;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::uio::{readv, writev};
use nix::unistd::{Uid, User};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long the name of an OS user is looked up.
const NAME_TAKES: Duration = Duration::from_secs(1);

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who is at the other end of an accepted connection, as the kernel tells.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// The OS user that connected (SO_PEERCRED, unix(7)); `pid` is 0 where the kernel does not say.
    Unix {
        uid: u32,
        pid: i32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { uid, pid } => write!(f, "uid={uid} pid={pid}"),
        }
    }
}

impl Peer {
    /// The OS user's name for a message, or its number where the host knows none. Looks it up outside the runtime's
    /// threads, since that may ask a directory service, and not for long, since that may hang.
    pub(crate) async fn os_user(self) -> String {
        let Self::Unix { uid, .. } = self else {
            return String::new();
        };
        let looked_up = tokio::task::spawn_blocking(move || User::from_uid(Uid::from_raw(uid)));
        match timeout(NAME_TAKES, looked_up).await {
            Ok(Ok(Ok(Some(user)))) => user.name,
            _ => uid.to_string(),
        }
    }
}

impl Stream {
    /// Moves it to the runtime of this thread from the one that accepted it.
    pub(crate) fn settle(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
        })
    }

    /// Turns off Nagle's algorithm: a status update must not wait for an acknowledgement (tcp(7)).
    pub(crate) fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Lets the kernel notice a peer that is gone, idle or busy: keepalive probes and TCP_USER_TIMEOUT.
    /// The third case, a peer behind a closed window, is watched by [`super::dead_peer`].
    pub(crate) fn notice_dead_peer(&self, within: Duration) -> io::Result<()> {
        let Self::Tcp(stream) = self else {
            return Ok(());
        };
        let socket = SockRef::from(stream);
        // The kernel counts in whole seconds here: first probe after a third, then often enough to be sure in time.
        let idle = Duration::from_secs((within.as_secs() / 3).max(1));
        let interval = Duration::from_secs((within.as_secs() / 6).max(1));
        let keepalive = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(interval)
            .with_retries(4);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(within))
    }

    /// Ends the connection so that the peer sees an abort, never a clean end: a reset on TCP, on a Unix socket,
    /// which has none, a bare close.
    pub(crate) fn abort(self) {
        if let Self::Tcp(stream) = &self {
            // Closing with a zero linger time sends RST (RFC 9293, 3.10.5; socket(7)). If it fails, the socket is gone.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Ready when a read may give something. A session waits in one task, which alone is woken: with a list of waiters in
    /// place of it, as `readable` has one, each message would enter it and leave it.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Completes when a write may take something, in the task that waits last.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        poll_fn(|cx| match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        })
        .await
    }

    /// One recv. After a short read the stream counts as not readable, which saves the read that would only say so; what
    /// comes later, an end among it, makes it readable again.
    pub(crate) fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        let most = room.len();
        self.try_io_read(most, |fd| {
            Ok(recv(fd.as_raw_fd(), room, MsgFlags::empty())?)
        })
    }

    /// One readv, otherwise as [`Self::try_read`].
    pub(crate) fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let most = slices.iter().map(|slice| slice.len()).sum();
        self.try_io_read(most, |fd| Ok(readv(fd, slices)?))
    }

    fn try_io_read(
        &self,
        most: usize,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut got = None;
        let tried = self.try_io(Interest::READABLE, |fd| {
            let n = call(fd)?;
            got = Some(n);
            if 0 < n && n < most {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(n)
            }
        });
        got.map_or(tried, Ok)
    }

    /// One send, which the kernel does with less ado than a writev of one slice.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_send(bytes, MsgFlags::MSG_NOSIGNAL)
    }

    /// One send of what need not go out before the half-close that follows (MSG_MORE, send(2)).
    pub(crate) fn try_write_more(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_send(
            bytes,
            MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(MSG_MORE),
        )
    }

    fn try_send(&self, bytes: &[u8], flags: MsgFlags) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, |fd| {
            Ok(send(fd.as_raw_fd(), bytes, flags)?)
        })
    }

    /// One writev.
    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, |fd| Ok(writev(fd, slices)?))
    }

    fn try_io(
        &self,
        interest: Interest,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, || call(stream.as_fd())),
            Self::Unix(stream) => stream.try_io(interest, || call(stream.as_fd())),
        }
    }

    /// The socket's half-close: the peer reads an end.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Whether bytes lie ready that nobody has asked for. Takes one of them: the caller refuses the connection then.
    pub(crate) fn has_sent_more(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
        };
        matches!(read, Ok(1..))
    }
}

/// Ends a connection so that what was sent last arrives: a peer that still sends would otherwise be answered with a
/// reset, which throws away what it has not read yet (RFC 9293, 3.10.4). Bounded in bytes; the caller bounds the time.
pub(crate) async fn linger<S>(stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    const MOST: usize = 256 * 1024;
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut discarded = 0;
    let mut scratch = [0; 1024];
    while discarded < MOST {
        match stream.read(&mut scratch).await {
            Ok(0) | Err(_) => return,
            Ok(n) => discarded += n,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
