//! One direction: read, show, write, until the reader's end, an error, or the word to stop.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Farewell, Stop, Tap};

/// What one direction holds at most; two of these bound the memory of a session.
const BUFFER: usize = 64 * 1024;

/// How one direction ended.
#[derive(Debug)]
pub(super) enum Pumped {
    /// The reader ended in order, and the writer was told so.
    Closed,
    /// The farewell was written.
    Stopped,
    ReadFailed(io::Error),
    WriteFailed(io::Error),
}

/// The direction that nobody looks at.
pub(super) async fn pump(
    read_ahead: &[u8],
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
) -> Pumped {
    if !read_ahead.is_empty()
        && let Err(error) = write(writer, read_ahead, count).await
    {
        return Pumped::WriteFailed(error);
    }
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match reader.read(&mut buffer).await {
            Ok(0) => return shut(writer).await,
            Ok(n) => n,
            Err(error) => return Pumped::ReadFailed(error),
        };
        if let Err(error) = write(writer, filled(&buffer, n), count).await {
            return Pumped::WriteFailed(error);
        }
    }
}

/// The direction towards the frontend: it may be ended between two messages.
pub(super) async fn pump_until_stopped(
    read_ahead: &[u8],
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
    mut tap: impl Tap,
    mut stop: Stop,
) -> Pumped {
    let mut farewell: Option<Farewell> = None;
    if !read_ahead.is_empty() {
        tap.show(read_ahead);
        if let Err(error) = write(writer, read_ahead, count).await {
            return Pumped::WriteFailed(error);
        }
    }
    let mut buffer = vec![0; BUFFER];
    loop {
        if let Some(words) = &farewell
            && tap.at_boundary()
        {
            return say(writer, words).await;
        }
        let read = tokio::select! {
            biased;
            words = stop.told(), if farewell.is_none() => {
                farewell = Some(words);
                continue;
            }
            read = reader.read(&mut buffer) => read,
        };
        let n = match read {
            Ok(0) => return shut(writer).await,
            Ok(n) => n,
            Err(error) => return Pumped::ReadFailed(error),
        };
        let bytes = filled(&buffer, n);
        tap.show(bytes);
        let whole = match (&farewell, tap.last_boundary()) {
            (Some(_), Some(boundary)) => boundary.min(n),
            _ => n,
        };
        if let Err(error) = write(writer, filled(&buffer, whole), count).await {
            return Pumped::WriteFailed(error);
        }
        if let Some(words) = &farewell
            && whole < n
        {
            return say(writer, words).await;
        }
    }
}

async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    count: &AtomicU64,
) -> io::Result<()> {
    writer.write_all(bytes).await?;
    // TLS may hold records back until it is told that nothing more comes now.
    writer.flush().await?;
    count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(())
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), words: &[u8]) -> Pumped {
    let said = async {
        writer.write_all(words).await?;
        writer.flush().await
    };
    match said.await {
        Ok(()) => Pumped::Stopped,
        Err(error) => Pumped::WriteFailed(error),
    }
}

/// Passes an orderly end on: close_notify on TLS, a half-close of the socket otherwise.
async fn shut(writer: &mut (impl AsyncWrite + Unpin)) -> Pumped {
    // A peer that is gone already has nothing left to be told.
    let _ = writer.shutdown().await;
    Pumped::Closed
}

/// What a read of `n` bytes filled.
fn filled(buffer: &[u8], n: usize) -> &[u8] {
    buffer.get(..n).unwrap_or(buffer)
}
