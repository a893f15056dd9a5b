//! What there is to measure, as OpenMetrics, made anew for each scrape: the relay counts nothing on its account. Labels
//! hold ids of ours and what this host's configuration and certificates name, never what a peer chooses at will.
//! docs/observability.md lists each metric in these words; a test compares them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::sleep;

use super::census::{self, Census, LAGS, Worst};
use super::exposition::{Labels, Out, labels};
use super::process::Process;
use crate::health::{Of, Validity, unix};
use crate::slices::{PAUSE, in_slices};
use crate::snapshot::Facts;

pub(super) const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Certificates whose names are looked for in one slice: each may be compared with every name of the configuration.
const PEERS_AT_ONCE: usize = 32;

/// All metrics, as they are now.
pub(super) async fn text(facts: &Facts) -> Result<String, fmt::Error> {
    let scrape = Scrape::take(facts).await;
    sleep(PAUSE).await;
    let mut registry = Registry::default();
    let ours = registry.sub_registry_with_prefix("pgtlsproxy");
    ours.register_collector(Box::new(scrape));
    registry.register_collector(Box::new(Process::read(facts.started)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    tunnels: Vec<Census>,
    limit: usize,
    own: Vec<Validity>,
    /// By configured name: of those met within a day, the first to begin and the first to end.
    peers: BTreeMap<Arc<str>, (i64, i64)>,
    reloads: (u64, u64),
    last_reload_successful: bool,
    /// How many stand, by id.
    warnings: BTreeMap<&'static str, u64>,
    /// In Unix time, of the configuration in use.
    loaded: i64,
}

impl Scrape {
    async fn take(facts: &Facts) -> Self {
        let tunnels = census::take(facts).await;
        let health = &facts.health;
        let mut peers = BTreeMap::new();
        in_slices(&health.peers(), PEERS_AT_ONCE, |slice| {
            for peer in slice {
                let (begin, end) = (peer.not_before(), peer.not_after());
                let name = census::name_of(&tunnels, peer);
                let first = peers.entry(name).or_insert((begin, end));
                if end < first.1 {
                    *first = (begin, end);
                }
            }
        })
        .await;
        let last = health.last_reload();
        let mut warnings = BTreeMap::new();
        for warning in health.warnings() {
            *warnings.entry(warning.problem.id).or_insert(0) += 1;
        }
        Self {
            warnings,
            limit: facts.registry.limit(),
            own: health.own_validities(),
            peers,
            reloads: health.reloads(),
            last_reload_successful: last.is_none_or(|last| last.outcome.is_ok()),
            loaded: unix(health.last_good_reload().unwrap_or(facts.started)),
            tunnels,
        }
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out(&mut encoder);
        let version = labels([("version", env!("CARGO_PKG_VERSION"))]);
        out.infos("build", "The program", [version])?;
        self.tunnels(out)?;
        self.connections(out)?;
        self.streams(out)?;
        self.health(out)
    }
}

impl Scrape {
    fn tunnels(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let tunnels = || self.tunnels.iter();
        let infos = tunnels().map(|tunnel| {
            labels([
                ("tunnel", &tunnel.name),
                ("side", tunnel.side),
                ("listen", &tunnel.listen),
            ])
        });
        out.infos("tunnel", "The tunnels", infos)?;
        let sessions = tunnels().flat_map(|tunnel| {
            tunnel
                .sessions()
                .map(move |(kind, identity, state, count)| {
                    let labels = labels([
                        ("tunnel", &*tunnel.name),
                        ("kind", kind),
                        ("identity", identity),
                        ("state", state),
                    ]);
                    (labels, count)
                })
        });
        out.gauges("sessions", None, "Sessions now", sessions)?;
        out.gauges(
            "sessions_limit",
            None,
            "Sessions that the process may have",
            [(Vec::new(), self.limit as u64)],
        )?;
        let streaming = tunnels().flat_map(|tunnel| {
            tunnel.streaming().map(move |(identity, count)| {
                let labels = labels([("tunnel", &*tunnel.name), ("identity", identity)]);
                (labels, count)
            })
        });
        out.gauges(
            "streams",
            None,
            "Sessions that stream now and are to go on, not those of base backups; 0 for a configured name without one",
            streaming,
        )
    }

    fn connections(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let tunnels = || self.tunnels.iter();
        let accepted = tunnels().map(|tunnel| (of(tunnel), tunnel.tally.accepted()));
        let help = "Connections accepted";
        out.counters("connections_accepted", None, help, accepted)?;
        let ended = tunnels().flat_map(|tunnel| {
            let ended = tunnel.tally.counts().into_iter();
            ended.map(|(end, cause, ends)| {
                let labels = labels([("tunnel", &*tunnel.name), ("end", end), ("cause", cause)]);
                (labels, ends.connections)
            })
        });
        let help = "Connections that are over, by how they ended";
        out.counters("connections_ended", None, help, ended)?;
        let refusals = tunnels().flat_map(|tunnel| {
            let refusals = tunnel.tally.refusals().into_iter();
            refusals.map(|(reason, count)| {
                let labels = labels([("tunnel", &*tunnel.name), ("reason", reason)]);
                (labels, count)
            })
        });
        let help = "Connections not admitted, by the id of the problem or how they ended";
        out.counters("refusals", None, help, refusals)?;
        let opened = tunnels().map(|tunnel| (of(tunnel), tunnel.tally.opened()));
        let help = "Sessions that reached their upstream";
        out.counters("sessions_opened", None, help, opened)?;
        let bytes = tunnels().flat_map(|tunnel| {
            let each = |direction| labels([("tunnel", &*tunnel.name), ("direction", direction)]);
            let totals = tunnel.totals;
            [
                (each("to_upstream"), totals.to_upstream),
                (each("to_downstream"), totals.to_downstream),
            ]
        });
        let help = "Payload relayed, without TLS";
        out.counters("relayed", Some(Unit::Bytes), help, bytes)?;
        let handshakes =
            tunnels().map(|tunnel| (of(tunnel), Cow::Borrowed(&tunnel.tally.handshakes)));
        let help = "How long TLS handshakes took that succeeded";
        out.histograms("handshake_duration", help, handshakes)?;
        let sessions = tunnels().flat_map(|tunnel| {
            let sessions = tunnel.tally.sessions().into_iter();
            sessions.map(|(kind, seconds)| {
                let labels = labels([("tunnel", &*tunnel.name), ("kind", kind)]);
                (labels, Cow::Owned(seconds))
            })
        });
        let help = "How long sessions lasted that are over";
        out.histograms("session_duration", help, sessions)
    }

    /// The worst of each name: what an alarm is about, and as few series as there are names.
    fn streams(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let each = || {
            self.tunnels.iter().flat_map(|tunnel| {
                tunnel.streams().map(move |(kind, identity, worst)| {
                    let labels = [
                        ("tunnel", &*tunnel.name),
                        ("kind", kind),
                        ("identity", identity),
                    ];
                    (labels, worst)
                })
            })
        };
        let lags = each().flat_map(|(base, worst)| {
            let lags = LAGS.iter().enumerate();
            lags.map(move |(place, (_, lag))| {
                let [tunnel, kind, identity] = base;
                let labels = labels([tunnel, kind, identity, ("lag", lag)]);
                (labels, worst.bytes[place], worst.lag[place])
            })
        });
        let lags: Vec<_> = lags.collect();
        let bytes = lags
            .iter()
            .filter_map(|(labels, bytes, _)| Some((labels.clone(), (*bytes)?)));
        let help = "WAL that the server has and the slowest standby did not confirm";
        out.gauges("lag", Some(Unit::Bytes), help, bytes)?;
        let seconds = lags
            .iter()
            .filter_map(|(labels, _, seconds)| Some((labels.clone(), (*seconds)?)));
        let help = "How long the slowest standby takes, or has taken so far, to confirm WAL";
        out.gauges("lag", Some(Unit::Seconds), help, seconds)?;
        type Age = fn(&Worst) -> Option<f64>;
        let ages: [(&str, &str, Age); 3] = [
            (
                "wal_age",
                "Since WAL came by last, the longest of the streams",
                |worst| worst.wal_age,
            ),
            (
                "keepalive_age",
                "Since the last keepalive of the server, the longest of the streams",
                |worst| worst.keepalive_age,
            ),
            (
                "reply_age",
                "Since the last reply of the standby, the longest of the streams",
                |worst| worst.reply_age,
            ),
        ];
        for (name, help, age) in ages {
            let samples = each().filter_map(|(base, worst)| Some((labels(base), age(worst)?)));
            out.gauges(name, Some(Unit::Seconds), help, samples)?;
        }
        let given_up = self
            .tunnels
            .iter()
            .map(|tunnel| (of(tunnel), tunnel.totals.not_understood));
        out.counters(
            "messages_not_understood",
            None,
            "Messages that were passed on and not understood; a direction given up counts once",
            given_up,
        )
    }

    fn health(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let times = |time: fn(i64, i64) -> i64| {
            let own = self.own.iter().map(move |own| {
                let labels = labels([
                    ("of", own.of.word()),
                    ("name", &*own.name),
                    ("serial", &*own.serial),
                ]);
                (labels, time(own.not_before, own.not_after))
            });
            let peers = self.peers.iter().map(move |(name, (begin, end))| {
                let labels = labels([("of", Of::Peer.word()), ("name", &**name), ("serial", "")]);
                (labels, time(*begin, *end))
            });
            own.chain(peers)
        };
        out.gauges(
            "validity_start_timestamp",
            Some(Unit::Seconds),
            "The first second of what expiry_timestamp tells the last of, in Unix time",
            times(|begin, _| begin),
        )?;
        out.gauges(
            "expiry_timestamp",
            Some(Unit::Seconds),
            "The last second of a certificate, CA or CRL, in Unix time; of peers with one name the first to end",
            times(|_, end| end),
        )?;
        let (good, refused) = self.reloads;
        let reloads = [("good", good), ("refused", refused)];
        let reloads = reloads.map(|(outcome, count)| (labels([("outcome", outcome)]), count));
        out.counters("reloads", None, "Reloads since the start", reloads)?;
        out.gauges(
            "last_reload_successful",
            None,
            "1 if what the files hold is in use, 0 if the last reload was refused",
            [(Vec::new(), u64::from(self.last_reload_successful))],
        )?;
        out.gauges(
            "last_good_reload_timestamp",
            Some(Unit::Seconds),
            "When the settings in use were loaded, in Unix time",
            [(Vec::new(), self.loaded)],
        )?;
        let warnings = self.warnings.iter();
        let warnings = warnings.map(|(id, count)| (labels([("id", *id)]), *count));
        out.gauges(
            "warnings",
            None,
            "Warnings that stand, as `pgtlsproxy status` shows them",
            warnings,
        )
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out(&mut encoder);
        let cpu = self.cpu_seconds.map(alone);
        let help = "Processor time used, user and system";
        out.counters("process_cpu", Some(Unit::Seconds), help, cpu)?;
        let bytes = Some(Unit::Bytes);
        let resident = self.resident_bytes.map(alone);
        out.gauges(
            "process_resident_memory",
            bytes.clone(),
            "Memory in RAM",
            resident,
        )?;
        let reserved = self.virtual_bytes.map(alone);
        out.gauges("process_virtual_memory", bytes, "Address space", reserved)?;
        let started = self.start_seconds.map(alone);
        let help = "When the process was started, in Unix time";
        out.gauges("process_start_time", Some(Unit::Seconds), help, started)?;
        let open = self.open_fds.map(alone);
        out.gauges("process_open_fds", None, "Open file descriptors", open)?;
        let most = self.max_fds.map(alone);
        let help = "File descriptors that the process may have";
        out.gauges("process_max_fds", None, help, most)?;
        let threads = self.threads.map(alone);
        out.gauges("process_threads", None, "Threads", threads)
    }
}

fn of(tunnel: &Census) -> Labels<'_> {
    labels([("tunnel", &*tunnel.name)])
}

fn alone<'a, V>(value: V) -> (Labels<'a>, V) {
    (Vec::new(), value)
}
