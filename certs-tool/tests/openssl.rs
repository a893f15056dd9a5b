//! What openssl makes is taken, and what is made here openssl takes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use place::{Place, text};

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
