//! A client tunnel's daemon tells its targets its newest CRLs and takes theirs: at the start, when a reload brought a
//! newer one, and at an interval. So a CRL spreads from node to node without anybody copying files.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::node::{Answer, Crls, Request};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::{Service, ask, crls, open};
use crate::net::Target;
use crate::session::{Far, Settings};
use crate::tls::Trust;

/// A target that does not speak the node channel (a PostgreSQL with TLS of its own) is asked again so seldom: each
/// time it logs a failed handshake.
const STRANGERS: Duration = Duration::from_secs(24 * 60 * 60);

/// What became of a target the last time.
struct Last {
    ended: Result<(), &'static str>,
    not_before: Option<Instant>,
}

/// Runs until `closing`.
pub(crate) async fn exchange(
    mut settings: watch::Receiver<Arc<Settings>>,
    service: Arc<Service>,
    interval: Duration,
    mut closing: watch::Receiver<bool>,
) {
    let mut last = HashMap::new();
    loop {
        let current = Arc::clone(&settings.borrow_and_update());
        let told = current.far().map(|far| far.credentials.crls().to_vec());
        let round = async {
            if let Some(far) = current.far() {
                for target in far.targets {
                    with_target(&current, &far, target, &service, &mut last).await;
                }
            }
        };
        tokio::select! {
            () = round => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        let next = Instant::now() + with_jitter(interval);
        loop {
            tokio::select! {
                () = sleep_until(next) => break,
                _ = closing.wait_for(|closing| *closing) => return,
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = settings.borrow_and_update().far().map(|far| far.credentials.crls().to_vec());
                    if now != told {
                        break;
                    }
                }
            }
        }
    }
}

async fn with_target(
    settings: &Settings,
    far: &Far<'_>,
    target: &Target,
    service: &Service,
    last: &mut HashMap<Target, Last>,
) {
    let own = far.credentials.crls();
    let resting = last
        .get(target)
        .and_then(|last| last.not_before)
        .is_some_and(|not_before| Instant::now() < not_before);
    if own.is_empty() || resting {
        return;
    }
    let deadline = Instant::now() + settings.timeouts.connect;
    let name = far.server_name.unwrap_or(&target.host);
    let request = Request::Crl(Crls {
        crls: own.iter().map(|crl| crls::to_pem(crl)).collect(),
    });
    let answered = async {
        let tls = open(target, name, Trust::Ours(far.credentials), deadline).await?;
        let from = tls.identity().map(ToString::to_string).unwrap_or_default();
        Ok((ask(tls, target, &request, deadline).await?, from))
    };
    let ended = match answered.await {
        Ok((Answer::Crl(theirs), from)) => {
            match crls::from_pem(&theirs.crls) {
                Ok(offered) => {
                    service.keeper.take(far.credentials, offered, &from).await;
                }
                Err(why) => warn!(%target, why, "the CRLs of that node cannot be read [K06]"),
            }
            Ok(())
        }
        Ok((Answer::Refused(refused), _)) => {
            debug!(%target, reason = protocol::escape::escape(&refused.what), "CRLs not exchanged");
            Err("K14")
        }
        Ok(_) => Err("K14"),
        Err(refusal) => {
            let refusal: Box<protocol::error_response::Refusal> = refusal;
            debug!(%target, reason = refusal.message, id = refusal.id, "CRLs not exchanged");
            Err(refusal.id)
        }
    };
    let before = last.get(target).map(|last| last.ended);
    if before != Some(ended) {
        match ended {
            Ok(()) => info!(%target, tunnel = &*settings.name, "CRLs are exchanged with this node"),
            Err(id) => warn!(
                %target, tunnel = &*settings.name, cause = id,
                "CRLs are not exchanged with this node; until they are, copy ca.crl by hand"
            ),
        }
    }
    let not_before = (ended == Err("T31")).then(|| Instant::now() + STRANGERS);
    last.insert(target.clone(), Last { ended, not_before });
}

/// Between nine and eleven tenths: nodes that started together do not ask together for ever.
fn with_jitter(interval: Duration) -> Duration {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    interval.mul_f64(0.9 + f64::from(nanos % 1000) / 5000.0)
}
