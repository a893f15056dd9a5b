//! Network, clocks, tls, policy: the way from PostgreSQL here to the far proxy. What our own dial and handshake met is
//! told in their words and under their ids.

use super::{View, far};
use crate::doctor::catalogue::{self as found, Layer, Severity};
use crate::doctor::facts::{Answer, Explained, Facts, Outcome, Route, ServerError};
use crate::doctor::report::Finding;

/// Clocks this far apart decide about certificates.
const CLOCKS: f64 = 5.0;

/// The layer that an id of the proxy belongs to: N network, T and W TLS, P and L policy, B PostgreSQL behind it.
pub(super) fn layer_of(id: &str) -> Layer {
    match id.as_bytes().first() {
        Some(b'N') => Layer::Network,
        Some(b'T' | b'W' | b'F') => Layer::Tls,
        Some(b'B') => Layer::Postgres,
        _ => Layer::Policy,
    }
}

/// Where a route broke, if it did: our own refusal, or that of the proxy over there.
fn broke_at(route: &Route) -> Option<(Layer, Explained)> {
    if let Some(refusal) = &route.refusal {
        return Some((layer_of(&refusal.id), refusal.clone()));
    }
    match &route.answer {
        Some(Answer::Refused(error)) => Some((layer_of(error.proxy_id()?), told(error)?)),
        _ => None,
    }
}

/// A far proxy's refusal as it explained it.
pub(super) fn told(error: &ServerError) -> Option<Explained> {
    let id = error.proxy_id()?.to_owned();
    let message = error.message.strip_prefix("pgtlsproxy: ")?;
    let message = message
        .rsplit_once(" [")
        .map_or(message, |(message, _)| message);
    Some(Explained {
        id,
        message: message.to_owned(),
        way_out: error.hint.clone(),
    })
}

/// Routes that broke in this layer. One target that works is enough: then the others are only warned of.
fn routes(facts: &Facts, layer: Layer, view: &mut View) {
    let passes = |route: &Route| broke_at(route).is_none_or(|(at, _)| at > layer);
    let one_works = facts.routes.iter().any(passes);
    for route in &facts.routes {
        let Some((at, explained)) = broke_at(route) else {
            continue;
        };
        if at != layer {
            continue;
        }
        let fact = match &route.answer {
            Some(Answer::Refused(error)) => {
                format!("the proxy at {} answers: {}", route.target, error.line())
            }
            _ => format!("dialling {} as the client tunnel does", route.target),
        };
        let finding = Finding::explained(&explained, layer, fact);
        view.find(if one_works {
            finding.at_most(Severity::Warning)
        } else {
            finding
        });
    }
}

pub(super) fn network(facts: &Facts, view: &mut View) {
    if let Some(listener) = &facts.listener {
        match &listener.outcome {
            Outcome::Answered(_) => view.see(format!("{} listens", listener.address)),
            Outcome::Silent | Outcome::NoName(_) | Outcome::Failed(_) => {
                view.find(Finding::new(
                    &found::NOT_LISTENING,
                    words(&listener.outcome),
                    "",
                ));
            }
        }
    }
    if let Some(door) = &facts.door {
        let address = &door.reach.address;
        let fact = |what: &str| match (
            door.ours,
            facts
                .cluster
                .as_ref()
                .and_then(|cluster| cluster.server.as_ref()),
        ) {
            (false, Some(server)) if !server.conninfo_places.is_empty() => {
                let places = server.conninfo_places.join(", then ");
                format!("primary_conninfo (set in {places}) leads to {address}: {what}")
            }
            _ => format!("{address}: {what}"),
        };
        match &door.reach.outcome {
            Outcome::Answered(after) => {
                view.see(format!(
                    "{address} answers in {:.1} ms",
                    after.as_secs_f64() * 1e3
                ));
                if !door.ours {
                    view.find(Finding::new(
                        &found::DOOR_ELSEWHERE,
                        fact("that is not this tunnel's address"),
                        &facts.door_conninfo,
                    ));
                }
            }
            Outcome::Silent => view.find(Finding::new(
                &found::DOOR_SILENT,
                fact("no answer to SSLRequest"),
                "",
            )),
            Outcome::NoName(why) => {
                view.find(Finding::new(
                    &found::DOOR_NAME,
                    fact(why),
                    &facts.door_conninfo,
                ));
            }
            Outcome::Failed(why) => {
                view.find(Finding::new(
                    &found::DOOR_CLOSED,
                    fact(why),
                    &facts.door_conninfo,
                ));
            }
        }
    }
    routes(facts, Layer::Network, view);
    for route in &facts.routes {
        if let Some(after) = route.dialled {
            view.see(format!(
                "{} answers in {:.1} ms",
                route.target,
                after.as_secs_f64() * 1e3
            ));
        }
    }
}

pub(super) fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered(_) => "it answers".to_owned(),
        Outcome::Silent => "it takes the connection and says nothing".to_owned(),
        Outcome::NoName(why) | Outcome::Failed(why) => why.clone(),
    }
}

pub(super) fn clocks(facts: &Facts, view: &mut View) {
    let asked = facts.routes.iter().find_map(|route| match &route.answer {
        Some(Answer::Welcome(login)) => login.clock_ahead,
        _ => None,
    });
    let asked = asked.map(|ahead| ("the primary's clock".to_owned(), ahead));
    let proxy =
        || far::clock(facts).map(|(target, ahead)| (format!("the clock at {target}"), ahead));
    let Some((whose, ahead)) = asked.or_else(proxy).or_else(|| streamed(facts)) else {
        return;
    };
    let how = if ahead > 0.0 { "ahead of" } else { "behind" };
    let fact = format!("{whose} is {:.1} s {how} ours", ahead.abs());
    if ahead.abs() > CLOCKS {
        view.find(Finding::new(&found::CLOCKS_DIFFER, fact, ""));
    } else {
        view.see(fact);
    }
}

/// What a message of the stream tells, where no clock was asked. It may have waited on its way, in every buffer of a busy
/// link: only that the other clock is ahead of ours is certain, and then by this or more.
fn streamed(facts: &Facts) -> Option<(String, f64)> {
    let receiver = facts.cluster.as_ref()?.server.as_ref()?.receiver.as_ref()?;
    // What was sent before our clock was set tells of then.
    let ahead = receiver
        .clock_ahead
        .filter(|_| receiver.silent_for.is_some_and(|seconds| seconds < 60.0))?;
    (ahead > 0.0).then(|| ("the primary's clock, by its stream,".to_owned(), ahead))
}

pub(super) fn tls(facts: &Facts, view: &mut View) {
    for problem in &facts.files {
        view.find(Finding::problem(problem, Layer::Tls));
    }
    routes(facts, Layer::Tls, view);
    for route in &facts.routes {
        if let Some(peer) = route.peer.as_ref().filter(|_| route.refusal.is_none()) {
            view.see(format!("{} is {peer}", route.target));
        }
    }
}

pub(super) fn policy(facts: &Facts, view: &mut View) {
    let door = facts.door.as_ref();
    if let (Some(false), Some(cluster)) = (door.and_then(|door| door.admits), &facts.cluster) {
        view.find(Finding::new(
            &found::OS_USER,
            format!(
                "PostgreSQL runs as {}, and client.allow_os_users does not list it",
                cluster.owner
            ),
            &cluster.owner,
        ));
    }
    routes(facts, Layer::Policy, view);
}
