//! What the kernel knows of a TCP connection (TCP_INFO, SIOCOUTQ; tcp(7)), and the two options that no safe binding
//! offers. One of the three files with unsafe code: four calls of getsockopt, setsockopt and ioctl.
#![expect(
    unsafe_code,
    reason = "no maintained crate binds TCP_INFO's probe counters or TCP_RTO_MAX_MS"
)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::libc;

/// Linux 6.15; older kernels answer ENOPROTOOPT.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// The part of TCP_INFO that tells a living peer from a dead one.
#[derive(Debug, Clone, Copy)]
pub(super) struct TcpState {
    /// Segments sent and not acknowledged.
    pub(super) unacknowledged: u32,
    /// Probes (keepalive or zero window) sent since the peer last answered.
    pub(super) unanswered_probes: u8,
    /// Time since the last acknowledgement arrived.
    pub(super) since_last_ack: Duration,
    /// Bytes written by us that the peer has not acknowledged, sent or not.
    pub(super) queued: usize,
}

pub(super) fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<TcpState> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes at most `length` bytes
    // into `info`, which has that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `tcp_info` consists of integers, for which zero bytes, with which it was filled, are valid.
    let info = unsafe { info.assume_init() };

    let mut queued: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, to a pointer that is valid for it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpState {
        unacknowledged: info.tcpi_unacked,
        unanswered_probes: info.tcpi_probes,
        since_last_ack: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        queued: usize::try_from(queued).unwrap_or(0),
    })
}

/// Bounds the pause between retransmissions and zero-window probes, which otherwise grows to two minutes.
pub(super) fn limit_retransmission_pause(
    socket: BorrowedFd<'_>,
    pause: Duration,
) -> io::Result<()> {
    let millis = libc::c_int::try_from(pause.as_millis().clamp(1000, 120_000)).unwrap_or(120_000);
    // SAFETY: the kernel reads one int from a pointer that is valid for it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const millis).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
