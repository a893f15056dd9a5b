//! Facts by hand, findings as ids: one line a case.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use protocol::replication::Lsn;

use super::hba::{Decision, Via, decide};
use super::judge;
use crate::doctor::facts::{
    About, Answer, Cluster, Door, Explained, Facts, Far, HbaRule, Login, Outcome, Reach, Receiver,
    Replay, Role, Route, Server, ServerError, Side, Upstream,
};
use crate::doctor::gather::Subject;
use crate::doctor::report::Verdict;

fn ids(facts: &Facts) -> Vec<String> {
    let report = judge(Subject::default(), facts);
    report
        .findings
        .into_iter()
        .map(|finding| finding.id)
        .collect()
}

/// A standby of 15 that streams through the tunnel, and a primary that would let it in again.
fn well() -> Facts {
    let login = Login {
        system_identifier: "7".to_owned(),
        timeline: 1,
        lsn: Lsn(0x500),
        in_recovery: Some(false),
        ..Login::default()
    };
    let server = Server {
        about: About {
            superuser: true,
            in_recovery: true,
            system_identifier: "7".to_owned(),
            timeline: 1,
            ..About::default()
        },
        hba: Some(Vec::new()),
        receiver: Some(Receiver {
            pid: 42,
            status: Some("streaming".to_owned()),
            silent_for: Some(3.0),
            ..Receiver::default()
        }),
        replay: Some(Replay {
            received: Some("0/400".to_owned()),
            replayed: Some("0/400".to_owned()),
            paused: false,
        }),
        newest_wal: Some(1),
        ..Server::default()
    };
    let settings = [
        ("primary_conninfo", "host=/run/x port=5442"),
        ("wal_receiver_timeout", "60000"),
    ];
    Facts {
        door: Some(Door {
            reach: reach(Outcome::Answered(Duration::from_millis(1))),
            ours: true,
            admits: Some(true),
            libpq: None,
        }),
        routes: vec![Route {
            target: "db1:5443".to_owned(),
            answer: Some(Answer::Welcome(Box::new(login))),
            ..Route::default()
        }],
        cluster: Some(Cluster {
            major: 15,
            running: true,
            standby_signal: true,
            settings: settings
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            upstream: Some(Upstream {
                user: "rep".to_owned(),
                slot: Some("s1".to_owned()),
                ..Upstream::default()
            }),
            server: Some(server),
            ..Cluster::default()
        }),
        ..Facts::default()
    }
}

fn reach(outcome: Outcome) -> Reach {
    Reach {
        address: "/run/x".to_owned(),
        outcome,
    }
}

fn cluster(facts: &mut Facts) -> &mut Cluster {
    facts.cluster.as_mut().unwrap()
}

fn server(facts: &mut Facts) -> &mut Server {
    cluster(facts).server.as_mut().unwrap()
}

fn login(facts: &mut Facts) -> &mut Login {
    match &mut facts.routes[0].answer {
        Some(Answer::Welcome(login)) => login,
        _ => panic!("no login"),
    }
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    cluster(facts)
        .settings
        .insert(name.to_owned(), value.to_owned());
}

/// Slot synchronisation has here what it needs.
fn synchronised(facts: &mut Facts) {
    set(facts, "sync_replication_slots", "on");
    set(facts, "hot_standby_feedback", "on");
    let upstream = cluster(facts).upstream.as_mut().unwrap();
    upstream.has_dbname = true;
    upstream.slot = Some("s".to_owned());
}

fn error(sqlstate: &str, routine: &str, message: &str) -> ServerError {
    ServerError {
        sqlstate: sqlstate.to_owned(),
        routine: routine.to_owned(),
        message: message.to_owned(),
        ..ServerError::default()
    }
}

/// The walreceiver is not there, and a login gets this answer.
fn refuse(facts: &mut Facts, sqlstate: &str, routine: &str, message: &str) {
    server(facts).receiver = None;
    facts.routes[0].answer = Some(Answer::Refused(error(sqlstate, routine, message)));
}

/// The walreceiver is not there, and START_REPLICATION gets this answer.
fn no_stream(facts: &mut Facts, sqlstate: &str) {
    server(facts).receiver = None;
    login(facts).stream = Some(Err(error(sqlstate, "", "in any language")));
}

