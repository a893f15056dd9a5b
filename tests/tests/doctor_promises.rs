//! What `doctor` promises whatever it finds: it changes nothing, is done in five seconds, fits a screen, shows names so
//! that they play no tricks, and its JSON keeps its form.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::netns::Namespaces;
use testbed::programs::pgtlsproxy;
use testbed::site::{HBA, Site};
use testbed::wait::wait_until;
use testbed::{Node, Sidecar, Stop, give_to_postgres};

/// The command as a person types it, behind these words.
fn command(before: &[&str], sidecar: &Sidecar, node: &Node) -> Command {
    let program = pgtlsproxy().to_str().unwrap();
    let words: Vec<&str> = before.iter().copied().chain([program, "doctor"]).collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg("--config")
        .arg(sidecar.dir().join("pgtlsproxy.toml"))
        .arg("--pgdata")
        .arg(node.data());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Calls that change files or rights, and those that open them.
const CALLS: &str = "trace=open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,\
    linkat,symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,truncate,ftruncate,\
    fallocate,utimensat,setxattr,lsetxattr,kill,tkill,tgkill,mount";

/// Runs it under strace and gives every call that changes something.
fn changes(site: &Site, sidecar: &Sidecar, node: &Node) -> (Output, Vec<String>) {
    let trace = site.client.dir().join("trace");
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-e",
        CALLS,
        "-o",
        trace.to_str().unwrap(),
    ];
    let output = command(&strace, sidecar, node).output().unwrap();
    let calls = fs::read_to_string(&trace).unwrap();
    assert!(calls.contains("pgtlsproxy.toml"), "it was traced: {calls}");
    let own: BTreeSet<&str> = calls
        .lines()
        .filter_map(|call| call.split_whitespace().next())
        .collect();
    let harmless = |call: &str| {
        // A program of its own that does not answer in time.
        let ends = call
            .split_once(" kill(")
            .and_then(|(_, of)| of.split_once(','));
        if ends.is_some_and(|(whom, _)| own.contains(whom)) {
            return true;
        }
        let opens = call.contains(" open(") || call.contains(" openat(");
        let reads = opens
            && !["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"]
                .iter()
                .any(|flag| call.contains(flag));
        let nowhere = ["\"/dev/null\"", "\"/dev/tty\""];
        reads || (opens && nowhere.iter().any(|path| call.contains(path)))
    };
    let calls = calls
        .lines()
        .filter(|call| call.contains('('))
        .filter(|call| !harmless(call) && !call.contains("SIGCHLD") && !call.contains(" resumed>"));
    (output, calls.map(str::to_owned).collect())
}

#[test]
fn nothing_is_changed() {
    let mut site = Site::with(15, "log_statement = 'all'");
    let transactions =
        |node: &Node| node.query("select txid_snapshot_xmax(txid_current_snapshot())");
    // A stream moves its slot by itself.
    let slots = "select slot_name, wal_status, case when not active then restart_lsn end from pg_replication_slots";
    let quiet = |site: &Site, plant: &str| {
        let mark = site.primary.log().mark();
        let before = (transactions(&site.primary), site.primary.query(slots));
        for (sidecar, node) in [(&site.client, &site.standby), (&site.server, &site.primary)] {
            let (output, changes) = changes(site, sidecar, node);
            assert!(output.status.code().is_some(), "{plant}: {output:?}");
            assert!(changes.is_empty(), "{plant}: {changes:#?}");
        }
        let after = (transactions(&site.primary), site.primary.query(slots));
        assert_eq!(before, after, "{plant}");
        let log = site.primary.log().after(mark);
        assert!(log.contains("pgtlsproxy doctor"), "{plant}: {log}");
        let said = |line: &str| {
            let (_, said) = line
                .split_once("statement: ")
                .or_else(|| line.split_once("received replication command: "))?;
            Some(said.trim().to_lowercase())
        };
        let may = [
            "set ",
            "select ",
            "show ",
            "identify_system",
            "timeline_history ",
            "start_replication ",
        ];
        for said in log.lines().filter_map(said) {
            assert!(
                may.iter().any(|word| said.starts_with(word)),
                "{plant}: {said}"
            );
        }
    };
    quiet(&site, "all well");
    site.primary.query("alter role replicator noreplication");
    site.break_stream();
    quiet(&site, "a role that may not replicate");
    site.primary.query("alter role replicator replication");
    site.wait_for_stream();
    site.stand_still();
    site.primary
        .poll_query_until("select active from pg_replication_slots", "f");
    // Now it begins a stream, too.
    quiet(&site, "a standby that does not ask");
    site.standby.stop(Stop::Fast);
    let (output, changes) = changes(&site, &site.client, &site.standby);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(changes.is_empty(), "a stopped standby: {changes:#?}");
}

