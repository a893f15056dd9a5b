//! The primary, asked through this host's proxy as the standby will be: by a replication connection of psql.

use std::path::{Path, PathBuf};

use nix::unistd::User;

use super::super::conninfo::Conninfo;
use super::super::owner::{as_owner, output_with};
use super::super::plan::MAINTENANCE_DATABASE;
use super::super::server::identifier;
use super::super::version::{Major, V9_4, V9_6, V10};
use crate::problem::Problem;

/// psql waits no longer; the proxy itself answers within its own bounds.
const CONNECT_SECONDS: &str = "20";

/// Settings of which a standby must have at least as much (documentation, 26.4.3).
pub(super) const NOT_LOWER: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// The way to it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) psql: PathBuf,
    pub(super) owner: User,
    pub(super) conninfo: Conninfo,
    pub(super) passfile: Option<PathBuf>,
}

/// What it says of itself.
#[derive(Debug)]
pub(super) struct Primary {
    /// Unknown where psql is too old to tell.
    pub(super) major: Option<Major>,
    pub(super) system: u64,
    pub(super) timeline: u32,
    pub(super) in_recovery: bool,
    /// The settings of [`NOT_LOWER`], from 10 on.
    pub(super) settings: Vec<(&'static str, String)>,
}

impl Upstream {
    pub(super) fn ask(&self) -> Result<Primary, Problem> {
        let first = self.tell("\\echo :SERVER_VERSION_NUM\nIDENTIFY_SYSTEM;\n")?;
        let mut lines = first.lines();
        // A psql before 10 has no such variable, and echoes its name.
        let major = lines
            .next()
            .and_then(|number| Major::of_number(number.trim().parse().ok()?));
        let mut identified = lines.next().unwrap_or_default().split('\t');
        let mut field = || identified.next().unwrap_or_default().trim().to_owned();
        let (system, timeline) = (field().parse(), field().parse());
        let (Ok(system), Ok(timeline)) = (system, timeline) else {
            return Err(Problem::new(
                "V03",
                "the primary's answer is not understood",
                protocol::escape::escape(&first),
                "pgtlsproxy doctor says more",
            ));
        };
        let mut primary = Primary {
            major,
            system,
            timeline,
            in_recovery: false,
            settings: Vec::new(),
        };
        // SHOW on a replication connection is of 10 (its release notes).
        if major.is_some_and(|major| major >= V10) {
            let asked: String = NOT_LOWER
                .into_iter()
                .chain(["transaction_read_only"])
                .map(|name| format!("SHOW {name};\n"))
                .collect();
            let told = self.tell(&asked)?;
            let mut values = told.lines().map(|value| value.trim().to_owned());
            primary.settings = NOT_LOWER.into_iter().zip(values.by_ref()).collect();
            // On for every transaction of a server in recovery.
            primary.in_recovery = values.next().as_deref() == Some("on");
        }
        Ok(primary)
    }

    /// Makes the slot if there is none. With `anew`, one that nobody uses is made again, so that it keeps WAL from now on.
    /// True if it was made now.
    pub(super) fn make_slot(&self, name: &str, major: Major, anew: bool) -> Result<bool, Problem> {
        if major < V9_4 {
            return Ok(false);
        }
        let slot = identifier(name);
        if anew {
            // In use, or not there: both are told by the next step.
            let _ = self.tell(&format!("DROP_REPLICATION_SLOT {slot};\n"));
        }
        let reserve = if major >= V9_6 { " RESERVE_WAL" } else { "" };
        let made = self.tell(&format!(
            "\\set VERBOSITY verbose\nCREATE_REPLICATION_SLOT {slot} PHYSICAL{reserve};\n"
        ));
        match made {
            Ok(_) => Ok(true),
            // duplicate_object
            Err(problem) if problem.why.contains("42710") => Ok(false),
            Err(problem) => Err(Problem::new(
                "V18",
                format!("the primary makes no replication slot {name}"),
                problem.why,
                "raise its max_replication_slots or drop a slot that nobody uses; then run this again",
            )),
        }
    }

    /// Drops the slot, if it is there and nobody uses it.
    pub(super) fn drop_slot(&self, name: &str) -> Result<(), Problem> {
        let dropped = self.tell(&format!(
            "\\set VERBOSITY verbose\nDROP_REPLICATION_SLOT {};\n",
            identifier(name)
        ));
        match dropped {
            // undefined_object
            Err(problem) if problem.why.contains("42704") => Ok(()),
            other => other.map(drop),
        }
    }

    /// The primary's tablespaces with their places, if it lets us ask: that takes an ordinary connection.
    pub(super) fn tablespaces(&self) -> Option<Vec<(String, String)>> {
        let conninfo = self.conninfo.clone().with("dbname", MAINTENANCE_DATABASE);
        let listed = self.psql(
            &conninfo,
            "SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace \
             WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1;\n",
        );
        let listed = listed.ok()?;
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        Some(
            pairs
                .map(|(name, place)| (name.to_owned(), place.to_owned()))
                .collect(),
        )
    }

    fn tell(&self, commands: &str) -> Result<String, Problem> {
        let conninfo = self.conninfo.clone().with("replication", "true");
        self.psql(&conninfo, commands).map_err(|why| {
            Problem::new(
                "V03",
                "the primary cannot be asked through the proxy",
                why,
                "pgtlsproxy doctor says which layer fails; nothing was changed",
            )
        })
    }

    fn psql(&self, conninfo: &Conninfo, commands: &str) -> Result<String, String> {
        let mut psql = as_owner(&self.owner, &self.psql);
        psql.args(["-XAtqw", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(conninfo.to_string())
            .args(["-f", "-"])
            .env("PGCONNECT_TIMEOUT", CONNECT_SECONDS);
        if let Some(passfile) = &self.passfile {
            psql.env("PGPASSFILE", passfile);
        }
        output_with(&mut psql, commands)
    }
}

/// Whether something listens at the door, as the server's OS user would find it.
pub(super) fn is_open(host: &str, port: u16, local: bool) -> bool {
    if local {
        let socket = Path::new(host).join(format!(".s.PGSQL.{port}"));
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    } else {
        std::net::TcpStream::connect((host, port)).is_ok()
    }
}
