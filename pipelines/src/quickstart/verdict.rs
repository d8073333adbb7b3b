//! Captions of held-out pictures beside the expected ones, as `infer eval` has scored them.

use anyhow::{Context, Result};
use base::{Error, json};
use serde::Deserialize;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};

/// Pictures that are shown one by one.
const SHOWN: usize = 12;

/// A line of the scored answers.
#[derive(Debug, Deserialize)]
struct Scored {
    image: String,
    text: String,
    score: f64,
    expected: Vec<String>,
}

/// What `infer eval --metric exact` says of all of them.
#[derive(Debug, Deserialize)]
struct Scores {
    questions: usize,
    scores: Exact,
}

#[derive(Debug, Deserialize)]
struct Exact {
    exact_match: f64,
}

/// All held-out pictures.
#[derive(Debug)]
pub struct Verdict {
    shown: Vec<Scored>,
    scores: Scores,
}

impl Verdict {
    /// Reads the files beside the answers.
    ///
    /// # Errors
    /// Files that are not those of `infer eval --metric exact`.
    pub fn read(answers: &Path) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = answers.as_os_str().to_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        let path = beside(".scored.jsonl");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let lines = text.lines().take(SHOWN).enumerate().map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), number + 1))
        });
        Ok(Self { shown: lines.collect::<Result<_>>()?, scores: json::read(&beside(".scores.json"))? })
    }

    /// Captions that are exactly right ÷ held-out pictures.
    pub fn share(&self) -> f64 {
        self.scores.scores.exact_match
    }
}

impl Display for Verdict {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{:<12} {:<52} truth", "held out", "caption")?;
        for line in &self.shown {
            let truth = line.expected.first().map_or("", String::as_str);
            let truth = if line.score == 1.0 { "✓ the same".to_string() } else { format!("✗ {truth}") };
            writeln!(formatter, "{:<12} {:<52} {truth}", line.image, line.text)?;
        }
        let questions = self.scores.questions;
        write!(
            formatter,
            "exactly right: {:.0} of {questions} held-out captions ({:.1} %)",
            self.share() * questions as f64,
            100.0 * self.share()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_and_the_first_captions_are_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        let line = |image: &str, score: f64| {
            format!(
                "{{\"question_id\":\"7\",\"image\":\"{image}\",\"text\":\"a circle\",\"score\":{score},\"expected\":[\"a square\"]}}\n"
            )
        };
        write("a.jsonl.scored.jsonl", &(line("0.png", 1.0) + &line("1.png", 0.0)));
        write(
            "a.jsonl.scores.json",
            "{\"metric\":\"exact\",\"questions\":3,\"failed\":0,\"scores\":{\"exact_match\":0.333333333}}",
        );
        let verdict = Verdict::read(&folder.path().join("a.jsonl")).expect("read");
        let text = verdict.to_string();
        assert!(text.contains("✗ a square") && text.contains("1 of 3 held-out captions (33.3 %)"), "{text}");
        write("a.jsonl.scores.json", "{\"metric\":\"caption\",\"questions\":3,\"scores\":{\"bleu_4\":0.3}}");
        assert!(Verdict::read(&folder.path().join("a.jsonl")).is_err(), "another metric");
    }
}
