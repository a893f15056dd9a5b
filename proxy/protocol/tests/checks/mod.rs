//! What must hold for any input, one function per fuzz target. The same functions run under the fuzzer, over its
//! corpus in every test run, and under proptest. They panic when something does not hold.

#![allow(dead_code, reason = "each fuzz target uses one of them")]
#![allow(clippy::unwrap_used, reason = "a check fails by a panic")]

use protocol::certificate::{
    Certificate, Crl, Fault, Use, bundle_faults, crl_faults, faults, leads_to,
};
use protocol::error_response::{Refusal, SqlState};
use protocol::escape::escape;
use protocol::identity::{Identity, IdentityPattern};
use protocol::lag::Confirmed;
use protocol::message::{
    Header, Listener, MAX_HEAD, MessageWalker, SaslEdit, encode_message, parse_backend_key_data,
    sqlstate_of_error, without_scram_plus,
};
use protocol::negotiation::{Answer, ListenerKind, Negotiation, Opening, Request, classify};
use protocol::replication::{Clock, Keepalive, Lsn, StandbyStatusUpdate, XLogData};
use protocol::startup::{
    FirstPacket, MAX_NAME, MAX_STARTUP_PACKET, encode_startup, parse_packet, parse_packet_length,
};
use protocol::watch::Watch;

/// A target's name, which is also its corpus' folder, and its check.
pub(crate) type Check = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const CHECKS: [Check; 10] = [
    ("startup", startup),
    ("negotiation", negotiation),
    ("message_walker", message_walker),
    ("authentication_sasl", authentication_sasl),
    ("error_response", error_response),
    ("replication", replication),
    ("watch", watch),
    ("identity_pattern", identity_pattern),
    ("certificate", certificate),
    ("crl", crl),
];

/// First packets: as they are, as the parameters of one, and as the options in one.
pub(crate) fn startup(data: &[u8]) {
    first_packet(data);
    let length = u32::try_from(data.len() + 8).unwrap_or(u32::MAX);
    first_packet(&[&length.to_be_bytes(), [0, 3, 0, 0].as_slice(), data].concat());
    first_packet(&encode_startup(
        (3, 0),
        &[(b"user", b"u"), (b"options", data)],
    ));
}

fn first_packet(packet: &[u8]) {
    let Ok(parsed) = parse_packet(packet) else {
        return;
    };
    assert_eq!(parsed.encode(), packet, "what is forwarded is what came");
    assert_eq!(parse_packet(&parsed.encode()), Ok(parsed.clone()));
    assert!(packet.len() <= MAX_STARTUP_PACKET);
    if let FirstPacket::Startup(startup) = parsed {
        for name in [startup.user(), startup.database()] {
            assert!((1..=MAX_NAME).contains(&name.len()) && !name.contains(&0));
        }
        let seen = startup.application_names();
        assert!(seen.iter().all(|name| name.len() <= MAX_NAME));
        for name in names_by_getopt(startup.parameter("options").unwrap_or_default()) {
            assert!(
                seen.contains(&name),
                "{name:?} would be set, and was not seen"
            );
        }
    }
}

/// Reads options as process_postgres_switches of PostgreSQL 18 does, with glibc's getopt: what may be missed on no
/// account.
fn names_by_getopt(options: &[u8]) -> Vec<Vec<u8>> {
    const WITH_ARGUMENT: &[u8] = b"BCcDdfhkNprStvW-";
    const ALONE: &[u8] = b"bEeFijlnOPsT";
    let mut arguments: Vec<Vec<u8>> = vec![];
    let (mut within, mut escaped) = (false, false);
    for byte in options {
        if b" \t\n\x0b\x0c\r".contains(byte) && !escaped {
            within = false;
            continue;
        }
        if !within {
            arguments.push(vec![]);
            within = true;
        }
        if *byte == b'\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            arguments.last_mut().unwrap().push(*byte);
        }
    }
    let mut names = vec![];
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == b"--" {
            break;
        }
        // What is no switch is passed over here, and makes PostgreSQL refuse the session in the end.
        let Some(mut letters) = argument.strip_prefix(b"-") else {
            continue;
        };
        while let Some((letter, rest)) = letters.split_first() {
            letters = rest;
            if WITH_ARGUMENT.contains(letter) {
                let value = if rest.is_empty() {
                    arguments.next()
                } else {
                    Some(rest.to_vec())
                };
                let assignment = value.unwrap_or_default();
                if let (b'c' | b'-', Some(at)) =
                    (letter, assignment.iter().position(|byte| *byte == b'='))
                {
                    let name = String::from_utf8_lossy(&assignment[..at]).replace('-', "_");
                    if name.eq_ignore_ascii_case("application_name") {
                        names.push(assignment[at + 1..].to_vec());
                    }
                }
                break;
            } else if !ALONE.contains(letter) {
                return names;
            }
        }
    }
    names
}

