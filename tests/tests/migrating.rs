//! docs/migrating.md: a stream moves from stunnel, from an ssh tunnel, and from PostgreSQL's own TLS, to the proxy, without a new copy.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use testbed::postgres::psql_of;
use testbed::programs::{pgtlsproxy, psql_with_tls, sshd};
use testbed::site::doctor;
use testbed::wait::wait_until;
use testbed::{
    Identity, Node, Pki, Scratch, Sidecar, Tool, as_postgres, give_to_postgres, postgres_user,
    reserve_port, run,
};

/// A section of the page.
fn section(title: &str) -> &'static str {
    let page = include_str!("../../docs/migrating.md");
    let (_, part) = page.split_once(&format!("## {title}\n")).unwrap();
    part.split("\n## ").next().unwrap()
}

/// What the section's block has that holds these words: `toml`, `ini`, or an indented one.
fn block(title: &str, holds: &str) -> &'static str {
    let blocks = section(title).split("```").skip(1).step_by(2);
    let mut blocks = blocks.filter_map(|block| Some(block.split_once('\n')?.1));
    blocks.find(|block| block.contains(holds)).unwrap()
}

const STUNNEL: &str = "From stunnel";
const TLS: &str = "From PostgreSQL's own TLS";

/// A host of the page: where its sockets are, and the file that the page has for it, with what is another here.
struct Host {
    run: Scratch,
    identity: Identity,
    sidecar: Option<Sidecar>,
}

impl Host {
    fn new(identity: &Identity) -> Self {
        let run = Scratch::new("run");
        Self {
            run,
            identity: identity.clone(),
            sidecar: None,
        }
    }

    fn file(&self, file: &str, words: &[(&str, &str)]) -> String {
        let Identity { cert, key, ca, .. } = &self.identity;
        let quoted = |path: &Path| format!("\"{}\"", path.display());
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective());
        let user = postgres_user().or_else(|| user.unwrap()).unwrap().name;
        let mut file = file
            .replace("/run/pgtlsproxy", &self.run.path().display().to_string())
            .replace("[\"postgres\"]", &format!("[\"{user}\"]"))
            .replace("\"ca.crt\"", &quoted(ca));
        for name in ["db1", "standby1"] {
            file = file
                .replace(&format!("\"{name}.crt\""), &quoted(cert))
                .replace(&format!("\"{name}.key\""), &quoted(key));
        }
        for (word, here) in words {
            assert!(file.contains(word), "{word} is not in\n{file}");
            file = file.replace(word, here);
        }
        file
    }

    /// What the page has a person do there, up to the service.
    fn start(&mut self, file: &str) {
        let unit = block(STUNNEL, "[Service]");
        let (_, command) = unit
            .split_once("ExecStart=/usr/local/bin/pgtlsproxy ")
            .unwrap();
        assert_eq!(command.lines().next(), Some("run"));
        let sidecar = Sidecar::run("pgtlsproxy", file);
        let config = sidecar.dir().join("pgtlsproxy.toml");
        let mut check = Command::new(pgtlsproxy());
        run(check.arg("check").arg("--config").arg(config)).unwrap();
        self.sidecar = Some(sidecar);
    }

    fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().unwrap()
    }

    /// `pgtlsproxy status`, as a person sees it.
    fn status(&self) -> String {
        let mut status = Command::new(pgtlsproxy());
        let config = self.sidecar().dir().join("pgtlsproxy.toml");
        run(status.arg("status").arg("--config").arg(config)).unwrap()
    }
}

/// The primary's, with the proxy of the page.
fn primarys_host(primary: &Node, identity: &Identity) -> Host {
    let mut host = Host::new(identity);
    let postgres = primary.address().to_string();
    let words = [
        ("0.0.0.0:5443", "127.0.0.1:0"),
        ("127.0.0.1:5432", &postgres),
    ];
    let file = host.file(block(STUNNEL, "[[server]]"), &words);
    host.start(&file);
    host
}

/// The file that the page has for the standby's host, that connects here.
fn standbys_file(host: &Host, target: SocketAddr) -> String {
    let target = format!("localhost:{}", target.port());
    host.file(
        block(STUNNEL, "[[client]]"),
        &[("db1.example.com:5443", &target)],
    )
}

fn stunnel(place: &Path, name: &str, text: &str) -> Tool {
    let file = place.join(name);
    let text =
        format!("foreground = yes\npid =\nsslVersionMin = TLSv1.3\nverifyChain = yes\n{text}");
    fs::write(&file, text).unwrap();
    Tool::start("stunnel4", &[file.to_str().unwrap()])
}

