//! A dataset as polars frames, and the numbers that are computed from them.

use crate::shards::ledger::REJECTED_FILE;
use crate::verify::read_rejected;
use anyhow::Result;
use base::{IGNORE_INDEX, files};
use polars::prelude::*;
use shards::{RowText, ShardIndex, ShardSet, Split};
use std::path::Path;

/// Bars of a histogram.
const BARS: usize = 24;

/// Everything about a dataset but its pixels.
pub struct Dataset {
    /// `index.json`.
    pub index: ShardIndex,
    /// One line a row: `tokens`, `answer_tokens`, `images`, `caption` (hash of the supervised tokens).
    pub rows: DataFrame,
    /// One line an image: `sha256`, `width`, `height`, `pixels`.
    pub images: DataFrame,
    /// One line a rejected row: `row`, `cause`.
    pub rejected: DataFrame,
}

#[derive(Default)]
struct Columns {
    tokens: Vec<u32>,
    answer_tokens: Vec<u32>,
    image_counts: Vec<u32>,
    captions: Vec<String>,
    hashes: Vec<String>,
    widths: Vec<u32>,
    heights: Vec<u32>,
}

impl Columns {
    fn push(&mut self, row: RowText) {
        let answer: Vec<u8> =
            row.labels.iter().filter(|label| **label != IGNORE_INDEX).flat_map(|label| label.to_le_bytes()).collect();
        self.tokens.push(row.input_ids.len() as u32);
        self.answer_tokens.push((answer.len() / 4) as u32);
        self.image_counts.push(row.images.len() as u32);
        self.captions.push(files::sha256_hex(&answer));
        for image in row.images {
            self.hashes.push(image.sha256);
            self.widths.push(image.width);
            self.heights.push(image.height);
        }
    }
}

impl Dataset {
    /// Reads the texts of all rows and the rejected ones.
    pub fn read(dir: &Path) -> Result<Self> {
        let index = ShardIndex::read(dir)?;
        let mut columns = Columns::default();
        for split in Split::ALL {
            for row in ShardSet::open(dir, split)?.texts() {
                columns.push(row?);
            }
        }
        let rejected = read_rejected(&dir.join(REJECTED_FILE))?;
        let pixels: Vec<u64> =
            columns.widths.iter().zip(&columns.heights).map(|(&w, &h)| u64::from(w) * u64::from(h)).collect();
        Ok(Self {
            rows: frame(vec![
                Column::new("tokens".into(), columns.tokens),
                Column::new("answer_tokens".into(), columns.answer_tokens),
                Column::new("images".into(), columns.image_counts),
                Column::new("caption".into(), columns.captions),
            ])?,
            images: frame(vec![
                Column::new("sha256".into(), columns.hashes),
                Column::new("width".into(), columns.widths),
                Column::new("height".into(), columns.heights),
                Column::new("pixels".into(), pixels),
            ])?,
            rejected: frame(vec![
                Column::new("row".into(), rejected.iter().map(|row| row.row as u64).collect::<Vec<_>>()),
                Column::new("cause".into(), rejected.iter().map(|row| row.cause.name()).collect::<Vec<_>>()),
            ])?,
            index,
        })
    }

    /// Rejected rows by cause, most frequent first.
    pub fn causes(&self) -> Result<Vec<(String, usize)>> {
        let mut causes = group_sizes(&self.rejected, "cause", "row")?;
        causes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(causes)
    }

    /// Source sizes, most frequent first.
    pub fn source_sizes(&self, most: usize) -> Result<Vec<(String, usize)>> {
        let (widths, heights) = (self.images.column("width")?.u32()?, self.images.column("height")?.u32()?);
        let sizes: Vec<String> = widths
            .into_no_null_iter()
            .zip(heights.into_no_null_iter())
            .map(|(width, height)| format!("{width}×{height}"))
            .collect();
        let ones = vec![1u32; sizes.len()];
        let sizes = frame(vec![Column::new("size".into(), sizes), Column::new("one".into(), ones)])?;
        let mut groups = group_sizes(&sizes, "size", "one")?;
        groups.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        groups.truncate(most);
        Ok(groups)
    }

