//! What is told of a session: one log line when it ends, however it ends, and one at debug when it opens.

use std::sync::Arc;
use std::time::Instant;

use protocol::escape::escape;
use protocol::identity::Identity;
use protocol::negotiation::Request;
use tracing::{Level, debug, event};

use super::end::End;
use super::registry::Live;
use crate::flood::Flood;
use crate::net::Peer;
use crate::tls::{PeerCertificate, SessionId};

/// Collects what is known of one connection; finished once.
pub(crate) struct SessionRecord {
    tunnel: Arc<str>,
    flood: Arc<Flood>,
    peer: String,
    started: Instant,
    id: Option<SessionId>,
    certificate: Option<Arc<PeerCertificate>>,
    far: Option<String>,
    tls: Option<String>,
    request: Option<String>,
    live: Option<Arc<Live>>,
    finished: bool,
}

impl SessionRecord {
    pub(crate) fn new(tunnel: Arc<str>, flood: Arc<Flood>, peer: Peer) -> Self {
        Self {
            tunnel,
            flood,
            peer: match peer {
                Peer::Tcp(address) => address.to_string(),
                Peer::Unix { uid, pid } => format!("uid={uid} pid={pid}"),
            },
            started: Instant::now(),
            id: None,
            certificate: None,
            far: None,
            tls: None,
            request: None,
            live: None,
            finished: false,
        }
    }

    /// The id that both proxies log.
    pub(crate) fn id(&mut self, id: SessionId) {
        self.id = Some(id);
    }

    pub(crate) fn id_so_far(&self) -> Option<SessionId> {
        self.id
    }

    /// Who the downstream's certificate says it is.
    pub(crate) fn certificate(&mut self, certificate: &Arc<PeerCertificate>) {
        self.certificate = Some(Arc::clone(certificate));
    }

    /// Protocol, suite and key exchange.
    pub(crate) fn tls(&mut self, parameters: String) {
        self.tls = Some(parameters);
    }

    /// Where the upstream is, and who it says it is.
    pub(crate) fn reached(&mut self, far: String) {
        self.far = Some(far);
    }

    pub(crate) fn asked(&mut self, request: &Request) {
        let text = match request {
            Request::Cancel(_) => "cancel".to_owned(),
            Request::Startup(startup) => {
                let mut text = format!("{} user={}", startup.replication(), escape(startup.user()));
                if startup.replication() != protocol::startup::Replication::Physical {
                    text.push_str(&format!(" database={}", escape(startup.database())));
                }
                for name in startup.application_names() {
                    text.push_str(&format!(" application_name={}", escape(name)));
                }
                text
            }
        };
        self.request = Some(text);
    }

    pub(crate) fn live(&mut self, live: &Arc<Live>) {
        self.live = Some(Arc::clone(live));
    }

    fn identity(&self) -> Option<&Identity> {
        self.certificate
            .as_ref()
            .map(|certificate| &certificate.identity)
    }

    /// Both sides are joined; from here on bytes flow.
    pub(crate) fn joined(&self) {
        debug!(
            tunnel = &*self.tunnel,
            id = self.id.map(|id| id.to_string()),
            peer = self.peer,
            identity = self.identity().map(ToString::to_string),
            session = self.request.as_deref(),
            upstream = self.far.as_deref(),
            tls = self.tls.as_deref(),
            "session open"
        );
    }

    pub(crate) fn finish(mut self, end: &End) {
        self.finished = true;
        let meaning = end.meaning();
        if meaning.may_flood && !self.flood.admit(&self.tunnel, end.cause()) {
            return;
        }
        self.line(meaning.level, meaning.label, &end.to_string());
    }

    fn line(&self, level: Level, label: &str, reason: &str) {
        let traffic = self.live.as_ref().map(|live| &live.traffic);
        // A macro needs its level at compile time.
        macro_rules! line {
            ($level:expr) => {
                event!(
                    $level,
                    tunnel = &*self.tunnel,
                    id = self.id.map(|id| id.to_string()),
                    peer = self.peer,
                    identity = self.identity().map(ToString::to_string),
                    fingerprint = self
                        .identity()
                        .map(|identity| identity.fingerprint().to_string()),
                    session = self.request.as_deref(),
                    upstream = self.far.as_deref(),
                    tls = self.tls.as_deref(),
                    backend_pid = self.live.as_ref().and_then(|live| live.backend_pid()),
                    seconds = self.started.elapsed().as_secs_f64(),
                    bytes_to_upstream = traffic.map(|traffic| traffic.to_upstream()),
                    bytes_to_downstream = traffic.map(|traffic| traffic.to_downstream()),
                    end = label,
                    reason,
                    "session ended"
                )
            };
        }
        match level {
            Level::ERROR => line!(Level::ERROR),
            Level::WARN => line!(Level::WARN),
            Level::INFO => line!(Level::INFO),
            Level::DEBUG => line!(Level::DEBUG),
            Level::TRACE => line!(Level::TRACE),
        }
    }
}

impl Drop for SessionRecord {
    fn drop(&mut self) {
        if !self.finished {
            self.line(Level::WARN, "dropped", "the process ended under it");
        }
    }
}
