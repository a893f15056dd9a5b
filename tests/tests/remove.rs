//! A node goes by one command: its stream ends, the other's does not, and its key is worth nothing on any node. A run that
//! was cut short is gone on with by the next.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::enrolment::{Inviting, inviting_daemon, inviting_daemon_at, join};
use testbed::programs::{majors, pgtlsproxy};
use testbed::setup::Prepared;
use testbed::wire::{ALPN, ALPN_NODE, Ending};
use testbed::{
    Identity, Node, Pki, Scratch, Sidecar, StandIn, Stop, Wire, site, wait_for, wait_until,
};

/// What is promised, from the change of the CRL to the end of a session.
const PROMISED: Duration = Duration::from_secs(2);

/// `remove` beside this daemon and CA.
fn remove(daemon: &Sidecar, pki: &Pki, arguments: &[&str]) -> Command {
    let mut command = Command::new(pgtlsproxy());
    command.arg("remove").args(arguments);
    command
        .arg("--dir")
        .arg(daemon.dir())
        .arg("--pki")
        .arg(pki.dir());
    command
}

/// Its exit status and all it said.
fn said(command: &mut Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

/// Whether this identity is refused, for a session and for the node channel.
fn is_refused(server: SocketAddr, identity: &Identity) -> bool {
    let refused = [ALPN, ALPN_NODE].map(|alpn| {
        let Ok(mut wire) = Wire::tcp(server).tls(Some(identity), &[alpn]) else {
            return true;
        };
        // Too short for any request, and then the end: whoever was let in is closed in order.
        let _ = wire.try_send(&[0]);
        wire.finish();
        matches!(wire.ending(), Ending::Alert(_) | Ending::Reset)
    });
    assert_eq!(refused[0], refused[1], "{server}");
    refused[0]
}

fn server_address(sidecar: &Sidecar) -> SocketAddr {
    let mut addresses = sidecar.addresses().iter();
    addresses.find_map(|address| address.parse().ok()).unwrap()
}

/// A node that joined by an invitation, and its standby, which streams.
struct Member {
    sidecar: Sidecar,
    standby: Node,
}

impl Member {
    fn join(daemon: &Sidecar, pki: &Pki, primary: &Node, name: &str) -> Self {
        let sans = ["--san", "localhost", "--san", "127.0.0.1"];
        let mut inviting = Inviting::start(daemon, pki, name, &sans);
        let token = inviting.token();
        let dir = Scratch::new(name);
        join(
            dir.path(),
            &token,
            &["--postgres", "/nowhere/.s.PGSQL.5432"],
        )
        .unwrap();
        assert_eq!(inviting.end().0, 0);
        primary.query(&format!(
            "select pg_create_physical_replication_slot('{name}')"
        ));
        let socket = dir.path().join("run");
        let conninfo = format!("host={} port=5442 user=replicator", socket.display());
        let sidecar = Sidecar::run_there(name, dir);
        let standby = Node::builder(name)
            .version(primary.major())
            .init_from_backup(&conninfo);
        standby.set_standby(&conninfo, Some(name));
        let standby = standby.started();
        primary.wait_for_standby(name);
        Self { sidecar, standby }
    }

    /// Key and certificate, as a thief has them.
    fn stolen(&self) -> Identity {
        let loot = Scratch::new("loot");
        for file in ["node.crt", "node.key", "ca.crt"] {
            fs::copy(self.sidecar.dir().join(file), loot.path().join(file)).unwrap();
        }
        Identity::in_dir(loot, "node")
    }
}

#[test]
fn each_of_three_nodes_refuses_the_key_of_the_one_that_was_removed() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let primary = site::primary(major, "synchronous_commit = local\n");
        let (pki, port) = (Pki::new(), testbed::reserve_port());
        let socket = primary.socket().display().to_string();
        let rules = "# of the site\n[[server.allow]]\nidentity = \"cn:backup\" # by hand\n";
        let daemon = inviting_daemon_at(port, &pki, &pki.issue("db1"), &socket, rules);
        let [gone, kept] =
            ["standby1", "standby2"].map(|name| Member::join(&daemon, &pki, &primary, name));
        primary.append_conf("synchronous_standby_names = 'standby1'\nsynchronous_commit = on");
        primary.reload();
        primary.poll_query_until(
            "select sync_state from pg_stat_replication where application_name = 'standby1'",
            "sync",
        );
        let stolen = gone.stolen();
        let servers = [&daemon, &gone.sidecar, &kept.sidecar].map(server_address);
        for server in servers {
            assert!(!is_refused(server, &stolen), "{server}");
        }
        let stream = "select pid, backend_start from pg_stat_replication where application_name = 'standby2'";
        let session = || {
            let sessions = daemon.sessions("physical");
            let mut of_kept = sessions
                .iter()
                .filter(|session| session["application_name"] == "standby2");
            of_kept.next().unwrap()["id"].clone()
        };
        let before = (primary.query(stream), session());
        let crl = fs::read(pki.crl()).unwrap();
        let config = daemon.config();

        let data = primary.data().display().to_string();
        let (status, plan) = said(&mut remove(
            &daemon,
            &pki,
            &["standby1", "--pgdata", &data, "--dry-run"],
        ));
        assert_eq!(status, 0, "{plan}");
        for step in [
            "revoke 1 certificate",
            "take 1 allow rule",
            "end its 1 session",
            "drop the replication slot standby1",
        ] {
            assert!(plan.contains(step), "{step} is not in {plan}");
        }
        assert_eq!(
            (fs::read(pki.crl()).unwrap(), daemon.config()),
            (crl.clone(), config)
        );

        let mark = daemon.log().mark();
        let marks = [&gone.sidecar, &kept.sidecar].map(|sidecar| sidecar.log().mark());
        let removing = thread::spawn({
            let mut command = remove(&daemon, &pki, &["standby1", "--pgdata", &data, "--yes"]);
            move || said(&mut command)
        });
        wait_until("the CRL to be written", || {
            fs::read(pki.crl()).unwrap() != crl
        });
        let changed = Instant::now();
        wait_for("the stream to end", PROMISED, || {
            daemon
                .log()
                .after(mark)
                .contains("\"end\":\"dismissed\"")
                .then_some(())
        });
        println!("ended after {:?}", changed.elapsed());
        let (status, text) = removing.join().unwrap();
        assert_eq!(status, 0, "{text}");
        for words in [
            "1 certificate(s) revoked",
            "1 allow rule(s) taken out",
            "1 session(s) ended",
            "known to: standby2",
            "slot standby1 dropped",
            "synchronous_standby_names = 'standby1' still names it",
            "commits hang now",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }

        for (sidecar, mark) in [&gone.sidecar, &kept.sidecar].into_iter().zip(marks) {
            sidecar.log().wait_for_after(mark, "\"reloaded\"");
        }
        for server in servers {
            assert!(is_refused(server, &stolen), "{server}");
        }
        // By the channel: nobody has copied the CRL there.
        kept.sidecar
            .wait_for_log("a newer CRL came from another node");
        assert_eq!(
            (primary.query(stream), session()),
            before,
            "the other stream was interrupted"
        );
        assert_eq!(
            primary.query("select slot_name from pg_replication_slots"),
            "standby2"
        );
        let config = daemon.config();
        assert!(!config.contains("cn:standby1"), "{config}");
        assert!(
            config
                .contains("# of the site\n[[server.allow]]\nidentity = \"cn:backup\" # by hand\n"),
            "{config}"
        );
        assert!(config.contains("cn:standby2"), "{config}");
        primary.query(
            "set synchronous_commit = off; create table t as select generate_series(1, 1000) i",
        );
        kept.standby.catch_up_with(&primary);

        let (status, text) = said(&mut remove(&daemon, &pki, &["standby1", "--pgdata", &data]));
        assert_eq!(status, 0, "{text}");
        assert!(
            text.contains("nothing is left to do") && !text.contains("done:"),
            "{text}"
        );
    }
}

