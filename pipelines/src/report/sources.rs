//! Runs on several sources of data: a table of the rows and tokens of each. Their losses are a chart like others.

use super::runs::Run;
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
        "<th scope=\"col\">rows</th><th scope=\"col\">supervised tokens</th><th scope=\"col\">last loss</th></tr>\n",
    );
    for run in runs {
        for source in run.sources() {
            let total = |key| run.of_source(&source, key).iter().map(|(_, value)| value).sum::<f64>();
            let last = run.of_source(&source, "loss").last().map_or("–".to_string(), |(_, loss)| number(*loss));
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{last}</td></tr>",
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
        ];
        let text = lines.map(|line| format!("{line}\n")).concat();
        std::fs::write(folder.path().join("metrics.jsonl"), text).expect("written");
        let runs = [Run::read(folder.path()).expect("read")];
        assert_eq!(runs[0].sources(), ["chat", "cap<tions"]);
        assert_eq!(runs[0].series("loss_chat"), [(1.0, 1.0), (2.0, 0.5)]);
        let mut out = String::new();
        table(&mut out, &runs);
        assert!(out.contains("<td>chat</td><td>7</td><td>70</td><td>0.5</td>"), "{out}");
        assert!(out.contains("<td>cap&lt;tions</td><td>1</td><td>10</td><td>3</td>"), "{out}");
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
