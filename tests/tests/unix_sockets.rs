//! Unix sockets on both plain sides, and who may use them: the peer's OS user decides.

use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use nix::sys::signal::Signal;
use testbed::tunnel::server_config;
use testbed::wire::{self, Ending};
use testbed::{Identity, Node, Pki, Scratch, Sidecar, StandIn, Wire, run};

const SOCKET: &str = ".s.PGSQL.5442";

fn client_on_a_socket(identity: &Identity, dir: &Scratch, server: &Sidecar, more: &str) -> Sidecar {
    let (dir, server) = (dir.path().display(), server.address());
    let identity = identity.toml();
    Sidecar::run(
        "client",
        &format!("{identity}[[client]]\nlisten = \"{dir}\"\nconnect = [\"{server}\"]\n{more}"),
    )
}

#[test]
fn standby_streams_over_unix_sockets_alone() {
    let (pki, dir, primary) = (Pki::new(), Scratch::new("socket"), Node::primary());
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), primary.socket().display(), ""),
    );
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective())
        .unwrap()
        .unwrap()
        .name;
    let allow = format!("allow_os_users = [\"{me}\", \"postgres\"]");
    let _client = client_on_a_socket(&pki.issue("standby"), &dir, &server, &allow);
    let conninfo = format!("host={} port=5442 user=postgres", dir.path().display());
    let standby = Node::builder("standby").init_from_backup(&conninfo);
    // Debian's libpq has TLS; on a Unix socket it does not even ask for it.
    standby.set_standby(&format!("{conninfo} sslmode=require"), None);
    let standby = standby.started();
    primary.wait_for_standby("standby");
    standby.catch_up_with(&primary);
}

#[test]
fn other_os_user_is_refused_with_the_way_out() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("socket"), StandIn::new());
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), ""),
    );
    let client = client_on_a_socket(
        &pki.issue("standby"),
        &dir,
        &server,
        "allow_os_users = [\"daemon\"]",
    );
    let mut wire = Wire::unix(&dir.path().join(SOCKET));
    wire.send(&wire::replication_startup());
    let refusal = wire.read_refusal();
    assert_eq!(refusal.sqlstate(), "28000");
    assert!(refusal.text().contains("OS user"), "{refusal:?}");
    assert!(refusal.hint().contains("allow_os_users"), "{refusal:?}");
    assert!(stand_in.accepted().is_none());
    client.wait_for_log("OS user");
}

#[test]
fn os_user_postgres_is_admitted_only_where_named() {
    let (pki, dir, node) = (Pki::new(), Scratch::new("socket"), Node::primary());
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: only root can run a program as another user");
        return;
    }
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), node.socket().display(), ""),
    );
    let conninfo = format!(
        "host={} port=5442 user=postgres replication=true",
        dir.path().display()
    );
    let as_postgres = || {
        run(node
            .program("psql")
            .args(["-XAtq", "-c", "IDENTIFY_SYSTEM", "-d", &conninfo]))
    };

    let client = client_on_a_socket(&pki.issue("standby"), &dir, &server, "");
    let refusal = as_postgres().unwrap_err();
    assert!(
        refusal.contains("postgres") && refusal.contains("allow_os_users"),
        "{refusal}"
    );
    drop(client);

    let _client = client_on_a_socket(
        &pki.issue("standby"),
        &dir,
        &server,
        "allow_os_users = [\"postgres\"]",
    );
    as_postgres().unwrap();
}

#[test]
fn socket_is_removed_at_the_end_and_a_stale_one_replaced() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("socket"), StandIn::new());
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), ""),
    );
    let (identity, socket) = (pki.issue("standby"), dir.path().join(SOCKET));
    drop(client_on_a_socket(&identity, &dir, &server, "")); // killed: its socket stays
    assert!(socket.metadata().unwrap().file_type().is_socket());
    let mut client = client_on_a_socket(&identity, &dir, &server, "");
    let mut wire = Wire::unix(&socket);
    wire.send(&wire::replication_startup());
    stand_in.accept_startup();
    assert_eq!(wire.ending(), Ending::Eof);
    client.signal(Signal::SIGTERM);
    assert_eq!(client.wait_for_exit(testbed::wait::PATIENCE), 0);
    assert!(!socket.exists());
}

/// A directory service that hangs as soon as there is a file of this name.
const NAMES_THAT_HANG: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>
int getpwuid_r(uid_t uid, struct passwd *user, char *text, size_t length, struct passwd **found) {
    int (*next)(uid_t, struct passwd *, char *, size_t, struct passwd **) = dlsym(RTLD_NEXT, "getpwuid_r");
    while (access(getenv("NAMES_HANG"), F_OK) == 0) usleep(10000);
    return next(uid, user, text, length, found);
}
"#;

#[test]
fn name_that_cannot_be_looked_up_keeps_nobody_waiting() {
    let (pki, dir, stand_in) = (Pki::new(), Scratch::new("socket"), StandIn::new());
    let (source, library) = (dir.path().join("hangs.c"), dir.path().join("hangs.so"));
    std::fs::write(&source, NAMES_THAT_HANG).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]);
    run(compiler.args([&library, &source]).arg("-ldl")).unwrap();
    let hang = dir.path().join("hang");
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), stand_in.upstream(), ""),
    );
    let (identity, socket) = (pki.issue("standby").toml(), dir.path().join(SOCKET));
    let client = |users: &str| {
        let config = format!(
            "{identity}[[client]]\nlisten = \"{}\"\nconnect = [\"{}\"]\n{users}",
            dir.path().display(),
            server.address()
        );
        let _ = std::fs::remove_file(&hang);
        let env = [("LD_PRELOAD", &library), ("NAMES_HANG", &hang)];
        let env = env.map(|(name, path)| (name, path.to_str().unwrap()));
        let client = Sidecar::run_with_env("client", &config, &env);
        std::fs::write(&hang, "").unwrap();
        client
    };
    let admits = client("");
    let mut wire = Wire::unix(&socket);
    wire.send(&wire::replication_startup());
    stand_in.accept_startup();
    drop((wire, admits));
    let _refuses = client("allow_os_users = [\"daemon\"]");
    let mut wire = Wire::unix(&socket);
    wire.send(&wire::replication_startup());
    let uid = nix::unistd::Uid::effective();
    let refusal = wire.read_refusal();
    assert!(
        refusal.text().contains(&format!("uid {uid}")),
        "{refusal:?}"
    );
}