#[test]
fn a_black_hole_and_a_server_that_hangs_take_less_than_five_seconds() {
    let Some(hosts) = Namespaces::new() else {
        return;
    };
    let site = Site::new(15);
    hosts.cut();
    let target = format!("{}:5443", Namespaces::RIGHT);
    site.client
        .rewrite(&site.following(&target, "server_name = \"primary.test\""));
    let left = hosts.left();
    let within = |plant: &str| {
        let began = Instant::now();
        let output = command(&["ip", "netns", "exec", &left], &site.client, &site.standby)
            .output()
            .unwrap();
        let took = began.elapsed();
        let said = text(&output);
        assert!(took < Duration::from_secs(5), "{plant}: {took:?}\n{said}");
        assert_eq!(output.status.code(), Some(1), "{plant}: {said}");
        said
    };
    let said = within("a black hole");
    assert!(
        said.contains("network  PROBLEM") && said.contains(&target),
        "{said}"
    );
    assert!(said.contains("postgres skipped"), "{said}");

    // And the server here answers nobody, either.
    let postmaster = Pid::from_raw(site.standby.pid());
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let said = within("a black hole and a server that hangs");
    kill(postmaster, Signal::SIGCONT).unwrap();
    assert!(said.contains("network  PROBLEM"), "{said}");
    assert!(
        said.contains("unseen   what PostgreSQL says: no answer within"),
        "{said}"
    );
}

/// docs/doctor.md lists what there is; a field that goes or comes must show there.
#[test]
fn json_has_the_fields_that_are_documented() {
    let site = Site::new(15);
    site.primary
        .write("pg_hba.conf", "local all all peer map=site\n");
    site.primary.reload();
    site.break_stream();
    let report = site.doctor_on_standby().report;

    let page = include_str!("../../docs/doctor.md");
    let (_, section) = page.split_once("## JSON\n").unwrap();
    let rows: Vec<(&str, &str)> = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.trim_matches('|').split_once(" | "))
        .collect();
    let quoted = |text: &str| -> BTreeSet<String> {
        text.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let keys = |value: &Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let documented = rows.iter().flat_map(|(field, _)| quoted(field)).collect();
    assert_eq!(keys(&report), documented);
    for list in ["layers", "findings"] {
        let (_, what) = rows.iter().find(|(field, _)| field.contains(list)).unwrap();
        let listed = quoted(what);
        for one in report[list].as_array().unwrap() {
            for field in keys(one) {
                assert!(listed.contains(&field), "{list}: {field} is not documented");
            }
            for field in ["state", "severity"] {
                let value = one[field].as_str().unwrap_or("ok");
                assert!(listed.contains(value) || value == "ok", "{list}: {value}");
            }
        }
    }
    assert_eq!(report["version"], 1);
    assert_eq!(report["verdict"], "problems");
    let finding = &report["findings"][0];
    assert_eq!(
        [&finding["id"], &finding["layer"], &finding["severity"]],
        ["H01", "postgres", "error"]
    );
    let names: Vec<&str> = report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["layer"].as_str().unwrap())
        .collect();
    let order = [
        "config", "network", "clocks", "tls", "policy", "postgres", "standby",
    ];
    assert_eq!(names, order);
    assert!(
        report["unseen"].as_array().unwrap().is_empty(),
        "{report:#}"
    );
}

/// Rows of a terminal with 80 columns.
fn rows(text: &str) -> usize {
    text.lines()
        .map(|line| line.chars().count().div_ceil(80).max(1))
        .sum()
}

