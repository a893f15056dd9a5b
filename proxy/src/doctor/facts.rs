//! The facts that doctor judges, as plain values: what was read, dialled and asked, without an opinion.
//! `gather` fills them; `judge` reads them; a test can write them by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use protocol::replication::Lsn;
use serde::Deserialize;

use crate::problem::Problem;

/// Everything known about one tunnel, from this host.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) side: Side,
    /// What the loader says of certificate, key, CA and CRL.
    pub(crate) files: Vec<Problem>,
    /// What PostgreSQL here should be told to connect to, as primary_conninfo.
    pub(crate) door_conninfo: String,
    /// A client tunnel's own listener, or where primary_conninfo leads instead.
    pub(crate) door: Option<Door>,
    /// A client tunnel's targets.
    pub(crate) routes: Vec<Route>,
    /// The answer on what the slot sync worker sends, where slots are synchronised.
    pub(crate) slot_sync: Option<Answer>,
    /// A server tunnel's own listener.
    pub(crate) listener: Option<Reach>,
    /// The PostgreSQL behind a server tunnel.
    pub(crate) backend: Option<Backend>,
    pub(crate) cluster: Option<Cluster>,
    /// What could not be looked at, and why.
    pub(crate) unseen: Vec<String>,
}

/// Which end of the TLS connection the tunnel is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    #[default]
    Client,
    Server,
}

/// A socket that was tried.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    pub(crate) address: String,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered, after so long.
    Answered(Duration),
    /// It took the connection and said nothing.
    Silent,
    NoName(String),
    Failed(String),
}

/// Where the standby connects to.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) reach: Reach,
    /// Whether it is this tunnel's own listener.
    pub(crate) ours: bool,
    /// Whether the proxy lets PostgreSQL's OS user in; None where that is not asked.
    pub(crate) admits: Option<bool>,
    /// What libpq says of primary_conninfo, where nothing streams: its own error, or None if it came through.
    pub(crate) libpq: Option<String>,
}

/// One target of a client tunnel, as far as it was reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route {
    pub(crate) target: String,
    pub(crate) dialled: Option<Duration>,
    /// Who it is and which TLS it speaks.
    pub(crate) peer: Option<String>,
    /// Our own explanation of a failed dial or handshake.
    pub(crate) refusal: Option<Explained>,
    pub(crate) answer: Option<Answer>,
    /// What the proxy there says itself, where it can be asked.
    pub(crate) far: Option<Far>,
}

/// What the proxy on the other host sees.
#[derive(Debug, Clone, Default)]
pub(crate) struct Far {
    /// Who asked, by our own certificate.
    pub(crate) asker: String,
    /// How far its clock is ahead of ours, in seconds.
    pub(crate) clock_ahead: Option<f64>,
    /// Whether a rule there admits us for replication.
    pub(crate) admitted: bool,
    /// Whether the PostgreSQL behind it takes connections; if not, where and why. None where it has none.
    pub(crate) postgres: Option<Result<(), String>>,
    /// What deserves a look on that host.
    pub(crate) warnings: Vec<Explained>,
}

/// A refusal in words that were made for a person, with the id of the proxy that made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explained {
    pub(crate) id: String,
    pub(crate) message: String,
    pub(crate) way_out: String,
}

/// What came back on a startup.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Welcome(Box<Login>),
    Refused(ServerError),
    /// A password was asked for, and there is none to give: why.
    NoPassword(Password),
    Silent,
    Broke(String),
}

/// Why there is no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Password {
    /// No line of the passfile fits.
    Missing {
        passfile: String,
        line: String,
    },
    /// libpq ignores the file.
    Ignored {
        passfile: String,
        why: String,
        mend: String,
    },
    Method(String),
}

/// An ErrorResponse. Only SQLSTATE and routine are the same in every language (protocol, "Error and Notice Message
/// Fields").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: String,
    pub(crate) hint: String,
    pub(crate) routine: String,
}

/// What the far server told on a replication connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Login {
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    /// Where its WAL ends.
    pub(crate) lsn: Lsn,
    pub(crate) in_recovery: Option<bool>,
    pub(crate) settings: BTreeMap<String, String>,
    /// Where the history of its timeline branched off each earlier one.
    pub(crate) history: Vec<(u32, Lsn)>,
    /// What START_REPLICATION got, where the standby does not stream by itself.
    pub(crate) stream: Option<Result<(), ServerError>>,
    /// The subscription's slot, where it was asked for.
    pub(crate) slot: Option<FarSlot>,
    /// How far its clock is ahead of ours, in seconds.
    pub(crate) clock_ahead: Option<f64>,
}

