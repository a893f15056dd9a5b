//! A CA outlives its host: what was backed up comes back whole, or not at all.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;
use std::process::Command;

use place::{Place, TOOL, mode, names_in, text};

fn filled() -> Place {
    let place = Place::with_ca();
    place.secret("pass", "correct horse");
    place.secret("wrong", "battery staple");
    place.ok("issue db1");
    place.ok("issue db2");
    place.ok("revoke db2");
    place
}

fn restore(place: &Place, to: &str, file: &str, passphrase: &str) -> std::process::Output {
    let mut command = Command::new(TOOL);
    let arguments = [
        "--dir",
        to,
        "ca",
        "restore",
        file,
        "--passphrase-file",
        passphrase,
    ];
    command
        .current_dir(place.0.path())
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_restored_ca_goes_on_where_it_was() {
    let place = filled();
    place.ok("ca backup b.tar --passphrase-file pass");
    assert_eq!(mode(place.path("b.tar")), 0o600);
    let before: Vec<Vec<u8>> = ["ca.key", "ca.crt", "ca.crl"]
        .map(|name| fs::read(place.pki(name)).unwrap())
        .into();
    let lost = place.path("lost");
    fs::rename(place.path("pki"), &lost).unwrap();
    let output = restore(&place, "pki", "b.tar", "pass");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let after: Vec<Vec<u8>> = ["ca.key", "ca.crt", "ca.crl"]
        .map(|name| fs::read(place.pki(name)).unwrap())
        .into();
    assert_eq!(before, after);
    assert_eq!(mode(place.pki("ca.key")), 0o600);
    place.ok("issue db3");
    assert_eq!(place.json("list --json").as_array().unwrap().len(), 3);
    let crl = place.json("inspect --json pki/ca.crl");
    assert_eq!(crl[0]["revoked"].as_array().unwrap().len(), 1);
    let number = i64::from_str_radix(crl[0]["number"].as_str().unwrap(), 16).unwrap();
    assert!(
        number > 1000,
        "numbers given out since the backup do not come again: {number}"
    );
    assert!(
        place
            .run("verify lost/db1.crt --ca pki/ca.crt --crl pki/ca.crl")
            .status
            .success()
    );
}

#[test]
fn nothing_altered_goes_unnoticed() {
    let place = filled();
    place.ok("ca backup b.tar --passphrase-file pass");
    let whole = fs::read(place.path("b.tar")).unwrap();
    // Every part of the archive, headers and padding too; each try costs a key derivation at most.
    let step = (whole.len() / 150).max(1);
    for at in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        fs::write(place.path("altered.tar"), &altered).unwrap();
        let output = restore(&place, "other", "altered.tar", "pass");
        assert_eq!(
            output.status.code(),
            Some(1),
            "byte {at} of {}",
            whole.len()
        );
        assert!(!place.path("other/ca.key").exists() && !place.path("other/ca.crt").exists());
    }
    for cut in [0, 511, 512, whole.len() / 2, whole.len() - 512] {
        fs::write(place.path("cut.tar"), &whole[..cut]).unwrap();
        assert_eq!(
            restore(&place, "other", "cut.tar", "pass").status.code(),
            Some(1),
            "cut at {cut}"
        );
    }
    let longer = [&whole[..], &[0; 512]].concat();
    fs::write(place.path("longer.tar"), longer).unwrap();
    assert_eq!(
        restore(&place, "other", "longer.tar", "pass").status.code(),
        Some(1)
    );
    let said = text(&restore(&place, "other", "b.tar", "wrong").stderr);
    assert!(said.contains("wrong passphrase"), "{said}");
    assert!(restore(&place, "other", "b.tar", "pass").status.success());
}

/// Whoever can write the file, and make digests and archives, but does not know the passphrase.
#[test]
fn a_backup_that_another_ca_has_signed_is_refused() {
    let place = filled();
    place.ok("ca backup b.tar --passphrase-file pass");
    let evil = "mkdir x && cd x && tar xf ../b.tar && grep -v revoked ledger.jsonl > l && mv l ledger.jsonl && \
        openssl ecparam -name prime256v1 -genkey -noout -out evil.key && \
        sed -i '/SHA256/d' SHA256SUMS && sha256sum README backup.json ca.key ca.crt ca.crl ledger.jsonl > SHA256SUMS && \
        openssl dgst -sha256 -sign evil.key -out SHA256SUMS.sig SHA256SUMS && \
        tar --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=600 -cf ../evil.tar \
        README backup.json ca.key ca.crt ca.crl ledger.jsonl SHA256SUMS SHA256SUMS.sig";
    let made = Command::new("sh")
        .current_dir(place.0.path())
        .args(["-c", evil])
        .status()
        .unwrap();
    if place.openssl("version").is_none() {
        return;
    }
    assert!(made.success());
    let said = text(&restore(&place, "other", "evil.tar", "pass").stderr);
    assert!(said.contains("was changed"), "{said}");
    assert!(!place.path("other/ca.key").exists());
}

