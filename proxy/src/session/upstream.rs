//! Dials, speaks TLS if the leg asks for it, forwards the request, and waits for the first answer. Only an authorised
//! request gets here: a `Permit` is taken by value.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use protocol::error_response::{Refusal, SqlState};
use protocol::negotiation::Request;
use protocol::policy::Permit;
use protocol::startup::SSL_REQUEST;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::authentication::{
    FirstAnswer, NoAnswer, first_answer, first_bytes, only_channel_binding,
};
use super::end::End;
use super::legs::{Settings, UpstreamLeg};
use super::record::SessionRecord;
use crate::config::{Records, SslNegotiation, Timeouts};
use crate::net::{DialError, PostgresAddress, Target, dial_postgres, dial_target};
use crate::relay::{Half, Wire};
use crate::tls::{
    Credentials, Dialled, PeerCertificate, SessionId, connect as connect_tls, explain_read,
};

/// The far proxy waits as long for its PostgreSQL; its own word shall come before ours.
const FAR_PROXY_FIRST: Duration = Duration::from_secs(5);

/// An upstream that took the request and has begun to answer.
pub(crate) struct Upstream {
    pub(crate) half: Half,
    /// Who is there, if TLS told.
    pub(crate) far: Option<FarEnd>,
}

/// The far end of a TLS leg that we dialled.
pub(crate) struct FarEnd {
    pub(crate) target: Target,
    /// The name that its certificate had to bear.
    pub(crate) server_name: String,
    pub(crate) certificate: Arc<PeerCertificate>,
    pub(crate) id: SessionId,
}

/// Takes an authorised request to the upstream. `only` is the target that a cancel must go to.
pub(crate) async fn connect(
    _permit: Permit,
    settings: &Settings,
    request: &Request,
    only: Option<&Target>,
    record: &mut SessionRecord,
) -> Result<Upstream, End> {
    let timeouts = &settings.timeouts;
    match &settings.upstream {
        UpstreamLeg::Plain { postgres } => connect_plain(postgres, request, timeouts, record).await,
        UpstreamLeg::Mtls {
            credentials,
            targets,
            server_name,
            negotiation,
            tls12,
            records,
        } => {
            let route = Route {
                credentials,
                server_name: server_name.as_deref(),
                negotiation: *negotiation,
                tls12: *tls12,
                records: *records,
                dead_peer: timeouts.dead_peer,
            };
            let only = only.map(std::slice::from_ref);
            connect_mtls(&route, only.unwrap_or(targets), request, timeouts, record).await
        }
    }
    .map_err(|refusal| End::Unreachable(Box::new(refusal)))
}

async fn connect_plain(
    postgres: &PostgresAddress,
    request: &Request,
    timeouts: &Timeouts,
    record: &mut SessionRecord,
) -> Result<Upstream, Refusal> {
    let deadline = Instant::now() + timeouts.dial;
    record.reached(postgres.to_string());
    let mut stream = dial_postgres(postgres, deadline)
        .await
        .map_err(|error| cannot_reach_postgres(&error))?;
    let lost = |NoAnswer(error): NoAnswer| {
        cannot_connect(
            "B02",
            format!("PostgreSQL at {postgres} closed the connection without an answer: {error}"),
            "look at PostgreSQL's log on that host",
        )
    };
    let forwarded = async {
        stream.prepare()?;
        stream.write_all(&encoded(request)).await
    };
    timeout_at(deadline, forwarded)
        .await
        .map_err(|_| silent_postgres(postgres, timeouts.dial))?
        .map_err(|error| lost(NoAnswer(error)))?;
    let read_ahead = match request {
        // PostgreSQL closes without a word.
        Request::Cancel(_) => Vec::new(),
        Request::Startup(_) => {
            let answer = timeout(timeouts.answer, first_bytes(&mut stream))
                .await
                .map_err(|_| silent_postgres(postgres, timeouts.answer))?
                .map_err(lost)?;
            match answer {
                FirstAnswer::Bytes(bytes) | FirstAnswer::CannotConnectNow(bytes) => bytes,
                FirstAnswer::OnlyChannelBinding => return Err(only_channel_binding()),
            }
        }
    };
    Ok(Upstream {
        half: Half {
            wire: Wire::Plain(stream),
            read_ahead,
        },
        far: None,
    })
}

struct Route<'a> {
    credentials: &'a Credentials,
    server_name: Option<&'a str>,
    negotiation: SslNegotiation,
    tls12: bool,
    records: Records,
    dead_peer: Duration,
}