/// A slot for logical decoding, as its publisher has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FarSlot {
    Missing,
    Lost,
    There,
}

/// The PostgreSQL behind a server tunnel, as its proxy reaches it.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) reach: Reach,
    /// None: a Unix socket.
    pub(crate) ip: Option<IpAddr>,
    /// The OS user that the proxy connects as; None where that cannot be told.
    pub(crate) proxy_user: Option<String>,
    /// Whether some rule of the tunnel admits physical replication.
    pub(crate) physical: bool,
}

/// A cluster on this host: its files, and what the server says if it runs.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) data: PathBuf,
    pub(crate) owner: String,
    pub(crate) major: u32,
    pub(crate) running: bool,
    /// It was asked, and said nothing in the time that there was.
    pub(crate) silent: bool,
    /// Where it listens, by its postmaster.pid: the Unix socket.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) standby_signal: bool,
    pub(crate) recovery_conf: bool,
    pub(crate) control: Option<Control>,
    /// What `postgres -C` says where the configuration does not load.
    pub(crate) conf_error: Option<String>,
    pub(crate) settings: BTreeMap<String, String>,
    /// The upstream of a standby, or of a subscription through this tunnel.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) server: Option<Server>,
    /// Changed after the configuration was loaded.
    pub(crate) edited: Vec<String>,
    pub(crate) unreadable: Vec<String>,
    pub(crate) log: Vec<String>,
}

/// pg_control: what a cluster knows of itself before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    /// It was last seen in archive recovery, running or shut down in it.
    pub(crate) in_recovery: bool,
}

/// Whom the cluster connects to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    pub(crate) user: String,
    /// None for physical replication.
    pub(crate) database: Option<String>,
    pub(crate) has_dbname: bool,
    pub(crate) slot: Option<String>,
}

/// What a running server says by SQL.
#[derive(Debug, Default, Clone)]
pub(crate) struct Server {
    pub(crate) about: About,
    pub(crate) config_errors: Vec<ConfigError>,
    /// Every place where primary_conninfo is set, in order; the last one is in force.
    pub(crate) conninfo_places: Vec<String>,
    pub(crate) pending_restart: Vec<String>,
    pub(crate) hba: Option<Vec<HbaRule>>,
    /// pg_ident.conf, from 15 on.
    pub(crate) ident: Option<Vec<Mapping>>,
    pub(crate) roles: Vec<Role>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) senders: Vec<Sender>,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) replay: Option<Replay>,
    /// The newest timeline of which it has WAL files; None where they may not be listed.
    pub(crate) newest_wal: Option<u32>,
    /// Replay position a moment later, where it was behind.
    pub(crate) replayed_later: Option<String>,
    pub(crate) waiting_commits: u64,
    /// On a client tunnel's host those that come through it.
    pub(crate) subscriptions: Vec<Subscription>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(crate) struct About {
    pub(crate) superuser: bool,
    pub(crate) in_recovery: bool,
    /// When the configuration was loaded, seconds since 1970.
    pub(crate) loaded: f64,
    pub(crate) system_identifier: String,
    /// Of a standby that receives nothing, the one before, until its next restartpoint after a failover.
    pub(crate) timeline: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ConfigError {
    pub(crate) place: String,
    pub(crate) name: Option<String>,
    pub(crate) error: String,
}

/// A line of pg_hba_file_rules. Quotes are gone there, so a keyword and a name look alike.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct HbaRule {
    pub(crate) place: String,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) database: Option<Vec<String>>,
    pub(crate) user_name: Option<Vec<String>>,
    pub(crate) address: Option<String>,
    pub(crate) netmask: Option<String>,
    pub(crate) auth_method: Option<String>,
    /// `name=value`.
    pub(crate) options: Option<Vec<String>>,
    pub(crate) error: Option<String>,
}

