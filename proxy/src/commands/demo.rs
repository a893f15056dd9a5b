//! `pgtlsproxy demo`.

use crate::cli::DemoFlags;
use crate::problem::Problem;

pub(super) fn run(_flags: &DemoFlags) -> Result<(), Vec<Problem>> {
    Ok(())
}
