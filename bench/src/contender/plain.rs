//! Two relays without TLS, of the same kind of loop as ours: readiness, one large read, one write. What they cost is
//! the floor under any proxy on this machine.

use std::io;
use std::net::SocketAddr;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::{Process, Running, Workshop, free_address};
use crate::problem::{Doing, Problem};

/// What is read at once, as in our relay.
const BUFFER: usize = 256 * 1024;

pub(super) fn launch(workshop: &Workshop, backend: SocketAddr) -> Result<Running, Problem> {
    let (middle, entry) = (free_address(), free_address());
    let program =
        std::env::current_exe().doing(|| "cannot tell where this program is".to_owned())?;
    let run = |side: &str, listen: SocketAddr, connect: SocketAddr| {
        let mut command = Command::new(&program);
        command.arg("plain-relay");
        command.args(["--listen", &listen.to_string()]);
        command.args(["--connect", &connect.to_string()]);
        Process::start(&command, workshop.dir().join(format!("plain-{side}.log")))
    };
    Ok(Running {
        entry,
        admin: None,
        server: Some(run("server", middle, backend)?),
        client: Some(run("client", entry, middle)?),
    })
}

/// `pgtlsproxy-bench plain-relay`: one of the two, until it is killed.
pub(crate) fn relay(listen: SocketAddr, connect: SocketAddr) -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .doing(|| "cannot start threads".to_owned())?;
    runtime
        .block_on(accept_for_ever(listen, connect))
        .doing(|| format!("cannot listen on {listen}"))
}

async fn accept_for_ever(listen: SocketAddr, connect: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (downstream, _) = listener.accept().await?;
        // A session that fails ends; both its ends see that.
        tokio::spawn(async move {
            let upstream = TcpStream::connect(connect).await?;
            downstream.set_nodelay(true)?;
            upstream.set_nodelay(true)?;
            let (from_down, to_down) = downstream.into_split();
            let (from_up, to_up) = upstream.into_split();
            tokio::try_join!(copy(from_down, to_up), copy(from_up, to_down)).map(drop)
        });
    }
}

/// tokio's `read` waits for readiness again after a short read, without the call that would only say EAGAIN.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            read => to.write_all(&buffer[..read]).await?,
        }
    }
}
