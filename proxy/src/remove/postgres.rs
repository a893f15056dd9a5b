//! The PostgreSQL beside the CA: the slot that setup made for the node, and the settings that still wait for it.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Remove, Step};
use crate::problem::Problem;
use crate::setup::{self, Cluster, Journal, Server, SlotState, Wanted};

/// How long the slot may be held by a session that is about to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// A running server, and what the node is called in it.
pub(super) struct Site {
    server: Server,
    cluster: Cluster,
    name: String,
    slot: String,
    /// Of setup.
    state_directory: PathBuf,
}

impl Site {
    /// The cluster that was named, or that setup was run for, or the only one; it must run.
    pub(super) fn find(wanted: &Remove) -> Result<Self, Problem> {
        let state = wanted.directory.join("setup");
        let set_up = state
            .is_dir()
            .then(|| Journal::open(&state))
            .transpose()?
            .and_then(|journal| journal.cluster().map(ToOwned::to_owned));
        let cluster = match (&wanted.pgdata, &wanted.cluster, &set_up) {
            (Some(data), _, _) | (None, None, Some(data)) => Wanted::DataDirectory(data),
            (None, Some(label), _) => Wanted::Debian(label),
            (None, None, None) => Wanted::Any,
        };
        let remains = |what: String, why: String, way_out: &str| {
            let way_out = format!("{way_out}; else its slot keeps WAL for ever");
            Problem::new("M14", what, why, way_out)
        };
        let cluster = setup::find(cluster).map_err(|problem| {
            remains(
                "the PostgreSQL of this node is not found".to_owned(),
                format!("{}: {}", problem.what, problem.why),
                "run this again with --pgdata DIR or --cluster VERSION/NAME",
            )
        })?;
        let Some(server) = Server::of(&cluster) else {
            return Err(if setup::runs(&cluster) {
                remains(
                    format!("PostgreSQL ({}) runs, and cannot be asked", cluster.label),
                    "it makes no Unix socket (unix_socket_directories is empty), or is just starting"
                        .to_owned(),
                    "set unix_socket_directories and restart it, then run this again",
                )
            } else {
                remains(
                    format!("PostgreSQL ({}) does not run", cluster.label),
                    "its slots can be seen and dropped only while it does".to_owned(),
                    "start it, then run this again",
                )
            });
        };
        let name = wanted.name.to_string();
        Ok(Self {
            server,
            cluster,
            slot: setup::slot_name(&name),
            name,
            state_directory: state,
        })
    }

    /// What is left to do here.
    pub(super) fn due(&self) -> Result<Option<String>, Problem> {
        Ok(match self.state()? {
            SlotState::Absent => None,
            SlotState::OfAnotherKind => None,
            SlotState::Idle => Some(format!("drop the replication slot {}", self.slot)),
            SlotState::Active(_) => Some(format!(
                "drop the replication slot {} when its session has ended",
                self.slot
            )),
        })
    }

    pub(super) fn drop_slot(&self) -> Step {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = match self.state() {
                Ok(state) => state,
                Err(problem) => return Step::Remains(problem),
            };
            match state {
                SlotState::Absent => {
                    return match self.forget_making() {
                        Ok(()) => Step::WasSo(format!("no slot {} is there", self.slot)),
                        Err(problem) => Step::Remains(problem),
                    };
                }
                SlotState::OfAnotherKind => {
                    return Step::Note(Problem::new(
                        "M15",
                        format!(
                            "the slot {} is a logical one, which setup makes for nobody",
                            self.slot
                        ),
                        "a subscription may use it",
                        format!(
                            "if nobody needs it: SELECT pg_drop_replication_slot('{}')",
                            self.slot
                        ),
                    ));
                }
                SlotState::Idle => match self.server.drop_slot(&self.slot) {
                    Ok(true) => {
                        return match self.forget_making() {
                            Ok(()) => Step::Done(format!("slot {} dropped", self.slot)),
                            Err(problem) => Step::Remains(problem),
                        };
                    }
                    // It was taken, or is gone, since it was looked at.
                    Ok(false) => {}
                    Err(problem) => return Step::Remains(problem),
                },
                SlotState::Active(pid) if Instant::now() >= deadline => {
                    return Step::Remains(Problem::new(
                        "M16",
                        format!("the slot {} is in use", self.slot),
                        format!("backend {pid} holds it, of a session that this proxy did not end"),
                        format!("SELECT pg_terminate_backend({pid}); then run this again"),
                    ));
                }
                SlotState::Active(_) => {}
            }
            sleep(PAUSE);
        }
    }

    /// `setup undo` must not drop what somebody makes under that name later.
    fn forget_making(&self) -> Result<(), Problem> {
        if !self.state_directory.is_dir() {
            return Ok(());
        }
        Journal::open(&self.state_directory)?.strike_sql(&setup::making_slot(&self.slot))
    }

    /// Names settings that wait for the node, and says whether commits hang for it.
    pub(super) fn who_waits(&self, tell: &mut dyn FnMut(Step)) {
        match setup::who_waits(&self.server, self.cluster.major, &self.name) {
            Ok(waits) => {
                for problem in waits {
                    tell(Step::Note(problem));
                }
            }
            Err(problem) => tell(Step::Remains(problem)),
        }
    }

    fn state(&self) -> Result<SlotState, Problem> {
        self.server.slot(self.cluster.major, &self.slot)
    }
}
