//! The page: a table of the runs, a chart for each number (drawn by page.js), captions over time beside their pictures.

use super::pictures::Pictures;
use super::runs::{CaptionSet, EVAL_LOSS_OF_SOURCE, LOSS_OF_SOURCE, Run};
use super::sources;
use html::{escaped, number, script_json};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Colours in page.css.
const COLOURS: usize = 8;

/// A chart: title, unit, key in metrics.jsonl, whether the loss axis' scale is its own.
const CHARTS: [(&str, &str, &str, bool); 8] = [
    ("Loss", "nats per supervised token; evaluation: dashed", "loss", true),
    ("Gradient norm", "before clipping", "grad_norm", true),
    ("Learning rate", "", LEARNING_RATE, false),
    ("Tokens", "per second, all ranks", "tokens_per_second", false),
    ("Samples", "per second, all ranks", "samples_per_second", false),
    ("Step time", "seconds", "step_seconds", false),
    ("Waiting for data", "seconds since the last logged step", "data_wait_seconds", false),
    ("Peak memory", "resident, MB", "peak_rss_mb", false),
];
/// The learning rate; those of single parts end in `_lr`.
const LEARNING_RATE: &str = "learning_rate";
/// Evaluation loss, in the chart of the loss.
const EVAL_LOSS: &str = "eval_loss";
/// Keys of an evaluation that say how it was made, not how good the model is.
const OF_THE_EVALUATION: [&str; 5] =
    [EVAL_LOSS, "eval_supervised_tokens", "eval_samples", "eval_runtime", "eval_samples_per_second"];