#[test]
fn it_can_be_opened_without_this_program() {
    let place = filled();
    place.ok("ca backup b.tar --passphrase-file pass");
    if place.openssl("version").is_none() {
        return;
    }
    let by_hand = "mkdir x && cd x && tar xf ../b.tar && sha256sum -c SHA256SUMS && \
        openssl x509 -in ca.crt -noout -pubkey > ca.pub && \
        openssl dgst -sha256 -verify ca.pub -signature SHA256SUMS.sig SHA256SUMS && \
        openssl pkey -in ca.key -passin file:../pass -pubout | cmp - ca.pub && cmp ca.crt ../pki/ca.crt";
    let output = Command::new("sh")
        .current_dir(place.0.path())
        .args(["-c", by_hand])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    assert!(
        fs::read_to_string(place.path("x/README"))
            .unwrap()
            .contains("sha256sum -c")
    );
}

#[test]
fn a_restore_overwrites_nothing_and_can_be_run_again() {
    let place = filled();
    place.ok("ca backup b.tar --passphrase-file pass");
    let said = text(&restore(&place, "pki", "b.tar", "pass").stderr);
    assert!(said.contains("exists already"), "{said}");
    fs::create_dir(place.path("half")).unwrap();
    fs::copy(place.pki("ca.crt"), place.path("half/ca.crt")).unwrap();
    assert!(
        restore(&place, "half", "b.tar", "pass").status.success(),
        "as after a kill on the way"
    );
    fs::remove_file(place.path("half/ca.key")).unwrap();
    fs::write(place.path("half/ca.crl"), "mine").unwrap();
    assert_eq!(
        restore(&place, "half", "b.tar", "pass").status.code(),
        Some(1)
    );
    assert!(!place.path("half/ca.key").exists(), "all or nothing");
    assert_eq!(fs::read(place.path("half/ca.crl")).unwrap(), b"mine");
    assert!(
        place
            .fails("ca backup b.tar --passphrase-file pass")
            .contains("exists already")
    );
    place.ok("ca backup b.tar --passphrase-file pass --force");
}

#[test]
fn a_rotation_survives_its_host() {
    for step in ["start", "switch"] {
        let place = filled();
        place.ok("ca rotate start");
        if step == "switch" {
            place.ok("ca rotate switch");
        }
        let script = format!(
            "{TOOL} --dir pki ca backup - --passphrase-file pass | {TOOL} --dir new ca restore - --passphrase-file pass"
        );
        let output = Command::new("sh")
            .current_dir(place.0.path())
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let keys = |of: &str| {
            names_in(&place.path(of))
                .into_iter()
                .filter(|name| name.starts_with("ca"))
                .collect::<Vec<_>>()
        };
        assert_eq!(keys("pki"), keys("new"));
        fs::remove_dir_all(place.path("pki")).unwrap();
        fs::rename(place.path("new"), place.path("pki")).unwrap();
        if step == "start" {
            place.ok("ca rotate switch");
        }
        place.ok("renew db1");
        place.ok("ca rotate finish");
        assert!(
            place
                .run("verify pki/db1.crt --key pki/db1.key --ca pki/ca.crt --crl pki/ca.crl")
                .status
                .success()
        );
    }
}

#[test]
fn a_key_under_a_passphrase_stays_under_it() {
    let place = Place::empty();
    place.secret("pass", "correct horse");
    place.ok("ca init --passphrase-file pass");
    place.ok("ca backup b.tar --passphrase-file pass");
    assert!(restore(&place, "new", "b.tar", "pass").status.success());
    assert_eq!(
        fs::read(place.pki("ca.key")).unwrap(),
        fs::read(place.path("new/ca.key")).unwrap()
    );
}
