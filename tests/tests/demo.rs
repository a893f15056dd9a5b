//! `pgtlsproxy demo`, the newcomer's first sight: a standby streams, a sidecar dies, the standby comes back.

use std::path::Path;
use std::process::{Command, Output};

use testbed::programs;

/// Runs the demo to its end and returns what it showed and what it told; it must leave nothing behind.
fn demo(command: &mut Command) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the demo runs");
    let told = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success(), "{told}");
    let directory = told
        .split([' ', ',', '\n'])
        .find(|word| word.contains("/pgtlsproxy-demo-"));
    let directory = directory.expect("it tells where it works");
    assert!(!Path::new(directory).exists(), "it left {directory} behind");
    (String::from_utf8_lossy(&stdout).into_owned(), told)
}

#[test]
fn demo_shows_a_standby_that_streams_and_comes_back() {
    let (rows, told) = demo(Command::new(programs::pgtlsproxy()).args(["demo", "--seconds", "6"]));
    for word in ["TLSv1_3", "killed", "streams again"] {
        assert!(told.contains(word), "{word:?} is not in {told}");
    }
    assert!(rows.lines().count() >= 2 && rows.contains("lag"), "{rows}");
}

#[test]
fn demo_cleans_up_when_interrupted() {
    let mut command = Command::new("timeout");
    command
        .args(["--preserve-status", "-s", "INT", "6"])
        .arg(programs::pgtlsproxy())
        .arg("demo");
    demo(&mut command);
}
