//! Where the programs are: ours, built once per run, and PostgreSQL's, fetched once per machine.
//! `cargo test` does not build a binary of another package, so a stale one might be tested otherwise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use serde_json::Value;

use crate::process::run;

/// The major versions of this run: 15 and 18, or what `PGTLSPROXY_TEST_MAJORS` lists.
pub fn majors() -> Vec<u32> {
    let listed = std::env::var("PGTLSPROXY_TEST_MAJORS").unwrap_or_else(|_| "15 18".to_owned());
    listed
        .split_whitespace()
        .map(|major| major.parse().unwrap())
        .collect()
}

/// The directory of programs of one PostgreSQL; the names are those of `tests/fetch-postgres`.
pub fn postgres_programs(name: &str) -> PathBuf {
    static FOUND: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap();
    let found = found.get_or_insert_with(HashMap::new);
    if let Some(path) = found.get(name) {
        return path.clone();
    }
    let fetch = concat!(env!("CARGO_MANIFEST_DIR"), "/fetch-postgres");
    let path = PathBuf::from(run(Command::new(fetch).arg(name)).unwrap());
    found.insert(name.to_owned(), path.clone());
    path
}

/// A client tool of version 18, which serves every major; its libpq has no TLS.
pub fn client_tool(name: &str) -> PathBuf {
    postgres_programs("clients18").join(name)
}

/// Prometheus' own checker of rules and metrics.
pub fn promtool() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let fetch = concat!(env!("CARGO_MANIFEST_DIR"), "/fetch-promtool");
        PathBuf::from(run(&mut Command::new(fetch)).unwrap())
    })
}

/// sshd, to be run by ourselves.
pub fn sshd() -> PathBuf {
    let fetch = concat!(env!("CARGO_MANIFEST_DIR"), "/fetch-sshd");
    PathBuf::from(run(&mut Command::new(fetch)).unwrap())
}

/// psql with a libpq that has TLS: Debian's own, of version 15.
pub fn psql_with_tls() -> PathBuf {
    PathBuf::from("/usr/bin/psql")
}

/// The sidecar under test.
pub fn pgtlsproxy() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| ours("PGTLSPROXY_BIN", "pgtlsproxy", "pgtlsproxy"))
}

/// The certificate tool under test.
pub fn certs_tool() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| ours("CERTS_TOOL_BIN", "certs-tool", "certs-tool"))
}

fn ours(variable: &str, package: &str, binary: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let messages = run(Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--quiet",
            "--message-format=json",
            "-p",
            package,
            "--bin",
            binary,
        ]))
    .unwrap();
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == binary)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.unwrap_or_else(|| panic!("cargo names no executable {binary}"))
}
