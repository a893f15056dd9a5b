//! One suite over both forms of records: the same bytes or the same refusal, for any split, any record size, key updates
//! in between, forged, tampered and truncated streams. Each case is made from a seed.
//! `PGTLSPROXY_RECORDS=100000000 cargo test --release -p pgtlsproxy differential` runs until so many records were
//! compared, and says now and then how many it were.

use std::io::{Read, Write};

use tokio_rustls::rustls::Connection;

use super::super::pool;
use super::trial::{
    Choices, Forger, Form, Inner, Ours, Outcome, Pki, Random, SUITES, contend, feed, seal,
};
use super::*;

/// Of so many conversations one has rustls' own connection as the peer, the others a forger.
const WITH_RUSTLS: u64 = 8;
/// Records between two lines of progress.
const PROGRESS: u64 = 1_000_000;

/// Our end in one form, and rustls' own connection as the peer.
struct Ends {
    ours: Ours,
    kept: Vec<u8>,
    peer: Connection,
    /// What came along with the end of the handshake: tickets.
    behind: Vec<u8>,
}

impl Ends {
    fn new(pki: &Pki, form: Form, we_serve: bool) -> Self {
        let (ours, peer, behind) = pki.against_rustls(form, we_serve);
        Self {
            ours,
            kept: Vec::new(),
            peer,
            behind,
        }
    }

    fn feed(&mut self, stream: &[u8], splits: &mut Random) -> Outcome {
        feed(&mut self.ours.opener, &mut self.kept, stream, splits)
    }

    fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        seal(&mut self.ours.sealer, payload)
    }
}

fn peer_reads(peer: &mut Connection, stream: &[u8], random: &mut Random) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let n = rest.len().min(1 + random.below(9000));
        let mut piece = &rest[..n];
        while !piece.is_empty() {
            peer.read_tls(&mut piece).unwrap();
            peer.process_new_packets().unwrap();
            let mut out = [0; 20_000];
            while let Ok(n @ 1..) = peer.reader().read(&mut out) {
                payload.extend_from_slice(&out[..n]);
            }
        }
        rest = &rest[n..];
    }
    payload
}

/// What the peer sends: records of random sizes, with key updates between them. Gives payload, stream, records.
fn peer_sends(peer: &mut Connection, random: &mut Random, most: usize) -> (Vec<u8>, Vec<u8>, u64) {
    let (mut payload, mut stream, mut records) = (Vec::new(), Vec::new(), 0);
    for _ in 0..1 + random.below(most) {
        if random.below(12) == 0 {
            peer.refresh_traffic_keys().unwrap();
        }
        let size = random.size();
        let bytes = random.bytes(size);
        records += bytes.len().div_ceil(PAYLOAD) as u64;
        peer.writer().write_all(&bytes).unwrap();
        payload.extend_from_slice(&bytes);
        while peer.wants_write() {
            peer.write_tls(&mut stream).unwrap();
        }
    }
    (payload, stream, records)
}

/// One conversation with rustls from a seed; gives all that our side delivered, and how many records were compared.
fn converse(pki: &Pki, form: Form, seed: u64) -> (Vec<Outcome>, u64) {
    let mut random = Random(seed | 1 << 40);
    let we_serve = random.below(2) == 0;
    let mut ends = Ends::new(pki, form, we_serve);
    let mut records = 0;
    let mut outcomes = Vec::new();
    let mut stream = std::mem::take(&mut ends.behind);
    for _ in 0..1 + random.below(20) {
        let mut of_both = Random(random.next() | 1);
        let mut of_splits = Random(random.next() | 1);
        let (payload, mut sent, count) = peer_sends(&mut ends.peer, &mut of_both, 30);
        records += count;
        let tickets = stream.len();
        stream.append(&mut sent);
        let cut_off = random.below(20) == 0;
        if cut_off {
            // Behind the tickets, whose length the forms need not share.
            stream.truncate(tickets + random.below(stream.len() - tickets));
        }
        let outcome = ends.feed(&stream, &mut of_splits);
        stream.clear();
        assert!(!outcome.refused, "seed {seed} {form:?}");
        assert!(
            payload.starts_with(&outcome.payload),
            "seed {seed} {form:?}"
        );
        let whole = outcome.payload == payload;
        outcomes.push(outcome);
        if cut_off {
            return (outcomes, records);
        }
        assert!(whole, "seed {seed} {form:?}");
        let length = of_both.size();
        let answer = of_both.bytes(length);
        records += answer.len().div_ceil(PAYLOAD) as u64;
        let sealed = ends.seal(&answer);
        let read = peer_reads(&mut ends.peer, &sealed, &mut of_splits);
        assert_eq!(read, answer, "seed {seed} {form:?}");
    }
    ends.ours.sealer.close().unwrap();
    let closing = std::mem::take(ends.ours.sealer.control());
    assert!(peer_reads(&mut ends.peer, &closing, &mut random).is_empty());
    assert!(
        matches!(ends.peer.reader().read(&mut [0; 1]), Ok(0)),
        "close_notify"
    );
    ends.peer.send_close_notify();
    ends.peer.write_tls(&mut stream).unwrap();
    outcomes.push(ends.feed(&stream, &mut random));
    (outcomes, records)
}

