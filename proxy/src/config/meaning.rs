//! From what is written to what is meant. Collects every error instead of stopping at the first.

mod tunnels; // [[server]] and [[client]]

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use protocol::escape::escape;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::level_filters::LevelFilter;

use super::file::{self, File};
use super::{
    Config, CrlExpiry, IdentityFiles, Limits, Log, LogFormat, Node, Records, Running, Timeouts,
};
use crate::problem::Problem;

pub(super) fn interpret(file: File, base: &Path) -> Result<Config, Vec<Problem>> {
    let mut findings = Findings::default();
    let identity = IdentityFiles {
        cert: base.join(&file.identity.cert),
        key: base.join(&file.identity.key),
        ca: base.join(&file.identity.ca),
        crl: file.identity.crl.as_ref().map(|crl| base.join(crl)),
        crl_expiry: findings.one_of(
            "identity.crl_expiry",
            file.identity.crl_expiry.as_deref(),
            CrlExpiry::Warn,
            &[("warn", CrlExpiry::Warn), ("enforce", CrlExpiry::Enforce)],
        ),
        on_expiry: findings.one_of(
            "identity.on_expiry",
            file.identity.on_expiry.as_deref(),
            Running::Keep,
            &[("keep", Running::Keep), ("close", Running::Close)],
        ),
        on_ca_removal: findings.one_of(
            "identity.on_ca_removal",
            file.identity.on_ca_removal.as_deref(),
            Running::Keep,
            &[("keep", Running::Keep), ("close", Running::Close)],
        ),
        kept_crl: findings.kept_crl(&file, base),
    };
    let node = Node {
        crl_interval: findings.duration(
            "node.crl_interval",
            file.node.crl_interval.as_deref(),
            Duration::from_secs(60),
        ),
        renew_from: findings.renew_from(&file.node),
        renew_name: file.node.renew_name.clone(),
    };
    let mut tunnels = Vec::new();
    for (index, server) in file.server.iter().enumerate() {
        let name = numbered("server", index, file.server.len());
        tunnels.extend(findings.server(name, server, base));
    }
    for (index, client) in file.client.iter().enumerate() {
        let name = numbered("client", index, file.client.len());
        tunnels.extend(findings.client(name, client, base));
    }
    if file.server.is_empty() && file.client.is_empty() {
        findings.error(
            "no tunnel is configured",
            "there is neither a [[server]] nor a [[client]]",
            "add the one this node needs; docs/configuration.md has an example of each",
        );
    }
    findings.shared_addresses(&tunnels);

    let limits = Limits {
        sessions: findings.at_least_one("limits.sessions", file.limits.sessions, 1000),
        handshakes: findings.at_least_one("limits.handshakes", file.limits.handshakes, 4096),
    };
    let mut duration = |key, text: &Option<String>, default| {
        findings.duration(key, text.as_deref(), Duration::from_secs(default))
    };
    let timeouts = Timeouts {
        handshake: duration("timeouts.handshake", &file.timeouts.handshake, 10),
        dial: duration("timeouts.dial", &file.timeouts.dial, 3),
        connect: duration("timeouts.connect", &file.timeouts.connect, 10),
        answer: duration("timeouts.answer", &file.timeouts.answer, 30),
        dead_peer: duration("timeouts.dead_peer", &file.timeouts.dead_peer, 15),
        drain: duration("timeouts.drain", &file.timeouts.drain, 5),
    };
    let log = Log {
        level: findings.one_of(
            "log.level",
            file.log.level.as_deref(),
            LevelFilter::INFO,
            &[
                ("error", LevelFilter::ERROR),
                ("warn", LevelFilter::WARN),
                ("info", LevelFilter::INFO),
                ("debug", LevelFilter::DEBUG),
                ("trace", LevelFilter::TRACE),
            ],
        ),
        format: findings.one_of(
            "log.format",
            file.log.format.as_deref(),
            LogFormat::Text,
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        ),
    };
    let records = findings.one_of(
        "relay.records",
        file.relay.records.as_deref(),
        Records::InPlace,
        &[("in_place", Records::InPlace), ("rustls", Records::Rustls)],
    );
    let admin_listen = findings.admin_listen(file.admin.listen.as_deref());
    if findings.errors.is_empty() {
        Ok(Config {
            identity,
            tunnels,
            node,
            control: file.control.socket.as_ref().map(|path| base.join(path)),
            limits,
            timeouts,
            log,
            records,
            admin_listen,
            admin_status: file.admin.status,
            admin_socket: file.admin.socket.as_ref().map(|socket| base.join(socket)),
            warnings: findings.warnings,
        })
    } else {
        Err(findings.errors)
    }
}

