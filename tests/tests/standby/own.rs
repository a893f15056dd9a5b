//! What a host has of its own: its configuration with all that this names, and a server that makes no Unix socket.

use std::os::unix::fs::symlink;

use testbed::{Pki, Scratch, give_to_postgres};

use super::*;

#[test]
fn what_the_configuration_names_comes_along() {
    let (primary, mut standby) = joined(15);
    standby.node.stop(testbed::Stop::Fast);
    let data = standby.node.data();
    let pki = Pki::new();
    let identity = pki.issue("standby1");
    for (from, to) in [
        (&identity.cert, "server.crt"),
        (&identity.key, "server.key"),
    ] {
        fs::copy(from, data.join(to)).unwrap();
        give_to_postgres(&data.join(to));
    }
    let certificate = fs::read(data.join("server.crt")).unwrap();
    standby.node.write("admins", "postgres\n");
    standby.node.prepend_hba("local all @admins peer map=tests");
    fs::create_dir(data.join("more")).unwrap();
    give_to_postgres(&data.join("more"));
    standby.node.write("more/own.conf", "# nothing yet\n");
    standby
        .node
        .append_conf("ssl = on\ninclude 'more/own.conf'\n");
    // As configuration management has it: a link to a file of its own.
    let managed = Scratch::new("managed");
    let real = managed.path().join("postgresql.conf");
    run(Command::new("mv")
        .arg(data.join("postgresql.conf"))
        .arg(&real))
    .unwrap();
    symlink(&real, data.join("postgresql.conf")).unwrap();
    standby.node.start();
    // The primary has a certificate of its own, which comes with the copy.
    for name in ["server.crt", "server.key"] {
        primary.node.write(name, "the primary's\n");
    }

    // A list that is missing is told while the old server runs.
    fs::rename(data.join("admins"), data.join("admins.away")).unwrap();
    let refused = standby.setup_standby(&["--replace"]).unwrap_err();
    assert!(
        refused.contains("[G01]") && refused.contains("nothing was changed"),
        "{refused}"
    );
    assert_eq!(standby.node.query("select n from before"), "1");
    assert!(!aside(&standby), "{refused}");
    fs::rename(data.join("admins.away"), data.join("admins")).unwrap();

    let said = standby.setup_standby(&["--replace"]).unwrap();
    assert!(said.contains("It streams from"), "{said}");
    primary.node.wait_for_standby("standby1");
    assert_eq!(fs::read(data.join("server.crt")).unwrap(), certificate);
    assert_eq!(standby.node.query("show ssl"), "on");
    assert_eq!(
        fs::read_link(data.join("postgresql.conf")).unwrap(),
        real,
        "a link stays a link"
    );
    assert!(data.join("more/own.conf").exists());
}

/// Starts the server as a person does who wants no Unix socket.
fn start_without_socket(host: &Host) -> i32 {
    let data = host.node.data();
    let options = format!(
        "-c unix_socket_directories= -c listen_addresses=127.0.0.1 -c port={}",
        host.node.address().port()
    );
    let mut start = host.node.program("pg_ctl");
    start.args(["start", "-w", "-D"]).arg(&data);
    start
        .arg("-l")
        .arg(host.node.socket_dir().join("by-hand.log"));
    run(start.args(["-o", &options])).unwrap();
    let state = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    state.lines().next().unwrap().parse().unwrap()
}

#[test]
fn a_server_without_a_unix_socket_runs_all_the_same() {
    let (primary, mut standby) = joined(15);
    standby.node.stop(testbed::Stop::Fast);
    let pid = start_without_socket(&standby);
    let shown = standby.setup_standby(&["--replace", "--dry-run"]).unwrap();
    assert!(shown.contains("# stop "), "{shown}");
    let said = standby.setup_standby(&["--replace"]).unwrap();
    assert!(said.contains("stopping "), "{said}");
    // One that has ended and that nobody has asked how works nowhere any more.
    let works_in = fs::read_link(format!("/proc/{pid}/cwd"));
    assert!(works_in.is_err(), "{works_in:?}: {said}");
    primary.node.wait_for_standby("standby1");

    let mut other = Host::new("db2", 15);
    start_without_socket(&other);
    let refused = other.setup_primary(&["--name", "db2"]).unwrap_err();
    assert!(
        refused.contains("[G31]") && refused.contains("unix_socket_directories"),
        "{refused}"
    );
}
