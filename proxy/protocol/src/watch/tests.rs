//! A whole replication connection, as real ends speak it.

use super::*;
use crate::message::encode_message;

/// Both directions of a connection, shown in pieces of some size.
struct Between {
    watch: Watch,
    backend: MessageWalker,
    frontend: MessageWalker,
    size: usize,
}

impl Between {
    fn new(size: usize) -> Self {
        Self {
            watch: Watch::default(),
            backend: MessageWalker::new(),
            frontend: MessageWalker::new(),
            size,
        }
    }

    fn backend(&mut self, messages: &[(u8, Vec<u8>)], now: i64) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|(tag, body)| encode_message(*tag, body))
            .collect();
        for piece in bytes.chunks(self.size) {
            self.watch.backend_sent(&mut self.backend, piece);
        }
        self.watch.settle(Clock(now));
    }

    fn frontend(&mut self, messages: &[(u8, Vec<u8>)], now: i64) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|(tag, body)| encode_message(*tag, body))
            .collect();
        for piece in bytes.chunks(self.size) {
            self.watch.frontend_sent(&mut self.frontend, piece);
        }
        self.watch.settle(Clock(now));
    }

    fn stream(&self) -> &Stream {
        self.watch.stream().unwrap()
    }
}

const SIZES: [usize; 5] = [1, 7, 26, 1_000, 1_000_000];

fn login(version: &str) -> Vec<(u8, Vec<u8>)> {
    vec![
        (b'R', vec![0; 4]),
        (b'S', format!("server_version\0{version}\0").into_bytes()),
        (b'K', vec![0, 0, 0, 7, 1, 2, 3, 4]),
        (b'Z', b"I".to_vec()),
    ]
}

fn query(text: &str) -> Vec<(u8, Vec<u8>)> {
    vec![(b'Q', [text.as_bytes(), b"\0"].concat())]
}

fn wal(start: u64, length: usize, end: u64, clock: i64) -> (u8, Vec<u8>) {
    let head = XLogData {
        start: Lsn(start),
        end: Lsn(end),
        clock: Clock(clock),
    };
    (b'd', [head.encode(), vec![b'k'; length]].concat())
}

fn keepalive(end: u64, clock: i64) -> (u8, Vec<u8>) {
    let keepalive = Keepalive {
        end: Lsn(end),
        clock: Clock(clock),
        reply_requested: true,
    };
    (b'd', keepalive.encode())
}

fn reply(written: u64, flushed: u64, applied: u64, clock: i64) -> (u8, Vec<u8>) {
    let reply = StandbyStatusUpdate {
        written: Lsn(written),
        flushed: Lsn(flushed),
        applied: Lsn(applied),
        clock: Clock(clock),
        reply_requested: false,
    };
    (b'd', reply.encode())
}

fn row(values: &[Option<&str>]) -> (u8, Vec<u8>) {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(value) => {
                body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                body.extend(value.as_bytes());
            }
            None => body.extend((-1_i32).to_be_bytes()),
        }
    }
    (b'D', body)
}

