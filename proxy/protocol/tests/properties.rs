//! The checks of the fuzz targets on inputs made by proptest: bytes at random, and bytes that are nearly right.

mod checks;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use protocol::startup::{
    CancelKey, CancelRequest, GSS_ENC_REQUEST, SSL_REQUEST, StartupMessage, encode_startup,
};

/// Names and values that mean something here, more often than any others.
fn word() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "user",
        "User",
        "database",
        "replication",
        "application_name",
        "Application_Name",
        "options",
        "true",
        "off",
        "-c application_name=x",
        "--application-name=y -Fcapplication_name=z",
        "",
    ];
    prop_oneof![
        4 => select(known.map(|word| word.as_bytes().to_vec()).to_vec()),
        1 => "[a-z]{1,70}".prop_map(String::into_bytes),
        1 => vec(1_u8..=255, 0..20),
    ]
}

fn parameters() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    vec((word(), word()), 0..6).prop_map(|mut parameters| {
        parameters.insert(0, (b"user".to_vec(), b"rep".to_vec()));
        parameters
    })
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let startup = (parameters(), select(vec![0_u16, 2, 9_999])).prop_map(|(parameters, minor)| {
        let pairs: Vec<(&[u8], &[u8])> = parameters
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
            .collect();
        encode_startup((3, minor), &pairs)
    });
    let cancel = (any::<u32>(), vec(any::<u8>(), 4..=256)).prop_filter_map(
        "a legal key",
        |(pid, secret)| {
            Some(
                CancelRequest {
                    key: CancelKey::new(pid, &secret)?,
                }
                .encode(),
            )
        },
    );
    prop_oneof![
        2 => startup,
        1 => cancel,
        1 => Just(SSL_REQUEST.to_vec()),
        1 => Just(GSS_ENC_REQUEST.to_vec()),
    ]
}

/// Right bytes with one wrong one, cut or lengthened, or as they are.
fn damaged(right: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (right, any::<prop::sample::Index>(), any::<u8>(), 0..4_u8).prop_map(
        |(mut bytes, at, byte, how)| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.truncate(at),
                    2 => bytes.insert(at, byte),
                    _ => {}
                }
            }
            bytes
        },
    )
}

fn stream(messages: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), vec(messages, 0..5))
        .prop_map(|(choice, messages)| [vec![choice], messages.concat()].concat())
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    (select(b"KRZEdS1".to_vec()), vec(any::<u8>(), 0..400))
        .prop_map(|(tag, body)| protocol::message::encode_message(tag, &body))
}

/// What the ends of a replication connection say, in any order, each time nearly right.
fn turn() -> impl Strategy<Value = Vec<u8>> {
    use protocol::message::encode_message;
    let queries = [
        "IDENTIFY_SYSTEM",
        "START_REPLICATION SLOT \"s\" 0/100 TIMELINE 1",
        "START_REPLICATION SLOT \"s\" LOGICAL 0/0 (a 'b')",
        "BASE_BACKUP (PROGRESS)",
        "TIMELINE_HISTORY 2",
        "select 1",
    ];
    let from_frontend = prop_oneof![
        1 => select(queries.to_vec()).prop_map(|text| encode_message(b'Q', text.as_bytes())),
        2 => (select(b"rhx".to_vec()), vec(any::<u8>(), 30..36))
            .prop_map(|(letter, body)| encode_message(b'd', &[vec![letter], body].concat())),
    ];
    let from_backend = prop_oneof![
        2 => (select(b"wwwkdnp".to_vec()), vec(select(vec![0_u8, 1, 255]), 15..60))
            .prop_map(|(letter, body)| encode_message(b'd', &[vec![letter], body].concat())),
        1 => (select(b"WHcCZTDSE".to_vec()), vec(any::<u8>(), 0..20))
            .prop_map(|(tag, body)| encode_message(tag, &body)),
        1 => Just(encode_message(b'D', b"\0\x03\0\0\0\x01\x37\xff\xff\xff\xff\0\0\0\x012")),
    ];
    let said = |messages| vec(messages, 1..6).prop_map(|messages: Vec<Vec<u8>>| messages.concat());
    prop_oneof![
        damaged(said(from_frontend.boxed())).prop_map(|said| in_turn(1, &said)),
        damaged(said(from_backend.boxed())).prop_map(|said| in_turn(0, &said)),
    ]
}

/// A stream that is under way, or none.
fn begun() -> impl Strategy<Value = Vec<u8>> {
    use protocol::message::encode_message;
    let queries: [&[u8]; 2] = [
        b"START_REPLICATION 0/100\0",
        b"START_REPLICATION SLOT \"s\" LOGICAL 0/0\0",
    ];
    let stream = select(queries.to_vec()).prop_map(|query| {
        let version = encode_message(b'S', b"server_version\x0015.1\0");
        let answer = encode_message(b'W', &[0; 3]);
        [
            in_turn(1, &encode_message(b'Q', query)),
            in_turn(0, &[version, answer].concat()),
        ]
        .concat()
    });
    prop_oneof![1 => Just(vec![]), 2 => stream]
}

