//! The one result type, from which all reports are made, and its statistics.
//!
//! A ratio is taken within a repetition, so that what slowed the machine for a while hit both of its sides; its spread
//! is that of these ratios.

use std::collections::{BTreeMap, BTreeSet};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::contender::OURS;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    CpuPerGib,
    CpuPerGibServer,
    CpuPerGibClient,
    /// Of sealing and opening alone.
    CipherPerGib,
    /// Of a relay without TLS and of its cipher.
    CpuPerGibAndCipher,
    MachineCpuPerGib,
    GibPerSecond,
    P50,
    P99,
    P999,
    AddedP50,
    AddedP99,
    AsSentP99,
    Max,
    CpuPerRoundTrip,
    CpuPerRoundTripServer,
    CpuPerRoundTripClient,
    CpuPerConnection,
    CpuPerConnectionServer,
    CpuPerConnectionClient,
    ConnectionsPerSecond,
    PssPerSession,
    PssPerSessionServer,
    PssPerSessionClient,
    PssAfter,
    TransactionsPerSecond,
    CpuPerTransaction,
    ScrapedP50,
    ScrapedP99,
    ScrapedToQuietP50,
    ScrapedToQuietP99,
    CpuPerScrape,
    CpuPerScrapeServer,
    CpuPerScrapeClient,
    ScrapeTakes,
    ScrapeTakesAtMost,
    ScrapeSize,
    OtherWork,
}

pub(crate) type Measures = BTreeMap<Measure, f64>;

impl Measure {
    /// Its heading, its unit, and how many digits make sense behind the point.
    pub(crate) fn shown(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::CpuPerGib => ("CPU, both sides", "s/GiB", 3),
            Self::CpuPerGibServer => ("CPU, server", "s/GiB", 3),
            Self::CpuPerGibClient => ("CPU, client", "s/GiB", 3),
            Self::CipherPerGib => ("AES-256-GCM alone, both sides", "s/GiB", 3),
            Self::CpuPerGibAndCipher => ("CPU and AES-256-GCM", "s/GiB", 3),
            Self::MachineCpuPerGib => ("CPU, whole machine", "s/GiB", 3),
            Self::GibPerSecond => ("rate", "GiB/s", 2),
            Self::P50 => ("p50", "µs", 1),
            Self::P99 => ("p99", "µs", 1),
            Self::P999 => ("p99.9", "µs", 0),
            Self::AddedP50 => ("p50 added to direct", "µs", 1),
            Self::AddedP99 => ("p99 added to direct", "µs", 1),
            Self::AsSentP99 => ("p99 from sending", "µs", 1),
            Self::Max => ("longest", "µs", 0),
            Self::CpuPerRoundTrip => ("CPU, both sides", "µs/round trip", 1),
            Self::CpuPerRoundTripServer => ("CPU, server", "µs/round trip", 1),
            Self::CpuPerRoundTripClient => ("CPU, client", "µs/round trip", 1),
            Self::CpuPerConnection => ("CPU, both sides", "ms/connection", 3),
            Self::CpuPerConnectionServer => ("CPU, server", "ms/connection", 3),
            Self::CpuPerConnectionClient => ("CPU, client", "ms/connection", 3),
            Self::ConnectionsPerSecond => ("rate", "connections/s", 0),
            Self::PssPerSession => ("memory, both sides", "KiB/session", 1),
            Self::PssPerSessionServer => ("memory, server", "KiB/session", 1),
            Self::PssPerSessionClient => ("memory, client", "KiB/session", 1),
            Self::PssAfter => ("left after they closed", "KiB/session", 1),
            Self::TransactionsPerSecond => ("rate", "transactions/s", 0),
            Self::ScrapedP50 => ("p50 while scraped", "µs", 1),
            Self::ScrapedP99 => ("p99 while scraped", "µs", 1),
            Self::ScrapedToQuietP50 => ("p50 while scraped, to that without", "×", 2),
            Self::ScrapedToQuietP99 => ("p99 while scraped, to that without", "×", 2),
            Self::CpuPerScrape => ("CPU, both sides", "ms/scrape of each", 2),
            Self::CpuPerScrapeServer => ("CPU, server", "ms/scrape", 2),
            Self::CpuPerScrapeClient => ("CPU, client", "ms/scrape", 2),
            Self::ScrapeTakes => ("until the answer is read, median", "ms", 2),
            Self::ScrapeTakesAtMost => ("until the answer is read, longest", "ms", 2),
            Self::ScrapeSize => ("size of the answer", "KiB", 1),
            Self::OtherWork => ("other work on the machine", "% of it", 0),
            Self::CpuPerTransaction => ("CPU, both sides", "µs/transaction", 0),
        }
    }

    /// What a plot is worth: the figures that people compare.
    pub(crate) fn is_plotted(self) -> bool {
        matches!(
            self,
            Self::CpuPerGib
                | Self::MachineCpuPerGib
                | Self::GibPerSecond
                | Self::P50
                | Self::P99
                | Self::CpuPerRoundTrip
                | Self::CpuPerConnection
                | Self::ConnectionsPerSecond
                | Self::PssPerSession
                | Self::TransactionsPerSecond
                | Self::ScrapedP50
                | Self::ScrapedP99
                | Self::ScrapedToQuietP50
                | Self::ScrapedToQuietP99
                | Self::CpuPerScrape
        )
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::GibPerSecond | Self::ConnectionsPerSecond | Self::TransactionsPerSecond
        )
    }
}

