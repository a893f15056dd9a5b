//! Streams of records by choice, valid and then perhaps not, opened by both forms: the same bytes or the same refusal.
//! In between both seal, and a third party reads it.

use super::forger::{Forger, Inner};
use super::{Choices, Form, Ours, Outcome, PAYLOAD, Pki, Random, Sealer, feed, seal};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// Rounds of one conversation, and records of one round, at most.
const ROUNDS: usize = 40;
const RECORDS: usize = 40;
/// Fewer in a row than either form takes for a flood.
const FRUITLESS: usize = 20;

/// What the peer does next.
#[derive(Debug, Clone)]
enum Act {
    Send(Inner),
    /// Seals with the next key from here on.
    NextKey,
}

/// What becomes of a stream on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// One bit behind a header's first three bytes, which rustls does not authenticate.
    Flipped,
    /// One bit of those three bytes: ours refuses it, rustls may not.
    Retyped,
    /// One bit of the length, which stays one that TLS allows.
    Resized,
    CutOff,
    Swapped,
    Dropped,
    Repeated,
}

/// One conversation of each form with a forger. Gives how many records were compared. Panics where they differ.
pub(in super::super) fn contend(pkis: &[Pki; 3], choices: &mut impl Choices) -> u64 {
    let pki = &pkis[choices.below(3)];
    let we_serve = choices.below(2) == 0;
    let mut ends = [Form::Buffered, Form::InPlace].map(|form| End {
        met: Forger::meets(pki, form, we_serve),
        kept: Vec::new(),
    });
    let (mut cancelled, mut fruitless) = (0, 0);
    let mut records = 0;
    for _ in 0..ROUNDS {
        if !choices.more() {
            break;
        }
        let (mut acts, payload) = valid(choices, we_serve, &mut cancelled, &mut fruitless);
        let ends_badly = choices.one_in(ROUNDS);
        if ends_badly {
            offend(&mut acts, choices, we_serve);
        }
        let fate = if ends_badly || !choices.one_in(ROUNDS) {
            Fate::Arrives
        } else {
            FATES[choices.below(FATES.len())]
        };
        let (where_it_happens, splits) = (choices.below(0xffff), choices.below(0xffff) as u64);
        let [reference, ours] = ends.each_mut().map(|end| {
            let stream = end.sends(&acts, fate, where_it_happens);
            end.opens(&stream, &mut Random(splits | 1 << 40))
        });
        records += sent(&acts);
        assert!(
            payload.starts_with(&ours.payload),
            "{fate:?} {acts:?}: bytes that were not sent"
        );
        if fate == Fate::Retyped {
            assert!(ours.refused && !ours.closed, "{acts:?}");
            return records;
        }
        assert!(
            reference == ours,
            "rustls: {reference:?}, ours: {ours:?}; {fate:?} {acts:?}"
        );
        if ends_badly || fate != Fate::Arrives {
            // What is cut off, or claims to be longer, is awaited; everything else is refused, or was an end.
            let awaited = matches!(fate, Fate::CutOff | Fate::Resized);
            assert!(awaited || ours.refused || ours.closed, "{fate:?} {acts:?}");
            return records;
        }
        assert!(!ours.refused && ours.payload == payload, "{acts:?}");
        let answer = answer(choices);
        let renewed = choices.one_in(8).then(|| choices.below(4) as u64);
        let [reference, ours] = ends
            .each_mut()
            .map(|end| end.answers(&answer, renewed, false));
        assert_eq!((reference.0, ours.0), (answer.clone(), answer));
        records += ours.1;
    }
    for end in &mut ends {
        let (payload, _, closed) = end.answers(&[], None, true);
        assert!(payload.is_empty() && closed);
    }
    records
}

const FATES: [Fate; 7] = [
    Fate::Flipped,
    Fate::Retyped,
    Fate::Resized,
    Fate::CutOff,
    Fate::Swapped,
    Fate::Dropped,
    Fate::Repeated,
];

fn sent(acts: &[Act]) -> u64 {
    acts.iter()
        .filter(|act| matches!(act, Act::Send(_)))
        .count() as u64
}

struct End {
    met: (Ours, Forger),
    kept: Vec<u8>,
}

