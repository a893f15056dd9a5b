//! What the readers believe a server does, against what real servers do: hundreds of generated files for each major of
//! the run (`PGTLSPROXY_TEST_MAJORS`). The test bed gives the servers; nothing of this room becomes public for it.

mod conf_files;
pub(in crate::setup) mod documented;
mod hba_files;
mod strings;

use std::path::Path;

use proptest::test_runner::{Config, TestRunner};
use testbed::{Node, programs};

use super::version::Major;

/// A runner of so many cases that fails without writing files of its own.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    })
}

fn each_major(mut test: impl FnMut(Node, Major)) {
    for major in programs::majors() {
        println!("PostgreSQL {major}");
        let node = Node::builder("node").version(major).init();
        test(node, major.to_string().parse().unwrap());
    }
}

/// The rows of a query, as JSON.
fn rows(node: &Node, query: &str) -> Vec<serde_json::Value> {
    let json = node.query(&format!(
        "select coalesce(json_agg(r), '[]') from ({query}) r"
    ));
    serde_json::from_str(&json).unwrap()
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
