//! `verify` and `inspect` say what is wrong with a certificate.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;
use std::process::Command;

use serde_json::Value;

use place::{Place, TOOL, text};

#[test]
fn verify_says_what_the_proxy_would() {
    let place = Place::with_ca();
    place.ok("issue db1 --san db1.example.com --san 10.0.0.1");
    place.ok("issue db2");
    let other = Place::with_ca();
    other.ok("issue db1 --san db1.example.com");
    let (foreign_ca, foreign_crl) = (other.pki("ca.crt"), other.pki("ca.crl"));
    for (arguments, status, part) in [
        (
            "--key pki/db1.key --crl pki/ca.crl --peer-name db1.example.com",
            0,
            "verifies: dns:db1.example.com",
        ),
        ("--peer-name 10.0.0.1", 0, "verifies"),
        ("--peer-name DB1.EXAMPLE.COM", 0, "verifies"),
        (
            "--peer-name db2.example.com",
            1,
            "not for db2.example.com: it has db1.example.com, 10.0.0.1",
        ),
        ("--key pki/db2.key", 1, "does not belong to the certificate"),
        (&format!("--crl {foreign_crl}"), 1, "no CRL of the CA"),
    ] {
        let output = place.run(&format!("verify pki/db1.crt --ca pki/ca.crt {arguments}"));
        let said = text(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments}: {said}{}",
            text(&output.stderr)
        );
        assert!(said.contains(part), "{arguments}: {said}");
    }
    let verdict = place.json(&format!("verify pki/db1.crt --ca {foreign_ca} --json"));
    assert_eq!(verdict["verified"], false);
    assert_eq!(verdict["problems"][0]["id"], "T17");
    assert_eq!(
        place.run("verify pki/db1.crt").status.code(),
        Some(2),
        "--ca is needed"
    );
    place.fails("verify pki/db1.crt --ca pki/db1.key");
    place.fails("verify pki/nothing.crt --ca pki/ca.crt");
}

#[test]
fn a_forged_signature_does_not_verify() {
    let place = Place::with_ca();
    place.ok("issue db1");
    if place
        .openssl_says("x509 -in pki/db1.crt -outform DER -out forged.der")
        .is_none()
    {
        return;
    }
    let mut der = fs::read(place.path("forged.der")).unwrap();
    let last = der.len() - 1;
    der[last] ^= 1;
    fs::write(place.path("forged.der"), der).unwrap();
    let output = place.run("verify forged.der --ca pki/ca.crt");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("signature of the certificate is wrong"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn inspect_reads_whole_bundles_and_standard_input() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("request db2");
    let script = format!(
        "cat pki/db1.key pki/db1.crt pki/ca.crt pki/ca.crl pki/db2.csr | {TOOL} inspect --json -"
    );
    let output = Command::new("sh")
        .current_dir(place.0.path())
        .args(["-c", &script])
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds: Vec<&str> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["key", "certificate", "certificate", "crl", "request"]
    );
    let secret = fs::read_to_string(place.pki("db1.key")).unwrap();
    assert!(
        !text(&output.stdout).contains(secret.lines().nth(1).unwrap()),
        "a key is never shown"
    );
    place.fails("inspect /dev/null");
    place.fails("inspect nowhere");
}
