//! Records in place against other TLS libraries: OpenSSL and GnuTLS at the other end, on either side, with key updates of
//! theirs, padding, small records, every suite, and both ways to end.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use testbed::tunnel::{client_config, server_config};
use testbed::wire::{Ending, message, replication_startup};
use testbed::{Identity, Pki, Scratch, Sidecar, StandIn, Tool, Wire, reserve_port, wait_until};

const IN_PLACE: &str = "[relay]\nrecords = \"in_place\"";
const SUITES: [&str; 3] = [
    "TLS_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// What OpenSSL's tools write among the data that they receive.
const NOTES: [&str; 3] = ["read R BLOCK\n", "Read BLOCK\n", "SSL_do_handshake -> 1\n"];

/// Text that no tool takes for one of its commands: lines of hexadecimal digits, different from each other.
fn text(seed: u32, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() + 1 < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(format!("{:016x}", state).bytes());
        if bytes.len() % 4096 == 0 {
            bytes.push(b'\n');
        }
    }
    bytes.truncate(length - 1);
    bytes.push(b'\n');
    bytes
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A server tunnel with records in place, and what stands in PostgreSQL's place.
fn server(pki: &Pki) -> (Sidecar, StandIn) {
    let upstream = StandIn::new();
    let config = server_config(&pki.issue("primary"), upstream.upstream(), IN_PLACE);
    (Sidecar::run("server", &config), upstream)
}

/// A client tunnel with records in place that dials this port.
fn client(pki: &Pki, port: u16) -> Sidecar {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let config = client_config(&pki.issue("standby"), address, IN_PLACE);
    Sidecar::run("client", &config)
}

fn s_client(server: &Sidecar, identity: &Identity, more: &[&str]) -> Tool {
    let address = server.address().to_string();
    let common = [
        "s_client",
        "-connect",
        &address,
        "-alpn",
        "postgresql",
        "-cert",
        path(&identity.cert),
        "-key",
        path(&identity.key),
        "-CAfile",
        path(&identity.ca),
        "-verify_return_error",
    ];
    Tool::start("openssl", &[&common, more].concat())
}

/// The tool as the frontend: its startup reaches PostgreSQL's place, whose answer reaches the tool.
fn open(tool: &mut Tool, upstream: &StandIn) -> Wire {
    tool.say(&replication_startup());
    let (mut backend, packet) = upstream.accept_startup();
    assert_eq!(packet, replication_startup());
    backend.send(&message(b'R', &[0; 4]));
    wait_for_output(tool, b"R\0\0\0\x08\0\0\0\0");
    backend
}

/// Waits until the tool has put out `wanted`.
#[track_caller]
fn wait_for_output(tool: &Tool, wanted: &[u8]) {
    let start = wanted.get(..60).unwrap_or(wanted).escape_ascii();
    wait_until(&format!("the output of \"{start}\""), || {
        let output = NOTES.iter().fold(tool.output(), without);
        output.windows(wanted.len()).any(|window| window == wanted)
    });
}

fn without(mut output: Vec<u8>, note: &&str) -> Vec<u8> {
    let note = note.as_bytes();
    while let Some(at) = output.windows(note.len()).position(|window| window == note) {
        output.drain(at..at + note.len());
    }
    output
}

/// So much each way, by turns.
#[track_caller]
fn talk(tool: &mut Tool, plain: &mut Wire, seed: u32, length: usize) {
    let there = text(seed, length);
    tool.say(&there);
    assert!(
        plain.read_exactly(length) == there,
        "towards the plain side"
    );
    let back = text(seed + 1000, length);
    plain.send(&back);
    wait_for_output(tool, &back);
}

/// The tool's command for a key update, its `n`th: `K` asks for one in return. It must be a read of its own.
#[track_caller]
fn update_openssl(tool: &mut Tool, command: &str, n: usize, trace: &Path) {
    tool.say(format!("{command}\n").as_bytes());
    wait_until("openssl to update its key", || updates(trace, ">>>") == n);
}

/// How many key updates the tool sent (`>>>`) or received (`<<<`), by its trace.
fn updates(trace: &Path, way: &str) -> usize {
    let trace = fs::read_to_string(trace).unwrap_or_default();
    trace
        .lines()
        .filter(|line| line.starts_with(way) && line.ends_with("KeyUpdate"))
        .count()
}

#[test]
fn openssl_as_the_client_with_every_suite_and_shape_of_records() {
    let pki = Pki::new();
    let (server, upstream) = server(&pki);
    let identity = pki.issue("standby");
    let shapes: [&[&str]; 4] = [
        &[],
        &["-record_padding", "1024"],
        &["-record_padding", "16384"],
        &["-max_send_frag", "512", "-split_send_frag", "512"],
    ];
    for (n, shape) in shapes.iter().enumerate() {
        for suite in SUITES {
            let more = [&["-ciphersuites", suite], *shape].concat();
            let mut tool = s_client(&server, &identity, &more);
            let mut backend = open(&mut tool, &upstream);
            talk(&mut tool, &mut backend, n as u32, 300);
            talk(&mut tool, &mut backend, n as u32 + 10, 300_000);
            // The tool ends it, in order.
            tool.say(b"Q\n");
            assert_eq!(backend.ending(), Ending::Eof, "{more:?}");
            assert!(tool.wait_for_exit());
        }
    }
    let ended = |event: &serde_json::Value| event["end"] == "finished";
    wait_until("every session to have ended in order", || {
        server.events().into_iter().filter(ended).count() == shapes.len() * SUITES.len()
    });
}

#[test]
fn openssl_as_the_client_updates_its_keys_and_asks_for_ours() {
    let pki = Pki::new();
    let (server, upstream) = server(&pki);
    let identity = pki.issue("standby");
    let scratch = Scratch::new("openssl");
    for suite in SUITES {
        let trace = scratch.path().join(suite);
        let more = ["-ciphersuites", suite, "-msg", "-msgfile", path(&trace)];
        let mut tool = s_client(&server, &identity, &more);
        let mut backend = open(&mut tool, &upstream);
        let mut asked = 0;
        for (n, command) in ["k", "K", "K", "k", "k", "K"].into_iter().enumerate() {
            update_openssl(&mut tool, command, n + 1, &trace);
            asked += usize::from(command == "K");
            talk(&mut tool, &mut backend, n as u32, 40_000);
            assert_eq!(updates(&trace, "<<<"), asked, "{suite}");
        }
        // PostgreSQL ends it: the tool reads the end, as close_notify has it.
        drop(backend);
        tool.wait_for_text("closed");
        assert!(tool.wait_for_exit());
        let trace = fs::read_to_string(&trace).unwrap();
        assert!(trace.contains("<<< TLS 1.3, Alert [length 0002], warning close_notify"));
    }
}

#[test]
fn a_silent_session_answers_when_openssl_asks_for_new_keys() {
    let pki = Pki::new();
    let (server, upstream) = server(&pki);
    let identity = pki.issue("standby");
    let scratch = Scratch::new("openssl");
    let trace = scratch.path().join("trace");
    let more = ["-msg", "-msgfile", path(&trace)];
    let mut tool = s_client(&server, &identity, &more);
    let mut backend = open(&mut tool, &upstream);
    for n in 1..=3 {
        update_openssl(&mut tool, "K", n, &trace);
        // PostgreSQL says nothing meanwhile, so no payload takes the answer along.
        wait_until("the answer to a key update", || updates(&trace, "<<<") == n);
    }
    talk(&mut tool, &mut backend, 0, 40_000);
}

#[test]
fn a_killed_openssl_is_passed_on_as_an_abort() {
    let pki = Pki::new();
    let (server, upstream) = server(&pki);
    let mut tool = s_client(&server, &pki.issue("standby"), &[]);
    let mut backend = open(&mut tool, &upstream);
    tool.kill();
    assert_eq!(backend.ending(), Ending::Reset);
    server.wait_for_log("without close_notify");
}

/// `openssl s_server` for one connection, on a free port.
fn s_server(identity: &Identity, more: &[&str]) -> (Tool, u16) {
    let port = reserve_port();
    let address = port.to_string();
    let common = [
        "s_server",
        "-accept",
        &address,
        "-naccept",
        "1",
        "-alpn",
        "postgresql",
        "-tls1_3",
        "-cert",
        path(&identity.cert),
        "-key",
        path(&identity.key),
        "-CAfile",
        path(&identity.ca),
        "-Verify",
        "1",
        "-verify_return_error",
    ];
    // Unbuffered, so that what it says of itself does not come in the midst of data.
    let command = [&["-o0", "openssl"], &common[..], more].concat();
    let tool = Tool::start("stdbuf", &command);
    tool.wait_for_text("ACCEPT");
    (tool, port)
}

/// The tool in the place of a PostgreSQL with TLS: a frontend's startup reaches it, and its answer the frontend.
fn open_through(client: &Sidecar, tool: &mut Tool) -> Wire {
    let mut frontend = Wire::tcp(client.address());
    frontend.send(&replication_startup());
    wait_for_output(tool, &replication_startup());
    // Not an R first: that is a command of s_server.
    let answer = [message(b'v', &[0; 8]), message(b'R', &[0; 4])].concat();
    tool.say(&answer);
    assert_eq!(frontend.read_exactly(answer.len()), answer);
    frontend
}

#[test]
fn openssl_as_the_server_with_key_updates_padding_and_tickets() {
    let pki = Pki::new();
    let identity = pki.issue("primary");
    let scratch = Scratch::new("openssl");
    let shapes: [&[&str]; 3] = [
        &["-num_tickets", "5"],
        &["-record_padding", "1024"],
        &["-max_send_frag", "512", "-split_send_frag", "512"],
    ];
    for (n, suite) in SUITES.into_iter().enumerate() {
        let trace = scratch.path().join(suite);
        let msg = ["-ciphersuites", suite, "-msg", "-msgfile", path(&trace)];
        let (mut tool, port) = s_server(&identity, &[&msg, shapes[n]].concat());
        let client = client(&pki, port);
        let mut frontend = open_through(&client, &mut tool);
        let mut asked = 0;
        for (n, command) in ["k", "K", "K", "k"].into_iter().enumerate() {
            update_openssl(&mut tool, command, n + 1, &trace);
            asked += usize::from(command == "K");
            talk(&mut tool, &mut frontend, n as u32, 40_000);
            assert_eq!(updates(&trace, "<<<"), asked, "{suite}");
        }
        if n == 0 {
            // The frontend ends it.
            frontend.finish();
            tool.wait_for_text("DONE");
            let trace = fs::read_to_string(&trace).unwrap();
            assert!(trace.contains("<<< TLS 1.3, Alert [length 0002], warning close_notify"));
            client.wait_for_log("closed in order");
        } else {
            // s_server closes its socket before it would say close_notify.
            tool.say(b"q\n");
            assert_eq!(frontend.ending(), Ending::Reset, "{suite}");
            client.wait_for_log("without close_notify");
        }
    }
}

fn gnutls_cli(server: &Sidecar, identity: &Identity, more: &[&str]) -> Tool {
    let port = server.address().port().to_string();
    let common = [
        "--inline-commands",
        "--alpn",
        "postgresql",
        "--x509certfile",
        path(&identity.cert),
        "--x509keyfile",
        path(&identity.key),
        "--x509cafile",
        path(&identity.ca),
        "--port",
        &port,
        "127.0.0.1",
    ];
    Tool::start("gnutls-cli", &[&common, more].concat())
}

#[test]
fn gnutls_as_the_client_with_key_updates_and_every_suite() {
    let pki = Pki::new();
    let (server, upstream) = server(&pki);
    let identity = pki.issue("standby");
    for (n, cipher) in ["AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305"]
        .into_iter()
        .enumerate()
    {
        let priority = format!("NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+{cipher}");
        let shapes: [&[&str]; 3] = [&["--ranges"], &["--recordsize", "1024"], &[]];
        let more = [&["--priority", &priority], shapes[n]].concat();
        let mut tool = gnutls_cli(&server, &identity, &more);
        tool.wait_for_text("Simple Client Mode");
        let mut backend = open(&mut tool, &upstream);
        // A command must stand on a line of its own.
        talk(&mut tool, &mut backend, 100, 100);
        for (n, command) in ["^rekey1^", "^rekey^", "^rekey^", "^rekey1^"]
            .into_iter()
            .enumerate()
        {
            tool.say(format!("{command}\n").as_bytes());
            wait_until("gnutls-cli to update its key", || {
                tool.text().matches("Rekey was completed").count() == n + 1
            });
            // With a record size set, gnutls-cli sends but one record of a line.
            talk(&mut tool, &mut backend, n as u32, 1000);
        }
        if n == 0 {
            // PostgreSQL ends it.
            drop(backend);
            tool.wait_for_text("Peer has closed the GnuTLS connection");
        } else {
            tool.hang_up();
            assert_eq!(backend.ending(), Ending::Eof, "{cipher}");
        }
    }
}

#[test]
fn gnutls_as_the_server_with_key_updates_and_padding() {
    let pki = Pki::new();
    let identity = pki.issue("primary");
    for (n, cipher) in ["AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305"]
        .into_iter()
        .enumerate()
    {
        let port = reserve_port();
        let number = port.to_string();
        let priority = format!("NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+{cipher}");
        let arguments = [
            &number,
            path(&identity.cert),
            path(&identity.key),
            path(&identity.ca),
            &priority,
            ["0", "1", "5000"][n],
        ];
        let mut tool = Tool::start(
            concat!(env!("CARGO_MANIFEST_DIR"), "/gnutls-server"),
            &arguments,
        );
        tool.wait_for_text("ACCEPT");
        let client = client(&pki, port);
        let mut frontend = open_through(&client, &mut tool);
        for (n, command) in ["k", "K", "K", "k"].into_iter().enumerate() {
            tool.say(format!("{command}\n").as_bytes());
            wait_until("the server to update its key", || {
                tool.text().matches("key updated").count() == n + 1
            });
            talk(&mut tool, &mut frontend, n as u32, 40_000);
        }
        if n == 0 {
            frontend.finish();
            tool.wait_for_text("close_notify received");
            assert!(tool.wait_for_exit());
        } else {
            tool.say(b"q\n");
            assert_eq!(frontend.ending(), Ending::Eof, "{cipher}");
            frontend.finish();
        }
        client.wait_for_log("closed in order");
    }
}
