//! The page: a table of the runs, a chart for each number, captions over time.

use super::runs::Run;
use html::chart::{self, Line};
use html::{escaped, number};
use std::fmt::Write;

/// Colours in page.css.
const COLOURS: usize = 8;

/// A chart: title, unit, key in metrics.jsonl, and a second key drawn with gaps.
const CHARTS: [(&str, &str, &str, Option<&str>); 8] = [
    ("Loss", "nats per supervised token; evaluation: dashed", "loss", Some("eval_loss")),
    ("Gradient norm", "before clipping", "grad_norm", None),
    ("Learning rate", "", "learning_rate", None),
    ("Tokens", "per second, all ranks", "tokens_per_second", None),
    ("Samples", "per second, all ranks", "samples_per_second", None),
    ("Step time", "seconds", "step_seconds", None),
    ("Waiting for data", "seconds since the last logged step", "data_wait_seconds", None),
    ("Peak memory", "resident, MB", "peak_rss_mb", None),
];

/// A column of the table: head, and a run's value.
type Column = (&'static str, fn(&Run) -> Option<f64>);

const COLUMNS: [Column; 8] = [
    ("steps", |run| run.last("step")),
    ("epochs", |run| run.last("epoch")),
    ("last loss", |run| run.last("loss")),
    ("lowest evaluation loss", |run| run.series("eval_loss").into_iter().map(|(_, loss)| loss).reduce(f64::min)),
    ("tokens/s, mean", |run| run.mean("tokens_per_second")),
    ("s/step, mean", |run| run.mean("step_seconds")),
    ("peak memory, MB", |run| run.last("peak_rss_mb")),
    ("skipped steps", |run| run.last("skipped_steps")),
];

/// The whole page: no other file is needed, and nothing is loaded.
pub fn page(runs: &[Run], max_captions: usize) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let names = runs.iter().map(|run| escaped(&run.name)).collect::<Vec<_>>().join(", ");
    let _ = writeln!(out, "<title>{names}</title>\n<style>\n{}</style>\n</head>\n<body>", include_str!("page.css"));
    let _ = writeln!(out, "<h1>{}</h1>", if runs.len() == 1 { "Training run" } else { "Training runs" });
    let _ = writeln!(out, "<p>{names}. Point at a chart for the values at a step.</p>");
    table(&mut out, runs);
    out.push_str("<div class=\"charts\">\n");
    CHARTS.iter().for_each(|chart| figure(&mut out, chart, runs));
    out.push_str("</div>\n");
    for (index, run) in runs.iter().enumerate().filter(|(_, run)| !run.captions.is_empty()) {
        captions(&mut out, index, run, max_captions);
    }
    let _ = write!(out, "<script>\n{}</script>\n</body>\n</html>\n", include_str!("page.js"));
    out
}

fn swatch(index: usize) -> String {
    format!("<span class=\"swatch c{}\"></span>", index % COLOURS)
}

fn table(out: &mut String, runs: &[Run]) {
    let shown: Vec<&Column> = COLUMNS.iter().filter(|(_, value)| runs.iter().any(|run| value(run).is_some())).collect();
    out.push_str("<div class=\"scroll\"><table>\n<tr><th>run</th>");
    for (head, _) in &shown {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr>\n");
    for (index, run) in runs.iter().enumerate() {
        let _ = write!(out, "<tr><td>{}{}</td>", swatch(index), escaped(&run.name));
        for (_, value) in &shown {
            let _ = write!(out, "<td>{}</td>", value(run).map_or("–".to_string(), number));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn figure(out: &mut String, &(title, unit, key, second): &(&str, &str, &str, Option<&str>), runs: &[Run]) {
    let line = |index: usize, run: &Run, key: &str, dashed: bool| Line {
        name: if dashed { format!("{}, {key}", run.name) } else { run.name.clone() },
        colour: index % COLOURS,
        dashed,
        points: run.series(key),
    };
    let mut lines: Vec<Line> = runs.iter().enumerate().map(|(index, run)| line(index, run, key, false)).collect();
    if let Some(second) = second {
        lines.extend(runs.iter().enumerate().map(|(index, run)| line(index, run, second, true)));
    }
    lines.retain(|line| !line.points.is_empty());
    if let Some(svg) = chart::lines(title, &lines) {
        let _ = writeln!(out, "<figure><figcaption>{title}<span>{unit}</span></figcaption>\n{svg}\n</figure>");
    }
}

fn captions(out: &mut String, index: usize, run: &Run, most: usize) {
    let _ = writeln!(out, "<h2>{}Captions of {}</h2>", swatch(index), escaped(&run.name));
    out.push_str("<div class=\"scroll\"><table class=\"words\">\n<tr><th>picture</th>");
    for set in &run.captions {
        let _ = write!(out, "<th>{}</th>", set.label);
    }
    out.push_str("<th>reference</th></tr>\n");
    let newest = run.captions.last().map(|set| set.captions.as_slice()).unwrap_or_default();
    for picture in newest.iter().take(most) {
        let _ = write!(out, "<tr><td>{}</td>", escaped(&picture.id));
        for set in &run.captions {
            let said = set.captions.iter().find(|caption| caption.id == picture.id).and_then(|c| c.caption.as_deref());
            let same = said.is_some_and(|said| picture.references.iter().any(|reference| reference == said));
            let class = if same { " class=\"same\"" } else { "" };
            let _ = write!(out, "<td{class}>{}</td>", escaped(said.unwrap_or("–")));
        }
        let _ = writeln!(out, "<td>{}</td></tr>", escaped(picture.references.first().map_or("–", String::as_str)));
    }
    out.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let lines = (1..50).map(|step| {
            let loss = 5.0 / f64::from(step);
            format!("{{\"step\":{step},\"loss\":{loss},\"grad_norm\":1,\"learning_rate\":0.001,\"peak_rss_mb\":100}}\n")
        });
        std::fs::write(folder.path().join("metrics.jsonl"), lines.collect::<String>()).expect("written");
        let caption = "{\"id\":\"1\",\"caption\":\"<b>\",\"references\":[\"a cat\"]}\n";
        std::fs::write(folder.path().join("captions.jsonl"), caption).expect("written");
        let runs = [Run::read(folder.path()).expect("read"), Run::read(folder.path()).expect("read")];
        let page = page(&runs, 4);
        // A chart for each number that the runs have, a line for each run.
        assert_eq!((page.matches("<svg").count(), page.matches("<polyline").count()), (4, 8));
        assert!(["http", "src=", "href=", "<b>", "NaN"].iter().all(|word| !page.contains(word)), "{page}");
        assert!(page.contains("a cat") && page.contains("&lt;b&gt;") && page.contains("prefers-color-scheme: dark"));
    }
}
