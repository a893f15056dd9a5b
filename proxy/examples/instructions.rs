//! One case of work for callgrind to count the instructions of: see `.ci/instructions`. What is counted happens in
//! functions whose names begin with `counted`.

use std::hint::black_box;

use pgtlsproxy::trial::{Filled, Measured};
use protocol::message::{MessageWalker, encode_message};
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

#[inline(never)]
fn counted_watch(watch: &mut Watch, walker: &mut MessageWalker, read: &[u8]) {
    watch.backend_sent(walker, black_box(read));
    watch.settle(Clock(1));
}

/// `open|seal in_place|rustls SIZE`, `startup` or `watch SIZE`. Prints how many records or messages the work was.
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [what, form, size] => records(what, form == "in_place", size.parse().expect("a size")),
        ["startup"] => startup(),
        ["watch", size] => watch(size.parse().expect("a size")),
        _ => panic!("open|seal in_place|rustls SIZE, startup or watch SIZE"),
    };
    #[expect(clippy::print_stdout, reason = "the script reads it")]
    {
        println!("{done}");
    }
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

/// A physical stream of XLogData messages with `size` bytes of WAL each, as a relay reads it: up to 256 KiB at a time.
fn watch(size: usize) -> usize {
    let (mut watch, mut to_frontend) = (Watch::default(), MessageWalker::new());
    let start = encode_message(b'Q', b"START_REPLICATION 0/100 TIMELINE 1\0");
    watch.frontend_sent(&mut MessageWalker::new(), &start);
    let version = encode_message(b'S', b"server_version\x0015.1\0");
    watch.backend_sent(&mut to_frontend, &version);
    watch.backend_sent(&mut to_frontend, &encode_message(b'W', &[0; 3]));
    let mut body = vec![0; 25 + size];
    body[0] = b'w';
    let message = encode_message(b'd', &body);
    let messages = (256 * 1024 / message.len()).max(1);
    let read = message.repeat(messages);
    for _ in 0..ROUNDS {
        counted_watch(&mut watch, &mut to_frontend, &read);
    }
    assert!(watch.stream().is_some_and(|stream| stream.wal_messages > 0));
    ROUNDS * messages
}
