//! One run: A B C, B C A, C A B, so that a noisy machine hits all alike. Every cell is saved when it is measured.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{Common, Measurement, Peer};
use crate::contender::{Contender, NGINX_CPU_PER_GIB, Workshop, own_cpu_seconds};
use crate::host;
use crate::interrupt;
use crate::measure::{Cell, Measure, Measures, Summary, tables};
use crate::problem::{Doing, Problem};
use crate::report::{self, Saved};
use crate::scenario::{self, Ground, Scenario};
use crate::wire::backend::Backend;

/// What the cells of a run have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) scenario: String,
    pub(crate) started: String,
    pub(crate) arguments: String,
    pub(crate) method: String,
    pub(crate) base: String,
    pub(crate) repetitions: u32,
    pub(crate) machine: BTreeMap<String, String>,
    pub(crate) versions: BTreeMap<String, String>,
}

pub(crate) fn run(measurement: &Measurement) -> Result<(), Problem> {
    let common = measurement.common();
    let mut scenario = scenario::of(measurement);
    let contenders = contenders(common, scenario.as_ref())?;
    let ground = Ground {
        workshop: Workshop::open(common.bin.as_deref(), scenario.is_monitored())?,
        backend: Backend::start()?,
    };
    let run = describe(common, scenario.as_ref(), &contenders, &ground.workshop);
    let mut saved = Saved::begin(common.report.as_deref(), run.clone())?;

    interrupt::listen()?;
    let mut cells = Vec::new();
    let total = common.repetitions as usize * contenders.len();
    let mut done = 0;
    'rounds: for repetition in 1..=common.repetitions {
        let rotation = (repetition as usize - 1) % contenders.len();
        for &contender in contenders[rotation..].iter().chain(&contenders[..rotation]) {
            done += 1;
            progress(&format!("{done}/{total} {} ...", contender.name()), false);
            let begun = Instant::now();
            let measured = measure(scenario.as_mut(), &ground, contender, repetition);
            if interrupt::came() {
                eprintln!("interrupted: what was measured until now is kept");
                break 'rounds;
            }
            for cell in measured {
                let seconds = begun.elapsed().as_secs_f64();
                progress(
                    &format!("{done}/{total} {} {seconds:.1} s", brief(&cell)),
                    true,
                );
                saved.save(&cell)?;
                if common.json {
                    print(&json(&cell)?)?;
                }
                cells.push(cell);
            }
        }
    }

    let warnings = warnings(&cells);
    for warning in &warnings {
        eprintln!("{warning}");
    }
    if !common.json {
        print(&report::text::render(&run, &cells))?;
    }
    if let Some(page) = saved.write_page()? {
        eprintln!("the report is {}", page.display());
    }
    match cells.iter().filter(|cell| cell.failed.is_some()).count() {
        0 if interrupt::came() => Err(Problem::new("interrupted before the end")),
        0 => Ok(()),
        failed => Err(Problem::new(format!("{failed} cells failed"))
            .because("each is told above; the others are good")),
    }
}

/// Ours first; each once; those who cannot take part are told and left out.
fn contenders(common: &Common, scenario: &dyn Scenario) -> Result<Vec<Contender>, Problem> {
    let mut contenders = Vec::new();
    match &common.target {
        Some(target) => contenders.push(Contender::Target(resolve(target)?)),
        None => {
            let ours = common.records.iter().copied().map(Contender::Ours);
            for contender in ours.chain(common.against.iter().copied().map(Contender::Peer)) {
                if !contenders.contains(&contender) {
                    contenders.push(contender);
                }
            }
        }
    }
    contenders.retain(|&contender| {
        let why = scenario.excludes(contender);
        if let Some(why) = why {
            eprintln!("left out: {why}");
        }
        why.is_none()
    });
    if contenders.is_empty() {
        return Err(Problem::new("there is nobody left to measure"));
    }
    Ok(contenders)
}

fn resolve(target: &str) -> Result<SocketAddr, Problem> {
    let mut addresses = target
        .to_socket_addrs()
        .doing(|| format!("cannot resolve {target}"))?;
    addresses
        .next()
        .ok_or_else(|| Problem::new(format!("{target} has no address")))
}

