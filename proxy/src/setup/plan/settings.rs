//! The settings of the server: what our own file is to say, and that it is the last word.

use super::super::block;
use super::super::conf;
use super::super::facts::{Facts, OWN_FILE};
use super::super::files::{Files, NotUnderstood, Overlay};
use super::super::tls;
use super::super::version::{Thing, V10, has, wants};
use super::{LoginBy, Wishes};
use crate::problem::Problem;

/// Old spellings that mean the same (documentation of 9.6, wal_level).
pub(super) fn same(name: &str, now: &str, value: &str) -> bool {
    name == "wal_level" && wal_rank(now) >= wal_rank(value)
}

/// As the server orders them, in any case of letters (documentation, 19.1.1).
pub(in super::super) fn wal_rank(level: &str) -> u8 {
    match &*level.to_ascii_lowercase() {
        "archive" => 1,
        "replica" | "hot_standby" => 2,
        "logical" => 3,
        _ => 0,
    }
}

/// What our own file is to say: only what others do not say well enough. What they say counts, not what an earlier run of
/// ours made of it, so that a second run finds the same.
pub(super) fn own_settings(facts: &Facts, wishes: &Wishes) -> Vec<(&'static str, String)> {
    let major = facts.major;
    let set = |name: &str| set(facts, name);
    // Of an earlier run, which may have had other options: what it prepared stays prepared.
    let before = |name: &str| {
        let found = facts.own.effective(name)?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    };
    let at_least = |name: &str, value: u32| {
        let earlier = before(name).and_then(|value| value.parse().ok());
        value.max(earlier.unwrap_or(0)).to_string()
    };
    let number = |name: &str, default: u32| {
        set(name).map_or(default, |value| value.trim().parse().unwrap_or(default))
    };
    let mut own = Vec::new();

    // The slots that are synchronised are logical ones (documentation, 47.2.3).
    let needed = if wishes.logical.is_empty() && !wishes.slot_sync {
        Thing::WalLevel
    } else {
        Thing::WalLevelLogical
    };
    let default = if major >= V10 { "replica" } else { "minimal" };
    // Nor less than what runs: its slots may need that, whatever the files say by now.
    let running = facts.running.as_ref();
    let runs = running.and_then(|running| running.settings.get("wal_level").cloned());
    let earlier = [before("wal_level"), runs];
    let earlier = earlier
        .into_iter()
        .flatten()
        .find(|level| wal_rank(level) > 2);
    if let Some(level) = earlier.as_deref().or_else(|| wants(major, needed))
        && wal_rank(&set("wal_level").unwrap_or_else(|| default.to_owned())) < wal_rank(level)
    {
        own.push(("wal_level", level.to_owned()));
    }

    // The defaults of 10 (its release notes); before, both were 0.
    let default = if major >= V10 { 10 } else { 0 };
    let standbys = u32::try_from(wishes.standbys.len()).unwrap_or(u32::MAX);
    // A base backup takes two more, and room is left to look at it by hand.
    let senders = standbys.saturating_mul(2).saturating_add(4);
    if number("max_wal_senders", default) < senders {
        own.push((
            "max_wal_senders",
            at_least("max_wal_senders", senders.max(10)),
        ));
    }
    let slots = standbys.saturating_add(4);
    if let Some(name) = wants(major, Thing::Slots)
        && number(name, default) < slots
    {
        own.push((name, at_least(name, slots.max(10))));
    }
    if let Some(name) = wants(major, Thing::KeepWal)
        && set(name).is_none_or(|value| value == "0")
    {
        // 64 segments of 16 MB are the same gigabyte.
        let value = if name == "wal_keep_size" { "1GB" } else { "64" };
        own.push((name, value.to_owned()));
    }
    if let Some(name) = wants(major, Thing::SlotBound)
        && set(name).is_none_or(|value| value == "-1")
    {
        own.push((name, before(name).unwrap_or_else(|| slot_bound(facts.free))));
    }
    if let Some(value) = wants(major, Thing::HotStandby)
        && set("hot_standby").is_none_or(|value| value.eq_ignore_ascii_case("off"))
    {
        own.push(("hot_standby", value.to_owned()));
    }
    let checksums = facts
        .running
        .as_ref()
        .and_then(|running| running.settings.get("data_checksums"));
    if (wishes.rewind || before("wal_log_hints").is_some())
        && has(major, Thing::Rewind)
        && checksums.is_none_or(|value| value != "on")
        && set("wal_log_hints").is_none_or(|value| !value.eq_ignore_ascii_case("on"))
    {
        own.push(("wal_log_hints", "on".to_owned()));
    }
    if let LoginBy::Certificate(tls) = &wishes.login {
        own.extend(tls::settings(tls, facts, set));
    } else {
        let kept = tls::SETTINGS.iter();
        own.extend(kept.filter_map(|name| Some((*name, before(name)?))));
    }
    own
}

