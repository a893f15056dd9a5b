//! One line per field that admits or objects, and what the refusals say.

use super::*;

fn identity() -> Identity {
    Identity::with_dns(&["standby1.example.com"])
}

fn rule(identity: &str) -> Rule {
    Rule {
        identity: identity.parse().unwrap(),
        from: None,
        physical: true,
        logical: true,
        ordinary: false,
        users: Names::Any,
        databases: Names::Any,
        application_names: Names::Any,
    }
}

fn mine() -> Rule {
    rule("dns:standby1.example.com")
}

fn only(names: &[&str]) -> Names {
    Names::Only(names.iter().map(ToString::to_string).collect())
}

/// A startup from `name=value` words.
fn startup(words: &str) -> StartupMessage {
    let parameters: Vec<(&[u8], &[u8])> = words
        .split(',')
        .map(|word| word.split_once('=').unwrap())
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    StartupMessage::new((3, 0), &parameters).unwrap()
}

const PHYSICAL: &str = "user=rep,database=replication,replication=true,application_name=standby1";
const LOGICAL: &str = "user=rep,database=app,replication=database,application_name=standby1";
const ORDINARY: &str = "user=rep,database=app,application_name=standby1";

fn judge(rules: Vec<Rule>, words: &str) -> Result<Permit, Refusal> {
    Policy::new(rules).authorise(&identity(), "203.0.113.7".parse().ok(), &startup(words))
}

#[test]
fn a_rule_must_match_in_every_field() {
    let cases: Vec<(Rule, &str, &str)> = vec![
        (mine(), PHYSICAL, ""),
        (mine(), LOGICAL, ""),
        (mine(), ORDINARY, "P04"),
        (
            Rule {
                ordinary: true,
                ..mine()
            },
            ORDINARY,
            "",
        ),
        (rule("dns:*.example.com"), PHYSICAL, ""),
        (rule("dns:standby2.example.com"), PHYSICAL, "P01"),
        (rule("cn:standby1.example.com"), PHYSICAL, "P01"),
        (
            Rule {
                physical: false,
                ..mine()
            },
            PHYSICAL,
            "P03",
        ),
        (
            Rule {
                physical: false,
                ..mine()
            },
            LOGICAL,
            "",
        ),
        (
            Rule {
                logical: false,
                ..mine()
            },
            LOGICAL,
            "P03",
        ),
        (
            Rule {
                users: only(&["rep"]),
                ..mine()
            },
            PHYSICAL,
            "",
        ),
        (
            Rule {
                users: only(&["REP", "re", "repl"]),
                ..mine()
            },
            PHYSICAL,
            "P05",
        ),
        (
            Rule {
                databases: only(&["other"]),
                ..mine()
            },
            PHYSICAL,
            "",
        ),
        (
            Rule {
                databases: only(&["app"]),
                ..mine()
            },
            LOGICAL,
            "",
        ),
        (
            Rule {
                databases: only(&["other"]),
                ..mine()
            },
            LOGICAL,
            "P06",
        ),
        (
            Rule {
                databases: only(&["other"]),
                ordinary: true,
                ..mine()
            },
            ORDINARY,
            "P06",
        ),
        (
            Rule {
                application_names: only(&["standby1"]),
                ..mine()
            },
            PHYSICAL,
            "",
        ),
        (
            Rule {
                application_names: only(&["standby2"]),
                ..mine()
            },
            PHYSICAL,
            "P07",
        ),
        (
            Rule {
                application_names: only(&["standby2"]),
                ..mine()
            },
            LOGICAL,
            "P07",
        ),
        (
            Rule {
                application_names: only(&["a"]),
                ..mine()
            },
            "user=rep,replication=true",
            "P07",
        ),
        (
            Rule {
                application_names: Names::Any,
                ..mine()
            },
            "user=rep,replication=true",
            "",
        ),
        (
            Rule {
                users: only(&[]),
                ..mine()
            },
            PHYSICAL,
            "P05",
        ),
    ];
    for (rule, words, id) in cases {
        let judged = judge(vec![rule.clone()], words);
        assert_eq!(
            judged.as_ref().err().map_or("", |refusal| refusal.id),
            id,
            "{rule:?} {words}"
        );
    }
}