/// A daemon beside the CA that has these nodes by certificate, rule and slot.
fn site_with(primary: &Node, names: &[&str]) -> (Pki, Sidecar) {
    let pki = Pki::new();
    let mut rules = String::new();
    for name in names {
        pki.issue(name);
        rules += &format!("# of {name}\n[[server.allow]]\nidentity = \"cn:{name}\"\n\n");
        primary.query(&format!(
            "select pg_create_physical_replication_slot('{name}')"
        ));
    }
    let socket = primary.socket().display().to_string();
    let daemon = inviting_daemon(&pki, &pki.issue("db1"), &socket, &rules);
    (pki, daemon)
}

#[test]
fn itself_and_an_unknown_name_are_refused_and_nothing_is_done_unasked() {
    let primary = Node::primary();
    let (pki, daemon) = site_with(&primary, &["db2", "db3"]);
    let data = primary.data().display().to_string();
    let before = (daemon.config(), fs::read(pki.crl()).unwrap());
    for (name, id, words) in [
        ("db1", "M01", "is this node itself"),
        ("db9", "M02", "db2, db3"),
        ("db2", "M04", "--yes"),
    ] {
        let (status, text) = said(&mut remove(&daemon, &pki, &[name, "--pgdata", &data]));
        assert_eq!(status, 1, "{text}");
        assert!(
            text.contains(&format!("[{id}]")) && text.contains(words),
            "{id}: {text}"
        );
    }
    assert_eq!((daemon.config(), fs::read(pki.crl()).unwrap()), before);
    assert_eq!(
        primary.query("select count(*) from pg_replication_slots"),
        "2"
    );
}

