//! A network that fails: cuts, stalls, dead peers, half-open and half-closed paths, and our own shutdown. What
//! is broken is passed on as broken, what only waits is left alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testbed::tunnel::{client_config, server_config};
use testbed::wire::{self, Ending, Wire, message};
use testbed::{Link, Namespaces, Node, Pki, Scratch, Sidecar, StandIn, wait_until};

/// Two sidecars with a link between them.
struct Path {
    server: Sidecar,
    client: Sidecar,
    link: Link,
}

impl Path {
    fn to(upstream: &str, server: &str, client: &str) -> Self {
        let pki = Pki::new();
        let server = Sidecar::run(
            "server",
            &server_config(&pki.issue("primary"), upstream, server),
        );
        let link = Link::to(server.address());
        let client = Sidecar::run(
            "client",
            &client_config(&pki.issue("standby"), link.address(), client),
        );
        Self {
            server,
            client,
            link,
        }
    }

    /// A session through it, past the startup: the standby's end and PostgreSQL's.
    fn session(&self, stand_in: &StandIn) -> (Wire, Wire) {
        start(Wire::tcp(self.client.address()), stand_in)
    }
}

fn start(mut downstream: Wire, stand_in: &StandIn) -> (Wire, Wire) {
    downstream.send(&wire::replication_startup());
    let (mut upstream, _) = stand_in.accept_startup();
    upstream.greet(1, b"key!");
    downstream.read_greeting();
    (downstream, upstream)
}

#[test]
fn standby_streams_on_after_the_path_was_cut() {
    let primary = Node::primary();
    let path = Path::to(&primary.socket().display().to_string(), "", "");
    let standby = Node::standby("standby", &path.client.conninfo());
    primary.query("create table t (id int)");
    for round in 0..5 {
        primary.wait_for_standby("standby");
        path.link.cut_after(20_000 * round);
        primary.query("insert into t select generate_series(1, 10000)");
        path.link.cut();
    }
    standby.catch_up_with(&primary);
    assert_eq!(standby.query("select count(*) from t"), "50000");
}

#[test]
fn tls_stream_cut_without_close_notify_is_passed_on_as_a_reset() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    let (mut downstream, mut upstream) = path.session(&stand_in);
    path.link.end_without_close_notify();
    assert_eq!(
        (downstream.ending(), upstream.ending()),
        (Ending::Reset, Ending::Reset)
    );
}

#[test]
fn reset_on_the_path_is_passed_on_as_a_reset() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    let (mut downstream, mut upstream) = path.session(&stand_in);
    path.link.cut();
    assert_eq!(
        (downstream.ending(), upstream.ending()),
        (Ending::Reset, Ending::Reset)
    );
}

#[test]
fn reset_behind_a_goodbye_is_no_failure() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    let goodbye = message(b'X', b"");
    let (mut downstream, mut upstream) = path.session(&stand_in);
    downstream.send(&[goodbye.clone(), goodbye].concat());
    upstream.read_exactly(5);
    upstream.read_byte(); // the rest of the second one is there, and stays unread
    drop(upstream);
    downstream.ending();
    for sidecar in [&path.server, &path.client] {
        let ended = sidecar.wait_for_log("\"session ended\"");
        assert!(ended.contains("\"end\":\"finished\""), "{ended}");
    }
}

#[test]
fn death_of_either_sidecar_ends_both_sides() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    let (mut downstream, mut upstream) = path.session(&stand_in);
    path.server.signal(Signal::SIGKILL);
    assert_eq!(downstream.ending(), Ending::Reset);
    upstream.ending();
}

#[test]
fn half_close_passes_both_ways() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    let (mut downstream, mut upstream) = path.session(&stand_in);
    downstream.send(b"last words");
    downstream.finish();
    assert_eq!(upstream.read_exactly(10), b"last words");
    assert_eq!(upstream.ending(), Ending::Eof);
    upstream.send(b"answer");
    assert_eq!(downstream.read_exactly(6), b"answer");
    upstream.finish();
    assert_eq!(downstream.ending(), Ending::Eof);

    let (mut downstream, mut upstream) = path.session(&stand_in);
    upstream.finish();
    assert_eq!(downstream.ending(), Ending::Eof);
    downstream.send(b"x");
    assert_eq!(upstream.read_byte(), b'x');
}

#[test]
fn last_words_before_a_close_arrive() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    for _ in 0..50 {
        let (mut downstream, mut upstream) = path.session(&stand_in);
        downstream.send(b"X\0\0\0\x04");
        drop(downstream);
        assert_eq!(upstream.read_exactly(5), b"X\0\0\0\x04");
        upstream.ending();
    }
}

