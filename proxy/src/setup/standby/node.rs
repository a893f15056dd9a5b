//! This host's node as its own files tell it: its name, the door for its PostgreSQL, whom it follows, and whom it lets in.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::policy::Names;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::super::conninfo::Conninfo;
use super::super::plan::FileChange;
use crate::config::{Side, Source};
use crate::directories;
use crate::net::{ListenAddress, PostgresAddress, Target};
use crate::problem::Problem;
use crate::reload;

const CONFIG: &str = "pgtlsproxy.toml";
/// Where the client tunnel's socket is, as libpq counts: `.s.PGSQL.5442`.
const DOOR_PORT: u16 = 5442;
/// The role by which standbys log in, unless rules or arguments say another.
const ROLE: &str = "replicator";

/// What is known of this node.
#[derive(Debug)]
pub(super) struct Node {
    /// The common name of its certificate.
    pub(super) name: String,
    /// Where its PostgreSQL connects: the directory of a Unix socket or an address, and the port.
    pub(super) door: (String, u16),
    /// Whether the door is a Unix socket.
    pub(super) local: bool,
    /// Whom its client tunnel dials.
    pub(super) targets: Vec<Target>,
    /// Whom its server tunnels let in, by the name in their certificates.
    pub(super) members: Vec<String>,
    /// As which role.
    pub(super) role: String,
    /// Whether one of them may come with ordinary connections, as pg_rewind does.
    pub(super) serves_rewind: bool,
    pub(super) control: Option<PathBuf>,
    /// The Unix socket of the PostgreSQL that its first server tunnel leads to, if it is one.
    pub(super) serves: Option<PathBuf>,
}

pub(super) fn config_path(directory: &Path) -> PathBuf {
    directory.join(CONFIG)
}

impl Node {
    /// By the loader that the daemon uses.
    pub(super) fn load(directory: &Path) -> Result<Self, Vec<Problem>> {
        let config = config_path(directory);
        if !config.exists() {
            return Err(vec![Problem::new(
                "V01",
                "this host is no node yet",
                format!("{} does not exist", config.display()),
                "let it join first: `pgtlsproxy invite NAME` on the primary prints the line for `pgtlsproxy join`",
            )]);
        }
        let checked = reload::load(&Source::File(config.clone()))?;
        let identity = checked.credentials.identity();
        let name = identity.common_name().map(str::to_owned);
        let mut clients = checked
            .config
            .tunnels
            .iter()
            .filter_map(|tunnel| match &tunnel.side {
                Side::Client(client) => Some((&tunnel.listen, client)),
                Side::Server(_) => None,
            });
        let Some((listen, client)) = clients.next() else {
            return Err(vec![Problem::new(
                "V02",
                format!("{} has no [[client]] tunnel", config.display()),
                "a standby follows through it",
                "say whom it shall follow: pgtlsproxy setup standby --from HOST:PORT",
            )]);
        };
        let mut members = Vec::new();
        let (mut role, mut serves_rewind, mut serves) = (None, false, None);
        for tunnel in &checked.config.tunnels {
            let Side::Server(server) = &tunnel.side else {
                continue;
            };
            if let PostgresAddress::Unix(path) = &server.postgres {
                serves.get_or_insert_with(|| path.clone());
            }
            for rule in server.policy.rules() {
                let identity = rule.identity.to_string();
                let member = identity
                    .strip_prefix("cn:")
                    .filter(|name| !name.contains('*'));
                if let Some(member) = member.filter(|name| !members.iter().any(|one| one == name)) {
                    members.push(member.to_owned());
                }
                if let Names::Only(users) = &rule.users {
                    role = role.or_else(|| users.first().cloned());
                }
                serves_rewind |= rule.ordinary;
            }
        }
        let (host, port) = match listen {
            ListenAddress::Tcp(address) => (address.ip().to_string(), address.port()),
            ListenAddress::Unix(path) => socket(path),
        };
        Ok(Self {
            name: name.unwrap_or_else(|| host.clone()),
            door: (host, port),
            local: matches!(listen, ListenAddress::Unix(_)),
            targets: client.targets.clone(),
            members,
            role: role.unwrap_or_else(|| ROLE.to_owned()),
            serves_rewind,
            control: checked.config.control.clone(),
            serves,
        })
    }