#[test]
fn a_run_that_was_killed_is_gone_on_with_by_the_next() {
    const ROUNDS: u32 = 12;
    let primary = Node::primary();
    let names: Vec<String> = (0..=ROUNDS).map(|round| format!("db_{round}")).collect();
    let (pki, daemon) = site_with(
        &primary,
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let data = primary.data().display().to_string();
    let begin = Instant::now();
    let arguments = ["--pgdata", &data, "--yes"];
    let (status, text) = said(remove(&daemon, &pki, &[names.last().unwrap()]).args(arguments));
    assert_eq!(status, 0, "{text}");
    let whole = begin.elapsed();
    for round in 0..ROUNDS {
        let name = &names[usize::try_from(round).unwrap()];
        let mut child = remove(&daemon, &pki, &[name])
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(whole.mul_f64(f64::from(round) / f64::from(ROUNDS)));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever came of it, the files are whole.
        let mut check = Command::new(pgtlsproxy());
        check
            .args(["check", "--config"])
            .arg(daemon.dir().join("pgtlsproxy.toml"));
        assert_ne!(said(&mut check).0, 1);
        pki.certs_tool(&["list"]).unwrap();
        let (status, text) = said(remove(&daemon, &pki, &[name]).args(arguments));
        assert_eq!(status, 0, "round {round}: {text}");
        assert!(!daemon.config().contains(&format!("cn:{name}\"")));
        let slots = format!("select count(*) from pg_replication_slots where slot_name = '{name}'");
        assert_eq!(primary.query(&slots), "0");
        let verify = [
            "verify",
            &format!("{}/{name}.crt", pki.dir().display()),
            "--ca",
        ]
        .map(str::to_owned);
        let mut verify: Vec<&str> = verify.iter().map(String::as_str).collect();
        let (ca, crl) = (
            pki.ca().display().to_string(),
            pki.crl().display().to_string(),
        );
        verify.extend([&*ca, "--crl", &crl]);
        pki.certs_tool(&verify).unwrap_err();
    }
    let config = daemon.config();
    assert!(
        config.contains("cn:db1\""),
        "without any rule every certificate would be let in: {config}"
    );
    for name in &names {
        assert!(
            config.contains(&format!("# of {name}\n")),
            "a comment is gone: {config}"
        );
    }
}

#[test]
fn with_postgres_down_the_rest_is_done_and_what_remains_is_said() {
    let mut primary = Node::primary();
    let (pki, daemon) = site_with(&primary, &["db2", "db3"]);
    let data = primary.data().display().to_string();
    primary.stop(Stop::Fast);
    let arguments = ["db2", "--pgdata", &data, "--yes"];
    let (status, text) = said(&mut remove(&daemon, &pki, &arguments));
    assert_eq!(status, 1, "{text}");
    assert!(
        text.contains("1 certificate(s) revoked") && text.contains("[M14]"),
        "{text}"
    );
    assert!(!daemon.config().contains("cn:db2\""));
    primary.start();
    let (status, text) = said(&mut remove(&daemon, &pki, &arguments));
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("slot db2 dropped") && text.contains("was already so"),
        "{text}"
    );
    assert_eq!(
        primary.query("select slot_name from pg_replication_slots"),
        "db3"
    );
}