#[test]
fn a_physical_stream_is_followed() {
    for size in SIZES {
        let mut between = Between::new(size);
        between.backend(&login("15.18 (Debian 15.18-0+deb12u1)"), 0);
        assert_eq!(between.watch.version(), Some(1500));
        assert_eq!(
            between.watch.take_cancel_key(),
            CancelKey::new(7, &[1, 2, 3, 4])
        );
        between.frontend(&query("IDENTIFY_SYSTEM"), 0);
        between.backend(
            &[
                (b'T', vec![]),
                row(&[Some("7"), Some("3"), Some("0/500"), None]),
                (b'C', vec![]),
                (b'Z', b"I".to_vec()),
            ],
            0,
        );
        assert_eq!(between.watch.activity(), Activity::Idle);
        between.frontend(&query("START_REPLICATION SLOT \"s1\" 0/100 TIMELINE 3"), 0);
        between.backend(
            &[
                (b'W', vec![0; 3]),
                wal(0x100, 0x100, 0x500, 40),
                wal(0x200, 0x80, 0x500, 50),
            ],
            60,
        );
        assert_eq!(between.watch.activity(), Activity::Streaming);
        between.frontend(&[reply(0x280, 0x200, 0x100, 90)], 100);
        let stream = between.stream();
        assert_eq!(
            (stream.slot.as_deref(), stream.timeline),
            (Some("s1"), Some(3))
        );
        assert_eq!(
            (stream.start, stream.sent, stream.end),
            (Lsn(0x100), Lsn(0x280), Lsn(0x500))
        );
        assert_eq!((stream.wal_bytes, stream.wal_messages), (0x180, 2));
        assert_eq!(
            (stream.from_server, stream.from_frontend),
            (Some(10), Some(10))
        );
        assert_eq!(
            Confirmed::ALL.map(|what| stream.behind(what)),
            [Some(0x280), Some(0x300), Some(0x400)]
        );
        assert_eq!(
            Confirmed::ALL.map(|what| stream.lag(what, Clock(1_060))),
            [Some(40), Some(1_000), Some(1_000)],
            "pieces of {size}"
        );
        between.backend(&[keepalive(0x600, 2_000)], 2_010);
        assert!(between.stream().reply_requested);
        between.frontend(
            &[reply(0x280, 0x280, 0x280, 0), (b'd', b"h1234".to_vec())],
            3_000,
        );
        let stream = between.stream();
        assert!(!stream.reply_requested);
        assert_eq!(
            (stream.keepalives, stream.replies, stream.feedbacks),
            (1, 2, 1)
        );
        assert_eq!(
            (stream.keepalive_at, stream.reply_at),
            (Some(Clock(2_010)), Some(Clock(3_000)))
        );
        assert_eq!(stream.sent, Lsn(0x600));
        assert_eq!(between.watch.not_understood(), 0);
        // The server shuts down: no CopyDone.
        between.backend(&[(b'C', b"COPY 0\0".to_vec())], 4_000);
        assert_eq!(between.watch.activity(), Activity::Idle);
        assert_eq!(between.stream().sent, Lsn(0x600));
    }
}

#[test]
fn a_logical_stream_is_followed() {
    for size in SIZES {
        let mut between = Between::new(size);
        between.backend(&login("18beta1"), 0);
        between.frontend(
            &query("START_REPLICATION SLOT \"sub\" LOGICAL 0/0 (proto_version '4')"),
            0,
        );
        between.backend(
            &[
                (b'W', vec![0; 3]),
                wal(0x700, 5_000, 0x700, 0),
                wal(0, 10, 0, 0),
            ],
            10,
        );
        let stream = between.stream();
        assert!(stream.logical);
        assert_eq!(
            (stream.sent, stream.end, stream.wal_bytes),
            (Lsn(0x700), Lsn(0x700), 5_010)
        );
    }
}

#[test]
fn wal_in_one_read_is_known_by_its_last_message() {
    for size in SIZES {
        let mut between = Between::new(size);
        between.backend(&login("18.1"), 0);
        between.frontend(&query("START_REPLICATION 0/100 TIMELINE 1"), 0);
        let messages = [
            (b'W', vec![0; 3]),
            wal(0x100, 0x40, 0x200, 3),
            wal(0x140, 0, 0x200, 4),
            keepalive(0x140, 5),
            wal(0x140, 1, 0x180, 6),
            wal(0x141, 0x3f, 0x170, 7),
        ];
        between.backend(&messages, 10);
        let stream = between.stream();
        assert_eq!(
            (stream.sent, stream.end, stream.from_server),
            (Lsn(0x180), Lsn(0x180), Some(3)),
            "pieces of {size}"
        );
        assert_eq!(
            (stream.wal_messages, stream.wal_bytes, stream.keepalives),
            (4, 0x80, 1)
        );
        // Not understood: a head cut short, another letter, and a length that PostgreSQL would not send.
        let short = (b'd', wal(1, 0, 1, 1).1[..24].to_vec());
        let mut other = wal(1, 10, 1, 1);
        other.1[0] = b'x';
        between.backend(
            &[wal(0x180, 1, 1, 8), short, other, wal(0x181, 0, 1, 8)],
            10,
        );
        assert_eq!(between.watch.not_understood(), 2);
        between.backend(&[wal(0x181, 1, 1, 9)], 10);
        between
            .watch
            .backend_sent(&mut between.backend, b"d\xff\xff\xff\xffw");
        between.backend(&[wal(0x182, 1, 1, 9)], 10);
        assert_eq!(between.stream().sent, Lsn(0x182));
        assert_eq!(between.watch.not_understood(), 3);
    }
}

