//! The CA and the certificates of a group of PostgreSQL nodes, for people at a shell (`certs-tool`) and for
//! programs (`pgtlsproxy demo`, `setup` and `enrol`).
//!
//! - `authority`: makes, opens and uses a CA
//! - `profile`: what our certificates look like
//! - `ledger`: what was issued and revoked
//! - `key`: private keys and their passphrases
//! - `request`: what somebody else asks to be signed
//! - `backup`: a CA in one file
//! - `succession`: what is signed so that the next key, and the next CA, need no person
//! - `contents`: what is in a file of whatever origin
//! - `live`: what a server presents
//! - `verify`: what the proxy would say
//! - `store`: files, their modes, all or nothing
//! - `report`: dates and failures in words
//! - `cli`, `commands`: the program

pub mod authority;
mod backup;
pub mod cli;
pub mod commands;
mod contents;
pub mod key;
pub mod ledger;
mod live;
pub mod profile;
pub mod report;
pub mod request;
pub mod store;
pub mod succession;
mod verify;
