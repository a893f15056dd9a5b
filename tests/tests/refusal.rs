//! Every refusal is heard: its cause and its way out reach the user's terminal and the standby's own log, and
//! PostgreSQL never hears of the connection.

use std::os::unix::net::UnixStream;

use socket2::{Domain, SockAddr, Socket, Type};
use testbed::tunnel::server_config;
use testbed::wire::{self, Refusal, Wire, startup};
use testbed::{Node, Pki, Scratch, Sidecar, StandIn, Tunnel, reserve_port};

/// A server with these rules, and a stand-in for its PostgreSQL.
struct Gate {
    pki: Pki,
    server: Sidecar,
    stand_in: StandIn,
}

impl Gate {
    fn with(rules: &str) -> Self {
        let (pki, stand_in) = (Pki::new(), StandIn::new());
        let server = Sidecar::run(
            "server",
            &server_config(&pki.issue("primary"), stand_in.upstream(), rules),
        );
        Self {
            pki,
            server,
            stand_in,
        }
    }

    fn ask(&self, startup: &[u8]) -> Wire {
        let mut wire = Wire::direct_tls(self.server.address(), &self.pki.issue("standby"));
        wire.send(startup);
        wire
    }

    #[track_caller]
    fn admits(&self, startup: &[u8]) {
        let _wire = self.ask(startup);
        assert_eq!(self.stand_in.accept_startup().1, startup);
    }

    #[track_caller]
    fn refuses(&self, startup: &[u8], sqlstate: &str, words: &[&str]) {
        let refusal = self.ask(startup).read_refusal();
        assert_heard(&refusal, sqlstate, words);
        assert!(self.stand_in.accepted().is_none(), "PostgreSQL heard of it");
    }
}

#[track_caller]
fn assert_heard(refusal: &Refusal, sqlstate: &str, words: &[&str]) {
    assert_eq!(
        (refusal.severity(), refusal.sqlstate()),
        ("FATAL", sqlstate),
        "{refusal:?}"
    );
    assert!(refusal.message().starts_with("pgtlsproxy: "), "{refusal:?}");
    for word in words {
        assert!(
            refusal.text().contains(word),
            "{word:?} is not in {refusal:?}"
        );
    }
}

/// What a standby of this name sends.
fn standby(application_name: &str) -> Vec<u8> {
    startup(&[
        ("user", "rep"),
        ("replication", "true"),
        ("application_name", application_name),
    ])
}

fn logical(database: &str) -> Vec<u8> {
    startup(&[
        ("user", "rep"),
        ("database", database),
        ("replication", "database"),
    ])
}

#[test]
fn identity_without_a_rule_is_refused() {
    let gate = Gate::with("[[server.allow]]\nidentity = \"dns:db9.example.com\"");
    gate.refuses(&standby("standby"), "28000", &["standby"]);
    Gate::with("[[server.allow]]\nidentity = \"dns:standby.test\"").admits(&standby("standby"));
}

#[test]
fn wildcard_stands_for_one_whole_label() {
    Gate::with("[[server.allow]]\nidentity = \"dns:*.test\"").admits(&standby("standby"));
    Gate::with("[[server.allow]]\nidentity = \"dns:*.standby.test\"").refuses(
        &standby("standby"),
        "28000",
        &[],
    );
}

#[test]
fn address_outside_from_is_closed_before_tls() {
    let gate =
        Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nfrom = [\"203.0.113.0/24\"]");
    let identity = gate.pki.issue("standby");
    let tls = Wire::tcp(gate.server.address()).tls(Some(&identity), &[wire::ALPN]);
    assert!(
        tls.is_err(),
        "TLS was spoken with an address that no rule admits"
    );
    gate.server.wait_for_log("127.0.0.1");
    Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nfrom = [\"127.0.0.0/8\"]")
        .admits(&standby("standby"));
}

#[test]
fn kind_of_replication_outside_the_rule_is_refused() {
    let gate =
        Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nreplication = [\"physical\"]");
    gate.refuses(&logical("app"), "28000", &["logical"]);
    gate.admits(&standby("standby"));
    let gate =
        Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nreplication = [\"logical\"]");
    gate.refuses(&standby("standby"), "28000", &["physical"]);
    gate.admits(&logical("app"));
}

#[test]
fn ordinary_connection_is_refused_by_default() {
    let ordinary = startup(&[("user", "rep"), ("database", "app")]);
    Gate::with("").refuses(&ordinary, "28000", &["ordinary = true"]);
    Gate::with("[[server.allow]]\nidentity = \"cn:standby\"").refuses(
        &ordinary,
        "28000",
        &["ordinary = true"],
    );
    Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nordinary = true").admits(&ordinary);
}

