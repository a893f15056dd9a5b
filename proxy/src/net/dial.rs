//! Dialling, always within a deadline: names are resolved anew each time and every address of a name is tried.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::{PostgresAddress, Stream, Target};

/// Why nothing answered; keeps the kernel's or resolver's own error.
#[derive(Debug)]
pub(crate) enum DialError {
    Resolve { host: String, source: io::Error },
    NoAddress { host: String },
    Connect { address: String, source: io::Error },
    TimedOut { address: String, after: Duration },
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { host, source } => {
                write!(f, "the name {host} cannot be resolved: {source}")
            }
            Self::NoAddress { host } => write!(f, "the name {host} has no address"),
            Self::Connect { address, source } => write!(f, "{address}: {source}"),
            Self::TimedOut { address, after } => {
                write!(
                    f,
                    "{address}: no answer within {:.1} s",
                    after.as_secs_f32()
                )
            }
        }
    }
}

/// Connects to the local PostgreSQL.
pub(crate) async fn dial_postgres(
    address: &PostgresAddress,
    deadline: Instant,
) -> Result<Stream, DialError> {
    match address {
        PostgresAddress::Tcp(target) => dial_target(target, deadline).await,
        PostgresAddress::Unix(path) => {
            let name = || path.display().to_string();
            match within(deadline, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => Ok(Stream::Unix(stream)),
                Ok(Err(source)) => Err(DialError::Connect {
                    address: name(),
                    source,
                }),
                Err(after) => Err(DialError::TimedOut {
                    address: name(),
                    after,
                }),
            }
        }
    }
}

/// Connects to the first address of `target` that answers. What time is left is divided among the addresses left,
/// so that one that swallows packets does not use it all.
pub(crate) async fn dial_target(target: &Target, deadline: Instant) -> Result<Stream, DialError> {
    let Target { host, port } = target;
    let addresses: Vec<_> = match within(deadline, lookup_host((host.as_str(), *port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(source)) => {
            return Err(DialError::Resolve {
                host: host.clone(),
                source,
            });
        }
        Err(after) => {
            return Err(DialError::TimedOut {
                address: format!("resolving {host}"),
                after,
            });
        }
    };
    let mut failure = DialError::NoAddress { host: host.clone() };
    for (tried, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        failure = match within(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(Stream::Tcp(stream)),
            Ok(Err(source)) => DialError::Connect {
                address: address.to_string(),
                source,
            },
            Err(after) => DialError::TimedOut {
                address: address.to_string(),
                after,
            },
        };
    }
    Err(failure)
}

/// The future's output, or how long it was waited for.
async fn within<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Duration> {
    let start = Instant::now();
    timeout_at(deadline, future)
        .await
        .map_err(|_| start.elapsed())
}
