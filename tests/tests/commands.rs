//! The command line: `check` finds what is wrong before the daemon does, and flags mean what the file means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use testbed::pki::Wrong;
use testbed::tunnel::server_config;
use testbed::{Identity, Node, Pki, Scratch, Sidecar, programs, reserve_port};

/// A rule and no TCP listener of a client: a configuration that deserves no warning.
const RULE: &str = "[[server.allow]]\nidentity = \"dns:standby.test\"";

/// Runs `check` on a configuration and returns its exit status and what it said.
fn check(config: &str) -> (Option<i32>, String) {
    let dir = Scratch::new("check");
    let file = dir.path().join("pgtlsproxy.toml");
    fs::write(&file, config).expect("the configuration is written");
    let output = Command::new(programs::pgtlsproxy())
        .args(["check", "--config"])
        .arg(file)
        .output()
        .expect("check runs");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[track_caller]
fn finds(config: &str, status: i32, words: &str) {
    let (code, said) = check(config);
    assert_eq!(code, Some(status), "{words}: {said}");
    assert!(said.contains(words), "{words:?} is not in {said}");
}

fn config(identity: &Identity) -> String {
    server_config(identity, "/run/postgresql/.s.PGSQL.5432", RULE)
}

#[test]
fn check_is_content_with_a_good_configuration() {
    let good = Pki::new().issue("primary");
    assert_eq!(
        check(&config(&good)).0,
        Some(0),
        "{}",
        check(&config(&good)).1
    );
}

#[test]
fn check_finds_bad_certificates() {
    let pki = Pki::new();
    for (wrong, words) in [
        (Wrong::Expired, "expired"),
        (Wrong::NotYetValid, "not valid before"),
        (Wrong::Purpose, "serverAuth"),
        (Wrong::SelfSigned, "signed by itself"),
        (Wrong::Version1, "version 1"),
    ] {
        finds(&config(&pki.issue_wrong("bad", wrong)), 1, words);
    }
}

#[test]
fn check_finds_files_that_do_not_serve() {
    let (pki, other) = (Pki::new(), Pki::new());
    let good = pki.issue("primary");
    let (ca, key, crl) = (pki.ca(), &good.key, other.crl());
    let with = |old: &str, new: &str| config(&good).replace(old, new);
    let path = |path: &std::path::Path| path.display().to_string();
    finds(&with("primary.crt", "missing.crt"), 1, "missing.crt");
    finds(&with("primary.key", "ca.key"), 1, "do not belong together");
    finds(&with(&path(&ca), &path(&other.ca())), 1, "CA");
    finds(&with(&path(&ca), &path(&good.cert)), 1, "no CA");
    let with_crl = |crl: &std::path::Path| with(&good.toml(), &good.toml_with_crl(crl));
    finds(&with_crl(&crl), 1, "there is no CRL of the CA");
    finds(
        &with_crl(&crl.with_file_name("missing.crl")),
        1,
        "missing.crl",
    );
    pki.certs_tool(&["crl", "--not-after", "@1700000000"])
        .expect("an old CRL");
    finds(&with_crl(&pki.crl()), 3, "expired");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).expect("a readable key");
    finds(&config(&good), 1, "primary.key");
}

#[test]
fn check_finds_what_a_configuration_cannot_mean() {
    let pki = Pki::new();
    let good = config(&pki.issue("primary"));
    finds(
        &good.replace("listen", "lisen"),
        1,
        "did you mean `listen`?",
    );
    let twice = "[[server]]\nlisten = \"127.0.0.1:5443\"\npostgres = \"/s\"\n";
    finds(&format!("{good}\n{twice}\n{twice}"), 1, "127.0.0.1:5443");
    finds(
        &good.replace(RULE, &format!("{RULE}\nusers = []")),
        3,
        "never match",
    );
    finds(&good.replace(RULE, ""), 3, "any certificate of the CA");
    finds(
        &good.replace("/run/postgresql/.s.PGSQL.5432", "192.0.2.1:5432"),
        1,
        "plaintext_off_host",
    );
    finds("", 1, "identity");
}

#[test]
fn flags_mean_what_the_file_means() {
    let (pki, primary) = (Pki::new(), Node::primary());
    let files = |name| {
        let Identity { cert, key, ca, .. } = pki.issue(name);
        [("--cert", cert), ("--key", key), ("--ca", ca)]
            .map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
            .concat()
    };
    let start = |kind: &str, name: &'static str, arguments: &[&str]| {
        let own = files(name);
        let arguments = arguments
            .iter()
            .copied()
            .chain(own.iter().map(String::as_str));
        Sidecar::with_flags(kind, &arguments.collect::<Vec<_>>())
    };
    let socket = primary.socket().display().to_string();
    let allow = ["--allow", "dns:standby.test", "--allow-ordinary"];
    let server = [
        &["--listen", "127.0.0.1:0", "--postgres", &socket][..],
        &allow,
    ]
    .concat();
    let server = start("server", "primary", &server);
    let targets = format!("127.0.0.1:{},{}", reserve_port(), server.address());
    let client = start(
        "client",
        "standby",
        &["--listen", "127.0.0.1:0", "--connect", &targets],
    );
    let conninfo = format!("{} dbname=postgres", client.conninfo());
    assert_eq!(
        testbed::postgres::psql(&conninfo, "select 1").as_deref(),
        Ok("1")
    );
}

#[test]
fn wrong_usage_is_2_and_a_failed_start_is_1() {
    let status = |arguments: &[&str]| {
        let output = Command::new(programs::pgtlsproxy())
            .args(arguments)
            .output()
            .expect("it runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(status(&["server", "--listn", "1"]).0, Some(2));
    let (code, said) = status(&["run", "--config", "/nonexistent/pgtlsproxy.toml"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("/nonexistent/pgtlsproxy.toml") && said.trim_end().lines().count() <= 3,
        "{said}"
    );
}

#[test]
fn listener_that_cannot_be_opened_ends_the_start() {
    let (pki, taken) = (
        Pki::new(),
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port"),
    );
    let address = taken.local_addr().expect("an address").to_string();
    let dir = Scratch::new("taken");
    let file = dir.path().join("pgtlsproxy.toml");
    fs::write(
        &file,
        config(&pki.issue("primary")).replace("127.0.0.1:0", &address),
    )
    .expect("a file");
    let output = Command::new(programs::pgtlsproxy())
        .args(["run", "--config"])
        .arg(file)
        .output();
    let output = output.expect("it runs and ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains(&address),
        "{output:?}"
    );
}

#[test]
fn readme_says_what_it_takes_to_build() {
    let workspace = include_str!("../../Cargo.toml");
    let (_, rust) = workspace
        .split_once("rust-version = \"")
        .expect("a version");
    let (rust, _) = rust.split_once('"').expect("its end");
    let readme = include_str!("../../README.md");
    let (_, section) = readme
        .split_once("## On a real pair of hosts\n")
        .expect("the section");
    let (first, _) = section.split_once("\n\n").expect("a paragraph");
    for told in [&format!("Rust {rust} "), "rustup", "build-essential"] {
        assert!(first.contains(told), "{told} is not in\n{first}");
    }
}
