//! A node comes by one line, and nothing but that line, once, in time and undamaged, lets it in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;

use testbed::enrolment::{Inviting, inviting_daemon, inviting_daemon_at, join};
use testbed::programs::pgtlsproxy;
use testbed::renewal::renew;
use testbed::wire::{ALPN_NODE, Ending};
use testbed::{Identity, Node, Pki, Scratch, Sidecar, StandIn, Wire, run};

/// A CA, a daemon beside it, and a stand-in for its PostgreSQL.
fn site() -> (Pki, Sidecar, StandIn) {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let daemon = inviting_daemon(&pki, &pki.issue("db1"), &stand_in.upstream(), "");
    (pki, daemon, stand_in)
}

/// Nothing came of it: no file, and a word with the command that makes a new token.
#[track_caller]
fn assert_in_vain(joined: Result<String, String>, id: &str, dir: &Scratch) {
    let said = joined.expect_err("it was let in");
    assert!(said.contains(&format!("[{id}]")), "{id}: {said}");
    assert!(said.contains("pgtlsproxy invite"), "no way out: {said}");
    let left: Vec<_> = fs::read_dir(dir.path()).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_standby_joins_by_one_line_and_streams() {
    let primary = Node::primary();
    let pki = Pki::new();
    let socket = primary.socket().display().to_string();
    let daemon = inviting_daemon(
        &pki,
        &pki.issue("db1"),
        &socket,
        "[[server.allow]] # by hand\nidentity = \"cn:somebody\"\n",
    );
    let mut inviting = Inviting::start(
        &daemon,
        &pki,
        "standby1",
        &["--san", "standby1.test", "--from", "127.0.0.0/8"],
    );
    let token = inviting.token();

    let dir = Scratch::new("joined");
    let said = join(
        dir.path(),
        &token,
        &["--postgres", "/nowhere/.s.PGSQL.5432"],
    )
    .unwrap();
    assert!(
        said.contains("Next: pgtlsproxy run") && said.contains("setup standby"),
        "{said}"
    );
    assert!(
        !said.contains("warning: 127.0.0.1"),
        "admitted, and PostgreSQL answers: {said}"
    );
    let (status, said) = inviting.end();
    assert_eq!(status, 0, "{said}");
    assert!(
        said.contains("standby1 has joined from 127.0.0.1"),
        "{said}"
    );
    let config = daemon.config();
    assert!(
        config.contains("# by hand") && config.contains("cn:somebody"),
        "{config}"
    );
    assert!(
        config.contains("identity = \"cn:standby1\"\nfrom = [\"127.0.0.0/8\"]"),
        "{config}"
    );
    let key = fs::metadata(dir.path().join("node.key")).unwrap();
    assert!([0o600, 0o640].contains(&(key.permissions().mode() & 0o777)));
    let config = fs::metadata(dir.path().join("pgtlsproxy.toml")).unwrap();
    assert_eq!(config.permissions().mode() & 0o777, 0o644);
    let mut check = Command::new(pgtlsproxy());
    run(check
        .args(["check", "--config"])
        .arg(dir.path().join("pgtlsproxy.toml")))
    .unwrap();

    let conninfo = format!(
        "host={} port=5442 user=postgres",
        dir.path().join("run").display()
    );
    let sidecar = Sidecar::run_there("standby1", dir);
    let standby = Node::standby("standby1", &conninfo);
    primary.wait_for_standby("standby1");
    primary.query("create table t as select generate_series(1, 1000) i");
    standby.catch_up_with(&primary);
    assert_eq!(standby.query("select count(*) from t"), "1000");
    sidecar.wait_for_log("CRLs are exchanged with this node");
}

#[test]
fn a_token_counts_once() {
    let (pki, daemon, _stand_in) = site();
    let mut inviting = Inviting::start(&daemon, &pki, "standby1", &[]);
    let token = inviting.token();
    let (first, second) = (Scratch::new("first"), Scratch::new("second"));
    join(first.path(), &token, &[]).unwrap();
    assert_eq!(inviting.end().0, 0);
    assert_in_vain(join(second.path(), &token, &[]), "E10", &second);
    let said = join(first.path(), &token, &[]).unwrap_err();
    assert!(said.contains("exists already"), "{said}");
}

#[test]
fn address_and_name_in_the_line_are_found_by_themselves() {
    let (pki, stand_in, port) = (Pki::new(), StandIn::new(), testbed::reserve_port());
    let identity = pki.issue_for("db1", &["localhost", "db1.test"]);
    let daemon = inviting_daemon_at(port, &pki, &identity, &stand_in.upstream(), "");
    let config_after = |inviting: &mut Inviting| {
        let (token, dir) = (inviting.token(), Scratch::new("joined"));
        join(dir.path(), &token, &[]).unwrap();
        fs::read_to_string(dir.path().join("pgtlsproxy.toml")).unwrap()
    };
    let config = config_after(&mut Inviting::with(&daemon, &pki, &["standby1"]));
    assert!(
        config.contains(&format!("connect = [\"localhost:{port}\"]")),
        "{config}"
    );
    assert!(!config.contains("server_name"), "{config}");
    assert!(config.contains("identity = \"cn:db1\""), "{config}");
    // The certificate has no such address: the line says which name to expect.
    let config = config_after(&mut Inviting::start(&daemon, &pki, "standby2", &[]));
    assert!(config.contains("server_name = \"localhost\""), "{config}");
    assert!(
        config.contains("identity = \"cn:standby1\""),
        "every member is admitted: {config}"
    );
}

#[test]
fn wrong_arguments_do_not_cost_the_token() {
    let (pki, daemon, _stand_in) = site();
    let mut inviting = Inviting::start(&daemon, &pki, "standby1", &[]);
    let (token, dir) = (inviting.token(), Scratch::new("joined"));
    let said = join(dir.path(), &token, &["--postgres", "db9.test:5432"]).unwrap_err();
    assert!(said.contains("not on this host"), "{said}");
    let said = join(std::path::Path::new("/proc/nowhere"), &token, &[]).unwrap_err();
    assert!(said.contains("the token has not been used"), "{said}");
    join(dir.path(), &token, &[]).unwrap();
    assert_eq!(inviting.end().0, 0);
}

#[test]
fn a_late_token_gets_nothing_and_the_inviter_is_told() {
    let (pki, daemon, _stand_in) = site();
    let mut inviting = Inviting::start(&daemon, &pki, "standby1", &["--valid", "1s"]);
    let token = inviting.token();
    let (status, said) = inviting.end();
    assert_eq!(status, 1);
    assert!(
        said.contains("has not joined in time") && said.contains("pgtlsproxy invite standby1"),
        "{said}"
    );
    let dir = Scratch::new("late");
    testbed::wait_until("the token's second to be over", || {
        let said = join(dir.path(), &token, &[]).unwrap_err();
        assert!(said.contains("[E05]") || said.contains("[E11]"), "{said}");
        said.contains("[E05]")
    });
    assert_in_vain(join(dir.path(), &token, &[]), "E05", &dir);
}

#[test]
fn a_damaged_token_is_told_at_once_and_never_sent() {
    let (pki, daemon, _stand_in) = site();
    let mut inviting = Inviting::start(&daemon, &pki, "standby1", &[]);
    let token = inviting.token();
    let dir = Scratch::new("damaged");
    assert_in_vain(
        join(dir.path(), &token[..token.len() - 20], &[]),
        "E03",
        &dir,
    );
    let last = if token.ends_with('A') { 'B' } else { 'A' };
    let mut changed = token.clone();
    changed.replace_range(60..61, if &token[60..61] == "x" { "y" } else { "x" });
    assert_in_vain(join(dir.path(), &changed, &[]), "E04", &dir);
    assert_in_vain(
        join(
            dir.path(),
            &format!("{}{last}", &token[..token.len() - 1]),
            &[],
        ),
        "E04",
        &dir,
    );
    assert_in_vain(join(dir.path(), "hello", &[]), "E01", &dir);
    assert!(
        !inviting.log().text().contains("in vain"),
        "{}",
        inviting.log().text()
    );
    // It still counts, undamaged.
    join(dir.path(), &token, &[]).unwrap();
}

#[test]
fn a_withdrawn_invitation_lets_nobody_in() {
    let (pki, daemon, _stand_in) = site();
    let mut inviting = Inviting::start(&daemon, &pki, "standby1", &[]);
    let token = inviting.token();
    drop(inviting);
    daemon.wait_for_log("an invitation has ended");
    let dir = Scratch::new("withdrawn");
    assert_in_vain(join(dir.path(), &token, &[]), "E13", &dir);
}

/// Accepts one connection in the inviting node's place.
fn in_between(stand_in: &StandIn, identity: &Identity) -> std::io::Result<Wire> {
    stand_in.accept().serve_tls_for(identity, ALPN_NODE)
}

#[test]
fn a_server_of_another_ca_learns_nothing() {
    let (pki, daemon, _stand_in) = site();
    let other = Pki::new();
    let identity = other.with_ca_behind(&other.issue("db1"));
    let mitm = StandIn::new();
    let public = mitm.upstream();
    let mut inviting = Inviting::with(&daemon, &pki, &["standby1", "--public", &public]);
    let token = inviting.token();
    let dir = Scratch::new("other-ca");
    let served = thread::spawn(move || in_between(&mitm, &identity).map(|mut wire| wire.ending()));
    assert_in_vain(join(dir.path(), &token, &[]), "E39", &dir);
    let served = served.join().unwrap();
    assert!(served.is_err(), "the handshake must fail: {served:?}");
}

#[test]
fn a_relaying_man_in_the_middle_gets_nothing_and_is_reported() {
    let (pki, daemon, _stand_in) = site();
    // The worst one: with a certificate of the very CA, for the very name.
    let identity = pki.with_ca_behind(&pki.issue("db2"));
    let mitm = StandIn::new();
    let public = mitm.upstream();
    let mut inviting = Inviting::with(&daemon, &pki, &["standby1", "--public", &public]);
    let token = inviting.token();
    let address = daemon.address();
    let relay = thread::spawn(move || {
        for _ in 0..3 {
            let mut victim = in_between(&mitm, &identity).unwrap();
            let request = victim.read_body();
            assert!(!String::from_utf8_lossy(&request).contains("PRIVATE KEY"));
            let mut onward = Wire::node(address, None);
            onward.send_body(&request);
            let answer = onward.read_body();
            victim.send_body(&answer);
            assert!(
                !String::from_utf8_lossy(&answer).contains("CERTIFICATE"),
                "it got a certificate"
            );
            victim.ending();
        }
        mitm
    });
    let dir = Scratch::new("relayed");
    for _ in 0..3 {
        assert_in_vain(join(dir.path(), &token, &[]), "E18", &dir);
    }
    let mitm = relay.join().unwrap();
    let (status, said) = inviting.end();
    assert_eq!(status, 1);
    assert!(
        said.contains("tried in vain") && said.contains("void"),
        "{said}"
    );
    assert!(
        !pki.dir().join("standby1.crt").exists(),
        "nothing was signed"
    );
    // Whoever holds the line now is told.
    let identity = pki.with_ca_behind(&pki.issue("db2"));
    let relay = thread::spawn(move || {
        let mut victim = in_between(&mitm, &identity).unwrap();
        let request = victim.read_body();
        let mut onward = Wire::node(address, None);
        onward.send_body(&request);
        victim.send_body(&onward.read_body());
        victim.ending();
    });
    assert_in_vain(join(dir.path(), &token, &[]), "E12", &dir);
    relay.join().unwrap();
}

#[test]
fn an_answer_of_who_does_not_know_the_secret_is_not_believed() {
    let (pki, daemon, _stand_in) = site();
    let identity = pki.with_ca_behind(&pki.issue("db2"));
    let mitm = StandIn::new();
    let public = mitm.upstream();
    let mut inviting = Inviting::with(&daemon, &pki, &["standby1", "--public", &public]);
    let token = inviting.token();
    let server = thread::spawn(move || {
        let mut victim = in_between(&mitm, &identity).unwrap();
        victim.read_body();
        let proof = "00".repeat(32);
        victim.send_body(
            format!("{{\"answer\":\"enrolled\",\"grant\":\"{{}}\",\"proof\":\"{proof}\"}}")
                .as_bytes(),
        );
        victim.ending();
    });
    let dir = Scratch::new("unproven");
    assert_in_vain(join(dir.path(), &token, &[]), "E39", &dir);
    server.join().unwrap();
}

#[test]
fn invitations_that_wait_are_listed() {
    let (pki, daemon, _stand_in) = site();
    let list = || {
        let mut command = Command::new(pgtlsproxy());
        run(command
            .args(["invite", "--list", "--dir"])
            .arg(daemon.dir()))
        .unwrap()
    };
    assert_eq!(list(), "");
    let mut first = Inviting::start(&daemon, &pki, "standby1", &[]);
    let mut second = Inviting::start(&daemon, &pki, "standby2", &["--valid", "1h"]);
    first.token();
    second.token();
    let listed = list();
    let names: Vec<_> = listed
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["standby1", "standby2"]);
}

