//! What is told of a session: one log line when it opens and one when it ends, however it ends, for whoever must know
//! later who had access to what. Both proxies log the same id. Text from peers is escaped.

use std::sync::Arc;
use std::thread::panicking;
use std::time::{Duration, Instant, SystemTime};

use protocol::escape::escape;
use protocol::identity::Identity;
use protocol::negotiation::Request;
use protocol::replication::Lsn;
use protocol::startup::Replication;
use protocol::watch::Stream;
use tracing::{Level, event, info};

use super::end::{End, Meaning};
use super::lately::{Gone, Lately};
use super::registry::Live;
use super::tally::Tally;
use crate::flood::Flood;
use crate::net::Peer;
use crate::snapshot::{self, serial};
use crate::tls::{PeerCertificate, SessionId};

/// Collects what is known of one connection; finished once.
pub(crate) struct SessionRecord {
    tunnel: Arc<str>,
    flood: Arc<Flood>,
    tally: Arc<Tally>,
    lately: Arc<Lately>,
    peer: Peer,
    started: Instant,
    id: Option<SessionId>,
    certificate: Option<Arc<PeerCertificate>>,
    far: Option<String>,
    tls: Option<String>,
    asked: Option<Asked>,
    live: Option<Arc<Live>>,
    finished: bool,
}

