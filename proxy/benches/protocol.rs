//! What stands before and beside the relay: the startup's parser, and the watch over a replication stream.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use protocol::message::{MessageWalker, encode_message};
use protocol::startup::{StartupMessage, parse_packet};
use protocol::watch::Watch;

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

fn watch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch");
    for (name, size) in [("WAL of 128 KiB", 131_072), ("WAL of 64 bytes", 64)] {
        let mut body = vec![0; 25 + size];
        body[0] = b'w';
        let message = encode_message(b'd', &body);
        let read = message.repeat((256 * 1024 / message.len()).max(1));
        group.throughput(Throughput::Bytes(read.len() as u64));
        let (mut watch, mut walker) = (Watch::default(), MessageWalker::new());
        let start = encode_message(b'Q', b"START_REPLICATION 0/100 TIMELINE 1\0");
        watch.frontend_sent(&mut MessageWalker::new(), &start);
        watch.backend_sent(&mut walker, &encode_message(b'W', &[0; 3]));
        group.bench_function(name, |bencher| {
            bencher.iter(|| watch.backend_sent(&mut walker, std::hint::black_box(&read)));
        });
    }
}

criterion_group!(benches, startup, watch);
criterion_main!(benches);
