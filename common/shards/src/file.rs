//! An open Parquet file that threads read at once.

use super::{ShardFile, ShardMetadata};
use arrow::array::RecordBatch;
use base::{Error, Result};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::{ChunkReader, Length};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Positioned reads only: threads do not move each other's cursor.
#[derive(Clone)]
struct SharedFile {
    file: Arc<File>,
    bytes: u64,
}

struct PositionedReader {
    file: Arc<File>,
    position: u64,
}

impl Read for PositionedReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for SharedFile {
    type T = PositionedReader;

    fn get_read(&self, start: u64) -> Result<PositionedReader, ParquetError> {
        Ok(PositionedReader { file: self.file.clone(), position: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of {}", self.bytes)));
        }
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, start)?;
        Ok(buffer.into())
    }
}

/// One shard with its footer and page index in memory.
pub(super) struct OpenFile {
    path: PathBuf,
    file: SharedFile,
    metadata: ArrowReaderMetadata,
    /// First row of every row group, and the number of rows.
    row_group_starts: Vec<usize>,
}

impl OpenFile {
    /// Opens a file of the index and compares its metadata with the index.
    pub(super) fn open(dir: &Path, shard: &ShardFile, expected: &ShardMetadata) -> Result<Self> {
        let path = dir.join(&shard.file);
        let file = File::open(&path).map_err(shard.unreadable(dir))?;
        let bytes = file.metadata().map_err(Error::io(&path))?.len();
        if bytes != shard.bytes {
            let remedy = "copy the file again, or delete it and run preprocess shards again";
            return Err(Error::invalid(path.display(), format!("{bytes} bytes"), shard.bytes, remedy));
        }
        let file = SharedFile { file: Arc::new(file), bytes };
        // The offset index is what single rows are found by; there are no statistics to read.
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Required);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(read_error(&path.display().to_string()))?;
        let mut row_group_starts = vec![0];
        for row_group in metadata.metadata().row_groups() {
            let start = row_group_starts.last().copied().unwrap_or_default();
            row_group_starts.push(start + row_group.num_rows() as usize);
        }
        let open = Self { path, file, metadata, row_group_starts };
        open.check(shard, expected)?;
        Ok(open)
    }

    fn check(&self, shard: &ShardFile, expected: &ShardMetadata) -> Result<()> {
        let remedy = "keep only files of one preprocess run in the folder";
        let rows = self.row_group_starts.last().copied().unwrap_or_default();
        if rows != shard.rows {
            return Err(Error::invalid(self.path.display(), format!("{rows} rows"), shard.rows, remedy));
        }
        let found = self.metadata.metadata().file_metadata().key_value_metadata();
        for pair in expected.key_values() {
            let value = found.into_iter().flatten().find(|found| found.key == pair.key).map(|found| &found.value);
            if value != Some(&pair.value) {
                let place = format!("{}: {}", self.path.display(), pair.key);
                return Err(Error::invalid(place, format!("{value:?}"), format!("{:?}", pair.value), remedy));
            }
        }
        Ok(())
    }

    /// Row group, and row in it, of a row of the file.
    fn locate(&self, row: usize) -> (usize, usize) {
        let row_group = self.row_group_starts.partition_point(|&start| start <= row) - 1;
        (row_group, row - self.row_group_starts[row_group])
    }

    /// Where a row is, for messages.
    pub(super) fn place(&self, row: usize) -> String {
        let (row_group, row) = self.locate(row);
        format!("{}: row group {row_group}, row {row}", self.path.display())
    }

    /// Some columns of one row, read alone through the page index.
    pub(super) fn read_row(&self, row: usize, columns: &[&str]) -> Result<RecordBatch> {
        let (row_group, row_in_group) = self.locate(row);
        let selection = RowSelection::from(vec![RowSelector::skip(row_in_group), RowSelector::select(1)]);
        let error = || read_error(&self.place(row));
        let builder = self.builder(columns).with_row_groups(vec![row_group]).with_row_selection(selection);
        let batch = builder.with_batch_size(1).build().map_err(error())?.next();
        match batch {
            Some(Ok(batch)) if batch.num_rows() == 1 => Ok(batch),
            Some(Err(source)) => Err(error()(source.into())),
            _ => Err(error()(ParquetError::General("no row".to_owned()))),
        }
    }

    /// Some columns of all rows, in order, `batch_size` rows at a time.
    pub(super) fn read_all(&self, columns: &[&str], batch_size: usize) -> Result<ParquetRecordBatchReader> {
        let reader = self.builder(columns).with_batch_size(batch_size).build();
        reader.map_err(read_error(&self.path.display().to_string()))
    }

    fn builder(&self, columns: &[&str]) -> ParquetRecordBatchReaderBuilder<SharedFile> {
        let mask = ProjectionMask::columns(self.metadata.parquet_schema(), columns.iter().copied());
        ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
            .with_projection(mask)
    }
}

pub(super) fn read_error(place: &str) -> impl FnOnce(ParquetError) -> Error + use<> {
    let place = place.to_owned();
    move |error| {
        let remedy = "run preprocess verify on the folder; copy the damaged file or make it again";
        Error::invalid(place, error, "a readable shard", remedy)
    }
}
