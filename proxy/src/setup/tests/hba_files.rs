//! pg_hba.conf: generated files against `pg_hba_file_rules`, and against logins that are really tried.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use testbed::{Node, Wire, wait_until, wire};

use super::{each_major, rows, runner, write};
use crate::setup::files::Disk;
use crate::setup::hba::{self, Address, Decision, Kind, Login, Rule, Transport, Via, first_match};
use crate::setup::version::{Major, Thing, V16, has};

/// For each major. Each costs about twenty logins.
const FILES: u32 = 150;
const ROLES: [&str; 4] = ["rep", "app", "We ird\"é", "all"];
const DATABASES: [&str; 4] = ["app", "rep", "replication", "grp"];

fn one_of(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(choices).prop_map(str::to_owned)
}

fn list(word: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let comma = one_of(&[",", ", ", ",\t", ",,"]);
    (prop::collection::vec(word, 1..4), comma).prop_map(|(words, comma)| words.join(&comma))
}

fn record(major: Major) -> impl Strategy<Value = String> {
    const DATABASE: &[&str] = &[
        "all",
        "all",
        "\"all\"",
        "replication",
        "replication",
        "\"replication\"",
        "REPLICATION",
        "sameuser",
        "samerole",
        "app",
        "rep",
        "\"app\"",
        "a\"p\"p",
        "@names",
        "@\"names\"",
        "re\"\"p",
        "samegroup",
        "grp",
    ];
    const USER: &[&str] = &[
        "all",
        "all",
        "\"all\"",
        "rep",
        "\"rep\"",
        "+grp",
        "\"+grp\"",
        "+\"grp\"",
        "app",
        "@names",
        "\"We ird\"\"é\"",
        "+app",
    ];
    const DATABASE_16: &[&str] = &["/^ap", "\"/^(app|rep)$\"", "/rep$", "/^app$"];
    const USER_16: &[&str] = &["/^re", "/p$", "\"/^rep$\"", "/[a-z]"];
    const ADDRESS: &[&str] = &[
        "127.0.0.1/32",
        "127.0.0.0/8",
        "0.0.0.0/0",
        "::1/128",
        "::0/0",
        "all",
        "samehost",
        "samenet",
        "10.0.0.0/8",
        "127.0.0.1 255.255.255.255",
        "127.9.0.1 255.0.0.255",
        "\"127.0.0.1/32\"",
        "fe80::/10",
        "127.0.0.2/31",
        "0.0.0.0 0.0.0.0",
        "::ffff:127.0.0.1/128",
        "\"all\"",
    ];
    const TYPE: &[&str] = &["host", "host", "host", "hostnossl", "hostssl", "\"host\""];
    const METHOD: &[&str] = &[
        "trust",
        "trust",
        "reject",
        "scram-sha-256",
        "password",
        "\"trust\"",
        "md5",
    ];
    let regex = if has(major, Thing::HbaRegexAndInclude) {
        1
    } else {
        0
    };
    let database = list(prop_oneof![8 => one_of(DATABASE), regex => one_of(DATABASE_16)]);
    let user = list(prop_oneof![8 => one_of(USER), regex => one_of(USER_16)]);
    let blank = prop_oneof![3 => Just(" "), 1 => Just("\t"), 1 => Just("   ")];
    let join = if has(major, Thing::HbaContinuation) {
        " \\\n  "
    } else {
        "  "
    };
    let blank = prop_oneof![9 => blank, 1 => Just(join)];
    let local = one_of(&[
        "trust",
        "trust",
        "reject",
        "peer",
        "scram-sha-256",
        "peer map=x",
        "md5",
    ]);
    let host = (one_of(TYPE), one_of(ADDRESS), one_of(METHOD))
        .prop_map(|(kind, address, method)| (kind, Some(address), method));
    let local = local.prop_map(|method| ("local".to_owned(), None, method));
    let comment = one_of(&["", "", "", " # comment", "#glued", " \r"]);
    (prop_oneof![local, host], database, user, blank, comment).prop_map(
        |((kind, address, method), database, user, blank, comment)| {
            let mut fields = vec![kind, database, user];
            fields.extend(address);
            fields.push(method);
            fields.join(blank) + &comment
        },
    )
}

