//! Placeholder.
pub mod certificate;
pub mod identity;
