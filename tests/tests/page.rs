//! The page for people in Chromium, with real streams behind it: what it says is what is so.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};

use testbed::pki::Wrong;
use testbed::tunnel::{client_config, server_config};
use testbed::{Browser, Node, Pki, Sidecar, Wire, reserve_port, wire};

fn admin() -> (SocketAddr, String) {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, reserve_port()));
    (at, format!("[admin]\nlisten = \"{at}\"\nstatus = true\n"))
}

/// A primary, a standby that replies every second, and a sidecar beside each; the page is the primary's.
struct Watched {
    at: SocketAddr,
    near: SocketAddr,
    primary: Node,
    standby: Node,
    server: Option<Sidecar>,
    client: Option<Sidecar>,
}

impl Watched {
    fn new(pki: &Pki, standby_seconds: Option<i64>) -> Self {
        let primary = Node::primary();
        let (at, admin_of_server) = admin();
        let (near, admin_of_client) = admin();
        let server = server_config(
            &pki.issue("primary"),
            primary.socket().display(),
            &format!("[[server.allow]]\nidentity = \"dns:standby.test\"\n{admin_of_server}"),
        );
        let server = Sidecar::run("server", &server);
        let identity = match standby_seconds {
            Some(seconds) => pki.issue_for_seconds("standby", -10 * seconds, seconds),
            None => pki.issue("standby"),
        };
        let client = client_config(&identity, server.address(), &admin_of_client);
        let client = Sidecar::run("client", &client);
        let standby = Node::builder("standby").init_from_backup(&client.conninfo());
        standby.set_standby(&client.conninfo(), None);
        standby.append_conf("wal_receiver_status_interval = 1s");
        let standby = standby.started();
        primary.wait_for_standby("standby");
        Self {
            at,
            near,
            primary,
            standby,
            server: Some(server),
            client: Some(client),
        }
    }

    fn write(&self, rows: u32) {
        self.primary.query(&format!("select pg_logical_emit_message(true, 'x', repeat('x', 1000)) from generate_series(1, {rows})"));
    }
}

fn url(at: SocketAddr) -> String {
    format!("http://{at}/")
}

const STREAMING: &str = "document.querySelector('#streaming .big')?.innerText == 'Streaming'";

#[test]
fn page_shows_a_live_stream_as_live() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let pki = Pki::new();
    let watched = Watched::new(&pki, None);
    watched.standby.catch_up_with(&watched.primary);
    browser.show(1280, 900, false);
    browser.open(&url(watched.at));
    browser.wait_until("the stream to be shown", STREAMING);
    browser.wait_until(
        "it to be said to be live",
        "document.querySelector('#fresh').dataset.state == 'good'",
    );
    assert!(browser.text("#streaming").contains("to dns:standby.test"));
    let stream = browser.text(".stream");
    for told in [
        "postgres as standby",
        "physical",
        "timeline 1",
        "PostgreSQL 15",
    ] {
        assert!(stream.contains(told), "{told} is not in {stream}");
    }

    // What it shows moves as WAL is written, and is what the server says.
    let sent = browser.text(".positions td.lsn");
    watched.write(20_000);
    watched.standby.catch_up_with(&watched.primary);
    let lsn = watched
        .primary
        .query("select sent_lsn from pg_stat_replication");
    assert_ne!(sent, lsn);
    let all_there = format!(
        "[...document.querySelectorAll('.positions td.lsn')].every((lsn) => lsn.innerText == '{lsn}')"
    );
    browser.wait_until("all positions to follow", &all_there);
    browser.wait_until(
        "a rate to be drawn",
        "/at most [0-9.]+ [KM]iB/.test(document.querySelector('.stream svg[role=img]').ariaLabel)",
    );
    browser.wait_until(
        "it to have caught up",
        "document.querySelector('#behind .big').innerText == 'Caught up'",
    );

    let certificates = browser.text("#certificates");
    for whose in [
        "This node",
        "dns:primary.test",
        "CA",
        "Peer",
        "dns:standby.test",
    ] {
        assert!(
            certificates.contains(whose),
            "{whose} is not in {certificates}"
        );
    }
    assert_eq!(browser.text("#wrong .big"), "Nothing");
    browser.picture("live-light");
    browser.show(1280, 900, true);
    browser.picture("live-dark");
    for width in [375, 320] {
        browser.show(width, 800, width == 320);
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64() <= Some(width.into()),
            "{wide} wide at {width}"
        );
        browser.picture(&format!("live-{width}"));
    }
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let requests = browser.requests();
    assert!(
        requests
            .iter()
            .all(|asked| asked.starts_with(&url(watched.at))),
        "{requests:?}"
    );
}

