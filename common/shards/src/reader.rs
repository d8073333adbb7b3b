//! Rows of finished shards, read at random.

use super::columns::Columns;
use super::file::{OpenFile, read_error};
use super::{Row, ShardFile, ShardIndex, ShardMetadata, Split, checksum, index, schema};
use base::{Error, Result};
use images::image_processor::ImageProcessor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The last one is needed only where images have various stored lengths.
const ROW_COLUMNS: [&str; 8] = [
    schema::CRC32,
    schema::ID,
    schema::IMAGE,
    schema::INPUT_IDS,
    schema::LABELS,
    schema::PIXEL_VALUES,
    schema::MORE_IMAGES_IMAGE,
    schema::MORE_IMAGES_STORED_BYTES,
];

/// The finished shards of a folder (its `index.json`), for reading. `Sync`: loader workers share one, and so should
/// the ranks of a process, because every shard is opened once and stays open.
pub struct ShardSet {
    pub(super) dir: PathBuf,
    metadata: ShardMetadata,
    image_processor: ImageProcessor,
    shards: Vec<Shard>,
    rows: usize,
    fingerprint: String,
}

struct Shard {
    file: ShardFile,
    /// Index in the split of its first row.
    first_row: usize,
    open: OnceLock<OpenFile>,
}

impl ShardSet {
    /// Opens `dir/index.json` and the shards of one split.
    ///
    /// # Errors
    /// A folder without an index, and a shard of the split that is missing or has another size than the index says.
    pub fn open(dir: &Path, split: Split) -> Result<Self> {
        let index = ShardIndex::read(dir)?;
        let mut rows = 0;
        let mut shards = Vec::new();
        for file in index.shards.into_iter().filter(|file| file.split == split) {
            let path = dir.join(&file.file);
            let bytes = std::fs::metadata(&path).map_err(file.unreadable(dir))?.len();
            if bytes != file.bytes {
                let remedy = "copy the file again, or delete it and run preprocess shards again";
                return Err(Error::invalid(path.display(), format!("{bytes} bytes"), file.bytes, remedy));
            }
            let first_row = rows;
            rows += file.rows;
            shards.push(Shard { file, first_row, open: OnceLock::new() });
        }
        let fingerprint = index::fingerprint(shards.iter().map(|shard| &shard.file));
        let image_processor = index.metadata.image_processor();
        Ok(Self { dir: dir.to_path_buf(), metadata: index.metadata, image_processor, shards, rows, fingerprint })
    }

    /// What the shards were made with.
    pub fn metadata(&self) -> &ShardMetadata {
        &self.metadata
    }

    /// Rows of the split.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// SHA-256 over the shards' hashes: identifies the data in run states.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Images of every row, from two small columns.
    ///
    /// # Errors
    /// A damaged shard.
    pub fn images_per_row(&self) -> Result<Vec<u32>> {
        const COLUMNS: [&str; 2] = [schema::IMAGE, schema::MORE_IMAGES_IMAGE];
        const ROWS: usize = 4096;
        let mut counts = Vec::with_capacity(self.rows);
        for shard in &self.shards {
            let file = self.file(shard)?;
            let mut row = 0;
            for batch in file.read_all(&COLUMNS, ROWS)? {
                let batch = batch.map_err(|error| read_error(&file.place(row))(error.into()))?;
                let place = file.place(row);
                let columns = Columns::new(&batch, &place);
                for index in 0..batch.num_rows() {
                    let first = columns.first(schema::IMAGE, index)?.is_some();
                    counts.push(u32::from(first) + columns.more_images(index)?.texts(schema::IMAGE).len() as u32);
                }
                row += batch.num_rows();
            }
        }
        Ok(counts)
    }

    /// The files of the split, in the order of their rows.
    pub fn files(&self) -> impl Iterator<Item = &ShardFile> {
        self.shards.iter().map(|shard| &shard.file)
    }

    /// Opens every file of the split, which compares size and footer with the index: a damaged file is found before any work is
    /// done. Rows are checked when they are read.
    ///
    /// # Errors
    /// The first such file.
    pub fn check_files(&self) -> Result<()> {
        self.shards.iter().try_for_each(|shard| self.file(shard).map(drop))
    }

    /// Row `index` (0 ≤ index < len), read alone (page index), decoded. Thread-safe.
    ///
    /// # Errors
    /// A damaged shard: names file, row group and row.
    pub fn read_row(&self, index: usize) -> Result<Row> {
        let mut pixel_values = Vec::new();
        let row = self.read_row_into(index, &mut pixel_values)?;
        Ok(Row { pixel_values, ..row })
    }

