//! The manual, the dashboard and the alert rules speak of the metrics that there are, and Prometheus and Grafana take them.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testbed::postgres::psql;
use testbed::programs::{pgtlsproxy, promtool};
use testbed::scrape::Family;
use testbed::{Node, Scrape, Scratch, Watched, Wire, run, wait_until, watched};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Everything that can happen has happened, so that every metric has a sample.
fn eventful() -> (Watched, Node, Node) {
    let primary = Node::builder("primary").init();
    // A standby that has nothing to say is asked every second.
    primary.append_conf("wal_sender_timeout = 2s");
    let primary = primary.started();
    let watched = Watched::to(&primary);
    let standby = Node::standby("standby", &watched.tunnel.conninfo());
    primary.wait_for_standby("standby");
    primary.query("create table t as select 1 as i");
    standby.catch_up_with(&primary);
    let refused = format!("{} replication=true", watched.tunnel.conninfo());
    psql(&refused, "IDENTIFY_SYSTEM").unwrap();
    // Both hosts' certificates are near their end.
    for name in ["primary", "standby"] {
        const DAY: i64 = 86_400;
        let pki = &watched.tunnel.pki;
        pki.issue_for_seconds(name, -300 * DAY, 20 * DAY);
    }
    // Neither end knows what this is.
    for sidecar in [&watched.tunnel.server, &watched.tunnel.client] {
        let mut stranger = Wire::tcp(sidecar.address());
        stranger.send(b"GET / HTTP/1.1\r\n\r\n");
        stranger.ending();
    }
    for (_, at) in watched.ends() {
        wait_until("a keepalive to be seen", || {
            let scrape = Scrape::of(at);
            let seen = |name| scrape.sum(name, &[]).is_some();
            seen("pgtlsproxy_keepalive_age_seconds")
                && seen("pgtlsproxy_reply_age_seconds")
                && seen("pgtlsproxy_session_duration_seconds_count")
                && seen("pgtlsproxy_refusals_total")
                && seen("pgtlsproxy_warnings")
        });
    }
    (watched, primary, standby)
}

/// The manual's table of metrics, as the scrapes would have it.
fn table(families: &BTreeMap<String, Family>) -> String {
    let rows = families.iter().map(|(name, family)| {
        let labels: Vec<_> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let Family {
            kind, unit, help, ..
        } = family;
        format!(
            "| `{name}` | {kind} | {unit} | {} | {help} |\n",
            labels.join(" ")
        )
    });
    rows.collect()
}

#[test]
fn manual_lists_each_metric_with_type_unit_labels_and_meaning() {
    let (watched, _primary, _standby) = eventful();
    let manual = std::fs::read_to_string(format!("{REPOSITORY}/docs/observability.md")).unwrap();
    let rows = manual
        .lines()
        .filter(|line| line.starts_with("| `pgtlsproxy_") || line.starts_with("| `process_"));
    let listed: String = rows.map(|row| format!("{row}\n")).collect();
    for (end, at) in watched.ends() {
        let scrape = Scrape::of(at);
        for (name, family) in &scrape.families {
            assert!(family.samples > 0, "{end} has no sample of {name}");
        }
        let counted = table(&scrape.families);
        assert_eq!(listed, counted, "the {end}'s table would be\n{counted}");
    }
}

#[test]
fn prometheus_finds_nothing_to_complain_of() {
    let (watched, _primary, _standby) = eventful();
    for (_, at) in watched.ends() {
        let scrape = Scrape::of(at);
        let mut lint = Command::new(promtool())
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = lint.stdin.take().unwrap();
        stdin.write_all(scrape.as_text_format().as_bytes()).unwrap();
        drop(stdin);
        let said = lint.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && text.is_empty(), "{text}");
        // Its parser of OpenMetrics reads files for the database, in which each sample has a time.
        let timed = scrape.text.lines().map(|line| {
            let time = if line.starts_with('#') {
                ""
            } else {
                " 1700000000"
            };
            format!("{line}{time}\n")
        });
        let dir = Scratch::new("openmetrics");
        let file = dir.path().join("scrape");
        std::fs::write(&file, timed.collect::<String>()).unwrap();
        let mut parse = Command::new(promtool());
        parse.args(["tsdb", "create-blocks-from", "openmetrics"]);
        run(parse.arg(&file).arg(dir.path().join("data"))).unwrap();
    }
}

/// Words that are names of metrics of ours.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let ours = words.filter(|word| word.starts_with("pgtlsproxy_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// Every query of the dashboard, those of its variables included.
fn queries(dashboard: &Value) -> Vec<String> {
    match dashboard {
        Value::Object(fields) => {
            let here = ["expr", "definition"]
                .iter()
                .filter_map(|name| fields.get(*name)?.as_str());
            let below = fields.values().flat_map(queries);
            here.map(str::to_owned).chain(below).collect()
        }
        Value::Array(values) => values.iter().flat_map(queries).collect(),
        _ => Vec::new(),
    }
}

fn contrib(file: &str) -> String {
    std::fs::read_to_string(format!("{REPOSITORY}/contrib/{file}")).unwrap()
}

