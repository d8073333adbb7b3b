//! The rows of a run: the shards of one folder, or of several with weights.
//!
//! A weight is the number of passes over a source in an epoch: with `a:1.0,b:0.3` an epoch has every row of a, and three tenths
//! of b's rows, others in each epoch. The order is [`crate::order::MixedOrder`]. Rows are numbered over all sources, one source
//! after the other, whatever the weights.

use crate::order::SourceRows;
use base::{Error, Result, files};
use cli::weighted::{WeightedFolder, WeightedFolders};
use shards::{Row, ShardMetadata, ShardSet, Split};
use std::collections::BTreeSet;

/// All sources of a split.
pub struct Mixture {
    sources: Vec<Source>,
    rows: Vec<SourceRows>,
}

/// A folder of shards.
pub struct Source {
    /// Its name in metrics: the folder's, or the whole path where another one has the same name.
    pub name: String,
    /// Where it is, and its weight.
    pub folder: WeightedFolder,
    /// Its rows.
    pub shards: ShardSet,
    /// Number of the first one.
    first_row: usize,
}

impl Mixture {
    /// Opens a split of every folder. Weights are those of training: of other splits every row counts once.
    ///
    /// # Errors
    /// A folder that is none of shards; folders made with different processors; no rows to train on, or so small a weight that
    /// an epoch has none.
    pub fn open(folders: &WeightedFolders, split: Split) -> Result<Self> {
        let names: Vec<String> = folders.folders().iter().map(folder_name).collect();
        let are_unique = names.iter().collect::<BTreeSet<_>>().len() == names.len();
        let mut mixture = Self { sources: Vec::new(), rows: Vec::new() };
        for (folder, name) in folders.folders().iter().zip(names) {
            let shards = ShardSet::open(&folder.dir, split)?;
            let weight = if split == Split::Train { folder.weight } else { 1.0 };
            let rows = SourceRows::weighted(shards.len(), weight);
            if split == Split::Train && rows.per_epoch == 0 {
                return Err(no_rows(folder, rows.rows));
            }
            if let Some(first) = mixture.sources.first() {
                let first_dir = first.folder.dir.display();
                shards.metadata().check_same(folder.dir.display(), first.shards.metadata(), first_dir)?;
            }
            let name = if are_unique { name } else { folder.dir.display().to_string() };
            let first_row = mixture.rows.iter().map(|source| source.rows).sum();
            mixture.sources.push(Source { name, folder: folder.clone(), shards, first_row });
            mixture.rows.push(rows);
        }
        Ok(mixture)
    }

    /// The sources in their order.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Rows of each source.
    pub fn rows(&self) -> &[SourceRows] {
        &self.rows
    }

    /// Rows of an epoch.
    pub fn rows_per_epoch(&self) -> usize {
        self.rows.iter().map(|source| source.per_epoch).sum()
    }

    /// Rows of all sources.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.iter().map(|source| source.rows).sum()
    }

    /// What the shards were made with; the processors are the same for all sources.
    pub fn metadata(&self) -> Option<&ShardMetadata> {
        self.sources.first().map(|source| source.shards.metadata())
    }

    /// Identifies the rows and their numbers; of a single folder, its shards' fingerprint.
    pub fn fingerprint(&self) -> String {
        match self.sources.as_slice() {
            [only] => only.shards.fingerprint(),
            sources => joined(sources.iter().map(|source| source.shards.fingerprint())),
        }
    }

    /// Identifies what is trained on: the rows and the weights.
    pub fn identity(&self) -> String {
        match self.sources.as_slice() {
            [Source { folder: WeightedFolder { weight: 1.0, .. }, shards, .. }] => shards.fingerprint(),
            sources => joined(
                sources
                    .iter()
                    .map(|Source { folder, shards, .. }| format!("{} {}", shards.fingerprint(), folder.weight)),
            ),
        }
    }

    /// The number of a row of a source.
    pub fn number(&self, (source, row): (usize, usize)) -> usize {
        self.sources[source].first_row + row
    }

    /// A row by its number, read alone, decoded.
    ///
    /// # Errors
    /// As [`ShardSet::read_row`].
    pub fn read_row(&self, number: usize) -> Result<Row> {
        let (source, row) = self.place(number)?;
        source.shards.read_row(row)
    }

    /// The same with pixel values appended to `pixel_values`.
    ///
    /// # Errors
    /// As [`ShardSet::read_row_into`].
    pub fn read_row_into(&self, number: usize, pixel_values: &mut Vec<f32>) -> Result<Row> {
        let (source, row) = self.place(number)?;
        source.shards.read_row_into(row, pixel_values)
    }

    fn place(&self, number: usize) -> Result<(&Source, usize)> {
        let source = self.sources.iter().rfind(|source| source.first_row <= number);
        let place = source.map(|source| (source, number - source.first_row));
        place.ok_or_else(|| Error::invalid("data_path", format!("row {number}"), "a folder of shards", "give one"))
    }

    /// Images of every row.
    ///
    /// # Errors
    /// A damaged shard.
    pub fn images_per_row(&self) -> Result<Vec<u32>> {
        let of_sources = self.sources.iter().map(|source| source.shards.images_per_row());
        Ok(of_sources.collect::<Result<Vec<_>>>()?.concat())
    }
}

fn folder_name(folder: &WeightedFolder) -> String {
    folder.dir.file_name().unwrap_or(folder.dir.as_os_str()).to_string_lossy().into_owned()
}

fn joined(lines: impl Iterator<Item = String>) -> String {
    files::sha256_hex(lines.collect::<Vec<_>>().join("\n").as_bytes())
}

fn no_rows(folder: &WeightedFolder, rows: usize) -> Error {
    let place = folder.dir.display();
    if rows == 0 {
        return Error::invalid(place, "no rows to train on", "at least one", "see its rejected.jsonl");
    }
    let found = format!("weight {} of {rows} rows, which is no row", folder.weight);
    let remedy = format!("give a weight of at least {}, or leave the folder out", 1.0 / rows as f64);
    Error::invalid(place, found, "at least one row in an epoch", remedy)
}