#[test]
fn undo_leaves_a_slot_that_another_made_after_the_removal() {
    // Before 13 setup makes no slot by itself.
    for major in majors().into_iter().filter(|major| *major >= 13) {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "");
        primary.node.start();
        primary.setup(&[]).well();
        let slots = "select slot_name from pg_replication_slots";
        assert_eq!(primary.node.query(slots), "standby1");

        let mut remove = Command::new(pgtlsproxy());
        remove.args(["remove", "standby1", "--yes", "--json", "--dir"]);
        let output = remove.arg(primary.dir()).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr);
        // No daemon runs; what else there is to do is done, and both are told.
        assert_eq!(output.status.code(), Some(1), "{talk}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["format"], 1, "{report}");
        assert_eq!(report["node"], "standby1", "{report}");
        assert_eq!(report["changed"], true, "{report}");
        let results = |result: &str| -> Vec<&Value> {
            let steps = report["steps"].as_array().unwrap().iter();
            steps.filter(|step| step["result"] == result).collect()
        };
        let done: Vec<_> = results("done").iter().map(|step| &step["what"]).collect();
        assert!(
            done.iter().any(|what| *what == "slot standby1 dropped"),
            "{report}"
        );
        for remains in results("remains") {
            let problem = &remains["problem"];
            assert!(
                problem["id"].is_string() && problem["way_out"].is_string(),
                "{report}"
            );
        }
        assert!(!results("remains").is_empty(), "{report}");
        assert_eq!(primary.node.query(slots), "");

        primary
            .node
            .query("select pg_create_physical_replication_slot('standby1')");
        let said = primary.undo().well();
        assert!(!said.contains("slot"), "{said}");
        assert_eq!(primary.node.query(slots), "standby1");
    }
}

#[test]
fn a_rule_by_a_name_that_another_node_has_too_stays() {
    let primary = Node::primary();
    let pki = Pki::new();
    pki.issue_for("db2", &["db2.test", "vip.test"]);
    pki.issue_for("db3", &["db3.test", "vip.test"]);
    let rules = ["dns:DB2.test", "dns:vip.test", "cn:db3"]
        .map(|identity| format!("[[server.allow]]\nidentity = \"{identity}\"\n"));
    let socket = primary.socket().display().to_string();
    let daemon = inviting_daemon(&pki, &pki.issue("db1"), &socket, &rules.concat());
    let data = primary.data().display().to_string();
    let (status, text) = said(&mut remove(
        &daemon,
        &pki,
        &["db2", "--pgdata", &data, "--yes"],
    ));
    assert_eq!(status, 0, "{text}");
    let config = daemon.config();
    assert!(
        !config.contains("DB2.test") && config.contains("vip.test") && config.contains("cn:db3"),
        "{config}"
    );
}

/// `invite` with these arguments, run to its end.
fn invite(daemon: &Sidecar, pki: &Pki, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(pgtlsproxy());
    command.arg("invite").args(arguments);
    said(
        command
            .arg("--dir")
            .arg(daemon.dir())
            .arg("--pki")
            .arg(pki.dir()),
    )
}

fn in_vain(token: &str) -> String {
    let dir = Scratch::new("in-vain");
    join(dir.path(), token, &[]).unwrap_err()
}