impl End {
    fn sends(&mut self, acts: &[Act], fate: Fate, place: usize) -> Vec<u8> {
        let forger = &mut self.met.1;
        let mut records = Vec::new();
        for act in acts {
            match act {
                Act::Send(inner) => records.push(forger.seal(inner)),
                Act::NextKey => forger.next_key(),
            }
        }
        let place_of = place % records.len();
        match fate {
            Fate::Swapped if place_of > 0 => records.swap(place_of, place_of - 1),
            Fate::Swapped | Fate::Repeated => records.insert(place_of, records[place_of].clone()),
            Fate::Dropped => {
                records.remove(place_of);
                // Something must follow to show it.
                records.push(forger.seal(&data(b"behind")));
            }
            Fate::Flipped => {
                let record = &mut records[place_of];
                let index = 5 + place % (record.len() - 5);
                record[index] ^= 1 << (place % 8);
            }
            Fate::Resized => {
                let record = &mut records[place_of];
                let length = u16::from_be_bytes([record[3], record[4]]);
                let other = length ^ 1 << (place % 15);
                let other = if other > 16_640 { length ^ 1 } else { other };
                record[3..5].copy_from_slice(&other.to_be_bytes());
            }
            Fate::Retyped => records[place_of][place % 3] ^= 1 << (place % 8),
            Fate::CutOff => {
                records.truncate(place_of + 1);
                let record = &mut records[place_of];
                record.truncate(place % record.len());
            }
            Fate::Arrives => {}
        }
        records.concat()
    }

    fn opens(&mut self, stream: &[u8], splits: &mut Random) -> Outcome {
        feed(&mut self.met.0.opener, &mut self.kept, stream, splits)
    }

    /// Seals `payload`, with the key renewed `renewed` records before its limit; what the forger reads.
    fn answers(
        &mut self,
        payload: &[u8],
        renewed: Option<u64>,
        close: bool,
    ) -> (Vec<u8>, u64, bool) {
        let (Ours { sealer, .. }, forger) = &mut self.met;
        match (&mut *sealer, renewed) {
            (Sealer::InPlace(sealer), Some(left)) => sealer.limit_records(left),
            (Sealer::Buffered(sealer), Some(_)) => sealer.refresh(),
            (_, None) => {}
        }
        sealer.answer().expect("a fresh key seals an answer");
        let mut written = std::mem::take(sealer.control());
        written.append(&mut seal(sealer, payload));
        if close {
            sealer.close().expect("a fresh key seals a close");
            written.append(sealer.control());
        }
        forger.read(written)
    }
}

fn data(content: &[u8]) -> Inner {
    Inner {
        kind: DATA,
        content: content.to_vec(),
        padding: 0,
    }
}

/// Acts that every TLS 1.3 peer may do, and the payload that they carry.
fn valid(
    choices: &mut impl Choices,
    we_serve: bool,
    cancelled: &mut usize,
    fruitless: &mut usize,
) -> (Vec<Act>, Vec<u8>) {
    let (mut acts, mut payload) = (Vec::new(), Vec::new());
    let mut bytes = Random(choices.below(0xffff) as u64 | 1 << 40);
    for _ in 0..1 + choices.below(RECORDS) {
        let padding = match choices.below(8) {
            7 => choices.below(300),
            6 if choices.one_in(16) => PAYLOAD,
            _ => 0,
        };
        let mut send = |kind, content: Vec<u8>| {
            let padding = padding.min(PAYLOAD - content.len());
            acts.push(Act::Send(Inner {
                kind,
                content,
                padding,
            }));
        };
        let kind = if *fruitless == FRUITLESS {
            0
        } else {
            choices.below(64)
        };
        *fruitless += 1;
        match kind {
            60 | 61 => {
                let asked = choices.below(2) as u8;
                send(HANDSHAKE, vec![24, 0, 0, 1, asked]);
                acts.push(Act::NextKey);
            }
            62 if !we_serve => send(HANDSHAKE, ticket(&mut bytes, choices)),
            63 if *cancelled < 3 => {
                *cancelled += 1;
                send(ALERT, vec![1, 90]);
            }
            59 => {
                // A handshake message split over records, each with some of it.
                let message = match choices.below(2) {
                    1 if !we_serve => ticket(&mut bytes, choices),
                    _ => vec![24, 0, 0, 1, choices.below(2) as u8],
                };
                let at = 1 + choices.below(message.len() - 1);
                send(HANDSHAKE, message[..at].to_vec());
                send(HANDSHAKE, message[at..].to_vec());
                *fruitless += 1;
                if message[0] == 24 {
                    acts.push(Act::NextKey);
                }
            }
            57 | 58 => send(DATA, Vec::new()),
            _ => {
                let content = bytes.bytes(choices.size());
                payload.extend_from_slice(&content);
                send(DATA, content);
                *fruitless = 0;
            }
        }
        *fruitless = FRUITLESS.min(*fruitless);
    }
    (acts, payload)
}

