//! Our own certificates and CRLs as things whose time runs out: what `check` says of their dates once, the daemon asks
//! again as time passes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use protocol::certificate::{Certificate, Crl, Moment, crl_date_fault, date_fault};
use protocol::escape::visible;
use serde::{Deserialize, Serialize};

use crate::health::{Of, Validity};
use crate::problem::Problem;

/// A certificate or CRL in one of our files.
pub(crate) struct Paper {
    path: PathBuf,
    dated: Dated,
}

enum Dated {
    Certificate {
        of: Of,
        certificate: Box<Certificate>,
        /// What keeps it from being renewed.
        unrenewed: Option<Unrenewed>,
    },
    Crl(Crl),
}

/// Why our certificate, which is due, has no successor: left by `pgtlsproxy renew` beside the certificate, where check
/// and daemon find it, and taken away when there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unrenewed {
    /// Since when, in Unix seconds.
    pub(crate) since: i64,
    pub(crate) why: String,
    pub(crate) way_out: String,
}

impl Unrenewed {
    /// The note in this file, if there is one that can be read.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        const LONGEST: u64 = 16 * 1024;
        let mut text = Vec::new();
        let file = File::open(path).ok()?;
        file.take(LONGEST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn problem(&self, path: &Path, certificate: &Certificate, now: i64) -> Problem {
        const TEXT: usize = 512;
        let end = Moment::new(certificate.not_after(), now);
        let since = Moment::new(self.since, now);
        let what = format!(
            "{}: it ends {end}, and cannot be renewed (since {since})",
            path.display()
        );
        let [why, way_out] = [&self.why, &self.way_out].map(|text| visible(text, TEXT));
        Problem::new("K20", what, why, way_out).warning()
    }
}

impl Paper {
    pub(super) fn certificate(path: &Path, of: Of, certificate: Certificate) -> Self {
        Self {
            path: path.to_owned(),
            dated: Dated::Certificate {
                of,
                certificate: Box::new(certificate),
                unrenewed: None,
            },
        }
    }

    /// Notes what keeps it from being renewed.
    pub(super) fn note(&mut self, note: Option<Unrenewed>) {
        if let Dated::Certificate { unrenewed, .. } = &mut self.dated {
            *unrenewed = note;
        }
    }

    /// That it is not renewed, where this is so and it still counts.
    pub(super) fn unrenewed(&self, now: i64) -> Option<Problem> {
        match &self.dated {
            Dated::Certificate {
                certificate,
                unrenewed: Some(note),
                ..
            } if now <= certificate.not_after() => Some(note.problem(&self.path, certificate, now)),
            _ => None,
        }
    }

    pub(super) fn crl(path: &Path, crl: Crl) -> Self {
        Self {
            path: path.to_owned(),
            dated: Dated::Crl(crl),
        }
    }

    /// From when until when it counts; None for a CRL without an end.
    pub(crate) fn validity(&self) -> Option<Validity> {
        match &self.dated {
            Dated::Certificate {
                of, certificate, ..
            } => Some(Validity {
                of: *of,
                name: match of {
                    Of::Own => certificate.identity().to_string(),
                    Of::Ca | Of::Crl | Of::Peer => certificate.subject().to_string(),
                },
                serial: certificate.serial().to_string(),
                not_before: certificate.not_before(),
                not_after: certificate.not_after(),
            }),
            Dated::Crl(crl) => Some(Validity {
                of: Of::Crl,
                name: crl.issuer().to_string(),
                serial: crl.number().map(ToString::to_string).unwrap_or_default(),
                not_before: crl.this_update(),
                not_after: crl.next_update()?,
            }),
        }
    }

    /// What is wrong with its dates at `now`, in Unix seconds.
    pub(crate) fn problem(&self, now: i64) -> Option<Problem> {
        // It says all that the fault would say, and why.
        if let Some(problem) = self.unrenewed(now) {
            return Some(problem);
        }
        let fault = match &self.dated {
            Dated::Certificate { certificate, .. } => date_fault(certificate, now),
            Dated::Crl(crl) => crl_date_fault(crl, now),
        }?;
        let what = format!("{}: {fault}", self.path.display());
        Some(Problem::new(fault.id(), what, "", fault.way_out()).warning())
    }
}