#[test]
fn dead_peer_is_noticed_at_both_ends_within_15_s() {
    let Some(hosts) = Namespaces::new() else {
        return;
    };
    let (pki, stand_in, dir) = (Pki::new(), StandIn::unix(), Scratch::new("socket"));
    let right = Namespaces::RIGHT;
    let identity = pki.issue_for("primary", &[right]);
    let config = server_config(&identity, stand_in.upstream(), "")
        .replace("127.0.0.1:0", &format!("{right}:5443"));
    let server = Sidecar::run_in(&hosts.right(), "server", &config);
    let config = client_config(&pki.issue("standby"), server.address(), "");
    let config = config.replace("127.0.0.1:0", &dir.path().display().to_string());
    let _client = Sidecar::run_in(&hosts.left(), "client", &config);
    let session = || start(Wire::unix(&dir.path().join(".s.PGSQL.5442")), &stand_in);
    let (mut idle, mut idle_upstream) = session();
    let (mut busy, mut busy_upstream) = session();

    hosts.cut();
    let start = Instant::now();
    busy.send(&[0; 10_000]);
    busy_upstream.send(&[0; 10_000]);
    let ends = [
        ("idle standby", &mut idle),
        ("idle PostgreSQL", &mut idle_upstream),
        ("busy standby", &mut busy),
        ("busy PostgreSQL", &mut busy_upstream),
    ];
    thread::scope(|scope| {
        for (name, end) in ends {
            scope.spawn(move || {
                end.ending();
                let taken = start.elapsed();
                println!("{name}: {taken:?}");
                assert!(
                    taken < Duration::from_secs(15),
                    "{name} noticed after {taken:?}"
                );
            });
        }
    });
    assert!(
        start.elapsed() > Duration::from_secs(3),
        "a short hiccup must not end a stream"
    );
}

/// The most bytes that the kernel buffers at one end of a TCP connection.
fn most_buffered(setting: &str) -> usize {
    let path = format!("/proc/sys/net/ipv4/{setting}");
    let limits = std::fs::read_to_string(path).unwrap();
    let most = limits.split_whitespace().nth(2).unwrap();
    most.parse().unwrap()
}

#[test]
fn reader_that_stands_still_for_60_s_lives() {
    let stand_in = StandIn::new();
    let path = Path::to(&stand_in.upstream(), "", "");
    let (mut downstream, mut upstream) = path.session(&stand_in);
    let memory = path.client.rss_kib() + path.server.rss_kib();
    let pattern: Vec<u8> = (0..=250).cycle().take(1024 * 1024).collect();
    // Four connections lie between the two ends; a kernel may let the buffers of each grow to what it says here.
    let buffers = 4 * (most_buffered("tcp_rmem") + most_buffered("tcp_wmem"));
    let pieces = 64 + buffers / (1024 * 1024);
    let piece = pattern.clone();
    let writer = thread::spawn(move || {
        upstream.send_patiently();
        (0..pieces).for_each(|_| upstream.send(&piece));
        upstream
    });
    // Standing still is what is tested: there is no condition to wait for.
    thread::sleep(Duration::from_secs(60));
    assert!(!writer.is_finished(), "{pieces} MiB went into buffers");
    assert!(
        path.client.rss_kib() + path.server.rss_kib() < memory + 8 * 1024,
        "memory grew behind a slow reader"
    );

    for _ in 0..pieces {
        assert!(downstream.read_exactly(1024 * 1024) == pattern);
    }
    let mut upstream = writer.join().unwrap();
    downstream.send(b"alive");
    assert_eq!(upstream.read_exactly(5), b"alive");
}

#[test]
fn stalled_path_goes_on_where_it_stopped() {
    let primary = Node::primary();
    let path = Path::to(&primary.socket().display().to_string(), "", "");
    let standby = Node::standby("standby", &path.client.conninfo());
    primary.wait_for_standby("standby");
    let walsender = primary.query("select pid from pg_stat_replication");
    path.link.stall();
    primary.query("create table t as select generate_series(1, 200000) as id");
    let sent = "select sent_lsn > coalesce(replay_lsn, '0/0') from pg_stat_replication";
    primary.poll_query_until(sent, "t");
    path.link.resume();
    standby.catch_up_with(&primary);
    assert_eq!(
        primary.query("select pid from pg_stat_replication"),
        walsender
    );
}

#[test]
fn slow_path_delays_but_does_not_break() {
    let primary = Node::primary();
    let path = Path::to(&primary.socket().display().to_string(), "", "");
    path.link.delay(Duration::from_millis(50));
    let standby = Node::builder("standby").init_from_backup(&primary.conninfo());
    standby.set_standby(&path.client.conninfo(), None);
    let standby = standby.started();
    primary.query("create table t as select 1 as id");
    standby.catch_up_with(&primary);
}

#[test]
fn server_that_says_nothing_is_given_up_with_a_reason() {
    let silent = StandIn::new();
    let pki = Pki::new();
    let client = Sidecar::run(
        "client",
        &client_config(&pki.issue("standby"), silent.address(), ""),
    );
    let start = Instant::now();
    let mut wire = Wire::tcp(client.address());
    wire.send(&wire::replication_startup());
    assert_eq!(wire.read_refusal().sqlstate(), "57P03");
    assert!(
        start.elapsed() < Duration::from_secs(12),
        "after {:?}",
        start.elapsed()
    );
}

