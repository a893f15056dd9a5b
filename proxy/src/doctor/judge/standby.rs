//! The standby itself, on a client tunnel's host: its files, whether it recovers, whether it is of this primary's
//! history, its walreceiver, and replay.

use protocol::replication::Lsn;

use super::answer::login;
use super::{View, slot_sync, words};
use crate::doctor::catalogue::{self as found, Entry};
use crate::doctor::facts::{Cluster, Facts, Login, Receiver, Server, Side};
use crate::doctor::report::Finding;

/// START_REPLICATION from a point that is not in the server's history, or beyond its end: an error without a code of its
/// own (internal_error).
const OTHER_HISTORY: &str = "XX000";
/// A walreceiver asks at half of wal_receiver_timeout and gives up at the whole of it.
const RECEIVER_SLACK: f64 = 1.0;
/// Longer than any dial of a proxy takes by default.
const CONNECTING: f64 = 15.0;
const NEED_NOT_BE_LESS: &[&str] = &[
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

pub(super) fn standby(facts: &Facts, view: &mut View) {
    let Some(cluster) = &facts.cluster else {
        return;
    };
    if facts.side == Side::Server {
        return;
    }
    let login = login(facts);
    if cluster.recovery_conf && cluster.major >= 12 {
        let path = cluster.data.join("recovery.conf").display().to_string();
        view.find(Finding::new(
            &found::RECOVERY_CONF,
            format!("{path} is there"),
            &path,
        ));
        return;
    }
    if !cluster.running {
        stopped(cluster, login, view);
        return;
    }
    let Some(server) = &cluster.server else {
        if cluster.silent {
            let fact = log_or(
                cluster,
                "it was asked through its socket, and did not answer",
            );
            view.find(Finding::new(&found::STANDBY_SILENT, fact, ""));
        }
        return;
    };
    if server.about.in_recovery {
        recovering(facts, cluster, server, login, view);
    } else {
        not_recovering(cluster, server, login, view);
    }
}

fn stopped(cluster: &Cluster, login: Option<&Login>, view: &mut View) {
    if let Some(error) = &cluster.conf_error {
        view.find(Finding::new(&found::CONF_DOES_NOT_LOAD, error.clone(), ""));
    } else if !cluster.standby_signal && was_standby(cluster) {
        let (file, mend) = signal(cluster);
        view.find(Finding::new(
            &found::WOULD_START_AS_PRIMARY,
            format!("it was in recovery when it ran last, and there is no {file}"),
            &mend,
        ));
    } else if let Some((fact, mend)) = login.and_then(|login| lower_than(cluster, login)) {
        view.find(Finding::new(&found::SETTINGS_LOWER, fact, &mend));
    } else {
        let fact = log_or(cluster, "there is no living process in postmaster.pid");
        view.find(Finding::new(&found::STANDBY_DOWN, fact, ""));
    }
}

fn was_standby(cluster: &Cluster) -> bool {
    cluster
        .control
        .as_ref()
        .is_some_and(|control| control.in_recovery)
        || cluster.data.join("backup_label").exists()
            && !cluster.setting("primary_conninfo").is_empty()
}

fn signal(cluster: &Cluster) -> (&'static str, String) {
    if cluster.major < 12 {
        let path = cluster.data.join("recovery.conf");
        (
            "recovery.conf with standby_mode = 'on'",
            format!(
                "write standby_mode and primary_conninfo to {}",
                path.display()
            ),
        )
    } else {
        let path = cluster.data.join("standby.signal");
        let owner = &cluster.owner;
        (
            "standby.signal",
            format!(
                "install -m 600 -o {owner} /dev/null {}",
                words::shell(&path.display().to_string())
            ),
        )
    }
}

fn not_recovering(cluster: &Cluster, server: &Server, login: Option<&Login>, view: &mut View) {
    let subscribes = cluster
        .upstream
        .as_ref()
        .is_some_and(|upstream| upstream.database.is_some());
    if subscribes {
        if cluster.flows() {
            view.see("the subscription's worker runs");
        } else if login.is_some() {
            view.find(Finding::new(
                &found::SUBSCRIPTION_STANDS,
                log_or(
                    cluster,
                    &format!(
                        "no worker of {} has heard anything",
                        idle(server).join(", ")
                    ),
                ),
                "",
            ));
        }
        return;
    }
    let Some(login) =
        login.filter(|login| Some(login.system_identifier.as_str()) == cluster.system_identifier())
    else {
        view.see("this PostgreSQL is no standby");
        return;
    };
    if login.in_recovery == Some(true) {
        view.see("this PostgreSQL is the primary, and the far one follows");
        return;
    }
    let own = server.about.timeline;
    if own == login.timeline {
        let (file, _) = signal(cluster);
        view.find(Finding::new(
            &found::SECOND_PRIMARY,
            format!(
                "pg_is_in_recovery() is false here and there, on timeline {own} of system {}; there is no {file} here",
                login.system_identifier
            ),
            file,
        ));
    } else {
        view.find(Finding::new(
            &found::TWO_PRIMARIES,
            format!(
                "pg_is_in_recovery() is false here, on timeline {own}, and there, on timeline {}",
                login.timeline
            ),
            "",
        ));
    }
}

/// Enabled subscriptions without a worker that hears its publisher.
fn idle(server: &Server) -> Vec<&str> {
    let idle = server
        .subscriptions
        .iter()
        .filter(|one| one.enabled && !one.running);
    idle.map(|one| one.name.as_str()).collect()
}

fn recovering(
    facts: &Facts,
    cluster: &Cluster,
    server: &Server,
    login: Option<&Login>,
    view: &mut View,
) {
    if cluster.setting("primary_conninfo").is_empty() {
        if cluster.setting("restore_command").is_empty() {
            view.find(Finding::new(
                &found::NO_CONNINFO,
                "primary_conninfo and restore_command are empty: it follows nobody",
                &facts.door_conninfo,
            ));
        } else {
            view.see("it is fed from the archive (restore_command)");
        }
        return;
    }
    if let Some((entry, fact)) = login.and_then(|login| stranger(cluster, login)) {
        view.find(Finding::new(entry, fact, ""));
        return;
    }
    let receiver = server.receiver.as_ref();
    if let Some(hung) = receiver.and_then(|receiver| hung(cluster, receiver)) {
        view.find(hung);
    } else if cluster.flows() {
        view.see("the walreceiver streams");
    } else {
        not_streaming(facts, cluster, receiver, login, view);
    }
    replay(cluster, server, login, view);
    if server.conninfo_places.len() > 1 {
        let places = server.conninfo_places.join(", then ");
        view.find(Finding::new(
            &found::CONNINFO_TWICE,
            format!("set in {places}"),
            "",
        ));
    }
    slot_sync::slot_sync(facts, cluster, view);
}

/// Why this standby cannot follow that server at all: another cluster, or another history.
fn stranger(cluster: &Cluster, login: &Login) -> Option<(&'static Entry, String)> {
    elsewhere(cluster, login).or_else(|| diverged(cluster, login))
}

/// That server is of another cluster, or an old primary: whatever it objects to is beside the point.
pub(super) fn elsewhere(cluster: &Cluster, login: &Login) -> Option<(&'static Entry, String)> {
    if cluster.in_recovery() != Some(true) {
        return None;
    }
    let own_id = cluster.system_identifier()?;
    if own_id != login.system_identifier && !login.system_identifier.is_empty() {
        return Some((
            &found::OTHER_SYSTEM,
            format!(
                "system identifier {own_id} here, {} there",
                login.system_identifier
            ),
        ));
    }
    let own = cluster.timeline()?;
    (own > login.timeline).then(|| {
        (
            &found::TIMELINE_AHEAD,
            format!("timeline {own} here, {} there", login.timeline),
        )
    })
}

/// WAL that the primary never had. The way out gives up data, so it takes both: histories that part on the timeline of
/// the WAL here, and the server's own refusal to go on from there.
fn diverged(cluster: &Cluster, login: &Login) -> Option<(&'static Entry, String)> {
    match &login.stream {
        Some(Err(error)) if error.sqlstate == OTHER_HISTORY => {}
        _ => return None,
    }
    let own = cluster.wal_timeline()?;
    let end = cluster.wal_end()?;
    let branched = login.history.iter().find(|(timeline, _)| *timeline == own);
    let fact = match branched {
        Some((_, at)) if end > *at => format!(
            "WAL here reaches {end} on timeline {own}, and the primary's timeline {} branched off at {at}",
            login.timeline
        ),
        _ if own == login.timeline && ahead(login, end) => {
            format!(
                "WAL here reaches {end}, the primary's ends at {}",
                login.lsn
            )
        }
        _ => return None,
    };
    Some((&found::DIVERGED, fact))
}

/// The standby was asked first: only what lies beyond the primary's end now was never there. Another standby may only be
/// behind.
fn ahead(login: &Login, end: Lsn) -> bool {
    login.in_recovery == Some(false) && login.lsn.0 > 0 && end > login.lsn
}

fn hung(cluster: &Cluster, receiver: &Receiver) -> Option<Finding> {
    let pid = receiver.pid.to_string();
    if let Some(seconds) = receiver
        .connecting_for
        .filter(|seconds| *seconds > CONNECTING)
    {
        return Some(Finding::new(
            &found::RECEIVER_HUNG,
            format!(
                "walreceiver {pid} has been connecting for {seconds:.0} s, which has no limit of its own"
            ),
            &pid,
        ));
    }
    let limit = cluster
        .setting("wal_receiver_timeout")
        .parse::<f64>()
        .ok()?
        / 1000.0;
    let silent = receiver.silent_for.filter(|_| receiver.status.is_some())?;
    (limit > 0.0 && silent > limit + RECEIVER_SLACK).then(|| {
        Finding::new(
            &found::RECEIVER_HUNG,
            format!("walreceiver {pid}: last message {silent:.0} s ago, wal_receiver_timeout is {limit:.0} s"),
            &pid,
        )
    })
}

fn not_streaming(
    facts: &Facts,
    cluster: &Cluster,
    receiver: Option<&Receiver>,
    login: Option<&Login>,
    view: &mut View,
) {
    let Some(login) = login else {
        view.see("the walreceiver does not stream");
        return;
    };
    if let Some(error) = facts.door.as_ref().and_then(|door| door.libpq.as_ref()) {
        view.find(Finding::new(&found::CONNINFO_REFUSED, error.clone(), ""));
        return;
    }
    let status = receiver
        .and_then(|receiver| receiver.status.as_deref())
        .unwrap_or("absent");
    if !cluster.setting("restore_command").is_empty() {
        view.see(format!(
            "the walreceiver is {status}; WAL may come from the archive (restore_command)"
        ));
        return;
    }
    let fact = match &login.stream {
        Some(Err(error)) => format!("START_REPLICATION: {}", error.line()),
        _ => log_or(cluster, &format!("walreceiver: {status}")),
    };
    view.find(Finding::new(&found::NO_RECEIVER, fact, ""));
}

fn replay(cluster: &Cluster, server: &Server, login: Option<&Login>, view: &mut View) {
    let Some(replay) = &server.replay else {
        return;
    };
    let received = replay.received.as_deref().unwrap_or("-");
    let replayed = replay.replayed.as_deref().unwrap_or("-");
    view.see(format!("received {received}, replayed {replayed}"));
    if replay.paused {
        // 14 and later pause by themselves when the primary's settings rise above the standby's.
        match login.and_then(|login| lower_than(cluster, login)) {
            Some((fact, mend)) => view.find(Finding::new(&found::SETTINGS_RAISED, fact, &mend)),
            None => view.find(Finding::new(
                &found::REPLAY_PAUSED,
                "pg_is_wal_replay_paused() is true",
                "",
            )),
        }
        return;
    }
    let delay = cluster.setting("recovery_min_apply_delay");
    if !matches!(delay, "" | "0") {
        view.see(format!(
            "replay is delayed on purpose (recovery_min_apply_delay = {delay} ms)"
        ));
        return;
    }
    if server.replayed_later.is_some() && server.replayed_later == replay.replayed {
        view.find(Finding::new(
            &found::REPLAY_STANDS,
            format!("received {received}, replayed {replayed}, and 0.8 s later the same"),
            "",
        ));
    }
}

/// The settings that are lower here than on the primary, and what to set.
fn lower_than(cluster: &Cluster, login: &Login) -> Option<(String, String)> {
    let number = |text: Option<&String>| text?.parse::<i64>().ok();
    let mut facts = Vec::new();
    let mut mends = Vec::new();
    for name in NEED_NOT_BE_LESS {
        // Before 12 a walsender took one of max_connections.
        if *name == "max_wal_senders" && cluster.major < 12 {
            continue;
        }
        let here = number(cluster.settings.get(*name));
        let there = number(login.settings.get(*name));
        if let (Some(here), Some(there)) = (here, there)
            && here < there
        {
            facts.push(format!("{name} = {here} here, {there} there"));
            mends.push(format!("{name} = {there}"));
        }
    }
    (!facts.is_empty()).then(|| (facts.join("; "), mends.join(", ")))
}

pub(super) fn log_or(cluster: &Cluster, fact: &str) -> String {
    match cluster.log.last() {
        Some(_) => format!("{fact}; its log ends: {}", cluster.log.join(" / ")),
        None => fact.to_owned(),
    }
}
