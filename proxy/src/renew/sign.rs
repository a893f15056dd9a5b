//! Beside the CA: this node's own certificate first, then those that other nodes ask for, which wait in the daemon. The
//! CA's key is in this process alone, and lives as long as it does.

use std::fs;
use std::path::Path;

use certs_tool::authority::{Asked, Authority, CA_CERTIFICATE, CA_CRL, CA_KEY};
use certs_tool::report::Date;
use protocol::escape::escape;
use protocol::hex::from_hex;
use protocol::identity::Fingerprint;
use protocol::node::{Certificates, Refused};
use rustls_pki_types::CertificateDer;

use super::candidate::Candidate;
use super::install::install;
use super::trust::Trust;
use super::{Done, Due, Own, Renew, forget_note, of_failure, unrenewed, unwritten};
use crate::control::{Ask, Daemon, Renewal, Renewals, Reply, Ruling};
use crate::enrol::nodes;
use crate::problem::Problem;
use crate::reload::Checked;

/// A CRL that is older is signed anew, so that nodes see that somebody does.
const CRL_SECONDS: i64 = 7 * 86_400;

/// What was granted to a node.
pub(crate) struct Granted {
    pub(crate) name: String,
    pub(crate) until: Date,
}

pub(super) fn run(renew: &Renew, checked: &Checked) -> Result<Done, Vec<Problem>> {
    let key = renew.pki.join(CA_KEY);
    let authority = Authority::open(&renew.pki, || renew.passphrase.ask(&key))
        .map_err(|failure| vec![unopened(checked, &of_failure(&failure))])?;
    let mut problems = Vec::new();
    if let Err(failure) = authority.refresh_crl(CRL_SECONDS) {
        problems.push(of_failure(&failure));
    }
    // What keeps this node from it must not keep the others from theirs.
    let own = own(&authority, checked);
    let granted = match &checked.config.control {
        Some(socket) => grant(&authority, checked, socket, &mut problems),
        None => Vec::new(),
    };
    match own {
        Ok((own, trust)) => Ok(Done {
            own,
            trust,
            granted,
            admitted: Vec::new(),
            problems,
        }),
        Err(own) => Err(own.into_iter().chain(problems).collect()),
    }
}

/// Without the CA's key this node's own certificate is not renewed either; that is told where it is due.
fn unopened(checked: &Checked, problem: &Problem) -> Problem {
    match Due::of(checked) {
        Ok(due) if due.is_now() => unrenewed(&checked.config.identity, due.until, problem),
        _ => problem.clone(),
    }
}

/// This node's own certificate, and the CA's files, where the configuration has copies of them.
fn own(
    authority: &Authority,
    checked: &Checked,
) -> Result<(Own, Option<Vec<String>>), Vec<Problem>> {
    let one = |problem: Problem| vec![problem];
    let files = &checked.config.identity;
    let due = Due::of(checked).map_err(one)?;
    let is_due = due.is_now() || !due.is_issued_by(authority.signing_der());
    let mut came = Certificates::default();
    let candidate = if is_due {
        let made = make(authority, checked, &due)
            .map_err(|problem| one(unrenewed(files, due.until, &problem)))?;
        came.certificate = made.1;
        Some(made.0)
    } else {
        Candidate::give_up(files).map_err(one)?;
        None
    };
    let news = news(authority, checked).map_err(one)?;
    came = Certificates {
        certificate: came.certificate,
        ..news
    };
    let credentials = &checked.credentials;
    let installed = install(files, credentials, &came, candidate.as_ref(), &Trust::Ours);
    let installed = installed.map_err(|problems| match problems.first() {
        Some(problem) if is_due => one(unrenewed(files, due.until, problem)),
        _ => problems,
    })?;
    forget_note(files);
    let own = match installed.until {
        Some(until) => Own::Renewed { until },
        None => Own::NotDue {
            until: due.until,
            due: due.from,
        },
    };
    Ok((own, installed.trust))
}

