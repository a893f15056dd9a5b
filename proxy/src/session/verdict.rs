//! The verdict on a live session under settings that came after it: whether it would be admitted today. Asked when a
//! reload brings new CAs, CRLs or rules, and by a session that was on its way meanwhile.

use protocol::error_response::{Refusal, SqlState};

use super::legs::{DownstreamLeg, Settings, UpstreamLeg};
use super::registry::Live;
use super::upstream::FarEnd;
use crate::net::{Peer, Target};
use crate::tls::Credentials;

/// Why the session would not be admitted by these settings; none if it would.
pub(super) fn objection(live: &Live, settings: &Settings) -> Option<Refusal> {
    downstream(live, &settings.downstream)
        .and_then(|()| upstream(live, &settings.upstream))
        .err()
        .map(|refusal| not_admitted(*refusal))
}

/// Never with a SQLSTATE that stands for "try again now".
fn not_admitted(refusal: Refusal) -> Refusal {
    Refusal {
        sqlstate: SqlState::INVALID_AUTHORIZATION,
        ..refusal
    }
}

/// Why the session must end now that a certificate in it has expired; none if none has.
pub(super) fn expiry(live: &Live, credentials: &Credentials, now: i64) -> Option<Refusal> {
    let about = &live.about;
    let downstream = about.certificate.iter().filter(|peer| now > peer.expires);
    let downstream = downstream.map(|peer| credentials.judge_client(peer));
    let far = live.far().filter(|far| now > far.certificate.expires);
    let far = far.map(|far| credentials.judge_server(&far.certificate, &far.server_name));
    downstream
        .chain(far)
        .find_map(Result::err)
        .map(|refusal| not_admitted(*refusal))
}

fn downstream(live: &Live, leg: &DownstreamLeg) -> Result<(), Box<Refusal>> {
    let about = &live.about;
    let startup = &about.startup;
    let verdict = match (leg, &about.certificate, about.peer) {
        (
            DownstreamLeg::Mtls {
                credentials,
                policy,
                ..
            },
            Some(certificate),
            peer,
        ) => {
            credentials.judge_client(certificate)?;
            let address = match peer {
                Peer::Tcp(address) => Some(address.ip()),
                Peer::Unix { .. } => None,
            };
            policy.authorise(&certificate.identity, address, startup)
        }
        (
            DownstreamLeg::Plain {
                os_users: Some(users),
            },
            _,
            Peer::Unix { uid, .. },
        ) => users.authorise(uid, &uid.to_string(), startup),
        // A tunnel never changes the kind of its legs; on a plain TCP listener everybody is let in.
        (DownstreamLeg::Mtls { .. }, None, _) | (DownstreamLeg::Plain { .. }, _, _) => {
            return Ok(());
        }
    };
    verdict.map(|_| ()).map_err(Box::new)
}

fn upstream(live: &Live, leg: &UpstreamLeg) -> Result<(), Box<Refusal>> {
    match (leg, live.far()) {
        (
            UpstreamLeg::Mtls {
                credentials,
                targets,
                server_name,
                ..
            },
            Some(far),
        ) => {
            let name = wanted_name(far, targets, server_name.as_deref());
            credentials.judge_server(&far.certificate, name)
        }
        // Not reached yet, or without TLS.
        (UpstreamLeg::Mtls { .. }, None) | (UpstreamLeg::Plain { .. }, _) => Ok(()),
    }
}

/// Targets hold for new connections: a session to one that is configured no more is judged by the name of its time.
fn wanted_name<'a>(
    far: &'a FarEnd,
    targets: &'a [Target],
    server_name: Option<&'a str>,
) -> &'a str {
    if targets.contains(&far.target) {
        server_name.unwrap_or(&far.target.host)
    } else {
        &far.server_name
    }
}