/// One contender, measured once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) scenario: String,
    pub(crate) workload: String,
    pub(crate) contender: String,
    pub(crate) repetition: u32,
    pub(crate) measures: Measures,
    /// Why there are no measures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

/// Smallest, middle and largest of repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    pub(crate) n: usize,
}

impl Summary {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let median = (values.get(n.checked_sub(1)? / 2)? + values[n / 2]) / 2.0;
        Some(Self {
            min: values[0],
            median,
            max: values[n - 1],
            n,
        })
    }
}

/// The cells of one workload.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    pub(crate) scenario: &'a str,
    pub(crate) workload: &'a str,
    cells: Vec<&'a Cell>,
}

/// Parts cells by workload, in the order of their first appearance.
pub(crate) fn tables(cells: &[Cell]) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    for cell in cells {
        let known = tables.iter_mut().find(|table| {
            (table.scenario, table.workload) == (cell.scenario.as_str(), cell.workload.as_str())
        });
        match known {
            Some(table) => table.cells.push(cell),
            None => tables.push(Table {
                scenario: &cell.scenario,
                workload: &cell.workload,
                cells: vec![cell],
            }),
        }
    }
    tables
}

impl<'a> Table<'a> {
    /// Ours first, then the others by name.
    pub(crate) fn contenders(&self) -> Vec<&'a str> {
        let names: BTreeSet<&str> = self
            .cells
            .iter()
            .map(|cell| cell.contender.as_str())
            .collect();
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_by_key(|&name| (!name.starts_with(OURS), name));
        names
    }

    pub(crate) fn measures(&self) -> Vec<Measure> {
        let measures: BTreeSet<Measure> = self
            .cells
            .iter()
            .flat_map(|cell| cell.measures.keys().copied())
            .collect();
        measures.into_iter().collect()
    }

    /// A contender's values, each with its repetition.
    pub(crate) fn values(&self, contender: &str, measure: Measure) -> Vec<(u32, f64)> {
        let cells = self.cells.iter().filter(|cell| cell.contender == contender);
        cells
            .filter_map(|cell| Some((cell.repetition, *cell.measures.get(&measure)?)))
            .collect()
    }

    pub(crate) fn summary(&self, contender: &str, measure: Measure) -> Option<Summary> {
        let values = self.values(contender, measure);
        Summary::of(values.into_iter().map(|(_, value)| value))
    }

    /// A contender's values over those of the base in the same repetition.
    pub(crate) fn ratio(&self, contender: &str, base: &str, measure: Measure) -> Option<Summary> {
        let base: BTreeMap<u32, f64> = self.values(base, measure).into_iter().collect();
        let values = self.values(contender, measure);
        let ratios = values.into_iter().filter_map(|(repetition, value)| {
            let base = base.get(&repetition).filter(|&&base| base > 0.0)?;
            Some(value / base)
        });
        Summary::of(ratios)
    }

    /// Why cells of a contender failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let failed = |cell: &&'a Cell| Some((cell.contender.as_str(), cell.failed.as_deref()?));
        self.cells.iter().filter_map(failed)
    }
}