#[test]
fn page_shows_a_lagging_standby_as_lagging() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let pki = Pki::new();
    let watched = Watched::new(&pki, None);
    watched.standby.query("select pg_wal_replay_pause()");
    watched.write(20_000);
    for at in [watched.at, watched.near] {
        browser.show(1280, 900, false);
        browser.open(&url(at));
        let late = "document.querySelector('#behind .big .warn') != null";
        browser.wait_until("lag to be shown", late);
        let behind = browser.text("#behind");
        assert!(
            behind.contains("in apply") && behind.contains("Replay is paused, or slow"),
            "{behind}"
        );
        let problem = browser.text(".problem");
        assert!(
            problem.contains("in apply") && problem.contains("since "),
            "{problem}"
        );
        assert!(browser.text(".stream .state").contains("behind"));
        // The history is the proxy's: it was there before the page was opened.
        let drawn = browser.eval(
            "document.querySelector('.line.apply[d]').getAttribute('d').split(/[ML]/).length",
        );
        assert!(drawn.as_u64() > Some(5), "{drawn} points");
    }
    browser.open(&url(watched.at));
    browser.wait_until("the stream to be shown", STREAMING);
    browser.picture("lagging-light");
    browser.show(1280, 900, true);
    browser.picture("lagging-dark");
    browser.show(375, 800, false);
    browser.picture("lagging-375");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    watched.standby.query("select pg_wal_replay_resume()");
    watched.standby.catch_up_with(&watched.primary);
    browser.wait_until(
        "the lag to be over",
        "document.querySelector('#problems').hidden",
    );
}

#[test]
fn page_shows_an_expiring_certificate_and_tells_when_it_is_cut_off() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let pki = Pki::new();
    let mut watched = Watched::new(&pki, Some(3600));
    browser.show(1280, 900, false);
    browser.open(&url(watched.at));
    browser.wait_until("the stream to be shown", STREAMING);
    browser.wait_until(
        "a warning to be shown",
        "document.querySelector('#wrong .big .warn') != null",
    );
    let problem = browser.text(".problem");
    assert!(
        problem.contains("dns:standby.test") && problem.contains("Do: "),
        "{problem}"
    );
    let first = browser.text("#certificates tbody tr");
    assert!(
        first.contains("dns:standby.test") && first.contains("min"),
        "{first}"
    );
    browser.picture("expiring-light");
    browser.show(375, 800, true);
    browser.picture("expiring-375-dark");
    browser.show(1280, 900, false);
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");

    // The stream is cut: when, and why.
    browser.open(&url(watched.near));
    browser.wait_until("the stream to be shown", STREAMING);
    drop(watched.server.take());
    browser.wait_until(
        "the end to be shown",
        "document.querySelector('#streaming .big')?.innerText == 'Not streaming'",
    );
    let problem = browser.text(".problem");
    assert!(
        problem.contains("The stream of dns:primary.test ended"),
        "{problem}"
    );
    browser.picture("ended-light");

    // The proxy behind the page is gone: nothing old is shown as if it were of now.
    browser.open(&url(watched.near));
    browser.wait_until(
        "the page to be live",
        "document.querySelector('#fresh').dataset.state == 'good'",
    );
    let config = watched.client.take().unwrap().config();
    browser.wait_until("it to say so", "!document.querySelector('#gone').hidden");
    let said = browser.text("#gone") + &browser.text("#streaming") + &browser.text("#fresh");
    assert!(
        said.contains("No answer from pgtlsproxy")
            && said.contains("Not known")
            && said.contains("not live"),
        "{said}"
    );
    browser.picture("gone-light");
    let _client = Sidecar::run("client", &config);
    browser.wait_until("the page to be live again", "document.querySelector('#fresh').dataset.state == 'good' && document.querySelector('#gone').hidden");
}

#[test]
fn what_peers_call_themselves_is_shown_as_text() {
    const CERTIFICATE: &str = "<img src=x onerror=alert(1)>";
    const ROLE: &str = "<script>alert(1)</script>\"'&lt;";
    const NAME: &str = "\"><b onmouseover='alert(1)'>";
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let pki = Pki::new();
    let primary = Node::primary();
    let quoted = ROLE.replace('"', "\"\"");
    primary.query(&format!("create role \"{quoted}\" replication login"));
    let (at, admin) = admin();
    let config = server_config(&pki.issue("primary"), primary.socket().display(), &admin);
    let server = Sidecar::run("server", &config);
    let hostile = pki.issue_wrong(CERTIFICATE, Wrong::NoName);
    let mut standby = Wire::direct_tls(server.address(), &hostile);
    standby.send(&wire::startup(&[
        ("user", ROLE),
        ("replication", "true"),
        ("application_name", NAME),
    ]));
    while standby.read_message().unwrap().0 != b'Z' {}
    let start = format!("START_REPLICATION PHYSICAL {}\0", primary.lsn());
    standby.send(&wire::message(b'Q', start.as_bytes()));

    browser.show(1280, 900, false);
    browser.open(&url(at));
    browser.wait_until("the stream to be shown", STREAMING);
    let stream = browser.text(".stream");
    // As the log shows it: quotes are escaped there.
    for told in [CERTIFICATE, ROLE, NAME] {
        let told = told.replace('"', "\\\"");
        assert!(stream.contains(&told), "{told} is not in {stream}");
    }
    let elements = browser.eval("document.querySelectorAll('img, b, script').length");
    assert_eq!(elements, 1, "our own script alone");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}
