//! The test bed: real PostgreSQL servers, real sidecars and certificates, and a network between them that
//! can fail. Everything starts with a call, ends on drop, and shares nothing with the test beside it.
//! Tests wait for conditions, never for time; a step that fails here fails the test, with the logs shown.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the whole crate is test code: a step that fails is a test that fails"
)]

pub mod browser;
pub mod enrolment;
mod files;
pub mod host;
pub mod link;
mod log;
pub mod mounts;
pub mod netns;
pub mod pki;
pub mod postgres;
mod process;
pub mod programs;
pub mod renewal;
pub mod scrape;
pub mod setup;
pub mod sidecar;
pub mod site;
mod stand_in;
mod tool;
pub mod tunnel;
pub mod wait;
pub mod watched;
pub mod wire;

pub use browser::Browser;
pub use files::{Disk, Scratch, give_to_postgres, postgres_user, put, reserve_port};
pub use host::Host;
pub use link::Link;
pub use log::{Log, Mark};
pub use netns::Namespaces;
pub use pki::{Identity, Pki};
pub use postgres::{Node, Stop};
pub use process::{as_postgres, run};
pub use scrape::Scrape;
pub use sidecar::Sidecar;
pub use stand_in::StandIn;
pub use tool::Tool;
pub use tunnel::Tunnel;
pub use wait::{wait_for, wait_until};
pub use watched::Watched;
pub use wire::Wire;
