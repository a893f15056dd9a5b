//! How a node gets its next certificate without a person: `pgtlsproxy renew`, called by a timer. Beside the CA it signs
//! what nodes ask for; elsewhere it asks. Neither end waits for the other, and no clocks need agree.
//!
//! Nothing is believed for the sake of who brings it. Whoever signs looks at the signature of the key that the node has,
//! and at the ledger; a node takes a certificate for its own new key, its own names, of a CA that it trusts, and trusts
//! another CA only on the word of one that it trusts already.

mod ask;
mod candidate;
mod install;
mod sign;
mod trust;
mod unit;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs_tool::key::PassphraseSource;
use certs_tool::profile::asks_from;
use certs_tool::report::{Date, Failure};
use protocol::certificate::{Certificate, Moment};
use protocol::identity::{Fingerprint, Identity};
use protocol::node::Certificates;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::config::{Config, IdentityFiles, Source};
use crate::enrol::admit_nodes;
use crate::problem::Problem;
use crate::reload::{Checked, read};
use crate::replace::replace;
use crate::tls::Unrenewed;
use crate::turn::{self, Turn};

pub(crate) use sign::{Granted, tell};
pub(crate) use unit::{SERVICE_UNIT, TIMER_UNIT, missing_units, timer_is_installed};

/// Beside the certificate.
const LOCK: &str = ".renew.lock";
/// A request that nobody has signed for this part of the certificate's life deserves a look.
const PATIENCE: i64 = 10;

/// What is wanted.
pub(crate) struct Renew {
    pub(crate) config: PathBuf,
    /// Where the CA is, if it is on this host.
    pub(crate) pki: PathBuf,
    pub(crate) passphrase: PassphraseSource,
    /// How long to wait for whoever signs.
    pub(crate) wait: Duration,
}

/// What was done.
pub(crate) struct Done {
    pub(crate) own: Own,
    /// The CAs that are trusted from now on, if they are others than before.
    pub(crate) trust: Option<Vec<String>>,
    /// What was granted to other nodes, beside the CA.
    pub(crate) granted: Vec<Granted>,
    /// Nodes that joined later, and are admitted from now on.
    pub(crate) admitted: Vec<String>,
    /// What did not work and is no failure of this node's own renewal.
    pub(crate) problems: Vec<Problem>,
}

/// What became of this node's own certificate.
pub(crate) enum Own {
    Renewed {
        until: Date,
    },
    NotDue {
        until: Date,
        due: Date,
    },
    /// The request waits at the CA's host, where somebody signed last at this time.
    Asked {
        signed: Option<Date>,
    },
    /// Another run is at it.
    Busy,
}

impl Renew {
    pub(crate) fn run(&self) -> Result<Done, Vec<Problem>> {
        let source = Source::File(self.config.clone());
        let config = Config::load(&source)?;
        let files = config.identity;
        let Some(_turn) = turn(&files).map_err(|problem| vec![problem])? else {
            return Ok(Done {
                own: Own::Busy,
                trust: None,
                granted: Vec::new(),
                admitted: Vec::new(),
                problems: Vec::new(),
            });
        };
        candidate::tidy(&files).map_err(|error| vec![unwritten(&files.key, &error)])?;
        // One that has expired can be renewed beside the CA, and elsewhere the far end says so.
        let in_use = leaf_of(&files.cert).map(|leaf| Fingerprint::of(&leaf));
        let checked = read(&source, in_use).result?;
        if self.pki.join(certs_tool::authority::CA_KEY).exists() {
            sign::run(self, &checked)
        } else {
            ask::run(self, &checked)
        }
    }

    /// Lets in the nodes that have joined since the last time, on the word of a CA that was trusted before.
    fn admit(&self, checked: &Checked, came: &Certificates, done: &mut Done) {
        let directory = self.config.parent().unwrap_or_else(|| Path::new("."));
        let Some(nodes) = &came.nodes else {
            return;
        };
        match admit_nodes(directory, checked, nodes) {
            Ok(admitted) => done.admitted = admitted,
            Err(problems) => done
                .problems
                .extend(problems.into_iter().map(Problem::warning)),
        }
    }
}

/// This node's certificate and what its time says.
struct Due {
    leaf: CertificateDer<'static>,
    until: Date,
    from: Date,
}

impl Due {
    fn of(checked: &Checked) -> Result<Self, Problem> {
        let credentials = &checked.credentials;
        let identity = credentials.identity();
        let leaf = credentials.chain().first().cloned().ok_or_else(|| {
            Problem::new(
                "K21",
                "there is no certificate to renew",
                "",
                "pgtlsproxy check",
            )
        })?;
        let (begin, until) = (
            Date::from_unix(identity.not_before()),
            Date::from_unix(identity.not_after()),
        );
        Ok(Self {
            leaf,
            until,
            from: asks_from(begin, until),
        })
    }

    fn is_now(&self) -> bool {
        Date::now() >= self.from
    }

    /// From when on a request that waits is told of.
    fn patience(&self, identity: &Identity) -> i64 {
        (identity.not_after() - self.from.unix()) * 3 / 2 / PATIENCE
    }

    /// Whether one of these CAs, and not another, issued it.
    fn is_issued_by(&self, ca: &CertificateDer<'_>) -> bool {
        match (Certificate::parse(&self.leaf), Certificate::parse(ca)) {
            (Ok(leaf), Ok(ca)) => leaf.is_issued_by(&ca),
            _ => false,
        }
    }
}

/// Leaves word beside the certificate that it is not renewed, for check and daemon, and gives what the command says.
fn unrenewed(files: &IdentityFiles, until: Date, problem: &Problem) -> Problem {
    let now = Date::now().unix();
    let path = files.renewal_note();
    let before = Unrenewed::read(&path);
    let note = Unrenewed {
        since: before.as_ref().map_or(now, |before| before.since),
        why: match problem.why.as_str() {
            "" => problem.what.clone(),
            why => format!("{}: {why}", problem.what),
        },
        way_out: problem.way_out.clone(),
    };
    let told = Problem::new(
        "K20",
        format!(
            "{} cannot be renewed; it ends {}",
            files.cert.display(),
            Moment::new(until.unix(), now)
        ),
        note.why.clone(),
        note.way_out.clone(),
    );
    if before.as_ref() != Some(&note)
        && let Ok(text) = serde_json::to_vec(&note)
        // The word itself goes out in any case.
        && let Err(error) = replace(&path, &text, &files.cert)
    {
        eprintln!("pgtlsproxy: {}", unwritten(&path, &error));
    }
    told
}

/// It is renewed, or not due: nothing to tell of any more.
fn forget_note(files: &IdentityFiles) {
    // Where there is none, nothing is to be done; where it cannot be removed, the next run tries again.
    let _ = fs::remove_file(files.renewal_note());
}

/// One run at a time beside the certificate; none while another is at it.
fn turn(files: &IdentityFiles) -> Result<Option<Turn>, Problem> {
    let lock = files.cert.with_file_name(LOCK);
    turn::take(&lock).map_err(|error| unwritten(&lock, &error))
}

fn leaf_of(path: &Path) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).ok()
}

fn unwritten(path: &Path, error: &io::Error) -> Problem {
    Problem::new(
        "K18",
        format!("{} cannot be read or written", path.display()),
        error.to_string(),
        "run this as root, and make room; what worked is still in its place",
    )
}

/// A failure of the CA's library, as this program's.
fn of_failure(failure: &Failure) -> Problem {
    let way_out = match failure.way_out() {
        "" => "mend that and run the command again",
        way_out => way_out,
    };
    Problem::new("K17", failure.what(), failure.why(), way_out)
}
