//! Files are whole, secret, and never overwritten by surprise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use place::{Place, TOOL, mode, names_in, text};

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
