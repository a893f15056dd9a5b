//! The snapshot as OpenMetrics, made anew for each scrape: the relay counts nothing on its account.
//! Labels hold only what this host's configuration and certificates name, never what a peer chooses at will.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::health::{Of, Validity};
use crate::snapshot::{Facts, Lag, Snapshot};

pub(super) const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics, as they are now.
pub(super) fn text(facts: &Facts) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pgtlsproxy");
    registry.register_collector(Box::new(Scrape {
        snapshot: facts.snapshot(),
        validities: facts.health.validities(),
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    snapshot: Snapshot,
    validities: Vec<Validity>,
}

/// Label names and values of one sample.
type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let snapshot = &self.snapshot;
        let version = vec![("version", snapshot.version.as_str())];
        gauges(out, "build_info", "The program", [(version, 1.0)])?;
        self.sessions(out)?;
        self.lags(out)?;
        let ended = snapshot.tunnels.iter().flat_map(|tunnel| {
            let labels = |end, cause| {
                vec![
                    ("tunnel", tunnel.name.as_str()),
                    ("end", end),
                    ("cause", cause),
                ]
            };
            let ended = tunnel.ended.iter();
            ended.map(move |ended| (labels(&*ended.end, &*ended.cause), ended.connections))
        });
        counters(out, "ended", "Connections that are over", ended)?;
        let reloads = [
            (vec![("outcome", "good")], snapshot.reloads_good),
            (vec![("outcome", "refused")], snapshot.reloads_refused),
        ];
        counters(out, "reloads", "Reloads", reloads)?;
        let ours = self.validities.iter().filter_map(|validity| {
            let of = match validity.of {
                Of::Own => "own",
                Of::Ca => "ca",
                Of::Crl => "crl",
                Of::Peer => return None,
            };
            let (name, serial) = (validity.name.as_str(), validity.serial.as_str());
            let labels = vec![("of", of), ("name", name), ("serial", serial)];
            Some((labels, validity.not_after as f64))
        });
        // A peer chooses its name, which is no label: the first of them to end stands for all.
        let peers = self.validities.iter().filter(|one| one.of == Of::Peer);
        let first = peers.map(|one| one.not_after).min().map(|not_after| {
            let labels = vec![("of", "peer"), ("name", ""), ("serial", "")];
            (labels, not_after as f64)
        });
        let expiries = ours.chain(first);
        let help = "The last second of a certificate, CA or CRL, in Unix time";
        gauges(out, "expiry_timestamp_seconds", help, expiries)
    }
}

impl Scrape {
    fn sessions(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut sessions: BTreeMap<_, f64> = BTreeMap::new();
        for session in &self.snapshot.sessions {
            let state = session.activity.as_deref().unwrap_or("open");
            let key = (session.tunnel.as_str(), session.kind.as_str(), state);
            *sessions.entry(key).or_default() += 1.0;
        }
        let samples = sessions.into_iter().map(|((tunnel, kind, state), count)| {
            let labels = vec![("tunnel", tunnel), ("kind", kind), ("state", state)];
            (labels, count)
        });
        gauges(out, "sessions", "Sessions now", samples)?;
        ConstGauge::new(i64::try_from(self.snapshot.limit).unwrap_or(i64::MAX)).encode(
            out.encode_descriptor(
                "sessions_limit",
                "Sessions that the process may have",
                None,
                MetricType::Gauge,
            )?,
        )
    }

    /// The worst of each tunnel: what an alarm is about, and as few series as there are tunnels.
    fn lags(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (mut bytes, mut seconds): (BTreeMap<_, f64>, BTreeMap<_, f64>) = Default::default();
        let mut silence: BTreeMap<&str, f64> = BTreeMap::new();
        for session in &self.snapshot.sessions {
            let Some(stream) = &session.replication else {
                continue;
            };
            if let Some(age) = stream.keepalive_age_seconds {
                let longest = silence.entry(session.tunnel.as_str()).or_default();
                *longest = longest.max(age);
            }
            let lags: [(&str, Lag); 3] = [
                ("write", stream.write_lag),
                ("flush", stream.flush_lag),
                ("apply", stream.apply_lag),
            ];
            for (what, lag) in lags {
                let key = (session.tunnel.as_str(), what);
                if let Some(behind) = lag.bytes {
                    let worst = bytes.entry(key).or_default();
                    *worst = worst.max(behind as f64);
                }
                if let Some(behind) = lag.seconds {
                    let worst = seconds.entry(key).or_default();
                    *worst = worst.max(behind);
                }
            }
        }
        let label = |((tunnel, what), worst)| (vec![("tunnel", tunnel), ("lag", what)], worst);
        let help = "How far the slowest standby of the tunnel is behind";
        gauges(out, "lag_bytes", help, bytes.into_iter().map(label))?;
        gauges(out, "lag_seconds", help, seconds.into_iter().map(label))?;
        let ages = silence.into_iter();
        gauges(
            out,
            "keepalive_age_seconds",
            "Since the last keepalive of a server, the longest of the tunnel",
            ages.map(|(tunnel, age)| (vec![("tunnel", tunnel)], age)),
        )
    }
}

fn gauges<'a>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn counters<'a>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        let mut sample = family.encode_family(&labels)?;
        sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}
