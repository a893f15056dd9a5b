//! Elsewhere: asks the CA's host over the node channel, and takes what has come of the last time's request.

use std::thread;
use std::time::{Duration, Instant as Clock};

use certs_tool::report::Date;
use protocol::error_response::Refusal;
use protocol::escape::escape;
use protocol::identity::Fingerprint;
use protocol::node::{Answer, Certificates, Request};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::Instant;

use super::candidate::Candidate;
use super::install::{Installed, install};
use super::trust::Trust;
use super::{Done, Due, Own, Renew, forget_note, unrenewed};
use crate::config::{Config, Side, SslNegotiation};
use crate::net::Target;
use crate::node::{ask, for_a_command, open};
use crate::problem::Problem;
use crate::reload::Checked;
use crate::tls::{Credentials, Trust as Known};

/// From dial to answer, for each host.
const TAKES: Duration = Duration::from_secs(10);
/// Between two questions, for one who waits.
const AGAIN: Duration = Duration::from_millis(500);

/// What the CA's host says.
enum Heard {
    Came(Box<Certificates>),
    /// Nobody has signed yet; when somebody did last.
    Waits(Option<Date>),
}

pub(super) fn run(renew: &Renew, checked: &Checked) -> Result<Done, Vec<Problem>> {
    let one = |problem: Problem| vec![problem];
    let runtime = for_a_command().map_err(one)?;
    let due = Due::of(checked).map_err(one)?;
    let files = &checked.config.identity;
    let mut done = Done {
        own: Own::NotDue {
            until: due.until,
            due: due.from,
        },
        trust: None,
        granted: Vec::new(),
        admitted: Vec::new(),
        problems: Vec::new(),
    };
    if !due.is_now() {
        let came = runtime.block_on(hear(checked, None));
        let installed = came.and_then(|came| match came {
            Heard::Came(came) => take(checked, &came, None).map(|it| (Some(it), came)),
            Heard::Waits(_) => Ok((None, Box::default())),
        });
        match installed {
            Ok((installed, came)) => {
                if let Some(installed) = installed {
                    done.trust = installed.trust;
                    done.problems.extend(installed.left_out);
                }
                renew.admit(checked, &came, &mut done);
                match signing(&came) {
                    Some(ca) if !due.is_issued_by(&ca) => {}
                    // One that waits may be what a new CA is asked with.
                    None => return Ok(done),
                    Some(_) => {
                        Candidate::give_up(files).map_err(one)?;
                        forget_note(files);
                        return Ok(done);
                    }
                }
            }
            // It would be early to complain: there are two thirds of a life to go.
            Err(problem) => {
                done.problems.push(problem.warning());
                return Ok(done);
            }
        }
    }
    let failed = |problem: &Problem| one(unrenewed(files, due.until, problem));
    let candidate = Candidate::take(files, &due.leaf).map_err(|problem| failed(&problem))?;
    let until = Clock::now() + renew.wait;
    let signed = loop {
        match runtime.block_on(hear(checked, Some(&candidate))) {
            Ok(Heard::Came(came)) => {
                let installed = take(checked, &came, Some(&candidate));
                let installed = installed.map_err(|problem| failed(&problem))?;
                forget_note(files);
                done.trust = installed.trust.or(done.trust);
                // Both times the same is said of the same CAs.
                done.problems.retain(|problem| problem.id != "K19");
                done.problems.extend(installed.left_out);
                renew.admit(checked, &came, &mut done);
                done.own = Own::Renewed {
                    until: installed.until.unwrap_or(due.until),
                };
                return Ok(done);
            }
            Ok(Heard::Waits(_)) if Clock::now() < until => thread::sleep(AGAIN),
            Ok(Heard::Waits(signed)) => break signed,
            Err(problem) => return Err(failed(&problem)),
        }
    };
    let waited = Date::now().unix().saturating_sub(candidate.since);
    if waited > due.patience(checked.credentials.identity()) {
        let since = Date::from_unix(candidate.since);
        let last = match signed {
            Some(last) => format!("somebody signed there last at {last}"),
            None => "nobody has signed there since that daemon was started".to_owned(),
        };
        return Err(failed(&Problem::new(
            "K23",
            format!("the request has waited at the CA's host since {since}"),
            last,
            "on the CA's host: pgtlsproxy renew; systemctl status pgtlsproxy-renew.timer",
        )));
    }
    done.own = Own::Asked { signed };
    Ok(done)
}

