//! Captions beside the truth.

use anyhow::{Context, Result, ensure};
use common::{Error, json};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::path::Path;

/// Pictures that are shown one by one.
const SHOWN: usize = 12;

/// A line of what `infer caption` writes, as far as it is used here.
#[derive(Deserialize)]
struct Line {
    id: String,
    caption: Option<String>,
    error: Option<String>,
}

/// A row of `chat.json`, as far as it is used here.
#[derive(Deserialize)]
struct Row {
    id: String,
    image: String,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

/// One picture's caption and the truth.
#[derive(Debug, PartialEq)]
struct Pair {
    image: String,
    found: String,
    truth: String,
}

/// All held-out pictures.
#[derive(Debug)]
pub struct Verdict {
    pairs: Vec<Pair>,
}

impl Verdict {
    /// Puts captions and the dataset's own answers side by side.
    ///
    /// # Errors
    /// Unreadable files, a picture without a line.
    pub fn read(captions: &Path, dataset: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(captions).map_err(Error::io(captions))?;
        let mut found = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line: Line =
                serde_json::from_str(line).with_context(|| format!("{}:{}", captions.display(), index + 1))?;
            let said = line.caption.or(line.error.map(|cause| format!("({cause})")));
            found.insert(line.id, said.unwrap_or_default());
        }
        let rows: Vec<Row> = json::read(&dataset.join("chat.json"))?;
        let pairs = rows.into_iter().map(|row| {
            let caption = found.remove(&row.id);
            let found = caption.with_context(|| format!("{}: no line for {}", captions.display(), row.id))?;
            let truth = row.conversations.into_iter().nth(1).map(|turn| turn.value).unwrap_or_default();
            Ok(Pair { image: row.image, found, truth })
        });
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        ensure!(!pairs.is_empty(), "{}: no rows", dataset.display());
        Ok(Self { pairs })
    }

    /// Captions that are exactly right ÷ held-out pictures.
    pub fn share(&self) -> f64 {
        self.right() as f64 / self.pairs.len() as f64
    }

    fn right(&self) -> usize {
        self.pairs.iter().filter(|pair| pair.found == pair.truth).count()
    }
}

impl Display for Verdict {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{:<12} {:<52} truth", "held out", "caption")?;
        for pair in self.pairs.iter().take(SHOWN) {
            writeln!(formatter, "{:<12} {:<52} {}", pair.image, pair.found, compared(pair))?;
        }
        write!(
            formatter,
            "exactly right: {} of {} held-out captions ({:.1} %)",
            self.right(),
            self.pairs.len(),
            100.0 * self.share()
        )
    }
}

fn compared(pair: &Pair) -> String {
    if pair.found == pair.truth { "✓ the same".to_string() } else { format!("✗ {}", pair.truth) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_compared_exactly() {
        let folder = tempfile::tempdir().expect("a folder");
        let turn = |value: &str| serde_json::json!({"from": "gpt", "value": value});
        let row = |id: &str, truth: &str| serde_json::json!({"id": id, "image": format!("{id}.png"), "conversations": [turn("?"), turn(truth)]});
        let rows = serde_json::json!([row("0", "a circle"), row("1", "a square")]);
        json::write(&folder.path().join("chat.json"), &rows).expect("written");
        let captions = folder.path().join("captions.jsonl");
        std::fs::write(&captions, "{\"id\":\"1\",\"caption\":\"a circle\"}\n{\"id\":\"0\",\"caption\":\"a circle\"}\n")
            .expect("written");
        let verdict = Verdict::read(&captions, folder.path()).expect("read");
        assert_eq!(verdict.share(), 0.5);
        let text = verdict.to_string();
        assert!(text.contains("✗ a square") && text.contains("1 of 2 held-out captions (50.0 %)"), "{text}");
        std::fs::write(&captions, "").expect("written");
        assert!(Verdict::read(&captions, folder.path()).expect_err("refused").to_string().contains("no line for 0"));
    }
}
