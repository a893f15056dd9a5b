//! The main job, shown on this machine: certificates, a primary with data, two sidecars, a standby made through them
//! by pg_basebackup, both streaming. Then one sidecar is killed, and the standby is seen coming back by itself.
//! Everything lies in one temporary directory, which is removed at the end.
#![expect(
    clippy::print_stdout,
    reason = "the rows seen are this command's output"
)]

mod account;
mod pki;
mod process;
mod server;
mod sidecar;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::problem::Problem;

use crate::interrupt::Interrupt;
use account::Account;
use server::{Programs, Server};
use sidecar::Sidecar;

/// Everything here answers within a fraction of it, unless the machine is overloaded.
const PATIENCE: Duration = Duration::from_secs(60);
/// When the sidecar is killed, after so long a time of streaming.
const KILL_AFTER: Duration = Duration::from_secs(4);
const BEAT: Duration = Duration::from_secs(1);

/// Shows it until Ctrl-C, or for `seconds` of streaming.
pub(crate) fn run(seconds: Option<u64>, bindir: Option<&Path>) -> Result<(), Problem> {
    let interrupt = Interrupt::listen()?;
    let programs = Programs::find(bindir)?;
    let account = Account::unprivileged()?;
    let directory = account.temporary_directory()?;
    let root = directory.path();
    say(&format!(
        "PostgreSQL {} from {}",
        programs.version()?,
        programs.directory().display()
    ));
    say(&format!(
        "in {}, as the OS user {}",
        root.display(),
        account.name()
    ));

    say("certificates: one CA, one certificate for each node (certs-tool ca init, issue)");
    pki::make(root, &account)?;

    say(
        "primary: initdb, a role with REPLICATION, a table with 10000 rows; it listens on its Unix socket alone",
    );
    let primary = Server::primary(&programs, &account, root)?;

    say("sidecars: pgtlsproxy server beside the primary, pgtlsproxy client beside the standby");
    let mut near_primary = Sidecar::server(&account, root, &primary, None)?;
    let near_standby = Sidecar::client(&account, root, near_primary.address())?;

    say("standby: pg_basebackup through both sidecars, then streaming");
    let standby = Server::standby(&programs, &account, root, &near_standby)?;
    wait_for_stream(&primary, &interrupt)?;
    if let Some(open) = near_primary.wait_for("session open", PATIENCE) {
        let field = |name: &str| {
            open.get(name)
                .and_then(|value| value.as_str())
                .unwrap_or("?")
                .to_owned()
        };
        say(&format!("on the wire: {}", field("tls")));
        say(&format!(
            "the primary's sidecar knows the standby's as {}; the standby's checked that it reached dns:db1.example.com",
            field("identity")
        ));
    }
    say("it streams. Rows written on the primary, read on the standby:");

    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let over = || interrupt.came() || end.is_some_and(|end| Instant::now() >= end);
    let began = Instant::now();
    let mut killed = false;
    let mut beats = 0;
    while !over() {
        beats += 1;
        show_beat(&primary, &standby, beats)?;
        if !killed && began.elapsed() >= KILL_AFTER {
            killed = true;
            near_primary =
                kill_and_return(near_primary, &account, root, &primary, &standby, &interrupt)?;
        }
        interrupt.sleep(BEAT);
    }
    say("ending: standby, sidecars, primary; removing what was made");
    standby.stop();
    drop(near_standby);
    drop(near_primary);
    primary.stop();
    Ok(())
}

fn show_beat(primary: &Server, standby: &Server, beat: u32) -> Result<(), Problem> {
    primary.query(&format!(
        "INSERT INTO measurements(taken, value) SELECT now(), random() FROM generate_series(1, {})",
        100 + beat
    ))?;
    let lsn = primary.query("SELECT pg_current_wal_lsn()")?;
    let deadline = Instant::now() + PATIENCE;
    while standby.query(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"))? != "t" {
        if Instant::now() > deadline {
            return Err(Problem::new(
                "S01",
                "the standby does not follow",
                format!("after {} s it has not replayed {lsn}", PATIENCE.as_secs()),
                format!("its log ends with:\n{}", standby.log_tail()),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let here = primary.query("SELECT count(*) FROM measurements")?;
    let there = standby.query("SELECT count(*) FROM measurements")?;
    let lag = primary.query(
        "SELECT coalesce(extract(milliseconds FROM replay_lag)::numeric(10,1)::text, '0') || ' ms, ' \
         || pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) || ' bytes' FROM pg_stat_replication",
    )?;
    println!("primary {here} rows at {lsn}; standby {there} rows; lag {lag}");
    Ok(())
}

/// Kills the primary's sidecar, shows what the standby's log says then, starts it again and waits for the stream.
fn kill_and_return(
    mut sidecar: Sidecar,
    account: &Account,
    root: &Path,
    primary: &Server,
    standby: &Server,
    interrupt: &Interrupt,
) -> Result<Sidecar, Problem> {
    say("now the primary's sidecar is killed (kill -9) ...");
    let address = sidecar.address().to_owned();
    sidecar.kill();
    drop(sidecar);
    let deadline = Instant::now() + PATIENCE;
    while !standby.log_tail().contains("pgtlsproxy:")
        && Instant::now() < deadline
        && !interrupt.came()
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    say("the standby's own log says why it does not stream:");
    for line in standby
        .log_tail()
        .lines()
        .filter(|line| line.contains("pgtlsproxy:") || line.contains("HINT"))
        .take(2)
    {
        say(&format!("    {}", line.trim()));
    }
    say("... and started again:");
    let sidecar = Sidecar::server(account, root, primary, Some(&address))?;
    let began = Instant::now();
    wait_for_stream(primary, interrupt)?;
    say(&format!(
        "the standby streams again, by itself, {:.1} s later",
        began.elapsed().as_secs_f32()
    ));
    Ok(sidecar)
}

fn wait_for_stream(primary: &Server, interrupt: &Interrupt) -> Result<(), Problem> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let streaming =
            primary.query("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")?;
        if streaming == "1" || interrupt.came() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Problem::new(
                "S01",
                "the standby does not stream",
                format!("the primary has seen none for {} s", PATIENCE.as_secs()),
                format!("the primary's log ends with:\n{}", primary.log_tail()),
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn say(text: &str) {
    eprintln!("{text}");
}
