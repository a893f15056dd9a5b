//! What undo may not take from a server, since it would refuse to start without it: settings that its slots need, or that a
//! standby needs as high as its primary's, and a file that is still included. Reads only.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::apply::{Journal, Rights};
use super::conf;
use super::facts::Facts;
use super::files::{Files, Place};
use super::find::Cluster;
use super::owner::{as_owner, output_of};
use super::plan::{FileChange, own_text, wal_rank};
use super::standby::{default_of, of_controldata};
use super::version::V10;
use crate::problem::Problem;

/// A setting that has to stay.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Needed {
    name: &'static str,
    value: String,
    why: String,
    way_out: String,
}

impl Needed {
    fn new(name: &'static str, value: &str, why: String, way_out: &str) -> Self {
        Self {
            name,
            value: value.to_owned(),
            why,
            way_out: way_out.to_owned(),
        }
    }

    /// That it stays.
    pub(crate) fn problem(&self, own_file: &Path) -> Problem {
        Problem::new(
            "G29",
            format!(
                "{} = {} stays, in {}",
                self.name,
                self.value,
                own_file.display()
            ),
            format!("without it the server would not start: {}", self.why),
            format!("{}; then `pgtlsproxy setup undo` again", self.way_out),
        )
    }
}

/// A replication slot as it lies in the data directory.
#[derive(Debug, PartialEq, Eq)]
struct Slot {
    name: String,
    logical: bool,
}

/// The settings of ours that have to stay.
pub(crate) fn settings(files: &dyn Files, cluster: &Cluster, facts: &Facts) -> Vec<Needed> {
    let ours = |name: &str| {
        let found = facts.own.effective(name)?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    };
    let without_us = |name: &str| {
        let found = facts.settings.effective(name)?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    };
    let slots = slots(files, &cluster.data);
    let mut needed: Vec<Needed> = of_slots(&slots, &ours, &without_us, facts.major >= V10)
        .into_iter()
        .collect();
    let follows = ["standby.signal", "recovery.conf"]
        .iter()
        .any(|name| cluster.data.join(name).exists());
    if follows {
        let mut command = as_owner(&cluster.owner, &cluster.program("pg_controldata"));
        let said = output_of(command.arg(&cluster.data)).unwrap_or_default();
        for (name, primarys) in of_controldata(&said) {
            let number = |text: String| text.trim().parse::<u64>().ok();
            let here = without_us(name).map_or_else(|| Some(default_of(facts.major, name)), number);
            if let Some(value) = ours(name)
                && here
                    .zip(primarys.parse().ok())
                    .is_some_and(|(here, primarys)| here < primarys)
            {
                let why = format!("the primary has {primarys}, and a standby may not have less");
                let way_out = format!("set {name} = {primarys} in postgresql.conf, or promote it");
                needed.push(Needed::new(name, &value, why, &way_out));
            }
        }
    }
    needed
}

fn of_slots(
    slots: &[Slot],
    ours: &impl Fn(&str) -> Option<String>,
    without_us: &impl Fn(&str) -> Option<String>,
    since_10: bool,
) -> Vec<Needed> {
    let mut needed = Vec::new();
    let default = if since_10 { "replica" } else { "minimal" };
    let level = wal_rank(&without_us("wal_level").unwrap_or_else(|| default.to_owned()));
    // The highest first: a logical one needs more.
    let rank = |slot: &&Slot| if slot.logical { 3 } else { 2 };
    let in_the_way = slots
        .iter()
        .max_by_key(rank)
        .filter(|slot| level < rank(slot));
    if let (Some(slot), Some(value)) = (in_the_way, ours("wal_level")) {
        let kind = if slot.logical { "logical" } else { "physical" };
        let name = &slot.name;
        needed.push(Needed::new(
            "wal_level",
            &value,
            format!("it has the {kind} replication slot \"{name}\""),
            &format!(
                "drop that slot (SELECT pg_drop_replication_slot('{name}')), or set wal_level = {value} in postgresql.conf"
            ),
        ));
    }
    let default = if since_10 { 10 } else { 0 };
    let allowed = without_us("max_replication_slots")
        .map_or(Some(default), |value| value.trim().parse().ok());
    if let Some(value) = ours("max_replication_slots")
        && allowed.is_some_and(|allowed: usize| allowed < slots.len())
    {
        needed.push(Needed::new(
            "max_replication_slots",
            &value,
            format!("it has {} replication slots", slots.len()),
            "drop those that nobody uses, or set max_replication_slots in postgresql.conf",
        ));
    }
    needed
}

