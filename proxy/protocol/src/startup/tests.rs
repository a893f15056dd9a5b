//! What PostgreSQL 10 to 18 do with such packets was measured; where we differ, the test says why.

use super::*;

/// A packet of protocol 3.0 from its parameters as they stand on the wire, without the last zero.
fn packet(parameters: &[u8]) -> Vec<u8> {
    encode_packet(0x0003_0000, &[parameters, b"\0"])
}

fn startup(parameters: &[u8]) -> StartupMessage {
    match parse_packet(&packet(parameters)).unwrap() {
        FirstPacket::Startup(startup) => startup,
        other => panic!("not a startup: {other:?}"),
    }
}

fn error(parameters: &[u8]) -> StartupError {
    parse_packet(&packet(parameters)).unwrap_err()
}

#[test]
fn a_walreceiver_is_physical() {
    let packet = packet(
        b"user\0postgres\0database\0replication\0replication\0true\0application_name\0sb15\0",
    );
    assert_eq!(packet.len(), 83); // as measured
    let FirstPacket::Startup(startup) = parse_packet(&packet).unwrap() else {
        panic!()
    };
    assert_eq!(startup.replication(), Replication::Physical);
    assert_eq!(startup.user(), b"postgres");
    assert_eq!(startup.database(), b"replication");
    assert_eq!(startup.application_names(), [b"sb15"]);
    assert_eq!(startup.version(), (3, 0));
    assert_eq!(startup.packet(), packet);
}

#[test]
fn a_subscription_is_logical() {
    let startup = startup(
        b"user\0rep\0database\0app\0replication\0database\0application_name\0sub1\0\
          options\0 -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3\0client_encoding\0UTF8\0",
    );
    assert_eq!(startup.replication(), Replication::Logical);
    assert_eq!(startup.database(), b"app");
    assert_eq!(startup.application_names(), [b"sub1"]);
    assert_eq!(
        startup.parameter("client_encoding"),
        Some(b"UTF8".as_slice())
    );
    assert_eq!(startup.parameter("timezone"), None);
}

#[test]
fn the_slot_sync_worker_and_pg_rewind_are_ordinary() {
    assert_eq!(
        startup(b"user\0rep\0database\0replication\0").replication(),
        Replication::None
    );
    assert!(startup(b"user\0rep\0").application_names().is_empty());
}

#[test]
fn the_database_defaults_to_the_user() {
    assert_eq!(startup(b"user\0rep\0").database(), b"rep");
    assert_eq!(startup(b"user\0rep\0database\0\0").database(), b"rep");
}

#[test]
fn every_spelling_of_replication_is_classified_as_postgresql_does() {
    let cases: &[(&str, Option<Replication>)] = &[
        (
            "true tru tr t TRUE True yes ye y Yes on ON On 1",
            Some(Replication::Physical),
        ),
        (
            "false fal f FALSE no n NO off of OFF 0",
            Some(Replication::None),
        ),
        ("database", Some(Replication::Logical)),
        (
            "o truee 2 01 10 DATABASE Database databas physical logical yess nope offf onn",
            None,
        ),
    ];
    for (values, expected) in cases {
        for value in values.split(' ') {
            assert_eq!(Replication::parse(value.as_bytes()), *expected, "{value}");
        }
    }
    for value in ["", " true", "true ", "tr\u{fc}"] {
        assert_eq!(
            error(format!("user\0r\0replication\0{value}\0").as_bytes()),
            StartupError::Replication(value.into())
        );
    }
}

#[test]
fn another_case_of_replication_means_nothing_to_postgresql() {
    assert_eq!(
        startup(b"user\0rep\0Replication\0true\0").replication(),
        Replication::None
    );
}

#[test]
fn a_parameter_twice_is_refused_in_any_case_of_letters() {
    for name in [
        "user",
        "USER",
        "database",
        "replication",
        "Replication",
        "application_name",
        "DateStyle",
    ] {
        let twice = format!(
            "user\0a\0database\0b\0replication\0true\0application_name\0c\0datestyle\0ISO\0{name}\0x\0"
        );
        assert_eq!(
            error(twice.as_bytes()),
            StartupError::Duplicate(name.into())
        );
    }
}

