//! The status socket: whoever may connect (mode 0660) asks `status` and gets a snapshot as JSON. It only reads. A
//! question is short, an answer is one line, and both have a deadline, so that a stuck reader holds up nobody for long.

mod census;
mod exposition;
pub(crate) mod http;
mod metrics;
mod page;
mod pieces;
mod process;
mod ready;
mod screen;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::net::{Listener, Stream};
use crate::snapshot::Facts;

pub(crate) use screen::{Look, screen};

/// Who may connect: the owner and the group of the socket.
pub(crate) const SOCKET_MODE: u32 = 0o660;
/// Questions that are answered at a time; more wait to be accepted.
pub(crate) const AT_A_TIME: usize = 4;
/// The one question.
pub(crate) const STATUS: &str = "status";

const LONGEST_QUESTION: usize = 64;
const QUESTION_TAKES: Duration = Duration::from_secs(1);
const ANSWER_TAKES: Duration = Duration::from_secs(5);
/// When nothing can be accepted, the next try would fail the same at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers one connection after the other.
pub(crate) async fn answer(listener: Arc<Listener>, facts: Arc<Facts>) {
    loop {
        match listener.accept().await {
            // Whoever asks and leaves is no failure of ours.
            Ok((stream, _)) => drop(converse(stream, &facts).await),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn converse(mut stream: Stream, facts: &Facts) -> io::Result<()> {
    let question = timeout(QUESTION_TAKES, question(&mut stream)).await??;
    timeout(ANSWER_TAKES, async {
        if question == STATUS.as_bytes() {
            let mut pieces = pieces::snapshot(facts);
            while let Some(piece) = pieces.recv().await {
                stream.write_all(&piece?).await?;
            }
        } else {
            let answer = br#"{"error":"the one question is: status"}"#;
            stream.write_all(answer).await?;
        }
        stream.write_all(b"\n").await?;
        stream.shutdown().await
    })
    .await?
}

/// A line, without its end.
async fn question(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < LONGEST_QUESTION {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return Ok(line);
        }
        line.push(byte);
    }
    Ok(line)
}