    /// The same, with the pixel values appended to `pixel_values` and none in the row: memory of a batch is used once.
    ///
    /// # Errors
    /// As above.
    pub fn read_row_into(&self, index: usize, pixel_values: &mut Vec<f32>) -> Result<Row> {
        let number = self.shards.partition_point(|shard| shard.first_row <= index).checked_sub(1);
        let shard = number.map(|number| &self.shards[number]).filter(|_| index < self.rows).ok_or_else(|| {
            let expected = format!("less than {}", self.rows);
            Error::invalid(self.dir.display(), format!("row {index}"), expected, "report this as a bug")
        })?;
        let file = self.file(shard)?;
        let row = index - shard.first_row;
        let columns = &ROW_COLUMNS[..ROW_COLUMNS.len() - usize::from(!self.metadata.pixels.stores_source())];
        let batch = file.read_row(row, columns)?;
        self.decode(&Columns::new(&batch, &file.place(row)), pixel_values, || file.place(row))
    }

    /// File number `shard` of the split, opened.
    pub(super) fn file_at(&self, shard: usize) -> Option<Result<&OpenFile>> {
        self.shards.get(shard).map(|shard| self.file(shard))
    }

    fn file<'a>(&self, shard: &'a Shard) -> Result<&'a OpenFile> {
        if let Some(open) = shard.open.get() {
            return Ok(open);
        }
        let open = OpenFile::open(&self.dir, &shard.file, &self.metadata)?;
        Ok(shard.open.get_or_init(|| open))
    }

    fn decode(&self, columns: &Columns, pixel_values: &mut Vec<f32>, place: impl Fn() -> String) -> Result<Row> {
        let more = columns.more_images(0)?;
        let mut images: Vec<String> = columns.first(schema::IMAGE, 0)?.into_iter().collect();
        images.extend(more.texts(schema::IMAGE));
        let stored = columns.stored_pixels(0)?;
        let (id, input_ids, labels) =
            (columns.id(0)?, columns.ids(schema::INPUT_IDS, 0)?, columns.ids(schema::LABELS, 0)?);
        if let Some(expected) = columns.crc32(0)? {
            let found = checksum::of_row(&id, images.iter().map(String::as_str), &input_ids, &labels, stored);
            if found != expected {
                return Err(damaged_row(place(), found, expected));
            }
        }
        self.append_pixel_values(stored, images.len(), &more.stored_bytes(), pixel_values, place)?;
        Ok(Row { id, input_ids, labels, pixel_values: Vec::new(), images })
    }

    /// f32 `[images, 3, S, S]`; `more_bytes` are the stored lengths of source files after the first.
    fn append_pixel_values(
        &self,
        stored: &[u8],
        images: usize,
        more_bytes: &[usize],
        pixel_values: &mut Vec<f32>,
        place: impl Fn() -> String,
    ) -> Result<()> {
        let ShardMetadata { pixels, crop_size: side, code_to_f32: table, .. } = &self.metadata;
        if pixel_values.is_empty() {
            pixel_values.reserve_exact(images * 3 * side * side);
        }
        if !pixels.stores_source() {
            let decoded = pixels.decode(stored, images, *side, table, pixel_values);
            return decoded.ok_or_else(|| pixel_error(place(), stored.len(), images));
        }
        let more: usize = more_bytes.iter().sum();
        let first = stored.len().checked_sub(more).ok_or_else(|| pixel_error(place(), stored.len(), images))?;
        let mut rest = stored;
        for &bytes in std::iter::once(&first).chain(more_bytes).take(images) {
            let (image, after) = rest.split_at(bytes);
            let image = self.image_processor.process(image).map_err(|error| {
                Error::invalid(place(), error, "the image that was stored", "run preprocess verify on the folder")
            })?;
            super::PixelFormat::U8.decode(&image.codes, 1, *side, table, pixel_values);
            rest = after;
        }
        Ok(())
    }
}

fn damaged_row(place: String, found: u32, expected: u32) -> Error {
    let remedy = "the file was damaged after it was written: copy it again, or delete it and run preprocess shards again; preprocess \
                  verify lists all that is damaged";
    Error::invalid(place, format!("a row with CRC-32 {found:08x}"), format!("{expected:08x}"), remedy)
}

fn pixel_error(place: String, bytes: usize, images: usize) -> Error {
    let remedy = "run preprocess verify on the folder; make the shard again";
    Error::invalid(place, format!("{bytes} bytes of pixel_values"), format!("the pixels of {images} image(s)"), remedy)
}
