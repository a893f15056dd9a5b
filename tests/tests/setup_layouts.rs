//! Hosts that are laid out in other ways than the tests' own: RHEL's directories, and one where systemd runs (here a
//! program of systemctl's name that notes what it is told; tests/systemd does the same on the real one).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use testbed::mounts::Mounts;
use testbed::programs::{client_tool, pgtlsproxy};
use testbed::setup::said;
use testbed::{Host, Scratch, reserve_port, run, wait_until};

const AS_POSTGRES: &str =
    "setpriv --reuid postgres --regid postgres --clear-groups --reset-env /usr/pgsql-18/bin";
const DATA: &str = "/var/lib/pgsql/18/data";

/// A host as RHEL's packages of PostgreSQL 18 leave it, without the directories of Debian's.
struct Rhel(Mounts);

impl Rhel {
    /// With a cluster that runs.
    fn with_server(more: &str) -> Option<Self> {
        Self::new(&format!(
            "{AS_POSTGRES}/initdb --no-sync --auth-local=peer --auth-host=scram-sha-256 -D {DATA} >&2\n\
             printf \"unix_socket_directories = '/run/postgresql'\\nlisten_addresses = ''\\n\" >>{DATA}/postgresql.conf\n\
             {AS_POSTGRES}/pg_ctl start -w -s -D {DATA} -l /var/lib/pgsql/18/log >&2\n{more}"
        ))
    }

    fn new(more: &str) -> Option<Self> {
        let installed = client_tool("psql");
        let installed = installed.ancestors().nth(2).unwrap().display();
        let host = Mounts::new(&format!(
            "cd /\nrm -rf /etc/postgresql /usr/lib/postgresql /usr/bin/psql\n\
             ln -s {installed} /usr/pgsql-18\n\
             install -m 755 {} /usr/local/bin/pgtlsproxy\n\
             install -d -o postgres -g postgres /run/postgresql\n\
             install -d -o postgres -g postgres -m 700 /var/lib/pgsql /var/lib/pgsql/18 {DATA}\n{more}",
            pgtlsproxy().display()
        ));
        if host.is_none() {
            println!("skipped: only root mounts file systems");
        }
        host.map(Self)
    }

    fn pgtlsproxy(&self, words: &[&str]) -> Command {
        let mut command = self.0.command("/usr/local/bin/pgtlsproxy");
        command.args(words);
        command
    }

    fn sh(&self, script: &str) -> String {
        run(self.0.command("/bin/sh").args(["-c", script])).unwrap()
    }

