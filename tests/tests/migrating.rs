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
use testbed::programs::{psql_with_tls, sshd};
use testbed::wait::wait_until;
use testbed::{
    Identity, Node, Pki, Scratch, Sidecar, Tool, as_postgres, give_to_postgres, postgres_user,
    reserve_port, run,
};

/// The flags of a command of the page, by its first words.
fn flags(section: &str, command: &str) -> Vec<String> {
    let page = include_str!("../../docs/migrating.md").replace("\\\n", " ");
    let (_, part) = page.split_once(&format!("## {section}\n")).unwrap();
    let line = part
        .lines()
        .find_map(|line| line.strip_prefix(&format!("    pgtlsproxy {command} ")));
    line.unwrap()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// The command with these words of its page replaced.
fn start(section: &str, command: &str, identity: &Identity, words: &[(&str, &str)]) -> Sidecar {
    let path = |path: &Path| path.display().to_string();
    let (cert, key, ca) = (
        path(&identity.cert),
        path(&identity.key),
        path(&identity.ca),
    );
    let flags = flags(section, command);
    let flags: Vec<&str> = flags
        .iter()
        .map(|flag| match flag.as_str() {
            flag if flag.ends_with("ca.crt") => &ca,
            flag if flag.ends_with(".crt") => &cert,
            flag if flag.ends_with(".key") => &key,
            flag => words
                .iter()
                .find(|(page, _)| *page == flag)
                .map_or(flag, |(_, here)| here),
        })
        .collect();
    Sidecar::with_flags(command, &flags)
}

fn stunnel(place: &Path, name: &str, text: &str) -> Tool {
    let file = place.join(name);
    let text =
        format!("foreground = yes\npid =\nsslVersionMin = TLSv1.3\nverifyChain = yes\n{text}");
    fs::write(&file, text).unwrap();
    Tool::start("stunnel4", &[file.to_str().unwrap()])
}

fn follow(standby: &Node, port: u16) {
    standby.query(&format!(
        "alter system set primary_conninfo = 'host=127.0.0.1 port={port} user=postgres application_name=standby1'"
    ));
    standby.reload();
}

/// It streams from this port, and what is written now arrives.
fn streams_by(standby: &Node, primary: &Node, port: u16) {
    standby.poll_query_until(
        "select sender_port from pg_stat_wal_receiver where status = 'streaming'",
        &port.to_string(),
    );
    primary.query("create table if not exists t (n int); insert into t values (1)");
    standby.catch_up_with(primary);
}

/// A standby that streams by the old way on this port is moved to proxies, by the commands that the page has for stunnel,
/// and stays the same process when the old way is ended.
fn moves_to_the_proxy(primary: &Node, entry: u16, of: [&Identity; 2], end_old: impl FnOnce()) {
    let [server, client] = of;
    let conninfo = format!("host=127.0.0.1 port={entry} user=postgres");
    wait_until("the old way to be open", || {
        testbed::postgres::psql(&conninfo, "select 1").is_ok()
    });
    let standby = Node::standby("standby1", &conninfo);
    streams_by(&standby, primary, entry);
    let process = standby.pid();

    let section = "From stunnel";
    let postgres = primary.address().to_string();
    let at_primary = start(
        section,
        "server",
        server,
        &[
            ("0.0.0.0:5443", "127.0.0.1:0"),
            ("127.0.0.1:5432", &postgres),
        ],
    );
    let target = format!("localhost:{}", at_primary.address().port());
    let at_standby = start(
        section,
        "client",
        client,
        &[
            ("127.0.0.1:5442", "127.0.0.1:0"),
            ("db1.example.com:5443", &target),
        ],
    );
    // Nothing has moved yet.
    streams_by(&standby, primary, entry);
    follow(&standby, at_standby.address().port());
    streams_by(&standby, primary, at_standby.address().port());
    end_old();
    assert!(TcpStream::connect(("127.0.0.1", entry)).is_err());
    streams_by(&standby, primary, at_standby.address().port());
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
    streams_by(&standby, &primary, port);

    // The standby's host, beside a primary that has none.
    let section = "From PostgreSQL's own TLS";
    let target = format!("localhost:{port}");
    let at_standby = start(
        section,
        "client",
        &client,
        &[
            ("127.0.0.1:5442", "127.0.0.1:0"),
            ("db1.example.com:5432", &target),
        ],
    );
    follow(&standby, at_standby.address().port());
    streams_by(&standby, &primary, at_standby.address().port());

    // The primary's host, for a libpq that speaks TLS itself: only the port is another.
    let at_primary = start(
        "From stunnel",
        "server",
        &server,
        &[
            ("0.0.0.0:5443", "127.0.0.1:0"),
            ("127.0.0.1:5432", &primary.address().to_string()),
        ],
    );
    let conninfo = conninfo.replace(&port.to_string(), &at_primary.address().port().to_string());
    let physical = format!("{conninfo} replication=true");
    let said = psql_of(&psql_with_tls(), &physical, "IDENTIFY_SYSTEM");
    // psql's own key file is root's or the server's user's.
    said.unwrap();
    // And both together.
    let target = format!("localhost:{}", at_primary.address().port());
    let both = start(
        "From stunnel",
        "client",
        &client,
        &[
            ("127.0.0.1:5442", "127.0.0.1:0"),
            ("db1.example.com:5443", &target),
        ],
    );
    follow(&standby, both.address().port());
    streams_by(&standby, &primary, both.address().port());
}
