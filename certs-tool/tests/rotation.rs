//! One CA follows another in stages, and nobody is cut off on the way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;

use place::{Place, mode, names_in, text};

fn stage(place: &Place) -> String {
    let shown = place.json("ca rotate --json");
    shown["stage"].as_str().unwrap().to_owned()
}

/// Whether the files of the CA take this certificate, by our own judgement and openssl's.
fn is_taken(place: &Place, file: &str) -> bool {
    let ours = place.run(&format!("verify {file} --ca pki/ca.crt --crl pki/ca.crl"));
    let ours = ours.status.success();
    let theirs = place.openssl(&format!(
        "verify -crl_check -CAfile pki/ca.crt -CRLfile pki/ca.crl {file}"
    ));
    assert!(
        theirs.is_none_or(|theirs| theirs.status.success() == ours),
        "openssl agrees on {file}"
    );
    ours
}

fn subject(place: &Place, file: &str) -> String {
    let found = place.json(&format!("inspect --json {file}"));
    found[0]["issuer"].as_str().unwrap().to_owned()
}

#[test]
fn a_rotation_goes_through_its_stages() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("issue gone");
    place.ok("revoke gone");
    place.ok("request db2 --out node");
    place.ok("sign node/db2.csr --name db2");
    for name in ["db1", "db2", "gone"] {
        fs::copy(
            place.pki(&format!("{name}.crt")),
            place.path(&format!("old-{name}.crt")),
        )
        .unwrap();
    }
    let old_ca = subject(&place, "pki/db1.crt");
    assert_eq!(stage(&place), "none");
    assert!(
        place
            .fails("ca rotate switch")
            .contains("no rotation was begun")
    );

    let told = text(&place.run("ca rotate start").stdout);
    for part in [
        "1 of 3",
        "pki/ca.crt and pki/ca.crl to every node",
        "certs-tool ca rotate switch",
    ] {
        assert!(told.contains(part), "{part} is missing: {told}");
    }
    assert_eq!(mode(place.pki("ca-next.key")), 0o600);
    let files = fs::read(place.pki("ca.crt")).unwrap();
    place.ok("ca rotate start");
    assert_eq!(
        files,
        fs::read(place.pki("ca.crt")).unwrap(),
        "once is enough"
    );
    assert!(place.fails("ca rotate finish").contains("ca rotate switch"));
    place.ok("issue early");
    assert_eq!(
        subject(&place, "pki/early.crt"),
        old_ca,
        "trust comes before leaves"
    );
    assert!(is_taken(&place, "pki/early.crt") && !is_taken(&place, "old-gone.crt"));
    assert_eq!(
        place
            .json("inspect --json pki/ca.crl")
            .as_array()
            .unwrap()
            .len(),
        2
    );

    place.ok("ca rotate switch");
    place.ok("ca rotate switch");
    assert_eq!(stage(&place), "leaves");
    assert!(place.fails("ca rotate abort").contains("too late"));
    let said = place.fails("ca rotate finish");
    assert!(said.contains("db1, db2, early"), "{said}");
    place.ok("revoke early");
    assert!(
        !is_taken(&place, "pki/early.crt"),
        "the old CA still revokes"
    );
    place.ok("renew db1");
    assert_ne!(subject(&place, "pki/db1.crt"), old_ca);
    assert!(is_taken(&place, "pki/db1.crt") && is_taken(&place, "old-db1.crt"));
    let said = place.fails("ca rotate finish");
    assert!(said.contains("hang on the old CA: db2"), "{said}");
    let told = text(&place.run("ca rotate").stdout);
    assert!(
        told.contains("certs-tool request db2") && told.contains("see that db1 uses"),
        "{told}"
    );
    place.fails("renew db2");
    place.ok("sign node/db2.csr --name db2 --force");

    let told = text(&place.run("ca rotate finish").stdout);
    assert!(
        told.contains("ca.crt and pki/ca.crl to every node"),
        "{told}"
    );
    place.ok("ca rotate finish");
    assert_eq!(stage(&place), "none");
    assert!(is_taken(&place, "pki/db1.crt") && is_taken(&place, "pki/db2.crt"));
    assert!(!is_taken(&place, "old-db1.crt") && !is_taken(&place, "old-db2.crt"));
    for file in ["pki/ca.crt", "pki/ca.crl"] {
        assert_eq!(
            place
                .json(&format!("inspect --json {file}"))
                .as_array()
                .unwrap()
                .len(),
            1,
            "{file}"
        );
    }
    assert!(
        names_in(&place.path("pki"))
            .iter()
            .all(|name| !name.starts_with("ca-"))
    );
    let states = text(&place.run("list").stdout);
    assert!(states.contains("ca dropped"), "{states}");
    place.ok("issue db3");
    assert!(is_taken(&place, "pki/db3.crt"));
}

