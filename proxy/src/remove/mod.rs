//! A node goes, in steps that each can be done again: its invitation, its certificates, its rules, its sessions, what the
//! other nodes know of it, its slot. Every step looks first, so that a run that was interrupted is gone on with, and a
//! run after the last finds nothing left to do.

mod certificates; // who it is by the ledger; revocation
mod daemon; // what the running daemon is told, and tells
mod postgres; // its slot, and who still waits for it

use std::path::PathBuf;

use certs_tool::key::PassphraseSource;
use certs_tool::profile::NodeName;
use certs_tool::report::Failure;

use crate::config::Source;
use crate::enrol::{Going, Which, control_socket, dismiss, rule_name, without};
use crate::problem::Problem;
use crate::reload::{Checked, load};
use certificates::Certificates;
use daemon::Link;
use postgres::Site;

/// What is wanted.
pub(crate) struct Remove {
    pub(crate) name: NodeName,
    /// Where the configuration is.
    pub(crate) directory: PathBuf,
    /// Where the CA is.
    pub(crate) pki: PathBuf,
    pub(crate) passphrase: PassphraseSource,
    pub(crate) cluster: Option<String>,
    pub(crate) pgdata: Option<PathBuf>,
}

/// What one step came to.
#[derive(Debug)]
pub(crate) enum Step {
    Done(String),
    WasSo(String),
    /// It is not done, and another run may do it.
    Remains(Problem),
    /// Nothing to do here, and worth a look.
    Note(Problem),
}

/// A node that can be removed, and what is known of it.
pub(crate) struct Removal {
    wanted: Remove,
    checked: Checked,
    certificates: Certificates,
    link: Result<Link, Problem>,
    site: Result<Site, Problem>,
}

impl Removal {
    /// Looks at everything; refuses a name that is not one of another node.
    pub(crate) fn gather(wanted: Remove) -> Result<Self, Vec<Problem>> {
        let one = |problem: Problem| vec![problem];
        let config = wanted.directory.join("pgtlsproxy.toml");
        let checked = load(&Source::File(config))?;
        let certificates = Certificates::read(&wanted).map_err(one)?;
        let own = checked.credentials.identity();
        if certificates.are_of(own) {
            return Err(one(Problem::new(
                "M01",
                format!("{} is this node itself", wanted.name),
                "whoever removes a node stays to tell the others",
                format!("name another: {}", certificates.known_nodes(own)),
            )));
        }
        let link = control_socket(&checked.config, &wanted.directory)
            .and_then(|socket| Link::open(&socket, wanted.name.as_str(), own.common_name()));
        let waits = link.as_ref().is_ok_and(|link| link.invitations > 0);
        let site = Site::find(&wanted);
        let removal = Self {
            checked,
            certificates,
            link,
            site,
            wanted,
        };
        let rules = removal.rules_left().map_err(one)?;
        if !removal.certificates.is_known() && rules == 0 && !waits {
            return Err(one(Problem::new(
                "M02",
                format!("no node is called {}", removal.wanted.name),
                "neither ledger nor rules nor waiting invitations have that name",
                format!(
                    "name one of these: {}",
                    removal
                        .certificates
                        .known_nodes(removal.checked.credentials.identity())
                ),
            )));
        }
        Ok(removal)
    }

    /// What is left to do, in words; nothing is changed.
    pub(crate) fn plan(&self) -> Result<Vec<String>, Problem> {
        let mut plan = Vec::new();
        if let Ok(link) = &self.link
            && link.invitations > 0
        {
            plan.push("withdraw its invitation".to_owned());
        }
        plan.extend(self.certificates.due());
        match self.rules_left()? {
            0 => {}
            rules => plan.push(format!("take {rules} allow rule(s) out of pgtlsproxy.toml")),
        }
        match &self.link {
            Ok(link) => plan.extend(link.due(&self.certificates)),
            Err(problem) => plan.push(format!("tell the daemon (now: {})", problem.what)),
        }
        match &self.site {
            Ok(site) => plan.extend(site.due()?),
            Err(problem) => plan.push(format!("drop its replication slot (now: {})", problem.what)),
        }
        Ok(plan)
    }

    /// Does it. What remains is told as a step and given back.
    pub(crate) fn run(mut self, told: &mut dyn FnMut(&Step)) -> Result<bool, Vec<Problem>> {
        let (mut remains, mut changed) = (Vec::new(), false);
        let mut tell = |step: Step| {
            told(&step);
            match step {
                Step::Done(_) => changed = true,
                Step::Remains(problem) => remains.push(problem),
                Step::WasSo(_) | Step::Note(_) => {}
            }
        };
        if let Ok(link) = &self.link {
            tell(link.withdraw());
        }
        // Without it the rest would be worth little: whoever has the key could come again.
        let revoked = self
            .certificates
            .revoke(&self.wanted)
            .map_err(|problem| vec![problem])?;
        tell(revoked);
        tell(self.take_rules_out());
        match &mut self.link {
            Ok(link) => {
                tell(link.load(&self.certificates));
                tell(link.end_sessions());
                link.spread(&self.certificates, &mut tell);
            }
            Err(problem) => tell(Step::Remains(problem.clone())),
        }
        match &self.site {
            Ok(site) => {
                tell(site.drop_slot());
                site.who_waits(&mut tell);
            }
            Err(problem) => tell(Step::Remains(problem.clone())),
        }
        // Somebody may have joined by the invitation in the very moment in which it was withdrawn.
        if Certificates::read(&self.wanted).is_ok_and(|now| now.due().is_some()) {
            tell(Step::Remains(Problem::new(
                "M07",
                format!("{} has just got another certificate", self.wanted.name),
                "it joined or was renewed while it was being removed",
                "run this again",
            )));
        }
        if remains.is_empty() {
            Ok(changed)
        } else {
            Err(remains)
        }
    }

    fn going(&self) -> Going<'_> {
        Going {
            identities: &self.certificates.patterns,
            which: Which::All,
            own: rule_name(self.checked.credentials.identity()),
        }
    }

    fn rules_left(&self) -> Result<usize, Problem> {
        let path = self.wanted.directory.join("pgtlsproxy.toml");
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
        let (_, rules) = without(&text, &self.going()).map_err(|why| {
            Problem::new(
                "M05",
                format!("the rules of {} cannot be taken out", self.wanted.name),
                why,
                "take them out by hand, then run this again",
            )
        })?;
        Ok(rules)
    }

    fn take_rules_out(&self) -> Step {
        match dismiss(&self.wanted.directory, &self.going()) {
            Ok(0) => Step::WasSo("no allow rule names it".to_owned()),
            Ok(rules) => Step::Done(format!(
                "{rules} allow rule(s) taken out of pgtlsproxy.toml"
            )),
            Err(problems) => Step::Remains(first(problems)),
        }
    }
}

fn first(problems: Vec<Problem>) -> Problem {
    problems.into_iter().next().unwrap_or_else(|| {
        Problem::new(
            "M08",
            "it is not done",
            "no cause was given",
            "run this again",
        )
    })
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Problem {
    Problem::new(
        "M03",
        format!("{} cannot be read", path.display()),
        error.to_string(),
        "run this as root, on the CA's host",
    )
}

/// A failure of the CA's library, as this program's.
fn of_failure(failure: &Failure) -> Problem {
    let way_out = match failure.way_out() {
        "" => "mend that and run the command again",
        way_out => way_out,
    };
    Problem::new("M03", failure.what(), failure.why(), way_out)
}