#[test]
fn next_target_is_tried_when_one_cannot_serve() {
    let (stand_in, pki, stranger) = (StandIn::new(), Pki::new(), Pki::new());
    let primary = pki.issue("primary");
    let nobody = format!("127.0.0.1:{}", testbed::reserve_port());
    let good = Sidecar::run("good", &server_config(&primary, stand_in.upstream(), ""));
    let without_postgres = Sidecar::run("without", &server_config(&primary, &nobody, ""));
    let other_ca = Sidecar::run(
        "other",
        &server_config(&stranger.issue("primary"), stand_in.upstream(), ""),
    );
    let (without_postgres, other_ca) = (
        without_postgres.address().to_string(),
        other_ca.address().to_string(),
    );
    for first in [nobody, other_ca, without_postgres] {
        let config = client_config(&pki.issue("standby"), good.address(), "");
        let config = config.replace("connect = [", &format!("connect = [\"{first}\", "));
        let client = Sidecar::run("client", &config);
        start(Wire::tcp(client.address()), &stand_in);
    }
}

#[test]
fn next_target_is_tried_when_postgres_is_starting_up() {
    let (starting, ready, pki) = (StandIn::new(), StandIn::new(), Pki::new());
    let [first, second] = [&starting, &ready].map(|stand_in| {
        Sidecar::run(
            "server",
            &server_config(&pki.issue("primary"), stand_in.upstream(), ""),
        )
    });
    let config = client_config(&pki.issue("standby"), second.address(), "");
    let config = config.replace(
        "connect = [",
        &format!("connect = [\"{}\", ", first.address()),
    );
    let client = Sidecar::run("client", &config);
    let mut downstream = Wire::tcp(client.address());
    downstream.send(&wire::replication_startup());
    let (mut upstream, _) = starting.accept_startup();
    upstream.send(&message(
        b'E',
        b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0",
    ));
    drop(upstream);
    ready.accept_startup().0.greet(1, b"key!");
    downstream.read_greeting();
}

#[test]
fn sigterm_ends_sessions_with_57p01_at_a_message_boundary() {
    let stand_in = StandIn::new();
    let drain = "[timeouts]\ndrain = \"1s\"";
    for server_side in [true, false] {
        let mut path = Path::to(&stand_in.upstream(), drain, drain);
        let (mut downstream, mut upstream) = path.session(&stand_in);
        upstream.send(&message(b'd', b"whole"));
        assert_eq!(
            downstream.read_message().unwrap(),
            (b'd', b"whole".to_vec())
        );
        let sidecar = if server_side {
            &mut path.server
        } else {
            &mut path.client
        };
        sidecar.signal(Signal::SIGTERM);
        upstream.send(&message(b'd', b"during the drain"));
        assert_eq!(downstream.read_message().unwrap().1, b"during the drain");
        let refusal = downstream.read_refusal();
        assert_eq!(refusal.sqlstate(), "57P01", "{refusal:?}");
        upstream.ending();
        assert_eq!(sidecar.wait_for_exit(Duration::from_secs(3)), 0);
    }
}

#[test]
fn second_sigterm_ends_at_once() {
    let stand_in = StandIn::new();
    let mut path = Path::to(&stand_in.upstream(), "[timeouts]\ndrain = \"60s\"", "");
    let (mut downstream, _upstream) = path.session(&stand_in);
    let address = path.server.address();
    path.server.signal(Signal::SIGTERM);
    wait_until("the listener to close", || {
        std::net::TcpStream::connect(address).is_err()
    });
    assert!(path.server.is_running());
    path.server.signal(Signal::SIGTERM);
    path.server.wait_for_exit(Duration::from_secs(3));
    downstream.ending();
    // It has its line all the same.
    let ended = path.server.wait_for_log("\"end\":\"dropped\"");
    for words in ["\"session ended\"", "dns:standby.test", "stopped"] {
        assert!(ended.contains(words), "{words} is not in {ended}");
    }
}

#[test]
fn changed_drain_holds_at_the_next_sigterm() {
    let (stand_in, pki) = (StandIn::new(), Pki::new());
    let identity = pki.issue("primary");
    let config = |drain| {
        server_config(
            &identity,
            stand_in.upstream(),
            &format!("[timeouts]\ndrain = \"{drain}\""),
        )
    };
    let server = Sidecar::run("server", &config("60s"));
    server.reconfigure(&config("100ms"));
    let wire = Wire::direct_tls(server.address(), &pki.issue("standby"));
    let (mut downstream, _upstream) = start(wire, &stand_in);
    server.signal(Signal::SIGTERM);
    assert_eq!(downstream.read_refusal().sqlstate(), "57P01");
}

#[test]
fn drain_is_told_in_the_standbys_log() {
    let primary = Node::primary();
    let path = Path::to(
        &primary.socket().display().to_string(),
        "[timeouts]\ndrain = \"1s\"",
        "",
    );
    let standby = Node::standby("standby", &path.client.conninfo());
    primary.wait_for_standby("standby");
    path.server.signal(Signal::SIGTERM);
    standby.wait_for_log("could not receive data from WAL stream: FATAL:  pgtlsproxy: ");
}
