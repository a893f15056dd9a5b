//! `setup standby`: from a node that has joined to a PostgreSQL that streams. The old data directory stays as it is, and its
//! server runs, until the copy is complete; then it is moved aside. Each step is noted before it is taken, so that a
//! second run takes up what a kill has interrupted.

mod back;
mod backup;
mod configure;
mod copy;
mod elsewhere;
mod node;
mod own;
mod part;
mod place;
mod power;
mod progress;
mod recovery;
mod rewind;
mod show;
mod upstream;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::apply::{Journal, Rights, Stage, StandbyCopy};
use super::find::Wanted;
use super::passfile;
use super::plan::{FileChange, slot_name};
use super::report::{FORMAT, ReportedFile, StandbyReport, Stream};
use super::server::{Server, runs};
use super::service;
use super::version::{Major, Thing, V9_4, V10, has};
use crate::control::{Ask, Daemon};
use crate::net::Target;
use crate::problem::Problem;

pub(crate) use back::{Moved, bring_back, commands as commands_back, discard, stop};

pub(super) use recovery::{default as default_of, of_controldata};

use node::Node;
use place::Place;
use upstream::{Primary, Upstream};

/// What the standby's data directory is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A base backup, where there is nothing yet.
    Fresh,
    /// A base backup; what is there is moved aside.
    Replace,
    /// What is there, wound back to where the primary's history parted from it.
    Rewind,
    /// What is there, as it is: a copy of the primary.
    AsItIs,
}

/// What is wanted.
#[derive(Debug)]
pub(crate) struct StandbyWishes {
    /// The node's directory.
    pub(crate) dir: PathBuf,
    pub(crate) cluster: Option<String>,
    pub(crate) pgdata: Option<PathBuf>,
    pub(crate) bindir: Option<PathBuf>,
    /// Whom to follow, if another than the configuration says.
    pub(crate) from: Option<Target>,
    pub(crate) way: Way,
    pub(crate) role: Option<String>,
    pub(crate) os_user: String,
    /// The role logs in by a password.
    pub(crate) with_password: bool,
    /// It, unless this is only to be shown.
    pub(crate) password: Option<Zeroizing<String>>,
    pub(crate) slot: bool,
    pub(crate) fix_trust: bool,
    pub(crate) dry_run: bool,
    /// How long it may take from the start of the server until it streams.
    pub(crate) within: Duration,
    /// `OLD=NEW`: where tablespaces go.
    pub(crate) mappings: Vec<String>,
    /// Where WAL goes, if not into the data directory or where the old cluster has it.
    pub(crate) waldir: Option<PathBuf>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// What would be done; nothing was changed.
    Shown(Box<StandbyReport>),
    Streams {
        report: Box<StandbyReport>,
        lsn: String,
        behind: String,
    },
    /// Everything is in place, and it does not stream.
    Stands { data: PathBuf, within: Duration },
}

/// Everything that the steps need.
struct Work<'a> {
    wishes: &'a StandbyWishes,
    node: Node,
    role: String,
    slot: Option<String>,
    passfile: Option<PathBuf>,
    place: Place,
    upstream: Upstream,
    primary: Primary,
    journal: Journal,
    report: StandbyReport,
}

/// What has to be done with the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Copy,
    /// The copy of an earlier run waits beside.
    Exchange,
    Rewind,
    Nothing,
}

fn one(problem: Problem) -> Vec<Problem> {
    vec![problem]
}

/// Whether there is a PostgreSQL here that could become a standby, and whether it holds data already.
pub(crate) fn occupied(cluster: Option<&str>, pgdata: Option<&Path>) -> Option<bool> {
    let place = Place::find(wanted(cluster, pgdata)).ok()?;
    Some(place.occupied)
}

fn wanted<'a>(cluster: Option<&'a str>, pgdata: Option<&'a Path>) -> Wanted<'a> {
    match (pgdata, cluster) {
        (Some(data), _) => Wanted::DataDirectory(data),
        (None, Some(label)) => Wanted::Debian(label),
        (None, None) => Wanted::Any,
    }
}

