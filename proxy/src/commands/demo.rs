//! `pgtlsproxy demo`: the story is told in the room of that name.

use crate::cli::DemoFlags;
use crate::demo;
use crate::problem::Problem;

pub(super) fn run(flags: &DemoFlags) -> Result<(), Vec<Problem>> {
    demo::run(flags.seconds, flags.bindir.as_deref()).map_err(|problem| vec![problem])
}