#[test]
fn every_application_name_must_be_allowed() {
    let rule = Rule {
        application_names: only(&["standby1", "standby2"]),
        ..mine()
    };
    for (words, id) in [
        (
            "user=r,replication=true,application_name=standby1,options=--application-name=standby2",
            None,
        ),
        (
            "user=r,replication=true,application_name=standby1,options=-c application_name=x",
            Some("P07"),
        ),
        (
            "user=r,replication=true,application_name=standby1,options=-ecApplication_Name=x",
            Some("P07"),
        ),
        ("user=r,replication=true,APPLICATION_NAME=x", Some("P07")),
        (
            "user=r,replication=true,options=--application_name=standby1",
            None,
        ),
        (
            "user=r,replication=true,options=-c application_name=",
            Some("P07"),
        ),
    ] {
        assert_eq!(
            judge(vec![rule.clone()], words)
                .err()
                .map(|refusal| refusal.id),
            id,
            "{words}"
        );
    }
}

#[test]
fn from_is_compared_as_the_address_really_is() {
    for (network, address, admitted) in [
        ("203.0.113.7/32", "203.0.113.7", true),
        ("203.0.113.7/32", "203.0.113.8", false),
        ("203.0.113.0/24", "::ffff:203.0.113.9", true),
        ("::ffff:203.0.113.0/120", "203.0.113.9", true),
        ("::ffff:0:0/96", "203.0.113.9", true),
        ("::/0", "203.0.113.9", false),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("2001:db8::/32", "2001:db8::1", true),
    ] {
        let networks = vec!["198.51.100.0/24".parse().unwrap(), network.parse().unwrap()];
        let policy = Policy::new(vec![Rule {
            from: Some(networks),
            ..mine()
        }]);
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(
            policy.address_may_connect(address),
            admitted,
            "{network} {address}"
        );
        let judged = policy.authorise(&identity(), Some(address), &startup(PHYSICAL));
        assert_eq!(
            judged.err().map(|refusal| refusal.id),
            (!admitted).then_some("P02")
        );
        // A Unix socket is in no network.
        assert!(
            policy
                .authorise(&identity(), None, &startup(PHYSICAL))
                .is_err()
        );
    }
    assert!(Policy::new(vec![mine()]).address_may_connect("::1".parse().unwrap()));
    assert!(!Policy::new(Vec::new()).address_may_connect("::1".parse().unwrap()));
    assert!(Policy::any_certificate().address_may_connect("::1".parse().unwrap()));
}

#[test]
fn one_matching_rule_is_enough_and_is_told() {
    let rules = vec![
        rule("dns:other"),
        Rule {
            users: only(&["x"]),
            ..mine()
        },
        mine(),
    ];
    assert_eq!(judge(rules, PHYSICAL).unwrap().rule(), Some(2));
}

#[test]
fn the_refusal_tells_of_the_closest_rule() {
    let rules = vec![
        rule("dns:other"),
        Rule {
            physical: false,
            ..mine()
        },
        Rule {
            users: only(&["secret_role"]),
            ..mine()
        },
        Rule {
            users: only(&["secret_role"]),
            ..rule("dns:*.example.com")
        },
    ];
    let refusal = judge(rules, PHYSICAL).unwrap_err();
    assert_eq!(refusal.sqlstate, SqlState::INVALID_AUTHORIZATION);
    assert_eq!(
        refusal.to_string(),
        "user \"rep\" is not allowed for dns:standby1.example.com [P05]"
    );
    assert_eq!(
        refusal.detail.as_deref(),
        Some(
            "It is not listed in \"users\" of [[server.allow]] rule 3 (dns:standby1.example.com)."
        )
    );
    assert_eq!(
        refusal.hint.as_deref(),
        Some(
            "Connect as another user, or add \"rep\" to its \"users\" in the server's pgtlsproxy.toml, then reload."
        )
    );
    assert!(!format!("{refusal:?}").contains("secret_role"));
}

#[test]
fn an_unknown_identity_is_told_what_to_add() {
    let refusal = judge(vec![rule("dns:other")], PHYSICAL).unwrap_err();
    assert_eq!(refusal.message, "no rule admits dns:standby1.example.com");
    assert!(refusal.detail.unwrap().contains(&"07".repeat(32)));
    assert_eq!(
        refusal.hint.as_deref(),
        Some(
            "Add a [[server.allow]] rule for dns:standby1.example.com in the server's pgtlsproxy.toml, then reload."
        )
    );
    assert_eq!(judge(Vec::new(), PHYSICAL).unwrap_err().id, "P01");
}