/// The whole way.
pub(crate) fn run(wishes: &StandbyWishes) -> Result<Ended, Vec<Problem>> {
    let config = node::config_path(&wishes.dir);
    if !config.exists() {
        Node::load(&wishes.dir)?;
    }
    let data = wanted(wishes.cluster.as_deref(), wishes.pgdata.as_deref());
    let mut place = Place::find(data).map_err(one)?;
    place.cluster.bindir.clone_from(&wishes.bindir);
    if place.cluster.owner.uid.is_root() {
        let data = place.cluster.data.display();
        return Err(one(Problem::new(
            "V15",
            format!("{data} belongs to root"),
            "PostgreSQL does not run as root",
            format!("chown -R postgres: {data}"),
        )));
    }
    if wishes.dry_run {
        return show::show(wishes, place);
    }
    let mut journal = Journal::open(&wishes.dir.join("setup")).map_err(one)?;
    journal.note_cluster(&place.cluster.data).map_err(one)?;
    let mut before = None;
    let mut report = StandbyReport {
        format: FORMAT,
        cluster: place.cluster.label.clone(),
        ..StandbyReport::default()
    };
    if let Some(target) = &wishes.from {
        let change =
            node::following(&wishes.dir, target, &place.cluster.owner.name).map_err(one)?;
        if let Some(change) = change {
            before = fs::read(&change.path).ok().map(|new| FileChange {
                path: change.path.clone(),
                new,
            });
            turn(&mut journal, &change, &mut report)?;
            eprintln!("it follows {target}");
        }
    }
    let prepared = prepare(wishes, place, journal, report);
    if let (Err(_), Some(before)) = (&prepared, &before) {
        turn_back(wishes, before)?;
    }
    let (mut work, step) = prepared?;
    let begun = work.take(step)?;
    let changed = work.configure()? | begun;
    work.finish(changed)
}

/// What is refused leaves the tunnel as it was.
fn turn_back(wishes: &StandbyWishes, before: &FileChange) -> Result<(), Vec<Problem>> {
    let mut journal = Journal::open(&wishes.dir.join("setup")).map_err(one)?;
    // Before it had a client tunnel, there is no node to load.
    let control = Node::load(&wishes.dir)?.control;
    write_own(&mut journal, before)?;
    eprintln!("{} is as it was", before.path.display());
    taken_by(control)
}

/// Writes the proxy's configuration.
fn write_own(journal: &mut Journal, change: &FileChange) -> Result<(), Vec<Problem>> {
    let rights = Rights {
        mode: 0o644,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    };
    journal.write(change, rights).map_err(one)
}

/// Has the daemon take it, if one runs.
fn taken_by(control: Option<PathBuf>) -> Result<(), Vec<Problem>> {
    if let Some(control) = control.filter(|path| path.exists()) {
        Daemon::ask(&control, Ask::Reload)?.reply()?;
    }
    Ok(())
}

/// Everything up to the first step, which is the last place where this can be refused with nothing changed.
fn prepare(
    wishes: &StandbyWishes,
    mut place: Place,
    mut journal: Journal,
    mut report: StandbyReport,
) -> Result<(Work<'_>, Step), Vec<Problem>> {
    let node = Node::load(&wishes.dir)?;
    if !upstream::is_open(&node.door.0, node.door.1, node.local) {
        service::ensure(
            &mut journal,
            &wishes.dir,
            &place.cluster,
            &wishes.os_user,
            || upstream::is_open(&node.door.0, node.door.1, node.local),
        )
        .map_err(one)?;
    }
    let role = wishes.role.clone().unwrap_or_else(|| node.role.clone());
    let (upstream, passfile) =
        way_to_primary(wishes, &node, &role, &place, &mut journal, &mut report).map_err(one)?;
    let primary = upstream.ask().map_err(one)?;
    fit(wishes, &mut place, &primary).map_err(one)?;
    let major = place.cluster.major;
    report.version = major.to_string();
    report.upstream = node.upstream();
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
    let step = work.step().map_err(one)?;
    if work.place.occupied {
        if rewind::is_half_written(&work.place.cluster, work.journal.copy()) {
            rewind::put_back(&work.place.cluster).map_err(one)?;
        }
        if step != Step::Nothing {
            // What would be refused when the server is stopped is refused now.
            work.foresee(step)?;
        }
    }
    if step == Step::Copy {
        work.knows_its_options()
            .and_then(|()| work.may_be_replaced())
            .map_err(one)?;
    }
    Ok((work, step))
}