impl SessionRecord {
    pub(crate) fn new(
        tunnel: Arc<str>,
        flood: Arc<Flood>,
        tally: Arc<Tally>,
        lately: Arc<Lately>,
        peer: Peer,
    ) -> Self {
        tally.accept();
        Self {
            tunnel,
            flood,
            tally,
            lately,
            peer,
            started: Instant::now(),
            id: None,
            certificate: None,
            far: None,
            tls: None,
            asked: None,
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

    /// A TLS handshake succeeded.
    pub(crate) fn handshaken(&self, took: Duration) {
        self.tally.handshake(took);
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
        self.asked = Some(match request {
            Request::Cancel(_) => Asked {
                kind: Kind::Cancel,
                user: None,
                database: None,
                application_name: None,
            },
            Request::Startup(startup) => {
                let replication = startup.replication();
                Asked {
                    kind: Kind::Session(replication),
                    user: Some(escape(startup.user())),
                    // Physical replication has none.
                    database: (replication != Replication::Physical)
                        .then(|| escape(startup.database())),
                    application_name: startup.application_names().last().map(escape),
                }
            }
        });
    }

    pub(crate) fn live(&mut self, live: &Arc<Live>) {
        self.live = Some(Arc::clone(live));
    }

    /// Of the certificate at the other end of TLS, whichever side that is.
    fn identity(&self) -> Option<&Identity> {
        let far = self.live.as_ref().and_then(|live| live.far());
        self.certificate
            .as_deref()
            .or_else(|| far.map(|far| &*far.certificate))
            .map(|certificate| &certificate.identity)
    }

    /// Both sides are joined; from here on bytes flow.
    pub(crate) fn joined(&self) {
        self.tally.open();
        let asked = self.asked.as_ref();
        info!(
            tunnel = &*self.tunnel,
            id = self.id.map(tracing::field::display),
            peer = %self.peer,
            identity = self.identity().map(|identity| identity.to_string()),
            serial = self.identity().map(serial),
            fingerprint = self.identity().map(|identity| identity.fingerprint().to_string()),
            kind = asked.map(|asked| asked.kind.name()),
            user = asked.and_then(|asked| asked.user.as_deref()),
            database = asked.and_then(|asked| asked.database.as_deref()),
            application_name = asked.and_then(|asked| asked.application_name.as_deref()),
            upstream = self.far.as_deref(),
            tls = self.tls.as_deref(),
            "session open"
        );
    }

    pub(crate) fn finish(mut self, end: &End) {
        self.finished = true;
        let kind = self.asked.as_ref().map(|asked| asked.kind.name());
        self.tally.end(end, kind, self.started.elapsed());
        let meaning = end.meaning();
        if meaning.may_flood && !self.flood.admit(&self.tunnel, end.cause()) {
            return;
        }
        self.remember(end, &meaning);
        self.line(meaning.level, meaning.label, &end.to_string());
    }

    /// For whoever asks later why nothing flows.
    fn remember(&self, end: &End, meaning: &Meaning) {
        let streamed = self.live.as_ref().is_some_and(|live| {
            let watch = live.watched.as_ref().map(|watched| watched.lock());
            let stream = watch.as_ref().and_then(|watch| watch.stream());
            // Nobody misses what served a base backup.
            let kind = snapshot::Kind::of(&live.about.startup, stream);
            stream.is_some() && kind != snapshot::Kind::BaseBackup
        });
        let failed = meaning.is_failure();
        if !streamed && !failed {
            return;
        }
        let peer = self.peer.to_string();
        let gone = Gone {
            at: SystemTime::now(),
            who: self
                .identity()
                .map_or_else(|| peer.clone(), ToString::to_string),
            peer,
            kind: self.asked.as_ref().map(|asked| asked.kind.name()),
            end: meaning.label,
            cause: end.cause(),
            reason: end.to_string(),
        };
        self.lately.ended(&gone, streamed, failed);
    }

    fn line(&self, level: Level, label: &str, reason: &str) {
        let traffic = self.live.as_ref().map(|live| &live.traffic);
        let asked = self.asked.as_ref();
        let watched = self.live.as_ref().and_then(|live| live.watched.as_ref());
        let watched = watched.map(|watched| watched.lock());
        let stream = watched.as_ref().and_then(|watch| watch.stream());
        let position = |lsn: fn(&Stream) -> Lsn| {
            let lsn = stream.map(lsn).filter(|lsn| *lsn > Lsn(0));
            lsn.map(tracing::field::display)
        };
        // A macro needs its level at compile time.
        macro_rules! line {
            ($level:expr) => {
                event!(
                    $level,
                    tunnel = &*self.tunnel,
                    id = self.id.map(tracing::field::display),
                    peer = %self.peer,
                    identity = self.identity().map(|identity| identity.to_string()),
                    serial = self.identity().map(serial),
                    fingerprint = self.identity().map(|identity| identity.fingerprint().to_string()),
                    kind = asked.map(|asked| asked.kind.name()),
                    user = asked.and_then(|asked| asked.user.as_deref()),
                    database = asked.and_then(|asked| asked.database.as_deref()),
                    application_name = asked.and_then(|asked| asked.application_name.as_deref()),
                    slot = stream.and_then(|stream| stream.slot.as_deref()),
                    timeline = stream.and_then(|stream| stream.timeline),
                    start_lsn = position(|stream| stream.start),
                    sent_lsn = position(|stream| stream.sent),
                    applied_lsn = position(|stream| stream.reply.map_or(Lsn(0), |reply| reply.applied)),
                    basebackup_bytes = stream.and_then(|stream| stream.backup).map(|backup| backup.bytes),
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

/// What the downstream asked for; its text escaped.
struct Asked {
    kind: Kind,
    user: Option<String>,
    database: Option<String>,
    application_name: Option<String>,
}

enum Kind {
    Cancel,
    Session(Replication),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Session(Replication::Physical) => "physical",
            Self::Session(Replication::Logical) => "logical",
            Self::Session(Replication::None) => "ordinary",
        }
    }
}

/// Under way when the process ended, by a second signal or after its time to drain; or a fault in it ended it.
impl Drop for SessionRecord {
    fn drop(&mut self) {
        const LABEL: &str = "dropped";
        if self.finished {
            return;
        }
        let (level, reason) = match &self.live {
            _ if panicking() => (Level::ERROR, "a fault in this program ended it"),
            Some(_) => (Level::WARN, "cut off: this proxy has stopped"),
            None => (
                Level::INFO,
                "this proxy has stopped before it was a session",
            ),
        };
        if self.live.is_some() || self.flood.admit(&self.tunnel, LABEL) {
            self.line(level, LABEL, reason);
        }
    }
}
