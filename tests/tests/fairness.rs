//! A session under full load takes nothing from its neighbours but its share: small round trips go on beside streams that
//! never pause, and streams advance together. More streams than processors, so that some share one.
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io::Read;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testbed::tunnel::server_config;
use testbed::wire::{message, replication_startup};
use testbed::{Pki, Sidecar, StandIn, Tunnel, Wire, wait_until};

const MIB: u64 = 1 << 20;

/// A session past its startup: the standby's end and PostgreSQL's.
fn session(tunnel: &Tunnel, stand_in: &StandIn) -> (Wire, Wire) {
    let mut downstream = Wire::tcp(tunnel.client.address());
    downstream.send(&replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    upstream.greet(1, b"key!");
    downstream.read_greeting();
    (downstream, upstream)
}

/// WAL as fast as it goes, until it is dropped.
struct Stream {
    moved: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    ends: Vec<JoinHandle<()>>,
}

impl Stream {
    fn start((mut downstream, mut upstream): (Wire, Wire)) -> Self {
        let moved = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&moved));
        let wal = message(b'd', &vec![7; 128 * 1024 - 5]);
        let length = wal.len();
        let writer = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) && upstream.try_send(&wal).is_ok() {}
        });
        let stopped = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                downstream.read_exactly(length);
                counted.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        Self {
            moved,
            stop,
            ends: vec![writer, reader],
        }
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for end in self.ends.drain(..) {
            // Whichever ends first may leave the other a broken connection.
            let _ = end.join();
        }
    }
}

fn streams(tunnel: &Tunnel, stand_in: &StandIn) -> Vec<Stream> {
    let processors = thread::available_parallelism().map_or(2, usize::from);
    let streams = (0..2 * processors).map(|_| Stream::start(session(tunnel, stand_in)));
    let streams: Vec<Stream> = streams.collect();
    wait_until("every stream to flow", || {
        streams.iter().all(|stream| stream.moved() > MIB)
    });
    streams
}