    /// How any program of PostgreSQL gets to the primary.
    pub(super) fn conninfo(&self, role: &str) -> Conninfo {
        let (host, port) = &self.door;
        Conninfo::default()
            .with("host", host)
            .with("port", port.to_string())
            .with("user", role)
            .with("application_name", &self.name)
    }

    /// Whom it follows, for people.
    pub(super) fn upstream(&self) -> String {
        let targets: Vec<_> = self.targets.iter().map(ToString::to_string).collect();
        targets.join(", ")
    }
}

/// `DIRECTORY/.s.PGSQL.PORT`, taken apart as libpq puts it together.
fn socket(path: &Path) -> (String, u16) {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let port = path
        .extension()
        .and_then(|port| port.to_str()?.parse().ok())
        .unwrap_or(DOOR_PORT);
    (directory.to_string_lossy().into_owned(), port)
}

/// A node's configuration as it can be changed with its comments kept. `by_hand`: what to do if it cannot.
struct Document {
    path: PathBuf,
    content: DocumentMut,
    by_hand: String,
}

impl Document {
    fn read(directory: &Path, by_hand: String) -> Result<Self, Problem> {
        let mut document = Self {
            path: config_path(directory),
            content: DocumentMut::new(),
            by_hand,
        };
        let text = fs::read_to_string(&document.path)
            .map_err(|error| document.cannot_be_changed(error.to_string()))?;
        document.content = text
            .parse()
            .map_err(|error: toml_edit::TomlError| document.cannot_be_changed(error.to_string()))?;
        Ok(document)
    }

    fn cannot_be_changed(&self, why: String) -> Problem {
        let what = format!("{} cannot be changed", self.path.display());
        Problem::new("V19", what, why, self.by_hand.clone())
    }

    fn changed(self) -> FileChange {
        FileChange {
            path: self.path,
            new: self.content.to_string().into_bytes(),
        }
    }
}

/// The configuration with its first server tunnel leading to this socket.
pub(super) fn serving(directory: &Path, socket: &Path) -> Result<FileChange, Problem> {
    let socket = socket.to_string_lossy();
    let by_hand =
        format!("set postgres = \"{socket}\" in its [[server]] by hand, then run this again");
    let mut document = Document::read(directory, by_hand)?;
    let servers = document.content.get_mut("server");
    let server = servers
        .and_then(Item::as_array_of_tables_mut)
        .and_then(|servers| servers.get_mut(0));
    let Some(server) = server else {
        return Err(document.cannot_be_changed("it has no table [[server]]".to_owned()));
    };
    server.insert("postgres", value(socket.into_owned()));
    Ok(document.changed())
}

/// The configuration with its first client tunnel leading to `target`; none if it does already. A tunnel that is missing
/// is added.
pub(super) fn following(
    directory: &Path,
    target: &Target,
    os_user: &str,
) -> Result<Option<FileChange>, Problem> {
    let by_hand = format!(
        "set connect = [\"{target}\"] in its [[client]] by hand, then run this without --from"
    );
    let mut document = Document::read(directory, by_hand)?;
    let clients = document
        .content
        .entry("client")
        .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let Some(clients) = clients.as_array_of_tables_mut() else {
        return Err(document.cannot_be_changed("`client` is no list of tables".to_owned()));
    };
    if clients.is_empty() {
        let run = directories::run(directory);
        let mut table = Table::new();
        table.insert("listen", value(run.to_string_lossy().into_owned()));
        table.insert("allow_os_users", value(Array::from_iter([os_user])));
        clients.push(table);
    }
    let Some(client) = clients.get_mut(0) else {
        return Ok(None);
    };
    let wanted = target.to_string();
    let now: Vec<_> = client
        .get("connect")
        .and_then(Item::as_array)
        .into_iter()
        .flatten()
        .filter_map(toml_edit::Value::as_str)
        .collect();
    if now == [wanted.as_str()] {
        return Ok(None);
    }
    client.insert("connect", value(Array::from_iter([wanted])));
    // It named the one before.
    client.remove("server_name");
    Ok(Some(document.changed()))
}