#[test]
fn names_that_postgresql_would_cut_are_refused() {
    for parameter in ["user", "database", "application_name"] {
        let with = |length: usize| {
            let name = "x".repeat(length);
            match parameter {
                "user" => format!("user\0{name}\0"),
                _ => format!("user\0a\0{parameter}\0{name}\0"),
            }
        };
        startup(with(63).as_bytes());
        assert_eq!(
            error(with(64).as_bytes()),
            StartupError::NameTooLong {
                parameter,
                length: 64
            }
        );
    }
    let switched = format!("user\0a\0options\0--application-name={}\0", "x".repeat(64));
    assert!(matches!(
        error(switched.as_bytes()),
        StartupError::NameTooLong { .. }
    ));
}

#[test]
fn every_application_name_in_options_is_seen() {
    let cases: &[(&str, &[&str])] = &[
        ("-c application_name=x", &["x"]),
        ("-capplication_name=x", &["x"]),
        ("--application_name=x", &["x"]),
        ("--application-name=x", &["x"]),
        ("--Application-NAME=x", &["x"]),
        (
            "-c work_mem=1 -c application_name=x --application_name=y",
            &["x", "y"],
        ),
        ("\t-c\x0bapplication_name=x", &["x"]),
        (r"--application_name=a\ b", &["a b"]),
        (r"--applicatio\n_name=a\\b", &[r"a\b"]),
        (r"-c\ work_mem=1 -c application_name=x", &["x"]),
        ("--application_name=a=b", &["a=b"]),
        ("--application_name=", &[""]),
        // getopt lets switches without an argument stand together
        ("-ecapplication_name=x", &["x"]),
        ("-e-application-name=x", &["x"]),
        ("-Oec application_name=x", &["x"]),
        ("-c application_name", &[]),
        ("-c application_names=x", &[]),
        ("-c my.application_name=x", &[]),
        ("--work_mem=1 -c datestyle=ISO", &[]),
        ("", &[]),
        ("\\", &[]),
    ];
    for (options, expected) in cases {
        let startup = startup(format!("user\0a\0options\0{options}\0").as_bytes());
        assert_eq!(
            startup.application_names(),
            expected
                .iter()
                .map(|name| name.as_bytes())
                .collect::<Vec<_>>(),
            "{options}"
        );
    }
}

#[test]
fn the_parameter_comes_before_what_options_say() {
    let startup = startup(b"user\0a\0options\0-c application_name=x\0APPLICATION_NAME\0y\0");
    assert_eq!(startup.application_names(), [b"y", b"x"]);
}

#[test]
fn a_bad_layout_is_refused() {
    let whole = |body: &[u8]| parse_packet(&encode_packet(0x0003_0000, &[body])).unwrap_err();
    for body in [
        b"".as_slice(),
        b"user\0a\0",
        b"user\0a\0\0\0",
        b"user\0a\0\0x",
        b"user\0a\0name\0\0",
        b"user\0a\0name\0",
        b"user\0a",
        b"user",
        b"user\0a\0x", // PostgreSQL takes any last byte for the terminator here
    ] {
        let error = whole(body);
        // "name\0\0" is a name with an empty value and no terminator, or none with one: both are wrong.
        assert_eq!(error, StartupError::Layout, "{body:?}");
    }
    assert_eq!(whole(b"\0"), StartupError::NoUser);
    assert_eq!(error(b"user\0\0"), StartupError::NoUser);
    assert_eq!(error(b"User\0a\0"), StartupError::NoUser);
}

