//! Two hosts as `setup` leaves them: a primary and a standby with a slot, peer authentication and no password, a
//! server and a client tunnel on Unix sockets. And `doctor`, run on either.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::files::{Scratch, postgres_user, reserve_port};
use crate::pki::Pki;
use crate::postgres::Node;
use crate::programs::pgtlsproxy;
use crate::sidecar::Sidecar;
use crate::tunnel::server_config;
use crate::wait::wait_until;

/// What pg_hba.conf says: the OS users of sidecar and tests are mapped, and nobody is trusted.
pub const HBA: &str = "local all all peer map=site\nlocal replication all peer map=site\n";

/// A primary, its standby, and the two sidecars between them.
#[derive(Debug)]
pub struct Site {
    /// The CA of both sidecars.
    pub pki: Pki,
    /// The primary.
    pub primary: Node,
    /// Streams from it, through both sidecars and the slot `standby`.
    pub standby: Node,
    /// Beside the primary.
    pub server: Sidecar,
    /// Beside the standby.
    pub client: Sidecar,
    sockets: Scratch,
    port: u16,
}

impl Site {
    /// A streaming standby of this major version.
    pub fn new(major: u32) -> Self {
        Self::with(major, "")
    }

    /// The same with more lines in the primary's postgresql.conf, which the standby inherits.
    pub fn with(major: u32, conf: &str) -> Self {
        let primary = primary(major, conf);
        let (pki, port, sockets) = (Pki::new(), reserve_port(), Scratch::new("sockets"));
        let server = Sidecar::run(
            "server",
            &serving(&pki, port, &primary.socket(), "cn:standby"),
        );
        let target = format!("127.0.0.1:{port}");
        let client = Sidecar::run("client", &following(&pki, &sockets, &target, ""));
        primary.query("select pg_create_physical_replication_slot('standby', true)");
        let standby = Node::builder("standby")
            .version(major)
            .init_from_backup(&door(&sockets));
        let site = Self {
            pki,
            primary,
            standby,
            server,
            client,
            sockets,
            port,
        };
        if major < 12 {
            // recovery.conf, with the node's name as its application_name.
            site.standby
                .set_standby(&door(&site.sockets), Some("standby"));
        } else {
            site.standby.signal_standby();
            site.follow(&site.standby, &site.conninfo());
        }
        let mut site = site;
        site.standby.start();
        site.primary.wait_for_standby("standby");
        site
    }

    /// primary_conninfo of the standby.
    pub fn conninfo(&self) -> String {
        format!("{} application_name=standby", door(&self.sockets))
    }

    /// The configuration of the server tunnel to this socket, for this identity.
    pub fn serving(&self, socket: &Path, identity: &str) -> String {
        serving(&self.pki, self.port, socket, identity)
    }

    /// The configuration of the client tunnel to this target, with more lines for its table.
    pub fn following(&self, target: &str, more: &str) -> String {
        following(&self.pki, &self.sockets, target, more)
    }

    /// Where the server tunnel listens.
    pub fn target(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Writes the only primary_conninfo of a node of 13 or later; read at its start or reload.
    pub fn follow(&self, node: &Node, conninfo: &str) {
        let conninfo = conninfo.replace('\'', "''");
        node.write(
            "postgresql.auto.conf",
            &format!("primary_conninfo = '{conninfo}'\nprimary_slot_name = 'standby'\n"),
        );
    }

    /// Ends the stream and waits until the standby has noticed.
    #[track_caller]
    pub fn break_stream(&self) {
        self.primary
            .query("select pg_terminate_backend(pid) from pg_stat_replication");
        self.standby.poll_query_until(
            "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
            "0",
        );
    }

    /// Has the standby stay away for an hour, although it would be let in: it waits before it asks again.
    #[track_caller]
    pub fn stand_still(&self) {
        self.standby
            .append_conf("wal_retrieve_retry_interval = '1h'");
        self.standby.reload();
        self.standby
            .poll_query_until("show wal_retrieve_retry_interval", "1h");
        // After the first break it comes back at once.
        wait_until("the standby to wait", || {
            self.primary
                .query("select pg_terminate_backend(pid) from pg_stat_replication");
            self.standby
                .query("select wait_event from pg_stat_activity where backend_type = 'startup'")
                == "RecoveryRetrieveRetryInterval"
        });
    }

    /// Waits until the standby streams.
    #[track_caller]
    pub fn wait_for_stream(&self) {
        self.primary.wait_for_standby("standby");
        self.standby.poll_query_until(
            "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
            "1",
        );
    }

    /// `doctor` on the standby's host.
    #[track_caller]
    pub fn doctor_on_standby(&self) -> Examined {
        doctor(&self.client, &self.standby)
    }

    /// `doctor` on the primary's host.
    #[track_caller]
    pub fn doctor_on_primary(&self) -> Examined {
        doctor(&self.server, &self.primary)
    }
}

/// A running primary with the role `replicator`, that trusts nobody.
pub fn primary(major: u32, conf: &str) -> Node {
    let mut primary = Node::builder("primary").version(major).init();
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective())
        .unwrap()
        .map_or_else(String::new, |user| user.name);
    let os_users = [me.as_str(), "postgres"];
    let map = os_users.map(|os| format!("site {os} postgres\nsite {os} replicator\n"));
    primary.write("pg_ident.conf", &map.concat());
    primary.write("pg_hba.conf", HBA);
    primary.append_conf(conf);
    primary.start();
    primary.query("create role replicator login replication");
    primary
}

