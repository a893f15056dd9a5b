//! docs/quickstart.md, run as it stands: two commands on each host, from packages' clusters to a stream, and `doctor` at the
//! end says that all is well. What one machine needs that plays both hosts (directories, ports, names) comes besides.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::process::{Command, Stdio};

use testbed::{Host, programs, wait_until};

/// The commands of one host: the indented lines under its heading.
fn commands(heading: &str) -> Vec<Vec<String>> {
    let page = include_str!("../../docs/quickstart.md");
    let (_, after) = page.split_once(&format!("## {heading}\n")).unwrap();
    let part = after.split("\n## ").next().unwrap();
    let lines = part.lines().filter_map(|line| line.strip_prefix("    "));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    lines.map(words).collect()
}

/// The words after the program's name, with the primary's address as it is on this machine.
fn words<'a>(command: &'a [String], public: &'a str) -> Vec<&'a str> {
    assert_eq!(command[0], "pgtlsproxy");
    let word = |word: &'a String| match word.as_str() {
        "db1.example.com:5443" => public,
        word => word,
    };
    command[1..].iter().map(word).collect()
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

#[test]
fn the_page_leads_from_packages_to_a_stream_and_doctor_finds_all_well() {
    for major in programs::majors() {
        println!("PostgreSQL {major}");
        let [setup, invite] = commands("On the primary's host").try_into().unwrap();
        let [join, doctor] = commands("On the standby's host").try_into().unwrap();
        let mut primary = Host::new("db1", major);
        primary.node.start();
        let public = primary.public();
        let data = primary.node.data().display().to_string();
        // On this machine the address is no name that a certificate could be called by.
        let hidden = ["--name", "db1", "--os-user", "root", "--pgdata", &data];
        run(&mut primary.command(&words(&setup, &public), &hidden), "");
        primary.serve();
        assert_eq!(words(&invite, &public), ["invite", "standby1"]);
        let (token, mut inviting) = primary.invite("standby1");

        let mut standby = Host::new("standby1", major);
        let listen = standby.public().replace("localhost", "127.0.0.1");
        let mut join = standby.with_cluster(&words(&join, &public), &["--listen", &listen]);
        let joining = std::thread::spawn(move || run(&mut join, &format!("{token}\n")));
        // What systemd does on a host of its own, once all is there.
        let run_directory = standby.dir().join("run");
        wait_until("the node's directories", || run_directory.exists());
        standby.serve();
        let said = joining.join().unwrap();
        assert!(said.contains("It streams from"), "{said}");
        assert!(inviting.wait().unwrap().success());
        primary.node.wait_for_standby("standby1");

        let config = standby.dir().join("pgtlsproxy.toml").display().to_string();
        let data = standby.node.data().display().to_string();
        let mut examine = Command::new(programs::pgtlsproxy());
        examine.args(words(&doctor, &public));
        examine.args(["--config", &config, "--pgdata", &data]);
        let mut last = String::new();
        wait_until("doctor to find all well", || {
            let output = examine.output().unwrap();
            last = String::from_utf8_lossy(&output.stdout).into_owned();
            let well = last
                .trim_end()
                .lines()
                .last()
                .is_some_and(|line| line.contains("all well"));
            if !well {
                println!("{last}");
            }
            well && output.status.success()
        });
    }
}
