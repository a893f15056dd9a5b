//! Certificates renew themselves: nobody types, nothing of a stream is lost, whoever may not gets nothing, and what
//! keeps a renewal from coming is said in time.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use testbed::enrolment::inviting_daemon_at;
use testbed::renewal::{check, last_serial, own_files, renew, toml_of};
use testbed::scrape::{Scrape, free_address};
use testbed::tunnel::client_config;
use testbed::wire::{self, ALPN, ALPN_NODE, Ending, Wire, message};
use testbed::{
    Identity, Node, Pki, Scratch, Sidecar, StandIn, reserve_port, run, wait_for, wait_until,
};

/// Due, with forty minutes to go.
const DUE: (i64, i64) = (-1200, 2400);

/// The CA's host and a node that follows it, each with files of its own, near the middle of their certificates' lives.
struct Site {
    pki: Pki,
    port: u16,
    host: Sidecar,
    node: Sidecar,
    own: Identity,
    stand_in: StandIn,
    /// Of the CA's host.
    admin: SocketAddr,
    _dirs: [Scratch; 2],
    host_identity: Identity,
}

impl Site {
    fn new() -> Self {
        Self::with(DUE)
    }

    /// With certificates of this time, in seconds from now.
    fn with((from, until): (i64, i64)) -> Self {
        let (pki, stand_in, port) = (Pki::new(), StandIn::new(), reserve_port());
        let issue = |name| pki.issue_for_seconds(name, from, until);
        let (host_dir, mut host_identity) = own_files(&pki, &issue("db1"));
        // As setup leaves it: the CA's own files, beside it.
        host_identity.ca = pki.ca();
        let (node_dir, own) = own_files(&pki, &issue("standby1"));
        let admin_address = free_address();
        let admin = admin(admin_address);
        let host = inviting_daemon_at(port, &pki, &host_identity, &stand_in.upstream(), &admin);
        let node = Sidecar::run("node", &following(&own, &host, ""));
        Self {
            admin: admin_address,
            pki,
            port,
            host,
            node,
            own,
            stand_in,
            _dirs: [host_dir, node_dir],
            host_identity,
        }
    }

    /// The node's timer.
    fn node(&self) -> (i32, String) {
        renew(&self.node, None, &[])
    }

    /// That of the CA's host.
    fn host(&self) -> (i32, String) {
        renew(&self.host, Some(&self.pki), &[])
    }

    fn ask(&self, request: &Value) -> Value {
        Wire::node(self.host.address(), Some(&self.own)).ask_node(request)
    }
}

fn admin(at: SocketAddr) -> String {
    format!("[admin]\nsocket = \"status.sock\"\nlisten = \"{at}\"\n")
}

/// Whether the metrics show one such warning.
fn is_counted(at: SocketAddr, id: &str) -> bool {
    Scrape::of(at)
        .text
        .contains(&format!("pgtlsproxy_warnings{{id=\"{id}\"}} 1\n"))
}

fn following(own: &Identity, host: &Sidecar, more: &str) -> String {
    client_config(own, host.address(), more).replace(&own.toml(), &toml_of(own))
}

#[track_caller]
fn assert_done((status, said): (i32, String), words: &str) {
    assert!(status == 0 && said.contains(words), "{status}: {said}");
}

#[track_caller]
fn assert_failed((status, said): (i32, String), words: &[&str]) {
    assert_eq!(status, 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).expect("it works")
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_file_iter(path).expect("it works");
    all.map(|one| one.expect("it works")).collect()
}

/// Puts what one file holds behind what the other does.
fn append(from: &Path, to: &Path) {
    fs::write(to, [bytes(to), bytes(from)].concat()).expect("it works");
}

/// What openssl says of a certificate.
fn shown(pem: &str, what: &[&str]) -> String {
    let dir = Scratch::new("shown");
    let file = dir.path().join("crt");
    fs::write(&file, pem).expect("it works");
    run(Command::new("openssl")
        .args(["x509", "-noout", "-in"])
        .arg(file)
        .args(what))
    .expect("it works")
}

