//! The configuration file as it is written: TOML, keys and their spelling, nothing of what they mean.
//! Every key is documented in docs/configuration.md.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::problem::Problem;
use crate::watch::LARGEST_FILE;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) identity: Identity,
    #[serde(default)]
    pub(crate) server: Vec<Server>,
    #[serde(default)]
    pub(crate) client: Vec<Client>,
    #[serde(default)]
    pub(crate) node: Node,
    #[serde(default)]
    pub(crate) control: Control,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    #[serde(default)]
    pub(crate) log: Log,
    #[serde(default)]
    pub(crate) relay: Relay,
    #[serde(default)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) crl: Option<PathBuf>,
    pub(crate) crl_expiry: Option<String>,
    pub(crate) on_expiry: Option<String>,
    pub(crate) on_ca_removal: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) listen: String,
    pub(crate) postgres: String,
    #[serde(default)]
    pub(crate) allow: Vec<Allow>,
    #[serde(default)]
    pub(crate) plain_cancel: bool,
    #[serde(default)]
    pub(crate) plaintext_off_host: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Allow {
    pub(crate) identity: String,
    #[serde(default)]
    pub(crate) from: Option<Vec<String>>,
    pub(crate) replication: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) ordinary: bool,
    pub(crate) users: Option<Vec<String>>,
    pub(crate) databases: Option<Vec<String>>,
    pub(crate) application_names: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Client {
    pub(crate) listen: String,
    pub(crate) connect: Vec<String>,
    pub(crate) allow_os_users: Option<Vec<String>>,
    pub(crate) server_name: Option<String>,
    pub(crate) sslnegotiation: Option<String>,
    pub(crate) min_tls: Option<String>,
    #[serde(default)]
    pub(crate) plaintext_off_host: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    pub(crate) state: Option<PathBuf>,
    pub(crate) crl_interval: Option<String>,
    pub(crate) renew_from: Option<Vec<String>>,
    pub(crate) renew_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) sessions: Option<usize>,
    pub(crate) handshakes: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timeouts {
    pub(crate) handshake: Option<String>,
    pub(crate) dial: Option<String>,
    pub(crate) connect: Option<String>,
    pub(crate) answer: Option<String>,
    pub(crate) dead_peer: Option<String>,
    pub(crate) drain: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) level: Option<String>,
    pub(crate) format: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Relay {
    pub(crate) records: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) listen: Option<String>,
    #[serde(default)]
    pub(crate) status: bool,
}

impl File {
    /// Reads and parses `path`.
    pub(crate) fn load(path: &Path) -> Result<Self, Problem> {
        let read = || {
            let mut text = String::new();
            std::fs::File::open(path)?
                .take(LARGEST_FILE)
                .read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|error: std::io::Error| {
            Problem::new(
                "C01",
                format!("the configuration {} cannot be read", path.display()),
                error.to_string(),
                "name the file with --config, and let this OS user read it",
            )
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Problem> {
        toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(1, |before| before.matches('\n').count() + 1);
            let message = error.message().trim().to_owned();
            let way_out = nearest_known_key(&message)
                .map(|key| format!("did you mean `{key}`? docs/configuration.md lists every key"))
                .unwrap_or_else(|| {
                    "mend that line; docs/configuration.md lists every key".to_owned()
                });
            Problem::new(
                "C02",
                format!("{} line {line} is not understood", path.display()),
                message,
                way_out,
            )
        })
    }
}

/// From serde's "unknown field `lisen`, expected one of `listen`, `postgres`": the expected name most like it.
fn nearest_known_key(message: &str) -> Option<&str> {
    let mut names = message
        .strip_prefix("unknown field ")?
        .split('`')
        .skip(1)
        .step_by(2);
    let unknown = names.next()?;
    names.max_by(|a, b| {
        strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
        let text = "[identity]\ncert='c'\nkey='k'\nca='a'\n[[server]]\nlisten='0.0.0.0:1'\npostgress='/s'\n";
        let problem = File::parse(text, Path::new("x.toml")).unwrap_err();
        let shown = problem.to_string();
        assert!(shown.contains("x.toml line 7"), "{shown}");
        assert!(shown.contains("did you mean `postgres`?"), "{shown}");
    }
}