/// The primary's timeline 2 branched off before our WAL on timeline 1 ends, and START_REPLICATION gets this answer.
fn parted(facts: &mut Facts, sqlstate: &str) {
    no_stream(facts, sqlstate);
    login(facts).timeline = 2;
    login(facts).history = vec![(1, Lsn(0x3ff))];
}

#[test]
fn each_fact_has_its_id() {
    type Plant = fn(&mut Facts);
    let cases: &[(&[&str], Plant)] = &[
        (&[], |_| ()),
        (&["N21"], |f| {
            f.door.as_mut().unwrap().reach = reach(Outcome::Failed("refused".to_owned()))
        }),
        (&["N22"], |f| {
            f.door.as_mut().unwrap().reach = reach(Outcome::Silent)
        }),
        (&["N23"], |f| {
            f.door.as_mut().unwrap().reach = reach(Outcome::NoName("no name".to_owned()))
        }),
        (&["N24"], |f| f.door.as_mut().unwrap().ours = false),
        (&["P08"], |f| f.door.as_mut().unwrap().admits = Some(false)),
        (&["Q01"], |f| {
            server(f).receiver.as_mut().unwrap().clock_ahead = Some(30.0)
        }),
        // A busy link, and no other clock to go by.
        (&[], |f| {
            server(f).receiver.as_mut().unwrap().clock_ahead = Some(-30.0)
        }),
        (&["Q01"], |f| login(f).clock_ahead = Some(-30.0)),
        // Nothing was received of late: an old difference says nothing of now.
        (&[], |f| {
            let receiver = server(f).receiver.as_mut().unwrap();
            (receiver.clock_ahead, receiver.silent_for) = (Some(30.0), Some(90.0));
            set(f, "wal_receiver_timeout", "0");
        }),
        (&["H01"], |f| {
            refuse(
                f,
                "28000",
                "ClientAuthentication",
                "kein Eintrag in pg_hba.conf",
            )
        }),
        (&["H02"], |f| {
            refuse(
                f,
                "28000",
                "ClientAuthentication",
                "pg_hba.conf rejects ...",
            )
        }),
        (&["A07"], |f| {
            refuse(f, "28000", "auth_failed", "Peer-Authentifizierung")
        }),
        (&["A05"], |f| {
            refuse(
                f,
                "28000",
                "InitializeSessionUserId",
                "role \"r\" is not permitted to log in",
            )
        }),
        (&["A02"], |f| {
            refuse(
                f,
                "28000",
                "InitializeSessionUserId",
                "role \"r\" does not exist",
            )
        }),
        // Either of both, in another language: nothing is made up.
        (&["U15"], |f| {
            refuse(
                f,
                "28000",
                "InitializeSessionUserId",
                "darf nicht einloggen",
            )
        }),
        (&["A01"], |f| refuse(f, "28P01", "auth_failed", "x")),
        (&["A04"], |f| refuse(f, "42501", "InitPostgres", "x")),
        (&["A10"], |f| refuse(f, "42501", "CheckMyDatabase", "x")),
        (&["U15"], |f| refuse(f, "42501", "x", "x")),
        (&["U06"], |f| refuse(f, "53300", "InitProcess", "x")),
        (&["U14"], |f| refuse(f, "53300", "InitPostgres", "x")),
        (&["U19"], |f| refuse(f, "53300", "CheckMyDatabase", "x")),
        (&["U12"], |f| {
            refuse(f, "57P03", "ProcessStartupPacket", "x")
        }),
        (&["U15"], |f| refuse(f, "XX000", "x", "x")),
        // The far proxy's own word, at its own layer.
        (&["P01"], |f| {
            refuse(f, "28000", "", "pgtlsproxy: no rule for dns:a [P01]")
        }),
        (&["B01"], |f| {
            refuse(f, "57P03", "", "pgtlsproxy: cannot reach [B01]")
        }),
        (&["L01"], |f| {
            refuse(f, "53300", "", "pgtlsproxy: too many [L01]")
        }),
        // Somebody who only writes like us is no proxy of ours.
        (&["U15"], |f| {
            refuse(f, "XX000", "x", "pgtlsproxy: [not an id]")
        }),
        (&["U01"], |f| no_stream(f, "42704")),
        (&["U02"], |f| no_stream(f, "55006")),
        (&["U03"], |f| no_stream(f, "55000")),
        (&["U03"], |f| no_stream(f, "58P01")),
        (&["U18"], |f| {
            no_stream(f, "55000");
            if let Some(Err(error)) = &mut login(f).stream {
                error.detail = "wegen »idle_timeout«".to_owned();
            }
        }),
        (&["U04"], |f| {
            no_stream(f, "58P01");
            cluster(f).upstream.as_mut().unwrap().slot = None;
        }),
        // Another cluster's slots and WAL are nobody's fault.
        (&["Y01"], |f| {
            no_stream(f, "42704");
            login(f).system_identifier = "8".to_owned();
        }),
        (&["Y02"], |f| {
            no_stream(f, "58P01");
            server(f).about.timeline = 2;
        }),
        (&["Y03"], |f| {
            no_stream(f, "XX000");
            login(f).lsn = Lsn(0x300);
        }),
        // Another standby, that has not come as far.
        (&["Y17"], |f| {
            no_stream(f, "XX000");
            login(f).lsn = Lsn(0x300);
            login(f).in_recovery = Some(true);
        }),
        (&["Y03"], |f| parted(f, "XX000")),
        // The server's own word is needed, and what else it says comes first.
        (&["U01"], |f| parted(f, "42704")),
        (&["Y17"], |f| {
            parted(f, "XX000");
            login(f).stream = Some(Ok(()));
        }),
        // pg_control tells of the timeline before, and the WAL of this one.
        (&["Y17"], |f| {
            parted(f, "XX000");
            server(f).newest_wal = Some(2);
        }),
        (&["Y17"], |f| {
            parted(f, "XX000");
            server(f).newest_wal = None;
        }),
        (&[], |f| {
            login(f).timeline = 2;
            login(f).history = vec![(1, Lsn(0x400))];
        }),
        (&["Y17"], |f| server(f).receiver = None),
        (&["Y09"], |f| {
            server(f).receiver = None;
            f.door.as_mut().unwrap().libpq = Some("invalid connection option".to_owned());
        }),
        (&["Y13"], |f| {
            server(f).receiver.as_mut().unwrap().silent_for = Some(61.5)
        }),
        (&["Y13"], |f| {
            server(f).receiver = Some(Receiver {
                connecting_for: Some(400.0),
                ..Receiver::default()
            });
        }),
        (&["Y11"], |f| {
            server(f).replay.as_mut().unwrap().paused = true
        }),
        (&["Y19"], |f| {
            server(f).replay.as_mut().unwrap().paused = true;
            set(f, "max_connections", "60");
            login(f)
                .settings
                .insert("max_connections".to_owned(), "70".to_owned());
        }),
        (&["Y12"], |f| {
            server(f).replayed_later = Some("0/400".to_owned())
        }),
        (&[], |f| server(f).replayed_later = Some("0/401".to_owned())),
        (&[], |f| {
            server(f).replayed_later = Some("0/400".to_owned());
            set(f, "recovery_min_apply_delay", "3600000");
        }),
        (&["Y15"], |f| set(f, "primary_conninfo", "")),
        (&[], |f| {
            set(f, "primary_conninfo", "");
            set(f, "restore_command", "cp");
        }),
        (&["Y10"], |f| {
            server(f).conninfo_places = vec!["a:1".to_owned(), "b:2".to_owned()]
        }),
        (&["Y16"], |f| set(f, "sync_replication_slots", "on")),
        (&["Y16"], |f| {
            synchronised(f);
            f.slot_sync = Some(Answer::Refused(error("28000", "ClientAuthentication", "x")));
        }),
        (&[], |f| {
            synchronised(f);
            f.slot_sync = Some(Answer::Welcome(Box::default()));
        }),
        (&["Y22"], |f| {
            cluster(f).server = None;
            cluster(f).silent = true;
        }),
        (&["Y04"], |f| server(f).about.in_recovery = false),
        (&["Y05"], |f| {
            server(f).about.in_recovery = false;
            server(f).about.timeline = 2;
        }),
        (&[], |f| {
            server(f).about.in_recovery = false;
            login(f).in_recovery = Some(true);
        }),
        (&["Y14"], |f| {
            (cluster(f).running, cluster(f).server) = (false, None)
        }),
        (&["Y08"], |f| {
            (cluster(f).running, cluster(f).server) = (false, None);
            cluster(f).conf_error = Some("unrecognized".to_owned());
        }),
        (&["Y06"], |f| cluster(f).recovery_conf = true),
        // A refusal that a running stream does not feel is a warning; a full house is a note.
        (&["A04"], |f| {
            f.routes[0].answer = Some(Answer::Refused(error("42501", "InitPostgres", "x")))
        }),
        (&["U06"], |f| {
            f.routes[0].answer = Some(Answer::Refused(error("53300", "InitProcess", "x")))
        }),
        (&["U16"], |f| {
            server(f).receiver = None;
            f.routes[0].answer = Some(Answer::Silent);
        }),
    ];
    for (number, (expected, plant)) in cases.iter().enumerate() {
        let mut facts = well();
        plant(&mut facts);
        assert_eq!(ids(&facts), *expected, "case {number}");
    }
}

