//! A running server, asked and told through its own psql, as the OS user who owns the data directory.

use std::ffi::OsStr;
use std::path::PathBuf;

use nix::unistd::User;

use super::find::Cluster;
use super::owner::{as_owner, output_with};
use super::postmaster::{Host, Postmaster};
use crate::problem::Problem;

/// psql waits no longer for a server that does not answer.
const CONNECT_SECONDS: &str = "10";

/// Whether a server of this cluster runs, whether it can be asked or not.
pub(crate) fn runs(cluster: &Cluster) -> bool {
    Postmaster::of(&cluster.data).is_some()
}

/// A server that runs and can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    psql: PathBuf,
    owner: User,
    host: Host,
    port: String,
}

impl Server {
    /// The server of this cluster, if it runs and a client on this host gets in: by its Unix socket, or where it makes none,
    /// by an address of this host.
    pub(crate) fn of(cluster: &Cluster) -> Option<Self> {
        let postmaster = Postmaster::of(&cluster.data)?;
        Some(Self {
            psql: cluster.program("psql"),
            owner: cluster.owner.clone(),
            host: postmaster.host?,
            port: postmaster.port,
        })
    }

    /// As [`Server::of`]; the error is one that runs, and that nobody reaches as he has to.
    pub(crate) fn reached(cluster: &Cluster, by_socket: bool) -> Result<Option<Self>, Problem> {
        let server = Self::of(cluster);
        let reached = match &server {
            Some(server) => !by_socket || server.socket().is_some(),
            None => !runs(cluster),
        };
        if reached {
            return Ok(server);
        }
        let (what, why) = if server.is_some() {
            (
                "makes no Unix socket",
                "unix_socket_directories is empty; by its Unix socket the proxy reaches it",
            )
        } else {
            (
                "runs, and cannot be asked",
                "it makes no Unix socket (unix_socket_directories is empty), or is just starting",
            )
        };
        Err(Problem::new(
            "G31",
            format!("PostgreSQL ({}) {what}", cluster.label),
            why,
            "set unix_socket_directories, as in '/run/postgresql', and restart PostgreSQL; then run this again",
        ))
    }

    /// Its Unix socket, if it makes one.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        match &self.host {
            Host::Socket(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            Host::Address(_) => None,
        }
    }

    fn host(&self) -> &OsStr {
        match &self.host {
            Host::Socket(directory) => directory.as_os_str(),
            Host::Address(address) => address.as_ref(),
        }
    }

    /// Runs SQL as the superuser of the OS user's name; a row a line, columns parted by tabs.
    pub(crate) fn query(&self, sql: &str) -> Result<String, Problem> {
        let mut psql = as_owner(&self.owner, &self.psql);
        psql.args([
            "-XAtqw",
            "-F",
            "\t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "postgres",
            "-p",
            &self.port,
            "-h",
        ])
        .arg(self.host())
        .args(["-U", &self.owner.name, "-f", "-"])
        .env("PGCONNECT_TIMEOUT", CONNECT_SECONDS);
        // On standard input: a command line can be seen by everybody on the host.
        output_with(&mut psql, sql).map_err(|why| {
            Problem::new(
                "G06",
                "the server cannot be asked",
                why,
                format!(
                    "`psql -h {} -p {}` as OS user {} must get in as a superuser",
                    self.host().to_string_lossy(),
                    self.port,
                    self.owner.name
                ),
            )
        })
    }
}

/// An SQL string.
pub(crate) fn literal(text: &str) -> String {
    // With an escape string a backslash means the same whatever standard_conforming_strings says.
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    if text.contains('\\') {
        format!(" E'{escaped}'")
    } else {
        format!("'{escaped}'")
    }
}

/// An SQL name.
pub(crate) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
