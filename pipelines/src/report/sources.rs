//! Runs on several sources of data: a table of the rows and tokens of each. Their losses are a chart like others.

use super::runs::{EVAL_LOSS_OF_SOURCE, LOSS_OF_SOURCE, Run};
use html::{escaped, number};
use std::fmt::Write;

/// What each source has given so far.
pub fn table(out: &mut String, runs: &[Run]) {
    if runs.iter().all(|run| run.sources().is_empty()) {
        return;
    }
    out.push_str(
        "<h2>Sources</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Sources\"><table>\n\
         <tr><th scope=\"col\">run</th><th scope=\"col\">source</th>",
    );
    out.push_str(
        "<th scope=\"col\">rows</th><th scope=\"col\">supervised tokens</th><th scope=\"col\">last loss</th>\
         <th scope=\"col\">last evaluation loss</th></tr>\n",
    );
    for run in runs {
        for source in run.sources() {
            let total = |key| run.of_source(&source, key).iter().map(|(_, value)| value).sum::<f64>();
            let last = |prefix: &str| run.last(&format!("{prefix}{source}")).map_or("–".to_string(), number);
            let (loss, eval_loss) = (last(LOSS_OF_SOURCE), last(EVAL_LOSS_OF_SOURCE));
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{loss}</td><td>{eval_loss}</td></tr>",
                escaped(&run.name),
                escaped(&source),
                number(total("samples")),
                number(total("supervised_tokens"))
            );
        }
    }
    out.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_a_series_and_a_row() {
        let folder = tempfile::tempdir().expect("a folder");
        let of = |loss: f64, samples: u64| serde_json::json!({"loss": loss, "supervised_tokens": 10 * samples, "samples": samples});
        let lines = [
            serde_json::json!({"step": 1, "loss": 2.0, "sources": {"chat": of(1.0, 3), "cap<tions": of(3.0, 1)}}),
            serde_json::json!({"step": 2, "loss": 1.5, "sources": {"chat": of(0.5, 4)}}),
            serde_json::json!({"step": 2, "eval_loss": 1.5, "eval_sources": {"chat": of(0.25, 2), "only <held> out": of(4.5, 1)}}),
        ];
        let text = lines.map(|line| format!("{line}\n")).concat();
        std::fs::write(folder.path().join("metrics.jsonl"), text).expect("written");
        let runs = [Run::read(folder.path()).expect("read")];
        assert_eq!(runs[0].sources(), ["chat", "cap<tions", "only <held> out"]);
        assert_eq!(runs[0].series("loss_chat"), [(1.0, 1.0), (2.0, 0.5)]);
        assert_eq!(runs[0].series("eval_loss_chat"), [(2.0, 0.25)]);
        let mut out = String::new();
        table(&mut out, &runs);
        assert!(out.contains("<td>chat</td><td>7</td><td>70</td><td>0.5</td><td>0.25</td>"), "{out}");
        assert!(out.contains("<td>cap&lt;tions</td><td>1</td><td>10</td><td>3</td><td>–</td>"), "{out}");
        assert!(out.contains("<td>only &lt;held&gt; out</td><td>0</td><td>0</td><td>–</td><td>4.5</td>"), "{out}");
    }

    #[test]
    fn a_run_on_one_folder_has_none() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":2.0}\n").expect("written");
        let runs = [Run::read(folder.path()).expect("read")];
        let mut out = String::new();
        table(&mut out, &runs);
        assert!(out.is_empty());
    }
}
