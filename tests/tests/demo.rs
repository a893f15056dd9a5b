//! `pgtlsproxy demo`, the newcomer's first sight.

use std::process::Command;

use testbed::{programs, run};

#[test]
fn demo_shows_a_standby_streaming_and_leaves_nothing_behind() {
    let demo = run(Command::new(programs::pgtlsproxy()).args(["demo", "--seconds", "5"]));
    demo.unwrap();
}
