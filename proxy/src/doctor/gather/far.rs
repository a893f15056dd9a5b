//! The other host's view of the same tunnel, as its proxy tells it over the node channel (verb `probe`): its clock,
//! its rules, whether PostgreSQL takes connections there, and what deserves a look on that host.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::escape::visible;
use protocol::node::{Answer, Notice, Probe, Probed, Request};
use tokio::time::Instant;

use crate::config::{self, SslNegotiation};
use crate::doctor::facts::{Explained, Far};
use crate::net::Target;
use crate::node;
use crate::tls::{Credentials, Trust};

/// The whole question, from the dial to the answer.
const WITHIN: Duration = Duration::from_secs(2);
/// What is taken of another host's text: warnings, and bytes of each.
const WARNINGS: usize = 16;
const TEXT: usize = 512;

/// Asks the proxy at `target`. None if it does not answer: the way there is judged by what the tunnel itself meets,
/// and a PostgreSQL with TLS of its own has no node channel.
pub(super) async fn ask(
    client: &config::Client,
    target: &Target,
    credentials: &Credentials,
) -> Option<Far> {
    if client.negotiation != SslNegotiation::Direct {
        return None;
    }
    let deadline = Instant::now() + WITHIN;
    let name = client.server_name.as_deref().unwrap_or(&target.host);
    let tls = node::open(target, name, Trust::Ours(credentials), deadline)
        .await
        .ok()?;
    let request = Request::Probe(Probe {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    let (asked, began) = (SystemTime::now(), Instant::now());
    match node::ask(tls, target, &request, deadline).await.ok()? {
        // It read its clock somewhere on the way: in the middle, as far as anybody knows.
        Answer::Probed(probed) => Some(far(
            *probed,
            credentials.identity().to_string(),
            asked + began.elapsed() / 2,
        )),
        _ => None,
    }
}

/// The answer as facts; `now` is our time when its clock was read.
fn far(probed: Probed, asker: String, now: SystemTime) -> Far {
    let postgres = probed.postgres;
    let told = !postgres.address.is_empty();
    Far {
        asker,
        clock_ahead: ahead(probed.now_ms, now),
        admitted: probed.admitted,
        postgres: told.then(|| match postgres.reached {
            true => Ok(()),
            false => Err(format!(
                "{}: {}",
                visible(&postgres.address, TEXT),
                visible(&postgres.why, TEXT)
            )),
        }),
        warnings: probed
            .warnings
            .into_iter()
            .take(WARNINGS)
            .filter_map(warning)
            .collect(),
    }
}

/// In seconds; None if that clock was not told.
fn ahead(their_ms: i64, now: SystemTime) -> Option<f64> {
    let ours = now.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    let theirs = Duration::from_millis(u64::try_from(their_ms).ok()?).as_secs_f64();
    (their_ms > 0).then_some(theirs - ours)
}

fn warning(notice: Notice) -> Option<Explained> {
    let is_id = notice.id.len() == 3 && notice.id.bytes().all(|b| b.is_ascii_alphanumeric());
    is_id.then(|| Explained {
        message: visible(&notice.what, TEXT),
        way_out: visible(&notice.way_out, TEXT),
        id: notice.id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_host_says_is_bounded_and_cannot_play_tricks() {
        let notice = |id: &str, what: &str| Notice {
            id: id.to_owned(),
            what: what.to_owned(),
            way_out: "x".repeat(10_000),
        };
        let mut warnings = vec![notice("T03", "\u{1b}[2J"), notice("not an id", "x")];
        warnings.extend((0..1000).map(|_| notice("C01", "x")));
        let probed = Probed {
            now_ms: 1_000_500,
            warnings,
            ..Probed::default()
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let seen = far(probed.clone(), String::new(), at(1000));
        assert_eq!(seen.clock_ahead, Some(0.5));
        assert_eq!(seen.postgres, None);
        assert_eq!(seen.warnings.len(), WARNINGS - 1);
        assert_eq!(seen.warnings[0].message, "\\u{1b}[2J");
        assert_eq!(seen.warnings[0].way_out.len(), TEXT + 3);
        for now_ms in [0, -1, i64::MIN] {
            let probed = Probed {
                now_ms,
                ..probed.clone()
            };
            assert_eq!(far(probed, String::new(), at(1000)).clock_ahead, None);
        }
    }
}
