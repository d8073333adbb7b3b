//! Rows → one encoded row group, on any thread; the writer then only appends bytes.

use super::metadata::ShardMetadata;
use super::{checksum, schema};
use arrow::array::{
    Array, ArrayRef, BinaryArray, Int32Builder, Int64Builder, ListBuilder, StringBuilder, StructBuilder,
};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};
use base::{Error, Result};
use chat::TokenizedSample;
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterPropertiesPtr;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::TypePtr;
use std::sync::Arc;

/// A row to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `id` of chat.json.
    pub id: String,
    /// Token ids and labels.
    pub tokens: TokenizedSample,
    /// Its images, in the order of their `<image>` tokens.
    pub images: Vec<SampleImage>,
}

/// An image of a row to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleImage {
    /// File name, as in chat.json.
    pub name: String,
    /// SHA-256 of the source file.
    pub sha256: String,
    /// Width of the source, pixels.
    pub width: u32,
    /// Height of the source, pixels.
    pub height: u32,
    /// Codes u8 `[3, S, S]`, or the source file's bytes if the pixel format stores those.
    pub payload: Vec<u8>,
}

/// Encoded columns of a row group, ready to be appended to a file made with the same metadata.
pub struct EncodedRowGroup {
    pub(super) columns: Vec<ArrowColumnChunk>,
    /// Rows in it.
    pub rows: usize,
}

/// What every row group of a kind of shard shares.
pub(super) struct Layout {
    pub(super) schema: SchemaRef,
    pub(super) parquet_schema: TypePtr,
    pub(super) properties: WriterPropertiesPtr,
}

impl Layout {
    pub(super) fn new(metadata: &ShardMetadata) -> Result<Self> {
        let schema = schema::schema();
        let parquet_schema = ArrowSchemaConverter::new().convert(&schema).map_err(encoding_error)?.root_schema_ptr();
        Ok(Self { schema, parquet_schema, properties: Arc::new(schema::writer_properties(metadata)) })
    }
}

/// Encodes the rows of one row group. Pixels are compressed row by row, so memory holds what will be written, not more.
pub struct RowGroupEncoder<'a> {
    metadata: &'a ShardMetadata,
    layout: Layout,
    writers: Vec<ArrowColumnWriter>,
    texts: Columns,
    stored: Vec<u8>,
    rows: usize,
}

impl<'a> RowGroupEncoder<'a> {
    /// An empty row group.
    pub fn new(metadata: &'a ShardMetadata) -> Result<Self> {
        let layout = Layout::new(metadata)?;
        let file = SerializedFileWriter::new(std::io::sink(), layout.parquet_schema.clone(), layout.properties.clone())
            .map_err(encoding_error)?;
        let factory = ArrowRowGroupWriterFactory::new(&file, layout.schema.clone());
        let writers = factory.create_column_writers(0).map_err(encoding_error)?;
        Ok(Self { metadata, layout, writers, texts: Columns::new(), stored: Vec::new(), rows: 0 })
    }

    /// Adds a row.
    pub fn push(&mut self, sample: &Sample) -> Result<()> {
        let (pixels, side) = (self.metadata.pixels, self.metadata.crop_size);
        self.stored.clear();
        let mut lengths = Vec::with_capacity(sample.images.len());
        for image in &sample.images {
            let start = self.stored.len();
            pixels.encode(&image.payload, side, &self.metadata.code_to_f32, &mut self.stored);
            lengths.push((self.stored.len() - start) as i64);
        }
        let TokenizedSample { input_ids, labels, .. } = &sample.tokens;
        let names = sample.images.iter().map(|image| image.name.as_str());
        let crc32 = checksum::of_row(&sample.id, names, input_ids, labels, &self.stored);
        self.texts.push(sample, &lengths, crc32);
        let offsets = OffsetBuffer::from_lengths([self.stored.len()]);
        let column: ArrayRef =
            Arc::new(BinaryArray::new(offsets, Buffer::from_vec(std::mem::take(&mut self.stored)), None));
        self.write_column(schema::PIXEL_VALUES, &column)?;
        // The memory comes back for the next row.
        let values = column.as_any().downcast_ref::<BinaryArray>().map(|column| column.values().clone());
        drop(column);
        self.stored = values.and_then(|values| values.into_vec().ok()).unwrap_or_default();
        self.rows += 1;
        Ok(())
    }

    /// The encoded row group; `None` if no row was pushed.
    pub fn finish(mut self) -> Result<Option<EncodedRowGroup>> {
        if self.rows == 0 {
            return Ok(None);
        }
        for (name, column) in self.texts.finish() {
            self.write_column(name, &column)?;
        }
        let columns = self.writers.into_iter().map(ArrowColumnWriter::close).collect::<Result<_, _>>();
        Ok(Some(EncodedRowGroup { columns: columns.map_err(encoding_error)?, rows: self.rows }))
    }