#[test]
fn three_nodes_renew_themselves_again_and_again_while_all_streams_go_on() {
    const LIFE: i64 = 45;
    let primary = Node::primary();
    let pki = Pki::new();
    let socket = primary.socket().display().to_string();
    let names = ["db1", "standby1", "standby2"];
    let issue = |name| own_files(&pki, &pki.issue_for_seconds(name, 0, LIFE));
    let ((_dir, db1), (_dir1, one), (_dir2, two)) =
        (issue(names[0]), issue(names[1]), issue(names[2]));
    let host = inviting_daemon_at(reserve_port(), &pki, &db1, &socket, "");
    let nodes = [&one, &two].map(|own| Sidecar::run("node", &following(own, &host, "")));
    let standbys = [0, 1].map(|n| Node::standby(names[n + 1], &nodes[n].conninfo()));
    names[1..]
        .iter()
        .for_each(|name| primary.wait_for_standby(name));
    let walsenders =
        "select application_name, pid, backend_start from pg_stat_replication order by 1";
    let before = primary.query(walsenders);
    primary.query("create table t (round int)");
    for round in 1..=3 {
        let old = names.map(|name| last_serial(&pki, name));
        wait_for("each node to renew itself", Duration::from_secs(60), || {
            // As three timers that know nothing of each other.
            for node in &nodes {
                let (status, said) = renew(node, None, &[]);
                assert_eq!(status, 0, "{said}");
            }
            let (status, said) = renew(&host, Some(&pki), &[]);
            assert_eq!(status, 0, "{said}");
            let in_use = [&db1, &one, &two].map(|own| {
                let serial = shown(&fs::read_to_string(&own.cert).unwrap(), &["-serial"]);
                serial.replace("serial=", "").to_lowercase()
            });
            let renewed = in_use.iter().zip(&old).all(|(now, old)| now != old);
            (renewed || {
                thread::sleep(Duration::from_millis(500));
                false
            })
            .then_some(())
        });
        // At the next handshake each peer sees the other's new one.
        for (name, node) in names[1..].iter().zip(&nodes) {
            let serial = last_serial(&pki, name);
            wait_until("the new serial at the peer", || {
                Wire::tcp(node.address()).send(&wire::replication_startup());
                host.log().text().contains(&serial)
            });
        }
        wait_until("the new certificate of the CA's host", || {
            let shown = Wire::direct_tls(host.address(), &one).certificate_of_peer();
            shown == db1.chain()[0]
        });
        primary.query(&format!("insert into t values ({round})"));
        for standby in &standbys {
            standby.catch_up_with(&primary);
            assert_eq!(standby.query("select max(round) from t"), round.to_string());
        }
    }
    let after: Vec<String> = primary
        .query(walsenders)
        .lines()
        .map(str::to_owned)
        .collect();
    for line in before.lines() {
        assert!(
            after.iter().any(|now| now == line),
            "{line} is gone: {after:?}"
        );
    }
}

