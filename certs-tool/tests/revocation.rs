//! What is revoked is refused, and the CRL is always there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;

use place::{Place, text};

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
