//! One Parquet file, written under a temporary name and published whole.

use super::encoder::{EncodedRowGroup, Layout};
use super::{ShardFile, ShardMetadata, Split};
use base::files::{AtomicFile, HashingWriter};
use base::{Error, Result};
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use std::path::{Path, PathBuf};

/// A shard being written. Dropped without [`Self::finish`], it leaves no file under the final name.
pub struct ShardWriter {
    path: PathBuf,
    split: Split,
    writer: SerializedFileWriter<HashingWriter<AtomicFile>>,
    rows: usize,
}

impl ShardWriter {
    /// Starts file number `shard` of a split in `dir`.
    pub fn create(dir: &Path, split: Split, shard: usize, metadata: &ShardMetadata) -> Result<Self> {
        let path = dir.join(split.file_name(shard));
        let layout = Layout::new(metadata)?;
        let file = HashingWriter::new(AtomicFile::create(&path)?);
        let writer =
            SerializedFileWriter::new(file, layout.parquet_schema, layout.properties).map_err(write_error(&path))?;
        Ok(Self { path, split, writer, rows: 0 })
    }

    /// Appends a row group made with the same metadata.
    pub fn append(&mut self, row_group: EncodedRowGroup) -> Result<()> {
        let append = || {
            let mut writer = self.writer.next_row_group()?;
            for column in row_group.columns {
                column.append_to_row_group(&mut writer)?;
            }
            writer.close()
        };
        append().map_err(write_error(&self.path))?;
        self.rows += row_group.rows;
        Ok(())
    }

    /// Writes the footer, puts the file on disk and under its name.
    pub fn finish(self) -> Result<ShardFile> {
        let Self { path, split, writer, rows } = self;
        let (file, sha256, bytes) = writer.into_inner().map_err(write_error(&path))?.finish();
        file.commit()?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(ShardFile { file, split, rows, bytes, sha256 })
    }
}

fn write_error(path: &Path) -> impl FnOnce(ParquetError) -> Error + use<> {
    let path = path.to_path_buf();
    move |error| match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::Io { path, source: *source },
            Err(source) => Error::io(&path)(std::io::Error::other(source)),
        },
        other => Error::io(&path)(std::io::Error::other(other)),
    }
}
