//! One case of work for callgrind to count the instructions of: see `.ci/micro-benchmarks`. What is counted happens in
//! functions whose names begin with `counted`.

use std::hint::black_box;
use std::process::ExitCode;

use pgtlsproxy::trial::{Filled, Measured};
use protocol::message::{
    BACKEND_KEY_DATA_TAG, Header, Listener, MAX_HEAD, MessageWalker, encode_message,
};
use protocol::replication::Clock;
use protocol::startup::{StartupMessage, parse_packet};
use protocol::watch::Watch;

const ROUNDS: usize = 50;

#[inline(never)]
fn counted_open(measured: &mut Measured, received: &mut Filled) {
    black_box(measured.open(received));
}

#[inline(never)]
fn counted_seal(measured: &mut Measured, sent: &mut Filled) {
    black_box(measured.seal(sent));
}

#[inline(never)]
fn counted_parse(packet: &[u8]) {
    let _ = black_box(parse_packet(black_box(packet)));
}

/// As the relay shows what it read: record by record.
#[inline(never)]
fn counted_watch(watch: &mut Watch, walker: &mut MessageWalker, read: &[u8]) {
    for record in black_box(read).chunks(16_384) {
        watch.backend_sent(walker, record);
    }
    watch.settle(Clock(1));
}

#[inline(never)]
fn counted_walk(walker: &mut MessageWalker, read: &[u8]) {
    for record in black_box(read).chunks(16_384) {
        walker.walk(record, &mut Unwanted);
    }
}

/// Of an ordinary session nothing but the boundaries is wanted, once its key is known.
struct Unwanted;

impl Listener for Unwanted {
    fn wanted(&self, header: Header) -> usize {
        match header.tag {
            BACKEND_KEY_DATA_TAG => MAX_HEAD,
            _ => 0,
        }
    }

    fn message(&mut self, header: Header, head: &[u8]) {
        if header.tag == BACKEND_KEY_DATA_TAG {
            black_box(head);
        }
    }
}

/// `open|seal in_place|rustls SIZE`, `startup`, `watch physical|logical SIZE` or `walk SIZE`. Prints how many records or
/// messages the work was.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [what @ ("open" | "seal"), form, size] => {
            records(what, form == "in_place", size.parse().expect("a size"))
        }
        ["startup"] => startup(),
        ["watch", kind, size] => watch(kind == "logical", size.parse().expect("a size")),
        ["walk", size] => walk(size.parse().expect("a size")),
        _ => {
            eprintln!("see the documentation of `main`");
            return ExitCode::from(2);
        }
    };
    #[expect(clippy::print_stdout, reason = "the script reads it")]
    {
        println!("{done}");
    }
    ExitCode::SUCCESS
}

fn records(what: &str, in_place: bool, size: usize) -> usize {
    let records = if size > 8192 { 15 } else { 16 };
    let mut measured = Measured::new(in_place);
    // Once uncounted: tables are set up, room is made.
    let mut first = measured.received(size, records);
    measured.open(&mut first);
    let mut sent = Measured::to_send(size, records);
    measured.seal(&mut sent);
    for _ in 0..ROUNDS {
        if what == "open" {
            let mut received = measured.received(size, records);
            counted_open(&mut measured, &mut received);
        } else {
            counted_seal(&mut measured, &mut sent);
        }
    }
    ROUNDS * records
}

fn startup() -> usize {
    let parameters: [(&[u8], &[u8]); 4] = [
        (b"user", b"replicator"),
        (b"database", b"replication"),
        (b"replication", b"true"),
        (b"application_name", b"standby1"),
    ];
    let startup = StartupMessage::new((3, 0), &parameters).expect("a startup");
    for _ in 0..ROUNDS {
        counted_parse(startup.packet());
    }
    ROUNDS
}

/// As much as the relay reads at a time of XLogData with `size` bytes of WAL or changes in each.
fn read_of(size: usize) -> (Vec<u8>, usize) {
    let mut body = vec![0; 25 + size];
    body[0] = b'w';
    let message = encode_message(b'd', &body);
    let messages = (256 * 1024 / message.len()).max(1);
    (message.repeat(messages), messages)
}

fn watch(logical: bool, size: usize) -> usize {
    let (mut watch, mut to_frontend) = (Watch::default(), MessageWalker::new());
    let start: &[u8] = if logical {
        b"START_REPLICATION SLOT \"s\" LOGICAL 0/100\0"
    } else {
        b"START_REPLICATION 0/100 TIMELINE 1\0"
    };
    watch.frontend_sent(&mut MessageWalker::new(), &encode_message(b'Q', start));
    let version = encode_message(b'S', b"server_version\x0015.1\0");
    watch.backend_sent(&mut to_frontend, &version);
    watch.backend_sent(&mut to_frontend, &encode_message(b'W', &[0; 3]));
    let (read, messages) = read_of(size);
    for _ in 0..ROUNDS {
        counted_watch(&mut watch, &mut to_frontend, &read);
    }
    let seen = watch.stream().map(|stream| stream.wal_messages);
    assert_eq!(seen, Some((ROUNDS * messages) as u64));
    ROUNDS * messages
}

/// The same to an ordinary session.
fn walk(size: usize) -> usize {
    let (read, messages) = read_of(size);
    let mut walker = MessageWalker::new();
    for _ in 0..ROUNDS {
        counted_walk(&mut walker, &read);
    }
    assert!(walker.at_boundary());
    ROUNDS * messages
}
