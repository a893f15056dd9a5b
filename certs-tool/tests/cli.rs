//! The program as a user meets it: arguments, dates, passphrases, help.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use place::{Place, TOOL, text};

#[test]
fn two_cas_never_have_one_name() {
    let subject = |place: &Place| place.json("inspect --json pki/ca.crt")[0]["subject"].clone();
    assert_ne!(subject(&Place::with_ca()), subject(&Place::with_ca()));
}

#[test]
fn without_san_the_name_itself_is_one() {
    let place = Place::with_ca();
    place.ok("issue db1.example.com");
    let found = place.json("inspect --json pki/db1.example.com.crt");
    assert_eq!(
        found[0]["names"],
        serde_json::json!(["dns:db1.example.com"])
    );
    assert_eq!(found[0]["problems"], serde_json::json!([]));
}

#[test]
fn a_request_by_pipe_and_in_der_is_signed_too() {
    let place = Place::with_ca();
    place.ok("request db2 --out node");
    let sign = |arguments: &str, file: &str| {
        let mut command = place.command(arguments);
        let status = command
            .stdin(File::open(place.path(file)).unwrap())
            .status()
            .unwrap();
        assert!(status.success());
    };
    sign("sign - --name db2 --san db2.example.com", "node/db2.csr");
    assert!(
        place
            .run("verify pki/db2.crt --key node/db2.key --ca pki/ca.crt --crl pki/ca.crl")
            .status
            .success()
    );
    if place
        .openssl_says("req -in node/db2.csr -outform DER -out node/db2.der")
        .is_some()
    {
        sign("sign - --name db3", "node/db2.der");
    }
}