/// The slot that the standby is to use. Where nothing bounds what a slot keeps (before 13), only one that is asked for.
fn slot_of(wishes: &StandbyWishes, node: &Node, major: Major) -> Option<String> {
    let is_wanted = has(major, Thing::SlotBound) || wishes.slot;
    (has(major, Thing::Slots) && is_wanted).then(|| slot_name(&node.name))
}

/// Changes the proxy's configuration, and has the daemon take it.
fn turn(
    journal: &mut Journal,
    change: &FileChange,
    report: &mut StandbyReport,
) -> Result<(), Vec<Problem>> {
    report.files.push(ReportedFile::of(change));
    write_own(journal, change)?;
    eprintln!("wrote {}", change.path.display());
    let directory = change.path.parent().unwrap_or_else(|| Path::new("/"));
    taken_by(Node::load(directory)?.control)
}

fn passfile_of(directory: &Path) -> PathBuf {
    let path = directory.join(passfile::NAME);
    std::path::absolute(&path).unwrap_or(path)
}

/// How the primary is reached, with the password file where there is or shall be one.
fn way_to_primary(
    wishes: &StandbyWishes,
    node: &Node,
    role: &str,
    place: &Place,
    journal: &mut Journal,
    report: &mut StandbyReport,
) -> Result<(Upstream, Option<PathBuf>), Problem> {
    let path = passfile_of(&wishes.dir);
    let owner = &place.cluster.owner;
    if let Some(password) = &wishes.password {
        let line = passfile::line(passfile::Entry {
            host: &node.door.0,
            port: node.door.1,
            user: role,
            password,
        })?;
        let rights = Rights {
            mode: 0o600,
            uid: owner.uid.as_raw(),
            gid: owner.gid.as_raw(),
        };
        let shown = || {
            let text = fs::read(&path).ok().map(Zeroizing::new);
            text.map(|text| passfile::shown(&text))
        };
        let before = shown();
        if journal.write_line(&path, &line, rights)? {
            eprintln!("wrote {}", path.display());
            let now = shown().unwrap_or_default();
            report.files.push(ReportedFile {
                diff: super::unified(&path, before.as_deref(), &now),
                created: before.is_none(),
                path: path.clone(),
                note: Some("passwords are not shown".to_owned()),
            });
        }
    }
    let passfile = path.exists().then_some(path);
    let upstream = Upstream {
        psql: place.cluster.program("psql"),
        owner: owner.clone(),
        conninfo: node.conninfo(role),
        passfile: passfile.clone(),
    };
    Ok((upstream, passfile))
}

/// Versions: the primary's, the data's, the programs'.
fn fit(wishes: &StandbyWishes, place: &mut Place, primary: &Primary) -> Result<(), Problem> {
    let here = place.occupied.then_some(place.cluster.major);
    let Some(major) = primary.major.or(here).filter(|major| major.is_known()) else {
        return Err(Problem::new(
            "V04",
            "the primary's version is not known",
            "psql here is older than 10 and does not tell it, or the primary is newer than this program",
            "use a psql of version 10 or later, and a pgtlsproxy that knows that version",
        ));
    };
    let debian = place.cluster.debian.as_ref();
    if let Some((version, name)) = debian.filter(|(version, _)| *version != major.to_string()) {
        return Err(Problem::new(
            "V04",
            format!(
                "the primary runs PostgreSQL {major}, {} is of {version}",
                place.cluster.label
            ),
            "a standby is of its primary's major version",
            format!("pg_createcluster {major} {name}, and give --cluster {major}/{name} --replace"),
        ));
    }
    if let Some(here) = here.filter(|here| *here != major && wishes.way != Way::Replace) {
        return Err(Problem::new(
            "V04",
            format!(
                "the primary runs PostgreSQL {major}, {} is of {here}",
                place.cluster.label
            ),
            "a standby is of its primary's major version",
            "--replace moves the old data aside and copies the primary's",
        ));
    }
    place.cluster.major = major;
    let postgres = place.cluster.program("postgres");
    match backup::version_of(&postgres, &place.cluster) {
        Some(version) if version == major => Ok(()),
        found => Err(Problem::new(
            "V11",
            format!("there are no programs of PostgreSQL {major} here"),
            found.map_or_else(
                || format!("{} does not run", postgres.display()),
                |found| format!("{} is of {found}", postgres.display()),
            ),
            format!("install PostgreSQL {major}'s server, or say where it is with --bindir DIR"),
        )),
    }
}