/// NewSessionTicket (RFC 8446, 4.6.1).
fn ticket(bytes: &mut Random, choices: &mut impl Choices) -> Vec<u8> {
    let length = 1 + choices.below(200);
    let mut body = vec![0, 0, 0x1c, 0x20, 1, 2, 3, 4, 8];
    body.extend(bytes.bytes(8));
    body.extend((length as u16).to_be_bytes());
    body.extend(bytes.bytes(length));
    body.extend([0, 0]);
    let mut message = vec![4, 0, 0, body.len() as u8];
    message.append(&mut body);
    message
}

/// Adds what no peer may do, or an end.
fn offend(acts: &mut Vec<Act>, choices: &mut impl Choices, we_serve: bool) {
    let mut send = |kind: u8, content: &[u8], padding| {
        let content = content.to_vec();
        acts.push(Act::Send(Inner {
            kind,
            content,
            padding,
        }));
    };
    match choices.below(22) {
        // An end, and what follows it is not heard.
        0 => send(ALERT, &[1 + choices.below(2) as u8, 0], choices.below(100)),
        // Fatal alerts and such as claim not to be.
        1 => send(ALERT, &[2, 1 + choices.below(255) as u8], 0),
        2 => send(ALERT, &[1, 1 + choices.below(80) as u8], 0),
        3 => send(
            ALERT,
            &[3 + choices.below(200) as u8, choices.below(255) as u8],
            0,
        ),
        4 => send(ALERT, &[1], 0),
        5 => send(ALERT, &[1, 0, 0], 0),
        // Key updates that are none, or do not end their record.
        6 => send(HANDSHAKE, &[24, 0, 0, 1, 2 + choices.below(200) as u8], 0),
        7 => send(HANDSHAKE, &[24, 0, 0, 0], 0),
        8 => send(HANDSHAKE, &[24, 0, 0, 2, 0, 0], 0),
        9 => send(HANDSHAKE, &[24, 0, 0, 1, 0, 24], 0),
        10 => send(HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], 0),
        // Messages that have no place.
        11 => {
            let kind = [0, 1, 2, 3, 5, 8, 11, 13, 15, 20, 254][choices.below(11)];
            send(HANDSHAKE, &[kind, 0, 0, 1, 0], 0);
        }
        12 => send(HANDSHAKE, &[4, 0, 0, 1, 0], 0),
        13 if we_serve => send(HANDSHAKE, &ticket(&mut Random(1 << 40), choices), 0),
        // A message interrupted.
        13 | 14 => {
            send(HANDSHAKE, &[24, 0, 0], 0);
            send(DATA, b"between", 0);
        }
        15 => send([0, 1, 20, 24, 25, 255][choices.below(6)], b"what is it?", 0),
        // Nothing but zeros: no type at all.
        16 => send(0, &[], choices.below(100)),
        // Longer than a record may be inside, by content or by padding.
        17 => send(DATA, &vec![1; PAYLOAD + 1 + choices.below(200)], 0),
        18 => send(DATA, &[1; PAYLOAD], 1 + choices.below(200)),
        // Floods.
        19 => (0..60).for_each(|_| send(DATA, &[], 0)),
        20 => {
            for _ in 0..60 {
                acts.push(Act::Send(Inner {
                    kind: HANDSHAKE,
                    content: vec![24, 0, 0, 1, 1],
                    padding: 0,
                }));
                acts.push(Act::NextKey);
            }
        }
        // Goes on with the old key after it announced the next.
        _ => {
            send(HANDSHAKE, &[24, 0, 0, 1, 0], 0);
            send(DATA, b"still the old key", 0);
        }
    }
    acts.push(Act::Send(data(b"behind")));
}

/// Mostly little, sometimes several records.
fn answer(choices: &mut impl Choices) -> Vec<u8> {
    let mut bytes = Random(choices.below(0xffff) as u64 | 1 << 40);
    let length = if choices.one_in(32) {
        choices.below(20) * 7000
    } else {
        choices.below(600)
    };
    bytes.bytes(length)
}
