//! What `setup standby` would do, as far as that can be known without doing it: the same steps, the same writers, over files
//! as they would be. Nothing is written, and no secret is shown.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::apply::Journal;
use super::super::facts::{self, Facts, OWN_FILE};
use super::super::files::{Overlay, Theirs};
use super::super::passfile;
use super::super::plan::{FileChange, Plan};
use super::super::report::{FORMAT, ReportedFile, StandbyReport};
use super::super::server::{Server, runs};
use super::super::version::Major;
use super::node::{self, Node};
use super::place::{self, Place};
use super::upstream::{self, Primary, Upstream};
use super::{Ended, StandbyWishes, Step, Way, Work, backup, fit, one, own, passfile_of, slot_of};
use crate::problem::Problem;

/// Of a file that comes with the copy.
const OF_THE_PRIMARY: &str =
    "the primary's comes with the copy and is not known here; this is what is added to it";

/// What will be written.
pub(super) struct Foreseen {
    facts: Facts,
    plan: Plan,
    /// PostgreSQL's files come with the copy.
    of_primary: bool,
    server: Option<Server>,
}

pub(super) fn show(wishes: &StandbyWishes, mut place: Place) -> Result<Ended, Vec<Problem>> {
    let mut report = StandbyReport {
        format: FORMAT,
        cluster: place.cluster.label.clone(),
        dry_run: true,
        ..StandbyReport::default()
    };
    let mut turned = false;
    if let Some(target) = &wishes.from {
        let owner = &place.cluster.owner.name;
        if let Some(change) = node::following(&wishes.dir, target, owner).map_err(one)? {
            report.files.push(ReportedFile::of(&change));
            turned = true;
        }
    }
    let mut node = match (Node::load(&wishes.dir), &wishes.from) {
        // It gets its client tunnel by this very run.
        (Err(problems), Some(target)) if problems.iter().any(|problem| problem.id == "V02") => {
            report.upstream = target.to_string();
            report.changed = true;
            report.steps.push(
                "what else is to be done is known once it has that tunnel: run this again then"
                    .to_owned(),
            );
            return Ok(Ended::Shown(Box::new(report)));
        }
        (node, _) => node?,
    };
    if let Some(target) = &wishes.from {
        node.targets = vec![target.clone()];
    }
    report.upstream = node.upstream();
    let role = wishes.role.clone().unwrap_or_else(|| node.role.clone());
    let path = passfile_of(&wishes.dir);
    let passfile = (wishes.with_password || path.exists()).then_some(path);
    let upstream = Upstream {
        psql: place.cluster.program("psql"),
        owner: place.cluster.owner.clone(),
        conninfo: node.conninfo(&role),
        passfile: passfile.clone().filter(|path| path.exists()),
    };
    let journal = Journal::look(&wishes.dir.join("setup")).map_err(one)?;
    if wishes.with_password
        && let Some(path) = &passfile
    {
        report
            .files
            .extend(password_file(path, &node, &role, &journal).map_err(one)?);
    }
    // What the running proxy leads to is another primary than the one that is meant.
    let asked = if turned {
        Err("the proxy follows another node until this is done".to_owned())
    } else if upstream::is_open(&node.door.0, node.door.1, node.local) {
        upstream.ask().map_err(|problem| problem.why)
    } else {
        Err("the proxy on this host does not run".to_owned())
    };
    let is_asked = asked.is_ok();
    let primary = match asked {
        Ok(primary) => {
            fit(wishes, &mut place, &primary).map_err(one)?;
            primary
        }
        Err(why) => {
            report.warnings.push(
                Problem::new(
                    "V03",
                    "the primary is not asked, and a part of this is assumed",
                    why,
                    "run this again when the primary can be reached through the proxy",
                )
                .warning(),
            );
            assumed(&mut place)
        }
    };
    let major = place.cluster.major;
    report.version = major.to_string();
    let slot = slot_of(wishes, &node, major);
    let work = Work {
        wishes,
        node,
        role,
        slot,
        passfile,
        place,
        upstream,
        primary,
        journal,
        report,
    };
    let step = if is_asked {
        work.step().map_err(one)?
    } else {
        match wishes.way {
            Way::Replace => Step::Copy,
            Way::Fresh if !work.place.occupied => Step::Copy,
            Way::Rewind => Step::Rewind,
            Way::Fresh | Way::AsItIs => Step::Nothing,
        }
    };
    if step == Step::Copy {
        work.knows_its_options()
            .and_then(|()| work.may_be_replaced())
            .map_err(one)?;
    }
    work.shown(step, turned)
}

/// What is taken for granted where the primary is not asked: that it is of the version that is here.
fn assumed(place: &mut Place) -> Primary {
    let postgres = place.cluster.program("postgres");
    if let Some(major) = backup::version_of(&postgres, &place.cluster) {
        place.cluster.major = major;
    }
    Primary {
        major: Some(place.cluster.major),
        system: place.system().unwrap_or(0),
        timeline: 0,
        in_recovery: false,
        settings: Vec::new(),
    }
}

/// The change of the password file, without any password in it; none if only a password changes.
fn password_file(
    path: &Path,
    node: &Node,
    role: &str,
    journal: &Journal,
) -> Result<Option<ReportedFile>, Problem> {
    let line = passfile::line(passfile::Entry {
        host: &node.door.0,
        port: node.door.1,
        user: role,
        password: "",
    })?;
    let old = fs::read(path).ok().map(zeroize::Zeroizing::new);
    let before = old.as_deref().map_or(&[][..], Vec::as_slice);
    let new = passfile::with_line(before, &line, journal.lines_of(path));
    let new = new.map_or_else(|| passfile::shown(before), |new| passfile::shown(&new));
    let shown = old.as_deref().map(|old| passfile::shown(old));
    let file = ReportedFile {
        diff: super::super::unified(path, shown.as_deref(), &new),
        created: shown.is_none(),
        path: path.to_owned(),
        note: Some("passwords are not shown".to_owned()),
    };
    Ok((!file.diff.is_empty()).then_some(file))
}

