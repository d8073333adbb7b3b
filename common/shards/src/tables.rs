//! Parquet files of other programs as rows of a dataset: pictures' bytes in a column, texts in the others.

use arrow::array::{Array, ArrayRef, BinaryArray, ListArray, RecordBatch, StringArray, StructArray, cast::AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use arrow::json::writer::{LineDelimited, WriterBuilder};
use base::{Attachment, Content, Error, Result};
use chat::dataset::{TableRow, Tables, TakeRow};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

/// Reads datasets in Parquet.
pub static TABLES: Tables = Tables { columns, rows, identity };

/// Rows read at once: their pictures are in memory together.
const BATCH_ROWS: usize = 64;
/// The field of Hugging Face's `Image` feature with the file's content, and the one with its name.
const BYTES: &str = "bytes";
const PATH: &str = "path";
/// Names of the column of pictures, where a file has several columns of bytes.
const PICTURES: [&str; 8] = ["image", "images", "jpg", "jpeg", "png", "webp", "picture", "img"];
/// Length of the footer's length and of the format's name, at a file's end.
const END_BYTES: u64 = 8;

fn columns(path: &Path) -> Result<Vec<String>> {
    Ok(open(path)?.schema().fields().iter().map(|field| field.name().clone()).collect())
}

/// SHA-256 of a file's footer: sizes and places of every column of every row group.
fn identity(path: &Path) -> Result<String> {
    let io = || Error::io(path);
    let mut file = File::open(path).map_err(io())?;
    let bytes = file.metadata().map_err(io())?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(END_BYTES))).map_err(io())?;
    let mut end = Vec::new();
    file.by_ref().take(END_BYTES).read_to_end(&mut end).map_err(io())?;
    let footer = end.first_chunk().map_or(0, |length| u64::from(u32::from_le_bytes(*length)));
    file.seek(SeekFrom::Start(bytes.saturating_sub(END_BYTES + footer))).map_err(io())?;
    let mut text = Vec::new();
    file.take(footer).read_to_end(&mut text).map_err(io())?;
    Ok(format!("{bytes} {}", base::files::sha256_hex(&text)))
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(path, error))
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::invalid(path.display(), error, "a Parquet file", "download it again, or make it again")
}

fn rows(path: &Path, with_pictures: bool, take: TakeRow<'_>) -> Result<()> {
    let builder = open(path)?;
    let schema = builder.schema().clone();
    let pictures: Vec<&Field> =
        schema.fields().iter().map(AsRef::as_ref).filter(|field| holds_bytes(field.data_type())).collect();
    let column = picture_column(path, &pictures)?;
    let wanted = (0..schema.fields().len()).filter(|&index| {
        let field = schema.field(index);
        !holds_bytes(field.data_type()) || with_pictures && Some(field.name().as_str()) == column
    });
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
    let others: Vec<&str> =
        pictures.iter().map(|field| field.name().as_str()).filter(|name| Some(*name) != column).collect();
    let mut row = 0;
    for batch in reader.map_err(|error| damaged(path, error))? {
        let batch = batch.map_err(|error| damaged(path, format!("{error} after row {row}")))?;
        let texts = texts(&batch, column, path)?;
        let pictures = column.and_then(|name| batch.column_by_name(name)).map(|array| Pictures::new(array, path));
        let pictures = pictures.transpose()?;
        for (index, text) in texts.iter().enumerate() {
            let attachments = pictures.as_ref().map_or(Vec::new(), |pictures| pictures.of_row(index, row));
            // A pass without pictures knows that a row has one by the column alone.
            let names: Vec<String> = match (&pictures, column) {
                (Some(_), _) => attachments.iter().map(|attachment| attachment.name.clone()).collect(),
                (None, Some(_)) => vec![name(row, 0)],
                (None, None) => Vec::new(),
            };
            let place = format!("{} row {row}", path.display());
            if take(TableRow::new(text, &names, &others, attachments, &place)?) == ControlFlow::Break(()) {
                return Ok(());
            }
            row += 1;
        }
    }
    Ok(())
}

/// The name of a picture that has none.
fn name(row: usize, number: usize) -> String {
    if number == 0 { format!("row {row}") } else { format!("row {row}, picture {number}") }
}

/// Whether a column has contents of files: bytes, Hugging Face's `Image`, or a list of either.
fn holds_bytes(of: &DataType) -> bool {
    match of {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Struct(fields) => fields.iter().any(|field| field.name() == BYTES && holds_bytes(field.data_type())),
        DataType::List(item) | DataType::LargeList(item) => holds_bytes(item.data_type()),
        _ => false,
    }
}

/// The column of the pictures: the only one with bytes, or the one that is called so.
fn picture_column<'f>(path: &Path, columns: &[&'f Field]) -> Result<Option<&'f str>> {
    let called = columns.iter().copied().filter(|field| PICTURES.contains(&field.name().as_str()));
    match (columns, called.collect::<Vec<_>>().as_slice()) {
        ([], _) => Ok(None),
        ([one], _) | (_, [one]) => Ok(Some(one.name())),
        _ => {
            let names: Vec<&str> = columns.iter().map(|field| field.name().as_str()).collect();
            let found = format!("the columns {} with bytes", names.join(", "));
            Err(Error::invalid(path.display(), found, "one column of pictures", "call it image, or remove the others"))
        }
    }
}