/// A whole connection up to its request. The first byte chooses the listener and the sizes of the pieces in which the
/// rest arrives; in it, a 0x16 where a packet could begin stands for a TLS handshake.
pub(crate) fn negotiation(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else {
        return;
    };
    let listener = match choice % 3 {
        0 => ListenerKind::Plain,
        1 => ListenerKind::Tls {
            plain_cancel: false,
        },
        _ => ListenerKind::Tls { plain_cancel: true },
    };
    let at_once = negotiate(listener, &[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(choice / 3) + 1).collect();
    assert_eq!(
        negotiate(listener, &pieces),
        at_once,
        "in any pieces the same"
    );

    let requests = at_once
        .iter()
        .filter(|answer| matches!(answer, Answer::Reply(_) | Answer::StartTls))
        .count();
    assert!(requests <= 2, "each encryption is asked for once");
    let tls = at_once.contains(&Answer::StartTls);
    assert!(!(tls && listener == ListenerKind::Plain));
    for answer in &at_once {
        match answer {
            Answer::HandOver(Request::Startup(_)) => {
                assert!(tls || listener == ListenerKind::Plain)
            }
            Answer::HandOver(Request::Cancel(_)) => {
                assert!(
                    tls || listener
                        != ListenerKind::Tls {
                            plain_cancel: false
                        }
                );
            }
            Answer::Reply(byte) => assert_eq!(*byte, b'N'),
            Answer::StartTls | Answer::Refuse(_) | Answer::Close(_) => {}
        }
    }
}

/// Reads as a session does: a packet's length, then the packet, and nothing beyond before it is answered.
fn negotiate(listener: ListenerKind, pieces: &[&[u8]]) -> Vec<Answer> {
    let mut negotiation = Negotiation::new(listener);
    let mut answers = vec![];
    let mut pending = vec![];
    for piece in pieces {
        pending.extend_from_slice(piece);
        loop {
            let answer = match pending.first().copied().map(classify) {
                None => break,
                Some(Opening::NotPostgres) => return answers,
                Some(Opening::DirectTls) => {
                    pending.remove(0);
                    negotiation.direct_tls()
                }
                Some(Opening::Packet) => {
                    let Some(head) = pending.first_chunk() else {
                        break;
                    };
                    let Ok(length) = parse_packet_length(*head) else {
                        return answers;
                    };
                    if pending.len() < length {
                        break;
                    }
                    let rest = pending.split_off(length);
                    let Ok(packet) = parse_packet(&pending) else {
                        return answers;
                    };
                    pending = rest;
                    negotiation.packet(packet)
                }
            };
            let over = !matches!(answer, Answer::Reply(_) | Answer::StartTls);
            answers.push(answer);
            if over {
                return answers;
            }
        }
    }
    answers
}

/// A stream of messages. The first byte chooses the sizes of the pieces.
pub(crate) fn message_walker(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else {
        return;
    };
    let (at_once, walker) = walk(&[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*choice) + 1).collect();
    let (in_pieces, pieces_walker) = walk(&pieces);
    assert_eq!(in_pieces, at_once, "in any pieces the same");
    assert_eq!(pieces_walker.at_boundary(), walker.at_boundary());
    assert_eq!(pieces_walker.is_lost(), walker.is_lost());

    let mut rest = stream;
    for (header, body) in &at_once {
        let whole;
        (whole, rest) = rest.split_at(header.length as usize + 1);
        let wanted = wanted(header.tag).min(MAX_HEAD).min(whole.len() - 5);
        assert_eq!(body, &whole[5..5 + wanted]);
        assert_eq!(header.encode(), whole[..5]);
        let _ = parse_backend_key_data(&whole[5..]);
    }
    let boundary = (!walker.is_lost()).then_some(stream.len() - rest.len());
    assert_eq!(walker.last_boundary(), boundary);
    assert_eq!(walker.at_boundary(), rest.is_empty() && !walker.is_lost());
}

fn wanted(tag: u8) -> usize {
    match tag {
        b'K' | b'E' => usize::MAX,
        b'd' => 25,
        _ => usize::from(tag % 2),
    }
}

#[derive(Default)]
struct Seen(Vec<(Header, Vec<u8>)>);

impl Listener for Seen {
    fn wanted(&self, header: Header) -> usize {
        wanted(header.tag)
    }

    fn message(&mut self, header: Header, head: &[u8]) {
        self.0.push((header, head.to_vec()));
    }
}

fn walk(pieces: &[&[u8]]) -> (Vec<(Header, Vec<u8>)>, MessageWalker) {
    let mut walker = MessageWalker::new();
    let mut seen = Seen::default();
    for piece in pieces {
        walker.walk(piece, &mut seen);
    }
    (seen.0, walker)
}

/// Authentication messages: as they are, and as the mechanisms of one.
pub(crate) fn authentication_sasl(data: &[u8]) {
    let offer = encode_message(b'R', &[[0, 0, 0, 10].as_slice(), data].concat());
    for message in [data, &offer] {
        let Ok(SaslEdit::Edited(left)) = without_scram_plus(message) else {
            continue;
        };
        assert_eq!(without_scram_plus(&left), Ok(SaslEdit::Unchanged));
        assert!(left.len() < message.len() && left.starts_with(b"R"));
        assert!(!left.windows(6).any(|text| text == b"-PLUS\0"));
    }
}

/// Errors of PostgreSQL, and ours with texts from anywhere.
pub(crate) fn error_response(data: &[u8]) {
    let _ = sqlstate_of_error(data);
    let message = encode_message(b'E', data);
    if let Some(state) = sqlstate_of_error(&message) {
        assert_eq!(SqlState::parse(state.as_str().as_bytes()), Some(state));
    }

    let shown = escape(data);
    assert!(shown.len() <= 259 && !shown.contains(char::is_control));

    let text = String::from_utf8_lossy(data);
    let refusal = Refusal::new("P01", SqlState::CANNOT_CONNECT_NOW, text.clone())
        .detail(text.clone())
        .hint(text);
    let sent = refusal.encode();
    assert_eq!(sqlstate_of_error(&sent), Some(refusal.sqlstate));
    let fields: Vec<&[u8]> = sent[5..].split(|byte| *byte == 0).collect();
    assert_eq!(
        fields.len(),
        8,
        "six fields and the end: no text makes another"
    );
    assert!(sent.len() < 10_000);
    assert!(
        !String::from_utf8(sent[5..].to_vec())
            .unwrap()
            .contains(['\n', '\u{202e}'])
    );
}

/// Bodies of CopyData, and LSNs.
pub(crate) fn replication(data: &[u8]) {
    if let Some(head) = XLogData::parse(data) {
        assert_eq!(head.encode(), data[..XLogData::LENGTH]);
    }
    if let Some(keepalive) = Keepalive::parse(data) {
        assert_eq!(Keepalive::parse(&keepalive.encode()), Some(keepalive));
        assert_eq!(keepalive.encode().len(), data.len());
    }
    if let Some(status) = StandbyStatusUpdate::parse(data) {
        assert_eq!(StandbyStatusUpdate::parse(&status.encode()), Some(status));
        assert_eq!(status.encode().len(), data.len());
    }
    if let Ok(lsn) = String::from_utf8_lossy(data).parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
}

/// Both directions of a replication connection, in turns: a byte that tells whose turn it is and how long, then what
/// is said. Splits of a turn make no difference, whatever is said.
pub(crate) fn watch(data: &[u8]) {
    let at_once = watched(data, usize::MAX);
    for size in [1, 3, 30] {
        assert_eq!(watched(data, size), at_once, "pieces of {size}");
    }
}

fn watched(data: &[u8], size: usize) -> String {
    let mut watch = Watch::default();
    let (mut backend, mut frontend) = (MessageWalker::new(), MessageWalker::new());
    let mut rest = data;
    let mut now = Clock(0);
    while let Some((turn, after)) = rest.split_first() {
        let (said, later) = after.split_at(after.len().min(usize::from(turn >> 1) * 8 + 1));
        for piece in said.chunks(size) {
            if turn & 1 == 0 {
                watch.backend_sent(&mut backend, piece);
            } else {
                watch.frontend_sent(&mut frontend, piece);
            }
        }
        now = Clock(now.0 + i64::from(*turn));
        watch.settle(now);
        rest = later;
    }
    let lags = watch
        .stream()
        .map(|stream| Confirmed::ALL.map(|what| (stream.lag(what, now), stream.behind(what))));
    if let Some(slot) = watch.stream().and_then(|stream| stream.slot.as_ref()) {
        assert!(slot.len() <= MAX_NAME && slot.is_ascii());
    }
    format!("{watch:?} {lags:?}")
}

/// The notation of identities.
pub(crate) fn identity_pattern(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<IdentityPattern>() {
        Ok(pattern) => {
            let shown = pattern.to_string();
            assert!(!shown.contains(char::is_control));
            // What had to be escaped or cut to be shown is not meant to be read again.
            if text.len() <= 200
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
            {
                assert_eq!(shown.parse(), Ok(pattern));
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
}

/// Certificates in DER, and what is said of them at any time.
pub(crate) fn certificate(data: &[u8]) {
    let identity = Identity::parse(data);
    let Ok(certificate) = Certificate::parse(data) else {
        return;
    };
    assert_eq!(identity.as_ref(), Ok(certificate.identity()));
    assert!(certificate.identity().same_names(certificate.identity()));
    assert!(is_showable(&certificate.identity().to_string()));
    assert!(is_showable(&certificate.subject().to_string()));

    let ca = Certificate::parse(CA).unwrap();
    let cas = [certificate.clone(), ca];
    for now in times(certificate.not_before(), certificate.not_after()) {
        for role in [Use::Node, Use::Ca, Use::PostgresItself] {
            worded(&faults(&certificate, role, now));
        }
        worded(&bundle_faults(&cas, now));
    }
    worded(
        &leads_to(&certificate, &cas, &cas[1..])
            .into_iter()
            .collect::<Vec<_>>(),
    );
}

/// Revocation lists in DER, and what is said of them at any time.
pub(crate) fn crl(data: &[u8]) {
    let Ok(crl) = Crl::parse(data) else { return };
    assert!(is_showable(&crl.issuer().to_string()));
    let ca = Certificate::parse(CA).unwrap();
    let _ = crl.revokes(&ca);
    let next_update = crl.next_update().unwrap_or(i64::MAX);
    for now in times(crl.this_update(), next_update) {
        worded(&crl_faults(
            std::slice::from_ref(&crl),
            std::slice::from_ref(&ca),
            now,
        ));
    }
}

const CA: &[u8] = include_bytes!("../../testdata/ca.der");

fn times(begin: i64, end: i64) -> [i64; 6] {
    [
        i64::MIN,
        begin,
        begin.midpoint(end),
        end,
        end.saturating_add(1),
        i64::MAX,
    ]
}

/// Whatever is found is said in words that a terminal can show.
fn worded(faults: &[Fault]) {
    for fault in faults {
        assert!(is_showable(&fault.to_string()) && is_showable(&fault.way_out()));
        assert!(fault.id().starts_with('T'));
    }
}

fn is_showable(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}
