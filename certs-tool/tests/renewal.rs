//! A certificate is renewed in good time, with the same names, into the same files, and never by half.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use place::{Place, mode, text};

/// A certificate of which little is left.
const OLD: &str = "--not-before 2026-01-01 --not-after";

fn soon() -> String {
    let end = time::OffsetDateTime::now_utc() + time::Duration::days(5);
    format!("@{}", end.unix_timestamp())
}

fn verifies(place: &Place, name: &str) -> bool {
    let arguments =
        format!("verify pki/{name}.crt --key pki/{name}.key --ca pki/ca.crt --crl pki/ca.crl");
    place.run(&arguments).status.success()
}

#[test]
fn what_is_not_due_is_left_alone() {
    let place = Place::with_ca();
    place.ok("issue db1");
    let before = [
        fs::read(place.pki("db1.crt")),
        fs::read(place.pki("db1.key")),
    ]
    .map(Result::unwrap);
    let entries = place.ledger().len();
    let said = place.ok("renew db1");
    assert!(
        said.contains("db1 is not due") && said.contains("due from"),
        "{said}"
    );
    place.ok("renew --all");
    let after = [
        fs::read(place.pki("db1.crt")),
        fs::read(place.pki("db1.key")),
    ]
    .map(Result::unwrap);
    assert_eq!(before, after);
    assert_eq!(entries, place.ledger().len(), "cron leaves no trace");
    place.ok("renew db1 --force");
    assert_ne!(before[0], fs::read(place.pki("db1.crt")).unwrap());
}

#[test]
fn what_is_due_gets_the_same_names_and_a_new_key() {
    let place = Place::with_ca();
    place.ok(&format!(
        "issue db1 --key-alg p384 --san db1.example.com --san 10.0.0.1 {OLD} {}",
        soon()
    ));
    let inspect = || place.json("inspect --json pki/db1.crt")[0].clone();
    let (old, old_key) = (inspect(), fs::read(place.pki("db1.key")).unwrap());
    place.ok("renew db1");
    let new = inspect();
    assert_ne!(old["serial"], new["serial"]);
    assert_eq!(old["names"], new["names"]);
    assert_eq!(old["key"], new["key"], "the kind of key stays");
    assert_ne!(old_key, fs::read(place.pki("db1.key")).unwrap());
    assert!(verifies(&place, "db1"));
    let days = new["days_left"].as_i64().unwrap();
    let life = (time::OffsetDateTime::now_utc().unix_timestamp() - 1_767_225_600) / 86_400 + 5;
    assert!(
        (days - life).abs() <= 1,
        "the term stays: {days}, not {life}"
    );
    assert!(place.ok("renew db1").contains("not due"));
}

#[test]
fn the_key_stays_where_it_is_asked_for() {
    let place = Place::with_ca();
    place.ok(&format!("issue db1 {OLD} {}", soon()));
    let key = fs::read(place.pki("db1.key")).unwrap();
    place.ok("renew db1 --reuse-key");
    assert_eq!(key, fs::read(place.pki("db1.key")).unwrap());
    assert!(verifies(&place, "db1"));
}

#[test]
fn what_was_signed_from_a_request_is_asked_for_again_or_keeps_its_key() {
    let place = Place::with_ca();
    place.ok("request db2 --san db2.example.com --out node");
    place.ok(&format!(
        "sign node/db2.csr --name db2 --san db2.example.com {OLD} {}",
        soon()
    ));
    let said = place.fails("renew db2");
    for part in [
        "its key is not here",
        "certs-tool request db2 --out new",
        "--san dns:db2.example.com",
        "--reuse-key",
    ] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    place.ok("issue db1");
    // It is not this command's business, and nobody has seen to it.
    let said = place.ok("renew --all");
    for part in [
        "db1 is not due",
        "warning: db2 ends on",
        "nobody has renewed it",
        "pgtlsproxy renew",
        "certs-tool sign db2.csr --name db2 --san dns:db2.example.com --force",
    ] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    place.ok("renew db2 --reuse-key");
    assert!(
        place
            .run("verify pki/db2.crt --key node/db2.key --ca pki/ca.crt --crl pki/ca.crl --peer-name db2.example.com")
            .status
            .success()
    );
    assert!(!place.path("pki/db2.key").exists());
    let said = place.ok("renew --all");
    assert!(said.contains("db2 is skipped"), "{said}");
    assert!(!said.contains("warning"), "{said}");
    // Asked for by its name, or with its key, it is the command's business.
    assert!(
        place
            .ok("renew --all --reuse-key")
            .contains("db2 is not due")
    );
}

#[test]
fn what_others_renew_does_not_hide_what_has_failed() {
    let place = Place::with_ca();
    place.ok("request db2 --out node");
    place.ok("sign node/db2.csr --name db2");
    place.ok(&format!("issue db1 {OLD} {}", soon()));
    fs::write(place.pki("db1.key"), "no key").unwrap();
    let said = place.fails("renew --all");
    assert!(said.contains("db2 is skipped"), "{said}");
    assert!(said.contains("db1.key"), "{said}");
}

