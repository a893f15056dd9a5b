//! What the proxy on the other host says itself. Its word counts where our own way shows nothing: what a login through
//! it met is the better witness. A far side that cannot be asked is no fault.

use super::View;
use crate::doctor::catalogue::{self as found, Entry, Layer, Severity};
use crate::doctor::facts::{Answer, Cluster, Facts, Far, Route};
use crate::doctor::report::Finding;

/// The first far clock that was told: whose, and how far it is ahead of ours in seconds.
pub(super) fn clock(facts: &Facts) -> Option<(&str, f64)> {
    told(facts).find_map(|(route, far)| Some((route.target.as_str(), far.clock_ahead?)))
}

/// Papers over there that are near their end, or have another fault: the tunnel works, and will not for ever.
pub(super) fn tls(facts: &Facts, view: &mut View) {
    warnings(facts, view, Layer::Tls, Severity::Warning);
}

pub(super) fn policy(facts: &Facts, view: &mut View) {
    warnings(facts, view, Layer::Policy, Severity::Note);
    stands(facts, view, &found::FAR_NO_RULE, |far| {
        (!far.admitted).then(|| (format!("it says so of {}", far.asker), far.asker.clone()))
    });
}

pub(super) fn postgres(facts: &Facts, view: &mut View) {
    stands(facts, view, &found::FAR_POSTGRES_DOWN, |far| {
        let why = far.postgres.as_ref()?.as_ref().err()?;
        Some((format!("it cannot connect to {why}"), String::new()))
    });
}

fn told(facts: &Facts) -> impl Iterator<Item = (&Route, &Far)> {
    facts
        .routes
        .iter()
        .filter_map(|route| Some((route, route.far.as_ref()?)))
}

/// What stands in the way by the word of a far proxy (fact, and what fills the way out), where no login tells.
fn stands(
    facts: &Facts,
    view: &mut View,
    entry: &Entry,
    objection: impl Fn(&Far) -> Option<(String, String)>,
) {
    let works = |route: &Route| match (&route.answer, &route.far) {
        (Some(Answer::Welcome(_)), _) => true,
        (_, Some(far)) => objection(far).is_none(),
        (_, None) => false,
    };
    let flows = facts.cluster.as_ref().is_some_and(Cluster::flows);
    let only_warn = flows || facts.routes.iter().any(works);
    for (route, far) in told(facts).filter(|(route, _)| is_unheard(route)) {
        let Some((fact, fill)) = objection(far) else {
            continue;
        };
        let finding = Finding::new(
            entry,
            format!("the proxy at {}: {fact}", route.target),
            &fill,
        );
        view.find(if only_warn {
            finding.at_most(Severity::Warning)
        } else {
            finding
        });
    }
}

/// Nothing on our own way told what becomes of a startup there.
fn is_unheard(route: &Route) -> bool {
    route.refusal.is_none()
        && matches!(route.answer, None | Some(Answer::Silent | Answer::Broke(_)))
}

/// Faults of papers have ids in `T`; the rest is its host's own affair, and worth a note.
fn warnings(facts: &Facts, view: &mut View, layer: Layer, severity: Severity) {
    for (route, far) in told(facts) {
        let warnings = far.warnings.iter();
        for warning in warnings.filter(|one| one.id.starts_with('T') == (layer == Layer::Tls)) {
            let fact = format!("the proxy at {} warns of itself", route.target);
            view.find(Finding::explained(warning, layer, fact).at_most(severity));
        }
    }
}