/// The old setting goes and the page's comes; where the standby goes by it.
fn follow(standby: &Node, host: &Host) -> String {
    let statement = section(STUNNEL)
        .lines()
        .find(|line| line.contains("ALTER SYSTEM"));
    let statement = host
        .file(statement.unwrap(), &[])
        .replace("user=replicator", "user=postgres");
    let settings = fs::read_to_string(standby.data().join("postgresql.conf")).unwrap();
    let lines = settings.lines();
    let others = lines.filter(|line| !line.starts_with("primary_conninfo"));
    let others: Vec<_> = others.collect();
    standby.write("postgresql.conf", &(others.join("\n") + "\n"));
    standby.query(&statement);
    standby.reload();
    format!("{}:5442", host.run.path().display())
}

/// It streams from there, and what is written now arrives.
fn streams_by(standby: &Node, primary: &Node, sender: &str) {
    standby.poll_query_until(
        "select concat(sender_host, ':', sender_port) from pg_stat_wal_receiver where status = 'streaming'",
        sender,
    );
    primary.query("create table if not exists t (n int); insert into t values (1)");
    standby.catch_up_with(primary);
}

/// What the page's end says: both hosts tell the session, and are well but for what it has a person mend.
fn are_well(hosts: [(&Host, &Node); 2]) {
    for (host, _) in hosts {
        wait_until("status to show the session", || {
            let text = host.status();
            text.contains("1 live") && text.contains("as standby1")
        });
    }
    for (host, node) in hosts {
        // Servers of tests say `trust`.
        doctor(host.sidecar(), node).names("H08", 3);
    }
}

/// A standby that streams by the old way on this port is moved to proxies, by the files that the page has for stunnel,
/// and stays the same process when the old way is ended.
fn moves_to_the_proxy(primary: &Node, entry: u16, of: [&Identity; 2], end_old: impl FnOnce()) {
    let [server, client] = of;
    let conninfo = format!("host=127.0.0.1 port={entry} user=postgres");
    wait_until("the old way to be open", || {
        testbed::postgres::psql(&conninfo, "select 1").is_ok()
    });
    let standby = Node::standby("standby1", &conninfo);
    let old = format!("127.0.0.1:{entry}");
    streams_by(&standby, primary, &old);
    let process = standby.pid();

    let at_primary = primarys_host(primary, server);
    let mut at_standby = Host::new(client);
    let file = standbys_file(&at_standby, at_primary.sidecar().address());
    at_standby.start(&file);
    // Nothing has moved yet.
    streams_by(&standby, primary, &old);
    let new = follow(&standby, &at_standby);
    streams_by(&standby, primary, &new);
    are_well([(&at_primary, primary), (&at_standby, &standby)]);
    end_old();
    assert!(TcpStream::connect(("127.0.0.1", entry)).is_err());
    streams_by(&standby, primary, &new);
    assert_eq!(standby.pid(), process, "it was not started anew");
}

#[test]
fn a_stream_moves_from_stunnel_to_the_proxy() {
    if !Path::new("/usr/bin/stunnel4").exists() {
        println!("left out: stunnel4 is not installed");
        return;
    }
    let (pki, place) = (Pki::new(), Scratch::new("stunnel"));
    let (server, client) = (pki.issue("localhost"), pki.issue("standby1"));
    let primary = Node::primary();
    let [tls, entry] = [reserve_port(), reserve_port()];
    let files = |of: &Identity| {
        format!(
            "CAfile = {}\n[tunnel]\ncert = {}\nkey = {}\n",
            of.ca.display(),
            of.cert.display(),
            of.key.display()
        )
    };
    let postgres = primary.address();
    let _server = stunnel(
        place.path(),
        "server.conf",
        &format!(
            "{}accept = 127.0.0.1:{tls}\nconnect = {postgres}\n",
            files(&server)
        ),
    );
    let far = stunnel(
        place.path(),
        "client.conf",
        &format!(
            "{}client = yes\naccept = 127.0.0.1:{entry}\nconnect = 127.0.0.1:{tls}\n",
            files(&client)
        ),
    );
    moves_to_the_proxy(&primary, entry, [&server, &client], || drop(far));
}

/// A key pair of ssh's.
fn ssh_key(path: &Path) -> String {
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path))
    .unwrap();
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

/// sshd on a port of its own, as the OS user of the servers, which may be reached through it and nothing else.
fn ssh_daemon(place: &Path, port: u16, key: &str, postgres: SocketAddr) -> Tool {
    let keys = place.join("authorized_keys");
    fs::write(
        &keys,
        format!("restrict,port-forwarding,permitopen=\"{postgres}\" {key}"),
    )
    .unwrap();
    let text = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowTcpForwarding local\n",
        place.join("host").display(),
        keys.display()
    );
    let config = place.join("sshd_config");
    fs::write(&config, text).unwrap();
    for file in ["host", "authorized_keys", "sshd_config"] {
        give_to_postgres(&place.join(file));
    }
    let mut sshd = as_postgres(&sshd());
    Tool::spawn(sshd.args(["-D", "-e", "-f"]).arg(config))
}