impl Work<'_> {
    /// What will be written in PostgreSQL's files, over those that will be there. The error is what the run would be refused
    /// for at its end, when the old server is stopped. What comes with the copy is not known.
    pub(super) fn foresee(&self, step: Step) -> Result<Foreseen, Vec<Problem>> {
        let cluster = &self.place.cluster;
        let data = &cluster.data;
        let copies = matches!(step, Step::Copy | Step::Exchange);
        // As `put_in_place` decides.
        let version = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
        let keeps_own = version.parse::<Major>() == Ok(cluster.major);
        let of_primary = copies && !keeps_own && cluster.config_file.starts_with(data);
        let mut new = BTreeMap::new();
        if copies || step == Step::Rewind {
            new.insert(data.join("postgresql.auto.conf"), Vec::new());
            if keeps_own {
                own::own_files(cluster).map_err(one)?;
            }
        }
        if of_primary {
            for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", OWN_FILE] {
                new.insert(data.join(name), Vec::new());
            }
        }
        let below = Theirs::of(&cluster.owner);
        let view = Overlay { below: &below, new };
        let server = Server::of(cluster).filter(|_| !copies);
        let facts = facts::gather(&view, cluster, server.as_ref(), &self.role).map_err(one)?;
        let plan = self.planned(&view, &facts)?;
        Ok(Foreseen {
            facts,
            plan,
            of_primary,
            server,
        })
    }

    fn shown(mut self, step: Step, turned: bool) -> Result<Ended, Vec<Problem>> {
        let cluster = self.place.cluster.clone();
        let data = &cluster.data;
        let copies = matches!(step, Step::Copy | Step::Exchange);
        self.tell(step);
        if self.primary.settings.is_empty() && !copies {
            self.primary.settings = self.of_the_copy();
        }
        let Foreseen {
            facts,
            plan,
            of_primary: unknown,
            server,
        } = self.foresee(step)?;
        let mut files: Vec<ReportedFile> = Vec::new();
        if copies {
            let (name, content) = self.following().marker();
            let change = FileChange {
                path: data.join(name),
                new: content,
            };
            files.push(ReportedFile {
                note: Some("it is in the copy before that gets its place".to_owned()),
                ..ReportedFile::anew(&change)
            });
        } else {
            let marker = self.marker(data).map(|(change, _)| change);
            files.extend(marker.as_ref().map(ReportedFile::of));
            let taken_out = self.without_source().map(|(change, _)| change);
            files.extend(taken_out.as_ref().map(ReportedFile::of));
        }
        for change in &plan.files {
            let is_of_primary = unknown && change.path.starts_with(data);
            files.push(match is_of_primary {
                true if change.path == facts.own_file => ReportedFile::anew(change),
                true => ReportedFile {
                    note: Some(OF_THE_PRIMARY.to_owned()),
                    ..ReportedFile::anew(change)
                },
                false => ReportedFile::of(change),
            });
        }
        let leads = self.node.serves.as_ref();
        if leads.is_some_and(|path| *path != facts.socket) {
            if turned || unknown {
                self.report.steps.push(
                    "lead [[server]] postgres in pgtlsproxy.toml to the server's socket".to_owned(),
                );
            } else {
                let change = node::serving(&self.wishes.dir, &facts.socket).map_err(one)?;
                files.push(ReportedFile::of(&change));
            }
        }
        let streams = server.as_ref().is_some_and(|server| {
            super::power::streaming(&cluster, server, self.primary.timeline).is_some()
        });
        if !streams {
            if copies || !runs(&cluster) {
                self.report.steps.push(format!("start {}", cluster.label));
            }
            self.report.steps.push("wait until it streams".to_owned());
        }
        self.report.warnings.extend(plan.warnings);
        self.report.files.extend(files);
        self.report.changed = !(self.report.files.is_empty() && self.report.steps.is_empty());
        Ok(Ended::Shown(Box::new(self.report)))
    }

    /// The steps with the data directory, in words.
    fn tell(&mut self, step: Step) {
        let cluster = &self.place.cluster;
        let (label, data) = (&cluster.label, &cluster.data);
        let upstream = self.node.upstream();
        let mut steps = Vec::new();
        if step == Step::Copy {
            if let Some(slot) = &self.slot {
                steps.push(format!("make replication slot {slot} at {upstream}"));
            }
            steps.push(format!(
                "pg_basebackup from {upstream} as {} into {}",
                self.role,
                place::staging(data).display()
            ));
            let (mappings, wal) = self.elsewhere(data);
            steps.extend(
                mappings
                    .iter()
                    .map(|mapping| format!("tablespaces: {mapping}")),
            );
            steps.extend(wal.map(|wal: PathBuf| format!("WAL: {}", wal.display())));
        }
        if matches!(step, Step::Copy | Step::Exchange) {
            if self.place.occupied {
                if runs(cluster) {
                    steps.push(format!("stop {label}"));
                }
                steps.push(format!(
                    "move {} aside to {}",
                    data.display(),
                    place::aside(data).display()
                ));
            }
            steps.push(
                "take out of the copy's postgresql.auto.conf whom the primary followed".to_owned(),
            );
        }
        if step == Step::Rewind {
            steps.push(format!("stop {label}, pg_rewind to what {upstream} has"));
        }
        self.report.steps.extend(steps);
    }
}
