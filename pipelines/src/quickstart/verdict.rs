//! Captions beside the truth.

use anyhow::{Context, Result, ensure};
use base::Error;
use chat::dataset::{self, Questions, Source};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::path::Path;

/// Pictures that are shown one by one.
const SHOWN: usize = 12;

/// A line of what `infer caption` writes, as far as it is used here.
#[derive(Deserialize)]
struct Line {
    /// Number of its row in the dataset: ids need not be distinct.
    index: usize,
    caption: Option<String>,
    error: Option<String>,
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
    pub fn read(captions: &Path, folder: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(captions).map_err(Error::io(captions))?;
        let mut found = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line: Line =
                serde_json::from_str(line).with_context(|| format!("{}:{}", captions.display(), index + 1))?;
            let said = line.caption.or(line.error.map(|cause| format!("({cause})")));
            found.insert(line.index, said.unwrap_or_default());
        }
        let records = dataset::read_all(&Source::find(folder, None)?, &Questions::default())?;
        let pairs = records.into_iter().enumerate().map(|(number, (record, _))| {
            let record =
                record.map_err(|(_, error)| error).with_context(|| format!("{}: row {number}", folder.display()))?;
            let caption = found.remove(&number);
            let found = caption
                .with_context(|| format!("{}: no line for row {number} (id {:?})", captions.display(), record.id))?;
            let answer = record.first_question().and_then(|(_, _, answer)| answer);
            Ok(Pair { image: record.images.join(", "), found, truth: answer.unwrap_or_default().to_owned() })
        });
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        ensure!(!pairs.is_empty(), "{}: no rows", folder.display());
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
    use base::json;

    #[test]
    fn captions_are_compared_exactly() {
        let folder = tempfile::tempdir().expect("a folder");
        let turn = |from: &str, value: &str| serde_json::json!({"from": from, "value": value});
        let row = |id: u64, image: &str, truth: &str| serde_json::json!({"id": id, "image": image, "conversations": [turn("human", "?"), turn("gpt", truth)]});
        // Two rows of one id, a number: each has its own line.
        let rows = serde_json::json!([row(7, "0.png", "a circle"), row(7, "1.png", "a square")]);
        json::write(&dataset::chat_file(folder.path()), &rows).expect("written");
        let captions = folder.path().join("captions.jsonl");
        std::fs::write(&captions, "{\"index\":1,\"id\":\"7\",\"caption\":\"a circle\"}\n{\"index\":0,\"id\":\"7\",\"caption\":\"a circle\"}\n")
            .expect("written");
        let verdict = Verdict::read(&captions, folder.path()).expect("read");
        assert_eq!(verdict.share(), 0.5);
        let text = verdict.to_string();
        assert!(text.contains("✗ a square") && text.contains("1 of 2 held-out captions (50.0 %)"), "{text}");
        std::fs::write(&captions, "").expect("written");
        assert!(
            Verdict::read(&captions, folder.path()).expect_err("refused").to_string().contains("no line for row 0")
        );
    }
}