/// Runs `doctor` with a sidecar's configuration and a node's data directory.
#[track_caller]
pub fn doctor(sidecar: &Sidecar, node: &Node) -> Examined {
    let data = node.data().display().to_string();
    let config = sidecar.dir().join("pgtlsproxy.toml").display().to_string();
    examine(&["--config", &config, "--pgdata", &data])
}

/// Runs `doctor --json` with these flags.
#[track_caller]
pub fn examine(flags: &[&str]) -> Examined {
    let began = Instant::now();
    let output = Command::new(pgtlsproxy())
        .args(["doctor", "--json"])
        .args(flags)
        .output()
        .unwrap();
    let took = began.elapsed();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let examined = Examined {
        status: output.status.code().unwrap_or(-1),
        report,
        took,
    };
    assert!(
        took < Duration::from_secs(5),
        "it took {took:?}: {examined:?}"
    );
    examined
}

/// What `doctor` said.
#[derive(Debug)]
pub struct Examined {
    /// Its exit status.
    pub status: i32,
    /// Its report.
    pub report: Value,
    /// How long it took.
    pub took: Duration,
}

impl Examined {
    /// The ids found, in order.
    pub fn ids(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|finding| finding["id"].as_str().unwrap())
            .collect()
    }

    /// Asserts that this is what was found, and nothing else, with this exit status: 1 a problem, 3 a warning, 0 a note.
    #[track_caller]
    pub fn names(&self, id: &str, status: i32) {
        assert_eq!(
            (self.ids(), self.status),
            (vec![id], status),
            "{:#}",
            self.report
        );
        let finding = &self.report["findings"][0];
        for field in ["what", "fact", "way_out"] {
            let text = finding[field].as_str().unwrap();
            assert!(
                !text.is_empty() && !text.contains("{}"),
                "{field} of {id}: {text:?}"
            );
        }
    }

    /// Asserts that nothing is found and nothing is out of sight.
    #[track_caller]
    pub fn is_well(&self) {
        let unseen = self.report["unseen"].as_array().unwrap();
        assert!(
            self.status == 0 && self.ids().is_empty() && unseen.is_empty(),
            "{:#}",
            self.report
        );
    }
}

fn door(sockets: &Scratch) -> String {
    format!(
        "host={} port=5442 user=replicator",
        sockets.path().display()
    )
}

fn serving(pki: &Pki, port: u16, socket: &Path, identity: &str) -> String {
    let allow = format!("[[server.allow]]\nidentity = \"{identity}\"\n");
    server_config(&pki.issue("primary"), socket.display(), &allow)
        .replace("127.0.0.1:0", &format!("127.0.0.1:{port}"))
}

fn following(pki: &Pki, sockets: &Scratch, target: &str, more: &str) -> String {
    let os_users = match postgres_user() {
        Some(_) if !more.contains("allow_os_users") => {
            "allow_os_users = [\"postgres\", \"root\"]\n"
        }
        _ => "",
    };
    let identity = pki.issue("standby").toml();
    let listen = sockets.path().display();
    format!(
        "{identity}[[client]]\nlisten = \"{listen}\"\nconnect = [\"{target}\"]\n{os_users}{more}\n"
    )
}