/// What others set it to: the last of them, and the command line after all.
pub(super) fn set(facts: &Facts, name: &str) -> Option<String> {
    let running = facts.running.as_ref();
    if let Some(fixed) = running.and_then(|running| running.fixed.get(name)) {
        return Some(fixed.clone());
    }
    let found = facts.settings.effective(name)?;
    Some(String::from_utf8_lossy(&found.value).into_owned())
}

/// A quarter of the free space, in whole gigabytes, between 1 and 64: a slot must not fill the disk.
fn slot_bound(free: u64) -> String {
    format!("{}GB", (free / 4 / (1 << 30)).clamp(1, 64))
}

const HEAD: &[u8] = b"# Written by `pgtlsproxy setup`, taken away by `pgtlsproxy setup undo`.\n";

/// All settings that ever stand in our own file because of us.
const OURS: [&str; 15] = [
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "wal_keep_segments",
    "wal_keep_size",
    "max_slot_wal_keep_size",
    "hot_standby",
    "wal_log_hints",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "max_connections",
    "max_worker_processes",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Our own file with these settings.
pub(in super::super) fn own_text(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    [HEAD, &conf::render(pairs)].concat()
}

/// The lines of our own file that others have put there.
fn of_others(text: &[u8]) -> Vec<u8> {
    let is_theirs = |line: &&[u8]| {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        match conf::parse_line(bare) {
            Ok(Some((name, _))) => {
                !OURS.contains(&name.as_str()) && !tls::SETTINGS.contains(&name.as_str())
            }
            _ => *line != HEAD && !bare.trim_ascii().is_empty(),
        }
    };
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let mut theirs: Vec<u8> = lines.filter(is_theirs).flatten().copied().collect();
    if !theirs.is_empty() && !theirs.ends_with(b"\n") {
        theirs.push(b'\n');
    }
    theirs
}

pub(super) fn settings_files(
    view: &mut Overlay<'_>,
    facts: &Facts,
    own: &[(&'static str, String)],
) -> Result<(), NotUnderstood> {
    let pairs: Vec<(&str, &[u8])> = own
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect();
    let mut text = own_text(&pairs);
    let there = view.read(&facts.own_file).unwrap_or_default();
    text.extend(of_others(&there));
    view.new.insert(facts.own_file.clone(), text);
    if facts.taken_in {
        return Ok(());
    }
    let path = &facts.config_file;
    let main = view
        .read(path)
        .map_err(|error| NotUnderstood::new(path, 0, error.to_string()))?;
    let bare = block::without(&main).map_err(|unpaired| {
        NotUnderstood::new(
            path,
            unpaired.line,
            "a mark of pgtlsproxy without its other",
        )
    })?;
    let include = format!("include '{OWN_FILE}'").into_bytes();
    let new = block::insert(&bare, bare.len(), &[include]);
    view.new.insert(path.clone(), new);
    Ok(())
}

/// What the command line says wins over every file: it must be well enough by itself.
pub(super) fn check_command_line(
    facts: &Facts,
    own: &[(&'static str, String)],
) -> Result<(), Vec<Problem>> {
    let Some(running) = &facts.running else {
        return Ok(());
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let enough = |name: &str, now: &str, value: &str| {
        let more = number(value).is_some_and(|value| number(now) >= Some(value));
        more || same(name, now, value) || now.eq_ignore_ascii_case(value)
    };
    let problem = |(name, value): &(&'static str, String)| {
        let now = running.fixed.get(*name)?;
        (!enough(name, now, value)).then(|| {
            Problem::new(
                "G27",
                format!("{name} is {now}, by the server's command line"),
                format!("it should be {value}, and no file overrules the command line; nothing was changed"),
                "change it where the server is started (pg_ctl -o, the container's command, Patroni's configuration), \
                 then run this again",
            )
        })
    };
    let problems: Vec<_> = own.iter().filter_map(problem).collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// Our settings must be the last word on themselves.
pub(super) fn check_effective(
    view: &Overlay<'_>,
    facts: &Facts,
    own: &[(&'static str, String)],
) -> Result<(), Vec<Problem>> {
    let settings = conf::read(view, &facts.config_file, &facts.data, facts.major)
        .map_err(|fault| vec![Problem::from(fault)])?;
    let overruled = own.iter().filter_map(|(name, _)| {
        let place = &settings.effective(name)?.place;
        (place.file != facts.own_file).then(|| {
            let way_out = if place.file.ends_with("postgresql.auto.conf") {
                format!(
                    "`ALTER SYSTEM RESET {name}`, or set it well enough there; then run this again"
                )
            } else {
                "take that line out, or set it well enough there; then run this again".to_owned()
            };
            Problem::new(
                "G08",
                format!("{place} sets {name}"),
                "it comes after what setup would write, and is not enough",
                way_out,
            )
        })
    });
    let overruled: Vec<_> = overruled.collect();
    if overruled.is_empty() {
        Ok(())
    } else {
        Err(overruled)
    }
}
