//! One page that needs nothing else: no script, no font, no picture from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::plot;
use super::text::{ratio, spread};
use crate::measure::{Cell, Table, add_to_direct, tables};
use crate::run::{Run, warnings};

const STYLE: &str = include_str!("page.css");

/// The page of the last run of each scenario.
pub(super) fn render(runs: &[(Run, Vec<Cell>)]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>pgtlsproxy-bench</title><style>{STYLE}</style></head><body><main>\n\
         <h1>pgtlsproxy-bench</h1>\n\
         <p>Median [smallest-largest] of n repetitions. Contenders were measured in turn, in an order that rotates; a \
         ratio is taken within a repetition, so its spread is that of pairs measured side by side. Dots are the \
         repetitions, bars their medians.</p>\n"
    );
    for (run, cells) in runs {
        section(&mut page, run, cells);
    }
    page.push_str("</main></body></html>\n");
    page
}

fn section(page: &mut String, run: &Run, cells: &[Cell]) {
    let mut cells = cells.to_vec();
    add_to_direct(&mut cells);
    let _ = writeln!(page, "<section><h2>{}</h2>", escape(&run.scenario));
    let _ = writeln!(page, "<p>{}</p>", escape(&run.method));
    for warning in warnings(&cells) {
        let _ = writeln!(page, "<p class=\"warning\">{}</p>", escape(&warning));
    }
    if run.versions.len() > 1 {
        page.push_str(
            "<p>The peers use the system's OpenSSL, ours brings aws-lc-rs: where the former is 3.0 and the processor \
             has VAES and AVX-512, part of the difference is theirs, not the proxies'.</p>\n",
        );
    }
    for table in tables(&cells) {
        let _ = writeln!(page, "<h3>{}</h3>", escape(table.workload));
        let measures = table.measures();
        for measure in measures.iter().filter(|measure| measure.is_plotted()) {
            page.push_str(&plot::render(&table, *measure, &run.base));
        }
        figures(page, &table, &run.base);
        for (contender, why) in table.failures() {
            let _ = writeln!(
                page,
                "<p class=\"warning\">{} failed: {}</p>",
                escape(contender),
                escape(why)
            );
        }
    }
    let _ = writeln!(
        page,
        "<details><summary>Machine, versions, command</summary>\n<pre>pgtlsproxy-bench {}</pre>\n<p>Begun {}.</p>",
        escape(&run.arguments),
        escape(&run.started)
    );
    pairs(page, &run.machine);
    pairs(page, &run.versions);
    page.push_str("</details></section>\n");
}

/// A row per contender, a column per measure.
fn figures(page: &mut String, table: &Table<'_>, base: &str) {
    let measures = table.measures();
    if measures.is_empty() {
        return;
    }
    page.push_str("<div class=\"wide\"><table><thead><tr><th></th>");
    for measure in &measures {
        let (title, unit, _) = measure.shown();
        let _ = write!(page, "<th>{title}<br><small>{unit}</small></th>");
    }
    page.push_str("</tr></thead><tbody>\n");
    for contender in table.contenders() {
        let _ = write!(page, "<tr><th>{}</th>", escape(contender));
        for &measure in &measures {
            let text = table.summary(contender, measure).map(|summary| {
                let ratio = ratio(table, contender, base, measure);
                format!("{}<br><small>{ratio}</small>", spread(summary, measure))
            });
            let _ = write!(page, "<td>{}</td>", text.unwrap_or_default());
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

fn pairs(page: &mut String, pairs: &BTreeMap<String, String>) {
    page.push_str("<table>");
    for (name, value) in pairs {
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td>{}</td></tr>",
            escape(name),
            escape(value)
        );
    }
    page.push_str("</table>\n");
}

pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn the_page_holds_figures_plots_and_the_machine_and_needs_nothing_else() {
        let page = render(&[(example::run(), example::cells())]);
        for wanted in [
            "0.450 [0.400-0.500] n=2",
            "0.45 [0.40-0.50] of nginx",
            "<svg",
            "repetition 2: 0.500",
            "abacus &lt;b&gt;",
            "throughput &lt;&amp;&gt;",
            "it &lt;broke&gt;",
            "nginx/1.22",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(wanted), "{wanted} is missing in {page}");
        }
        for foreign in ["http:", "https:", "<script", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_badly_tuned_nginx_is_told() {
        let mut cells = example::cells();
        assert!(warnings(&cells).is_empty());
        for cell in &mut cells {
            cell.measures.values_mut().for_each(|value| *value *= 2.0);
        }
        let page = render(&[(example::run(), cells)]);
        assert!(page.contains("the peer looks badly tuned"), "{page}");
    }
}
