//! Nodes that renew themselves: `pgtlsproxy renew` as its timer calls it, and what came of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::files::{Scratch, give_to_postgres};
use crate::pki::{Identity, Pki};
use crate::programs::pgtlsproxy;
use crate::sidecar::Sidecar;

/// Runs `pgtlsproxy renew` for this daemon, beside the CA if one is given; its exit status and what it said.
pub fn renew(daemon: &Sidecar, beside: Option<&Pki>, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(pgtlsproxy());
    command
        .args(["renew", "--config"])
        .arg(daemon.dir().join("pgtlsproxy.toml"))
        .args(more);
    if let Some(pki) = beside {
        command.arg("--pki").arg(pki.dir());
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap_or(-1), said)
}

/// Files of a node in a directory of its own, with the CA's CRL: what it renews is nobody else's.
pub fn own_files(pki: &Pki, identity: &Identity) -> (Scratch, Identity) {
    let dir = Scratch::new("node");
    let own = identity.copied_to(dir.path());
    let crl = dir.path().join("ca.crl");
    fs::copy(pki.crl(), &crl).unwrap();
    give_to_postgres(&crl);
    (dir, own)
}

/// The `[identity]` of such files.
pub fn toml_of(own: &Identity) -> String {
    own.toml_with_crl(&own.cert.with_file_name("ca.crl"))
}

/// The serial number of the last certificate that the CA has made for this name.
pub fn last_serial(pki: &Pki, name: &str) -> String {
    let ledger = fs::read_to_string(pki.dir().join("ledger.jsonl")).unwrap();
    let entries = ledger
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let made = ["issued", "signed", "joined"];
    let mut made = entries.filter(|entry| made.iter().any(|event| entry["event"] == *event));
    let last = made.rfind(|entry| entry["name"] == name);
    last.unwrap()["serial"].as_str().unwrap().to_owned()
}

/// How `pgtlsproxy check` judges a configuration: its exit status and findings.
pub fn check(config: &Path) -> (i32, String) {
    let mut command = Command::new(pgtlsproxy());
    let output = command.args(["check", "--config"]).arg(config).output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap_or(-1), said)
}
