//! What is known about a cluster before anything is planned: its files, and what the server says if it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::conf::{self, Settings};
use super::files::{Files, Overlay, Place};
use super::find::Cluster;
use super::plan::REWIND_FUNCTIONS;
use super::server::{Server, literal};
use super::version::{Major, Thing, V11, V16, has, wants};
use crate::problem::Problem;

/// The file of our own, beside postgresql.conf or in its conf.d.
pub(crate) const OWN_FILE: &str = "pgtlsproxy.conf";

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) major: Major,
    pub(crate) config_file: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) hba_file: PathBuf,
    pub(crate) ident_file: PathBuf,
    /// Where our own settings go.
    pub(crate) own_file: PathBuf,
    /// Whether postgresql.conf takes it in by a directory, so that it needs no line for it.
    pub(crate) taken_in: bool,
    /// All settings but our own.
    pub(crate) settings: Settings,
    /// Our own, of an earlier run.
    pub(crate) own: Settings,
    /// The server's Unix socket.
    pub(crate) socket: PathBuf,
    /// Free bytes where WAL is kept.
    pub(crate) free: u64,
    /// What the server says, if it runs.
    pub(crate) running: Option<Running>,
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) settings: BTreeMap<String, String>,
    /// What its command line says, which no file overrules.
    pub(crate) fixed: BTreeMap<String, String>,
    /// Whether the role exists, and whether it may log in and replicate.
    pub(crate) role: Option<bool>,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) slots: BTreeSet<String>,
    pub(crate) in_recovery: bool,
    /// Whether the role has a password that the method of this major can check.
    pub(crate) has_password: bool,
    /// Whether passwords of the old kind are, or will be, in use.
    pub(crate) md5_passwords: bool,
    /// Whether the role may execute what pg_rewind executes.
    pub(crate) may_rewind: bool,
    /// Lines of pg_hba.conf that it does not take, and why.
    pub(crate) refused: Vec<RefusedLine>,
}

/// A line of pg_hba.conf that a server does not take, for which it takes nothing of the file.
#[derive(Debug)]
pub(crate) struct RefusedLine {
    pub(crate) place: Place,
    pub(crate) why: String,
}

impl Facts {
    /// The server's port, by its socket's name.
    pub(crate) fn port(&self) -> u16 {
        let name = self.socket.extension().unwrap_or_default();
        name.to_string_lossy().parse().unwrap_or(5432)
    }
}

const ASKED: &str = "'wal_level', 'max_wal_senders', 'max_replication_slots', 'hot_standby', 'wal_log_hints', \
     'max_connections', 'max_worker_processes', 'max_prepared_transactions', 'max_locks_per_transaction', \
     'data_checksums', 'config_file', 'hba_file', 'ident_file', 'ssl', 'ssl_cert_file', 'ssl_key_file', 'ssl_ca_file', \
     'ssl_crl_file', 'ssl_min_protocol_version', 'listen_addresses'";

/// Looks, at files as somebody sees them and at what a server says.
pub(crate) fn gather(
    files: &dyn Files,
    cluster: &Cluster,
    server: Option<&Server>,
    role: &str,
) -> Result<Facts, Problem> {
    let running = server
        .map(|server| ask(server, cluster.major, role))
        .transpose()?;
    let told = |name: &str| {
        running
            .as_ref()
            .and_then(|running| running.settings.get(name))
            .map(PathBuf::from)
    };
    let config_file = told("config_file").unwrap_or_else(|| cluster.config_file.clone());
    let (own_file, taken_in) = own_file(files, cluster, &config_file)?;
    let without = Overlay {
        below: files,
        new: BTreeMap::from([(own_file.clone(), Vec::new())]),
    };
    // Where our line is there already and our file is not, the reader would stumble over it: the overlay has one.
    let settings = conf::read(&without, &config_file, &cluster.data, cluster.major)?;
    let mut own = Settings::default();
    if files.read(&own_file).is_ok() {
        own = conf::read(
            files,
            &own_file,
            std::path::Path::new("/nonexistent"),
            cluster.major,
        )?;
    }
    let port = settings.effective("port").map_or_else(
        || "5432".to_owned(),
        |port| String::from_utf8_lossy(&port.value).into_owned(),
    );
    // Before there is a data directory, what is above it tells.
    let place = cluster.data.ancestors().find(|place| place.exists());
    let place = place.unwrap_or(&cluster.data);
    let free = nix::sys::statvfs::statvfs(place).map_or(0, |volume| {
        volume
            .blocks_available()
            .saturating_mul(volume.fragment_size())
    });
    Ok(Facts {
        major: cluster.major,
        data: cluster.data.clone(),
        hba_file: told("hba_file")
            .unwrap_or_else(|| cluster.file(&settings, "hba_file", "pg_hba.conf")),
        ident_file: told("ident_file")
            .unwrap_or_else(|| cluster.file(&settings, "ident_file", "pg_ident.conf")),
        socket: server.and_then(Server::socket).unwrap_or_else(|| {
            cluster
                .socket_directory(&settings)
                .join(format!(".s.PGSQL.{port}"))
        }),
        config_file,
        own_file,
        taken_in,
        settings,
        own,
        free,
        running,
    })
}

