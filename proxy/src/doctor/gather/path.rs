//! The way to the other host, tried as the client tunnel goes it: dial, TLS with this node's certificate, and the
//! standby's own startup. And this host's own listeners.

use std::path::Path;
use std::time::Duration;

use protocol::error_response::Refusal;
use protocol::startup::{CancelKey, CancelRequest, SSL_REQUEST};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::walsender::{Ask, ask};
use crate::config::{self, Records, SslNegotiation};
use crate::doctor::facts::{Answer, Explained, Outcome, Reach, Route};
use crate::net::{DialError, PostgresAddress, Stream, Target, dial_postgres, dial_target};
use crate::session::{broken_target, cannot_reach_target, no_tls_there, silent_target};
use crate::tls::{Credentials, Dialled, connect as connect_tls, explain_read};

impl From<Refusal> for Explained {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal
            .detail
            .map(|detail| format!("; {detail}"))
            .unwrap_or_default();
        Self {
            id: refusal.id.to_owned(),
            message: format!("{}{detail}", refusal.message),
            way_out: refusal.hint.unwrap_or_default(),
        }
    }
}

/// Goes to one target, as far as it gets by `deadline`.
pub(super) async fn route(
    client: &config::Client,
    target: &Target,
    credentials: &Credentials,
    question: Option<&Ask>,
    deadline: Instant,
) -> Route {
    let mut tries = 0;
    loop {
        let began = Instant::now();
        let mut route = Route {
            target: target.to_string(),
            ..Route::default()
        };
        let gone = go(&mut route, client, target, credentials, question, deadline).await;
        if let Err(refusal) = gone {
            route.refusal = Some(Explained::from(*refusal));
        }
        tries += 1;
        // One that is cut off by the deadline would tell less.
        let over = Instant::now() + AGAIN + began.elapsed();
        if !is_full(&route) || tries == TRIES || over > deadline {
            return route;
        }
        sleep(AGAIN).await;
    }
}

/// No walsender was free. The standby that is refused for another reason takes one for a moment, again and again.
fn is_full(route: &Route) -> bool {
    matches!(&route.answer, Some(Answer::Refused(error)) if error.sqlstate == "53300")
}

async fn go(
    route: &mut Route,
    client: &config::Client,
    target: &Target,
    credentials: &Credentials,
    question: Option<&Ask>,
    deadline: Instant,
) -> Result<(), Box<Refusal>> {
    let began = Instant::now();
    let mut stream = dial_target(target, deadline)
        .await
        .map_err(|error| Box::new(cannot_reach_target(target, &error)))?;
    route.dialled = Some(began.elapsed());
    let silent = || Box::new(silent_target(target, began.elapsed()));
    let broke = |error: std::io::Error| Box::new(broken_target(target, &error));
    stream.prepare().map_err(broke)?;
    if client.negotiation == SslNegotiation::Postgres {
        let mut reply = [0];
        let asked = async {
            stream.write_all(&SSL_REQUEST).await?;
            // One byte and no more: what follows it belongs to TLS (CVE-2021-23222).
            stream.read_exact(&mut reply).await
        };
        timeout_at(deadline, asked)
            .await
            .map_err(|_| silent())?
            .map_err(broke)?;
        if reply != *b"S" {
            return Err(Box::new(no_tls_there(target, reply[0])));
        }
    }
    let dialled = Dialled {
        stream,
        server_name: client.server_name.as_deref().unwrap_or(&target.host),
        tls12: client.tls12,
        records: Records::Rustls,
    };
    let established = timeout_at(deadline, connect_tls(dialled, credentials))
        .await
        .map_err(|_| silent())??;
    route.peer = Some(format!(
        "{} {}",
        established.peer.identity, established.parameters
    ));
    let mut tls = established.tls;
    let answered = match question {
        Some(question) => ask(&mut tls, question, deadline).await,
        None => knock(&mut tls, deadline).await.map(|()| Answer::Silent),
    };
    match answered {
        Ok(answer) => route.answer = question.map(|_| answer),
        // With TLS 1.3 the server judges our certificate only now.
        Err(error) => match explain_read(&error) {
            Some(refusal) => return Err(Box::new(refusal)),
            None => route.answer = Some(Answer::Broke(error.to_string())),
        },
    }
    Ok(())
}

/// A cancel request that names no session: answered by a silent close, unless our certificate is refused.
async fn knock<S>(stream: &mut S, deadline: Instant) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(key) = CancelKey::new(0, &[0; 4]) else {
        return Ok(());
    };
    stream.write_all(&CancelRequest { key }.encode()).await?;
    stream.flush().await?;
    let mut byte = [0];
    match timeout_at(deadline, stream.read(&mut byte)).await {
        Ok(Err(error)) if explain_read(&error).is_some() => Err(error),
        _ => Ok(()),
    }
}

/// Whether a local plaintext listener speaks PostgreSQL: SSLRequest is answered with one byte by every one of them.
pub(super) async fn plain(address: &PostgresAddress, deadline: Instant) -> Reach {
    let began = Instant::now();
    let outcome = match dial_postgres(address, deadline).await {
        Err(error) => failed(&error),
        Ok(stream) => one_byte(stream, began, deadline).await,
    };
    Reach {
        address: address.to_string(),
        outcome,
    }
}

async fn one_byte(mut stream: Stream, began: Instant, deadline: Instant) -> Outcome {
    let mut reply = [0];
    let asked = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_exact(&mut reply).await
    };
    match timeout_at(deadline, asked).await {
        Ok(Ok(_)) => Outcome::Answered(began.elapsed()),
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
        Err(_) => Outcome::Silent,
    }
}

/// Whether something listens there; nothing is said to it.
pub(super) async fn open(target: &Target, deadline: Instant) -> Reach {
    let began = Instant::now();
    let outcome = match dial_target(target, deadline).await {
        Ok(_) => Outcome::Answered(began.elapsed()),
        Err(error) => failed(&error),
    };
    Reach {
        address: target.to_string(),
        outcome,
    }
}

fn failed(error: &DialError) -> Outcome {
    match error {
        DialError::Resolve { .. } | DialError::NoAddress { .. } => {
            Outcome::NoName(error.to_string())
        }
        DialError::Connect { .. } | DialError::TimedOut { .. } => {
            Outcome::Failed(error.to_string())
        }
    }
}

/// Asks through the local listener, where this node's key may not be read by whoever runs doctor.
pub(super) async fn through(
    door: &PostgresAddress,
    question: &Ask,
    deadline: Instant,
) -> Option<Answer> {
    let mut stream = dial_postgres(door, deadline).await.ok()?;
    let answer = ask(&mut stream, question, deadline).await;
    Some(answer.unwrap_or_else(|error| Answer::Broke(error.to_string())))
}

/// libpq's address as ours: a directory and a port, or a host and a port.
pub(super) fn address(host: &str, port: u16) -> PostgresAddress {
    if host.starts_with('/') {
        PostgresAddress::Unix(Path::new(host).join(format!(".s.PGSQL.{port}")))
    } else {
        PostgresAddress::Tcp(Target {
            host: host.to_owned(),
            port,
        })
    }
}

/// How often a full house is tried, and how long after.
const TRIES: u32 = 5;
const AGAIN: Duration = Duration::from_millis(150);

/// The time that the network has, all probes at once.
pub(super) const WITHIN: Duration = Duration::from_millis(2200);
