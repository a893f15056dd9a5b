//! Runs the program as a user does, and lets openssl judge what it made, where openssl is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const TOOL: &str = env!("CARGO_BIN_EXE_certs-tool");

/// A directory with a CA in `pki`.
struct Place(TempDir);

impl Place {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with_ca() -> Self {
        let place = Self::empty();
        place.ok("ca init");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pki(&self, name: &str) -> String {
        self.path("pki").join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(TOOL);
        command
            .current_dir(self.0.path())
            .args(["--dir", "pki"])
            .args(arguments.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it, demands success, gives what it said to people.
    fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments}: {}",
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    /// Runs it, demands exit status 1, gives what it said to people.
    fn fails(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        let error = &said[said.find("certs-tool: ").unwrap()..];
        assert!(
            error.trim_end().lines().count() <= 3,
            "an error has three lines at most: {error}"
        );
        said
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_slice(&self.run(arguments).stdout).unwrap()
    }

    /// Runs openssl in the directory; `None` where there is no openssl.
    fn openssl(&self, arguments: &str) -> Option<Output> {
        let mut command = Command::new("openssl");
        command
            .current_dir(self.0.path())
            .args(arguments.split_whitespace());
        match command.output() {
            Ok(output) => Some(output),
            Err(_) => {
                eprintln!("skipped: no openssl here");
                None
            }
        }
    }

    /// What openssl prints, which must succeed.
    fn openssl_says(&self, arguments: &str) -> Option<String> {
        let output = self.openssl(arguments)?;
        assert!(
            output.status.success(),
            "openssl {arguments}: {}",
            text(&output.stderr)
        );
        Some(text(&output.stdout))
    }

    fn ledger(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.pki("ledger.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn openssl_takes_what_was_issued_for_both_purposes() {
    for kind in ["p256", "p384", "rsa3072"] {
        let place = Place::empty();
        place.ok(&format!("ca init --key-alg {kind}"));
        place.ok(&format!("issue db1 --key-alg {kind} --san db1.example.com --san 10.0.0.1 --san spiffe://site/db1"));
        for purpose in ["sslserver", "sslclient"] {
            place.openssl_says(&format!(
                "verify -x509_strict -crl_check -CAfile pki/ca.crt -CRLfile pki/ca.crl -purpose {purpose} pki/db1.crt"
            ));
        }
        let pair = place.openssl_says("x509 -in pki/db1.crt -noout -pubkey");
        assert_eq!(
            pair,
            place.openssl_says("pkey -in pki/db1.key -pubout"),
            "key and certificate belong together"
        );
    }
}

#[test]
fn certificates_look_as_promised() {
    let place = Place::with_ca();
    place.ok(
        "issue db1 --san db1.example.com --san 10.0.0.1 --san 2001:db8::1 --san spiffe://site/db1",
    );
    let Some(leaf) = place.openssl_says("x509 -in pki/db1.crt -noout -text") else {
        return;
    };
    for part in [
        "Version: 3",
        "DNS:db1.example.com, IP Address:10.0.0.1, IP Address:2001:DB8:0:0:0:0:0:1, URI:spiffe://site/db1",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication\n",
        "CA:FALSE",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "NIST CURVE: P-256",
    ] {
        assert!(leaf.contains(part), "{part} is missing in {leaf}");
    }
    let ca = place
        .openssl_says("x509 -in pki/ca.crt -noout -text")
        .unwrap();
    for part in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign\n",
        "CN = pgtlsproxy CA ",
    ] {
        assert!(ca.contains(part), "{part} is missing in {ca}");
    }
    let serial = place
        .openssl_says("x509 -in pki/db1.crt -noout -serial")
        .unwrap();
    assert_eq!(
        serial.trim_end().len(),
        "serial=".len() + 34,
        "128 bits behind a one: {serial}"
    );
    let bundle = fs::read_to_string(place.pki("db1.crt")).unwrap();
    assert_eq!(
        bundle.matches("BEGIN CERTIFICATE").count(),
        1,
        "the root is not in it"
    );
    let found = place.json("inspect --json pki/db1.crt pki/ca.crt");
    let day = |index: usize, end: &str| -> i64 {
        let date = found[index][end].as_str().unwrap();
        time::OffsetDateTime::parse(date, &time::format_description::well_known::Rfc3339)
            .unwrap()
            .unix_timestamp()
    };
    assert_eq!(
        day(0, "not_after") - day(0, "not_before"),
        397 * 86_400 + 3600
    );
    assert!((3650..3654).contains(&found[1]["days_left"].as_i64().unwrap()));
}

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
fn keys_are_secret_whatever_the_umask() {
    for umask in ["000", "777"] {
        let place = Place::empty();
        let script = format!(
            "mkdir -m 755 pki out; umask {umask}; {TOOL} --dir pki ca init && {TOOL} --dir pki issue db1 && \
             {TOOL} --dir pki request db2 --out out"
        );
        let output = Command::new("sh")
            .current_dir(place.0.path())
            .args(["-c", &script])
            .output()
            .unwrap();
        // With 777 an ordinary user cannot read back the lock's file; root can.
        if output.status.success() || umask == "000" {
            assert!(output.status.success(), "{}", text(&output.stderr));
            for key in [place.pki("ca.key"), place.pki("db1.key")] {
                assert_eq!(mode(&key), 0o600, "{key} under umask {umask}");
            }
            assert_eq!(mode(place.path("out/db2.key")), 0o600);
        }
    }
    let place = Place::empty();
    let script = format!("umask 000; {TOOL} --dir a/pki ca init");
    assert!(
        Command::new("sh")
            .current_dir(place.0.path())
            .args(["-c", &script])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        mode(place.path("a/pki")),
        0o755,
        "nobody else may write into the directory"
    );
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let place = Place::with_ca();
    fs::set_permissions(place.pki("ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = place.fails("issue db1");
    assert!(
        said.contains("mode 0644") && said.contains("chmod 600"),
        "{said}"
    );
}

#[test]
fn nothing_is_overwritten_without_force() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("request db2");
    let before = |name: &str| fs::read(place.pki(name)).unwrap();
    let issued = place.ledger().len();
    for (arguments, files) in [
        ("ca init", &["ca.key", "ca.crt"][..]),
        ("issue db1", &["db1.key", "db1.crt"]),
        ("request db2", &["db2.key", "db2.csr"]),
        ("sign pki/db2.csr --name db1", &["db1.key", "db1.crt"]),
    ] {
        let old: Vec<Vec<u8>> = files.iter().map(|name| before(name)).collect();
        let said = place.fails(arguments);
        assert!(
            said.contains("exists already") && said.contains("--force"),
            "{said}"
        );
        assert_eq!(
            old,
            files.iter().map(|name| before(name)).collect::<Vec<_>>(),
            "{arguments}"
        );
    }
    fs::remove_file(place.pki("db1.crt")).unwrap();
    let key = before("db1.key");
    place.fails("issue db1");
    assert_eq!(key, before("db1.key"), "half a pair is kept too");
    place.ok("issue db1 --force");
    assert_ne!(key, before("db1.key"));
    assert_eq!(
        place.ledger().len(),
        issued + 1,
        "refused attempts issue nothing"
    );
    assert!(
        place
            .run("verify pki/db1.crt --key pki/db1.key --ca pki/ca.crt --crl pki/ca.crl")
            .status
            .success()
    );
    assert!(
        names_in(&place.path("pki"))
            .iter()
            .all(|name| !name.ends_with(".tmp"))
    );
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    let place = Place::with_ca();
    let made = place.openssl(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout n.key -out n.csr -subj /CN=evil \
         -addext keyUsage=keyCertSign -addext basicConstraints=CA:TRUE -addext extendedKeyUsage=codeSigning,1.2.3.4 \
         -addext subjectAltName=DNS:*.evil -addext nsCertType=sslCA",
    );
    let Some(made) = made else { return };
    assert!(made.status.success(), "{}", text(&made.stderr));
    let said = place.ok("sign n.csr --name db2 --san db2.example.com");
    for part in [
        "CN=evil",
        "dns:*.evil",
        "dns:db2.example.com",
        "to be a CA",
        "Key Cert Sign",
    ] {
        assert!(said.contains(part), "{part} is not shown: {said}");
    }
    let leaf = place
        .openssl_says("x509 -in pki/db2.crt -noout -text")
        .unwrap();
    for part in [
        "Subject: CN = db2\n",
        "DNS:db2.example.com\n",
        "CA:FALSE",
        "Digital Signature\n",
    ] {
        assert!(leaf.contains(part), "{part} is missing in {leaf}");
    }
    for part in [
        "evil",
        "Code Signing",
        "Certificate Sign",
        "Netscape",
        "CA:TRUE",
    ] {
        assert!(!leaf.contains(part), "{part} was copied: {leaf}");
    }
    let key = place.openssl_says("pkey -in n.key -pubout");
    assert_eq!(
        key,
        place.openssl_says("x509 -in pki/db2.crt -noout -pubkey")
    );
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
fn a_request_that_was_changed_or_is_too_weak_is_refused() {
    let place = Place::with_ca();
    let weak = "req -new -newkey rsa:1024 -nodes -keyout weak.key -out weak.csr -subj /CN=w";
    if place.openssl_says(weak).is_some() {
        let said = place.fails("sign weak.csr --name w");
        assert!(said.contains("RSA 1024"), "{said}");
        assert!(!place.path("pki/w.crt").exists());
        place.ok("request w --out .");
        place.openssl_says("req -in w.csr -outform DER -out w.der");
        let mut der = fs::read(place.path("w.der")).unwrap();
        let name = der
            .windows(3)
            .position(|window| window == b"\x0c\x01w")
            .unwrap();
        der[name + 2] = b'x';
        fs::write(place.path("w.der"), der).unwrap();
        let said = place.fails("sign w.der --name w");
        assert!(
            said.contains("signature") && said.contains("wrong"),
            "{said}"
        );
    }
    fs::write(
        place.path("rubbish"),
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    )
    .unwrap();
    place.fails("sign rubbish --name w");
    place.fails("sign pki/ca.crt --name w");
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
fn keys_that_openssl_encrypted_are_read() {
    let place = Place::with_ca();
    fs::write(place.path("pass"), "secret").unwrap();
    fs::set_permissions(place.path("pass"), fs::Permissions::from_mode(0o600)).unwrap();
    for scheme in ["-scrypt", "-v2 aes256"] {
        let encrypt =
            format!("pkcs8 -topk8 {scheme} -in pki/ca.key -passout file:pass -out enc.key");
        let Some(_) = place.openssl_says(&encrypt) else {
            return;
        };
        let plain = fs::read(place.pki("ca.key")).unwrap();
        fs::copy(place.path("enc.key"), place.pki("ca.key")).unwrap();
        fs::set_permissions(place.pki("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
        place.ok("issue db1 --force --passphrase-file pass");
        fs::write(place.pki("ca.key"), plain).unwrap();
    }
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
fn the_crl_is_there_from_the_start_and_lasts_as_long_as_the_ca() {
    let place = Place::with_ca();
    let crl = || place.json("inspect --json pki/ca.crl")[0].clone();
    let first = crl();
    assert_eq!(first["number"], "01");
    assert_eq!(first["revoked"], serde_json::json!([]));
    assert_eq!(
        first["next_update"],
        place.json("inspect --json pki/ca.crt")[0]["not_after"]
    );
    place.ok("issue db1");
    assert_eq!(crl()["number"], "02", "each issue signs it anew");
    place.ok("crl");
    assert_eq!(crl()["number"], "03");
    place.ok("crl --not-after 2020-01-01");
    let expired = place.json("inspect --json pki/ca.crl");
    assert_eq!(expired[0]["problems"][0]["id"], "T18");
    // A ledger put back from a backup does not send the number back.
    let lines = fs::read_to_string(place.pki("ledger.jsonl")).unwrap();
    fs::write(
        place.pki("ledger.jsonl"),
        lines.lines().next().unwrap().to_owned() + "\n",
    )
    .unwrap();
    place.ok("crl");
    assert_eq!(crl()["number"], "05");
    fs::remove_file(place.pki("ca.crl")).unwrap();
    place.ok("crl");
    assert_eq!(crl()["number"], "06");
}

#[test]
fn what_is_revoked_is_refused_and_nothing_else() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("issue db2");
    fs::copy(place.pki("db2.crt"), place.path("stolen.crt")).unwrap();
    place.ok("issue db2 --force");
    let rows = place.json("list --json");
    let serial = rows[1]["serial"].as_str().unwrap();
    let verify = |file: &str| {
        let ours = place
            .run(&format!("verify {file} --ca pki/ca.crt --crl pki/ca.crl"))
            .status
            .success();
        let theirs = place.openssl(&format!(
            "verify -crl_check -CAfile pki/ca.crt -CRLfile pki/ca.crl {file}"
        ));
        assert!(
            theirs.is_none_or(|theirs| theirs.status.success() == ours),
            "openssl agrees on {file}"
        );
        ours
    };
    assert!(verify("stolen.crt"));
    place.ok(&format!("revoke {serial}"));
    assert!(!verify("stolen.crt") && verify("pki/db2.crt") && verify("pki/db1.crt"));
    let colons: Vec<&str> = (0..serial.len())
        .step_by(2)
        .map(|at| &serial[at..at + 2])
        .collect();
    let said = place.ok(&format!("revoke {}", colons.join(":").to_uppercase()));
    assert!(said.contains("Nothing to do"), "{said}");
    place.ok("revoke db2");
    assert!(
        !verify("pki/db2.crt") && verify("pki/db1.crt"),
        "by name: all of them"
    );
    let revoked = place.json("inspect --json pki/ca.crl")[0]["revoked"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(revoked, 2);
    let said = place.fails("revoke db9");
    assert!(
        said.contains("db9") && said.contains("certs-tool list"),
        "{said}"
    );
    let listed = text(&place.run("list").stdout);
    assert_eq!(listed.matches("revoked").count(), 2, "{listed}");
}

#[test]
fn issues_at_the_same_time_are_all_in_the_ledger() {
    let place = Place::with_ca();
    let running: Vec<_> = (0..8)
        .map(|number| {
            place
                .command(&format!("issue db{number}"))
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let rows = place.json("list --json");
    let mut names: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["db0", "db1", "db2", "db3", "db4", "db5", "db6", "db7"]
    );
    let mut numbers: Vec<u64> = place
        .ledger()
        .iter()
        .map(|line| line["crl"].as_u64().unwrap())
        .collect();
    numbers.dedup();
    assert_eq!(
        numbers,
        (1..=9).collect::<Vec<u64>>(),
        "each CRL has its own number, rising"
    );
}

#[test]
fn of_two_issues_of_one_name_one_wins_whole() {
    let place = Place::with_ca();
    let running: Vec<_> = (0..6)
        .map(|_| {
            place
                .command("issue db1")
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let won = running
        .into_iter()
        .map(|mut child| child.wait().unwrap().success())
        .filter(|&won| won)
        .count();
    assert_eq!(won, 1);
    assert!(
        place
            .run("verify pki/db1.crt --key pki/db1.key --ca pki/ca.crt --crl pki/ca.crl")
            .status
            .success()
    );
}

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
fn foreign_certificates_are_read_and_judged() {
    let place = Place::empty();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/protocol/testdata");
    for (file, id) in [
        ("v1.der", "T04"),
        ("no-san.der", "T10"),
        ("self-signed.der", "T05"),
        ("only-client.der", "T07"),
        ("only-server.der", "T08"),
        ("rsa1024.der", "T11"),
        ("ed25519.der", "T13"),
    ] {
        let found = place.json(&format!("inspect --json {}", fixtures.join(file).display()));
        let ids: Vec<&str> = found[0]["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, [id], "{file}");
    }
    let hostile = place.run(&format!(
        "inspect {}",
        fixtures.join("control.der").display()
    ));
    let shown = text(&hostile.stdout);
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{202e}') && shown.contains("\\u{1b}"),
        "{shown}"
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
        "", "ca", "ca init", "issue", "request", "sign", "revoke", "crl", "list", "inspect",
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

#[test]
fn a_damaged_ledger_stops_everything_that_would_need_it() {
    let place = Place::with_ca();
    place.ok("issue db1");
    let mut lines = fs::read_to_string(place.pki("ledger.jsonl")).unwrap();
    lines.push_str("{\"event\":\n");
    fs::write(place.pki("ledger.jsonl"), &lines).unwrap();
    for arguments in ["issue db2", "revoke db1", "list", "crl"] {
        let said = place.fails(arguments);
        assert!(said.contains("line 3"), "{said}");
    }
    assert!(!place.path("pki/db2.key").exists());
    assert_eq!(
        lines,
        fs::read_to_string(place.pki("ledger.jsonl")).unwrap()
    );
}