#[test]
fn a_base_backup_is_followed() {
    let start = [
        (b'T', vec![]),
        row(&[Some("0/28"), Some("1")]),
        (b'C', vec![]),
    ];
    let tablespaces = [
        (b'T', vec![]),
        row(&[Some("16384"), Some("/t"), Some("1")]),
        row(&[None, None, Some("3")]),
        (b'C', vec![]),
    ];
    for size in SIZES {
        // Since 15: one copy, with letters.
        let mut between = Between::new(size);
        between.backend(&login("16.2"), 0);
        between.frontend(&query("BASE_BACKUP (LABEL 'w', PROGRESS)"), 0);
        between.backend(&start, 0);
        between.backend(&tablespaces, 0);
        assert_eq!(between.watch.activity(), Activity::BaseBackup);
        between.backend(
            &[
                (b'H', vec![0; 3]),
                (b'd', b"n16384.tar\0\0".to_vec()),
                (b'd', [b"d".as_slice(), &[b'w'; 1_000]].concat()),
                (b'd', b"nbase.tar\0\0".to_vec()),
                (b'd', [b"d".as_slice(), &[b'w'; 500]].concat()),
                (b'd', [b"p".as_slice(), &1_400_u64.to_be_bytes()].concat()),
            ],
            0,
        );
        let backup = Backup {
            bytes: 1_500,
            total: Some(4_096),
            done: Some(1_400),
            tablespaces: 2,
            archives: 2,
        };
        assert_eq!(between.stream().backup, Some(backup));
        assert_eq!(
            (between.stream().start, between.stream().timeline),
            (Lsn(0x28), Some(1))
        );

        // Before 15: a copy for each, of bare bytes.
        let mut between = Between::new(size);
        between.backend(&login("14.1"), 0);
        between.frontend(&query("BASE_BACKUP LABEL 'w'"), 0);
        between.backend(&start, 0);
        let copy = [
            (b'H', vec![0; 3]),
            (b'd', vec![b'p'; 1_000]),
            (b'c', vec![]),
        ];
        between.backend(&copy, 0);
        between.backend(&copy, 0);
        let backup = Backup {
            bytes: 2_000,
            archives: 2,
            ..Backup::default()
        };
        assert_eq!(between.stream().backup, Some(backup));
        between.backend(&[(b'C', vec![]), (b'Z', b"I".to_vec())], 0);
        assert_eq!(between.watch.activity(), Activity::Idle);
    }
}

#[test]
fn of_old_servers_bytes_are_counted() {
    let mut between = Between::new(64);
    between.backend(&login("9.2.24"), 0);
    between.frontend(&query("START_REPLICATION 0/100"), 0);
    between.backend(&[(b'W', vec![0; 3]), wal(0x900, 75, 0x900, 0)], 0);
    between.frontend(&[reply(1, 1, 1, 1)], 0);
    let stream = between.stream();
    assert_eq!(
        (stream.wal_bytes, stream.sent, stream.replies),
        (100, Lsn(0x100), 0)
    );
}

#[test]
fn what_is_not_understood_is_counted_and_harms_nothing() {
    let mut between = Between::new(100);
    between.backend(&login("15.1"), 0);
    // Before any command a copy means nothing.
    between.backend(&[(b'W', vec![]), wal(1, 1, 1, 1), (b'd', vec![])], 0);
    assert!(between.watch.stream().is_none());
    between.frontend(&query("START_REPLICATION 0/100 TIMELINE 1"), 0);
    between.backend(&[(b'W', vec![]), (b'd', b"x".to_vec()), (b'd', vec![])], 0);
    between.frontend(&[(b'd', b"p12345678".to_vec())], 0);
    assert_eq!(between.watch.not_understood(), 3);
    between.watch.backend_sent(&mut between.backend, &[0; 100]);
    between.watch.backend_sent(&mut between.backend, &[0; 100]);
    assert_eq!(between.watch.not_understood(), 4);
}

#[test]
fn an_idle_connection_takes_little() {
    assert!(size_of::<Watch>() <= 80);
    assert!(size_of::<Stream>() <= 640, "{}", size_of::<Stream>());
}

#[test]
fn versions_are_read_as_servers_tell_them() {
    for (text, version) in [
        ("15.18 (Debian 15.18-0+deb12u1)", Some(1500)),
        ("18beta1", Some(1800)),
        ("9.2.24", Some(902)),
        ("9", None),
        ("", None),
        ("99999999999999", None),
    ] {
        let body = format!("server_version\0{text}\0");
        assert_eq!(server_version(body.as_bytes()), version, "{text}");
    }
    assert_eq!(server_version(b"server_encoding\x0015"), None);
}
