//! What doctor says: a state for each layer, the findings, the verdict. As JSON (docs/doctor.md) and as one screen.

use std::collections::BTreeMap;
use std::fmt;

use protocol::escape;
use serde::Serialize;

use super::catalogue::{Entry, Layer, Severity};
use super::facts::Explained;
use super::gather::Subject;
use crate::problem::{self, Problem};

/// One thing found: a stable id, the fact that shows it, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) layer: Layer,
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) fact: String,
    pub(crate) way_out: String,
}

impl Finding {
    /// A row of the catalogue; `fill` stands in its way out.
    pub(crate) fn new(entry: &Entry, fact: impl Into<String>, fill: &str) -> Self {
        Self {
            id: entry.id.to_owned(),
            layer: entry.layer,
            severity: entry.severity,
            what: entry.title.to_owned(),
            fact: fact.into(),
            way_out: entry.way_out.replacen("{}", fill, 1),
        }
    }

    /// In the words of a proxy, which has ids of its own.
    pub(crate) fn explained(explained: &Explained, layer: Layer, fact: impl Into<String>) -> Self {
        Self {
            id: explained.id.clone(),
            layer,
            severity: Severity::Error,
            what: explained.message.clone(),
            fact: fact.into(),
            way_out: explained.way_out.clone(),
        }
    }

    /// What `check` finds, too.
    pub(crate) fn problem(problem: &Problem, layer: Layer) -> Self {
        Self {
            id: problem.id.to_owned(),
            layer,
            severity: match problem.severity {
                problem::Severity::Error => Severity::Error,
                problem::Severity::Warning => Severity::Warning,
            },
            what: problem.what.clone(),
            fact: if problem.why.is_empty() {
                "read as the proxy reads it at its start (pgtlsproxy check says the same)"
                    .to_owned()
            } else {
                problem.why.clone()
            },
            way_out: problem.way_out.clone(),
        }
    }

    pub(crate) fn at_most(mut self, severity: Severity) -> Self {
        self.severity = self.severity.min(severity);
        self
    }
}

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    Warning,
    Problem,
    /// Not judged: a layer below has failed.
    Skipped,
}

#[derive(Debug, Serialize)]
pub(crate) struct Judged {
    pub(crate) layer: Layer,
    pub(crate) state: State,
    /// What was seen, in short.
    pub(crate) seen: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Warnings,
    Problems,
}

/// The whole.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Of this form; it rises when a field changes its meaning or goes.
    pub(crate) version: u32,
    pub(crate) tunnel: String,
    pub(crate) listen: String,
    pub(crate) leads_to: String,
    pub(crate) cluster: Option<String>,
    pub(crate) layers: Vec<Judged>,
    pub(crate) findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub(crate) unseen: Vec<String>,
    pub(crate) verdict: Verdict,
    pub(crate) summary: String,
}

impl Report {
    pub(crate) fn new(
        subject: Subject,
        layers: Vec<Judged>,
        findings: Vec<Finding>,
        unseen: Vec<String>,
    ) -> Self {
        let worst = findings.iter().max_by_key(|finding| finding.severity);
        let first = findings
            .iter()
            .find(|finding| Some(finding.severity) == worst.map(|worst| worst.severity));
        let (verdict, summary) = match first {
            Some(first) if first.severity == Severity::Error => {
                (Verdict::Problems, format!("{} [{}]", first.what, first.id))
            }
            Some(first) if first.severity == Severity::Warning => (
                Verdict::Warnings,
                format!(
                    "nothing stands in the way; look at: {} [{}]",
                    first.what, first.id
                ),
            ),
            _ if unseen.is_empty() => (Verdict::Ok, "all well".to_owned()),
            _ => (Verdict::Ok, "all well as far as could be seen".to_owned()),
        };
        Self {
            version: 1,
            tunnel: subject.tunnel,
            listen: subject.listen,
            leads_to: subject.leads_to,
            cluster: subject.cluster,
            layers,
            findings,
            unseen,
            verdict,
            summary,
        }
    }
}

/// How many findings of one id are shown; `--json` has all of them.
const MOST_OF_ONE: usize = 3;

/// Names of roles, files and peers may hold what must not reach a terminal.
pub(super) fn visible(text: &str) -> String {
    escape::visible(text, usize::MAX)
}

fn whole(f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
    let severity = match finding.severity {
        Severity::Error => "problem",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    writeln!(
        f,
        "  {severity} [{}]: {}",
        finding.id,
        visible(&finding.what)
    )?;
    if !finding.fact.is_empty() {
        writeln!(f, "    fact: {}", visible(&finding.fact))?;
    }
    if !finding.way_out.is_empty() {
        writeln!(f, "    do:   {}", visible(&finding.way_out))?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.listen.is_empty() {
            writeln!(
                f,
                "tunnel   {}",
                visible(&format!(
                    "{}: {} -> {}",
                    self.tunnel, self.listen, self.leads_to
                ))
            )?;
        }
        if let Some(cluster) = &self.cluster {
            writeln!(f, "cluster  {}", visible(cluster))?;
        }
        for judged in &self.layers {
            let state = match judged.state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Problem => "PROBLEM",
                State::Skipped => "skipped",
            };
            writeln!(
                f,
                "{:<8} {state:<8} {}",
                judged.layer.name(),
                visible(&judged.seen.join("; "))
            )?;
            let found = self
                .findings
                .iter()
                .filter(|finding| finding.layer == judged.layer);
            let mut shown: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
            for finding in found {
                let (count, first) = shown.entry(&finding.id).or_insert((0, &finding.what));
                *count += 1;
                if *count == 1 {
                    whole(f, finding)?;
                } else if *count <= MOST_OF_ONE {
                    let other = match finding.what == *first {
                        true => &finding.fact,
                        false => &finding.what,
                    };
                    writeln!(f, "    also [{}]: {}", finding.id, visible(other))?;
                }
            }
            for (id, (count, _)) in &shown {
                if let Some(more @ 1..) = count.checked_sub(MOST_OF_ONE) {
                    writeln!(f, "    and {more} more [{id}]: see --json")?;
                }
            }
        }
        for unseen in &self.unseen {
            writeln!(f, "unseen   {}", visible(unseen))?;
        }
        write!(f, "verdict: {}", visible(&self.summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::catalogue::{HBA_BROKEN, SLOT_LOST};

    #[test]
    fn many_of_one_kind_take_three_places_and_nothing_breaks_a_line() {
        let mut findings: Vec<_> = (0..30)
            .map(|slot| Finding::new(&SLOT_LOST, format!("slot {slot}"), "\u{1b}[2J"))
            .collect();
        findings.push(Finding::new(&HBA_BROKEN, "line 1\nverdict: all well", ""));
        let layers = vec![Judged {
            layer: Layer::Postgres,
            state: State::Problem,
            seen: Vec::new(),
        }];
        let subject = Subject {
            tunnel: "server".to_owned(),
            listen: "x\ny".to_owned(),
            cluster: Some("/srv/\u{1b}[2J".to_owned()),
            ..Subject::default()
        };
        let text = Report::new(subject, layers, findings, Vec::new()).to_string();
        assert_eq!(text.matches("problem [U03]:").count(), 1, "{text}");
        assert!(text.contains("also [U03]: slot 2\n"), "{text}");
        assert!(text.contains("and 27 more [U03]: see --json"), "{text}");
        assert_eq!(text.matches("\nverdict: ").count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        // tunnel, cluster, layer; each kind in three lines; two more facts; what is left out; the verdict.
        assert_eq!(text.lines().count(), 3 + 6 + 2 + 1 + 1, "{text}");
    }
}
