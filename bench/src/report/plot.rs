//! A plot as SVG: a row per contender, a dot per repetition, a bar up to the median. The axis begins at 0, so that
//! lengths compare as figures do. Colours come from the page's style, for dark and light.

use std::fmt::Write;

use super::html::escape;
use super::text::ratio;
use crate::contender::OURS;
use crate::measure::{Measure, Table};

const WIDTH: f64 = 720.0;
const NAMES: f64 = 140.0;
const FIGURES: f64 = 210.0;
const ROW: f64 = 30.0;

/// One measure of one workload.
pub(super) fn render(table: &Table<'_>, measure: Measure, base: &str) -> String {
    let (title, unit, digits) = measure.shown();
    let rows: Vec<_> = table
        .contenders()
        .into_iter()
        .filter_map(|contender| Some((contender, table.summary(contender, measure)?)))
        .collect();
    let most = rows
        .iter()
        .map(|(_, summary)| summary.max)
        .fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let scale = (WIDTH - NAMES - FIGURES) / most;
    let height = ROW * (rows.len() as f64) + 12.0;
    let better = if measure.more_is_better() {
        "more is better"
    } else {
        "less is better"
    };
    let mut svg = format!(
        "<figure><figcaption>{title}, {unit} <small>({better})</small></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title} of {}\">",
        escape(table.workload)
    );
    for (row, (contender, summary)) in rows.iter().enumerate() {
        let top = ROW * row as f64 + 6.0;
        let middle = top + ROW / 2.0;
        let class = if contender.starts_with(OURS) {
            "ours"
        } else {
            "peer"
        };
        let _ = write!(
            svg,
            "<g class=\"{class}\"><text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{contender}</text>\
             <rect x=\"{NAMES}\" y=\"{bar}\" width=\"{length:.1}\" height=\"14\" rx=\"2\"/>",
            x = NAMES - 8.0,
            y = middle + 4.0,
            bar = middle - 7.0,
            length = (summary.median * scale).max(0.5),
        );
        for (repetition, value) in table.values(contender, measure) {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"3\"><title>repetition {repetition}: {value:.digits$}</title></circle>",
                NAMES + value.max(0.0) * scale,
            );
        }
        let of_base = ratio(table, contender, base, measure);
        let of_base = of_base.split(' ').next().unwrap_or_default();
        let of_base = match of_base {
            "" => String::new(),
            number => format!(" · {number} × {base}"),
        };
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y}\">{median:.digits$}{of_base}</text></g>",
            x = NAMES + summary.max * scale + 10.0,
            y = middle + 4.0,
            median = summary.median,
        );
    }
    svg.push_str("</svg></figure>\n");
    svg
}
