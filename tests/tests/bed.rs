//! The test bed itself, without a sidecar: what the other tests stand on.

use std::time::{Duration, Instant};

use testbed::pki::Wrong;
use testbed::wire::{self, Ending};
use testbed::{Identity, Link, Namespaces, Node, Pki, StandIn, Stop, Wire, programs, run};

#[test]
fn standby_of_each_major_streams_and_is_promoted() {
    for major in programs::majors() {
        let mut primary = Node::builder("primary").version(major).init().started();
        let conninfo = primary.conninfo();
        let standby = Node::builder("standby")
            .version(major)
            .init_from_backup(&conninfo);
        standby.set_standby(&conninfo, None);
        let standby = standby.started();
        primary.wait_for_standby("standby");
        primary.query("create table t as select 1 as id");
        standby.catch_up_with(&primary);
        assert_eq!(standby.query("select id from t"), "1");
        primary.stop(Stop::Fast);
        standby.promote();
        standby.query("insert into t values (2)");
    }
}

#[test]
fn link_carries_delays_cuts_and_stalls() {
    let stand_in = StandIn::new();
    let link = Link::to(stand_in.address());
    let (mut near, mut far) = (Wire::tcp(link.address()), stand_in.accept());

    link.delay(Duration::from_millis(200));
    let start = Instant::now();
    near.send(b"slowly");
    assert_eq!(far.read_exactly(6), b"slowly");
    assert!(start.elapsed() >= Duration::from_millis(200));
    link.delay(Duration::ZERO);

    link.stall();
    far.send(b"later");
    link.resume();
    assert_eq!(near.read_exactly(5), b"later");

    link.cut();
    assert_eq!(
        (near.ending(), far.ending()),
        (Ending::Reset, Ending::Reset)
    );

    let (mut near, mut far) = (Wire::tcp(link.address()), stand_in.accept());
    link.end_without_close_notify();
    assert_eq!((near.ending(), far.ending()), (Ending::Eof, Ending::Eof));

    let (mut near, mut far) = (Wire::tcp(link.address()), stand_in.accept());
    near.finish();
    assert_eq!(far.ending(), Ending::Eof);
    far.send(b"x");
    assert_eq!(near.read_byte(), b'x');
    link.cut_after(100);
    let _ = far.try_send(&[0; 200]);
    assert_eq!(near.ending(), Ending::Reset);
}

#[test]
fn wire_speaks_to_a_real_server() {
    let node = Node::primary();
    let mut wire = Wire::tcp(node.address());
    wire.send(&wire::SSL_REQUEST);
    assert_eq!(wire.read_byte(), b'N');
    wire.send(&wire::startup(&[("database", "postgres")]));
    let refusal = wire.read_refusal();
    assert_eq!(refusal.sqlstate(), "28000");
    assert_eq!(
        refusal.message(),
        "no PostgreSQL user name specified in startup packet"
    );

    let mut wire = Wire::unix(&node.socket());
    wire.send(&wire::replication_startup());
    assert_eq!(wire.read_message().unwrap().0, b'R');
}

#[test]
fn namespaces_lose_packets_without_a_word() {
    let Some(hosts) = Namespaces::new() else {
        return;
    };
    let ping = |patience: &str| {
        let connect = format!("exec 3<>/dev/tcp/{}/9", Namespaces::RIGHT);
        run(std::process::Command::new("ip").args([
            "netns",
            "exec",
            &hosts.left(),
            "timeout",
            patience,
            "bash",
            "-c",
            &connect,
        ]))
    };
    assert!(ping("5").unwrap_err().contains("Connection refused"));
    hosts.cut();
    assert!(ping("1").unwrap_err().contains("exit status: 124"));
    hosts.mend();
    assert!(ping("5").unwrap_err().contains("Connection refused"));
}

#[test]
fn certificates_good_and_bad_can_be_shown() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let show = |identity: &Identity| {
        let near = Wire::tcp(stand_in.address());
        let far = stand_in.accept();
        std::thread::scope(|scope| {
            scope.spawn(|| far.serve_tls(identity).unwrap());
            near.tls(None, &[wire::ALPN]).unwrap().certificate_of_peer()
        })
    };
    let good = pki.issue("good");
    assert_eq!(show(&good), good.chain()[0]);
    for (wrong, words) in [
        (Wrong::Expired, "Not After : Jan  1 00:00:00 2021 GMT"),
        (Wrong::NotYetValid, "Not Before: Jan  1 00:00:00 2099 GMT"),
        (Wrong::Purpose, "E-mail Protection"),
        (Wrong::Version1, "Version: 1 (0x0)"),
        (Wrong::NoName, "TLS Web Server Authentication"),
        (Wrong::OtherName, "DNS:elsewhere.test"),
        (Wrong::SelfSigned, "Issuer: CN = selfsigned"),
    ] {
        let bad = pki.issue_wrong(&format!("{wrong:?}").to_lowercase(), wrong);
        assert_eq!(show(&bad), bad.chain()[0]);
        let mut inspect = std::process::Command::new("openssl");
        let text = run(inspect
            .args(["x509", "-noout", "-text", "-in"])
            .arg(&bad.cert))
        .unwrap();
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}
