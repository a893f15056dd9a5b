//! What stands before and beside the relay: the startup's parser, and the walk over message headers.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use protocol::message::{MessageWalker, encode_message};
use protocol::startup::{StartupMessage, parse_packet};

fn startup(criterion: &mut Criterion) {
    let parameters: [(&[u8], &[u8]); 6] = [
        (b"user", b"replicator"),
        (b"database", b"replication"),
        (b"replication", b"true"),
        (b"application_name", b"standby1"),
        (b"client_encoding", b"UTF8"),
        (b"options", b"-c datestyle=ISO -c intervalstyle=postgres"),
    ];
    let startup = StartupMessage::new((3, 0), &parameters).expect("a startup");
    criterion.bench_function("startup/parse", |bencher| {
        bencher.iter(|| parse_packet(std::hint::black_box(startup.packet())));
    });
}

fn walk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("walk");
    for (name, body) in [("WAL of 128 KiB", 131_097), ("WAL of 64 bytes", 64)] {
        let message = encode_message(b'd', &vec![0; body]);
        let read = message.repeat((256 * 1024 / message.len()).max(1));
        group.throughput(Throughput::Bytes(read.len() as u64));
        let mut walker = MessageWalker::new(b"K");
        group.bench_function(name, |bencher| {
            bencher.iter(|| walker.walk(std::hint::black_box(&read), |_, _| {}));
        });
    }
}

criterion_group!(benches, startup, walk);
criterion_main!(benches);