    /// Images, or captions, that occur more than once.
    pub fn duplicates(&self, of: Duplicates) -> Result<Repeated> {
        let groups = match of {
            Duplicates::Images => group_sizes(&self.images, "sha256", "width")?,
            Duplicates::Captions => group_sizes(&self.rows, "caption", "tokens")?,
        };
        let repeated = groups.iter().map(|group| group.1).filter(|count| *count > 1);
        Ok(repeated.fold(Repeated::default(), |sum, count| Repeated {
            distinct: sum.distinct + 1,
            occurrences: sum.occurrences + count,
            most: sum.most.max(count),
        }))
    }
}

/// A column whose repeated values are counted.
#[derive(Clone, Copy, Debug)]
pub enum Duplicates {
    /// Image files with the same hash.
    Images,
    /// Rows with the same supervised tokens.
    Captions,
}

/// Things that occur more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeated {
    /// Different things.
    pub distinct: usize,
    /// Their occurrences.
    pub occurrences: usize,
    /// Occurrences of the most frequent one.
    pub most: usize,
}

/// How a number is distributed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Smallest.
    pub min: u64,
    /// Half are at most this.
    pub median: f64,
    /// Average.
    pub mean: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// Largest.
    pub max: u64,
    /// First value and count of each bar; all are equally wide.
    pub bars: Vec<(u64, usize)>,
    /// Width of a bar.
    pub bar_width: u64,
}

impl Distribution {
    /// Of an unsigned column; `None` if it is empty.
    pub fn of(frame: &DataFrame, column: &str) -> Result<Option<Self>> {
        let column = frame.column(column)?.cast(&DataType::UInt64)?;
        let values = column.u64()?;
        let (Some(min), Some(max)) = (values.min(), values.max()) else { return Ok(None) };
        let quantile = |q| values.quantile(q, QuantileMethod::Nearest);
        let bar_width = ((max - min) / BARS as u64 + 1).max(1);
        let mut bars: Vec<(u64, usize)> = (0..=(max - min) / bar_width).map(|bar| (min + bar * bar_width, 0)).collect();
        for value in values.into_no_null_iter() {
            bars[((value - min) / bar_width) as usize].1 += 1;
        }
        Ok(Some(Self {
            min,
            median: quantile(0.5)?.unwrap_or_default(),
            mean: values.mean().unwrap_or_default(),
            p95: quantile(0.95)?.unwrap_or_default(),
            max,
            bars,
            bar_width,
        }))
    }
}

fn frame(columns: Vec<Column>) -> Result<DataFrame> {
    Ok(DataFrame::new_infer_height(columns)?)
}

/// Sizes of the groups of equal values in the text column `key`; `counted` is any other column.
fn group_sizes(frame: &DataFrame, key: &str, counted: &str) -> Result<Vec<(String, usize)>> {
    if frame.height() == 0 {
        return Ok(Vec::new());
    }
    let groups = frame.group_by([key])?.select([counted]).count()?;
    let sizes = groups.column(&format!("{counted}_count"))?.cast(&DataType::UInt64)?;
    let keys = groups.column(key)?.str()?;
    let sizes = sizes.u64()?;
    Ok(keys.iter().flatten().map(str::to_owned).zip(sizes.into_no_null_iter().map(|size| size as usize)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_counts_every_value_once() {
        let values: Vec<u32> = (0..1000).map(|i| 5 + i % 100).collect();
        let frame = frame(vec![Column::new("n".into(), values)]).expect("a frame");
        let distribution = Distribution::of(&frame, "n").expect("numbers").expect("not empty");
        assert_eq!((distribution.min, distribution.max), (5, 104));
        assert_eq!(distribution.bars.iter().map(|bar| bar.1).sum::<usize>(), 1000);
        assert!((distribution.mean - 54.5).abs() < 1e-9);
    }

    #[test]
    fn groups_are_counted() {
        let frame =
            frame(vec![Column::new("cause".into(), vec!["a", "b", "a"]), Column::new("row".into(), vec![1u32, 2, 3])]);
        let mut groups = group_sizes(&frame.expect("a frame"), "cause", "row").expect("groups");
        groups.sort();
        assert_eq!(groups, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    }
}