#[test]
fn nobody_signs_and_the_host_is_gone_and_back() {
    let mut site = Site::new();
    let before = bytes(&site.own.cert);
    // Nobody has signed yet: that is no failure, however often it is asked.
    for _ in 0..2 {
        assert_done(site.node(), "Asked: the request waits");
    }
    let config = site.node.dir().join("pgtlsproxy.toml");
    assert!(!check(&config).1.contains("K20"));
    // The request has waited for long: a tenth of the certificate's life.
    let next = site.own.key.with_file_name("standby1.key.next");
    run(Command::new("touch")
        .args(["-d", "7 minutes ago"])
        .arg(&next))
    .unwrap();
    assert_failed(
        site.node(),
        &["[K20]", " minutes", "has waited", "pgtlsproxy renew"],
    );

    site.host.signal(Signal::SIGTERM);
    site.host.wait_for_exit(Duration::from_secs(20));
    assert_failed(site.node(), &["[K20]", "cannot be reached", "minutes"]);
    let (status, said) = check(&config);
    assert!(
        status == 3 && said.contains("K20") && said.contains("cannot be reached"),
        "{said}"
    );
    let warned = || {
        let warnings = site.node.status()["warnings"].clone();
        warnings
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["id"] == "K20")
    };
    wait_until("the daemon to warn", warned);
    site.node.wait_for_log("K20");
    assert_eq!(bytes(&site.own.cert), before);

    let upstream = site.stand_in.upstream();
    let again = inviting_daemon_at(site.port, &site.pki, &site.host_identity, &upstream, "");
    site.host = again;
    assert_failed(site.node(), &["has waited"]);
    assert_done(site.host(), "Signed for standby1");
    assert_done(site.node(), "Renewed: valid until");
    assert_ne!(bytes(&site.own.cert), before);
    assert!(!check(&config).1.contains("K20"));
    wait_until("the daemon to be content", || {
        let warnings = site.node.status()["warnings"].clone();
        !warnings
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["id"] == "K20")
    });
    assert_done(site.node(), "Not due");
    assert_done(site.host(), "Not due");
}

#[test]
fn the_cas_host_warns_of_requests_that_nobody_signs_until_somebody_does() {
    // Of a life of a minute and a half, a tenth is nine seconds.
    let site = Site::with((-40, 50));
    let warned = || {
        let warnings = site.host.status()["warnings"].clone();
        let mut found = warnings.as_array().unwrap().iter();
        found.find(|one| one["id"] == "K27").cloned()
    };
    let metric = || is_counted(site.admin, "K27");
    assert_done(site.node(), "Asked");
    assert!(warned().is_none() && !metric());
    let warning = wait_for("the warning", Duration::from_secs(20), warned);
    let what = warning["what"].as_str().unwrap();
    assert!(what.contains("standby1"), "{what}");
    assert!(
        warning["way_out"]
            .as_str()
            .unwrap()
            .contains("pgtlsproxy renew")
    );
    site.host.wait_for_log("K27");
    assert!(metric());
    assert_done(site.host(), "Signed for standby1");
    wait_until("the warning to go", || warned().is_none() && !metric());
}

#[test]
fn a_renewal_that_fails_is_told_to_systemd_and_counted() {
    let (pki, scratch, at) = (Pki::new(), Scratch::new("notify"), free_address());
    let path = scratch.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let mut told = Vec::new();
    let mut last_status = || {
        let mut buffer = [0; 4096];
        while let Ok(n) = systemd.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            told.extend(text.contains("STATUS=").then_some(text));
        }
        told.last().cloned().unwrap_or_default()
    };
    let (_dir, own) = own_files(&pki, &pki.issue_for_seconds("standby1", DUE.0, DUE.1));
    // Nobody listens there.
    let gone = (Ipv4Addr::LOCALHOST, reserve_port()).into();
    let config = client_config(&own, gone, &admin(at)).replace(&own.toml(), &toml_of(&own));
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let node = Sidecar::run_with_env("node", &config, &env);
    assert!(!is_counted(at, "K20"));
    assert_failed(renew(&node, None, &[]), &["[K20]", "cannot be reached"]);
    wait_until("systemd to be told", || {
        let status = last_status();
        status.contains("K20") && status.contains("cannot be reached")
    });
    assert!(is_counted(at, "K20"));
}

#[test]
fn one_who_waits_gets_it_in_one_run() {
    let site = Site::new();
    thread::scope(|scope| {
        let waits = scope.spawn(|| renew(&site.node, None, &["--wait", "30s"]));
        site.host
            .wait_for_log("a node asks for its next certificate");
        assert_done(site.host(), "Signed for standby1");
        assert_done(waits.join().unwrap(), "Renewed");
    });
}