/// The other columns of each row as a JSON object.
fn texts(batch: &RecordBatch, pictures: Option<&str>, path: &Path) -> Result<Vec<String>> {
    let schema = batch.schema();
    let kept = schema.fields().iter().enumerate().filter(|(_, field)| Some(field.name().as_str()) != pictures);
    let kept: Vec<usize> = kept.map(|(index, _)| index).collect();
    if kept.is_empty() {
        return Ok(vec!["{}".to_owned(); batch.num_rows()]);
    }
    let batch = batch.project(&kept).map_err(|error| damaged(path, error))?;
    let mut lines = Vec::new();
    let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut lines);
    writer.write(&batch).and_then(|()| writer.finish()).map_err(|error| damaged(path, error))?;
    drop(writer);
    Ok(String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect())
}

/// A batch's column of pictures.
enum Pictures {
    One(Column),
    Many(ListArray, Column),
}

impl Pictures {
    fn new(array: &ArrayRef, path: &Path) -> Result<Self> {
        let item = match array.data_type() {
            DataType::List(item) | DataType::LargeList(item) => item.clone(),
            _ => return Ok(Self::One(Column::new(array, path)?)),
        };
        let lists = cast(array, &DataType::List(item)).map_err(|error| damaged(path, error))?;
        let lists = lists.as_list::<i32>().clone();
        let column = Column::new(lists.values(), path)?;
        Ok(Self::Many(lists, column))
    }

    fn of_row(&self, index: usize, row: usize) -> Vec<Attachment> {
        match self {
            Self::One(column) => column.attachment(index, || name(row, 0)).into_iter().collect(),
            Self::Many(lists, _) if lists.is_null(index) => Vec::new(),
            Self::Many(lists, column) => {
                let offsets = lists.value_offsets();
                let mut attachments: Vec<Attachment> = Vec::new();
                for (number, item) in (offsets[index] as usize..offsets[index + 1] as usize).enumerate() {
                    let Some(attachment) = column.attachment(item, || name(row, number)) else { continue };
                    // A row calls its pictures by their names.
                    let is_known = attachments.iter().any(|known| known.name == attachment.name);
                    let name = if is_known { name(row, number) } else { attachment.name };
                    attachments.push(Attachment { name, ..attachment });
                }
                attachments
            }
        }
    }
}

/// Contents of files and their names.
struct Column {
    bytes: BinaryArray,
    names: Option<StringArray>,
}

impl Column {
    fn new(array: &ArrayRef, path: &Path) -> Result<Self> {
        let (bytes, names) = match array.as_any().downcast_ref::<StructArray>() {
            Some(fields) => (fields.column_by_name(BYTES).unwrap_or(array), fields.column_by_name(PATH)),
            None => (array, None),
        };
        let cast = |array: &ArrayRef, to| cast(array, &to).map_err(|error| damaged(path, error));
        let bytes = cast(bytes, DataType::Binary)?.as_binary::<i32>().clone();
        let names = names.map(|names| cast(names, DataType::Utf8)).transpose()?;
        Ok(Self { bytes, names: names.map(|names| names.as_string::<i32>().clone()) })
    }

    /// `None` for a null.
    fn attachment(&self, index: usize, default: impl Fn() -> String) -> Option<Attachment> {
        if self.bytes.is_null(index) {
            return None;
        }
        let name = self.names.as_ref().filter(|names| names.is_valid(index)).map(|names| names.value(index).to_owned());
        let content = Content::Bytes(self.bytes.value(index).to_vec());
        Some(Attachment { name: name.filter(|name| !name.is_empty()).unwrap_or_else(default), content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Schema;
    use chat::dataset::Source;
    use parquet::arrow::ArrowWriter;
    use std::sync::Arc;

    /// Of two columns with one name one would be read alone.
    #[test]
    fn a_column_twice_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rows.parquet");
        for (names, twice) in [
            (&["image", "caption"][..], None),
            (&["image", "caption", "caption"], Some("caption")),
            (&["image", "note", "caption", "note"], Some("note")),
        ] {
            let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
            let schema = Arc::new(Schema::new(fields));
            let column = |name: &&str| Arc::new(StringArray::from(vec![*name])) as ArrayRef;
            let batch = RecordBatch::try_new(schema.clone(), names.iter().map(column).collect()).expect("a batch");
            let file = File::create(&path).expect("created");
            let mut writer = ArrowWriter::try_new(file, schema, None).expect("a writer");
            writer.write(&batch).expect("written");
            writer.close().expect("closed");
            // The file alone, and its folder.
            for data in [path.as_path(), folder.path()] {
                let error = Source::find(data, Some(&TABLES)).err().map(|error| error.to_string()).unwrap_or_default();
                let expected = twice.map(|name| format!("rows.parquet: found the column {name:?} twice"));
                assert!(error.contains(expected.as_deref().unwrap_or_default()), "{names:?}: {error}");
                assert_eq!(error.is_empty(), twice.is_none(), "{names:?}: {error}");
            }
        }
    }
}