#[test]
fn a_missing_application_name_is_told_where_to_set_it() {
    let rule = Rule {
        application_names: only(&["standby1"]),
        ..mine()
    };
    let refusal = judge(vec![rule], "user=rep,replication=true").unwrap_err();
    assert!(
        refusal
            .hint
            .unwrap()
            .starts_with("Set application_name in primary_conninfo")
    );
}

#[test]
fn without_rules_any_certificate_replicates_and_does_nothing_else() {
    let policy = Policy::any_certificate();
    for (words, id) in [(PHYSICAL, None), (LOGICAL, None), (ORDINARY, Some("P04"))] {
        let judged = policy.authorise(&identity(), None, &startup(words));
        assert_eq!(judged.err().map(|refusal| refusal.id), id);
    }
}

#[test]
fn names_from_the_peer_are_escaped() {
    let rule = Rule {
        users: only(&["rep"]),
        ..mine()
    };
    let refusal = judge(vec![rule], "user=re\np\u{202e},replication=true").unwrap_err();
    assert!(refusal.message.contains(r"re\np\u{202e}"), "{refusal}");
}

#[test]
fn a_star_among_names_is_any() {
    assert_eq!(Names::new(None), Names::Any);
    assert_eq!(Names::new(Some(vec!["a".into(), "*".into()])), Names::Any);
    assert_eq!(Names::new(Some(Vec::new())), Names::Only(Vec::new()));
    assert!(!only(&["a*"]).admit(b"ab"));
}

#[test]
fn rules_that_can_never_match_are_found() {
    let long = "x".repeat(64);
    let rules = vec![
        mine(),
        Rule {
            physical: false,
            logical: false,
            ..mine()
        },
        Rule {
            from: Some(Vec::new()),
            ..mine()
        },
        Rule {
            users: only(&[]),
            ..mine()
        },
        Rule {
            databases: only(&[]),
            ..mine()
        },
        Rule {
            databases: only(&[]),
            physical: false,
            ..mine()
        },
        Rule {
            application_names: only(&[&long]),
            ..mine()
        },
        Rule {
            application_names: only(&[&long, "a"]),
            ..mine()
        },
        Rule {
            physical: false,
            logical: false,
            ordinary: true,
            ..mine()
        },
    ];
    let dead: Vec<usize> = Policy::new(rules)
        .dead_rules()
        .into_iter()
        .map(|(index, _)| index)
        .collect();
    assert_eq!(dead, [1, 2, 3, 5, 6]);
    assert!(Policy::any_certificate().dead_rules().is_empty());
}

#[test]
fn only_listed_os_users_use_the_socket() {
    let policy = OsUserPolicy::new(vec![(0, "root".into()), (105, "postgres".into())]);
    assert!(
        policy
            .authorise(105, "postgres", &startup(PHYSICAL))
            .is_ok()
    );
    assert!(policy.authorise_cancel(0).is_some());
    assert!(policy.authorise_cancel(33).is_none());
    let refusal = policy
        .authorise(33, "www-data", &startup(PHYSICAL))
        .unwrap_err();
    assert_eq!(refusal.id, "P08");
    assert!(refusal.message.contains("\"www-data\" (uid 33)"));
    assert_eq!(
        refusal.detail.as_deref(),
        Some("Allowed are: root, postgres.")
    );
    assert!(refusal.hint.unwrap().contains("allow_os_users"));
    // A name is only a name.
    assert!(
        policy
            .authorise(1000, "postgres", &startup(PHYSICAL))
            .is_err()
    );
}

#[test]
fn a_cancel_needs_the_owners_names() {
    let (mine, other) = (identity(), Identity::with_dns(&["standby2.example.com"]));
    assert!(authorise_cancel(Some(&mine), Some(&mine)).is_some());
    assert!(authorise_cancel(Some(&other), Some(&mine)).is_none());
    assert!(authorise_cancel(Some(&mine), None).is_none());
    assert!(authorise_cancel(None, None).is_some());
    assert!(authorise_cancel(None, Some(&mine)).is_some());
}
