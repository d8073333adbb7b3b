//! Findings of a first pass over all rows, each printed once before the work begins.

use super::SourceRow;
use super::keys::{self, Meaning};
use super::layouts;
use super::object::RowParser;
use super::record::{entry, images_of, label};
use base::{counted, files};
use std::collections::{BTreeMap, HashSet};

/// Keys that are named one by one.
const NAMED_KEYS: usize = 10;
/// Keys that are remembered: enough for every real dataset, and a bound for the others.
const MAX_KEYS: usize = 1000;

/// Peculiarities of a dataset that change no row's fate, and that its owner should know of.
#[derive(Default)]
pub struct Survey {
    /// 128 bits of SHA-256 an id: memory is small whatever the ids are.
    ids: HashSet<u128>,
    repeated_ids: usize,
    without_id: usize,
    constants: usize,
    unknown_keys: BTreeMap<String, usize>,
}

impl Survey {
    /// Takes note of a row. Returns the names of its images, as far as they can be read.
    pub fn add(&mut self, row: &SourceRow) -> Vec<String> {
        let parser = RowParser(row);
        self.constants += row.constants;
        let Ok(object) = parser.object() else { return Vec::new() };
        match entry(parser, &object, keys::ID).map(|entry| entry.map(|(_, value)| label(parser, value))) {
            Ok(Some(Ok(Some(id)))) => self.repeated_ids += usize::from(!self.ids.insert(hash(&id))),
            // Lists of captions have no ids as a rule.
            Ok(None | Some(Ok(None))) => self.without_id += usize::from(!layouts::is_captioned(&object)),
            // Such a row is refused when its turn comes.
            Ok(Some(Err(_))) | Err(_) => {}
        }
        let images = images_of(parser, &object).unwrap_or_default();
        for (key, value) in keys::others(&object) {
            if keys::meaning(key, value, images.len()) == Meaning::Unknown {
                let full = self.unknown_keys.len() >= MAX_KEYS;
                match self.unknown_keys.get_mut(key) {
                    Some(rows) => *rows += 1,
                    None if !full => drop(self.unknown_keys.insert(key.to_owned(), 1)),
                    None => {}
                }
            }
        }
        images
    }

    /// A line for each kind of peculiarity.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = |count: usize, text: String| {
            if count > 0 {
                lines.push(text);
            }
        };
        let Self { repeated_ids, without_id, constants, .. } = self;
        line(
            *repeated_ids,
            format!("rows with the id of an earlier row: {repeated_ids}; all are kept (an id is a label)"),
        );
        line(*without_id, format!("rows without an id: {without_id}; each is called \"row N\" by its number"));
        line(*constants, format!("NaN or Infinity read as null, a missing value: {}", counted(*constants, "time")));
        line(self.unknown_keys.len(), format!("keys of rows that are not read: {}", self.named_keys()));
        lines
    }

    fn named_keys(&self) -> String {
        let named = self.unknown_keys.iter().take(NAMED_KEYS).map(|(key, rows)| format!("{key:?} (rows: {rows})"));
        let more = self.unknown_keys.len().saturating_sub(NAMED_KEYS);
        let more = (more > 0).then(|| format!("{more} more"));
        named.chain(more).collect::<Vec<_>>().join(", ")
    }
}

fn hash(id: &str) -> u128 {
    let hash = files::sha256(id.as_bytes());
    u128::from_le_bytes(std::array::from_fn(|index| hash[index]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::record::tests::row;

    #[test]
    fn a_survey_counts_what_is_peculiar() {
        let mut survey = Survey::default();
        let rows = [
            r#"{"id": "a", "images": ["a.jpg", "b.jpg"], "source": "coco", "blip": "x"}"#,
            r#"{"id": "a", "image": "a.jpg", "blip": "y", "score2": NaN}"#,
            r#"{"image": 3, "blip": 1}"#,
            "17",
        ];
        let images: Vec<Vec<String>> = rows.iter().map(|json| survey.add(&row(json))).collect();
        assert_eq!(images, [vec!["a.jpg", "b.jpg"], vec!["a.jpg"], vec![], vec![]]);
        let lines = survey.warnings();
        assert_eq!(lines.len(), 4, "{lines:?}");
        for (line, begin) in lines.iter().zip([
            "rows with the id of an earlier row: 1;",
            "rows without an id: 1;",
            "NaN or Infinity",
            "keys of",
        ]) {
            assert!(line.starts_with(begin), "{line}");
        }
        assert!(lines[3].ends_with("\"blip\" (rows: 3)"), "{}", lines[3]);
        assert!(Survey::default().warnings().is_empty());
    }
}
