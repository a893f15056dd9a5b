//! A client tunnel's daemon tells its targets its newest CRLs and takes theirs: at the start, when a reload brought a
//! newer one, and at an interval. In between a question waits at each of them for what comes next. So a CRL spreads from
//! node to node at once, in both directions of a client tunnel, without anybody copying files.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::error_response::Refusal;
use protocol::identity::Identity;
use protocol::node::{Answer, Crls, Request};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::{Service, ask, crls, open};
use crate::net::Target;
use crate::session::{Far, Settings};
use crate::tls::Trust;

/// A target that does not speak the node channel (a PostgreSQL with TLS of its own) is asked again so seldom: each
/// time it logs a failed handshake.
const STRANGERS: Duration = Duration::from_secs(24 * 60 * 60);

/// A question waits no longer than this for its answer, so that a path which died in silence is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// After a question that nobody answered.
const AGAIN_AFTER: Duration = Duration::from_secs(15);
/// So close to the next round nobody waits.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);

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
        let mut waiting = JoinSet::new();
        if let Some(far) = current.far() {
            for target in far.targets {
                let answers = last.get(target).is_some_and(|last| last.ended.is_ok());
                if answers && !far.credentials.crls().is_empty() {
                    let (settings, service) = (Arc::clone(&current), Arc::clone(&service));
                    waiting.spawn(wait_at(settings, target.clone(), service, next));
                }
            }
        }
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

/// Asks again and again, each time for as long as the answer may wait, until something newer came or `until`. What
/// fails here is told by the next round, and tried again before: the node may have been restarted.
async fn wait_at(settings: Arc<Settings>, target: Target, service: Arc<Service>, until: Instant) {
    let Some(far) = settings.far() else { return };
    loop {
        let begin = Instant::now();
        let left = until.saturating_duration_since(begin).min(LONGEST_WAIT);
        if left < SHORTEST_WAIT {
            return;
        }
        let deadline = begin + left + settings.timeouts.connect;
        let wait = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
        let (theirs, from) = match ask_for_crls(&settings, &far, &target, wait, deadline).await {
            Ok((Answer::Crl(theirs), from)) => (theirs, from),
            Ok(_) => return,
            Err(_) => {
                sleep(AGAIN_AFTER).await;
                continue;
            }
        };
        let Ok(offered) = crls::from_pem(&theirs.crls) else {
            return;
        };
        let own = far.credentials.crls();
        let newer = offered.iter().any(|crl| !own.contains(crl));
        if let Some(from) = from {
            service.heard.note(&from, &offered);
            service
                .keeper
                .take(far.credentials, offered, &from.to_string())
                .await;
        }
        // After what is newer comes a reload, and with it a round. Who answers too early does not wait: it is an older one.
        if newer || begin.elapsed() < left / 2 {
            return;
        }
    }
}

/// One question and its answer, and of whom it came.
async fn ask_for_crls(
    settings: &Settings,
    far: &Far<'_>,
    target: &Target,
    wait: u32,
    deadline: Instant,
) -> Result<(Answer, Option<Identity>), Box<Refusal>> {
    let name = far.server_name.unwrap_or(&target.host);
    let request = Request::Crl(Crls {
        crls: far
            .credentials
            .crls()
            .iter()
            .map(|crl| crls::to_pem(crl))
            .collect(),
        wait,
    });
    let opened_by = deadline.min(Instant::now() + settings.timeouts.connect);
    let tls = open(target, name, Trust::Ours(far.credentials), opened_by).await?;
    let from = tls.identity().cloned();
    Ok((ask(tls, target, &request, deadline).await?, from))
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
    let answered = ask_for_crls(settings, far, target, 0, deadline).await;
    let ended = match answered {
        Ok((Answer::Crl(theirs), from)) => {
            match crls::from_pem(&theirs.crls) {
                Ok(offered) => {
                    if let Some(from) = &from {
                        service.heard.note(from, &offered);
                    }
                    let from = from.map(|from| from.to_string()).unwrap_or_default();
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