/// A column of the table: head, and a run's value.
type Column = (&'static str, fn(&Run) -> Option<f64>);

const COLUMNS: [Column; 8] = [
    ("steps", |run| run.last("step")),
    ("epochs", |run| run.last("epoch")),
    ("last loss", |run| run.last("loss")),
    ("lowest evaluation loss", |run| run.series(EVAL_LOSS).into_iter().map(|(_, loss)| loss).reduce(f64::min)),
    ("tokens/s, mean", |run| run.mean("tokens_per_second")),
    ("s/step, mean", |run| run.mean("step_seconds")),
    ("peak memory, MB", |run| run.last("peak_rss_mb")),
    ("skipped steps", |run| run.last("skipped_steps")),
];

/// What the page says that it was made by.
pub const GENERATOR: &str = "pipelines report";

/// The whole page: no other file is needed, and nothing is loaded.
pub fn page(runs: &[Run], pictures: &[Pictures], max_captions: usize) -> String {
    let names = runs.iter().map(|run| escaped(&run.name)).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    table(&mut body, runs);
    sources::table(&mut body, runs);
    body.push_str(include_str!("controls.html"));
    for (index, (run, pictures)) in
        runs.iter().zip(pictures).enumerate().filter(|(_, (run, _))| !run.captions.is_empty())
    {
        captions(&mut body, index, run, pictures, max_captions);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n{}\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{names}</title>\n<style>\n{}</style>\n\
         </head>\n<body>\n<main>\n<h1>{}</h1>\n{body}</main>\n<script type=\"application/json\" id=\"data\">{}</script>\n\
         <script>\n{}</script>\n</body>\n</html>\n",
        html::generator(GENERATOR),
        include_str!("page.css"),
        if runs.len() == 1 { "Training run" } else { "Training runs" },
        script_json(&json!({"runs": runs.iter().map(series).collect::<Value>(), "charts": charts(runs)}).to_string()),
        include_str!("page.js")
    )
}

/// The charts that the runs have numbers for, with their keys.
fn charts(runs: &[Run]) -> Value {
    let keys: BTreeSet<&str> = runs.iter().flat_map(Run::keys).collect();
    let of_key = |key: &str| {
        // Rates of parts stand beside the rate of the others.
        let is_of_chart = |other: &&&str| **other == key || (key == LEARNING_RATE && other.ends_with("_lr"));
        keys.iter().filter(is_of_chart).copied().collect::<Vec<_>>()
    };
    let fixed = CHARTS.iter().map(|&(title, unit, key, scaled)| {
        let mut lines: Vec<Value> = of_key(key).into_iter().map(|key| json!({"key": key, "dashed": false})).collect();
        if key == "loss" && keys.contains(EVAL_LOSS) {
            lines.push(json!({"key": EVAL_LOSS, "dashed": true}));
        }
        json!({"title": title, "unit": unit, "keys": lines, "scaled": scaled})
    });
    let of_sources: Vec<Value> = keys
        .iter()
        .filter(|key| key.starts_with(LOSS_OF_SOURCE) || key.starts_with(EVAL_LOSS_OF_SOURCE))
        .map(|key| json!({"key": key, "dashed": key.starts_with(EVAL_LOSS_OF_SOURCE)}))
        .collect();
    let unit = "nats per supervised token; evaluation: dashed";
    let of_sources = json!({"title": "Loss by source", "unit": unit, "keys": of_sources, "scaled": true});
    let is_measure = |key: &str| {
        key.starts_with("eval_") && !OF_THE_EVALUATION.contains(&key) && !key.starts_with(EVAL_LOSS_OF_SOURCE)
    };
    let measures = keys.iter().filter(|key| is_measure(key));
    let measures = measures.map(|key| {
        json!({"title": key, "unit": "of the evaluation rows", "keys": [{"key": key, "dashed": false}], "scaled": false})
    });
    fixed
        .chain([of_sources])
        .chain(measures)
        .filter(|chart| chart["keys"].as_array().is_some_and(|keys| !keys.is_empty()))
        .collect()
}

/// The numbers of a run; `tokens` are the supervised tokens up to a step.
fn series(run: &Run) -> Value {
    let mut series: serde_json::Map<String, Value> =
        run.keys().map(|key| (key.to_string(), json!(run.thinned(key)))).collect();
    let tokens = run.cumulative("supervised_tokens");
    if !tokens.is_empty() {
        series.insert("tokens".into(), json!(tokens));
    }
    json!({"name": run.name, "series": series})
}

fn swatch(index: usize) -> String {
    format!("<span class=\"swatch c{}\"></span>", index % COLOURS)
}

fn table(out: &mut String, runs: &[Run]) {
    let shown: Vec<&Column> = COLUMNS.iter().filter(|(_, value)| runs.iter().any(|run| value(run).is_some())).collect();
    out.push_str("<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Runs\"><table>\n<tr><th scope=\"col\">run</th>");
    for (head, _) in &shown {
        let _ = write!(out, "<th scope=\"col\">{head}</th>");
    }
    out.push_str("</tr>\n");
    for (index, run) in runs.iter().enumerate() {
        let name = escaped(&run.name);
        let _ = write!(
            out,
            "<tr><th scope=\"row\"><label><input type=\"checkbox\" id=\"run{index}\" checked>{}{name}</label></th>",
            swatch(index)
        );
        for (_, value) in &shown {
            let _ = write!(out, "<td>{}</td>", value(run).map_or("–".to_string(), number));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn captions(out: &mut String, index: usize, run: &Run, pictures: &Pictures, most: usize) {
    let name = escaped(&run.name);
    let _ = writeln!(out, "<h2>{}Captions of {name}</h2>", swatch(index));
    for sets in run.captions_of_same_pictures() {
        captions_table(out, &name, &sets, pictures, most);
    }
}

fn captions_table(out: &mut String, name: &str, sets: &[&CaptionSet], pictures: &Pictures, most: usize) {
    let _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Captions of {name}\"><table class=\"words\">\n\
         <tr><th scope=\"col\">picture</th>"
    );
    for set in sets {
        let _ = write!(out, "<th scope=\"col\">{}</th>", set.label);
    }
    out.push_str("<th scope=\"col\">reference</th></tr>\n");
    let newest = sets.last().map(|set| set.captions.as_slice()).unwrap_or_default();
    for picture in newest.iter().take(most) {
        let id = escaped(&picture.id);
        let shown = pictures.data_uri(picture).map(|uri| format!("<img alt=\"Picture {id}\" src=\"{uri}\">"));
        let _ = write!(out, "<tr><th scope=\"row\">{}{id}</th>", shown.unwrap_or_default());
        for set in sets {
            let said = set.captions.iter().find(|caption| caption.id == picture.id).and_then(|c| c.caption.as_deref());
            let same = said.is_some_and(|said| picture.references.iter().any(|reference| reference == said));
            let mark =
                if same { "<span class=\"same\" role=\"img\" aria-label=\"as the reference\">✓</span> " } else { "" };
            let _ = write!(out, "<td>{mark}{}</td>", escaped(said.unwrap_or("–")));
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
            format!("{{\"step\":{step},\"loss\":{loss},\"grad_norm\":1,\"learning_rate\":0.001,\"peak_rss_mb\":100,\"supervised_tokens\":7}}\n")
        });
        let evaluation = "{\"step\":49,\"eval_loss\":0.3,\"eval_runtime\":2,\"eval_cider\":0.5}\n".to_string();
        std::fs::write(folder.path().join("metrics.jsonl"), lines.chain([evaluation]).collect::<String>())
            .expect("written");
        let caption = "{\"id\":\"1\",\"caption\":\"<b>\",\"references\":[\"a </script> cat\"]}\n";
        std::fs::write(folder.path().join("captions.jsonl"), caption).expect("written");
        let read = || Run::read(folder.path()).expect("read");
        let page = page(&[read(), read()], &[Pictures::none(), Pictures::none()], 4);
        let data = page.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>")).expect("data").0;
        let data: Value = serde_json::from_str(data).expect("JSON");
        let titles: Vec<&str> =
            data["charts"].as_array().expect("charts").iter().filter_map(|chart| chart["title"].as_str()).collect();
        assert_eq!(titles, ["Loss", "Gradient norm", "Learning rate", "Peak memory", "eval_cider"]);
        assert_eq!(
            data["charts"][0]["keys"],
            json!([{"key": "loss", "dashed": false}, {"key": "eval_loss", "dashed": true}])
        );
        assert_eq!(data["runs"][1]["series"]["tokens"][48], json!([49.0, 343.0]));
        assert!(["http", "src=", "href=", "<b>1", "NaN"].iter().all(|word| !page.contains(word)), "{page}");
        assert!(page.contains("&lt;b&gt;") && page.contains("prefers-color-scheme: dark"));
    }
}