#[test]
fn dashboard_and_rules_ask_for_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(&contrib("grafana/pgtlsproxy.json")).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 30, "{queries:?}");
    let rules = contrib("prometheus/alerts.yml");
    let (watched, _primary, _standby) = eventful();
    let scrape = Scrape::of(watched.server);
    let there: BTreeSet<_> = scrape
        .samples
        .values()
        .map(|sample| sample.name.clone())
        .collect();
    let code: String = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    for text in queries.iter().chain([&code]) {
        let unknown: Vec<_> = metrics_in(text).difference(&there).cloned().collect();
        assert!(unknown.is_empty(), "{unknown:?} in {text}");
    }
    // What is there is shown.
    let shown: BTreeSet<_> = queries.iter().flat_map(|query| metrics_in(query)).collect();
    for family in scrape
        .families
        .keys()
        .filter(|name| name.starts_with("pgtlsproxy_"))
    {
        assert!(
            shown.iter().any(|name| name.starts_with(family.as_str())),
            "{family} is not shown"
        );
    }
    // Prometheus can read each query.
    let exprs = queries
        .iter()
        .filter(|query| !query.starts_with("label_values("));
    let records = exprs.enumerate().map(|(number, query)| {
        let query = query.replace("$__rate_interval", "5m").replace('\'', "''");
        format!("      - record: dashboard:query:{number}\n        expr: '{query}'\n")
    });
    let dir = Scratch::new("rules");
    let file = dir.path().join("rules.yml");
    let head = "groups:\n  - name: dashboard\n    rules:\n";
    std::fs::write(&file, head.to_owned() + &records.collect::<String>()).unwrap();
    run(Command::new(promtool()).args(["check", "rules"]).arg(&file)).unwrap();
}

#[test]
fn dashboard_is_one_that_grafana_takes() {
    let dashboard: Value = serde_json::from_str(&contrib("grafana/pgtlsproxy.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(39));
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "job", "instance", "tunnel"]);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = &panel["gridPos"];
        let side = |name: &str| place[name].as_u64().unwrap();
        for x in side("x")..side("x") + side("w") {
            assert!(x < 24, "{place}");
            for y in side("y")..side("y") + side("h") {
                assert!(taken.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(!panel["targets"].as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn each_alert_fires_and_keeps_silent_in_its_cases_and_says_what_to_do() {
    let dir = Path::new(REPOSITORY).join("contrib/prometheus");
    let promtool = |arguments: [&str; 3]| {
        run(Command::new(promtool()).current_dir(&dir).args(arguments)).unwrap()
    };
    promtool(["check", "rules", "alerts.yml"]);
    let cases = ["alerts_test.yml", "streams_test.yml"].map(|file| {
        promtool(["test", "rules", file]);
        contrib(&format!("prometheus/{file}"))
    });
    let (rules, cases) = (contrib("prometheus/alerts.yml"), cases.concat());
    let mut alerts = rules.split("- alert: ").skip(1);
    let mut count = 0;
    alerts.by_ref().for_each(|alert| {
        let name = alert.lines().next().unwrap();
        for field in ["summary: ", "description: ", "command: ", "severity: "] {
            assert!(alert.contains(field), "{name} has no {field}");
        }
        let named = cases.split("- alertname: ").skip(1);
        let outcomes: BTreeSet<bool> = named
            .filter(|case| case.lines().next() == Some(name))
            .map(|case| case.contains("exp_alerts: []"))
            .collect();
        assert_eq!(outcomes.len(), 2, "{name} has no case of either kind");
        count += 1;
    });
    assert!(count >= 15, "{count}");
}

#[test]
fn each_command_that_an_alert_names_runs() {
    let primary = Node::primary();
    let watched = Watched::to(&primary);
    let standby = watched::standby(&primary, &watched.tunnel.conninfo());
    let rules = contrib("prometheus/alerts.yml");
    let commands = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("command: \"")?.strip_suffix('"'))
        .flat_map(|line| line.split("; "))
        .map(|command| {
            let place = [" on both hosts", " on the standby"];
            let there = place.iter().find_map(|place| command.strip_suffix(place));
            there.unwrap_or(command)
        });
    let commands: BTreeSet<_> = commands.collect();
    assert!(commands.len() >= 10, "{commands:?}");
    for command in commands {
        let (program, arguments) = command.split_once(' ').unwrap();
        let arguments = arguments.split(' ');
        match program {
            "pgtlsproxy" => {
                let mut run = Command::new(pgtlsproxy());
                let file = watched.tunnel.server.dir().join("pgtlsproxy.toml");
                run.args(arguments).arg("--config").arg(file);
                let said = run.output().unwrap();
                // What is well in a test and what is not is not asked here; 2 is wrong usage.
                let usage = matches!(said.status.code(), None | Some(2));
                assert!(!usage, "{command}: {said:?}");
            }
            "certs-tool" => {
                let arguments: Vec<_> = arguments.collect();
                watched.tunnel.pki.certs_tool(&arguments).unwrap();
            }
            "psql" => {
                let query = command.strip_prefix("psql -c '").unwrap();
                standby.query(query.strip_suffix('\'').unwrap());
            }
            // The machine's own.
            "systemctl" | "journalctl" | "ss" => {}
            unknown => panic!("nobody runs {unknown}: {command}"),
        }
    }
}