fn describe(
    common: &Common,
    scenario: &dyn Scenario,
    contenders: &[Contender],
    workshop: &Workshop,
) -> Run {
    let takes_part = |peer| contenders.contains(&Contender::Peer(peer));
    let base = match common.base {
        Some(base) => Contender::Peer(base),
        None if takes_part(Peer::Nginx) => Contender::Peer(Peer::Nginx),
        None if takes_part(Peer::Direct) => Contender::Peer(Peer::Direct),
        None => contenders[0],
    };
    let versions = contenders.iter().map(|contender| {
        let version = contender.version(workshop);
        (contender.name().to_owned(), version)
    });
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    Run {
        scenario: scenario.name().to_owned(),
        started: OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default(),
        arguments: arguments.join(" "),
        method: scenario.method(),
        base: base.name().to_owned(),
        repetitions: common.repetitions,
        machine: host::describe(),
        versions: versions.collect(),
    }
}

/// A contender that fails is a result, too: the run goes on without it.
fn measure(
    scenario: &mut dyn Scenario,
    ground: &Ground,
    contender: Contender,
    repetition: u32,
) -> Vec<Cell> {
    let name = scenario.name();
    let watch = Watch::begin();
    let measured = scenario.measure(ground, contender);
    let others = watch.end();
    let cell = |workload: String, measures, failed| Cell {
        scenario: name.to_owned(),
        workload,
        contender: contender.name().to_owned(),
        repetition,
        measures,
        failed,
    };
    match measured {
        Ok(outcomes) => outcomes
            .into_iter()
            .map(|(workload, mut measures)| {
                measures.insert(Measure::OtherWork, others);
                cell(workload, measures, None)
            })
            .collect(),
        Err(problem) => vec![cell(
            "failures".to_owned(),
            Measures::new(),
            Some(problem.to_string()),
        )],
    }
}

/// Sees how busy the machine is with what is not ours: figures of a busy machine are to be doubted.
struct Watch {
    begun: Instant,
    busy: f64,
    own: f64,
}

impl Watch {
    fn begin() -> Self {
        Self {
            begun: Instant::now(),
            busy: host::busy_seconds(),
            own: own_cpu_seconds(),
        }
    }

    /// Other work, in percent of the machine.
    fn end(self) -> f64 {
        let now = Self::begin();
        let others = (now.busy - self.busy) - (now.own - self.own);
        let all = self.begun.elapsed().as_secs_f64() * host::processors() as f64;
        (others / all * 100.0).max(0.0)
    }
}

/// What makes figures doubtful.
pub(crate) fn warnings(cells: &[Cell]) -> Vec<String> {
    let mut warnings = Vec::new();
    let other_work = cells
        .iter()
        .filter_map(|cell| cell.measures.get(&Measure::OtherWork));
    if let Some(work) = Summary::of(other_work.copied()).filter(|work| work.median > 5.0) {
        warnings.push(format!(
            "Other programs took {:.0} % of the machine [{:.0}-{:.0}] while this was measured: figures are too high, \
             ratios less so.",
            work.median, work.min, work.max
        ));
    }
    for table in tables(cells)
        .iter()
        .filter(|table| table.scenario == "throughput")
    {
        let Some(nginx) = table.summary("nginx", Measure::CpuPerGib) else {
            continue;
        };
        if !NGINX_CPU_PER_GIB.contains(&nginx.median) {
            warnings.push(format!(
                "nginx took {:.2} CPU-s/GiB where {:.1} to {:.1} are usual for a good setting on an AMD EPYC with AVX-512 and \
                 Debian 12: the peer looks badly tuned, or the machine is another one or busy. Ratios to it are \
                 doubtful.",
                nginx.median,
                NGINX_CPU_PER_GIB.start(),
                NGINX_CPU_PER_GIB.end()
            ));
        }
    }
    warnings
}

fn brief(cell: &Cell) -> String {
    let figures = match &cell.failed {
        Some(why) => format!("failed: {why}"),
        None => {
            let plotted = cell
                .measures
                .iter()
                .filter(|(measure, _)| measure.is_plotted());
            let figures = plotted.map(|(measure, value)| {
                let (title, unit, digits) = measure.shown();
                format!("{title} {value:.digits$} {unit}")
            });
            figures.collect::<Vec<_>>().join(", ")
        }
    };
    format!("{} {}: {figures}", cell.contender, cell.workload)
}

/// On a terminal the line of what is being done is replaced by what came of it.
fn progress(line: &str, finished: bool) {
    let terminal = std::io::stderr().is_terminal();
    match (terminal, finished) {
        (true, false) => eprint!("\r\x1b[K{line}"),
        (true, true) => eprintln!("\r\x1b[K{line}"),
        (false, true) => eprintln!("{line}"),
        (false, false) => {}
    }
}

fn json(cell: &Cell) -> Result<String, Problem> {
    serde_json::to_string(cell)
        .map(|line| line + "\n")
        .doing(|| "a cell cannot be written".to_owned())
}

fn print(text: &str) -> Result<(), Problem> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .doing(|| "cannot write to stdout".to_owned())
}
