//! What the passing of time does: certificates, CAs and CRLs near their end are named before it hurts, and a session
//! whose peer's certificate has expired is ended where `identity.on_expiry` says so. Nodes that wait for their renewal
//! for too long are told of.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Running;
use crate::control::Renewals;
use crate::health::{Health, unix};
use crate::session::Registry;
use crate::tls::Credentials;

/// The dates in a certificate are whole seconds.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at the clock for as long as the process runs.
pub(crate) async fn run(
    credentials: watch::Receiver<Arc<Credentials>>,
    registry: Arc<Registry>,
    health: Arc<Health>,
    renewals: Option<Arc<Renewals>>,
) {
    let mut clock = interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        clock.tick().await;
        let credentials = Arc::clone(&credentials.borrow());
        let now = SystemTime::now();
        look(&credentials, &registry, &health, now);
        if let Some(renewals) = &renewals {
            health.unsigned(renewals.overdue(now), now);
        }
    }
}

fn look(credentials: &Credentials, registry: &Registry, health: &Health, now: SystemTime) {
    let papers = credentials.papers().iter();
    let papers = papers.filter_map(|paper| Some((paper.validity()?, paper.problem(unix(now)))));
    health.own(papers.collect(), now);
    // A peer has many sessions: each certificate is looked at once.
    let mut met = HashSet::new();
    for live in registry.all() {
        for certificate in live.certificates() {
            if met.insert(certificate.identity.fingerprint()) {
                health.met(certificate, now);
            }
        }
        if credentials.on_expiry() == Running::Close
            && let Err(expired) = live.judge_expiry(credentials, unix(now))
        {
            live.end(*expired);
        }
    }
    health.forget_the_gone(now);
}