#[test]
fn a_lock_of_another_user_keeps_nobody_from_his_renewal() {
    let site = Site::new();
    let dir = site.own.cert.parent().unwrap();
    // Whoever may look into a directory may lock it.
    let directory = fs::File::open(dir).unwrap();
    let lock = Flock::lock(directory, FlockArg::LockExclusive).unwrap();
    assert_done(site.node(), "Asked");
    assert_done(site.host(), "Signed for standby1");
    assert_done(site.node(), "Renewed");
    drop(lock);
    // What the runs lock themselves, only their user may open.
    let mode = fs::metadata(dir.join(".renew.lock")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A request for other names, signed over with this key.
fn request(name: &str, key: &Path) -> Value {
    let dir = Scratch::new("request");
    let path = |file: &str| dir.path().join(file).display().to_string();
    run(Command::new("openssl").args([
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        &path("key"),
        "-subj",
        &format!("/CN={name}"),
        "-addext",
        &format!("subjectAltName=DNS:{name}.test"),
        "-out",
        &path("csr"),
    ]))
    .expect("it works");
    let csr = fs::read_to_string(path("csr")).expect("it works");
    fs::write(
        path("message"),
        format!("pgtlsproxy renewal 1: request\0{csr}"),
    )
    .expect("it works");
    let signed = run(Command::new("openssl")
        .args(["dgst", "-sha256", "-hex", "-sign"])
        .arg(key)
        .arg(path("message")))
    .expect("it works");
    let signature = signed.rsplit(' ').next().expect("it works").to_owned();
    json!({"verb": "renew", "request": csr, "signature": signature})
}

#[test]
fn a_request_for_other_names_gets_the_old_ones() {
    let site = Site::new();
    let asked = request("db1", &site.own.key);
    assert_eq!(site.ask(&asked)["answer"], "waiting");
    assert_done(site.host(), "Signed for standby1");
    let answer = site.ask(&asked);
    assert_eq!(answer["answer"], "renewed", "{answer}");
    let certificate = answer["certificate"].as_str().unwrap();
    let said = shown(certificate, &["-subject", "-ext", "subjectAltName"]);
    assert!(
        said.contains("CN = standby1") && said.contains("DNS:standby1.test"),
        "{said}"
    );
    assert!(!said.contains("db1"), "{said}");
    // An answer may be lost: the same is there again.
    assert_eq!(site.ask(&asked)["certificate"], answer["certificate"]);
}

#[test]
fn a_request_that_the_nodes_own_key_has_not_signed_gets_nothing() {
    let site = Site::new();
    let serial = last_serial(&site.pki, "standby1");
    // As a daemon that was taken over would make one up for another node.
    let asked = request("standby1", &site.host_identity.key);
    assert_eq!(site.ask(&asked)["answer"], "waiting");
    assert_failed(site.host(), &["not signed with the key of the certificate"]);
    assert_eq!(site.ask(&asked)["id"], "K17");
    assert_eq!(last_serial(&site.pki, "standby1"), serial);
    let mut long = asked;
    long["request"] = json!("x".repeat(9_000));
    assert_eq!(site.ask(&long)["id"], "K15");
}

#[test]
fn a_revoked_node_and_one_without_certificate_get_nothing() {
    let site = Site::new();
    let serial = last_serial(&site.pki, "standby1");
    assert_done(site.node(), "Asked");
    site.pki.revoke("standby1");
    // It was revoked after it had asked: the ledger decides.
    assert_failed(
        site.host(),
        &[
            "the certificate of standby1 is revoked",
            "invite --replace standby1",
        ],
    );
    assert_eq!(last_serial(&site.pki, "standby1"), serial);
    // From now on the CRL counts on the CA's host, too.
    site.host.wait_for_log("reloaded");
    wait_until("the handshake to be refused", || {
        let (status, said) = site.node();
        status == 1 && said.contains("[K20]") && said.contains("revoked")
    });
    let asked = json!({"verb": "renew", "request": "", "signature": ""});
    assert_eq!(
        Wire::node(site.host.address(), None).ask_node(&asked)["id"],
        "K01"
    );
}

#[test]
fn a_new_ca_comes_with_the_renewal_and_the_old_one_goes() {
    let site = Site::new();
    // A partner's CA, which somebody put on this node; and one that is trusted beside our CA, and not here.
    let (partner, stranger) = (Pki::new(), Pki::new());
    let own_crl = site.own.cert.with_file_name("ca.crl");
    append(&partner.crl(), &own_crl);
    append(&partner.ca(), &site.own.ca);
    append(&stranger.crl(), &site.pki.crl());
    append(&stranger.ca(), &site.pki.ca());
    // A daemon takes what has changed when it comes to it; who asks it shall not come before.
    let taken = || {
        for daemon in [&site.host, &site.node] {
            let mark = daemon.log().mark();
            daemon.reload();
            daemon.log().wait_for_after(mark, "\"reloaded\"");
        }
    };
    taken();
    let trusted = || {
        let cas = certificates(&site.own.ca);
        assert!(cas.contains(&certificates(&partner.ca())[0]));
        assert!(!cas.contains(&certificates(&stranger.ca())[0]));
        let crls = fs::read_to_string(&own_crl).unwrap();
        assert_eq!(crls.matches("BEGIN").count(), cas.len());
        cas.len() - 1
    };
    let new_ca_signs = || {
        let issuer = shown(&fs::read_to_string(&site.own.cert).unwrap(), &["-issuer"]);
        let cas = fs::read_to_string(site.pki.ca()).unwrap();
        let last = &cas[cas.rfind("-----BEGIN").unwrap()..];
        shown(last, &["-subject"]).replace("subject", "issuer") == issuer
    };
    assert_done(site.node(), "Asked");
    assert_done(site.host(), "Signed");
    assert_done(site.node(), "Renewed");
    let (status, said) = site.node();
    assert!(
        status == 0 && said.contains("[K19]") && !said.contains("Trusted"),
        "{said}"
    );
    assert_eq!(trusted(), 1);

    site.pki.certs_tool(&["ca", "rotate", "start"]).unwrap();
    taken();
    assert_done(site.host(), "Not due");
    assert_done(site.node(), "Trusted from now on");
    assert_eq!(trusted(), 2);
    site.pki.certs_tool(&["ca", "rotate", "switch"]).unwrap();
    taken();
    // Not due by its age, but another CA signs now.
    assert_done(site.host(), "Renewed");
    assert_done(site.node(), "Asked");
    assert_done(site.host(), "Signed for standby1");
    assert_done(site.node(), "Renewed");
    assert!(new_ca_signs());
    site.pki.certs_tool(&["ca", "rotate", "finish"]).unwrap();
    taken();
    assert_done(site.host(), "Not due");
    assert_done(site.node(), "Trusted from now on");
    assert_eq!(trusted(), 1);
    assert_eq!(
        check(&site.node.dir().join("pgtlsproxy.toml"))
            .1
            .matches("error")
            .count(),
        0
    );
    Wire::tcp(site.node.address()).send(&wire::replication_startup());
    site.stand_in.accept_startup();
}

#[test]
fn a_new_ca_is_carried_to_all_while_a_standby_streams_and_the_old_one_is_refused() {
    let primary = Node::primary();
    let pki = Pki::new();
    let (_host_dir, mut db1) = own_files(&pki, &pki.issue("db1"));
    db1.ca = pki.ca();
    let (_node_dir, own) = own_files(&pki, &pki.issue("standby1"));
    // Of the old CA, and in date for long.
    let (_old_dir, old) = own_files(&pki, &pki.issue("standby2"));
    let socket = primary.socket().display().to_string();
    let host = inviting_daemon_at(reserve_port(), &pki, &db1, &socket, "");
    let node = Sidecar::run("node", &following(&own, &host, ""));
    let standby = Node::standby("standby1", &node.conninfo());
    primary.wait_for_standby("standby1");
    let walsender = || primary.query("select pid, backend_start from pg_stat_replication");
    let before = walsender();
    primary.query("create table t (stage text)");
    let arrives = |stage: &str| {
        primary.query(&format!("insert into t values ('{stage}')"));
        standby.catch_up_with(&primary);
        assert_eq!(standby.query("select max(stage) from t"), stage);
    };
    let goes_on = |stage: &str| {
        arrives(stage);
        assert_eq!(walsender(), before, "{stage}");
    };
    let beside = || renew(&host, Some(&pki), &[]);
    let asking = || renew(&node, None, &[]);
    let refuses = || {
        let mut wire = Wire::tcp(host.address()).tls(Some(&old), &[ALPN]).unwrap();
        // One that is admitted says goodbye at once.
        let _ = wire.try_send(&wire::replication_startup());
        let _ = wire.try_send(&message(b'X', b""));
        matches!(wire.ending(), Ending::Alert(_))
    };
    assert!(!refuses());
    // As between two timers: the daemon has taken what has come.
    let taken = |daemon: &Sidecar, change: &dyn Fn()| {
        let mark = daemon.log().mark();
        change();
        daemon.log().wait_for_after(mark, "\"reloaded\"");
    };
    let rotate = |stage| {
        pki.certs_tool(&["ca", "rotate", stage]).unwrap();
    };

    taken(&host, &|| rotate("start"));
    assert_done(beside(), "Not due");
    taken(&node, &|| assert_done(asking(), "Trusted from now on"));
    goes_on("1: start");
    rotate("switch");
    taken(&host, &|| assert_done(beside(), "Renewed"));
    assert_done(asking(), "Asked");
    assert_done(beside(), "Signed for standby1");
    taken(&node, &|| assert_done(asking(), "Renewed"));
    goes_on("2: switch");
    assert!(!refuses(), "the old CA still counts");
    // It would hold up the rotation.
    pki.revoke("standby2");
    taken(&host, &|| rotate("finish"));
    assert_done(beside(), "Not due");
    assert_done(asking(), "Trusted from now on");
    wait_until("a leaf of the old CA to be refused", refuses);
    goes_on("3: finish");
}

#[test]
fn a_ca_that_nobody_vouches_for_is_not_trusted_whoever_brings_it() {
    let pki = Pki::new();
    let (_dir, own) = own_files(&pki, &pki.issue("standby1"));
    // A member of the site, with a good certificate.
    let (impostor, member) = (StandIn::new(), pki.issue("db2"));
    let config = client_config(&own, impostor.address(), "").replace(&own.toml(), &toml_of(&own));
    let node = Sidecar::run("node", &config);
    let (stranger, partner) = (Pki::new(), Pki::new());
    append(&partner.crl(), &own.cert.with_file_name("ca.crl"));
    append(&partner.ca(), &own.ca);
    let files = [&own.cert, &own.key, &own.ca].map(|path| bytes(path));
    let both = [pki.ca(), stranger.ca()]
        .map(|ca| fs::read_to_string(ca).unwrap())
        .concat();
    let crl = [pki.crl(), stranger.crl()]
        .map(|crl| fs::read_to_string(crl).unwrap())
        .concat();
    let [by, gone] = [pki.ca(), partner.ca()].map(|ca| {
        let said = shown(
            &fs::read_to_string(ca).unwrap(),
            &["-fingerprint", "-sha256"],
        );
        let (_, digits) = said.trim().split_once('=').unwrap();
        digits.replace(':', "").to_lowercase()
    });
    // Nor does a CA go because somebody says so.
    let dropped = json!([{"ca": gone, "by": by, "until": i64::MAX, "signature": "00".repeat(64)}]);
    let answer = json!({"answer": "renewed", "ca": both, "crl": crl, "dropped": dropped});
    let answers = thread::spawn(move || {
        loop {
            let Ok(mut wire) = impostor.accept().serve_tls_for(&member, ALPN_NODE) else {
                continue;
            };
            wire.read_body();
            wire.send_body(answer.to_string().as_bytes());
            wire.ending();
            return;
        }
    });
    let (_, said) = renew(&node, None, &[]);
    answers.join().unwrap();
    assert!(said.contains("[K19]") && said.contains("vouches"), "{said}");
    assert_eq!(
        [&own.cert, &own.key, &own.ca].map(|path| bytes(path)),
        files
    );
}

#[test]
fn a_run_that_died_between_its_renames_leaves_a_pair_that_works() {
    let site = Site::new();
    let old_key = bytes(&site.own.key);
    assert_done(site.node(), "Asked");
    assert_done(site.host(), "Signed");
    assert_done(site.node(), "Renewed");
    let (new_key, next) = (
        bytes(&site.own.key),
        site.own.key.with_extension("key.next"),
    );
    // The certificate is in its place, the key not yet.
    fs::copy(&site.own.key, &next).unwrap();
    fs::write(&site.own.key, &old_key).unwrap();
    let (_, said) = check(&site.node.dir().join("pgtlsproxy.toml"));
    assert!(!said.contains("error"), "{said}");
    let started = Sidecar::run("started", &following(&site.own, &site.host, ""));
    Wire::tcp(started.address()).send(&wire::replication_startup());
    site.stand_in.accept_startup();
    assert_done(site.node(), "Not due");
    assert_eq!(bytes(&site.own.key), new_key);
    assert!(!next.exists());
}

#[test]
fn a_key_that_is_left_from_before_the_files_were_replaced_by_hand_keeps_nothing_from_coming() {
    let site = Site::new();
    assert_done(site.node(), "Asked");
    let next = site.own.key.with_extension("key.next");
    assert!(next.exists());
    let place = site.own.cert.parent().unwrap();
    site.pki.issue("standby1").copied_to(place);
    fs::copy(site.pki.crl(), place.join("ca.crl")).unwrap();
    // Nobody there knows of the old request any more.
    site.host.signal(Signal::SIGTERM);
    let mut site = site;
    site.host.wait_for_exit(Duration::from_secs(20));
    let upstream = site.stand_in.upstream();
    site.host = inviting_daemon_at(site.port, &site.pki, &site.host_identity, &upstream, "");

    assert_done(site.node(), "Not due");
    assert_done(site.host(), "Renewed");
    site.pki.certs_tool(&["ca", "rotate", "start"]).unwrap();
    assert_done(site.host(), "Not due");
    assert_done(site.node(), "Trusted from now on");
    assert!(!next.exists());
    assert_done(site.host(), "Not due");

    let next = site.host_identity.key.with_extension("key.next");
    fs::write(&next, "").unwrap();
    assert_done(site.host(), "Not due");
    assert!(!next.exists());
}

#[test]
fn a_ca_key_that_cannot_be_opened_is_told_where_the_certificate_is_due() {
    let site = Site::new();
    let key = site.pki.dir().join("ca.key");
    run(Command::new("openssl")
        .args(["pkcs8", "-topk8", "-passout", "pass:horse", "-in"])
        .arg(&key)
        .arg("-out")
        .arg(site.pki.dir().join("locked")))
    .unwrap();
    fs::rename(site.pki.dir().join("locked"), &key).unwrap();
    let config = site.host.dir().join("pgtlsproxy.toml");
    assert_failed(site.host(), &["[K20]", "minutes", "--passphrase-file"]);
    let (status, said) = check(&config);
    assert!(status == 3 && said.contains("K20"), "{said}");

    let passphrase = site.pki.dir().join("passphrase");
    fs::write(&passphrase, "horse").unwrap();
    fs::set_permissions(&passphrase, Permissions::from_mode(0o600)).unwrap();
    let said = renew(
        &site.host,
        Some(&site.pki),
        &["--passphrase-file", passphrase.to_str().unwrap()],
    );
    assert_done(said, "Renewed");
    assert!(!check(&config).1.contains("K20"));
}
