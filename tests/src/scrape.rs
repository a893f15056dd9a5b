//! What a proxy answers over HTTP on loopback, and its metrics, read by the letter of OpenMetrics: what is out of order
//! in them fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::files::reserve_port;
use crate::wait::PATIENCE;

/// An address on loopback for `[admin] listen`.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, reserve_port()).into()
}

/// The body of the answer to GET; the status must be 200.
#[track_caller]
pub fn get(at: SocketAddr, path: &str) -> String {
    let answer = answer(at, path);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    match head.contains("\r\ntransfer-encoding: chunked") {
        true => joined(body),
        false => body.to_owned(),
    }
}

/// The chunks of a body (RFC 9112, section 7.1); it must be whole.
#[track_caller]
fn joined(mut chunks: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n").expect("a chunk's length");
        let (chunk, rest) = rest.split_at(usize::from_str_radix(length, 16).unwrap());
        chunks = rest.strip_prefix("\r\n").expect("a chunk's end");
        if chunk.is_empty() {
            return body;
        }
        body.push_str(chunk);
    }
}

/// The whole answer to GET.
#[track_caller]
pub fn answer(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// All metrics of a proxy at one moment.
#[derive(Debug)]
pub struct Scrape {
    /// As it was sent.
    pub text: String,
    /// By the name under which a query finds them (histograms: without `_bucket`, `_sum`, `_count`).
    pub families: BTreeMap<String, Family>,
    /// By name and labels, as they stand there.
    pub samples: BTreeMap<String, Sample>,
}

/// What is told of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// `gauge`, `counter`, `histogram`, `info`.
    pub kind: String,
    /// Empty if it has none.
    pub unit: String,
    /// In words.
    pub help: String,
    /// Of all its samples; `le` is left out.
    pub labels: BTreeSet<String>,
    /// How many there are.
    pub samples: usize,
}

/// One series.
#[derive(Debug)]
pub struct Sample {
    /// With its suffix.
    pub name: String,
    /// Names and values.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Scrape {
    /// Asks for them.
    #[track_caller]
    pub fn of(at: SocketAddr) -> Self {
        Self::parse(get(at, "/metrics"))
    }

    #[track_caller]
    fn parse(text: String) -> Self {
        let mut scrape = Self {
            families: BTreeMap::new(),
            samples: BTreeMap::new(),
            text,
        };
        let body = scrape.text.strip_suffix("# EOF\n").expect("an end");
        let mut described = BTreeSet::new();
        let mut current = (String::new(), String::new());
        let mut help = String::new();
        for line in body.lines() {
            if let Some(line) = line.strip_prefix("# HELP ") {
                let (name, words) = line.split_once(' ').unwrap();
                assert!(described.insert(name.to_owned()), "{name} comes twice");
                words.clone_into(&mut help);
            } else if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, kind) = line.split_once(' ').unwrap();
                let family = Family {
                    kind: kind.to_owned(),
                    unit: String::new(),
                    help: std::mem::take(&mut help),
                    labels: BTreeSet::new(),
                    samples: 0,
                };
                let found_as = match kind {
                    "counter" => format!("{name}_total"),
                    "info" => format!("{name}_info"),
                    "gauge" | "histogram" => name.to_owned(),
                    _ => panic!("no such type: {line}"),
                };
                scrape.families.insert(found_as.clone(), family);
                current = (name.to_owned(), found_as);
            } else if let Some(line) = line.strip_prefix("# UNIT ") {
                let (name, unit) = line.split_once(' ').unwrap();
                assert_eq!(name, current.0);
                assert!(name.ends_with(&format!("_{unit}")), "{line}");
                unit.clone_into(&mut scrape.families.get_mut(&current.1).unwrap().unit);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let sample = sample(series, value);
                let family = scrape.families.get_mut(&current.1).unwrap();
                let suffixes: &[&str] = match family.kind.as_str() {
                    "counter" => &["_total"],
                    "info" => &["_info"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                let suffix = sample.name.strip_prefix(&current.0);
                assert!(suffixes.contains(&suffix.unwrap_or("?")), "{line}");
                let labels = sample.labels.keys().filter(|name| *name != "le");
                family.labels.extend(labels.cloned());
                family.samples += 1;
                let before = scrape.samples.insert(series.to_owned(), sample);
                assert!(before.is_none(), "{series} comes twice");
            }
        }
        scrape
    }

    /// The series of this name that have these labels.
    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.values().filter(move |sample| {
            let has = |(name, value): &(&str, &str)| {
                sample.labels.get(*name).is_some_and(|have| have == value)
            };
            sample.name == name && labels.iter().all(has)
        })
    }

    /// The sum of the series of this name that have these labels; None if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values = self.series(name, labels).map(|sample| sample.value);
        values.reduce(|sum, value| sum + value)
    }

    /// Whether a sample must never fall: counters, and the counts of histograms.
    fn only_rises(&self, sample: &Sample) -> bool {
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| sample.name.strip_suffix(suffix))
            .filter(|name| self.families.contains_key(*name))
            .unwrap_or(&sample.name);
        ["counter", "histogram"].contains(&self.families[name].kind.as_str())
    }

    /// Asserts that no counter of an earlier scrape is less now, or gone.
    #[track_caller]
    pub fn rose_from(&self, earlier: &Self) {
        for (series, before) in &earlier.samples {
            if earlier.only_rises(before) {
                let now = self.samples.get(series).map(|sample| sample.value);
                assert!(
                    now >= Some(before.value),
                    "{series} was {} and is {now:?}",
                    before.value
                );
            }
        }
    }

    /// The same in the older text format, which `promtool check metrics` reads.
    pub fn as_text_format(&self) -> String {
        let mut text = String::new();
        for line in self.text.lines() {
            let Some((what @ ("# HELP " | "# TYPE "), rest)) = line.split_at_checked(7) else {
                if !line.starts_with('#') {
                    text.push_str(&format!("{line}\n"));
                }
                continue;
            };
            let (name, rest) = rest.split_once(' ').unwrap();
            let named = ["", "_total", "_info"]
                .map(|suffix| format!("{name}{suffix}"))
                .into_iter()
                .find(|name| self.families.contains_key(name))
                .unwrap();
            let rest = if rest == "info" { "gauge" } else { rest };
            text.push_str(&format!("{what}{named} {rest}\n"));
        }
        text
    }
}

#[track_caller]
fn sample(series: &str, value: &str) -> Sample {
    let (name, mut rest) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').expect(series)),
        None => (series, ""),
    };
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").expect(series);
        let mut read = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect(series) {
                (end, '"') => break end,
                (_, '\\') => match chars.next().expect(series).1 {
                    'n' => read.push('\n'),
                    c @ ('\\' | '"') => read.push(c),
                    c => panic!("\\{c} in {series}"),
                },
                (_, c) => read.push(c),
            }
        };
        assert!(labels.insert(label.to_owned(), read).is_none(), "{series}");
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().expect(series),
    }
}