fn inviting_site() -> (Pki, Sidecar) {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let rules = "[[server.allow]]\nidentity = \"cn:by_hand\"\n";
    let daemon = inviting_daemon(&pki, &pki.issue("db1"), &stand_in.upstream(), rules);
    (pki, daemon)
}

#[test]
fn a_withdrawn_invitation_takes_its_rule_with_it() {
    let (pki, daemon) = inviting_site();
    let before = daemon.config();
    let mut inviting = Inviting::start(&daemon, &pki, "db2", &[]);
    let token = inviting.token();
    assert!(daemon.config().contains("cn:db2"));
    let (status, text) = invite(&daemon, &pki, &["db2", "--withdraw"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("is withdrawn"), "{text}");
    let (status, text) = inviting.end();
    assert!(status == 1 && text.contains("[M06]"), "{status} {text}");
    assert_eq!(daemon.config(), before);
    assert!(in_vain(&token).contains("[E13]"));
    let (status, text) = invite(&daemon, &pki, &["db2", "--withdraw"]);
    assert!(
        status == 0 && text.contains("No invitation of db2 waits"),
        "{text}"
    );
}

#[test]
fn an_expired_or_interrupted_invitation_takes_its_rule_with_it() {
    let (pki, daemon) = inviting_site();
    let before = daemon.config();
    let mut inviting = Inviting::start(&daemon, &pki, "db2", &["--valid", "1s"]);
    inviting.token();
    let (status, text) = inviting.end();
    assert!(status == 1 && text.contains("[E26]"), "{text}");
    assert_eq!(daemon.config(), before);
    let mut inviting = Inviting::start(&daemon, &pki, "db2", &[]);
    inviting.token();
    inviting.interrupt();
    let (status, text) = inviting.end();
    assert!(status == 1 && text.contains("[M19]"), "{text}");
    assert_eq!(daemon.config(), before);
}

#[test]
fn what_a_killed_invitation_leaves_is_listed_and_taken_back() {
    let (pki, daemon) = inviting_site();
    let before = daemon.config();
    let mut inviting = Inviting::start(&daemon, &pki, "db2", &[]);
    inviting.token();
    drop(inviting);
    daemon.wait_for_log("an invitation has ended");
    let (_, text) = invite(&daemon, &pki, &["--list"]);
    assert!(text.contains("cn:db2 is left of an invitation"), "{text}");
    invite(&daemon, &pki, &["db2", "--withdraw"]);
    assert_eq!(daemon.config(), before);
    assert!(!invite(&daemon, &pki, &["--list"]).1.contains("is left"));
}

#[test]
fn a_rule_that_no_invitation_wrote_or_whose_node_has_joined_stays() {
    let (pki, daemon) = inviting_site();
    let before = daemon.config();
    let mut inviting = Inviting::start(&daemon, &pki, "by_hand", &[]);
    inviting.token();
    invite(&daemon, &pki, &["by_hand", "--withdraw"]);
    assert_eq!(inviting.end().0, 1);
    assert_eq!(daemon.config(), before);

    let mut inviting = Inviting::start(&daemon, &pki, "db2", &[]);
    let (token, dir) = (inviting.token(), Scratch::new("joined"));
    join(dir.path(), &token, &[]).unwrap();
    assert_eq!(inviting.end().0, 0);
    let (_, text) = invite(&daemon, &pki, &["db2", "--withdraw"]);
    assert!(text.contains("pgtlsproxy remove db2"), "{text}");
    assert!(daemon.config().contains("cn:db2"));
}

#[test]
fn a_removal_withdraws_the_invitation_of_that_name() {
    let primary = Node::primary();
    let (pki, daemon) = site_with(&primary, &["db3"]);
    let mut inviting = Inviting::start(&daemon, &pki, "db2", &[]);
    let token = inviting.token();
    let data = primary.data().display().to_string();
    let (status, text) = said(&mut remove(
        &daemon,
        &pki,
        &["db2", "--pgdata", &data, "--yes"],
    ));
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("its invitation is withdrawn"), "{text}");
    assert_eq!(inviting.end().0, 1);
    assert!(!daemon.config().contains("cn:db2"));
    assert!(in_vain(&token).contains("[E13]"));
}