/// A line of pg_ident_file_mappings.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Mapping {
    pub(crate) map: Option<String>,
    pub(crate) os_user: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) superuser: bool,
    pub(crate) replication: bool,
    pub(crate) login: bool,
    pub(crate) expired: bool,
    /// `md5`, `SCRAM-SHA-256`, nothing; None where that may not be seen.
    pub(crate) password: Option<String>,
    /// Roles it is a member of, directly or not.
    pub(crate) member_of: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) active: bool,
    /// Not one for logical decoding.
    pub(crate) physical: bool,
    pub(crate) wal_status: Option<String>,
    /// Why it is lost, from 17 on.
    pub(crate) reason: Option<String>,
    /// Bytes of WAL that it keeps from being removed.
    pub(crate) held: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Sender {
    pub(crate) application_name: String,
    pub(crate) state: Option<String>,
    pub(crate) sync_state: Option<String>,
    /// It decodes: for a subscription, and not for a standby.
    pub(crate) logical: bool,
    /// Bytes that it has not replayed.
    pub(crate) behind: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Receiver {
    pub(crate) pid: i64,
    pub(crate) status: Option<String>,
    /// Seconds since the last message came.
    pub(crate) silent_for: Option<f64>,
    /// Sent at, by the other clock, less received at, by ours; seconds. Less than the clock is ahead, by the time on the way.
    pub(crate) clock_ahead: Option<f64>,
    /// Set while it connects: for how many seconds.
    pub(crate) connecting_for: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Replay {
    pub(crate) received: Option<String>,
    pub(crate) replayed: Option<String>,
    pub(crate) paused: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Subscription {
    pub(crate) name: String,
    pub(crate) enabled: bool,
    pub(crate) running: bool,
    pub(crate) conninfo: Option<String>,
    pub(crate) slot: Option<String>,
}

impl ServerError {
    /// The id that one of our proxies put behind its message.
    pub(crate) fn proxy_id(&self) -> Option<&str> {
        let message = self.message.strip_prefix("pgtlsproxy: ")?;
        let (_, id) = message.strip_suffix(']')?.rsplit_once('[')?;
        let well_formed = id.len() == 3 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        well_formed.then_some(id)
    }

    /// Message, detail and SQLSTATE as one line.
    pub(crate) fn line(&self) -> String {
        let detail = if self.detail.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.detail)
        };
        format!("{}{detail} [SQLSTATE {}]", self.message, self.sqlstate)
    }
}

impl Cluster {
    pub(crate) fn in_recovery(&self) -> Option<bool> {
        self.server.as_ref().map(|server| server.about.in_recovery)
    }

    pub(crate) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Whether its walreceiver streams, or its subscriptions do.
    pub(crate) fn flows(&self) -> bool {
        let Some(server) = &self.server else {
            return false;
        };
        let receives = server
            .receiver
            .as_ref()
            .is_some_and(|receiver| receiver.status.as_deref() == Some("streaming"));
        let subscribed = server
            .subscriptions
            .iter()
            .filter(|one| one.enabled)
            .count()
            > 0
            && server
                .subscriptions
                .iter()
                .all(|one| !one.enabled || one.running);
        receives || (!server.about.in_recovery && subscribed)
    }

    pub(crate) fn system_identifier(&self) -> Option<&str> {
        let asked = self
            .server
            .as_ref()
            .map(|server| server.about.system_identifier.as_str())
            .filter(|id| !id.is_empty());
        let read = || {
            let control = self.control.as_ref()?;
            Some(control.system_identifier.as_str())
        };
        asked.or_else(read)
    }

    /// The timeline that it is on, or a later one is.
    pub(crate) fn timeline(&self) -> Option<u32> {
        let asked = self.server.as_ref().map(|server| server.about.timeline);
        asked
            .filter(|timeline| *timeline > 0)
            .or_else(|| self.control.as_ref().map(|control| control.timeline))
    }

    /// The timeline that its WAL is of, if that is known for certain: pg_control alone may be old.
    pub(crate) fn wal_timeline(&self) -> Option<u32> {
        let newest = self.server.as_ref()?.newest_wal?;
        self.timeline().map(|least| least.max(newest))
    }

    /// How far its WAL reaches: received, or else replayed.
    pub(crate) fn wal_end(&self) -> Option<Lsn> {
        let replay = self.server.as_ref()?.replay.as_ref()?;
        let lsn = |text: &Option<String>| text.as_ref()?.parse::<Lsn>().ok();
        lsn(&replay.received).max(lsn(&replay.replayed))
    }
}
