//! The live sessions as sums and extremes, by labels of which there are few: a tunnel, a kind, a name of this host's
//! configuration. Certificates that no rule names are `other`, so that no peer can make a series of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::identity::{Identity, IdentityPattern};
use protocol::lag::Confirmed;
use protocol::replication::Clock;
use protocol::watch::{Activity, Stream};

use crate::session::{Live, Settings, Tally, Totals, now};
use crate::snapshot::{Facts, activity, kind};

const OTHER: &str = "other";

pub(super) const LAGS: [(Confirmed, &str); 3] = [
    (Confirmed::Write, "write"),
    (Confirmed::Flush, "flush"),
    (Confirmed::Apply, "apply"),
];

/// One tunnel at one moment.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) name: Arc<str>,
    pub(super) side: &'static str,
    pub(super) listen: String,
    pub(super) tally: Arc<Tally>,
    /// Of all its sessions, the living and the past.
    pub(super) totals: Totals,
    /// By kind, identity and state.
    pub(super) sessions: BTreeMap<(&'static str, Arc<str>, &'static str), u64>,
    /// Sessions that stream, by identity; 0 for a name of the configuration without one.
    pub(super) streaming: BTreeMap<Arc<str>, u64>,
    /// By kind and identity.
    pub(super) streams: BTreeMap<(&'static str, Arc<str>), Worst>,
    names: Names,
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

/// The names of a configuration, as patterns and as labels.
#[derive(Debug)]
pub(super) struct Names(Vec<(IdentityPattern, Arc<str>)>);

impl Names {
    fn new(patterns: Vec<IdentityPattern>) -> Self {
        let label = |pattern: IdentityPattern| {
            let label = pattern.to_string().into();
            (pattern, label)
        };
        Self(patterns.into_iter().map(label).collect())
    }

    /// Of whoever is at the other end of TLS: a server goes by the name that was asked for, which a wildcard in its
    /// certificate may have borne.
    fn of_peer(&self, live: &Live) -> Option<&Arc<str>> {
        if let Some(certificate) = &live.about.certificate {
            return self.of(&certificate.identity);
        }
        let wanted = live.wanted_name()?;
        let mut names = self.0.iter();
        names
            .find(|(pattern, _)| *pattern == wanted)
            .map(|(_, label)| label)
    }

    /// The first that means this one.
    pub(super) fn of(&self, identity: &Identity) -> Option<&Arc<str>> {
        let mut names = self.0.iter();
        names
            .find(|(pattern, _)| pattern.matches(identity))
            .map(|(_, label)| label)
    }
}

/// All tunnels, in the order of the configuration.
pub(super) fn take(facts: &Facts) -> Vec<Census> {
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
    let (clock, other) = (now(), Arc::from(OTHER));
    for live in live {
        let mut all = tunnels.iter_mut();
        if let Some(tunnel) = all.find(|tunnel| tunnel.name == live.about.tunnel) {
            tunnel.count(&live, clock, &other);
        }
    }
    tunnels
}

/// What a peer's certificate is called: by the first tunnel that has a name for it.
pub(super) fn name_of(tunnels: &[Census], identity: &Identity) -> Arc<str> {
    let mut names = tunnels
        .iter()
        .filter_map(|tunnel| tunnel.names.of(identity));
    names.next().cloned().unwrap_or_else(|| Arc::from(OTHER))
}

impl Census {
    fn new(settings: &Settings, listen: String, tally: &Arc<Tally>, past: Totals) -> Self {
        let names = Names::new(settings.names());
        Self {
            name: Arc::clone(&settings.name),
            side: settings.side_and_upstream().0,
            listen,
            tally: Arc::clone(tally),
            totals: past,
            sessions: BTreeMap::new(),
            streaming: names
                .0
                .iter()
                .map(|(_, label)| (Arc::clone(label), 0))
                .collect(),
            streams: BTreeMap::new(),
            names,
        }
    }

    fn count(&mut self, live: &Live, clock: Clock, other: &Arc<str>) {
        self.totals += Totals::of(live);
        let identity = self.names.of_peer(live).unwrap_or(other).clone();
        let watched = live.watched.as_ref().map(|watched| watched.lock());
        let stream = watched.as_ref().and_then(|watch| watch.stream());
        let kind = kind(live.about.startup.replication(), stream);
        let state = watched.as_deref().map_or("open", activity);
        let key = (kind, Arc::clone(&identity), state);
        *self.sessions.entry(key).or_default() += 1;
        if let (Some(Activity::Streaming), Some(stream)) =
            (watched.as_ref().map(|watch| watch.activity()), stream)
        {
            *self.streaming.entry(Arc::clone(&identity)).or_default() += 1;
            self.streams
                .entry((kind, identity))
                .or_default()
                .take(stream, clock);
        }
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
