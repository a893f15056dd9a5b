//! An old primary is wound back to where its history and the new primary's parted: pg_rewind, with what it needs.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::apply::{Rights, Stage, StandbyCopy, replace_theirs};
use super::super::find::Cluster;
use super::super::owner::{as_owner, output_of};
use super::super::ownership::Spot;
use super::super::plan::MAINTENANCE_DATABASE;
use super::super::server::runs;
use super::super::version::{Thing, V11, V13, has};
use super::place::{self, beside};
use super::{Work, elsewhere, own, power};
use crate::problem::Problem;

/// Until the new primary has written the checkpoint that tells its timeline; before 16 pg_rewind sees it only then. By
/// default a server takes up to four and a half minutes for one (checkpoint_timeout, checkpoint_completion_target).
const CHECKPOINT_TAKES: Duration = Duration::from_secs(360);

const ONLY_A_COPY: &str =
    "pgtlsproxy setup standby --replace moves it aside and copies the primary";

impl Work<'_> {
    pub(super) fn rewind(&mut self) -> Result<(), Vec<Problem>> {
        self.wind_back().map_err(|problem| vec![problem])
    }

    fn wind_back(&mut self) -> Result<(), Problem> {
        let cluster = self.place.cluster.clone();
        if !has(cluster.major, Thing::Rewind) {
            return Err(Problem::new(
                "V12",
                format!("PostgreSQL {} has no pg_rewind", cluster.major),
                "it is of 9.5 and later",
                "--replace moves it aside and copies the primary",
            ));
        }
        let program = cluster.program("pg_rewind");
        if output_of(as_owner(&cluster.owner, &program).arg("--version")).is_err() {
            return Err(Problem::new(
                "V11",
                "pg_rewind is not there",
                format!("{} does not run", program.display()),
                "install it, say where it is with --bindir DIR, or use --replace",
            ));
        }
        if runs(&cluster) {
            eprintln!("stopping {}", cluster.label);
            power::stop(&cluster)?;
        }
        let files = keep(&cluster)?;
        if !ended_well(&cluster) {
            // They keep a server from starting alone.
            for name in ["standby.signal", "recovery.conf"] {
                let _ = fs::remove_file(cluster.data.join(name));
            }
            end_well(&cluster)?;
        }
        // Whatever comes of it: what is left is never started as a second primary.
        self.mark()?;
        if let Some(slot) = &self.slot {
            self.upstream.make_slot(slot, cluster.major, false)?;
        }
        note_half_written(&cluster)?;
        self.note(Stage::Rewinding)?;
        let links = own::take_links(&files, &cluster.data)?;
        let before = trace(&cluster.data).ok();
        if let Err(problem) = self.call(&cluster, &program) {
            // What a pg_rewind that failed has not touched at all can be wound back another time.
            if before.is_some() && trace(&cluster.data).ok() == before {
                own::carry(&links, &kept(&cluster), &cluster.data)?;
                self.note(Stage::Streamed)?;
                forget(&cluster);
                return Err(problem);
            }
            let put_back = self.mark().and_then(|_| put_back(&cluster));
            if let Err(more) = put_back {
                eprintln!("pgtlsproxy: {more}");
            }
            return Err(broke_off(problem, &cluster));
        }
        // It has taken that away again, and brought the other's configuration along.
        self.mark()?;
        own::carry(&files, &kept(&cluster), &cluster.data)?;
        self.note(Stage::Placed)?;
        forget(&cluster);
        self.report
            .steps
            .push(format!("pg_rewind to what {} has", self.node.upstream()));
        Ok(())
    }

    fn call(&self, cluster: &Cluster, program: &Path) -> Result<(), Problem> {
        let conninfo = self
            .node
            .conninfo(&self.role)
            .with("dbname", MAINTENANCE_DATABASE);
        let begun = Instant::now();
        let mut told = false;
        loop {
            let mut command = as_owner(&cluster.owner, program);
            command
                .arg("-D")
                .arg(&cluster.data)
                .arg(format!("--source-server={conninfo}"));
            if cluster.major >= V13 && !cluster.config_file.starts_with(&cluster.data) {
                // pg_rewind of 13 and later starts the server alone after a crash; `--config-file` is of 15.
                if cluster.major >= super::super::version::V15 {
                    command.arg(format!("--config-file={}", cluster.config_file.display()));
                }
            }
            if let Some(passfile) = &self.passfile {
                command.env("PGPASSFILE", passfile);
            }
            // What it finds is told on standard error from 12 on, on standard output before.
            let said = command
                .output()
                .map_err(|error| refused(error.to_string(), cluster))?;
            let text = [said.stdout.as_slice(), &said.stderr].concat();
            let text = String::from_utf8_lossy(&text).trim().to_owned();
            if !said.status.success() {
                return Err(refused(text, cluster));
            }
            let parted = self.primary.timeline > timeline(cluster).unwrap_or(self.primary.timeline);
            // It goes by the new primary's last checkpoint, which is still of the old timeline. To believe it would leave a
            // standby that cannot follow. (Where the old primary ended in order before the promotion, there is nothing to
            // rewind either, but then it names the point where they parted.)
            if parted && text.contains("on the same timeline") {
                if begun.elapsed() > CHECKPOINT_TAKES {
                    return Err(no_checkpoint(cluster));
                }
                if !told {
                    eprintln!(
                        "waiting for the first checkpoint of the new primary; CHECKPOINT there, as a superuser, ends the wait"
                    );
                    told = true;
                }
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
            eprintln!("pg_rewind: {}", last_line(&text));
            return Ok(());
        }
    }
}

