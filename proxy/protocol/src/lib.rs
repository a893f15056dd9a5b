//! What `pgtlsproxy` knows without touching the world: bytes and values in, values out.
//!
//! Deterministic: no sockets, no files, no clock, no logs; the time, where it matters, is an argument. Nothing here
//! panics, whatever comes in. The lints below and `clippy.toml` keep both promises.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::panic_in_result_fn,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::panic, clippy::unreachable)
)]

pub mod certificate;
pub mod command;
pub mod error_response;
pub mod escape;
pub mod hex;
pub mod identity;
pub mod lag;
pub mod message;
pub mod negotiation;
pub mod node;
pub mod policy;
pub mod replication;
pub mod startup;
pub mod watch;
