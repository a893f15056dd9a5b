//! The asking end of the node channel: dial, shake hands, one request, one answer. Everything within a deadline.

use std::io;

use protocol::error_response::{Refusal, SqlState};
use protocol::node::{Answer, HEAD, MAX_FROM_NODE, Request, parse_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout_at};

use crate::net::{Target, dial_target};
use crate::problem::Problem;
use crate::tls::{NodeTls, Trust, connect_node, explain_read};

/// What a command asks in, which has no other use for a runtime.
pub(crate) fn for_a_command() -> Result<Runtime, Problem> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| {
        Problem::new(
            "C10",
            "the command cannot start",
            error.to_string(),
            "free memory or descriptors on this host, and try again",
        )
    })
}

/// Opens the node channel of `target`, whose certificate must carry `server_name`.
pub(crate) async fn open(
    target: &Target,
    server_name: &str,
    trust: Trust<'_>,
    deadline: Instant,
) -> Result<NodeTls, Box<Refusal>> {
    let stream = dial_target(target, deadline).await.map_err(|error| {
        refusal(
            "K10",
            format!("{target} cannot be reached: {error}"),
            "look at the network and firewalls, and whether pgtlsproxy runs there",
        )
    })?;
    stream.prepare().map_err(|error| left(target, &error))?;
    timeout_at(deadline, connect_node(stream, server_name, trust))
        .await
        .map_err(|_| silent(target))?
}

/// Asks, and takes the answer.
pub(crate) async fn ask(
    mut tls: NodeTls,
    target: &Target,
    request: &Request,
    deadline: Instant,
) -> Result<Answer, Box<Refusal>> {
    let bytes = request.encode().map_err(|error| {
        refusal(
            "K11",
            format!("the request cannot be sent: {error}"),
            "it is too long",
        )
    })?;
    let conversation = async {
        tls.write_all(&bytes).await?;
        tls.flush().await?;
        let mut head = [0; HEAD];
        tls.read_exact(&mut head).await?;
        let length = parse_head(head, MAX_FROM_NODE).map_err(io::Error::other)?;
        let mut body = Vec::new();
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        (&mut tls).take(limit).read_to_end(&mut body).await?;
        let answer = Answer::parse(&body).map_err(io::Error::other)?;
        // It has all been said; how the far end closes changes nothing.
        let _ = tls.shutdown().await;
        io::Result::Ok(answer)
    };
    timeout_at(deadline, conversation)
        .await
        .map_err(|_| silent(target))?
        .map_err(|error| match explain_read(&error) {
            Some(refusal) => Box::new(refusal),
            None => left(target, &error),
        })
}

fn silent(target: &Target) -> Box<Refusal> {
    refusal(
        "K12",
        format!("{target} did not answer in time"),
        "look at the network, and at that node's log",
    )
}

fn left(target: &Target, error: &io::Error) -> Box<Refusal> {
    let closed = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    let why = if closed {
        "it closed the connection without an answer".to_owned()
    } else {
        error.to_string()
    };
    refusal(
        "K13",
        format!("{target} gave no answer: {why}"),
        "look at that node's log at the same time",
    )
}

fn refusal(id: &'static str, message: String, hint: &str) -> Box<Refusal> {
    Box::new(Refusal::new(id, SqlState::CANNOT_CONNECT_NOW, message).hint(hint))
}