/// What slots there are, whether the server runs or not.
fn slots(files: &dyn Files, data: &Path) -> Vec<Slot> {
    let directory = data.join("pg_replslot");
    let mut names = files.list(&directory).unwrap_or_default();
    names.sort();
    let slot = |name: OsString| {
        let state = files.read(&directory.join(&name).join("state")).ok()?;
        slot_of(name.to_str()?, &state)
    };
    names.into_iter().filter_map(slot).collect()
}

/// From its state file (ReplicationSlotOnDisk in slot.c, the same from 9.4 to 18): a head of 16 bytes, a name of 64, the
/// database, of which a physical slot has none, and how long it lasts, where 0 is for good.
fn slot_of(name: &str, state: &[u8]) -> Option<Slot> {
    let number = |at: usize| {
        let bytes = state.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    (number(84)? == 0).then_some(Slot {
        name: name.to_owned(),
        logical: number(80)? != 0,
    })
}

/// Leaves nothing but these in our own file, unless others have changed it.
pub(crate) fn keep(
    journal: &mut Journal,
    own_file: &Path,
    needed: &[Needed],
) -> Result<(), Problem> {
    if !journal.is_as_written(own_file) {
        return Ok(());
    }
    let pairs: Vec<_> = needed
        .iter()
        .map(|needed| (needed.name, needed.value.as_bytes()))
        .collect();
    let change = FileChange {
        path: own_file.to_owned(),
        new: own_text(&pairs),
    };
    // It is there, and keeps what it has.
    let rights = Rights {
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    journal.write(&change, rights)
}

/// The line that takes our own file in, if there is one that needs it.
pub(crate) fn included(files: &dyn Files, cluster: &Cluster, facts: &Facts) -> Option<Place> {
    let read =
        |files: &dyn Files| conf::read(files, &facts.config_file, &cluster.data, cluster.major);
    read(files).ok()?;
    let without = Without {
        below: files,
        path: &facts.own_file,
    };
    read(&without).err().map(|fault| fault.place)
}

/// Files as they are without one of them.
struct Without<'a> {
    below: &'a dyn Files,
    path: &'a Path,
}

impl Files for Without<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == self.path {
            return Err(ErrorKind::NotFound.into());
        }
        self.below.read(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let mut names = self.below.list(directory)?;
        names.retain(|name| directory.join(name) != self.path);
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slots_need_stays() {
        let slot = |name: &str, logical| Slot {
            name: name.to_owned(),
            logical,
        };
        let names = |slots: &[Slot], ours: &[&str], others: &[(&str, &str)]| {
            let of_ours = |name: &str| ours.contains(&name).then(|| "9".to_owned());
            let of_others = |name: &str| {
                let found = others.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let needed = of_slots(slots, &of_ours, &of_others, true);
            needed.iter().map(|needed| needed.name).collect::<Vec<_>>()
        };
        let both = ["wal_level", "max_replication_slots"];
        let logical = [slot("a", false), slot("b", true)];
        assert_eq!(names(&logical, &both, &[]), ["wal_level"]);
        assert_eq!(names(&logical, &[], &[]), [""; 0]);
        assert_eq!(names(&logical, &both, &[("wal_level", "LOGICAL")]), [""; 0]);
        assert_eq!(names(&logical[..1], &both, &[]), [""; 0]);
        let minimal = [("wal_level", "minimal"), ("max_replication_slots", "1")];
        assert_eq!(names(&logical[..1], &both, &minimal), ["wal_level"]);
        assert_eq!(names(&logical, &both, &minimal), both);
    }

    #[test]
    fn a_slot_is_read_from_its_state() {
        let state = |database: u32, lasts: u32| {
            let mut bytes = vec![0; 80];
            bytes.extend(database.to_ne_bytes());
            bytes.extend(lasts.to_ne_bytes());
            bytes
        };
        let logical = |state: &[u8]| slot_of("s", state).map(|slot| slot.logical);
        assert_eq!(logical(&state(0, 0)), Some(false));
        assert_eq!(logical(&state(5, 0)), Some(true));
        assert_eq!(logical(&state(5, 2)), None, "it goes with its session");
        assert_eq!(logical(&[0; 80]), None);
    }
}
