//! `probe`: what this side sees of the node that asks, of itself, and of the PostgreSQL behind. For `doctor`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::escape::visible;
use protocol::identity::Identity;
use protocol::node::{Notice, Probed, Reached};
use protocol::policy::Policy;
use tokio::time::Instant;

use super::Context;
use crate::health::Health;
use crate::net::{Peer, dial_postgres};
use crate::tls::Credentials;

/// Whoever asks waits for two seconds in all.
const DIAL: Duration = Duration::from_secs(1);
/// Warnings that are told, and the bytes of each of their texts.
const WARNINGS: usize = 16;
const TEXT: usize = 512;

pub(super) async fn probe(
    identity: &Identity,
    credentials: &Credentials,
    policy: &Policy,
    context: &Context<'_>,
) -> Probed {
    let address = match context.peer {
        Peer::Tcp(address) => Some(address.ip().to_canonical()),
        Peer::Unix { .. } => None,
    };
    let admitted = policy.may_replicate(identity, address);
    Probed {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or_default(),
        identity: identity.to_string(),
        fingerprint: identity.fingerprint().to_string(),
        address: address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        admitted,
        postgres: postgres(context).await,
        not_after: credentials.identity().not_after(),
        // They name files of this host: nothing for a node that has no business here.
        warnings: if admitted {
            warnings(&context.service.health)
        } else {
            Vec::new()
        },
    }
}

fn warnings(health: &Health) -> Vec<Notice> {
    let warnings = health.own_warnings().into_iter().take(WARNINGS);
    let notice = |problem: crate::problem::Problem| Notice {
        id: problem.id.to_owned(),
        what: visible(&problem.what, TEXT),
        way_out: visible(&problem.way_out, TEXT),
    };
    warnings.map(|warning| notice(warning.problem)).collect()
}

/// Connects and closes: PostgreSQL logs nothing of a connection that ends before its first byte
/// (`ProcessStartupPacket`), and nothing of this channel is ever sent to it.
async fn postgres(context: &Context<'_>) -> Reached {
    let Some(address) = context.settings.postgres() else {
        return Reached::default();
    };
    let deadline = Instant::now() + context.settings.timeouts.dial.min(DIAL);
    let dialled = dial_postgres(address, deadline).await;
    Reached {
        address: address.to_string(),
        reached: dialled.is_ok(),
        why: dialled
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default(),
    }
}
