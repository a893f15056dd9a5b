//! The live sessions as sums and extremes, by labels of which there are few: a tunnel, a kind, a name of this host's
//! configuration. Certificates that no rule names are `other`, so that no peer can make a series of its own.

use std::sync::Arc;

use protocol::identity::Identity;
use protocol::lag::Confirmed;
use protocol::replication::Clock;
use protocol::watch::{Activity, Stream};

use crate::session::{Live, Names, Settings, Tally, Totals, now};
use crate::slices::in_slices;
use crate::snapshot::{Facts, Kind};

/// Sessions that are counted in one slice.
const AT_ONCE: usize = 128;

pub(super) const LAGS: [(Confirmed, &str); 3] = [
    (Confirmed::Write, "write"),
    (Confirmed::Flush, "flush"),
    (Confirmed::Apply, "apply"),
];

/// What a session does, in the order of [`state`]; `open`: an ordinary one, which is not looked into.
const STATES: [&str; 4] = ["idle", "streaming", "basebackup", "open"];

/// One tunnel at one moment.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) name: Arc<str>,
    pub(super) side: &'static str,
    pub(super) listen: String,
    pub(super) tally: Arc<Tally>,
    /// Of all its sessions, the living and the past.
    pub(super) totals: Totals,
    names: Arc<Names>,
    /// In the order of the names' labels.
    peers: Vec<Peer>,
}

/// Those of one name.
#[derive(Debug, Default, Clone)]
struct Peer {
    /// By kind and state.
    sessions: [[u64; STATES.len()]; Kind::ALL.len()],
    /// Those that stream, and not for a base backup: when it is over nobody misses them.
    streaming: u64,
    /// By kind.
    streams: [Option<Worst>; Kind::ALL.len()],
}

/// What an alarm is about: the one of several streams that is worst off.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Worst {
    /// In the order of [`LAGS`].
    pub(super) bytes: [Option<u64>; 3],
    /// In seconds, as are the ages.
    pub(super) lag: [Option<f64>; 3],
    pub(super) wal_age: Option<f64>,
    pub(super) keepalive_age: Option<f64>,
    pub(super) reply_age: Option<f64>,
}

/// All tunnels, in the order of the configuration.
pub(super) async fn take(facts: &Facts) -> Vec<Census> {
    let (live, past) = facts.registry.all_and(|| {
        let tunnels = facts.tunnels.iter();
        tunnels
            .map(|tunnel| tunnel.tally.past())
            .collect::<Vec<_>>()
    });
    let mut tunnels: Vec<_> = facts
        .tunnels
        .iter()
        .zip(past)
        .map(|(facts, past)| {
            let settings = Arc::clone(&facts.settings.borrow());
            Census::new(&settings, facts.listen.clone(), &facts.tally, past)
        })
        .collect();
    in_slices(&live, AT_ONCE, |slice| {
        let clock = now();
        for live in slice {
            let mut all = tunnels.iter_mut();
            if let Some(tunnel) = all.find(|tunnel| tunnel.name == live.about.tunnel) {
                tunnel.count(live, clock);
            }
        }
    })
    .await;
    tunnels
}

/// What a peer's certificate is called: by the first tunnel that has a name for it.
pub(super) fn name_of(tunnels: &[Census], identity: &Identity) -> Arc<str> {
    let mut names = tunnels.iter().map(|tunnel| &tunnel.names);
    let known = names.find_map(|names| names.of(identity).map(|place| names.label(place)));
    known.unwrap_or_else(Names::other_label)
}

impl Census {
    fn new(settings: &Settings, listen: String, tally: &Arc<Tally>, past: Totals) -> Self {
        let names = Arc::clone(&settings.names);
        Self {
            name: Arc::clone(&settings.name),
            side: settings.side(),
            listen,
            tally: Arc::clone(tally),
            totals: past,
            peers: vec![Peer::default(); names.labels().len()],
            names,
        }
    }

    fn count(&mut self, live: &Live, clock: Clock) {
        let place = self.names.of_peer(live);
        let watch = live.watched.as_ref().map(|watched| watched.lock());
        let watch = watch.as_deref();
        self.totals += Totals::seen(live, watch);
        let stream = watch.and_then(|watch| watch.stream());
        let kind = Kind::of(&live.about.startup, stream);
        let activity = watch.map(|watch| watch.activity());
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        peer.sessions[kind as usize][state(activity)] += 1;
        if let (Some(Activity::Streaming), Some(stream)) = (activity, stream) {
            peer.streaming += u64::from(kind != Kind::BaseBackup);
            peer.streams[kind as usize]
                .get_or_insert_default()
                .take(stream, clock);
        }
    }

    fn peers(&self) -> impl Iterator<Item = (&str, &Peer)> {
        let labels = self.names.labels().iter().map(|label| &**label);
        labels.zip(&self.peers)
    }

    /// How many sessions there are: kind, identity, state. Combinations without any are left out.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (&'static str, &str, &'static str, u64)> {
        self.peers().flat_map(|(identity, peer)| {
            let kinds = Kind::ALL.into_iter().zip(peer.sessions);
            kinds.flat_map(move |(kind, states)| {
                let states = STATES.into_iter().zip(states);
                let some = states.filter(|(_, count)| *count > 0);
                some.map(move |(state, count)| (kind.name(), identity, state, count))
            })
        })
    }

    /// How many sessions stream, by identity; 0 for a name of the configuration without one, and for `other` where it has
    /// no names: a series that is gone cannot be told to be 0.
    pub(super) fn streaming(&self) -> impl Iterator<Item = (&str, u64)> {
        let configured = (self.peers.len() - 1).max(1);
        let peers = self.peers().enumerate();
        peers
            .filter(move |(place, (_, peer))| *place < configured || peer.streaming > 0)
            .map(|(_, (identity, peer))| (identity, peer.streaming))
    }

    /// Kind and identity of those that stream, and the worst of each.
    pub(super) fn streams(&self) -> impl Iterator<Item = (&'static str, &str, &Worst)> {
        self.peers().flat_map(|(identity, peer)| {
            let kinds = Kind::ALL.into_iter().zip(&peer.streams);
            kinds.filter_map(move |(kind, worst)| Some((kind.name(), identity, worst.as_ref()?)))
        })
    }
}

/// A place in [`STATES`].
fn state(activity: Option<Activity>) -> usize {
    match activity {
        Some(Activity::Idle) => 0,
        Some(Activity::Streaming) => 1,
        Some(Activity::BaseBackup) => 2,
        None => 3,
    }
}

impl Worst {
    fn take(&mut self, stream: &Stream, clock: Clock) {
        for (place, (what, _)) in LAGS.into_iter().enumerate() {
            let bytes = stream.behind(what);
            let micros = stream.lag(what, clock);
            let seconds = micros.map(|micros| micros as f64 / 1e6);
            // With everything confirmed nothing lags: a line at zero, not a gap.
            let seconds = seconds.or_else(|| (bytes == Some(0)).then_some(0.0));
            self.bytes[place] = self.bytes[place].max(bytes);
            self.lag[place] = longest(self.lag[place], seconds);
        }
        let age = |at: Option<Clock>| at.map(|at| clock.0.saturating_sub(at.0).max(0) as f64 / 1e6);
        self.wal_age = longest(self.wal_age, age(stream.wal_at));
        self.keepalive_age = longest(self.keepalive_age, age(stream.keepalive_at));
        self.reply_age = longest(self.reply_age, age(stream.reply_at));
    }
}

fn longest(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}
