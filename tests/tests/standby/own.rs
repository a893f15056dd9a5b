//! What a host has of its own: a server that makes no Unix socket.

use super::*;

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
