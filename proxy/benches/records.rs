//! Records opened and sealed in both forms, one read's worth at a time: `cargo bench -p pgtlsproxy --features trial`.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pgtlsproxy::trial::Measured;

/// Bytes of payload in a record, and records in one read.
const SHAPES: [(usize, usize); 3] = [(64, 1), (1024, 16), (16_384, 15)];
const FORMS: [(&str, bool); 2] = [("in_place", true), ("rustls", false)];

fn opening(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for (size, records) in SHAPES {
        group.throughput(Throughput::Bytes((size * records) as u64));
        for (name, in_place) in FORMS {
            let mut measured = Measured::new(in_place);
            let id = BenchmarkId::new(name, format!("{records}x{size}"));
            group.bench_function(id, |bencher| {
                // Each read is opened once; to make it is not part of the time.
                bencher.iter_custom(|iterations| {
                    let mut took = Duration::ZERO;
                    for _ in 0..iterations {
                        let mut received = measured.received(size, records);
                        let begun = Instant::now();
                        std::hint::black_box(measured.open(&mut received));
                        took += begun.elapsed();
                    }
                    took
                });
            });
        }
    }
}

fn sealing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for (size, records) in SHAPES {
        group.throughput(Throughput::Bytes((size * records) as u64));
        for (name, in_place) in FORMS {
            let mut measured = Measured::new(in_place);
            let mut sent = Measured::to_send(size, records);
            let id = BenchmarkId::new(name, format!("{records}x{size}"));
            group.bench_function(id, |bencher| bencher.iter(|| measured.seal(&mut sent)));
        }
    }
}

criterion_group!(benches, opening, sealing);
criterion_main!(benches);