/// The far proxy says this, and nothing else was heard from there.
fn says(facts: &mut Facts, far: Far) {
    server(facts).receiver = None;
    set(facts, "restore_command", "cp");
    set(facts, "primary_conninfo", "");
    facts.routes[0].answer = None;
    facts.routes[0].far = Some(far);
}

/// A far proxy with nothing to say against us.
fn content() -> Far {
    Far {
        asker: "dns:standby".to_owned(),
        clock_ahead: Some(0.01),
        admitted: true,
        postgres: Some(Ok(())),
        warnings: Vec::new(),
    }
}

fn warning(id: &str) -> Explained {
    Explained {
        id: id.to_owned(),
        message: "a warning".to_owned(),
        way_out: "look".to_owned(),
    }
}

#[test]
fn far_proxys_word_counts_where_nothing_else_was_heard() {
    let (no_rule, down, off) = (
        Far {
            admitted: false,
            ..content()
        },
        Far {
            postgres: Some(Err("/s: refused".to_owned())),
            ..content()
        },
        Far {
            clock_ahead: Some(-8.0),
            ..content()
        },
    );
    let both = Far {
        admitted: false,
        ..down.clone()
    };
    let aging = Far {
        warnings: vec![warning("T03"), warning("C09")],
        ..content()
    };
    let nothing_behind = Far {
        postgres: None,
        ..content()
    };
    for (far, heard_nothing, streams) in [
        (content(), vec![], vec![]),
        (no_rule.clone(), vec!["P09"], vec![]),
        (down, vec!["U17"], vec![]),
        // Policy comes before PostgreSQL.
        (both, vec!["P09"], vec![]),
        (off.clone(), vec!["Q01"], vec!["Q01"]),
        (aging.clone(), vec!["T03", "C09"], vec!["T03", "C09"]),
        (nothing_behind, vec![], vec![]),
    ] {
        let mut facts = well();
        facts.routes[0].far = Some(far.clone());
        assert_eq!(ids(&facts), streams, "it streams: {far:?}");
        says(&mut facts, far.clone());
        assert_eq!(ids(&facts), heard_nothing, "nothing else: {far:?}");
    }

    let verdict = |facts: &Facts| judge(Subject::default(), facts).verdict;
    let mut facts = well();
    facts.routes[0].far = Some(aging);
    assert_eq!(verdict(&facts), Verdict::Warnings);
    facts.routes[0].far.as_mut().unwrap().warnings.remove(0);
    assert_eq!(verdict(&facts), Verdict::Ok, "a note");
    // A login's own clock is the primary's; the far proxy's counts where there is none.
    facts.routes[0].far = Some(off);
    login(&mut facts).clock_ahead = Some(0.1);
    assert_eq!(ids(&facts), ["Q01"; 0]);
    // Asked, it counts more than what a message of the stream makes of it.
    let mut facts = well();
    facts.routes[0].far = Some(content());
    server(&mut facts).receiver.as_mut().unwrap().clock_ahead = Some(-8.0);
    assert_eq!(ids(&facts), ["Q01"; 0]);
    // One target that works is enough.
    says(&mut facts, no_rule);
    assert_eq!(verdict(&facts), Verdict::Problems);
    facts.routes.push(Route {
        target: "db2:5443".to_owned(),
        far: Some(content()),
        ..Route::default()
    });
    assert_eq!(verdict(&facts), Verdict::Warnings);
}

