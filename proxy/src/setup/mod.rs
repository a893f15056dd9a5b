//! PostgreSQL's side of the matter: its configuration files, read as it reads them and written so that only what has to
//! change changes. Readers and writers are pure; files come in through [`files::Files`] and go out through nothing but
//! the one room that applies a plan.

mod allow; // the proxy's allow rules for standbys
mod apply; // the only writer of PostgreSQL's files; the journal, undo
mod block; // the one marked block in a file of others
mod conf; // postgresql.conf, read and written
mod conninfo; // libpq's connection strings
mod diff;
mod facts; // what is known before anything is planned
mod files;
mod find; // which cluster is meant
pub(crate) mod hba; // pg_hba.conf and pg_ident.conf
mod leave; // what a node that goes leaves in a running server
pub(crate) mod needed; // what undo may not take from a server
mod owner; // programs run as the OS user who owns the data directory
mod ownership; // what root does in directories of others
mod passfile; // libpq's password file
mod plan; // facts and wishes to changes
mod postmaster; // the process of a running server
mod report; // what is printed with --json
mod server; // a running server, through psql
mod service; // the proxy as a service
mod sidecar; // the proxy's own side of a node
mod standby; // from a node to a server that streams
mod switch; // starts, stops and restarts a server
mod tls; // PostgreSQL's own TLS instead of the proxy
mod unit_files; // the units that setup writes and takes away
mod units; // what systemd calls a server
mod validate; // what was written, judged by PostgreSQL itself
mod version; // what each major wants

pub(crate) use apply::{Journal, Rights, SqlEntry, Stay, Undone};
pub(crate) use conf::parse_line as parse_conf_line;
pub(crate) use conninfo::Conninfo;
use diff::unified;
pub(crate) use facts::{Facts, gather};
pub(crate) use files::{Place, Theirs};
pub(crate) use find::{Cluster, Wanted, bin_directories, find};
pub(crate) use leave::{SlotState, who_waits};
pub(crate) use plan::{
    FileChange, LoginBy, SqlChange, Wishes, making_slot, primary as plan_primary, slot_name,
};
pub(crate) use report::{FORMAT, PrimaryReport, ReportedFile, StandbyReport, UndoReport, json};
pub(crate) use server::{Server, identifier as sql_identifier, runs};
pub(crate) use service::{by_systemd, ensure_user, start_unit};
pub(crate) use sidecar::Sidecar;
pub(crate) use standby::{Ended, StandbyWishes, Way, occupied as standby_place, run as standby};
pub(crate) use standby::{Moved, bring_back, commands_back, discard, stop as stop_standby};
pub(crate) use switch::restart;
pub(crate) use tls::needs;
pub(crate) use unit_files::{
    changes as unit_changes, forget as forget_units, stop as stop_units, write_timer,
};
pub(crate) use validate::{apply_files, check_readable};
pub(crate) use version::V16;

#[cfg(test)]
mod tests;