#[test]
fn mode_and_owner_of_the_files_are_kept() {
    let place = Place::with_ca();
    place.ok("issue db1");
    fs::set_permissions(place.pki("db1.key"), Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(place.pki("db1.crt"), Permissions::from_mode(0o444)).unwrap();
    let is_root = nix::unistd::Uid::effective().is_root();
    if is_root {
        chown(place.pki("db1.key"), Some(0), Some(12_345)).unwrap();
        chown(place.pki("db1.crt"), Some(12_346), Some(12_345)).unwrap();
    } else {
        eprintln!("skipped in part: owners can be given by root alone");
    }
    for command in [
        "renew db1 --force",
        "issue db1 --force",
        "renew db1 --force --reuse-key",
    ] {
        place.ok(command);
        assert_eq!(mode(place.pki("db1.key")), 0o640, "{command}");
        assert_eq!(mode(place.pki("db1.crt")), 0o444, "{command}");
        if is_root {
            let owner = |name: &str| {
                let metadata = fs::metadata(place.pki(name)).unwrap();
                (metadata.uid(), metadata.gid())
            };
            assert_eq!(owner("db1.key"), (0, 12_345), "{command}");
            assert_eq!(owner("db1.crt"), (12_346, 12_345), "{command}");
        }
    }
    // A key that others could read is a leak, not a habit to be kept.
    fs::set_permissions(place.pki("db1.key"), Permissions::from_mode(0o644)).unwrap();
    place.ok("issue db1 --force");
    assert_eq!(mode(place.pki("db1.key")), 0o600);
}

#[test]
fn half_a_renewal_is_mended_by_the_next_one() {
    let place = Place::with_ca();
    place.ok("issue db1");
    let old = fs::read(place.pki("db1.crt")).unwrap();
    place.ok("renew db1 --force");
    fs::write(place.pki("db1.crt"), old).unwrap();
    assert!(
        !verifies(&place, "db1"),
        "the new key beside the old certificate"
    );
    let said = place.fails("renew db1 --reuse-key");
    assert!(said.contains("does not belong to"), "{said}");
    place.ok("renew db1");
    assert!(verifies(&place, "db1"));
}

#[test]
fn what_is_revoked_is_not_renewed() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("revoke db1");
    let said = place.fails("renew db1 --force");
    assert!(
        said.contains("is revoked") && said.contains("certs-tool issue db1"),
        "{said}"
    );
    place.ok("renew --all");
    let said = place.fails("renew db9");
    assert!(said.contains("nothing was issued for db9"), "{said}");
}

#[test]
fn a_certificate_that_ends_with_its_ca_is_not_renewed_day_after_day() {
    let place = Place::empty();
    place.ok(&format!("ca init {OLD} {}", soon()));
    place.ok(&format!("issue db1 {OLD} {}", soon()));
    let entries = place.ledger().len();
    let said = place.ok("renew db1");
    assert!(said.contains("certs-tool ca rotate start"), "{said}");
    assert_eq!(entries, place.ledger().len());
}

#[test]
fn list_names_what_ends_soon() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok(&format!("issue db2 {OLD} {}", soon()));
    place.ok(&format!("issue db3 {OLD} {}", soon()));
    place.ok("revoke db3");
    let names = |within: &str| -> Vec<String> {
        let rows = place.json(&format!("list --json --expiring {within}"));
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("30d"), ["db2"]);
    assert_eq!(names("1d"), [""; 0]);
    assert_eq!(names("2years"), ["db1", "db2"]);
    place.ok("renew db2");
    assert_eq!(names("30d"), [""; 0], "its successor lives longer");
    assert!(text(&place.run("list --expiring 30d").stdout).is_empty());
    assert_eq!(place.run("list --expiring soon").status.code(), Some(2));
}

#[test]
fn a_key_that_is_left_of_an_earlier_certificate_makes_no_second_pair() {
    let place = Place::with_ca();
    place.ok("issue db2");
    let key = fs::read(place.pki("db2.key")).unwrap();
    // From now on the node has a key of its own, as one that renews itself.
    place.ok("request db2 --out node");
    place.ok("sign node/db2.csr --name db2 --force");
    let entries = place.ledger().len();
    let said = place.ok("renew --all");
    assert!(said.contains("db2 is skipped"), "{said}");
    assert_eq!(place.ledger().len(), entries);
    assert_eq!(fs::read(place.pki("db2.key")).unwrap(), key);

    place.ok("ca rotate start");
    place.ok("ca rotate switch");
    let said = place.ok("renew --all");
    assert!(said.contains("db2"), "{said}");
    let said = place.fails("ca rotate finish");
    assert!(said.contains("hang on the old CA: db2"), "{said}");
    let said = place.fails("renew db2");
    assert!(said.contains("its key is not here"), "{said}");
    place.ok("renew db2 --reuse-key");
    assert!(
        place
            .run("verify pki/db2.crt --key node/db2.key --ca pki/ca.crt --crl pki/ca.crl")
            .status
            .success()
    );
    place.ok("ca rotate finish");
}