#[test]
fn a_node_is_invited_anew_only_when_told_so_and_loses_its_old_certificate() {
    let (pki, daemon, _stand_in) = site();
    let old = pki.issue("standby1");
    let mut refused = Inviting::start(&daemon, &pki, "standby1", &[]);
    let (status, said) = refused.end();
    assert_eq!(status, 1);
    assert!(
        said.contains("[E09]") && said.contains("--replace"),
        "{said}"
    );
    let mut inviting = Inviting::start(&daemon, &pki, "standby1", &["--replace"]);
    let token = inviting.token();
    let kept = Scratch::new("old");
    for file in [&old.cert, &old.key, &old.ca] {
        fs::copy(file, kept.path().join(file.file_name().unwrap())).unwrap();
    }
    let old_certificate = fs::read(&old.cert).unwrap();
    let dir = Scratch::new("anew");
    // What renewals that failed have left of the node before.
    let left = ["node.key.next", "node.crt.renewal"].map(|name| dir.path().join(name));
    left.iter().for_each(|file| fs::write(file, "{}").unwrap());
    join(dir.path(), &token, &["--force"]).unwrap();
    left.iter()
        .for_each(|file| assert!(!file.exists(), "{file:?}"));
    assert_eq!(inviting.end().0, 0);
    assert_ne!(fs::read(&old.cert).unwrap(), old_certificate);
    daemon.reload();
    let dead = Identity::in_dir(kept, "standby1");
    testbed::wait_until("the old certificate to be refused", || {
        let mut wire = Wire::node(daemon.address(), Some(&dead));
        let _ = wire.try_send(&[0; 4]);
        matches!(wire.ending(), Ending::Alert(_) | Ending::Reset)
    });
}