/// What is said, in turns of as many bytes as the first byte of a turn can tell.
fn in_turn(who: u8, said: &[u8]) -> Vec<u8> {
    let mut turns = vec![];
    let mut rest = said;
    while !rest.is_empty() {
        let eights = ((rest.len() - 1) / 8).min(127);
        let (now, later) = rest.split_at(eights * 8 + 1);
        turns.push(u8::try_from(eights << 1).unwrap_or(u8::MAX) | who);
        turns.extend(now);
        rest = later;
    }
    turns
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let set = [
        "application_name=x",
        "Application-NAME=y",
        "applicatio\\n_name=\\ z",
        "work_mem=1",
    ];
    let before = [
        "-c", "--", "-c ", "-Fc", "-F-", "-ebc", "-S 1 -c", "-S", "-d-c", "-", "-t pa --", "",
    ];
    let between = [" ", "\t", "\x0b", "  ", "\\ ", "\\\\ ", " -- ", " x "];
    vec(
        (
            select(before.to_vec()),
            select(set.to_vec()),
            select(between.to_vec()),
        ),
        1..5,
    )
    .prop_map(|words| {
        words
            .into_iter()
            .map(|(a, b, c)| [a, b, c].concat())
            .collect::<String>()
            .into_bytes()
    })
}

fn mechanisms() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "SCRAM-SHA-256-PLUS",
        "SCRAM-SHA-256",
        "OAUTHBEARER",
        "-PLUS",
        "",
    ];
    vec(select(names.to_vec()), 0..5).prop_map(|names| (names.join("\0") + "\0\0").into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_pass_every_check(data in vec(any::<u8>(), 0..600)) {
        for (_, check) in checks::CHECKS {
            check(&data);
        }
    }

    #[test]
    fn packets_survive_parse_and_encode(data in damaged(packet())) {
        checks::startup(&data);
    }

    #[test]
    fn every_parameter_is_read_back(parameters in parameters()) {
        let pairs: Vec<(&[u8], &[u8])> = parameters.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        if let Ok(startup) = StartupMessage::new((3, 0), &pairs) {
            prop_assert_eq!(startup.packet(), encode_startup((3, 0), &pairs));
            prop_assert_eq!(startup.user(), b"rep");
            for (name, value) in pairs {
                let Ok(name) = std::str::from_utf8(name) else { continue };
                prop_assert_eq!(startup.parameter(name), Some(value));
            }
        }
    }

    #[test]
    fn no_application_name_in_options_is_missed(options in options()) {
        checks::startup(&options);
    }

    #[test]
    fn connections_negotiate_the_same_in_any_pieces(data in stream(damaged(packet()))) {
        checks::negotiation(&data);
    }

    #[test]
    fn streams_are_walked_the_same_in_any_pieces(data in stream(damaged(message()))) {
        checks::message_walker(&data);
    }

    #[test]
    fn replication_is_watched_the_same_in_any_pieces(begun in begun(), turns in vec(turn(), 0..40)) {
        checks::watch(&[begun, turns.concat()].concat());
    }

    #[test]
    fn channel_binding_never_gets_through(data in damaged(mechanisms())) {
        checks::authentication_sasl(&data);
    }

    #[test]
    fn texts_stay_within_their_field(text in any::<String>()) {
        checks::error_response(text.as_bytes());
    }

    #[test]
    fn replication_heads_survive_parse_and_encode(
        letter in select(b"wkr".to_vec()),
        data in vec(any::<u8>(), 16..34),
        lsn in "[0-9A-Fa-f]{1,9}/[0-9A-Fa-f]{1,9}",
    ) {
        checks::replication(&[vec![letter], data].concat());
        checks::replication(lsn.as_bytes());
    }

    #[test]
    fn patterns_survive_parse_and_display(text in "(cn|dns|ip|uri|sha256|x):[a-zA-Z0-9*.:_/ \\\\-]{0,70}") {
        checks::identity_pattern(text.as_bytes());
    }

    #[test]
    fn damaged_certificates_are_read_or_refused(data in damaged(select(CERTIFICATES.map(<[u8]>::to_vec).to_vec()))) {
        checks::certificate(&data);
    }

    #[test]
    fn damaged_revocation_lists_are_read_or_refused(
        data in damaged(Just(include_bytes!("../testdata/ca.crl.der").to_vec())),
    ) {
        checks::crl(&data);
    }

    #[test]
    fn node_bodies_are_read_or_refused(data in damaged(node_body())) {
        checks::node(&data);
        checks::node(&[&u32::try_from(data.len()).unwrap().to_be_bytes(), &data[..]].concat());
    }
}

/// Requests and answers that are nearly right.
fn node_body() -> impl Strategy<Value = Vec<u8>> {
    let verbs = [
        "enrol", "renew", "crl", "probe", "enrolled", "renewed", "probed", "refused", "x",
    ];
    let word = "[ -~\\n]{0,30}";
    (select(verbs.to_vec()), word, vec(word, 0..3)).prop_map(|(verb, text, list)| {
        let text = format!("{text:?}");
        format!(
            "{{\"verb\":\"{verb}\",\"answer\":\"{verb}\",\"invitation\":{text},\"proof\":{text},\"request\":{text},\
             \"crls\":{list:?},\"grant\":{text},\"certificate\":{text},\"ca\":{text},\"crl\":{text},\"later\":{list:?}}}"
        )
        .into_bytes()
    })
}

const CERTIFICATES: [&[u8]; 4] = [
    include_bytes!("../testdata/names.der"),
    include_bytes!("../testdata/node.der"),
    include_bytes!("../testdata/ca.der"),
    include_bytes!("../testdata/hostile.der"),
];
