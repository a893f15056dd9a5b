use super::*;
use crate::error_response::Refusal;

type Seen = Vec<(u8, u32, Vec<u8>)>;

/// Wants so much of the messages with these tags.
struct Wants(&'static [u8], usize, Seen);

impl Listener for Wants {
    fn wanted(&self, header: Header) -> usize {
        if self.0.contains(&header.tag) {
            self.1
        } else {
            0
        }
    }

    fn message(&mut self, header: Header, head: &[u8]) {
        self.2.push((header.tag, header.length, head.to_vec()));
    }
}

/// Walks over a stream in pieces of this size, again and again.
fn walk(
    walker: &mut MessageWalker,
    wants: (&'static [u8], usize),
    stream: &[u8],
    size: usize,
) -> Seen {
    let mut seen = Wants(wants.0, wants.1, Seen::new());
    for piece in stream.chunks(size) {
        walker.walk(piece, &mut seen);
    }
    seen.2
}

fn login() -> Vec<u8> {
    [
        encode_message(b'R', &[0, 0, 0, 0]),
        encode_message(b'S', b"server_version\x0018.4\0"),
        encode_message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
        encode_message(b'Z', b"I"),
        encode_message(b'c', b""),
        encode_message(b'd', &[0; 1_000]),
    ]
    .concat()
}

#[test]
fn every_message_is_told_once_however_it_is_split() {
    let expected = vec![
        (b'R', 8, vec![]),
        (b'S', 24, vec![]),
        (b'K', 12, vec![0, 0, 0, 7, 1, 2, 3, 4]),
        (b'Z', 5, b"I".to_vec()),
        (b'c', 4, vec![]),
        (b'd', 1_004, vec![0; 25]),
    ];
    for size in 1..login().len() + 1 {
        let mut walker = MessageWalker::new();
        assert_eq!(
            walk(&mut walker, (b"KZdc", 25), &login(), size),
            expected,
            "pieces of {size}"
        );
        assert!(walker.at_boundary());
    }
}

#[test]
fn boundaries_are_known_within_the_bytes_last_walked_over() {
    let ready = encode_message(b'Z', b"I");
    let mut walker = MessageWalker::new();
    let mut walk = |bytes: &[u8]| {
        walker.walk(bytes, &mut Wants(b"", 0, Seen::new()));
        (walker.last_boundary(), walker.at_boundary())
    };
    assert_eq!(walk(&ready), (Some(6), true));
    assert_eq!(walk(&[]), (Some(0), true));
    assert_eq!(walk(&ready[..3]), (Some(0), false));
    assert_eq!(walk(&ready[3..5]), (None, false));
    assert_eq!(
        walk(&[&ready[5..], &ready, &ready[..5]].concat()),
        (Some(7), false)
    );
    assert_eq!(walk(&ready[5..]), (Some(1), true));
}

#[test]
fn nonsense_is_given_up_on_for_good() {
    for nonsense in [
        b"Z\0\0\0\x03".as_slice(),
        b"Z\x80\0\0\0",
        b"\0\0\0\0\x05",
        b"\x16\x03\x01\x02\0",
    ] {
        let mut walker = MessageWalker::new();
        let wants: (&[u8], usize) = (b"Z", 1);
        let stream = [
            &encode_message(b'Z', b"I"),
            nonsense,
            &encode_message(b'Z', b"I"),
        ]
        .concat();
        assert_eq!(walk(&mut walker, wants, &stream, stream.len()).len(), 1);
        assert!(walker.is_lost() && !walker.at_boundary());
        assert_eq!(walker.last_boundary(), None);
        assert_eq!(walk(&mut walker, wants, &encode_message(b'Z', b"I"), 6), []);
        assert_eq!(walker.last_boundary(), None);
    }
}

#[test]
fn a_walker_is_small() {
    assert!(size_of::<MessageWalker>() <= 64);
}

#[test]
fn of_a_long_body_its_head_is_shown() {
    for size in [100, 1_000] {
        for (wanted, shown) in [(0, 0), (25, 25), (320, 320), (400, 320)] {
            let mut walker = MessageWalker::new();
            let message = encode_message(b'd', &[1; 900]);
            let seen = walk(&mut walker, (b"d", wanted), &message, size);
            assert_eq!(seen[0].2, vec![1; shown], "{wanted} in pieces of {size}");
        }
    }
}

#[test]
fn a_stream_in_pieces_takes_no_more_room() {
    let mut walker = MessageWalker::new();
    let message = encode_message(b'd', &[1; 131_072]).repeat(3);
    walk(&mut walker, (b"d", 25), &message, 16_384);
    let room = walker.kept.capacity();
    assert!(room <= MOST_ROOM_KEPT);
    walk(&mut walker, (b"d", 25), &message, 10);
    assert_eq!(walker.kept.capacity(), room);
}

#[test]
fn backend_keys_of_both_protocols_are_read() {
    for length in [4, 32, 256] {
        let key = parse_backend_key_data(&[&[0, 0, 1, 0], vec![5; length].as_slice()].concat());
        assert_eq!(key, CancelKey::new(256, &vec![5; length]));
    }
    for length in [0, 3, 7, 261] {
        assert_eq!(parse_backend_key_data(&vec![0; length]), None);
    }
}

fn sasl(mechanisms: &[u8]) -> Vec<u8> {
    encode_message(b'R', &[&[0, 0, 0, 10], mechanisms].concat())
}

#[test]
fn channel_binding_is_taken_out() {
    for (offered, left) in [
        (
            b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".as_slice(),
            Ok(SaslEdit::Edited(sasl(b"SCRAM-SHA-256\0\0"))),
        ),
        (b"SCRAM-SHA-256\0\0", Ok(SaslEdit::Unchanged)),
        (b"OAUTHBEARER\0\0", Ok(SaslEdit::Unchanged)),
        (b"SCRAM-SHA-256-PLUS\0\0", Ok(SaslEdit::OnlyChannelBinding)),
        (b"\0", Ok(SaslEdit::Unchanged)),
        (b"", Err(AuthenticationError::Layout)),
        (b"SCRAM-SHA-256\0", Err(AuthenticationError::Layout)),
        (b"SCRAM-SHA-256", Err(AuthenticationError::Layout)),
        (b"SCRAM-SHA-256\0\0\0", Err(AuthenticationError::Layout)),
    ] {
        assert_eq!(without_scram_plus(&sasl(offered)), left, "{offered:?}");
    }
    assert_eq!(
        without_scram_plus(&encode_message(b'R', &[0, 0, 0, 0])),
        Ok(SaslEdit::Unchanged)
    );
    assert_eq!(
        without_scram_plus(&encode_message(b'R', &[0])),
        Err(AuthenticationError::Layout)
    );
    assert_eq!(
        without_scram_plus(&encode_message(b'E', &[0; 4])),
        Err(AuthenticationError::NotWhole)
    );
    assert_eq!(
        without_scram_plus(b"R\0\0"),
        Err(AuthenticationError::NotWhole)
    );
}

#[test]
fn the_sqlstate_of_an_error_is_found() {
    let starting = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0Fpostmaster.c\0L2\0RProcess\0\0";
    assert_eq!(
        sqlstate_of_error(&encode_message(b'E', starting)),
        Some(SqlState::CANNOT_CONNECT_NOW)
    );
    let ours = Refusal::new("P01", SqlState::INVALID_AUTHORIZATION, "no").encode();
    assert_eq!(
        sqlstate_of_error(&ours),
        Some(SqlState::INVALID_AUTHORIZATION)
    );
    for not_one in [
        encode_message(b'E', b"SFATAL\0\0"),
        encode_message(b'E', b"SFATAL\0\0C57P03\0"),
        encode_message(b'N', starting),
        b"EFATAL:  unsupported frontend protocol\n\0".to_vec(),
        ours[..ours.len() - 1].to_vec(),
    ] {
        assert_eq!(sqlstate_of_error(&not_one), None);
    }
}