#[test]
fn a_stream_moves_from_an_ssh_tunnel_to_the_proxy() {
    let page = include_str!("../../docs/migrating.md");
    assert!(page.contains("`ssh -L 5433:127.0.0.1:5432 db1`"));
    let (pki, place) = (Pki::new(), Scratch::new("ssh"));
    let (server, client) = (pki.issue("localhost"), pki.issue("standby1"));
    let primary = Node::primary();
    let postgres = primary.address();
    let [port, entry] = [reserve_port(), reserve_port()];
    let host = ssh_key(&place.path().join("host"));
    // Root's own: ssh takes no key of another user.
    let own = Scratch::new("ssh-client");
    let key = ssh_key(&own.path().join("standby1"));
    let known = own.path().join("known_hosts");
    fs::write(&known, format!("[127.0.0.1]:{port} {host}")).unwrap();
    let daemon = ssh_daemon(place.path(), port, &key, postgres);
    wait_until("sshd to listen", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap();
    let user = postgres_user().or(user).unwrap().name;
    let [identity, known] =
        [own.path().join("standby1"), known].map(|path| path.display().to_string());
    let tunnel = Tool::start(
        "ssh",
        &[
            "-F",
            "none",
            "-N",
            "-o",
            "BatchMode=yes",
            "-o",
            "ExitOnForwardFailure=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            &format!("UserKnownHostsFile={known}"),
            "-i",
            &identity,
            "-p",
            &port.to_string(),
            "-L",
            &format!("{entry}:{postgres}"),
            &format!("{user}@127.0.0.1"),
        ],
    );
    // "The two commands above": those of stunnel.
    moves_to_the_proxy(&primary, entry, [&server, &client], || {
        drop((tunnel, daemon))
    });
}

#[test]
fn a_stream_moves_from_postgresqls_own_tls_one_host_at_a_time() {
    let pki = Pki::new();
    let (server, client) = (pki.issue("localhost"), pki.issue("standby1"));
    let mut primary = Node::builder("primary").init();
    let own = primary.own_identity(&server);
    primary.append_conf(&format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'",
        own.cert.display(),
        own.key.display(),
        own.ca.display()
    ));
    primary.prepend_hba("hostssl replication postgres 127.0.0.1/32 trust clientcert=verify-ca");
    primary.start();
    let port = primary.address().port();
    let standby = Node::builder("standby1").init_from_backup(&primary.conninfo());
    let own = standby.own_identity(&client);
    let conninfo = format!(
        "host=localhost port={port} user=postgres sslmode=verify-full {}",
        own.conninfo()
    );
    standby.set_standby(&conninfo, None);
    let standby = standby.started();
    streams_by(&standby, &primary, &format!("localhost:{port}"));

    // The standby's host, beside a primary that has none.
    let mut at_standby = Host::new(&client);
    let both = standbys_file(&at_standby, ([127, 0, 0, 1], 1).into());
    let (rest, others) = both.split_once("[[client]]").unwrap();
    let (_, admin) = others.split_once("[admin]").unwrap();
    let target = format!("localhost:{port}");
    let alone = at_standby.file(
        block(TLS, "[[client]]"),
        &[("db1.example.com:5432", &target)],
    );
    at_standby.start(&format!("{rest}{alone}\n[admin]{admin}"));
    let new = follow(&standby, &at_standby);
    streams_by(&standby, &primary, &new);

    // The primary's host, for a libpq that speaks TLS itself: only the port is another.
    let at_primary = primarys_host(&primary, &server);
    let entry = at_primary.sidecar().address();
    let conninfo = conninfo.replace(&port.to_string(), &entry.port().to_string());
    let physical = format!("{conninfo} replication=true application_name=standby1");
    // psql's own key file is root's or the server's user's.
    psql_of(&psql_with_tls(), &physical, "IDENTIFY_SYSTEM").unwrap();
    // And both together, from a restart on.
    let both = standbys_file(&at_standby, entry);
    drop(at_standby.sidecar.take());
    at_standby.start(&both);
    wait_until("the primary's proxy to have the stream", || {
        at_primary.status().contains("1 live")
    });
    streams_by(&standby, &primary, &new);
    are_well([(&at_primary, &primary), (&at_standby, &standby)]);
}
