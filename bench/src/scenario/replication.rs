//! Real PostgreSQL at both ends.

use super::{Ground, Outcome, Scenario};
use crate::cli::ReplicationWorkload;
use crate::contender::Contender;
use crate::problem::Problem;

#[derive(Debug)]
pub(super) struct Replication {}

impl Replication {
    pub(super) fn new(_mib: u32, _seconds: u32, _only: &[ReplicationWorkload]) -> Self {
        Self {}
    }
}

impl Scenario for Replication {
    fn name(&self) -> &'static str {
        "replication"
    }
    fn method(&self) -> String {
        String::new()
    }
    fn measure(&mut self, _: &Ground, _: Contender) -> Result<Vec<Outcome>, Problem> {
        Err(Problem::new("not built yet"))
    }
}
