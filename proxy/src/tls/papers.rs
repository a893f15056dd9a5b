//! Our own certificates and CRLs as things whose time runs out: what `check` says of their dates once, the daemon asks
//! again as time passes.

use std::path::{Path, PathBuf};

use protocol::certificate::{Certificate, Crl, crl_date_fault, date_fault};

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
    },
    Crl(Crl),
}

impl Paper {
    pub(super) fn certificate(path: &Path, of: Of, certificate: Certificate) -> Self {
        Self {
            path: path.to_owned(),
            dated: Dated::Certificate {
                of,
                certificate: Box::new(certificate),
            },
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
            Dated::Certificate { of, certificate } => Some(Validity {
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
        let fault = match &self.dated {
            Dated::Certificate { certificate, .. } => date_fault(certificate, now),
            Dated::Crl(crl) => crl_date_fault(crl, now),
        }?;
        let what = format!("{}: {fault}", self.path.display());
        Some(Problem::new(fault.id(), what, "", fault.way_out()).warning())
    }
}