fn line(major: Major) -> impl Strategy<Value = String> {
    const BROKEN: &[&str] = &[
        "LOCAL all all trust",
        "local all all",
        "host all all 127.0.0.1 trust",
        "host all all 127.0.0.1/33 trust",
        "local,host all all trust",
        "local all @nowhere trust",
        "host all all ::1/128 peer",
        "local all all magic",
        "local all all trust x",
        "host all all name/8 trust",
        "host all all 1.2.3.4,5.6.7.8 trust",
        "local all all peer,trust",
    ];
    const NOTHING: &[&str] = &["", "  ", "# local all all trust", "\t# \"", "\r", ","];
    const INCLUDE: &[&str] = &[
        "include more",
        "include_if_exists \"no where\"",
        "include_dir d",
        "\"include\" more",
        "include x y",
    ];
    let include = if has(major, Thing::HbaRegexAndInclude) {
        1
    } else {
        0
    };
    prop_oneof![
        20 => record(major),
        4 => one_of(NOTHING),
        include => one_of(INCLUDE),
        1 => prop_oneof![Just(String::new()), one_of(BROKEN)],
    ]
}

fn text(major: Major, most: usize) -> impl Strategy<Value = String> {
    (
        prop::collection::vec(line(major), 0..most),
        prop_oneof![9 => Just("\n"), 1 => Just("\r\n")],
    )
        .prop_map(|(lines, end)| lines.join(end) + end)
}