/// In the conf.d that postgresql.conf includes, if it does; else beside it.
fn own_file(
    files: &dyn Files,
    cluster: &Cluster,
    config_file: &std::path::Path,
) -> Result<(PathBuf, bool), Problem> {
    let directory = config_file.with_file_name("conf.d");
    let probe = directory.join(OWN_FILE);
    if has(cluster.major, Thing::IncludeDir) && directory.is_dir() {
        let view = Overlay {
            below: files,
            new: BTreeMap::from([(probe.clone(), b"pgtlsproxy.probe = on\n".to_vec())]),
        };
        let settings = conf::read(&view, config_file, &cluster.data, cluster.major)?;
        if settings.effective("pgtlsproxy.probe").is_some() {
            return Ok((probe, true));
        }
    }
    Ok((config_file.with_file_name(OWN_FILE), false))
}

fn ask(server: &Server, major: Major, role: &str) -> Result<Running, Problem> {
    let pairs = |condition: &str| -> Result<BTreeMap<String, String>, Problem> {
        let sql = format!("SELECT name, setting FROM pg_settings WHERE {condition}");
        let told = server.query(&sql)?;
        let pairs = told.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .map(|(name, setting)| (name.to_owned(), setting.to_owned()))
            .collect())
    };
    let settings = pairs(&format!("name IN ({ASKED})"))?;
    let fixed = pairs("source = 'command line'")?;
    let role = literal(role);
    let found = server.query(&format!(
        "SELECT rolreplication AND rolcanlogin FROM pg_roles WHERE rolname = {role}"
    ))?;
    let groups = server.query(&format!(
        "WITH RECURSIVE up(id) AS (SELECT oid FROM pg_roles WHERE rolname = {role} \
         UNION SELECT m.roleid FROM pg_auth_members m JOIN up ON m.member = up.id) \
         SELECT rolname FROM pg_roles JOIN up ON oid = id"
    ))?;
    let slots = if has(major, Thing::Slots) {
        server.query("SELECT slot_name FROM pg_replication_slots")?
    } else {
        String::new()
    };
    let rewind = REWIND_FUNCTIONS
        .map(|function| format!("has_function_privilege({role}, '{function}', 'execute')"));
    // The functions are of 11 and later, and the role must exist.
    let may_rewind = !found.is_empty()
        && major >= V11
        && server.query(&format!("SELECT {}", rewind.join(" AND ")))? == "t";
    let kind = match wants(major, Thing::PasswordMethod) {
        Some("scram-sha-256") => "SCRAM-SHA-256$%",
        _ => "md5%",
    };
    let passwords = server.query(&format!(
        "SELECT EXISTS (SELECT 1 FROM pg_authid WHERE rolname = {role} AND rolpassword LIKE '{kind}'), \
         current_setting('password_encryption') <> 'scram-sha-256' \
         OR EXISTS (SELECT 1 FROM pg_authid WHERE rolpassword LIKE 'md5%')"
    ))?;
    let lines = |text: String| text.lines().map(str::to_owned).collect();
    Ok(Running {
        settings,
        fixed,
        role: (!found.is_empty()).then_some(found == "t"),
        groups: lines(groups),
        slots: lines(slots),
        may_rewind,
        refused: refused_lines(server, major)?,
        has_password: passwords.starts_with('t'),
        md5_passwords: passwords.ends_with('t'),
        in_recovery: server.query("SELECT pg_is_in_recovery()")? == "t",
    })
}

/// The lines of pg_hba.conf, as it is now, that the server would not take.
pub(super) fn refused_lines(server: &Server, major: Major) -> Result<Vec<RefusedLine>, Problem> {
    if !has(major, Thing::HbaView) {
        return Ok(Vec::new());
    }
    let file = if major >= V16 {
        "file_name"
    } else {
        "current_setting('hba_file')"
    };
    // "cannot match" is a remark on a line that is taken all the same.
    let told = server.query(&format!(
        "SELECT line_number, {file}, error FROM pg_hba_file_rules WHERE error IS NOT NULL AND error NOT LIKE '%cannot match%'"
    ))?;
    let refused = |line: &str| {
        let mut fields = line.splitn(3, '\t');
        Some(RefusedLine {
            place: Place {
                line: fields.next()?.parse().ok()?,
                file: fields.next()?.into(),
            },
            why: fields.next()?.to_owned(),
        })
    };
    Ok(told.lines().filter_map(refused).collect())
}
