//! The bench as a user runs it, for a second each: ours and no proxy at all.
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use testbed::programs::{certs_tool, pgtlsproxy};

const BENCH: &str = env!("CARGO_BIN_EXE_pgtlsproxy-bench");

/// Runs it with our programs as they were built for the tests, wherever these are.
fn bench(arguments: &[&str]) -> Output {
    let bin = tempfile::tempdir().unwrap();
    for (program, name) in [(pgtlsproxy(), "pgtlsproxy"), (certs_tool(), "certs-tool")] {
        std::os::unix::fs::symlink(program, bin.path().join(name)).unwrap();
    }
    Command::new(BENCH)
        .args(arguments)
        .arg("--bin")
        .arg(bin.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn cells(output: &Output) -> Vec<Value> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn contenders(cells: &[Value], measure: &str) -> BTreeSet<String> {
    let measured = cells.iter().filter(|cell| {
        cell["measures"][measure]
            .as_f64()
            .is_some_and(|it| it > 0.0)
    });
    measured
        .map(|cell| cell["contender"].as_str().unwrap().to_owned())
        .collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn throughput_and_latency_share_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().to_str().unwrap();
    let rest = [
        "--seconds",
        "1",
        "--repetitions",
        "1",
        "--against",
        "direct",
        "--json",
        "--report",
        report,
    ];
    let both = names(&["direct", "pgtlsproxy"]);

    let throughput = cells(&bench(&[&["throughput"], rest.as_slice()].concat()));
    assert_eq!(contenders(&throughput, "gib_per_second"), both);
    assert_eq!(
        contenders(&throughput, "cpu_per_gib"),
        names(&["pgtlsproxy"])
    );

    let latency = cells(&bench(&[&["latency"], rest.as_slice()].concat()));
    assert_eq!(contenders(&latency, "p50"), both);
    assert_eq!(contenders(&latency, "p999"), both);

    let saved = std::fs::read_to_string(dir.path().join("cells.jsonl")).unwrap();
    assert_eq!(saved.lines().count(), 2 + throughput.len() + latency.len());
    let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
    for wanted in ["<h2>throughput</h2>", "<h2>latency</h2>", "<svg"] {
        assert!(page.contains(wanted), "{wanted}");
    }
}

#[test]
fn scrapes_and_round_trips_beside_sessions_are_told() {
    let output = bench(&[
        "scrape",
        "--sessions",
        "20",
        "--rate",
        "200",
        "--seconds",
        "0.5",
        "--repetitions",
        "1",
        "--json",
    ]);
    let cells = cells(&output);
    let ours = names(&["pgtlsproxy"]);
    for measure in [
        "p99",
        "scraped_p99",
        "scraped_to_quiet_p99",
        "cpu_per_scrape",
        "scrape_takes",
    ] {
        assert_eq!(contenders(&cells, measure), ours, "{measure}");
    }
    // One path at a time, and none: by how much windows differ that are all quiet.
    let workloads = cells.iter().map(|cell| cell["workload"].as_str().unwrap());
    let beside: BTreeSet<_> = workloads
        .filter_map(|workload| workload.strip_prefix("round trips beside 20 sessions, "))
        .map(str::to_owned)
        .collect();
    let asked = [
        "/metrics each second",
        "/status.json each second",
        "nothing each second",
    ];
    assert_eq!(beside, names(&asked));
    // The snapshot tells each session, the metrics only their sums.
    let size = |path: &str| {
        let asked = |cell: &&Value| cell["workload"].as_str().unwrap().starts_with(path);
        let cell = cells.iter().find(asked).unwrap();
        cell["measures"]["scrape_size"].as_f64().unwrap()
    };
    assert!(size("/metrics") > 1.0);
    assert!(size("/status.json") > size("/metrics"));
}

/// Killed on drop.
struct Backend(Child, String);

impl Backend {
    fn start() -> Self {
        let mut child = Command::new(BENCH)
            .args(["backend", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stderr = child.stderr.take().unwrap();
        BufReader::new(stderr).read_line(&mut line).unwrap();
        let address = line
            .strip_prefix("listening on ")
            .and_then(|rest| rest.split(';').next())
            .unwrap_or_else(|| panic!("{line}"))
            .to_owned();
        Self(child, address)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tunnel_that_already_runs_can_be_loaded() {
    let backend = Backend::start();
    let output = bench(&[
        "throughput",
        "--gib",
        "0.05",
        "--repetitions",
        "2",
        "--json",
        "--target",
        &backend.1,
    ]);
    let cells = cells(&output);
    assert_eq!(contenders(&cells, "gib_per_second"), names(&["target"]));
    assert_eq!(cells.len(), 2);
}

#[test]
fn a_run_that_fails_says_so() {
    let port = testbed::reserve_port();
    let nobody = format!("127.0.0.1:{port}");
    let output = bench(&[
        "latency",
        "--seconds",
        "1",
        "--repetitions",
        "1",
        "--target",
        &nobody,
    ]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("target does not work: Connection refused"),
        "{stderr}"
    );
}
