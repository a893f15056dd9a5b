//! The running daemon: it withdraws the invitation, loads CRL and rules, ends the sessions, and knows which nodes have
//! shown the newest CRL.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol::escape::escape;

use super::certificates::Certificates;
use super::{Step, first};
use crate::control::{Ask, Daemon, Reply, Spread};
use crate::problem::Problem;

/// How long sessions may take to end, and other nodes to show that they know.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon, as it was found.
pub(super) struct Link {
    socket: PathBuf,
    name: String,
    /// The node that this is, which needs not be told.
    own: Option<String>,
    /// Of that name, waiting.
    pub(super) invitations: usize,
    /// Before anything was done.
    before: Spread,
}

impl Link {
    pub(super) fn open(socket: &Path, name: &str, own: Option<&str>) -> Result<Self, Problem> {
        let invitations = match ask(socket, Ask::Invitations)? {
            Reply::Invitations { invitations } => invitations,
            other => return Err(unexpected(&other)),
        };
        let mut link = Self {
            socket: socket.to_owned(),
            name: name.to_owned(),
            own: own.map(ToOwned::to_owned),
            invitations: invitations
                .iter()
                .filter(|waiting| waiting.name == name)
                .count(),
            before: Spread::default(),
        };
        link.before = link.look()?;
        Ok(link)
    }

    /// What is left to do here.
    pub(super) fn due(&self, certificates: &Certificates) -> Vec<String> {
        let mut due = Vec::new();
        if certificates.due().is_some() || !self.goes_by(&self.before, certificates) {
            due.push("have the daemon load the CRL and spread it".to_owned());
        }
        match self.before.sessions {
            0 => {}
            sessions => due.push(format!("end its {sessions} session(s)")),
        }
        due
    }

    pub(super) fn withdraw(&self) -> Step {
        let name = self.name.clone();
        match ask(&self.socket, Ask::Withdraw { name }) {
            Ok(Reply::WithdrawnMany { invitations: 0 }) => {
                Step::WasSo("no invitation of it waits".to_owned())
            }
            Ok(Reply::WithdrawnMany { .. }) => Step::Done("its invitation is withdrawn".to_owned()),
            Ok(other) => Step::Remains(unexpected(&other)),
            Err(problem) => Step::Remains(problem),
        }
    }

    /// Has CRL and rules loaded; running sessions are judged by them at once.
    pub(super) fn load(&self, certificates: &Certificates) -> Step {
        let before = self.goes_by(&self.before, certificates);
        let loaded = ask(
            &self.socket,
            Ask::Crl {
                crls: certificates.crls(),
            },
        )
        .and_then(|_| self.look());
        match loaded {
            Ok(now) if self.goes_by(&now, certificates) => {
                let words = "the daemon goes by the newest CRL".to_owned();
                if before {
                    Step::WasSo(words)
                } else {
                    Step::Done(words)
                }
            }
            Ok(_) => Step::Remains(Problem::new(
                "M09",
                "the daemon of this node does not go by the CA's CRL",
                "identity.crl is another file or none, and node.state is not set, where it could keep it",
                "set identity.crl to the CA's ca.crl, then run this again",
            )),
            Err(problem) => Step::Remains(problem),
        }
    }

    /// They were judged with the reload; this waits for their end.
    pub(super) fn end_sessions(&self) -> Step {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.look() {
                Ok(Spread { sessions: 0, .. }) => {
                    return match self.before.sessions {
                        0 => Step::WasSo("it has no session here".to_owned()),
                        ended => Step::Done(format!("{ended} session(s) ended")),
                    };
                }
                Ok(_) if Instant::now() < deadline => sleep(PAUSE),
                Ok(Spread { sessions, .. }) => {
                    return Step::Remains(Problem::new(
                        "M10",
                        format!("{sessions} session(s) of {} go on", self.name),
                        "neither CRL nor rules of this daemon speak against them",
                        "pgtlsproxy check says what is amiss; a restart ends every session",
                    ));
                }
                Err(problem) => return Step::Remains(problem),
            }
        }
    }

    /// Waits until every other node that talks with this one has shown the CRL; names those that have not.
    pub(super) fn spread(&self, certificates: &Certificates, tell: &mut dyn FnMut(Step)) {
        let deadline = Instant::now() + PATIENCE;
        let others = &certificates.others;
        let now = loop {
            match self.look() {
                Ok(now) if Instant::now() < deadline && late(&now, others).next().is_some() => {
                    sleep(PAUSE)
                }
                Ok(now) => break now,
                Err(problem) => return tell(Step::Remains(problem)),
            }
        };
        let names = |list: Vec<&str>| list.join(", ");
        let knowing = now
            .nodes
            .iter()
            .filter(|(name, all)| *all && others.contains(name));
        let knowing: Vec<&str> = knowing.map(|(name, _)| name.as_str()).collect();
        let late: Vec<&str> = late(&now, others).collect();
        if !knowing.is_empty() {
            let words = format!("known to: {}", names(knowing.clone()));
            let before = |name: &&str| {
                self.before
                    .nodes
                    .iter()
                    .any(|(known, all)| *all && known == name)
            };
            let same = self.before.crls == now.crls && knowing.iter().all(before);
            tell(if same {
                Step::WasSo(words)
            } else {
                Step::Done(words)
            });
        }
        if !late.is_empty() {
            tell(Step::Remains(Problem::new(
                "M11",
                format!("not known yet to: {}", names(late)),
                "they have asked before, and not since the CRL was written",
                "they learn when they ask again (docs/enrolment.md); run this again to see it, or copy ca.crl there",
            )));
        }
        let unheard = others.iter().filter(|name| {
            !now.nodes.iter().any(|(known, _)| known == *name) && Some(*name) != self.own.as_ref()
        });
        let unheard: Vec<&str> = unheard.map(String::as_str).collect();
        if !unheard.is_empty() {
            tell(Step::Note(Problem::new(
                "M12",
                format!(
                    "never heard of since the daemon's start: {}",
                    names(unheard)
                ),
                "a node learns of it when its client tunnel reaches this one, or this one's reaches it",
                "where one of them serves others, copy ca.crl there",
            )));
        }
    }

    fn look(&self) -> Result<Spread, Problem> {
        let name = self.name.clone();
        match ask(&self.socket, Ask::Spread { name })? {
            Reply::Spread(spread) => Ok(spread),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether handshakes there go by the CRLs that lie beside the CA.
    fn goes_by(&self, spread: &Spread, certificates: &Certificates) -> bool {
        let crls = certificates.crl_fingerprints();
        !crls.is_empty() && crls.iter().all(|crl| spread.crls.contains(crl))
    }
}

/// Nodes that have been heard of, and not with all of the CRLs.
fn late<'a>(spread: &'a Spread, others: &'a [String]) -> impl Iterator<Item = &'a str> {
    spread
        .nodes
        .iter()
        .filter(|(name, all)| !all && others.contains(name))
        .map(|(name, _)| name.as_str())
}

fn ask(socket: &Path, ask: Ask) -> Result<Reply, Problem> {
    Daemon::ask(socket, ask)
        .and_then(|mut daemon| daemon.reply())
        .map_err(first)
}

fn unexpected(reply: &Reply) -> Problem {
    Problem::new(
        "M13",
        "the daemon says something that was not asked",
        escape(format!("{reply:?}")),
        "it is of another version: restart it (systemctl restart pgtlsproxy), then run this again",
    )
}
