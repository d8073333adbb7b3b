//! Typed access to the columns of a record batch.

use super::schema;
use arrow::array::{Array, BinaryArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::Int32Type;
use base::{Error, Result};

/// The columns of rows that were read, whichever were asked for.
pub(super) struct Columns<'a> {
    batch: &'a RecordBatch,
    place: &'a str,
}

impl<'a> Columns<'a> {
    pub(super) fn new(batch: &'a RecordBatch, place: &'a str) -> Self {
        Self { batch, place }
    }

    fn column<T: 'static>(&self, name: &str) -> Result<&'a T> {
        let column = self.batch.column_by_name(name);
        column.and_then(|column| column.as_any().downcast_ref()).ok_or_else(|| self.wrong(name))
    }

    fn wrong(&self, name: &str) -> Error {
        Error::invalid(
            self.place,
            format!("column {name} missing or of another type"),
            "the columns that preprocess shards writes",
            "run preprocess shards again",
        )
    }

    pub(super) fn id(&self, row: usize) -> Result<String> {
        Ok(self.column::<StringArray>(schema::ID)?.value(row).to_owned())
    }

    pub(super) fn ids(&self, name: &str, row: usize) -> Result<Vec<i32>> {
        let values = self.column::<ListArray>(name)?.value(row);
        let values = values.as_any().downcast_ref::<Int32Array>().ok_or_else(|| self.wrong(name))?;
        Ok(values.values().to_vec())
    }

    /// The row's checksum; `None` in a file of a version that wrote none.
    pub(super) fn crc32(&self, row: usize) -> Result<Option<u32>> {
        if self.batch.column_by_name(schema::CRC32).is_none() {
            return Ok(None);
        }
        Ok(Some(self.column::<Int64Array>(schema::CRC32)?.value(row) as u32))
    }

    pub(super) fn stored_pixels(&self, row: usize) -> Result<&'a [u8]> {
        Ok(self.column::<BinaryArray>(schema::PIXEL_VALUES)?.value(row))
    }

    /// The first image's text; `None` in a row without images.
    pub(super) fn first(&self, name: &str, row: usize) -> Result<Option<String>> {
        let column = self.column::<StringArray>(name)?;
        Ok(column.is_valid(row).then(|| column.value(row).to_owned()))
    }

    /// The first image's size in pixels; 0 in a row without images.
    pub(super) fn first_pixels(&self, name: &str, row: usize) -> Result<u32> {
        let column = self.column::<Int32Array>(name)?;
        Ok(if column.is_valid(row) { column.value(row) as u32 } else { 0 })
    }

    pub(super) fn more_images(&self, row: usize) -> Result<MoreImages> {
        let values = self.column::<ListArray>(schema::MORE_IMAGES)?.value(row);
        let images = values.as_any().downcast_ref::<StructArray>().ok_or_else(|| self.wrong(schema::MORE_IMAGES))?;
        Ok(MoreImages(images.clone()))
    }
}

/// `more_images` of one row.
pub(super) struct MoreImages(StructArray);

impl MoreImages {
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let column = self.0.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<StringArray>());
        column.into_iter().flatten().flatten().map(str::to_owned).collect()
    }

    pub(super) fn pixels(&self, name: &str) -> Vec<u32> {
        let column = self.0.column_by_name(name);
        let column =
            column.and_then(|column| column.as_any().downcast_ref::<arrow::array::PrimitiveArray<Int32Type>>());
        column.map(|column| column.values().iter().map(|&value| value as u32).collect()).unwrap_or_default()
    }

    pub(super) fn stored_bytes(&self) -> Vec<usize> {
        let column = self.0.column_by_name(schema::STORED_BYTES);
        let column = column.and_then(|column| column.as_any().downcast_ref::<Int64Array>());
        column.map(|column| column.values().iter().map(|&bytes| bytes as usize).collect()).unwrap_or_default()
    }
}