#[test]
fn every_spelling_of_replication_is_known() {
    let gate =
        Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nreplication = [\"physical\"]");
    let with = |value| startup(&[("user", "rep"), ("replication", value)]);
    for physical in [
        "true", "tru", "tr", "t", "yes", "ye", "y", "on", "1", "TRUE", "oN",
    ] {
        gate.admits(&with(physical));
    }
    for ordinary in ["false", "fa", "f", "no", "n", "off", "of", "0", "OFF"] {
        gate.refuses(&with(ordinary), "28000", &["ordinary = true"]);
    }
    for neither in [
        "", "o", "truee", " true", "true ", "2", "01", "DATABASE", "physical",
    ] {
        gate.refuses(&with(neither), "22023", &["replication"]);
    }
}

#[test]
fn user_outside_the_rule_is_refused() {
    let gate = Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\nusers = [\"replicator\"]");
    gate.refuses(&standby("standby"), "28000", &["user", "rep"]);
    gate.admits(&startup(&[("user", "replicator"), ("replication", "1")]));
}

#[test]
fn database_outside_the_rule_is_refused() {
    let gate = Gate::with("[[server.allow]]\nidentity = \"cn:standby\"\ndatabases = [\"app\"]");
    gate.refuses(&logical("secret"), "28000", &["database", "secret"]);
    gate.admits(&logical("app"));
    gate.admits(&standby("standby"));
}

#[test]
fn standby_cannot_pose_as_another() {
    let gate = Gate::with(
        "[[server.allow]]\nidentity = \"cn:standby\"\napplication_names = [\"standby\"]",
    );
    gate.admits(&standby("standby"));
    gate.refuses(&standby("other"), "28000", &["application_name", "other"]);
    for options in [
        "-c application_name=other",
        "-capplication_name=other",
        "-c Application_Name=other",
        "--application_name=other",
        "--application-name=other",
        " -c datestyle=ISO  -c application_name=oth\\er",
    ] {
        let parameters = [
            ("user", "rep"),
            ("replication", "true"),
            ("application_name", "standby"),
        ];
        let posing = startup(&[&parameters[..], &[("options", options)]].concat());
        gate.refuses(&posing, "28000", &["application_name", "other"]);
    }
}

#[test]
fn parameter_sent_twice_is_refused() {
    let gate = Gate::with("");
    let base = [
        ("user", "rep"),
        ("database", "app"),
        ("replication", "true"),
    ];
    for twice in [
        ("user", "postgres"),
        ("replication", "false"),
        ("replication", "database"),
        ("database", "b"),
    ] {
        gate.refuses(
            &startup(&[&base[..], &[twice]].concat()),
            "08P01",
            &[twice.0],
        );
        let other_case = twice.0.to_uppercase();
        gate.refuses(
            &startup(&[&base[..], &[(&other_case, twice.1)]].concat()),
            "08P01",
            &[],
        );
    }
}

#[test]
fn name_that_postgres_would_cut_is_refused() {
    let gate = Gate::with("");
    let (fits, cut) = ("u".repeat(63), "u".repeat(64));
    gate.admits(&startup(&[("user", &fits), ("replication", "true")]));
    gate.refuses(
        &startup(&[("user", &cut), ("replication", "true")]),
        "22023",
        &["63"],
    );
}

#[test]
fn startup_one_byte_over_the_limit_is_refused() {
    let gate = Gate::with("");
    let of_length = |length: usize| {
        let empty = startup(&[("user", "rep"), ("replication", "true"), ("options", "")]).len();
        startup(&[
            ("user", "rep"),
            ("replication", "true"),
            ("options", &" ".repeat(length - empty)),
        ])
    };
    gate.admits(&of_length(10_004));
    let mut wire = gate.ask(&of_length(10_005));
    wire.ending();
    assert!(gate.stand_in.accepted().is_none());
    gate.server.wait_for_log("10005");
}

#[test]
fn session_beyond_the_limit_is_refused() {
    let gate = Gate::with("[limits]\nsessions = 1");
    let first = gate.ask(&standby("standby"));
    let upstream = gate.stand_in.accept_startup();
    gate.refuses(&standby("standby"), "53300", &["1"]);
    drop((first, upstream));
    gate.server.wait_for_log("ended");
    gate.admits(&standby("standby"));
}