#[derive(Default)]
struct Findings {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings {
    fn error(&mut self, what: impl Into<String>, why: impl Into<String>, way_out: &str) {
        self.errors.push(Problem::new("C03", what, why, way_out));
    }

    fn kept_crl(&mut self, file: &File, base: &Path) -> Option<PathBuf> {
        let state = file.node.state.as_ref()?;
        if file.identity.crl.is_none() {
            self.error(
                "`node.state` is set without `identity.crl`",
                "CRLs that come from other nodes add to that file, and nothing is revoked without it",
                "set identity.crl, or take node.state out",
            );
        }
        Some(base.join(state).join(KEPT_CRL))
    }

    fn renew_from(&mut self, node: &file::Node) -> Vec<crate::net::Target> {
        let targets = node.renew_from.iter().flatten();
        let targets: Vec<crate::net::Target> = targets
            .filter_map(|target| self.parse("node", "renew_from", target))
            .collect();
        match &node.renew_name {
            Some(name) => self.server_name("node", "renew_name", name),
            None => {
                for target in &targets {
                    self.server_name("node", "renew_from", &target.host);
                }
            }
        }
        targets
    }

    fn admin_listen(&mut self, text: Option<&str>) -> Option<SocketAddr> {
        let text = text?;
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && address.port() != 0 => Some(address),
            _ => {
                self.error(
                    format!("[admin] `listen` is {}", escape(text)),
                    "it answers without TLS, so it listens on an address of loopback with a port only",
                    "set listen = \"127.0.0.1:5445\" under [admin], and let what watches run on this host",
                );
                None
            }
        }
    }

    fn server_name(&mut self, place: &str, key: &str, name: &str) {
        if let Err(error) = ServerName::try_from(name) {
            self.error(
                format!("{place}: `{key}` names `{name}`"),
                format!("no certificate can carry that name: {error}"),
                "use the DNS name or IP address in the far certificate (server_name)",
            );
        }
    }

    fn parse<T>(&mut self, place: &str, key: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(
                    format!("{place}: `{key}` is not understood"),
                    error.to_string(),
                    "mend that value; docs/configuration.md has an example",
                );
                None
            }
        }
    }

    /// The value that `text` names, or the default.
    fn one_of<T: Copy>(
        &mut self,
        key: &str,
        text: Option<&str>,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        let Some(text) = text else {
            return default;
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let known: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        self.error(
            format!("`{key}` is \"{text}\""),
            "that is not one of its values",
            &format!("use {}", known.join(" or ")),
        );
        default
    }

    fn at_least_one(&mut self, key: &str, value: Option<usize>, default: usize) -> usize {
        if value == Some(0) {
            self.error(
                format!("`{key}` is 0"),
                "then nothing could connect",
                "give a number of 1 or more",
            );
        }
        value.unwrap_or(default)
    }

    fn duration(&mut self, key: &str, text: Option<&str>, default: Duration) -> Duration {
        let Some(text) = text else {
            return default;
        };
        match humantime::parse_duration(text) {
            Ok(value) if Duration::from_millis(1) <= value && value <= LONGEST => value,
            Ok(_) => {
                self.error(
                    format!("`{key}` is \"{text}\""),
                    "a limit is between 1 ms and 1 day",
                    "give a time such as \"15s\"",
                );
                default
            }
            Err(error) => {
                self.error(
                    format!("`{key}` is \"{text}\""),
                    error.to_string(),
                    "give a number with its unit, such as \"15s\" or \"500ms\"",
                );
                default
            }
        }
    }
}

fn numbered(name: &str, index: usize, count: usize) -> String {
    if count > 1 {
        format!("{name}-{}", index + 1)
    } else {
        name.to_owned()
    }
}

/// The file in `node.state`.
const KEPT_CRL: &str = "ca.crl";

/// No step of a connection may take longer, whatever the file says.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