#[test]
fn a_rotation_can_be_called_off_before_the_new_ca_signs() {
    let place = Place::with_ca();
    place.ok("issue db1");
    let ca = fs::read(place.pki("ca.crt")).unwrap();
    place.ok("ca rotate start");
    place.ok("ca rotate abort");
    assert_eq!(stage(&place), "none");
    assert_eq!(ca, fs::read(place.pki("ca.crt")).unwrap());
    assert!(is_taken(&place, "pki/db1.crt") && !place.path("pki/ca-next.key").exists());
    place.ok("ca rotate start");
    place.ok("ca rotate switch");
    place.ok("renew --all");
    place.ok("ca rotate finish");
    assert!(is_taken(&place, "pki/db1.crt"));
}

#[test]
fn one_passphrase_serves_both_cas() {
    let place = Place::empty();
    place.secret("pass", "correct horse");
    place.ok("ca init --passphrase-file pass");
    place.ok("issue db1 --passphrase-file pass");
    for step in ["start", "switch"] {
        place.ok(&format!("ca rotate --passphrase-file pass {step}"));
        place.ok("revoke db1 --passphrase-file pass");
        for name in names_in(&place.path("pki"))
            .iter()
            .filter(|name| name.starts_with("ca") && name.ends_with(".key"))
        {
            let key = fs::read_to_string(place.pki(name)).unwrap();
            assert!(key.contains("ENCRYPTED"), "{name}");
        }
    }
    assert!(
        text(&place.run("ca rotate").stdout).contains("2 of 3"),
        "looking needs no passphrase"
    );
    place.ok("ca rotate --passphrase-file pass finish");
}

#[test]
fn a_ca_in_the_bundle_that_is_not_ours_stays_there() {
    let (place, other) = (Place::with_ca(), Place::with_ca());
    place.ok("issue db1");
    other.ok("issue far");
    for file in ["ca.crt", "ca.crl"] {
        let both = [&place, &other]
            .map(|place| fs::read(place.pki(file)).unwrap())
            .concat();
        fs::write(place.pki(file), both).unwrap();
    }
    let far = other.pki("far.crt");
    assert!(is_taken(&place, &far));
    for command in [
        "crl",
        "ca rotate start",
        "ca rotate switch",
        "renew db1",
        "ca rotate finish",
    ] {
        place.ok(command);
        assert!(
            is_taken(&place, &far) && is_taken(&place, "pki/db1.crt"),
            "{command}"
        );
    }
}

#[test]
fn the_ca_that_follows_has_a_name_of_its_own() {
    let place = Place::empty();
    place.ok("ca init --name site");
    // By its name alone a CRL is found, so that each would be judged by the list of the other.
    let said = place.fails("ca rotate start --name site");
    assert!(
        said.contains("CN=site") && said.contains("--name"),
        "{said}"
    );
    assert_eq!(stage(&place), "none");
    assert!(!place.path("pki/ca-next.key").exists());
    place.ok("ca rotate start --name site-2");
    assert_eq!(stage(&place), "trust");
}

#[test]
fn what_a_ca_made_that_was_replaced_counts_no_longer() {
    let place = Place::with_ca();
    place.ok("issue db1");
    place.ok("issue db2");
    place.ok("ca init --force");
    let counting = || {
        let listed = place.json("list --json");
        let all = listed.as_array().unwrap().iter();
        let counting = all.filter(|one| one["dropped"].is_null());
        counting
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(counting(), [""; 0]);
    place.ok("issue db2 --force");
    assert_eq!(counting(), ["db2"]);
    for command in [
        "ca rotate start",
        "ca rotate switch",
        "renew db2",
        "ca rotate finish",
    ] {
        place.ok(command);
    }
    assert!(is_taken(&place, "pki/db2.crt"));
}
