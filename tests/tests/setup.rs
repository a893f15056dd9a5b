//! `pgtlsproxy setup primary` and `setup undo` on real servers: shown first, done, done again without effect, used by a
//! standby through the proxy, and undone to the last byte.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testbed::setup::configuration;
use testbed::{Node, Scratch, Sidecar, programs, run};

/// What it said, and whether it succeeded.
fn setup(arguments: &[&str], node: &Node, dir: &Path) -> (bool, String) {
    let mut command = Command::new(programs::pgtlsproxy());
    command.arg("setup").args(arguments).arg("--dir").arg(dir);
    if arguments[0] == "primary" {
        command.arg("--pgdata").arg(node.data()).args([
            "--public",
            "db1.example.com:5443",
            "--standby",
            "standby1",
            "--os-user",
            "root",
        ]);
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// A server that lets the tests in, and nobody by `trust`.
fn careful(major: u32) -> Node {
    let node = Node::builder("primary").version(major).init();
    testbed::setup::careful(&node);
    node.append_conf("max_wal_senders = 1");
    node.started()
}

#[test]
fn setup_primary_is_shown_done_repeated_used_and_undone() {
    for major in programs::majors() {
        println!("PostgreSQL {major}");
        let mut node = careful(major);
        let place = Scratch::new("setup");
        let dir = place.path().join("etc");
        let before = configuration(&node);

        let (done, said) = setup(&["primary", "--dry-run"], &node, &dir);
        assert!(done, "{said}");
        assert!(
            said.contains("+local replication replicator peer map=pgtlsproxy"),
            "{said}"
        );
        // Before 13 nothing bounds what a slot keeps.
        let bounded = major >= 13;
        assert_eq!(
            said.contains("# create replication slot standby1"),
            bounded,
            "{said}"
        );
        assert_eq!(configuration(&node), before, "a dry run changes nothing");
        assert!(!dir.exists());

        let (done, said) = setup(&["primary"], &node, &dir);
        assert!(done, "{said}");
        assert!(
            said.contains("must be restarted for max_wal_senders"),
            "{said}"
        );
        node.restart();
        let (done, said) = setup(&["primary"], &node, &dir);
        assert!(done && said.contains("nothing to do"), "{said}");
        assert_eq!(node.query("show max_wal_senders"), "10");
        let slots = "select slot_name from pg_replication_slots";
        assert_eq!(node.query(slots), if bounded { "standby1" } else { "" });

        // The certificate and the configuration that it wrote carry a standby.
        let mut issue = Command::new(programs::certs_tool());
        issue.arg("--dir").arg(dir.join("pki"));
        run(issue.args(["issue", "standby1", "--out"]).arg(place.path())).unwrap();
        let config = fs::read_to_string(dir.join("pgtlsproxy.toml")).unwrap();
        let absolute = |text: &str, name: &str| {
            text.replace(
                &format!("\"{name}\""),
                &format!("\"{}\"", dir.join(name).display()),
            )
        };
        let config = ["db1.crt", "db1.key", "pki/ca.crt", "pki/ca.crl"]
            .iter()
            .fold(
                config.replace("0.0.0.0:5443", "127.0.0.1:0"),
                |text, name| absolute(&text, name),
            );
        let server = Sidecar::run("server", &config);
        let client = format!(
            "[identity]\ncert = '{0}/standby1.crt'\nkey = '{0}/standby1.key'\nca = '{1}/pki/ca.crt'\ncrl = '{1}/pki/ca.crl'\n\
             [[client]]\nlisten = '127.0.0.1:0'\nconnect = ['{2}']\nserver_name = 'db1.example.com'\n",
            place.path().display(),
            dir.display(),
            server.address()
        );
        let client = Sidecar::run("client", &client);
        let conninfo = format!(
            "host=127.0.0.1 port={} user=replicator",
            client.address().port()
        );
        let standby = Node::builder("standby1")
            .version(major)
            .init_from_backup(&conninfo);
        standby.set_standby(&conninfo, bounded.then_some("standby1"));
        let standby = standby.started();
        node.wait_for_standby("standby1");
        drop((standby, client, server));
        node.poll_query_until("select count(*) from pg_stat_replication", "0");

        let (done, said) = setup(&["undo"], &node, &dir);
        assert!(done, "{said}");
        assert_eq!(configuration(&node), before, "every byte is back");
        assert_eq!(node.query(slots), "");
        let (done, said) = setup(&["undo"], &node, &dir);
        assert!(done && said.contains("nothing to undo"), "{said}");
    }
}

#[test]
fn a_loopback_trust_line_stops_setup_unless_it_may_be_mended() {
    let node = Node::primary();
    let place = Scratch::new("setup");
    let dir = place.path().join("etc");
    let before = configuration(&node);
    let (done, said) = setup(&["primary"], &node, &dir);
    assert!(!done, "{said}");
    assert!(
        said.contains("pg_hba.conf line") && said.contains("[G07]"),
        "{said}"
    );
    assert_eq!(configuration(&node), before);

    let (done, said) = setup(&["primary", "--fix-trust"], &node, &dir);
    assert!(done, "{said}");
    let hba = fs::read_to_string(node.data().join("pg_hba.conf")).unwrap();
    let rules = hba.lines().filter(|line| !line.starts_with('#'));
    assert!(
        rules.into_iter().all(|line| !line.contains("trust")),
        "{hba}"
    );
    let (done, said) = setup(&["undo"], &node, &dir);
    assert!(done, "{said}");
    assert_eq!(configuration(&node), before);
}

#[test]
fn a_file_that_is_not_understood_is_left_alone_with_its_line_named() {
    let node = careful(15);
    let place = Scratch::new("setup");
    let hba = node.data().join("pg_hba.conf");
    let text = fs::read_to_string(&hba).unwrap() + "local all all magic\n";
    fs::write(&hba, text).unwrap();
    let before = configuration(&node);
    let (done, said) = setup(&["primary"], &node, &place.path().join("etc"));
    assert!(
        !done && said.contains("pg_hba.conf line 3 is not understood"),
        "{said}"
    );
    assert_eq!(configuration(&node), before);
}

/// A cluster of Debian's own making, with its configuration in /etc; dropped at the end.
struct DebianCluster(String);

impl DebianCluster {
    fn create() -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        if !root || !Path::new("/usr/bin/pg_createcluster").exists() {
            return None;
        }
        let cluster = Self(format!("pgtlsproxy{}", std::process::id()));
        let mut create = Command::new("pg_createcluster");
        create.args(["15", &cluster.0, "--start", "--", "-A", "peer"]);
        run(&mut create).unwrap();
        Some(cluster)
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("/etc/postgresql/15").join(&self.0).join(name)
    }
}

impl Drop for DebianCluster {
    fn drop(&mut self) {
        let _ = run(Command::new("pg_dropcluster").args(["--stop", "15", &self.0]));
    }
}

#[test]
fn a_cluster_of_debians_is_found_and_its_conf_d_used() {
    let Some(cluster) = DebianCluster::create() else {
        println!("left out: this host has no pg_createcluster, or we are not root");
        return;
    };
    let place = Scratch::new("setup");
    let dir = place.path().join("etc");
    let label = format!("15/{}", cluster.0);
    let said = |arguments: &[&str]| {
        let mut command = Command::new(programs::pgtlsproxy());
        let output = command
            .arg("setup")
            .args(arguments)
            .arg("--dir")
            .arg(&dir)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    let hba = cluster.file("pg_hba.conf");
    let before = fs::read(&hba).unwrap();
    let main = fs::read(cluster.file("postgresql.conf")).unwrap();
    let primary = [
        "primary",
        "--cluster",
        &label,
        "--public",
        "db1.example.com",
        "--standby",
        "standby1",
    ];
    let mut again = primary.to_vec();
    again.extend(["--os-user", "postgres"]);
    said(&again);
    assert!(cluster.file("conf.d/pgtlsproxy.conf").exists());
    assert_eq!(
        fs::read(cluster.file("postgresql.conf")).unwrap(),
        main,
        "conf.d is included already"
    );
    let text = fs::read_to_string(&hba).unwrap();
    assert!(
        text.contains("local replication replicator peer map=pgtlsproxy"),
        "{text}"
    );
    assert!(said(&again).contains("nothing to do"));
    said(&["undo"]);
    assert_eq!(fs::read(&hba).unwrap(), before);
    assert!(!cluster.file("conf.d/pgtlsproxy.conf").exists());
}

/// What a person types on both hosts, and nothing edited: setup, invite; join. What systemd and pg_basebackup do in
/// between is the test bed's.
#[test]
fn setup_invite_and_join_lead_to_a_stream_without_an_edit() {
    let (primary, etc) = (careful(15), Scratch::new("etc"));
    let public = format!("localhost:{}", testbed::reserve_port());
    let mut setup = Command::new(programs::pgtlsproxy());
    setup.args(["setup", "primary", "--name", "db1", "--os-user", "root"]);
    setup.args(["--public", &public, "--standby", "standby1", "--restart"]);
    setup.arg("--pgdata").arg(primary.data());
    run(setup.arg("--dir").arg(etc.path())).unwrap();

    let dir = etc.path().to_owned();
    let server = Sidecar::run_there("db1", etc);
    let mut invite = Command::new(programs::pgtlsproxy());
    invite.args(["invite", "standby1", "--dir"]).arg(&dir);
    let mut inviting = invite.stdout(Stdio::piped()).spawn().unwrap();
    let mut token = String::new();
    BufReader::new(inviting.stdout.take().unwrap())
        .read_line(&mut token)
        .unwrap();

    let joined = Scratch::new("joined");
    let mut join = Command::new(programs::pgtlsproxy());
    join.args(["join", token.trim(), "--listen", "127.0.0.1:0", "--dir"]);
    run(join.arg(joined.path())).unwrap();
    assert!(inviting.wait().unwrap().success());

    let socket = joined.path().join("run");
    let conninfo = format!("host={} port=5442 user=replicator", socket.display());
    let client = Sidecar::run_there("standby1", joined);
    let standby = Node::builder("standby1")
        .version(15)
        .init_from_backup(&conninfo);
    standby.set_standby(&conninfo, Some("standby1"));
    let standby = standby.started();
    primary.wait_for_standby("standby1");
    drop((standby, client, server));
}