fn last_line(text: &str) -> String {
    protocol::escape::escape(text.lines().last().unwrap_or_default())
}

fn no_checkpoint(cluster: &Cluster) -> Problem {
    Problem::new(
        "V13",
        format!(
            "pg_rewind cannot bring {} back yet, which stays stopped",
            cluster.label
        ),
        "the new primary has not written a checkpoint since its promotion, and before 16 pg_rewind sees its timeline only then",
        "CHECKPOINT on the new primary, as a superuser; then run this again",
    )
}

fn refused(why: String, cluster: &Cluster) -> Problem {
    let way_out = if why.contains("wal_log_hints") || why.contains("data checksums") {
        "it can be done only if the old primary wrote WAL for hints while it was one (data checksums or wal_log_hints = on); --replace copies the whole"
    } else if why.contains("permission denied for function") || why.contains("must be superuser") {
        if cluster.major >= V11 {
            "run `pgtlsproxy setup primary --rewind` on the new primary: it grants the four functions that pg_rewind calls; or use --replace"
        } else {
            "before 11 its role must be a superuser: give --role, or use --replace"
        }
    } else if why.contains("[P0") || why.contains("pg_hba.conf") {
        "pg_rewind is an ordinary connection: run `pgtlsproxy setup primary --rewind` on the new primary, which admits it; or use --replace"
    } else {
        "mend that and run this again, or use --replace, which copies the whole"
    };
    Problem::new(
        "V13",
        format!(
            "pg_rewind cannot bring {} back, which stays stopped",
            cluster.label
        ),
        why,
        way_out,
    )
}

/// The timeline of a stopped cluster by the newest history file that it has.
fn timeline(cluster: &Cluster) -> Option<u32> {
    let wal = super::super::version::wants(cluster.major, Thing::WalDirectory)?;
    let entries = fs::read_dir(cluster.data.join(wal)).ok()?;
    let of_name = |name: &str| {
        let (timeline, rest) = name.split_at_checked(8)?;
        (rest == ".history" || rest.len() == 16)
            .then(|| u32::from_str_radix(timeline, 16).ok())
            .flatten()
    };
    entries
        .flatten()
        .filter_map(|entry| of_name(entry.file_name().to_str()?))
        .max()
}

/// A failure of a pg_rewind that had begun to write (its documentation, Warnings).
fn broke_off(problem: Problem, cluster: &Cluster) -> Problem {
    Problem::new(
        "V13",
        format!(
            "pg_rewind broke off, and left {} half written; it stays stopped",
            cluster.label
        ),
        problem.why,
        ONLY_A_COPY,
    )
}

/// What pg_rewind may have begun to write is taken for nothing but what is to be replaced.
pub(super) fn interrupted(label: &str) -> Problem {
    Problem::new(
        "V13",
        format!("an earlier pg_rewind of {label} was interrupted"),
        "what it leaves cannot be relied on (documentation of pg_rewind, Warnings)",
        ONLY_A_COPY,
    )
}

/// In a data directory in which pg_rewind has begun and has not come to its end. It goes with the directory, wherever that is
/// moved; pg_rewind itself takes it away with all that the new primary does not have.
const HALF_WRITTEN: &str = "pgtlsproxy.half-rewound";

pub(super) fn is_half_written(cluster: &Cluster, copy: Option<&StandbyCopy>) -> bool {
    copy.is_some_and(|copy| copy.stage == Stage::Rewinding)
        || cluster.data.join(HALF_WRITTEN).exists()
}