#[test]
fn differential() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let wanted: u64 = number("PGTLSPROXY_RECORDS").unwrap_or(20_000);
    let first: u64 = number("PGTLSPROXY_SEED").unwrap_or(1);
    let forged = Pki::of_each_suite();
    let ticketed = SUITES.map(|suite| Pki::new(suite, 2));
    let (mut with_rustls, mut with_forger, mut seed) = (0, 0, first);
    while with_rustls + with_forger < wanted {
        let before = with_rustls + with_forger;
        // Shown if it fails.
        println!("seed {seed}");
        if seed % WITH_RUSTLS == 0 {
            let pki = &ticketed[(seed / WITH_RUSTLS % 3) as usize];
            let (reference, records) = converse(pki, Form::Buffered, seed);
            let (ours, _) = converse(pki, Form::InPlace, seed);
            assert_eq!(reference, ours);
            with_rustls += records;
        } else {
            with_forger += contend(&forged, &mut Random(seed | 1 << 40));
        }
        seed += 1;
        let compared = with_rustls + with_forger;
        if before / PROGRESS < compared / PROGRESS {
            eprintln!("{compared} records compared");
        }
    }
    eprintln!(
        "{with_forger} records against a forger, {with_rustls} against rustls, {} conversations",
        seed - first
    );
}

/// What the fuzzer found worth keeping, among it what once broke something.
#[test]
fn the_fuzz_corpus_holds() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/records");
    let mut count = 0;
    for input in std::fs::read_dir(corpus).unwrap() {
        let input = input.unwrap().path();
        println!("{}", input.display()); // shown if it fails
        trial::contend_by(&std::fs::read(input).unwrap());
        count += 1;
    }
    assert!(count >= 20, "{count} inputs");
}

fn both(test: impl Fn(Ends, Form)) {
    let pki = Pki::new(SUITES[0], 0);
    for form in [Form::Buffered, Form::InPlace] {
        for we_serve in [true, false] {
            test(Ends::new(&pki, form, we_serve), form);
        }
    }
}

#[test]
fn a_key_update_that_asks_for_one_is_answered() {
    both(|mut ends, form| {
        let mut random = Random(7);
        ends.peer.refresh_traffic_keys().unwrap();
        let mut stream = Vec::new();
        ends.peer.write_tls(&mut stream).unwrap();
        assert_eq!(ends.feed(&stream, &mut random).payload, b"");
        ends.ours.sealer.answer().unwrap();
        let mut sealed = std::mem::take(ends.ours.sealer.control());
        // rustls answers along with its next data.
        assert_eq!(sealed.is_empty(), form == Form::Buffered);
        sealed.extend(ends.seal(b"under the new key"));
        assert_eq!(
            peer_reads(&mut ends.peer, &sealed, &mut random),
            b"under the new key"
        );
    });
}

#[test]
fn a_length_that_tls_does_not_allow_is_refused_before_it_is_awaited() {
    both(|mut ends, form| {
        // 2^14 + 257; rustls lets some more pass and refuses it when it is there.
        let header = match form {
            Form::InPlace => [23, 3, 3, 0x41, 0x01],
            Form::Buffered => [23, 3, 3, 0xff, 0xff],
        };
        let outcome = ends.feed(&header, &mut Random(3));
        assert!(outcome.refused, "{form:?}");
    });
}

#[test]
fn plaintext_after_the_handshake_is_refused() {
    both(|mut ends, form| {
        for record in [&[22, 3, 3, 0, 1, 0][..], &[20, 3, 3, 0, 1, 1]] {
            let outcome = ends.feed(record, &mut Random(3));
            // Once refused, always refused: rustls stays in its error.
            assert!(outcome.refused, "{form:?} {record:?}");
        }
    });
}

#[test]
fn a_fatal_alert_ends_the_session() {
    both(|mut ends, form| {
        // The peer refuses what we never sealed, and says so.
        let mut garbage: &[u8] = &[
            23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
        ];
        ends.peer.read_tls(&mut garbage).unwrap();
        assert!(ends.peer.process_new_packets().is_err());
        let mut alert = Vec::new();
        ends.peer.write_tls(&mut alert).unwrap();
        let mut buffer = pool::borrow();
        let at = ends.ours.opener.reserve();
        buffer.bytes[at..at + alert.len()].copy_from_slice(&alert);
        let opened = ends.ours.opener.open(&mut buffer, at + alert.len());
        assert_eq!(
            opened.fault,
            Some(Fault::PeerAlert(AlertDescription::BadRecordMac)),
            "{form:?}"
        );
    });
}