#[test]
fn rules_are_read_and_obeyed_as_the_server_does() {
    each_major(|node, major| {
        let data = node.data();
        let node = node.started();
        node.query("create role grp; create role rep login replication in role grp; create role app login superuser");
        node.query("create role \"We ird\"\"é\" login replication; create role \"all\" login");
        for database in ["app", "rep", "replication", "grp"] {
            node.query(&format!("create database {database}"));
        }
        write(&data.join("names"), "rep, \"all\" # comment\n  app\n");
        let (faulty, case) = (Cell::new(0), Cell::new(0));
        let (logins, decided) = (Cell::new(0), Cell::new(0));
        let outcome = runner(FILES).run(&(text(major, 9), text(major, 3)), |(main, more)| {
            case.set(case.get() + 1);
            let more = more.replace("include", "# include");
            write(&data.join("more"), &more);
            write(&data.join("d/more.conf"), &more);
            let marker = format!("marker{}", case.get());
            let control = format!("local postgres,{marker} postgres trust\n");
            write(&data.join("pg_hba.conf"), control + &main);
            match compare_rules(&node, major)? {
                None => faulty.set(faulty.get() + 1),
                Some(rules) => {
                    node.reload();
                    let loaded = || {
                        outcome(
                            &node,
                            Via::Socket,
                            Kind::Ordinary { database: &marker },
                            "postgres",
                        ) == "trust"
                    };
                    wait_until("the rules to be loaded", loaded);
                    let (tried, matched) = compare_logins(&node, &rules)?;
                    logins.set(logins.get() + tried);
                    decided.set(decided.get() + matched);
                }
            }
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
        println!(
            "{} of {} files are faulty; {} logins were tried, {} decided by a line",
            faulty.get(),
            case.get(),
            logins.get(),
            decided.get()
        );
        assert!(
            decided.get() > logins.get() / 10,
            "hardly a line decides anything"
        );
        assert!(
            (2..FILES / 2).contains(&faulty.get()),
            "the generator lost its way"
        );
    });
}

/// The rules that both see; none if both find a fault.
fn compare_rules(node: &Node, major: Major) -> Result<Option<Vec<Rule>>, TestCaseError> {
    let order = if major >= V16 {
        "rule_number nulls last"
    } else {
        "line_number"
    };
    let seen = rows(
        node,
        &format!("select * from pg_hba_file_rules order by {order}"),
    );
    // "hostssl record cannot match because SSL is disabled" is a hint; the line is taken all the same.
    let hint = |row: &&serde_json::Value| {
        row["error"]
            .as_str()
            .is_some_and(|error| error.contains("cannot match"))
    };
    let fault = seen
        .iter()
        .find(|row| row["error"].is_string() && !hint(row));
    let ours = match hba::read(&Disk, &node.data().join("pg_hba.conf"), major) {
        Ok(ours) => ours,
        Err(error) => {
            prop_assert!(fault.is_some(), "no fault for the server: {error:?}");
            return Ok(None);
        }
    };
    prop_assert!(fault.is_none(), "not found: {}", fault.unwrap());
    let hints = seen.iter().filter(hint).count();
    let plain: Vec<_> = seen.iter().filter(|row| !hint(row)).collect();
    prop_assert_eq!(ours.len(), seen.len(), "{} hints", hints);
    let shown = ours
        .iter()
        .filter(|rule| hints == 0 || rule.transport != Transport::HostSsl);
    for (theirs, ours) in plain.into_iter().zip(shown) {
        prop_assert_eq!(
            theirs["line_number"].as_u64().unwrap(),
            ours.place.line as u64
        );
        if let Some(file) = theirs["file_name"].as_str() {
            prop_assert_eq!(file, ours.place.file.to_str().unwrap());
        }
        let names = |value: &serde_json::Value| {
            let names = value.as_array().unwrap().iter();
            names
                .map(|name| name.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let words = |words: &[hba::Word]| {
            let words = words.iter();
            words
                .map(|word| String::from_utf8_lossy(&word.text).into_owned())
                .collect::<Vec<_>>()
        };
        prop_assert_eq!(names(&theirs["database"]), words(&ours.databases));
        prop_assert_eq!(names(&theirs["user_name"]), words(&ours.users));
        prop_assert_eq!(
            theirs["auth_method"].as_str().unwrap(),
            ours.method.as_str()
        );
        let address = match &ours.address {
            None => (None, None),
            Some(Address::All) => (Some("all".to_owned()), None),
            Some(Address::SameHost) => (Some("samehost".to_owned()), None),
            Some(Address::SameNet) => (Some("samenet".to_owned()), None),
            Some(Address::Net { address, mask }) => {
                (Some(address.to_string()), Some(mask.to_string()))
            }
            Some(Address::Name(name)) => (Some(String::from_utf8_lossy(name).into_owned()), None),
        };
        let field = |name: &str| theirs[name].as_str().map(str::to_owned);
        prop_assert_eq!((field("address"), field("netmask")), address);
    }
    Ok(Some(ours))
}

/// How many logins were tried, and how many of them a line decided.
fn compare_logins(node: &Node, rules: &[Rule]) -> Result<(u32, u32), TestCaseError> {
    let (mut tried, mut decided) = (0, 0);
    let loopback = Via::Tcp([127, 0, 0, 1].into());
    for role in ROLES {
        let kinds = DATABASES
            .iter()
            .flat_map(|database| [Kind::Ordinary { database }, Kind::Logical { database }]);
        // A third of the kinds for each role: what one leaves out is another's.
        for (index, kind) in kinds.chain([Kind::Physical]).enumerate() {
            if kind != Kind::Physical && (index + role.len()) % 3 != 0 {
                continue;
            }
            for via in [Via::Socket, loopback] {
                let mut login = Login::new(kind, role, via);
                if role == "rep" {
                    login.groups = BTreeSet::from(["grp".to_owned()]);
                }
                let (ours, rule) = match first_match(rules, &login) {
                    Decision::Nothing => ("nothing", None),
                    Decision::Line(rule) => (rule.method.as_str(), Some(rule)),
                    Decision::CannotTell(..) => continue,
                };
                // A role without a password is asked for one in whatever way; only that it is asked shows.
                let ours = if matches!(ours, "scram-sha-256" | "md5") {
                    "password"
                } else {
                    ours
                };
                tried += 1;
                decided += u32::from(rule.is_some());
                let theirs = outcome(node, via, kind, role);
                prop_assert_eq!(theirs, ours, "{:?} by {:?}", login, rule);
            }
        }
    }
    Ok((tried, decided))
}

/// What the server says to a login: the method that it asks for, or how it refuses.
fn outcome(node: &Node, via: Via, kind: Kind<'_>, role: &str) -> &'static str {
    let mut wire = match via {
        Via::Tls => unreachable!("logins here come in plaintext"),
        Via::Socket => Wire::unix(&node.socket()),
        Via::Tcp(_) => Wire::tcp(node.address()),
    };
    let parameters = match kind {
        Kind::Physical => [("database", "replication"), ("replication", "true")].to_vec(),
        Kind::Logical { database } => vec![("database", database), ("replication", "database")],
        Kind::Ordinary { database } => vec![("database", database)],
    };
    let user = [("user", role)];
    wire.send(&wire::startup(&[&user[..], &parameters].concat()));
    let (tag, body) = wire.read_message().unwrap();
    let text = String::from_utf8_lossy(&body);
    match (tag, body.get(3)) {
        (b'R', Some(0)) => "trust",
        (b'R', Some(3 | 5 | 10)) => "password",
        (b'E', _) if text.contains("no pg_hba.conf entry") => "nothing",
        (b'E', _) if text.contains("pg_hba.conf rejects") => "reject",
        (b'E', _) if text.contains("Peer authentication failed") => "peer",
        _ => panic!("{role}: {tag} {text}"),
    }
}

/// The block, written for a role of any name: the login that it is for gets in by it, whatever stood there before.
#[test]
fn the_block_lets_in_whom_it_is_for_and_nobody_else_and_goes_without_a_trace() {
    each_major(|node, major| {
        let data = node.data();
        let path = data.join("pg_hba.conf");
        let node = node.started();
        let role = "We ird\"é#,";
        node.query(
            "create role \"We ird\"\"é#,\" login replication; create role rep login replication",
        );
        let name = hba::quote(role, major).unwrap();
        let case = Cell::new(0);
        let outcome = runner(60).run(&text(major, 9), |main| {
            case.set(case.get() + 1);
            let marker = format!("marker{}", case.get());
            let before = format!("local postgres,{marker} postgres trust\n{main}");
            write(&data.join("more"), "");
            write(&data.join("d/more.conf"), "");
            write(&data.join("names"), "rep");
            write(&path, &before);
            let Ok(rules) = hba::read(&Disk, &path, major) else {
                return Ok(());
            };
            let login = Login::new(Kind::Physical, role, Via::Socket);
            let lines = [format!("local replication {name} password")];
            let put = |path: &Path| {
                hba::with_block(&Disk, path, major, &lines, std::slice::from_ref(&login)).unwrap()
            };
            let new = put(&path);
            write(&path, &new);
            prop_assert!(put(&path) == new, "twice changes nothing");
            prop_assert_eq!(
                crate::setup::block::without(&new).unwrap(),
                before.into_bytes(),
                "all else stays"
            );
            node.reload();
            wait_until("the rules to be loaded", || {
                outcome(
                    &node,
                    Via::Socket,
                    Kind::Ordinary { database: &marker },
                    "postgres",
                ) == "trust"
            });
            prop_assert_eq!(
                outcome(&node, Via::Socket, Kind::Physical, role),
                "password"
            );
            // Whom it is not for.
            let other = Login::new(Kind::Physical, "rep", Via::Socket);
            if let Decision::Line(rule) = first_match(&rules, &other) {
                let method = rule.method.as_str();
                let method = if matches!(method, "scram-sha-256" | "md5") {
                    "password"
                } else {
                    method
                };
                prop_assert_eq!(outcome(&node, Via::Socket, Kind::Physical, "rep"), method);
            }
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    });
}