#[test]
fn a_bad_day_still_fits_a_screen() {
    let mut site = Site::new(15);
    site.standby.stop(Stop::Fast);
    for number in 0..12 {
        site.primary.query(&format!(
            "select pg_create_physical_replication_slot('gone_{number}', true)"
        ));
    }
    site.primary
        .query("alter system set max_slot_wal_keep_size = '1MB'");
    site.primary.reload();
    wait_until("the slots to be lost", || {
        site.primary
            .query("select pg_logical_emit_message(false, 'a', 'b'), pg_switch_wal()");
        site.primary.query("checkpoint");
        site.primary
            .query("select count(*) from pg_replication_slots where wal_status = 'lost'")
            == "13"
    });
    let secret = site.primary.data().join("root's only");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let trusting = "host all all 127.0.0.1/32 trust\n";
    site.primary
        .write("pg_hba.conf", &format!("{HBA}{trusting}{trusting}"));
    site.primary.append_conf("max_wal_senders = 21");
    site.primary.reload();
    site.primary.poll_query_until(
        "select pending_restart from pg_settings where name = 'max_wal_senders'",
        "t",
    );
    site.primary.write(
        "pg_hba.conf",
        &format!("{HBA}{trusting}{trusting}# edited\n"),
    );
    let output = command(&["env"], &site.server, &site.primary)
        .output()
        .unwrap();
    let said = text(&output);
    println!("{said}");
    assert_eq!(output.status.code(), Some(1));
    assert!(rows(&said) <= 40, "{} rows of 80 columns", rows(&said));
    assert!(said.contains("and 10 more [U03]"), "{said}");
    let quoted = r"root'\''s only'";
    let is_root = nix::unistd::Uid::effective().is_root();
    assert!(!is_root || said.contains(quoted), "{said}");
    for id in ["H05", "H08", "H09"] {
        assert!(said.contains(id), "{id}");
    }
    assert!(
        said.lines().last().unwrap().starts_with("verdict: "),
        "{said}"
    );
    assert_eq!(said.matches("verdict: ").count(), 1);
}

/// Names are others' words: in a report they neither move the cursor nor make lines of their own.
#[test]
fn names_play_no_tricks() {
    let site = Site::new(15);
    let role = "evil\u{1b}[2J\nverdict: all well \u{202e}\"x";
    let quoted = role.replace('"', "\"\"");
    site.primary
        .query(&format!("create role \"{quoted}\" login replication"));
    let said_by = |sidecar: &Sidecar, node: &Node| {
        let output = command(&["env"], sidecar, node).output().unwrap();
        let said = text(&output);
        println!("{said}");
        assert!(!said.contains(['\u{1b}', '\u{202e}', '\r']), "{said:?}");
        let verdicts = said.lines().filter(|line| line.starts_with("verdict: "));
        assert_eq!(verdicts.count(), 1, "{said}");
        said
    };
    // In the configuration file a line break is written so.
    let in_file = role.replace('\n', "\\n");
    let conninfo = site
        .conninfo()
        .replace("user=replicator", &format!("user='{in_file}'"));
    site.follow(&site.standby, &conninfo);
    site.standby.reload();
    site.standby.poll_query_until(
        "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
        "0",
    );
    let said = said_by(&site.client, &site.standby);
    assert!(
        said.contains("[A07]") && said.contains("evil\\u{1b}[2J\\u{a}"),
        "{said}"
    );
    site.primary.query("drop role replicator");
    site.primary
        .write("pg_hba.conf", "local all all peer map=site\n");
    site.primary.reload();
    let said = said_by(&site.server, &site.primary);
    assert!(
        said.contains("[H01]") && said.contains("evil\\u{1b}"),
        "{said}"
    );

    // A role that only needs quotes has them where it is to be copied.
    site.primary.query("create role \"Rep 1\" login");
    let conninfo = site.conninfo().replace("user=replicator", "user='Rep 1'");
    site.primary.write(
        "pg_hba.conf",
        &format!("local replication \"Rep 1\" trust\n{HBA}"),
    );
    site.primary.reload();
    site.follow(&site.standby, &conninfo);
    site.standby.reload();
    let said = said_by(&site.client, &site.standby);
    assert!(said.contains("ALTER ROLE \"Rep 1\" REPLICATION"), "{said}");
}

/// What only looks: files that are not there, not readable or not a file keep it from nothing.
#[test]
fn a_passfile_that_is_no_file_does_not_hold_it_up() {
    let site = Site::new(15);
    let scram = format!("local replication replicator scram-sha-256\n{HBA}");
    site.primary.query("alter role replicator password 'right'");
    site.primary.write("pg_hba.conf", &scram);
    site.primary.reload();
    let passfile = site.standby.socket_dir().join("fifo");
    nix::unistd::mkfifo(&passfile, nix::sys::stat::Mode::S_IRWXU).unwrap();
    give_to_postgres(&passfile);
    site.follow(
        &site.standby,
        &format!("{} passfile={}", site.conninfo(), passfile.display()),
    );
    site.standby.reload();
    site.break_stream();
    site.doctor_on_standby().names("A08", 1);
}