#[test]
fn lengths_have_the_limits_of_postgresql() {
    for (length, ok) in [
        (0, false),
        (7, false),
        (8, true),
        (10_004, true),
        (10_005, false),
        (u32::MAX, false),
    ] {
        let parsed = parse_packet_length(length.to_be_bytes());
        assert_eq!(parsed.is_ok(), ok, "{length}");
    }
    assert_eq!(
        parse_packet_length(*b"GET "),
        Err(StartupError::Length(0x4745_5420))
    );

    let fixed = packet(b"user\0a\0options\0\0").len();
    let of_length = |length: usize| {
        packet(format!("user\0a\0options\0{}\0", "x".repeat(length - fixed)).as_bytes())
    };
    assert!(parse_packet(&of_length(MAX_STARTUP_PACKET)).is_ok());
    let error = parse_packet(&of_length(MAX_STARTUP_PACKET + 1)).unwrap_err();
    assert_eq!(error, StartupError::Length(10_005));
    assert!(error.is_silent());
}

#[test]
fn a_part_of_a_packet_is_none() {
    let packet = packet(b"user\0a\0");
    for end in 0..packet.len() {
        assert_eq!(parse_packet(&packet[..end]), Err(StartupError::NotWhole));
    }
    assert_eq!(
        parse_packet(&[packet, vec![0]].concat()),
        Err(StartupError::NotWhole)
    );
}

#[test]
fn requests_for_encryption_are_eight_bytes() {
    assert_eq!(parse_packet(&SSL_REQUEST), Ok(FirstPacket::SslRequest));
    assert_eq!(
        parse_packet(&GSS_ENC_REQUEST),
        Ok(FirstPacket::GssEncRequest)
    );
    let longer = encode_packet(SSL_REQUEST_CODE, &[b"x"]);
    assert_eq!(parse_packet(&longer), Err(StartupError::RequestLength(9)));
}

#[test]
fn cancel_keys_have_4_to_256_bytes() {
    for (length, ok) in [
        (0, false),
        (3, false),
        (4, true),
        (32, true),
        (256, true),
        (257, false),
    ] {
        let packet = encode_packet(
            CANCEL_REQUEST_CODE,
            &[&7_u32.to_be_bytes(), &vec![9; length]],
        );
        match parse_packet(&packet) {
            Ok(cancel) => {
                assert!(ok, "{length}");
                assert_eq!(cancel.encode(), packet);
            }
            Err(error) => {
                assert!(!ok, "{length}");
                assert_eq!(error, StartupError::CancelLength(packet.len()));
                assert!(error.is_silent());
            }
        }
    }
}

#[test]
fn cancel_keys_are_equal_in_whole_or_not_at_all() {
    let key = |pid, secret: &[u8]| CancelKey::new(pid, secret).unwrap();
    assert_eq!(key(1, b"abcd"), key(1, b"abcd"));
    assert_ne!(key(1, b"abcd"), key(2, b"abcd"));
    assert_ne!(key(1, b"abcd"), key(1, b"abcx"));
    assert_ne!(key(1, b"abcd"), key(1, b"abcde"));
    assert!(!format!("{:?}", key(1, b"abcd")).contains("97"));
}

#[test]
fn protocols_other_than_3_are_refused_and_minors_are_not() {
    for minor in [0, 1, 2, 9_999] {
        let startup =
            StartupMessage::new((3, minor), &[(b"user", b"a"), (b"_pq_.x", b"")]).unwrap();
        assert_eq!(startup.version(), (3, minor));
    }
    for version in [(2, 0), (4, 0), (1234, 5677), (0, 0)] {
        let error = StartupMessage::new(version, &[(b"user", b"a")]).unwrap_err();
        assert_eq!(error, StartupError::UnsupportedProtocol(version));
        assert_eq!(
            Refusal::from(&error).sqlstate,
            SqlState::FEATURE_NOT_SUPPORTED
        );
    }
}

#[test]
fn a_refusal_says_what_was_wrong() {
    let refusal = Refusal::from(&error(b"user\0a\0replication\0maybe\n\0"));
    assert_eq!(refusal.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    assert_eq!(
        refusal.to_string(),
        r#"invalid value for parameter "replication": "maybe\n" [W09]"#
    );
    assert_eq!(
        Refusal::from(&StartupError::NoUser).sqlstate,
        SqlState::INVALID_AUTHORIZATION
    );
    assert_eq!(
        Refusal::from(&StartupError::Layout).sqlstate,
        SqlState::PROTOCOL_VIOLATION
    );
}