/// Tries the targets in order. The next one is tried after a failed dial or TLS, and where PostgreSQL says that it
/// cannot be connected to now. The time for reaching them is divided; waiting for an answer does not count.
async fn connect_mtls(
    route: &Route<'_>,
    targets: &[Target],
    request: &Request,
    timeouts: &Timeouts,
    record: &mut SessionRecord,
) -> Result<Upstream, Refusal> {
    let mut failures: Vec<(&Target, Refusal)> = Vec::new();
    let mut time_left = timeouts.connect;
    for (tried, target) in targets.iter().enumerate() {
        let targets_left = u32::try_from(targets.len() - tried).unwrap_or(u32::MAX);
        let began = Instant::now();
        let deadline = began + time_left / targets_left;
        let reached = timeout_at(deadline, reach(route, target, deadline, request, record)).await;
        time_left = time_left.saturating_sub(began.elapsed());
        let (mut wire, far) = match reached {
            Ok(Ok(reached)) => reached,
            Ok(Err(refusal)) => {
                failures.push((target, refusal));
                continue;
            }
            Err(_) => {
                let after = began.elapsed();
                failures.push((target, silent_target(target, after)));
                continue;
            }
        };
        let read_ahead = match request {
            Request::Cancel(_) => Vec::new(),
            Request::Startup(_) => {
                match answer(&mut wire, target, timeouts.answer + FAR_PROXY_FIRST).await {
                    Ok(FirstAnswer::Bytes(bytes)) => bytes,
                    Ok(FirstAnswer::CannotConnectNow(bytes)) if targets_left == 1 => bytes,
                    Ok(FirstAnswer::CannotConnectNow(_)) => {
                        let refusal = cannot_connect(
                            "B01",
                            format!("PostgreSQL behind {target} cannot be connected to now"),
                            "look at PostgreSQL's log on that host",
                        );
                        failures.push((target, refusal));
                        continue;
                    }
                    Ok(FirstAnswer::OnlyChannelBinding) => return Err(only_channel_binding()),
                    Err(refusal) => {
                        failures.push((target, refusal));
                        continue;
                    }
                }
            }
        };
        return Ok(Upstream {
            half: Half { wire, read_ahead },
            far: Some(far),
        });
    }
    Err(all_failed(failures))
}

/// Dials one target, shakes hands and forwards the request.
async fn reach(
    route: &Route<'_>,
    target: &Target,
    deadline: Instant,
    request: &Request,
    record: &mut SessionRecord,
) -> Result<(Wire, FarEnd), Refusal> {
    record.reached(target.to_string());
    let mut stream = dial_target(target, deadline)
        .await
        .map_err(|error| cannot_reach_target(target, &error))?;
    let failed =
        |error: io::Error| explain_read(&error).unwrap_or_else(|| broken_target(target, &error));
    stream
        .prepare()
        .and_then(|()| stream.notice_dead_peer(route.dead_peer))
        .map_err(failed)?;
    if route.negotiation == SslNegotiation::Postgres {
        stream.write_all(&SSL_REQUEST).await.map_err(failed)?;
        let mut reply = [0];
        // One byte and no more: what follows it belongs to TLS (CVE-2021-23222).
        stream.read_exact(&mut reply).await.map_err(failed)?;
        if reply != *b"S" {
            return Err(no_tls_there(target, reply[0]));
        }
        if stream.has_sent_more() {
            return Err(cannot_connect(
                "W16",
                format!("{target} sent unencrypted data after its answer to SSLRequest"),
                "somebody between the hosts may put bytes in: look at the network",
            ));
        }
    }
    let server_name = route.server_name.unwrap_or(&target.host);
    let dialled = Dialled {
        stream,
        server_name,
        tls12: route.tls12,
        records: route.records,
    };
    let began = Instant::now();
    let established = connect_tls(dialled, route.credentials)
        .await
        .map_err(|refusal| *refusal)?;
    record.handshaken(began.elapsed());
    record.id(established.id);
    record.tls(established.parameters);
    record.reached(format!("{target} {}", established.peer.identity));
    let mut wire = Wire::Tls(established.tls);
    wire.write_all(&encoded(request)).await.map_err(failed)?;
    wire.flush().await.map_err(failed)?;
    let far = FarEnd {
        target: target.clone(),
        server_name: server_name.to_owned(),
        certificate: established.peer,
        id: established.id,
    };
    Ok((wire, far))
}

async fn answer(
    wire: &mut Wire,
    target: &Target,
    within: Duration,
) -> Result<FirstAnswer, Refusal> {
    match timeout(within, first_answer(wire)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(NoAnswer(error))) => Err(explain_read(&error).unwrap_or_else(|| {
            cannot_connect(
                "N04",
                format!("{target} closed the connection without an answer: {error}"),
                "look at the log of the proxy or PostgreSQL there",
            )
        })),
        Err(_) => Err(cannot_connect(
            "N05",
            format!(
                "{target} took the connection and said nothing for {} s",
                within.as_secs()
            ),
            "look at the proxy and PostgreSQL there: one of them hangs",
        )),
    }
}

