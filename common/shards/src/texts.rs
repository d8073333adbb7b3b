//! All columns of a row except pixels, to inspect a dataset without decoding it.

use super::columns::Columns;
use super::file::read_error;
use super::{ShardSet, schema};
use arrow::array::RecordBatch;
use base::Result;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

const TEXT_COLUMNS: [&str; 8] = [
    schema::ID,
    schema::IMAGE,
    schema::IMAGE_SHA256,
    schema::INPUT_IDS,
    schema::LABELS,
    schema::WIDTH,
    schema::HEIGHT,
    schema::MORE_IMAGES,
];

const BATCH_ROWS: usize = 1024;

/// An image of a row, without its pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageText {
    /// File name.
    pub name: String,
    /// SHA-256 of the source file.
    pub sha256: String,
    /// Width of the source, pixels.
    pub width: u32,
    /// Height of the source, pixels.
    pub height: u32,
}

/// A row without its pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowText {
    /// `id` of chat.json.
    pub id: String,
    /// Its images, in the order of their `<image>` tokens.
    pub images: Vec<ImageText>,
    /// Token ids, each image as one `<image>`.
    pub input_ids: Vec<i32>,
    /// Labels, [`base::IGNORE_INDEX`] where unsupervised.
    pub labels: Vec<i32>,
}

impl ShardSet {
    /// The rows of the split in order, without pixels; the pixels are not read.
    pub fn texts(&self) -> Texts<'_> {
        Texts { set: self, shard: 0, reader: None, batch: None, row: 0 }
    }
}

/// Iterator of [`ShardSet::texts`].
pub struct Texts<'a> {
    set: &'a ShardSet,
    shard: usize,
    reader: Option<ParquetRecordBatchReader>,
    batch: Option<RecordBatch>,
    row: usize,
}

impl Texts<'_> {
    /// Opens the next shard; `None` after the last.
    fn open_next(&mut self) -> Option<Result<()>> {
        let file = self.set.file_at(self.shard)?;
        self.shard += 1;
        Some(file.and_then(|file| file.read_all(&TEXT_COLUMNS, BATCH_ROWS)).map(|reader| self.reader = Some(reader)))
    }

    fn place(&self) -> String {
        let file = self.set.files().nth(self.shard.saturating_sub(1));
        file.map(|file| self.set.dir.join(&file.file).display().to_string()).unwrap_or_default()
    }
}

impl Iterator for Texts<'_> {
    type Item = Result<RowText>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.row < batch.num_rows()) {
                let text = row_text(&Columns::new(batch, &self.place()), self.row);
                self.row += 1;
                return Some(text);
            }
            match self.reader.as_mut().and_then(Iterator::next) {
                Some(Ok(batch)) => (self.batch, self.row) = (Some(batch), 0),
                Some(Err(error)) => return Some(Err(read_error(&self.place())(error.into()))),
                None => {
                    if let Err(error) = self.open_next()? {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

fn row_text(columns: &Columns, row: usize) -> Result<RowText> {
    let more = columns.more_images(row)?;
    let mut images = Vec::new();
    if let Some(name) = columns.first(schema::IMAGE, row)? {
        let sha256 = columns.first(schema::IMAGE_SHA256, row)?.unwrap_or_default();
        let (width, height) = (columns.first_pixels(schema::WIDTH, row)?, columns.first_pixels(schema::HEIGHT, row)?);
        images.push(ImageText { name, sha256, width, height });
    }
    let names = more.texts(schema::IMAGE).into_iter().zip(more.texts(schema::IMAGE_SHA256));
    let sizes = more.pixels(schema::WIDTH).into_iter().zip(more.pixels(schema::HEIGHT));
    images.extend(names.zip(sizes).map(|((name, sha256), (width, height))| ImageText { name, sha256, width, height }));
    Ok(RowText {
        id: columns.id(row)?,
        images,
        input_ids: columns.ids(schema::INPUT_IDS, row)?,
        labels: columns.ids(schema::LABELS, row)?,
    })
}