/// The CA that signs now, if that was said.
fn signing(came: &Certificates) -> Option<CertificateDer<'static>> {
    let mut cas = CertificateDer::pem_slice_iter(came.ca.as_bytes()).flatten();
    cas.find(|ca| Fingerprint::of(ca).to_string() == came.signing)
}

fn take(
    checked: &Checked,
    came: &Certificates,
    candidate: Option<&Candidate>,
) -> Result<Installed, Problem> {
    let (files, now) = (&checked.config.identity, &checked.credentials);
    let installed = install(files, now, came, candidate, &Trust::Vouched);
    installed.map_err(|mut problems| problems.remove(0))
}

/// Asks one host after the other until one has an answer; a refusal is told where nobody has.
async fn hear(checked: &Checked, candidate: Option<&Candidate>) -> Result<Heard, Problem> {
    let request = Request::Renew(candidate.map_or_else(Default::default, |candidate| {
        protocol::node::Renew {
            request: candidate.request.clone(),
            signature: candidate.signature.clone(),
        }
    }));
    let (mut waits, mut failure) = (None, None);
    for (target, name) in hosts(&checked.config) {
        match at(&target, &name, &checked.credentials, &request).await {
            Ok(Heard::Came(came)) => return Ok(Heard::Came(came)),
            Ok(Heard::Waits(signed)) => waits = waits.max(Some(signed)),
            Err(problem) => failure = failure.or(Some(problem)),
        }
    }
    match (waits, failure) {
        (Some(signed), _) => Ok(Heard::Waits(signed)),
        (None, Some(problem)) => Err(problem),
        (None, None) => Err(Problem::new(
            "K24",
            "it is not known whom to ask for the next certificate",
            "the CA is not on this host, and no client tunnel leads to another",
            "set node.renew_from = [\"HOST:PORT\"], the CA's host",
        )),
    }
}

/// Who may be the CA's host: what the configuration says, else whatever the client tunnels lead to.
fn hosts(config: &Config) -> Vec<(Target, String)> {
    let named = |target: &Target, name: Option<&String>| {
        let name = name.unwrap_or(&target.host).clone();
        (target.clone(), name)
    };
    let node = &config.node;
    if !node.renew_from.is_empty() {
        let targets = node.renew_from.iter();
        return targets
            .map(|target| named(target, node.renew_name.as_ref()))
            .collect();
    }
    let clients = config
        .tunnels
        .iter()
        .filter_map(|tunnel| match &tunnel.side {
            Side::Client(client) if client.negotiation == SslNegotiation::Direct => Some(client),
            _ => None,
        });
    let mut hosts = Vec::new();
    for client in clients {
        for target in &client.targets {
            let host = named(target, client.server_name.as_ref());
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    hosts
}

async fn at(
    target: &Target,
    name: &str,
    credentials: &Credentials,
    request: &Request,
) -> Result<Heard, Problem> {
    let of_refusal = |refusal: Box<Refusal>| {
        let Refusal {
            message,
            detail,
            hint,
            ..
        } = *refusal;
        let way_out = hint.unwrap_or_else(|| "pgtlsproxy doctor".to_owned());
        Problem::new("K25", message, detail.unwrap_or_default(), way_out)
    };
    let deadline = Instant::now() + TAKES;
    let tls = open(target, name, Known::Ours(credentials), deadline)
        .await
        .map_err(of_refusal)?;
    match ask(tls, target, request, deadline)
        .await
        .map_err(of_refusal)?
    {
        Answer::Renewed(came) => Ok(Heard::Came(Box::new(came))),
        Answer::Waiting(waiting) => {
            let signed = (waiting.signed > 0).then(|| Date::from_unix(waiting.signed));
            Ok(Heard::Waits(signed))
        }
        Answer::Refused(refused) => Err(Problem::new(
            "K26",
            format!(
                "{target} refuses it: {} [{}]",
                escape(&refused.what),
                escape(&refused.id)
            ),
            escape(&refused.why),
            escape(&refused.way_out),
        )),
        _ => Err(Problem::new(
            "K22",
            format!("{target} gave another answer than was asked for"),
            "",
            "use a pgtlsproxy of the same version on both hosts",
        )),
    }
}
