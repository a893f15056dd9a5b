//! What only a start takes from the configuration, so that a reload which finds it changed can say so.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{self, Config};

/// What a start takes from the configuration and a reload does not, listeners of tunnels aside.
#[derive(Clone)]
pub(super) struct Started {
    limits: config::Limits,
    format: config::LogFormat,
    pub(super) kept_crl: Option<PathBuf>,
    crl_interval: Duration,
    control: Option<PathBuf>,
    admin: (Option<PathBuf>, Option<SocketAddr>, bool),
}

impl Started {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            limits: config.limits,
            format: config.log.format,
            kept_crl: config.identity.kept_crl.clone(),
            crl_interval: config.node.crl_interval,
            control: config.control.clone(),
            admin: (
                config.admin_socket.clone(),
                config.admin_listen,
                config.admin_status,
            ),
        }
    }

    /// What of it is configured otherwise by now.
    pub(super) fn unlike(&self, configured: &Self) -> Vec<&'static str> {
        let parts = [
            ("limits", self.limits != configured.limits),
            ("log.format", self.format != configured.format),
            ("node.state", self.kept_crl != configured.kept_crl),
            (
                "node.crl_interval",
                self.crl_interval != configured.crl_interval,
            ),
            ("[control]", self.control != configured.control),
            ("[admin]", self.admin != configured.admin),
        ];
        let unlike = parts.into_iter().filter(|(_, unlike)| *unlike);
        unlike.map(|(name, _)| name).collect()
    }
}