    /// The proxy, once it is configured; it ends on drop.
    fn serve(&self, dir: &Path, port: u16) -> Daemon {
        let config = dir.join("pgtlsproxy.toml");
        wait_until("a configuration to start by", || config.exists());
        let daemon = Daemon(
            self.pgtlsproxy(&["run", "--config", config.to_str().unwrap()])
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        wait_until("the proxy to listen", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        daemon
    }
}

impl Drop for Rhel {
    fn drop(&mut self) {
        let stop = format!("{AS_POSTGRES}/pg_ctl stop -m immediate -s -D {DATA}");
        let _ = run(self.0.command("/bin/sh").args(["-c", &stop]));
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn rhels_directories_are_found_from_the_bare_primary_to_a_standby_that_streams() {
    let Some(primary) = Rhel::with_server("") else {
        return;
    };
    let place = Scratch::new("rhel");
    let (dir1, dir2) = (place.path().join("db1"), place.path().join("standby1"));
    let (port1, port2) = (reserve_port(), reserve_port());
    let public = format!("localhost:{port1}");
    // Another level of WAL than the default, so that it has to be restarted.
    let words = [
        "setup",
        "primary",
        "--public",
        &public,
        "--name",
        "db1",
        "--standby",
        "standby1",
        "--logical",
        "postgres",
        "--restart",
        "--os-user",
        "root",
        "--dir",
        dir1.to_str().unwrap(),
    ];
    let text = said(&mut primary.pgtlsproxy(&words), "").well();
    assert!(
        text.contains(&format!("wrote {DATA}/pg_hba.conf")),
        "{text}"
    );
    assert!(text.contains(&format!("restarted {DATA}")), "{text}");
    let text = said(&mut primary.pgtlsproxy(&words), "").well();
    assert!(text.contains("nothing to do"), "{text}");
    let _proxy = primary.serve(&dir1, port1);

    // A standby's host, on which the package was installed and nothing done.
    let standby = Rhel::new("").unwrap();
    let mut inviting = primary
        .pgtlsproxy(&["invite", "standby1", "--san", "localhost", "--dir"])
        .arg(&dir1)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut token = String::new();
    let mut stdout = BufReader::new(inviting.stdout.take().unwrap());
    stdout.read_line(&mut token).unwrap();
    let listen = format!("127.0.0.1:{port2}");
    let mut join = standby.pgtlsproxy(&[
        "join",
        "-",
        "--listen",
        &listen,
        "--os-user",
        "root",
        "--dir",
        dir2.to_str().unwrap(),
    ]);
    let joining = std::thread::spawn(move || said(&mut join, &token));
    let run_directory = dir2.join("run");
    wait_until("the node's directories", || run_directory.exists());
    let _second = standby.serve(&dir2, port2);
    let text = joining.join().unwrap().well();
    assert!(text.contains("It streams from"), "{text}");
    assert!(inviting.wait().unwrap().success());
    assert_eq!(standby.sh(&format!("cat {DATA}/PG_VERSION")), "18");
}

/// Debian's directories, with clusters that need not run.
#[test]
fn a_cluster_that_is_not_understood_is_named_and_not_passed_over() {
    let Some(host) = Rhel::new("") else {
        return;
    };
    let make = |version: &str, more: &str| {
        host.sh(&format!(
            "d=/var/lib/postgresql/{version}/main e=/etc/postgresql/{version}/main; mkdir -p $d $e\n\
             echo {version} >$d/PG_VERSION; chown -R postgres: $d $e\n\
             printf \"data_directory = '$d'\n{more}\" >$e/postgresql.conf; touch $e/pg_hba.conf $e/pg_ident.conf\n"
        ));
    };
    let setup = || {
        let words = [
            "setup",
            "primary",
            "--public",
            "db1.example.com",
            "--dry-run",
        ];
        said(&mut host.pgtlsproxy(&words), "").failed()
    };
    make("15", "this is = odd\n");
    let text = setup();
    assert!(
        text.contains("[G01]") && text.contains("/15/main/postgresql.conf line 2"),
        "{text}"
    );
    // What a removed package has left is no cluster.
    host.sh("mkdir -p /etc/postgresql/13/main; echo \"data_directory = '/nowhere'\" >/etc/postgresql/13/main/postgresql.conf");
    assert!(setup().contains("[G01]"));
    make("14", "");
    let text = setup();
    for expected in ["[G04]", "14/main", "15/main", "line 2"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// What a systemd that only takes notes was told since this was asked last.
fn told(host: &Rhel) -> Vec<String> {
    let told = host.sh("cat /run/told 2>/dev/null; rm -f /run/told");
    told.lines().map(str::to_owned).collect()
}

const NOTING: &str = "mkdir -p /run/systemd/system /etc/systemd/system\n\
    rm -f /usr/lib/systemd/system/pgtlsproxy*\n\
    printf '#!/bin/sh\\necho \"$*\" >>/run/told\\n[ \"$1\" != is-active ] || exit 3\\n' >/usr/local/bin/systemctl\n\
    chmod 755 /usr/local/bin/systemctl\n";

#[test]
fn units_are_written_enabled_and_taken_away_again() {
    let Some(host) = Rhel::with_server(NOTING) else {
        return;
    };
    let setup = [
        "setup",
        "primary",
        "--public",
        "db1.example.com:5443",
        "--standby",
        "standby1",
    ];
    said(&mut host.pgtlsproxy(&setup), "").well();
    assert_eq!(
        told(&host),
        [
            "is-active --quiet pgtlsproxy",
            "daemon-reload",
            "enable --now pgtlsproxy",
            "enable --now pgtlsproxy-renew.timer"
        ]
    );
    let unit = host.sh("cat /etc/systemd/system/pgtlsproxy.service");
    for line in [
        "Before=postgresql.service postgresql-18.service",
        // systemd gives up after five tries by default.
        "StartLimitIntervalSec=0",
        "ExecStart=/usr/local/bin/pgtlsproxy run --config /etc/pgtlsproxy/pgtlsproxy.toml",
        "User=pgtlsproxy",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
    }

    let text = said(&mut host.pgtlsproxy(&["setup", "undo"]), "").well();
    assert!(
        text.contains("stopped and disabled pgtlsproxy.service"),
        "{text}"
    );
    assert_eq!(
        told(&host),
        [
            "disable --now pgtlsproxy-renew.timer",
            "disable --now pgtlsproxy.service",
            "daemon-reload"
        ]
    );
    assert_eq!(
        host.sh("ls /etc/systemd/system | grep pgtlsproxy || true"),
        ""
    );

    // What a person has changed is his.
    said(&mut host.pgtlsproxy(&setup), "").well();
    host.sh("echo '# mine' >>/etc/systemd/system/pgtlsproxy.service");
    host.sh("mkdir /etc/systemd/system/pgtlsproxy-renew.timer.d");
    host.sh("echo '[Timer]' >/etc/systemd/system/pgtlsproxy-renew.timer.d/mine.conf");
    told(&host);
    let text = said(&mut host.pgtlsproxy(&["setup", "undo"]), "").well();
    for unit in ["pgtlsproxy.service", "pgtlsproxy-renew.timer"] {
        let words = format!(
            "{unit} was changed by others since: it stays, and runs; systemctl disable --now {unit} stops it"
        );
        assert!(text.contains(&words), "{text}");
    }
    assert_eq!(told(&host), Vec::<String>::new());
    let left = host.sh("ls -d /etc/systemd/system/pgtlsproxy* /etc/pgtlsproxy/pgtlsproxy.toml");
    for file in [
        "pgtlsproxy.service",
        "pgtlsproxy-renew.timer",
        // The timer calls it, and the proxy reads it.
        "pgtlsproxy-renew.service",
        "pgtlsproxy.toml",
    ] {
        assert!(left.contains(file), "{file}: {left}");
    }
}

#[test]
fn a_server_that_a_person_started_is_restarted_as_it_was_started() {
    let host = Host::new("db1", 15);
    host.node.append_conf("max_wal_senders = 1");
    // From the directory above, with a name that is true only there.
    let mut start = host.node.program("pg_ctl");
    start.args(["start", "-w", "-D", "data", "-l", "by-hand.log"]);
    run(start.current_dir(host.node.socket_dir())).unwrap();
    let of_server = |name: &str| {
        let state = std::fs::read_to_string(host.node.data().join("postmaster.pid")).unwrap();
        let pid = state.lines().next().unwrap();
        std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
    };
    let groups = || {
        let status = of_server("status");
        let groups = status.lines().find(|line| line.starts_with("Groups:"));
        groups.unwrap().to_owned()
    };
    let before = (of_server("stat"), groups());
    let data = host.node.data();
    let mut setup = Command::new(pgtlsproxy());
    setup.args(["setup", "primary", "--public", "db1.example.com:5443"]);
    setup.args(["--standby", "standby1", "--os-user", "root", "--restart"]);
    setup
        .arg("--dir")
        .arg(host.dir())
        .arg("--pgdata")
        .arg(&data);
    let text = said(setup.env("HOME", "/root"), "").well();
    assert!(
        text.contains(&format!("restarted {}", data.display())),
        "{text}"
    );
    assert_ne!(of_server("stat"), before.0);
    assert_eq!(
        groups(),
        before.1,
        "a key of group ssl-cert is read by that"
    );
    let environment = of_server("environ");
    if let Some(user) = testbed::postgres_user() {
        let home = format!("HOME={}", user.dir.display());
        assert!(
            environment.split('\0').any(|set| set == home),
            "{environment}"
        );
    }
    assert_eq!(host.node.query("show max_wal_senders"), "10");
}
