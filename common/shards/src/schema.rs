//! The columns, and how each is written.

use super::ShardMetadata;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::sync::Arc;

pub(super) const ID: &str = "id";
pub(super) const IMAGE: &str = "image";
pub(super) const IMAGE_SHA256: &str = "image_sha256";
pub(super) const INPUT_IDS: &str = "input_ids";
pub(super) const LABELS: &str = "labels";
pub(super) const PIXEL_VALUES: &str = "pixel_values";
pub(super) const WIDTH: &str = "width";
pub(super) const HEIGHT: &str = "height";
/// CRC-32 of the row ([`super::checksum`]); files of older versions do not have it.
pub(super) const CRC32: &str = "crc32";
pub(super) const MORE_IMAGES: &str = "more_images";
/// Stored length of a further image, bytes; the first one's is what remains of `pixel_values`.
pub(super) const STORED_BYTES: &str = "stored_bytes";
/// Parquet's path of the further images' names.
pub(super) const MORE_IMAGES_IMAGE: &str = "more_images.list.item.image";
/// Parquet's path of the further images' stored lengths.
pub(super) const MORE_IMAGES_STORED_BYTES: &str = "more_images.list.item.stored_bytes";

/// Rows in a page of every column but `pixel_values`: reading one row decodes no more than this many short ones.
const ROWS_PER_PAGE: usize = 16;

/// `image`, `image_sha256`, `width`, `height` describe the first image (null without one), `more_images` the others.
/// `pixel_values` holds all of the row's images, one after the other.
pub(super) fn schema() -> SchemaRef {
    let ids = |name| Field::new(name, DataType::List(Arc::new(Field::new("item", DataType::Int32, false))), false);
    Arc::new(Schema::new(vec![
        Field::new(ID, DataType::Utf8, false),
        Field::new(IMAGE, DataType::Utf8, true),
        Field::new(IMAGE_SHA256, DataType::Utf8, true),
        ids(INPUT_IDS),
        ids(LABELS),
        Field::new(PIXEL_VALUES, DataType::Binary, false),
        Field::new(WIDTH, DataType::Int32, true),
        Field::new(HEIGHT, DataType::Int32, true),
        Field::new(MORE_IMAGES, DataType::List(Arc::new(more_images_item())), false),
        Field::new(CRC32, DataType::Int64, false),
    ]))
}

pub(super) fn more_images_item() -> Field {
    Field::new("item", DataType::Struct(more_image_fields()), false)
}

pub(super) fn more_image_fields() -> Fields {
    Fields::from(vec![
        Field::new(IMAGE, DataType::Utf8, false),
        Field::new(IMAGE_SHA256, DataType::Utf8, false),
        Field::new(WIDTH, DataType::Int32, false),
        Field::new(HEIGHT, DataType::Int32, false),
        Field::new(STORED_BYTES, DataType::Int64, false),
    ])
}

/// One page a row in `pixel_values`, no statistics (they would repeat the pixels), no dictionaries (rows are unique and
/// a lone row would have to read all of one). The short columns get lz4, whose
/// decoder needs no state: setting up zstd's for each of them would take a third of the time of reading a row.
pub(super) fn writer_properties(metadata: &ShardMetadata) -> WriterProperties {
    let pixels = ColumnPath::from(PIXEL_VALUES);
    WriterProperties::builder()
        .set_created_by(concat!("llava preprocess ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::LZ4_RAW)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_row_count_limit(ROWS_PER_PAGE)
        .set_column_compression(pixels.clone(), metadata.pixels.compression())
        .set_column_data_page_row_count_limit(pixels, 1)
        .set_key_value_metadata(Some(metadata.key_values()))
        .build()
}