fn note_half_written(cluster: &Cluster) -> Result<(), Problem> {
    let rights = Rights {
        mode: 0o600,
        uid: cluster.owner.uid.as_raw(),
        gid: cluster.owner.gid.as_raw(),
    };
    let text = format!("pg_rewind has begun here and has not ended well: {ONLY_A_COPY}.\n");
    replace_theirs(&cluster.data.join(HALF_WRITTEN), text.as_bytes(), rights)
}

/// Where this host's own configuration is while pg_rewind overwrites it.
fn kept(cluster: &Cluster) -> PathBuf {
    beside(&cluster.data, ".pgtlsproxy-conf")
}

/// Keeps this host's own configuration files, which pg_rewind would overwrite.
fn keep(cluster: &Cluster) -> Result<Vec<PathBuf>, Problem> {
    let kept = kept(cluster);
    // Of a run that was killed before pg_rewind began: what is in its place counts.
    remove(&kept);
    let staged = beside(&kept, ".part");
    remove(&staged);
    place::make_directory(&staged, &cluster.owner)?;
    let files = own::own_files(cluster)?;
    own::carry(&files, &cluster.data, &staged)?;
    place::rename(&staged, &kept)?;
    Ok(files)
}

/// Brings back what was kept of a data directory that pg_rewind has left half written: its configuration is this host's.
pub(super) fn put_back(cluster: &Cluster) -> Result<(), Problem> {
    note_half_written(cluster)?;
    let kept = kept(cluster);
    if !kept.exists() {
        return Ok(());
    }
    let files = listed(&kept, Path::new("")).map_err(|error| {
        Problem::new(
            "G05",
            format!("cannot read what was kept in {}", kept.display()),
            error.to_string(),
            "run setup as root; what is there is this host's own configuration, and stays",
        )
    })?;
    own::carry(&files, &kept, &cluster.data)?;
    remove(&kept);
    Ok(())
}

/// Nothing is half written any more.
fn forget(cluster: &Cluster) {
    remove(&kept(cluster));
    if let Ok(Some(note)) = Spot::find(&cluster.data.join(HALF_WRITTEN)) {
        let _ = fs::remove_file(note.path());
    }
}

fn remove(directory: &Path) {
    if let Ok(Some(place)) = Spot::find(directory) {
        let _ = fs::remove_dir_all(place.path());
    }
}

/// What all files of a data directory and its tablespaces look like from outside. Whoever writes in one changes this, since
/// the time of its last change (ctime) cannot be set.
fn trace(data: &Path) -> io::Result<u64> {
    let parts = elsewhere::links(data).into_iter().map(|(_, part)| part);
    let mut directories: Vec<PathBuf> = std::iter::once(data.to_owned()).chain(parts).collect();
    let mut sum = 0_u64;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let found = fs::symlink_metadata(&path)?;
            let mut hasher = DefaultHasher::new();
            let changed = (found.ctime(), found.ctime_nsec());
            (&path, found.ino(), found.len(), changed).hash(&mut hasher);
            // In whatever order they are listed.
            sum = sum.wrapping_add(hasher.finish());
            if found.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(sum)
}

/// All files in a directory and below it, by their paths from `root`.
fn listed(root: &Path, below: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(listed(root, &path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// By pg_control, whose state follows the system identifier and two version numbers: DB_SHUTDOWNED, or the same in recovery.
fn ended_well(cluster: &Cluster) -> bool {
    let control = fs::read(cluster.data.join("global/pg_control")).unwrap_or_default();
    let state = control.get(16..20).and_then(|bytes| bytes.try_into().ok());
    matches!(state.map(u32::from_ne_bytes), Some(1 | 2))
}

/// pg_rewind needs a clean shutdown; before 13 it does not bring it about itself, and from 13 on not beside a
/// `standby.signal`.
fn end_well(cluster: &Cluster) -> Result<(), Problem> {
    let mut command = as_owner(&cluster.owner, &cluster.program("postgres"));
    command.args(["--single", "-F", "-D"]).arg(&cluster.data);
    command
        .arg("-c")
        .arg(format!("config_file={}", cluster.config_file.display()))
        .arg("template1");
    output_of(&mut command).map(drop).map_err(|why| {
        Problem::new(
            "V13",
            format!("{} cannot be brought to a clean end", cluster.label),
            why,
            "pg_rewind needs one; start and stop it by hand, or use --replace",
        )
    })
}