/// The very bytes of a startup, or a cancel request written anew: it has only one form.
fn encoded(request: &Request) -> Cow<'_, [u8]> {
    match request {
        Request::Startup(startup) => Cow::Borrowed(startup.packet()),
        Request::Cancel(cancel) => Cow::Owned(cancel.encode()),
    }
}

fn cannot_connect(id: &'static str, message: String, hint: &str) -> Refusal {
    Refusal::new(id, SqlState::CANNOT_CONNECT_NOW, message).hint(hint)
}

fn cannot_reach_postgres(error: &DialError) -> Refusal {
    let not_there = "start PostgreSQL on that host, or mend `postgres` in its pgtlsproxy.toml";
    let hint = match error {
        DialError::Resolve { .. } | DialError::NoAddress { .. } => {
            "mend the name in `postgres` in the pgtlsproxy.toml beside it, or the resolver of that host"
        }
        DialError::TimedOut { .. } => {
            "look at PostgreSQL on that host: it hangs, or packets to it are swallowed"
        }
        DialError::Connect { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EPERM) => {
                "let the OS user of the proxy there use that socket: look at unix_socket_permissions, unix_socket_group and its directory's mode"
            }
            // Of a Unix socket: the queue of connections that PostgreSQL has not accepted is full.
            Some(Errno::EAGAIN) => {
                "look at PostgreSQL on that host: connections come faster than it accepts them (its queue grows with max_connections)"
            }
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                "look at the limits of the proxy there (LimitNOFILE, memory)"
            }
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => {
                "mend `postgres` in the pgtlsproxy.toml there, or that host's network"
            }
            _ => not_there,
        },
    };
    cannot_connect(
        "B01",
        format!("the proxy beside PostgreSQL cannot reach it at {error}"),
        hint,
    )
}

fn silent_postgres(postgres: &PostgresAddress, after: Duration) -> Refusal {
    cannot_connect(
        "B02",
        format!(
            "PostgreSQL at {postgres} took the connection and said nothing for {} s",
            after.as_secs()
        ),
        "look at PostgreSQL on that host: it hangs, or is overloaded",
    )
}

pub(crate) fn cannot_reach_target(target: &Target, error: &DialError) -> Refusal {
    let (id, hint) = match error {
        DialError::Resolve { .. } | DialError::NoAddress { .. } => (
            "N01",
            "mend the name in client.connect, or the resolver of this host",
        ),
        DialError::Connect { .. } => (
            "N02",
            "is pgtlsproxy running there, and may its port be reached?",
        ),
        DialError::TimedOut { .. } => (
            "N02",
            "a firewall may swallow the packets: is that port open to this host?",
        ),
    };
    cannot_connect(id, format!("cannot reach {target}: {error}"), hint)
}

pub(crate) fn broken_target(target: &Target, error: &io::Error) -> Refusal {
    cannot_connect(
        "N03",
        format!("the connection to {target} broke: {error}"),
        "look at the log of the proxy or PostgreSQL there",
    )
}

pub(crate) fn silent_target(target: &Target, after: Duration) -> Refusal {
    cannot_connect(
        "N02",
        format!(
            "cannot reach {target}: no TLS handshake within {:.1} s",
            after.as_secs_f32()
        ),
        "look at the proxy there, and at the network between",
    )
}

pub(crate) fn no_tls_there(target: &Target, reply: u8) -> Refusal {
    let why = match reply {
        b'N' => "has TLS switched off",
        _ => "does not know SSLRequest",
    };
    cannot_connect(
        "T36",
        format!("the PostgreSQL at {target} {why}"),
        "set ssl = on there, or run pgtlsproxy server beside it",
    )
}

/// One target: its own refusal. Several: the last one's, and in the detail what each said.
fn all_failed(mut failures: Vec<(&Target, Refusal)>) -> Refusal {
    let Some((_, last)) = failures.pop() else {
        return cannot_connect(
            "N01",
            "there is no target to connect to".to_owned(),
            "name one in client.connect",
        );
    };
    if failures.is_empty() {
        return last;
    }
    let tried: Vec<_> = failures
        .iter()
        .map(|(target, refusal)| format!("{target}: {} [{}]", refusal.message, refusal.id))
        .collect();
    last.detail(format!("tried before: {}", tried.join("; ")))
}