#[test]
fn without_a_running_daemon_nothing_is_invited_and_nothing_written() {
    let (pki, mut daemon, _stand_in) = site();
    let before = daemon.config();
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for_exit(std::time::Duration::from_secs(20));
    let public = "db1.test:5443";
    let mut inviting = Inviting::with(&daemon, &pki, &["standby1", "--public", public]);
    let (status, said) = inviting.end();
    assert_eq!(status, 1);
    assert!(
        said.contains("the daemon does not answer") && said.contains("systemctl start"),
        "{said}"
    );
    assert_eq!(daemon.config(), before);
}

/// `pgtlsproxy renew` of a node that joined, whose daemon need not run for that.
fn renew_in(dir: &Scratch) -> String {
    let mut command = Command::new(pgtlsproxy());
    let config = dir.path().join("pgtlsproxy.toml");
    let output = command.args(["renew", "--config"]).arg(config).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn only_who_was_invited_is_let_in_by_the_others_and_for_no_more_than_here() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let monitoring =
        "[[server.allow]]\nidentity = \"cn:monitoring\"\nreplication = []\nordinary = true\n";
    let daemon = inviting_daemon(&pki, &pki.issue("db1"), &stand_in.upstream(), monitoring);
    let joined = |name: &str, more: &[&str]| {
        let mut inviting = Inviting::start(&daemon, &pki, name, more);
        let (token, dir) = (inviting.token(), Scratch::new("joined"));
        join(dir.path(), &token, &[]).unwrap();
        assert_eq!(inviting.end().0, 0);
        dir
    };
    let config = |dir: &Scratch| fs::read_to_string(dir.path().join("pgtlsproxy.toml")).unwrap();
    let change = |dir: &Scratch, change: &dyn Fn(&str) -> String| {
        fs::write(dir.path().join("pgtlsproxy.toml"), change(&config(dir))).unwrap();
    };
    let first = joined("standby1", &[]);
    pki.issue("monitoring");
    let second = joined("standby2", &["--san", "standby2.test"]);
    let now = config(&second);
    assert!(
        now.contains("cn:db1") && now.contains("cn:standby1"),
        "{now}"
    );
    assert!(!now.contains("cn:monitoring"), "{now}");
    joined("standby3", &["--allow", "physical"]);
    let (status, said) = renew(&daemon, Some(&pki), &[]);
    assert_eq!(status, 0, "{said}");

    // Somebody has let the second in there already, by another name and for less.
    let narrow = "[[server.allow]]\nidentity = \"dns:standby2.test\"\napplication_names = [\"standby2\"]\n\n[[client]]";
    change(&first, &|text| text.replace("[[client]]", narrow));
    let said = renew_in(&first);
    assert!(said.contains("Let in from now on: standby3"), "{said}");
    let now = config(&first);
    assert!(
        !now.contains("cn:standby2") && !now.contains("cn:monitoring"),
        "{now}"
    );
    assert!(
        now.contains("identity = \"cn:standby3\"\nreplication = [\"physical\"]"),
        "{now}"
    );

    // Where no rule is like another, it is told, and once.
    let bound = |text: &str| text.replace("identity = ", "from = [\"127.0.0.1/32\"]\nidentity = ");
    change(&second, &bound);
    let said = renew_in(&second);
    assert!(
        said.contains("[K28]") && said.contains("standby3"),
        "{said}"
    );
    let said = renew_in(&second);
    assert!(!said.contains("[K28]"), "{said}");
}