#[test]
fn a_key_is_renewed_before_its_limit() {
    let pki = Pki::new(SUITES[0], 0);
    let mut ends = Ends::new(&pki, Form::InPlace, true);
    let mut random = Random(11);
    let Sealer::InPlace(sealer) = &mut ends.ours.sealer else {
        panic!()
    };
    sealer.limit_records(3);
    let mut received = Vec::new();
    let mut updates = 0;
    for _ in 0..20 {
        let sealed = ends.seal(b"abc");
        updates += usize::from(sealed.len() > BEFORE + 3 + BEHIND);
        received.extend(peer_reads(&mut ends.peer, &sealed, &mut random));
        let Sealer::InPlace(sealer) = &mut ends.ours.sealer else {
            panic!()
        };
        sealer.limit_records(3);
    }
    assert_eq!(received, b"abc".repeat(20));
    assert!(updates >= 5, "{updates}");
}

#[test]
fn a_flood_of_records_without_data_is_refused() {
    let pki = Pki::new(SUITES[0], 0);
    let mut ends = Ends::new(&pki, Form::InPlace, true);
    let mut stream = Vec::new();
    for _ in 0..400 {
        ends.peer.refresh_traffic_keys().unwrap();
        ends.peer.write_tls(&mut stream).unwrap();
    }
    assert!(ends.feed(&stream, &mut Random(5)).refused);
}

/// What in place makes of records, one after the other, and how the last of them ended it.
fn in_place(records: impl FnOnce(&mut Forger) -> Vec<Vec<u8>>) -> (Vec<Opened>, Ours) {
    let (mut ours, mut forger) = Forger::meets(&Pki::new(SUITES[0], 0), Form::InPlace, true);
    let opened = records(&mut forger)
        .iter()
        .map(|record| {
            let mut buffer = pool::borrow();
            buffer.bytes[..record.len()].copy_from_slice(record);
            ours.opener.open(&mut buffer, record.len())
        })
        .collect();
    (opened, ours)
}

fn inner(kind: u8, content: &[u8]) -> Inner {
    Inner {
        kind,
        content: content.to_vec(),
        padding: 0,
    }
}

#[test]
fn each_offence_has_its_alert() {
    use AlertDescription::*;
    let cases: [(u8, &[u8], _); 9] = [
        // RFC 8446, 5.1: neither may be empty. rustls lets an empty handshake record pass.
        (22, &[], UnexpectedMessage),
        (21, &[], UnexpectedMessage),
        (21, &[1], DecodeError),
        (21, &[3, 0], IllegalParameter),
        // RFC 8446, 4.6.3.
        (22, &[24, 0, 0, 1, 2], IllegalParameter),
        (22, &[24, 0, 0, 0], DecodeError),
        (22, &[24, 0, 0, 1, 0, 24], UnexpectedMessage),
        (20, &[1], UnexpectedMessage),
        (23, &[0; PAYLOAD + 1], RecordOverflow),
    ];
    for (kind, content, expected) in cases {
        let (opened, _) = in_place(|forger| vec![forger.seal(&inner(kind, content))]);
        let Some(Fault::Broken { alert, .. }) = opened[0].fault else {
            panic!("{kind} {content:?}: {opened:?}");
        };
        assert_eq!(alert, expected, "{kind} {content:?}");
    }
}

#[test]
fn every_changed_bit_of_a_record_is_noticed() {
    let length = in_place(|forger| vec![forger.seal(&inner(23, b"payload"))]).0[0]
        .rest
        .end;
    for bit in 0..length * 8 {
        let (opened, _) = in_place(|forger| {
            let mut record = forger.seal(&inner(23, b"payload"));
            record[bit / 8] ^= 1 << (bit % 8);
            if (3..5).contains(&(bit / 8)) {
                // What a longer length waits for.
                record.resize(record.len() + 40_000, 0);
            }
            vec![record]
        });
        assert!(opened[0].fault.is_some(), "{bit}");
    }
}

#[test]
fn nothing_is_opened_after_an_end() {
    for (kind, content) in [(21, &[1, 0]), (21, &[2, 40])] {
        let (opened, _) = in_place(|forger| {
            let end = forger.seal(&inner(kind, content));
            vec![end, forger.seal(&inner(23, b"and another thing"))]
        });
        for opened in opened {
            assert!(opened.closed || opened.fault.is_some());
        }
    }
}

#[test]
fn nothing_is_sealed_after_an_alert() {
    let (_, ours) = in_place(|forger| vec![forger.seal(&inner(22, &[24, 0, 0, 1, 1]))]);
    let Sealer::InPlace(mut sealer) = ours.sealer else {
        panic!()
    };
    sealer.alert(AlertDescription::CloseNotify).unwrap();
    let closing = sealer.control().len();
    sealer.answer().unwrap();
    sealer.alert(AlertDescription::DecodeError).unwrap();
    assert_eq!(sealer.control().len(), closing);
    let payload = 5..6;
    assert!(sealer.seal(&mut [0; 30], &mut [payload]).is_err());
}