impl Work<'_> {
    /// What is to be done, by what is there, what is wished, and how far an earlier run came.
    fn step(&self) -> Result<Step, Problem> {
        let (place, way) = (&self.place, self.wishes.way);
        let stage = self.journal.copy().map(|copy| copy.stage);
        let label = &place.cluster.label;
        let may_take_it = way == Way::Replace || (way == Way::Fresh && !place.occupied);
        if stage == Some(Stage::Copied) && may_take_it {
            eprintln!("an earlier run has made the base backup; it is taken up from there");
            return Ok(Step::Exchange);
        }
        if !place.occupied {
            return match way {
                Way::Fresh | Way::Replace => Ok(Step::Copy),
                Way::Rewind | Way::AsItIs => Err(Problem::new(
                    "V12",
                    format!("{label} holds no data"),
                    "there is nothing to bring back",
                    "leave that option out: the primary's data are copied then",
                )),
            };
        }
        let half_written = rewind::is_half_written(&place.cluster, self.journal.copy());
        if half_written && way != Way::Replace {
            return Err(rewind::interrupted(label));
        }
        let same = place.system() == Some(self.primary.system);
        let server = Server::of(&place.cluster);
        let follows = place.is_standby() && same;
        let runs_alone = runs(&place.cluster) && !place.is_standby();
        if same && !place.is_standby() && self.primary.in_recovery {
            return Err(Problem::new(
                "V06",
                format!(
                    "{} is a standby, and {label} a primary of the same data",
                    self.node.upstream()
                ),
                "a primary is not made the standby of its own standby",
                "promote the other first (SELECT pg_promote(), or pg_ctl promote)",
            ));
        }
        let well = follows
            && !half_written
            && (stage == Some(Stage::Placed)
                || server.is_some_and(|server| {
                    power::streaming(&place.cluster, &server, self.primary.timeline).is_some()
                }));
        match way {
            Way::Replace if !well => Ok(Step::Copy),
            Way::Rewind if !well && same => Ok(Step::Rewind),
            Way::Rewind if !well => Err(Problem::new(
                "V12",
                format!("{label} is no copy of what {} has", self.node.upstream()),
                "the system identifiers differ: it has never been its primary or standby",
                "--replace moves it aside and copies the primary",
            )),
            Way::AsItIs if !same || runs_alone => Err(Problem::new(
                "V14",
                format!(
                    "{label} is no copy that could follow {}",
                    self.node.upstream()
                ),
                if same {
                    "its server runs as a primary"
                } else {
                    "the system identifiers differ"
                },
                "--replace moves it aside and copies the primary; --rewind brings an old primary back",
            )),
            Way::Fresh if !follows => Err(Problem::new(
                "V05",
                format!("{label} holds data already"),
                if same {
                    "it was a primary of the same data, or a copy of it"
                } else {
                    "they are not the primary's"
                },
                if same {
                    "--rewind brings an old primary back, --replace moves it aside and copies the primary, --config-only takes it as it is"
                } else {
                    "--replace moves it aside (it is never deleted), and copies the primary"
                },
            )),
            _ => Ok(Step::Nothing),
        }
    }

    /// pg_basebackup before 9.4 can put nothing elsewhere (its release notes).
    fn knows_its_options(&self) -> Result<(), Problem> {
        let asked = !self.wishes.mappings.is_empty() || self.wishes.waldir.is_some();
        if !asked || self.major() >= V9_4 {
            return Ok(());
        }
        Err(Problem::new(
            "V20",
            format!("pg_basebackup of {} puts nothing elsewhere", self.major()),
            "--tablespace-mapping and --waldir are of 9.4 and later",
            "leave them out, and give the primary's tablespaces the same places here",
        ))
    }

    /// Takes it; true if the data directory is another now.
    fn take(&mut self, step: Step) -> Result<bool, Vec<Problem>> {
        match step {
            Step::Nothing => return self.claim_slot().map_err(one),
            Step::Copy => {
                self.copy().map_err(one)?;
                self.exchange()?;
            }
            Step::Exchange => self.exchange()?,
            Step::Rewind => self.rewind()?,
        }
        Ok(true)
    }

    /// The upstream may be another than before, and may have no slot yet for this node; true if it was made now.
    fn claim_slot(&mut self) -> Result<bool, Problem> {
        let Some(slot) = &self.slot else {
            return Ok(false);
        };
        let made = self.upstream.make_slot(slot, self.major(), false)?;
        if made {
            let what = format!("made replication slot {slot} at {}", self.node.upstream());
            eprintln!("{what}");
            self.report.steps.push(what);
        }
        Ok(made)
    }

    fn major(&self) -> Major {
        self.place.cluster.major
    }

    /// As the standby itself will connect.
    fn primary_conninfo(&self) -> super::conninfo::Conninfo {
        let mut conninfo = self.node.conninfo(&self.role);
        if let Some(passfile) = &self.passfile
            && self.major() >= V10
        {
            conninfo = conninfo.with("passfile", passfile.to_string_lossy());
        }
        if !self.node.local {
            // The proxy would answer both with no; TLS begins behind it.
            conninfo = conninfo.with("sslmode", "disable");
            if has(self.major(), Thing::GssEncMode) {
                conninfo = conninfo.with("gssencmode", "disable");
            }
        }
        conninfo
    }

    fn following(&self) -> recovery::Following<'_> {
        let trigger = self.place.cluster.data.join("pgtlsproxy.promote");
        recovery::Following {
            major: self.major(),
            conninfo: self.primary_conninfo(),
            slot: self.slot.as_deref(),
            trigger: trigger.to_string_lossy().into_owned(),
            settings: &self.primary.settings,
        }
    }

    fn note(&mut self, stage: Stage) -> Result<(), Problem> {
        let copy = self.journal.copy().cloned();
        let staging = place::staging(&self.place.cluster.data);
        self.journal.note_copy(StandbyCopy {
            stage,
            ..copy.unwrap_or_else(|| elsewhere::nothing_yet(&staging))
        })
    }

    /// Starts it, and waits until it streams.
    fn finish(mut self, changed: bool) -> Result<Ended, Vec<Problem>> {
        let cluster = &self.place.cluster;
        let started = !runs(cluster);
        if started {
            eprintln!("starting {}", cluster.label);
            power::start(cluster).map_err(one)?;
            self.report.steps.push(format!("start {}", cluster.label));
        }
        let streaming = power::wait_for_stream(cluster, self.primary.timeline, self.wishes.within)
            .map_err(one)?;
        let Some(streaming) = streaming else {
            return Ok(Ended::Stands {
                data: cluster.data.clone(),
                within: self.wishes.within,
            });
        };
        let made = self.make_slots().map_err(one)? | self.serve()?;
        self.note(Stage::Streamed).map_err(one)?;
        self.report.changed = changed || started || made;
        self.report.stream = Some(Stream {
            replayed: streaming.lsn.clone(),
            behind_bytes: streaming.behind.parse().ok(),
        });
        Ok(Ended::Streams {
            report: Box::new(self.report),
            lsn: streaming.lsn,
            behind: streaming.behind,
        })
    }
}

impl Work<'_> {
    /// The server tunnel leads to this PostgreSQL, for when it is the primary: only now it is known where its socket is.
    fn serve(&mut self) -> Result<bool, Vec<Problem>> {
        let server = Server::of(&self.place.cluster);
        let Some(socket) = server.and_then(|server| server.socket()) else {
            return Ok(false);
        };
        if self.node.serves.as_ref().is_none_or(|path| *path == socket) {
            return Ok(false);
        }
        let change = node::serving(&self.wishes.dir, &socket).map_err(one)?;
        turn(&mut self.journal, &change, &mut self.report)?;
        Ok(true)
    }
}
