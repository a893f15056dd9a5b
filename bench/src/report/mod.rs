//! What is left of a run: lines of JSON as cells are measured, then a page made from all lines of the directory, so
//! that scenarios run one after another into the same directory share it. Each scenario shows its last run.

mod html;
mod plot;
pub(crate) mod text;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::measure::Cell;
use crate::problem::{Doing, Problem};
use crate::run::Run;

/// A line of cells.jsonl.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Run(Box<Run>),
    Cell(Cell),
}

/// Where cells are saved; nowhere, if no directory was named.
#[derive(Debug)]
pub(crate) struct Saved(Option<(PathBuf, File)>);

impl Saved {
    const CELLS: &'static str = "cells.jsonl";
    const PAGE: &'static str = "index.html";

    pub(crate) fn begin(dir: Option<&Path>, run: Run) -> Result<Self, Problem> {
        let Some(dir) = dir else {
            return Ok(Self(None));
        };
        let path = dir.join(Self::CELLS);
        let what = || format!("cannot write {}", path.display());
        fs::create_dir_all(dir).doing(what)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .doing(what)?;
        let mut saved = Self(Some((dir.to_path_buf(), file)));
        saved.append(&Line::Run(Box::new(run)))?;
        Ok(saved)
    }

    pub(crate) fn save(&mut self, cell: &Cell) -> Result<(), Problem> {
        self.append(&Line::Cell(cell.clone()))
    }

    fn append(&mut self, line: &Line) -> Result<(), Problem> {
        let Some((dir, file)) = &mut self.0 else {
            return Ok(());
        };
        let what = || format!("cannot write to {}", dir.display());
        let mut text = serde_json::to_string(line).doing(what)?;
        text.push('\n');
        file.write_all(text.as_bytes()).doing(what)?;
        file.sync_data().doing(what)
    }

    /// Makes the page anew and says where it is.
    pub(crate) fn write_page(&self) -> Result<Option<PathBuf>, Problem> {
        let Some((dir, _)) = &self.0 else {
            return Ok(None);
        };
        let cells = dir.join(Self::CELLS);
        let text =
            fs::read_to_string(&cells).doing(|| format!("cannot read {}", cells.display()))?;
        let page = dir.join(Self::PAGE);
        fs::write(&page, html::render(&last_runs(&text)))
            .doing(|| format!("cannot write {}", page.display()))?;
        Ok(Some(page))
    }
}

/// The last run of each scenario with its cells. A line that cannot be read, as after a full disk, is passed over.
fn last_runs(lines: &str) -> Vec<(Run, Vec<Cell>)> {
    let mut runs: Vec<(Run, Vec<Cell>)> = Vec::new();
    for line in lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
    {
        match line {
            Line::Run(run) => {
                let same = |(other, _): &(Run, Vec<Cell>)| other.scenario == run.scenario;
                match runs.iter().position(same) {
                    Some(at) => runs[at] = (*run, Vec::new()),
                    None => runs.push((*run, Vec::new())),
                }
            }
            Line::Cell(cell) => {
                let run = runs
                    .iter_mut()
                    .find(|(run, _)| run.scenario == cell.scenario);
                if let Some((_, cells)) = run {
                    cells.push(cell);
                }
            }
        }
    }
    runs
}

/// Made-up runs for the tests of all formats.
#[cfg(test)]
mod example {
    use std::collections::BTreeMap;

    use crate::measure::{Cell, Measure, Measures};
    use crate::run::Run;

    pub(super) fn run() -> Run {
        Run {
            scenario: "throughput".to_owned(),
            started: "2026-01-02T03:04:05Z".to_owned(),
            arguments: "throughput <&>".to_owned(),
            method: "as told".to_owned(),
            base: "nginx".to_owned(),
            repetitions: 2,
            machine: BTreeMap::from([("processor".to_owned(), "abacus <b>".to_owned())]),
            versions: BTreeMap::from([("nginx".to_owned(), "nginx/1.22".to_owned())]),
        }
    }

    pub(super) fn cells() -> Vec<Cell> {
        let cell = |contender: &str, repetition, cpu: Option<f64>| Cell {
            scenario: "throughput".to_owned(),
            workload: "WAL in bulk".to_owned(),
            contender: contender.to_owned(),
            repetition,
            measures: cpu
                .map(|cpu| (Measure::CpuPerGib, cpu))
                .into_iter()
                .collect::<Measures>(),
            failed: cpu.is_none().then(|| "it <broke>".to_owned()),
        };
        vec![
            cell("nginx", 1, Some(1.0)),
            cell("pgtlsproxy", 1, Some(0.4)),
            cell("pgtlsproxy", 2, Some(0.5)),
            cell("nginx", 2, Some(1.0)),
            cell("haproxy", 2, None),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_replaces_the_earlier_one_of_its_scenario() {
        let dir = tempfile::tempdir().unwrap();
        for cells in [&example::cells()[..1], &example::cells()[..]] {
            let mut saved = Saved::begin(Some(dir.path()), example::run()).unwrap();
            for cell in cells {
                saved.save(cell).unwrap();
            }
            let page = saved.write_page().unwrap().unwrap();
            assert!(fs::read_to_string(page).unwrap().contains("nginx/1.22"));
        }
        let text = fs::read_to_string(dir.path().join("cells.jsonl")).unwrap();
        let runs = last_runs(&format!("{text}{{\"cut sho"));
        assert_eq!((runs.len(), runs[0].1.len()), (1, example::cells().len()));
    }
}
