//! Parquet shards: the one place that opens Parquet, that of datasets included ([`TABLES`]). One row is one sample; single rows are read at random.
//!
//! A folder of shards holds `index.json` ([`ShardIndex`]) and the files it names. pyarrow, polars and duckdb open the
//! files; in Python a row becomes transformers' `pixel_values`, bit for bit, with
//!
//! ```python
//! import numpy as np, pyarrow as pa, pyarrow.parquet as pq
//! shard = pq.read_table("shard-00000.parquet")
//! about, side = shard.schema.metadata, int(shard.schema.metadata[b"crop_size"])
//! shape = (1 + len(shard["more_images"][row]), 3, side, side)            # row: 0 ≤ row < shard.num_rows, with an image
//! codes = shard["pixel_values"][row].as_buffer()
//! if about[b"pixels"] == b"predicted":
//!     codes = pa.decompress(codes, np.prod(shape), "zstd")
//!     codes = np.frombuffer(codes, np.uint8).reshape(shape).cumsum(2, np.uint8).cumsum(3, np.uint8)  # modulo 256
//!     codes[:, 0] += codes[:, 1]; codes[:, 2] += codes[:, 1]             # R − G and B − G were stored
//! table = np.frombuffer(bytes.fromhex(about[b"code_to_f32"].decode()), "<f4").reshape(3, 256)
//! pixel_values = table[np.arange(3)[:, None, None], np.frombuffer(codes, np.uint8).reshape(shape)]  # f32
//! ```
//!
//! The other formats hold the normalised values themselves, or the image files' own bytes: [`PixelFormat`].

mod card;
mod checksum;
mod columns;
mod encoder;
pub mod entropy;
mod file;
mod index;
mod lengths;
mod metadata;
mod pixels;
mod reader;
mod schema;
mod tables;
mod texts;
mod writer;

pub use base::Row;
pub use card::CARD_FILE;
pub use encoder::{EncodedRowGroup, RowGroupEncoder, Sample, SampleImage};
pub use index::{Counts, INDEX_FILE, PLAN_FILE, ShardFile, ShardIndex, validation_share};
pub use lengths::RowLength;
pub use metadata::{CodeTable, FORMAT_VERSION, ShardMetadata};
pub use pixels::{PixelFormat, predict};
pub use reader::ShardSet;
pub use tables::TABLES;
pub use texts::{ImageText, RowText, Texts};
pub use writer::ShardWriter;

use serde::{Deserialize, Serialize};

/// Which part of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows held out by `--validation-fraction`.
    Validation,
}

impl Split {
    /// Both, in the order in which they are written and counted.
    pub const ALL: [Self; 2] = [Self::Train, Self::Validation];

    /// Its name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }

    /// Name of this split's file number `shard`.
    pub fn file_name(self, shard: usize) -> String {
        format!("{}-{shard:05}.parquet", self.file_stem())
    }

    /// What the names of this split's files begin with.
    fn file_stem(self) -> &'static str {
        match self {
            Self::Train => "shard",
            Self::Validation => "validation",
        }
    }
}

#[cfg(test)]
mod tests;