/// Adds what a tunnel adds to no tunnel, within each repetition; all else is measured, this is computed.
pub(crate) fn add_to_direct(cells: &mut [Cell]) {
    let direct: Vec<Cell> = cells
        .iter()
        .filter(|cell| cell.contender == "direct")
        .cloned()
        .collect();
    for cell in cells.iter_mut().filter(|cell| cell.contender != "direct") {
        let same = |other: &&Cell| {
            (&other.scenario, &other.workload, other.repetition)
                == (&cell.scenario, &cell.workload, cell.repetition)
        };
        let Some(direct) = direct.iter().find(same) else {
            continue;
        };
        if cell.scenario != "latency" {
            continue;
        }
        for (of, added) in [
            (Measure::P50, Measure::AddedP50),
            (Measure::P99, Measure::AddedP99),
        ] {
            if let (Some(with), Some(without)) = (cell.measures.get(&of), direct.measures.get(&of))
            {
                cell.measures.insert(added, with - without);
            }
        }
    }
}

/// Nanoseconds, from 1 µs to a minute, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that fit")]
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("legal bounds")
}

/// A percentile in µs.
pub(crate) fn micros(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(contender: &str, repetition: u32, p50: f64) -> Cell {
        Cell {
            scenario: "latency".to_owned(),
            workload: "round trips".to_owned(),
            contender: contender.to_owned(),
            repetition,
            measures: Measures::from([(Measure::P50, p50)]),
            failed: None,
        }
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        let of = |values: &[f64]| Summary::of(values.iter().copied());
        let summary = of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.0, 3.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(of(&[7.0]).unwrap().median, 7.0);
        assert_eq!(of(&[f64::NAN, 7.0]).unwrap().n, 1);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_a_repetition() {
        // The machine was twice as slow in the second: the ratio does not see it.
        let cells = [
            cell("nginx", 1, 100.0),
            cell("pgtlsproxy", 1, 50.0),
            cell("pgtlsproxy", 2, 100.0),
            cell("nginx", 2, 200.0),
            cell("pgtlsproxy", 3, 100.0),
        ];
        let tables = tables(&cells);
        let ratio = tables[0]
            .ratio("pgtlsproxy", "nginx", Measure::P50)
            .unwrap();
        assert_eq!((ratio.min, ratio.max, ratio.n), (0.5, 0.5, 2));
        assert_eq!(tables[0].contenders(), ["pgtlsproxy", "nginx"]);
    }

    #[test]
    fn what_is_added_is_told_within_a_repetition() {
        let mut cells = [
            cell("direct", 1, 40.0),
            cell("nginx", 1, 90.0),
            cell("nginx", 2, 99.0),
        ];
        add_to_direct(&mut cells);
        assert_eq!(cells[1].measures.get(&Measure::AddedP50), Some(&50.0));
        assert_eq!(cells[2].measures.get(&Measure::AddedP50), None);
    }

    #[test]
    fn a_cell_is_read_as_it_was_saved() {
        let saved = serde_json::to_string(&cell("nginx", 1, 1.5)).unwrap();
        assert!(saved.contains(r#""p50":1.5"#), "{saved}");
        let read: Cell = serde_json::from_str(&saved).unwrap();
        assert_eq!(read.measures.get(&Measure::P50), Some(&1.5));
    }
}
