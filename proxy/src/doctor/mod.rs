//! Why replication does not flow, for one tunnel, from this host: `gather` reads, dials and asks; `judge` decides,
//! without touching anything; `report` is what is shown. `catalogue` lists all that can be found. Changes nothing.

mod catalogue;
mod facts;
mod gather;
mod judge;
mod report;

use crate::cli::DoctorFlags;
use crate::problem::Problem;

pub(crate) use report::{Report, Verdict};

use gather::{Failure, Subject};

/// Looks at the tunnel that `flags` mean and judges it; the error is a wrong use of the flags.
pub(crate) async fn examine(flags: &DoctorFlags) -> Result<Report, Problem> {
    match gather::gather(flags).await {
        Ok((subject, facts)) => Ok(judge::judge(subject, &facts)),
        Err(Failure::Config(problems)) => {
            let subject = Subject {
                tunnel: flags.tunnel.clone().unwrap_or_default(),
                ..Subject::default()
            };
            Ok(judge::unloaded(subject, &problems))
        }
        Err(Failure::Usage(problem)) => Err(problem),
    }
}