#[test]
fn round_trips_go_on_beside_streams_at_full_speed() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    let streams = streams(&tunnel, &stand_in);
    let (mut standby, mut primary) = session(&tunnel, &stand_in);
    let moved = || streams.iter().map(Stream::moved).sum::<u64>();
    let before = moved();
    let mut took = Vec::new();
    while took.len() < 100 || moved() - before < 256 * MIB {
        let begun = Instant::now();
        standby.send(&message(b'd', &[1; 34]));
        primary.read_exactly(39);
        primary.send(&message(b'd', &[2; 59]));
        standby.read_exactly(64);
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let (middle, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{} round trips, {middle:?}, at most {longest:?}",
        took.len()
    );
    // Threads wait for each other here, many for each processor. Only starvation comes near these bounds.
    assert!(middle < Duration::from_millis(250), "{middle:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[test]
fn streams_at_full_speed_advance_together() {
    let stand_in = StandIn::new();
    let tunnel = Tunnel::with(stand_in.upstream(), "", "");
    let streams = streams(&tunnel, &stand_in);
    let before: Vec<u64> = streams.iter().map(Stream::moved).collect();
    let moved = || {
        let moved = streams.iter().zip(&before);
        moved.map(|(stream, before)| stream.moved() - before)
    };
    wait_until("the streams to move", || moved().sum::<u64>() > 512 * MIB);
    let share = moved().sum::<u64>() / streams.len() as u64;
    let least = moved().min().unwrap();
    println!("{least} bytes where {share} are a fair share");
    assert!(least > share / 4, "{least} of {share}");
}

/// Runs `start` on one processor only: a sidecar that it starts has a single worker, which all its sessions share.
fn on_one_processor<T>(start: impl FnOnce() -> T) -> T {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let all = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap()
        .trim();
    let confine = |processors: &str| {
        let thread = nix::unistd::gettid().to_string();
        let mut taskset = Command::new("taskset");
        taskset.args(["-pc", processors, &thread]);
        let output = taskset.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    confine(all.split([',', '-']).next().unwrap());
    let started = start();
    confine(all);
    started
}

/// Two streams of which every read comes back full, and every write finds room: their WAL costs nothing to make, and
/// their records are taken without being opened. Only the relay itself can let another session have its turn.
/// Counted in bytes, which a slow machine does not change: how much they move while one round trip waits.
#[test]
fn a_stream_that_never_pauses_lets_a_round_trip_pass_after_a_few_buffers() {
    const ROUND_TRIPS: usize = 200;
    let stand_in = StandIn::new();
    let pki = Pki::new();
    let (primary, standby) = (pki.issue("primary"), pki.issue("standby"));
    let config = server_config(&primary, stand_in.upstream(), "");
    let server = on_one_processor(|| Sidecar::run("server", &config));
    let session = || {
        let mut downstream = Wire::direct_tls(server.address(), &standby);
        downstream.send(&replication_startup());
        let (mut upstream, _) = stand_in.accept_startup();
        upstream.greet(1, b"key!");
        downstream.read_greeting();
        (downstream, upstream)
    };
    let (mut standby, mut primary) = session();
    let moved = Arc::new(AtomicU64::new(0));
    for _ in 0..2 {
        let (downstream, mut upstream) = session();
        let wal = message(b'd', &vec![7; 128 * 1024 - 5]).repeat(8);
        thread::spawn(move || while upstream.try_send(&wal).is_ok() {});
        let (mut records, counted) = (downstream.under_tls(), Arc::clone(&moved));
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(count @ 1..) = records.read(&mut buffer) {
                counted.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
    }
    let moved = || moved.load(Ordering::Relaxed);
    wait_until("the streams to flow", || moved() > 256 * MIB);
    let mut meanwhile: Vec<u64> = (0..ROUND_TRIPS)
        .map(|_| {
            let before = moved();
            standby.send(&message(b'd', &[1; 34]));
            primary.read_exactly(39);
            primary.send(&message(b'd', &[2; 59]));
            standby.read_exactly(64);
            moved() - before
        })
        .collect();
    meanwhile.sort_unstable();
    let (middle, nearly_all) = (meanwhile[ROUND_TRIPS / 2], meanwhile[ROUND_TRIPS * 9 / 10]);
    println!("{middle} bytes in a round trip, nine of ten in {nearly_all}");
    // Four buffers of each stream both ways, and what they move while this thread waits for a processor.
    assert!(nearly_all < 16 * MIB, "{nearly_all} bytes in a round trip");
}

/// A frontend that is slower than the network, as a base backup to a slow disk is: every read of the relay comes back
/// full, and there is no pause in which the word to end could be heard.
#[test]
fn sigterm_ends_a_stream_that_never_pauses_at_a_message_boundary() {
    let stand_in = StandIn::new();
    for server_side in [true, false] {
        let drain = "[timeouts]\ndrain = \"100ms\"";
        let mut tunnel = Tunnel::with(stand_in.upstream(), drain, drain);
        let (mut downstream, mut upstream) = session(&tunnel, &stand_in);
        let wal = message(b'd', &vec![7; 60_000]).repeat(16);
        thread::spawn(move || while upstream.try_send(&wal).is_ok() {});
        let sidecar = if server_side {
            &mut tunnel.server
        } else {
            &mut tunnel.client
        };
        let mut read = 0;
        let refusal = loop {
            // 30 MB a second: far less than a relay moves.
            thread::sleep(Duration::from_millis(2));
            match downstream.read_message() {
                Ok((b'd', body)) => read += body.len() as u64,
                Ok((tag, body)) => break (tag, String::from_utf8_lossy(&body).into_owned()),
                Err(error) => panic!("cut off after {read} bytes: {error}"),
            }
            if read == 60_000 * 200 {
                sidecar.signal(Signal::SIGTERM);
            }
        };
        assert!(
            refusal.0 == b'E' && refusal.1.contains("57P01"),
            "{refusal:?}"
        );
        sidecar.wait_for_log("\"end\":\"stopped\"");
    }
}