#[test]
fn refusal_by_rule_stands_in_the_standbys_log_with_the_way_out() {
    let primary = Node::primary();
    let rule = "[[server.allow]]\nidentity = \"cn:standby\"\napplication_names = [\"standby1\"]";
    let tunnel = Tunnel::with(primary.socket().display(), rule, "");
    let standby = Node::builder("standby2").init_from_backup(&primary.conninfo());
    standby.set_standby(&tunnel.conninfo(), None);
    let standby = standby.started();
    let line = standby.wait_for_log("FATAL:  pgtlsproxy: ");
    assert!(
        line.contains("could not connect to the primary server") && line.contains("standby2"),
        "{line}"
    );
    standby.wait_for_log("HINT:  ");
    assert!(
        !primary.log().text().contains("standby2"),
        "PostgreSQL heard of it"
    );
}

#[test]
fn refusal_is_shown_by_psql() {
    let primary = Node::primary();
    let tunnel = Tunnel::to(&primary);
    let said = testbed::postgres::psql(&tunnel.conninfo(), "select 1").unwrap_err();
    assert!(
        said.contains("FATAL:  pgtlsproxy: ") && said.contains("ordinary = true"),
        "{said}"
    );
}

#[test]
fn upstream_that_cannot_be_reached_is_told_in_the_standbys_log() {
    let primary = Node::primary();
    let standby = Node::builder("standby").init_from_backup(&primary.conninfo());
    let nobody = format!("127.0.0.1:{}", reserve_port());
    let tunnel = Tunnel::with(&nobody, "", "");
    standby.set_standby(&tunnel.conninfo(), None);
    let standby = standby.started();
    let line = standby.wait_for_log("FATAL:  pgtlsproxy: ");
    assert!(line.contains(&nobody), "{line}");

    let mut wire = Wire::tcp(tunnel.client.address());
    wire.send(&wire::replication_startup());
    assert_heard(&wire.read_refusal(), "57P03", &[&nobody]);
}

#[test]
fn server_that_cannot_be_reached_is_told_in_the_standbys_log() {
    let primary = Node::primary();
    let standby = Node::builder("standby").init_from_backup(&primary.conninfo());
    let pki = Pki::new();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], reserve_port()));
    let client = Sidecar::run(
        "client",
        &testbed::tunnel::client_config(&pki.issue("standby"), nobody, ""),
    );
    standby.set_standby(&client.conninfo(), None);
    let standby = standby.started();
    let line = standby.wait_for_log("FATAL:  pgtlsproxy: ");
    assert!(line.contains(&nobody.to_string()), "{line}");

    let mut wire = Wire::tcp(client.address());
    wire.send(&wire::replication_startup());
    assert_heard(&wire.read_refusal(), "57P03", &[&nobody.to_string()]);
}

#[test]
fn from_means_ipv4_also_on_a_listener_for_both_families() {
    let (pki, stand_in) = (Pki::new(), StandIn::new());
    let rule = "[[server.allow]]\nidentity = \"cn:standby\"\nfrom = [\"127.0.0.0/8\"]";
    let config = server_config(&pki.issue("primary"), stand_in.upstream(), rule);
    let server = Sidecar::run("server", &config.replace("127.0.0.1:0", "[::]:0"));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], server.address().port()));
    Wire::direct_tls(address, &pki.issue("standby")).send(&standby("standby"));
    stand_in.accept_startup();
}

/// PostgreSQL runs, and takes connections more slowly than they come: to start it is no way out.
#[test]
fn full_queue_of_postgres_is_told_from_a_postgres_that_does_not_run() {
    let (pki, dir) = (Pki::new(), Scratch::new("queue"));
    let path = dir.path().join("socket");
    let address = SockAddr::unix(&path).unwrap();
    let full = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    full.bind(&address).unwrap();
    full.listen(0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    let config = server_config(&pki.issue("primary"), path.display(), "");
    let server = Sidecar::run("server", &config);
    let refused = || {
        let mut wire = Wire::direct_tls(server.address(), &pki.issue("standby"));
        wire.send(&wire::replication_startup());
        let refusal = wire.read_refusal();
        assert!(refusal.message().contains("[B01]"), "{refusal:?}");
        refusal
    };
    let busy = refused();
    assert!(busy.hint().contains("max_connections"), "{busy:?}");
    assert!(!busy.hint().contains("start PostgreSQL"), "{busy:?}");
    drop(full);
    let down = refused();
    assert!(down.hint().contains("start PostgreSQL"), "{down:?}");
}