fn make(
    authority: &Authority,
    checked: &Checked,
    due: &Due,
) -> Result<(Candidate, String), Problem> {
    let candidate = Candidate::take(&checked.config.identity, &due.leaf)?;
    let asked = Asked {
        certificate: &due.leaf,
        request: &candidate.request,
        signature: &candidate.signature,
    };
    let made = authority
        .succeed(&asked)
        .map_err(|failure| of_failure(&failure))?;
    let certificate = text(&made.certificate_path)?;
    Ok((candidate, certificate))
}

/// Signs what waits in the daemon, and tells it what all nodes should know of the CAs.
fn grant(
    authority: &Authority,
    checked: &Checked,
    socket: &Path,
    problems: &mut Vec<Problem>,
) -> Vec<Granted> {
    let mut granted = Vec::new();
    let mut talk = || -> Result<(), Vec<Problem>> {
        let mut daemon = Daemon::ask(socket, Ask::Renewals)?;
        let mut left = Renewals::MOST;
        loop {
            let renewal = match daemon.reply()? {
                // One that goes on beyond what a daemon holds would keep this process for ever.
                Reply::Renewal(renewal) if left > 0 => renewal,
                Reply::Done => break,
                other => return Err(vec![unexpected(&other)]),
            };
            let ruling = match rule(authority, &renewal) {
                Ok((one, certificate)) => {
                    granted.push(one);
                    Ruling::Signed { certificate }
                }
                Err(problem) => {
                    let refused = Refused::from(&problem);
                    problems.push(problem);
                    Ruling::Refused { refused }
                }
            };
            daemon.say(&ruling)?;
            left -= 1;
        }
        tell(authority, checked, socket)
    };
    if let Err(talk) = talk() {
        problems.extend(talk);
    }
    granted
}

/// Has the daemon tell every node what is new of the CA and of its nodes.
pub(crate) fn tell(
    authority: &Authority,
    checked: &Checked,
    socket: &Path,
) -> Result<(), Vec<Problem>> {
    let news = news(authority, checked).map_err(|problem| vec![problem])?;
    match Daemon::ask(socket, Ask::News(Box::new(news)))?.reply()? {
        Reply::Done => Ok(()),
        other => Err(vec![unexpected(&other)]),
    }
}

fn rule(authority: &Authority, renewal: &Renewal) -> Result<(Granted, String), Problem> {
    let der = from_hex(&renewal.certificate).unwrap_or_default();
    let asked = Asked {
        certificate: &CertificateDer::from(der),
        request: &renewal.request,
        signature: &renewal.signature,
    };
    let made = authority
        .succeed(&asked)
        .map_err(|failure| of_failure(&failure))?;
    let identity = made.certificate.identity();
    let one = Granted {
        name: escape(identity.common_name().unwrap_or_default()),
        until: Date::from_unix(identity.not_after()),
    };
    Ok((one, text(&made.certificate_path)?))
}

/// What every node should know of the CAs and of the other nodes.
fn news(authority: &Authority, checked: &Checked) -> Result<Certificates, Problem> {
    let directory = authority.directory();
    let joined = authority.joined().map_err(|failure| of_failure(&failure))?;
    let nodes = authority
        .list(nodes(&joined, checked))
        .map_err(|failure| of_failure(&failure))?;
    Ok(Certificates {
        certificate: String::new(),
        ca: text(&directory.join(CA_CERTIFICATE))?,
        crl: text(&directory.join(CA_CRL))?,
        signing: Fingerprint::of(authority.signing_der()).to_string(),
        vouchers: authority
            .vouchers()
            .map_err(|failure| of_failure(&failure))?,
        dropped: authority
            .dropped()
            .map_err(|failure| of_failure(&failure))?,
        nodes: Some(nodes),
    })
}

fn text(path: &Path) -> Result<String, Problem> {
    fs::read_to_string(path).map_err(|error| unwritten(path, &error))
}

fn unexpected(reply: &Reply) -> Problem {
    Problem::new(
        "K22",
        "the daemon says something that was not asked",
        escape(format!("{reply:?}")),
        "it is of another version: restart it (systemctl restart pgtlsproxy)",
    )
}
