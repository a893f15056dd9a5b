//! PostgreSQL's side of the matter: its configuration files, read as it reads them and written so that only what has to
//! change changes. Readers and writers are pure; files come in through [`files::Files`] and go out through nothing but
//! the one room that applies a plan.

mod block;
mod conf;
mod conninfo;
mod diff;
mod files;
mod hba;
mod passfile;
mod version;

#[cfg(test)]
mod tests;