#[test]
fn nothing_is_judged_above_the_first_failure() {
    let mut facts = well();
    no_stream(&mut facts, "42704");
    server(&mut facts).about.in_recovery = false;
    facts.routes[0].refusal = Some(Explained {
        id: "T01".to_owned(),
        message: "expired".to_owned(),
        way_out: "renew".to_owned(),
    });
    assert_eq!(ids(&facts), ["T01"]);
    facts.door.as_mut().unwrap().reach = reach(Outcome::Silent);
    assert_eq!(ids(&facts), ["N22"]);
}

#[test]
fn one_target_that_works_is_enough() {
    let mut facts = well();
    facts.routes.push(Route {
        target: "db2:5443".to_owned(),
        refusal: Some(Explained {
            id: "N02".to_owned(),
            message: "refused".to_owned(),
            way_out: "look".to_owned(),
        }),
        ..Route::default()
    });
    let report = judge(Subject::default(), &facts);
    assert_eq!(
        report.summary,
        "nothing stands in the way; look at: refused [N02]"
    );
}

#[test]
fn first_line_that_matches_decides() {
    let rule = |kind: &str, database: &str, user: &str, address: &str, method: &str| HbaRule {
        place: format!("{kind} {database} {user} {address}"),
        kind: Some(kind.to_owned()),
        database: Some(database.split(',').map(str::to_owned).collect()),
        user_name: Some(user.split(',').map(str::to_owned).collect()),
        address: Some(address.to_owned()).filter(|address| !address.is_empty()),
        netmask: match address {
            "127.0.0.0" => Some("255.0.0.0".to_owned()),
            "10.0.0.0" => Some("255.0.0.0".to_owned()),
            "0.0.0.0" => Some("0.0.0.0".to_owned()),
            _ => None,
        },
        auth_method: Some(method.to_owned()),
        options: None,
        error: None,
    };
    let role = Role {
        name: "rep".to_owned(),
        member_of: vec!["reps".to_owned()],
        ..Role::default()
    };
    let said = |rules: &[HbaRule], database: Option<&str>, via| match decide(
        rules, &role, database, via,
    ) {
        Decision::Line(rule) => rule.auth_method.clone().unwrap(),
        Decision::TlsOnly(_) => "tls".to_owned(),
        Decision::Nothing => "nothing".to_owned(),
        Decision::CannotTell => "?".to_owned(),
    };
    let socket = |rules: &[HbaRule], database| said(rules, database, Via::Socket);
    let tcp = |rules: &[HbaRule]| said(rules, None, Via::Tcp(Ipv4Addr::LOCALHOST.into()));
    // `all` does not cover replication, and `replication` covers nothing else.
    assert_eq!(
        socket(&[rule("local", "all", "all", "", "peer")], None),
        "nothing"
    );
    assert_eq!(
        socket(
            &[rule("local", "replication", "all", "", "peer")],
            Some("app")
        ),
        "nothing"
    );
    assert_eq!(
        socket(&[rule("local", "app", "+reps", "", "peer")], Some("app")),
        "peer"
    );
    assert_eq!(
        socket(&[rule("local", "all,replication", "rep", "", "peer")], None),
        "peer"
    );
    assert_eq!(
        socket(&[rule("local", "replication", "/^r", "", "peer")], None),
        "?"
    );
    let two = [
        rule("local", "replication", "other", "", "trust"),
        rule("local", "replication", "rep", "", "reject"),
        rule("local", "replication", "all", "", "peer"),
    ];
    assert_eq!(socket(&two, None), "reject");
    for (address, expected) in [
        ("127.0.0.0", "md5"),
        ("0.0.0.0", "md5"),
        ("10.0.0.0", "nothing"),
        ("::1", "nothing"),
        ("samehost", "md5"),
        ("db.example.com", "?"),
    ] {
        assert_eq!(
            tcp(&[rule("host", "replication", "all", address, "md5")]),
            expected,
            "{address}"
        );
    }
    let six = Via::Tcp(Ipv6Addr::LOCALHOST.into());
    for (address, expected) in [("::1", "md5"), ("127.0.0.0", "nothing")] {
        let rules = [rule("host", "replication", "all", address, "md5")];
        assert_eq!(said(&rules, None, six), expected, "{address}");
    }
    let tls = [
        rule("hostssl", "replication", "all", "all", "cert"),
        rule("hostgssenc", "replication", "all", "all", "gss"),
    ];
    assert_eq!(tcp(&tls), "tls");
}

#[test]
fn a_primary_without_a_standby_is_well() {
    let mut facts = Facts {
        side: Side::Server,
        ..well()
    };
    server(&mut facts).about.in_recovery = false;
    server(&mut facts).hba = None;
    facts.routes.clear();
    facts.door = None;
    assert_eq!(ids(&facts), Vec::<String>::new());
}
