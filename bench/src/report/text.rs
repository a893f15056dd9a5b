//! Tables for a terminal.

use std::fmt::Write;

use crate::measure::{Cell, Measure, Summary, Table, add_to_direct, tables};
use crate::run::Run;

/// A table per workload: a line per measure and contender, with the ratio to the base.
pub(crate) fn render(run: &Run, cells: &[Cell]) -> String {
    let mut cells = cells.to_vec();
    add_to_direct(&mut cells);
    let mut text = String::new();
    for table in tables(&cells) {
        let _ = writeln!(text, "\n{}: {}", table.scenario, table.workload);
        for measure in table.measures() {
            let (title, unit, _) = measure.shown();
            let _ = writeln!(text, "  {title}, {unit}");
            for contender in table.contenders() {
                if let Some(summary) = table.summary(contender, measure) {
                    let ratio = ratio(&table, contender, &run.base, measure);
                    let _ = writeln!(
                        text,
                        "    {contender:<20}{:<32}{ratio}",
                        spread(summary, measure)
                    );
                }
            }
        }
        for (contender, why) in table.failures() {
            let _ = writeln!(text, "  {contender} failed: {why}");
        }
    }
    text
}

/// `median [min-max] n=5`.
pub(super) fn spread(summary: Summary, measure: Measure) -> String {
    let (_, _, digits) = measure.shown();
    let Summary {
        min,
        median,
        max,
        n,
    } = summary;
    format!("{median:.digits$} [{min:.digits$}-{max:.digits$}] n={n}")
}

/// `0.41 [0.39-0.43] of nginx`; nothing for the base itself, nor for what is no merit of a contender.
pub(super) fn ratio(table: &Table<'_>, contender: &str, base: &str, measure: Measure) -> String {
    match table.ratio(contender, base, measure) {
        Some(Summary {
            min, median, max, ..
        }) if contender != base && measure != Measure::OtherWork => {
            format!("{median:.2} [{min:.2}-{max:.2}] of {base}")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn a_table_shows_median_spread_and_ratio() {
        let text = render(&example::run(), &example::cells());
        assert!(text.contains("CPU, both sides, s/GiB"), "{text}");
        let ours = "pgtlsproxy          0.450 [0.400-0.500] n=2";
        assert!(text.contains(ours), "{text}");
        assert!(text.contains("0.45 [0.40-0.50] of nginx"), "{text}");
        assert!(text.contains("haproxy failed: it <broke>"), "{text}");
    }
}