    fn write_column(&mut self, name: &str, column: &ArrayRef) -> Result<()> {
        let (first_leaf, field) = leaf_of(&self.layout.schema, name)
            .ok_or_else(|| encoding_error(ParquetError::General(format!("no column {name}"))))?;
        let leaves = compute_leaves(field, column).map_err(encoding_error)?;
        for (writer, leaf) in self.writers[first_leaf..].iter_mut().zip(&leaves) {
            writer.write(leaf).map_err(encoding_error)?;
        }
        Ok(())
    }
}

/// Index of the first Parquet column of a field, and the field.
fn leaf_of<'a>(schema: &'a SchemaRef, name: &str) -> Option<(usize, &'a Field)> {
    let mut first_leaf = 0;
    for field in schema.fields() {
        if field.name() == name {
            return Some((first_leaf, field));
        }
        first_leaf += leaves(field.data_type());
    }
    None
}

fn leaves(data_type: &DataType) -> usize {
    match data_type {
        DataType::List(item) => leaves(item.data_type()),
        DataType::Struct(fields) => fields.iter().map(|field| leaves(field.data_type())).sum(),
        _ => 1,
    }
}

pub(super) fn encoding_error(error: ParquetError) -> Error {
    Error::invalid("a row group", error, "rows that Parquet can hold", "report this as a bug")
}

/// Every column but the pixels.
struct Columns {
    id: StringBuilder,
    image: StringBuilder,
    image_sha256: StringBuilder,
    input_ids: ListBuilder<Int32Builder>,
    labels: ListBuilder<Int32Builder>,
    width: Int32Builder,
    height: Int32Builder,
    more_images: ListBuilder<StructBuilder>,
    crc32: Int64Builder,
}

impl Columns {
    fn new() -> Self {
        let ids =
            || ListBuilder::new(Int32Builder::new()).with_field(Arc::new(Field::new("item", DataType::Int32, false)));
        let more_images = StructBuilder::from_fields(schema::more_image_fields(), 0);
        Self {
            id: StringBuilder::new(),
            image: StringBuilder::new(),
            image_sha256: StringBuilder::new(),
            input_ids: ids(),
            labels: ids(),
            width: Int32Builder::new(),
            height: Int32Builder::new(),
            more_images: ListBuilder::new(more_images).with_field(Arc::new(schema::more_images_item())),
            crc32: Int64Builder::new(),
        }
    }

    fn push(&mut self, sample: &Sample, stored_bytes: &[i64], crc32: u32) {
        let first = sample.images.first();
        self.id.append_value(&sample.id);
        self.image.append_option(first.map(|image| &image.name));
        self.image_sha256.append_option(first.map(|image| &image.sha256));
        self.width.append_option(first.map(|image| image.width as i32));
        self.height.append_option(first.map(|image| image.height as i32));
        self.input_ids.append_value(sample.tokens.input_ids.iter().copied().map(Some));
        self.labels.append_value(sample.tokens.labels.iter().copied().map(Some));
        for (image, &bytes) in sample.images.iter().zip(stored_bytes).skip(1) {
            push_image(self.more_images.values(), image, bytes);
        }
        self.more_images.append(true);
        self.crc32.append_value(i64::from(crc32));
    }

    fn finish(&mut self) -> [(&'static str, ArrayRef); 9] {
        [
            (schema::ID, Arc::new(self.id.finish())),
            (schema::IMAGE, Arc::new(self.image.finish())),
            (schema::IMAGE_SHA256, Arc::new(self.image_sha256.finish())),
            (schema::INPUT_IDS, Arc::new(self.input_ids.finish())),
            (schema::LABELS, Arc::new(self.labels.finish())),
            (schema::WIDTH, Arc::new(self.width.finish())),
            (schema::HEIGHT, Arc::new(self.height.finish())),
            (schema::MORE_IMAGES, Arc::new(self.more_images.finish())),
            (schema::CRC32, Arc::new(self.crc32.finish())),
        ]
    }
}

/// Fields in the order of [`schema::more_image_fields`].
fn push_image(builder: &mut StructBuilder, image: &SampleImage, stored_bytes: i64) {
    for (index, text) in [&image.name, &image.sha256].into_iter().enumerate() {
        if let Some(field) = builder.field_builder::<StringBuilder>(index) {
            field.append_value(text);
        }
    }
    for (index, pixels) in [image.width, image.height].into_iter().enumerate() {
        if let Some(field) = builder.field_builder::<Int32Builder>(2 + index) {
            field.append_value(pixels as i32);
        }
    }
    if let Some(field) = builder.field_builder::<Int64Builder>(4) {
        field.append_value(stored_bytes);
    }
    builder.append(true);
}
