//! The standby's configuration: what it needs to follow, and, since roles swap, what it needs to serve.

use std::collections::BTreeSet;

use super::super::apply::{Rights, SqlEntry};
use super::super::conf;
use super::super::facts::{self, Facts};
use super::super::files::{Files, Theirs};
use super::super::owner::{as_owner, output_of};
use super::super::plan::{self, FileChange, LoginBy, Plan, Wishes, making_slot, slot_name};
use super::super::report::ReportedFile;
use super::super::server::{Server, literal, runs};
use super::super::switch::restart;
use super::super::validate::apply_files;
use super::super::version::{Thing, V10, V13, has};
use super::{Work, recovery};
use crate::problem::Problem;

/// Settings of the copy's postgresql.auto.conf that were another server's: ours would come before them.
const TAKEN_OUT: [&str; 2] = ["primary_conninfo", "primary_slot_name"];

impl Work<'_> {
    /// Writes what is missing; true if anything was.
    pub(super) fn configure(&mut self) -> Result<bool, Vec<Problem>> {
        let one = |problem: Problem| vec![problem];
        let cluster = self.place.cluster.clone();
        if self.primary.settings.is_empty() {
            self.primary.settings = self.of_the_copy();
        }
        let marked = self.mark().map_err(one)?;
        let taken_out = self.take_out().map_err(one)?;
        let server = Server::of(&cluster);
        let files = Theirs::of(&cluster.owner);
        let facts = facts::gather(&files, &cluster, server.as_ref(), &self.role).map_err(one)?;
        let plan = self.planned(&files, &facts)?;
        for warning in &plan.warnings {
            eprintln!("pgtlsproxy: {warning}");
        }
        let files = plan.files.iter().map(ReportedFile::of);
        self.report.files.extend(files);
        self.report.warnings.extend(plan.warnings);
        let rights = Rights {
            mode: 0o644,
            ..Rights::of(&cluster.config_file).unwrap_or(Rights {
                mode: 0o644,
                uid: cluster.owner.uid.as_raw(),
                gid: cluster.owner.gid.as_raw(),
            })
        };
        apply_files(
            &mut self.journal,
            &plan.files,
            rights,
            &cluster,
            &facts.config_file,
            server.as_ref(),
        )
        .map_err(one)?;
        let changed = marked || taken_out || !plan.files.is_empty();
        // primary_conninfo takes effect by a reload from 13 on.
        let due = !plan.restart_for.is_empty() || (changed && self.major() < V13) || marked;
        // One that cannot be asked was not told to reload.
        let due = due || (changed && server.is_none());
        let restarts = due && runs(&cluster);
        if restarts {
            restart(&cluster).map_err(one)?;
            self.report.steps.push(format!("restart {}", cluster.label));
            eprintln!("restarted {}", cluster.label);
        }
        Ok(changed || restarts)
    }

    /// What is missing in the files of PostgreSQL's configuration.
    pub(super) fn planned(&self, files: &dyn Files, facts: &Facts) -> Result<Plan, Vec<Problem>> {
        let number = |name: &str| {
            let found = facts.settings.effective(name)?;
            std::str::from_utf8(&found.value).ok()?.trim().parse().ok()
        };
        let following = self.following();
        let mut settings = following.settings();
        settings.extend(following.not_lower(number));
        let wishes = Wishes {
            role: self.role.clone(),
            os_user: self.wishes.os_user.clone(),
            standbys: self.node.members.clone(),
            logical: Vec::new(),
            rewind: self.node.serves_rewind,
            slot_sync: false,
            fix_trust: self.wishes.fix_trust,
            slot: self.wishes.slot,
            // Without one: a standby makes no role.
            login: match self.passfile {
                Some(_) => LoginBy::Password(None),
                None => LoginBy::OsUser,
            },
        };
        plan::node(files, facts, &wishes, &settings)
    }

    /// The primary's settings as they stand in the copy's pg_control, where the primary did not say them.
    pub(super) fn of_the_copy(&self) -> Vec<(&'static str, String)> {
        let cluster = &self.place.cluster;
        let mut command = as_owner(&cluster.owner, &cluster.program("pg_controldata"));
        // Only its own version reads it rightly; `-D` is of 9.6.
        let said = output_of(command.arg(&cluster.data)).unwrap_or_default();
        recovery::of_controldata(&said)
    }

    fn take_out(&mut self) -> Result<bool, Problem> {
        let Some((change, rights)) = self.without_source() else {
            return Ok(false);
        };
        self.report.files.push(ReportedFile::of(&change));
        self.journal.write(&change, rights)?;
        eprintln!(
            "wrote {}: where it followed before is taken out",
            change.path.display()
        );
        Ok(true)
    }

    /// postgresql.auto.conf without whom the copied server followed, if it says so.
    pub(super) fn without_source(&self) -> Option<(FileChange, Rights)> {
        let path = self.place.cluster.data.join("postgresql.auto.conf");
        let owner = &self.place.cluster.owner;
        let text = Theirs::of(owner).read(&path).ok()?;
        let ours = |line: &[u8]| {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            conf::parse_line(line)
                .ok()
                .flatten()
                .is_some_and(|(name, _)| TAKEN_OUT.contains(&name.as_str()))
        };
        let new: Vec<u8> = text
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| !ours(line))
            .flatten()
            .copied()
            .collect();
        let rights = Rights {
            mode: 0o600,
            uid: owner.uid.as_raw(),
            gid: owner.gid.as_raw(),
        };
        (new != text).then_some((FileChange { path, new }, rights))
    }

    /// Slots for the other members, so that they can follow this one after a failover. They reserve nothing until they
    /// are used. True if one was made.
    pub(super) fn make_slots(&mut self) -> Result<bool, Problem> {
        let major = self.major();
        let bounded = has(major, Thing::SlotBound) || self.wishes.slot;
        if !bounded || !has(major, Thing::Slots) || major < V10 {
            return Ok(false);
        }
        let Some(server) = Server::of(&self.place.cluster) else {
            return Ok(false);
        };
        let there: BTreeSet<String> = server
            .query("SELECT slot_name FROM pg_replication_slots")?
            .lines()
            .map(str::to_owned)
            .collect();
        let mut made = false;
        for name in self.node.members.iter().map(|member| slot_name(member)) {
            if there.contains(&name) {
                continue;
            }
            let slot = literal(&name);
            let what = making_slot(&name);
            self.journal.note_sql(SqlEntry {
                what: what.clone(),
                undo: format!(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {slot} AND NOT active"
                ),
            })?;
            server.query(&format!(
                "SELECT pg_create_physical_replication_slot({slot})"
            ))?;
            eprintln!("{what}, for when this node is the primary");
            self.report.steps.push(what);
            made = true;
        }
        Ok(made)
    }
}