#[test]
fn a_passphrase_comes_by_file_or_descriptor() {
    let place = Place::empty();
    let secret = |name: &str, content: &str| {
        fs::write(place.path(name), content).unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    secret("right", "correct horse\n");
    secret("same", "correct horse");
    secret("wrong", "battery staple\n");
    secret("empty", "\n");
    place.fails("ca init --passphrase-file empty");
    place.ok("ca init --passphrase-file right");
    let key = fs::read_to_string(place.pki("ca.key")).unwrap();
    assert!(
        key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
        "{key}"
    );
    place.ok("issue db1 --passphrase-file same");
    for number in ["0", "7"] {
        let script =
            format!("{TOOL} --dir pki issue node{number} --passphrase-fd {number} {number}<right");
        let output = Command::new("sh")
            .current_dir(place.0.path())
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let script = format!("echo correct horse | {TOOL} --dir pki crl --passphrase-fd 0");
    assert!(
        Command::new("sh")
            .current_dir(place.0.path())
            .args(["-c", &script])
            .status()
            .unwrap()
            .success()
    );
    let said = place.fails("issue db2 --passphrase-file wrong");
    assert!(said.contains("wrong passphrase for pki/ca.key"), "{said}");
    let said = place.fails("issue db2");
    assert!(
        said.contains("--passphrase-file") && said.contains("--passphrase-fd"),
        "{said}"
    );
    fs::set_permissions(place.path("right"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = place.fails("issue db2 --passphrase-file right");
    assert!(said.contains("read by everybody"), "{said}");
    assert!(!place.path("pki/db2.crt").exists());
    place.openssl_says("pkey -in pki/ca.key -passin file:same -noout");
    assert_eq!(
        place.run("issue db2 --passphrase secret").status.code(),
        Some(2),
        "never from the command line"
    );
}

#[test]
fn a_certificate_never_outlives_its_ca() {
    let place = Place::empty();
    place.ok("ca init --days 100");
    let said = place.ok("issue db1");
    assert!(said.contains("ends with its CA"), "{said}");
    let found = place.json("inspect --json pki/db1.crt pki/ca.crt");
    assert_eq!(found[0]["not_after"], found[1]["not_after"]);
    let said = place.ok("issue db2 --days 10");
    assert!(!said.contains("ends with its CA"), "{said}");
    place.ok("ca init --force --not-before 2019-01-01 --not-after 2020-01-01");
    let said = place.fails("issue db3");
    assert!(said.contains("2020-01-01"), "{said}");
}

#[test]
fn dates_can_be_given_for_tests() {
    let place = Place::with_ca();
    place.ok("issue old --not-before 2019-01-01 --not-after 2020-01-01T12:00:00Z");
    place.ok("issue early --not-before 2030-01-01 --days 30");
    let output = place.run("verify pki/old.crt --ca pki/ca.crt");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("expired on 2020-01-01 12:00:00 UTC"),
        "{}",
        text(&output.stdout)
    );
    let output = place.run("verify pki/early.crt --ca pki/ca.crt");
    assert!(
        text(&output.stdout).contains("not valid before 2030-01-01 00:00:00 UTC"),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(
        place.json("inspect --json pki/early.crt")[0]["not_after"],
        "2030-01-31T00:00:00Z"
    );
    let states: Vec<Value> = place
        .json("list --json")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["state"].clone())
        .collect();
    assert_eq!(states, ["expired", "not yet valid"]);
    assert_eq!(
        place.run("issue x --not-before yesterday").status.code(),
        Some(2)
    );
    place.fails("issue x --not-before 2027-01-01 --not-after 2026-01-01");
}

#[test]
fn wrong_usage_is_exit_status_2() {
    let place = Place::with_ca();
    for arguments in [
        "",
        "issue",
        "issue ca",
        "issue ../db1",
        "issue -x",
        "issue db1 --san 10.0.0.0/8",
        "issue db1 --san host:5432",
        "issue db1 --san bücher.example",
        "issue db1 --key-alg ed25519",
        "issue db1 --days 0",
        "issue db1 --days 3 --not-after 2030-01-01",
        "sign x.csr",
        "nonsense",
    ] {
        assert_eq!(place.run(arguments).status.code(), Some(2), "{arguments}");
    }
    assert!(!place.path("db1.crt").exists());
}

#[test]
fn data_is_on_stdout_and_talk_on_stderr() {
    let place = Place::empty();
    for arguments in [
        "ca init",
        "issue db1",
        "request db2",
        "sign pki/db2.csr --name db2",
        "revoke db1",
        "crl",
    ] {
        let output = place.run(arguments);
        assert!(
            output.status.success() && output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments}"
        );
    }
    for arguments in [
        "list",
        "inspect pki/db2.crt",
        "verify pki/db2.crt --ca pki/ca.crt",
    ] {
        let output = place.run(arguments);
        assert!(
            output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(),
            "{arguments}"
        );
    }
    let script = format!("{TOOL} --dir pki inspect pki/*.crt pki/*.crt pki/*.crt | head -1");
    let output = Command::new("sh")
        .current_dir(place.0.path())
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn every_help_gives_an_example() {
    let place = Place::empty();
    for command in [
        "",
        "ca",
        "ca init",
        "ca rotate",
        "ca rotate start",
        "ca rotate switch",
        "ca rotate finish",
        "ca rotate abort",
        "ca backup",
        "ca restore",
        "issue",
        "request",
        "sign",
        "renew",
        "revoke",
        "crl",
        "list",
        "inspect",
        "verify",
    ] {
        let output = place.run(&format!("{command} --help"));
        assert!(
            output.status.success() && text(&output.stdout).contains("Example"),
            "{command}"
        );
    }
}

#[test]
fn without_a_ca_it_says_how_to_make_one() {
    let place = Place::empty();
    for arguments in ["issue db1", "list", "crl", "revoke db1"] {
        let said = place.fails(arguments);
        assert!(
            said.contains("there is no CA in pki") && said.contains("certs-tool ca init"),
            "{said}"
        );
    }
    assert!(!place.path("pki").exists(), "asking makes nothing");
}

/// As over ssh, with nothing but the pipe between the two.
#[test]
fn a_node_gets_its_certificate_by_one_pipe() {
    let place = Place::with_ca();
    let script = format!(
        "umask 022; mkdir node; {TOOL} request db2 --out node --stdout \
         | {TOOL} --dir pki sign - --name db2 --san db2.example.com --stdout > node/db2.crt"
    );
    let output = Command::new("bash")
        .current_dir(place.0.path())
        .args(["-o", "pipefail", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let verify = "verify node/db2.crt --key node/db2.key --ca pki/ca.crt --crl pki/ca.crl --peer-name db2.example.com";
    assert!(place.run(verify).status.success());
    assert!(!place.path("pki/db2.crt").exists() && !place.path("node/db2.csr").exists());
    assert_eq!(place.json("list --json")[0]["name"], "db2");
    place.ok("revoke db2");
    assert!(!place.run(verify).status.success());
}
