//! Facts in, findings out. Layer by layer from the wire up; the first layer with a problem is the last that is judged,
//! so that nothing above it is blamed for what is broken below.

mod admission;
mod answer;
mod far;
mod hba;
mod path;
mod primary;
mod slot_sync;
mod standby;
#[cfg(test)]
mod tests;
mod words;

use super::catalogue::{Layer, Severity};
use super::facts::Facts;
use super::gather::Subject;
use super::report::{Finding, Judged, Report, State};
use crate::problem::Problem;

/// What one layer shows.
#[derive(Debug, Default)]
struct View {
    seen: Vec<String>,
    findings: Vec<Finding>,
}

impl View {
    fn see(&mut self, what: impl Into<String>) {
        self.seen.push(what.into());
    }

    fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

/// Judges every layer up to the first that has a problem.
pub(crate) fn judge(subject: Subject, facts: &Facts) -> Report {
    let mut layers = Vec::new();
    let mut findings = Vec::new();
    let mut failed = false;
    for layer in Layer::ALL {
        if failed {
            layers.push(skipped(layer));
            continue;
        }
        let mut view = View::default();
        match layer {
            Layer::Config => {}
            Layer::Network => path::network(facts, &mut view),
            Layer::Clocks => path::clocks(facts, &mut view),
            Layer::Tls => {
                path::tls(facts, &mut view);
                far::tls(facts, &mut view);
            }
            Layer::Policy => {
                path::policy(facts, &mut view);
                far::policy(facts, &mut view);
            }
            Layer::Postgres => {
                far::postgres(facts, &mut view);
                answer::postgres(facts, &mut view);
                primary::postgres(facts, &mut view);
            }
            Layer::Standby => {
                standby::standby(facts, &mut view);
                primary::standbys(facts, &mut view);
            }
        }
        // An id is said once.
        let mut said = Vec::new();
        view.findings.retain(|finding| {
            let key = (
                finding.id.clone(),
                finding.what.clone(),
                finding.fact.clone(),
            );
            let new = !said.contains(&key);
            said.push(key);
            new
        });
        let worst = view.findings.iter().map(|finding| finding.severity).max();
        failed = worst == Some(Severity::Error);
        layers.push(Judged {
            layer,
            state: match worst {
                Some(Severity::Error) => State::Problem,
                Some(Severity::Warning) => State::Warning,
                Some(Severity::Note) | None => State::Ok,
            },
            seen: view.seen,
        });
        findings.extend(view.findings);
    }
    Report::new(subject, layers, findings, facts.unseen.clone())
}

/// The report where the configuration itself does not load.
pub(crate) fn unloaded(subject: Subject, problems: &[Problem]) -> Report {
    let findings = problems
        .iter()
        .map(|problem| Finding::problem(problem, Layer::Config));
    let layers = Layer::ALL.into_iter().map(|layer| match layer {
        Layer::Config => Judged {
            layer,
            state: State::Problem,
            seen: Vec::new(),
        },
        other => skipped(other),
    });
    Report::new(subject, layers.collect(), findings.collect(), Vec::new())
}

fn skipped(layer: Layer) -> Judged {
    Judged {
        layer,
        state: State::Skipped,
        seen: vec!["not judged: a layer before it has failed".to_owned()],
    }
}
