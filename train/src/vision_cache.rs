//! Features of a frozen vision tower, kept in a file beside the shards so that later epochs need not compute them.
//!
//! The file is a header and one slot for each image of the data (rows may have one, several or none), filled as rows are first
//! seen, in any order and by any number of ranks. A slot begins with a checksum of its values: one that was never or only half
//! written counts as empty. The rounded value is always used, even if the features were just computed, so that a run depends
//! neither on what the file held nor on what could be written to it.

use base::files::{self, hex};
use base::{Error, Result, pulse};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use half::{bf16, f16};
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes before the first slot: magic, header length, header as JSON.
const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"LLVAVFC1";
const CHECKSUM_BYTES: usize = 8;

/// Dtype of the kept values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CachedAs {
    /// 11 significant bits; an image with a value beyond ±65504 is computed every time and not rounded.
    F16,
    /// 8 significant bits, the range of f32.
    Bf16,
}

/// What a file belongs to: it is used for nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    tower_sha256: String,
    data_fingerprint: String,
    /// Slots. (The name is of the time when every row had one image.)
    #[serde(rename = "rows")]
    images: usize,
    #[serde(rename = "values_per_row")]
    values_per_image: usize,
    format: CachedAs,
    /// SHA-256 of the rows' numbers of images, unless every row has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images_per_row_sha256: Option<String>,
}

/// The rows of the data, and where the file may be.
#[derive(Clone, Copy, Debug)]
pub struct CachedRows<'a> {
    /// Folder for the file.
    pub dir: &'a Path,
    /// The shards' fingerprint.
    pub fingerprint: &'a str,
    /// Images of every row.
    pub images_per_row: &'a [u32],
    /// Bytes that the folder's file system has left; `None` where that cannot be known.
    pub free_bytes: Option<u64>,
}

/// An open file of features. Ranks and threads may share it.
#[derive(Debug)]
pub struct VisionFeatureCache {
    path: PathBuf,
    file: File,
    header: Header,
    /// The first slot of every row, and the number of slots.
    first_slots: Vec<usize>,
    /// The first thing that went wrong with the file.
    trouble: OnceLock<Error>,
}

impl VisionFeatureCache {
    /// Opens, or creates, the file for this tower and these rows.
    ///
    /// # Errors
    /// The file cannot be made, is not such a file, or would not fit on the file system when it is full.
    pub fn open(rows: CachedRows<'_>, model: &Llava, config: &LlavaConfig, format: CachedAs) -> Result<Self> {
        let header = Header::new(rows, tower_sha256(model, config), values_per_image(config), format);
        Self::open_with(rows, header)
    }

    fn open_with(rows: CachedRows<'_>, header: Header) -> Result<Self> {
        let json = serde_json::to_vec(&header).map_err(|error| unreadable(rows.dir, &error.to_string()))?;
        let path = rows.dir.join(format!("vision_features-{}.bin", &hex(&Sha256::digest(&json))[..16]));
        require_room(&path, &header, rows.free_bytes)?;
        if !path.exists() {
            create(&path, &json, &header)?;
        }
        let file = File::options().read(true).write(true).open(&path).map_err(Error::io(&path))?;
        complete(&path, &file, &json, &header)?;
        let found = read_header(&path, &file)?;
        if found != header {
            return Err(unreadable(&path, "the header of another tower or other data"));
        }
        let first_slots = first_slots(rows.images_per_row);
        Ok(Self { path, file, header, first_slots, trouble: OnceLock::new() })
    }

    /// Bytes that the file for so many images takes when all are in it.
    pub fn bytes_of(images: usize, config: &LlavaConfig, format: CachedAs) -> u64 {
        let rows = CachedRows { dir: Path::new(""), fingerprint: "", images_per_row: &[], free_bytes: None };
        Header { images, ..Header::new(rows, String::new(), values_per_image(config), format) }.file_bytes()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first thing that went wrong with reading or writing the file, if anything has: features are computed instead.
    pub fn trouble(&self) -> Option<&Error> {
        self.trouble.get()
    }

    /// An image's features, if the file has them. Images are counted over all rows.
    pub fn get(&self, slot: usize) -> Option<Vec<f32>> {
        let mut bytes = vec![0; self.header.slot_bytes()];
        if let Err(error) = self.file.read_exact_at(&mut bytes, self.header.offset(slot)) {
            // A file that is cut meanwhile has no such slot until it is written.
            if error.kind() != ErrorKind::UnexpectedEof {
                self.note(error);
            }
            return None;
        }
        let (checksum, values) = bytes.split_at(CHECKSUM_BYTES);
        let Header { format, values_per_image, .. } = self.header;
        (checksum == checksum_of(values)).then(|| format.decode(values, values_per_image))
    }

    /// Keeps an image's features and gives them as they will be read again; as they are if the format cannot hold them. What
    /// cannot be written is computed again the next time, with the same result.
    fn put(&self, slot: usize, values: Vec<f32>) -> Vec<f32> {
        let Some(bytes) = self.header.format.encode(&values) else { return values };
        let kept = [&checksum_of(&bytes)[..], &bytes].concat();
        if let Err(error) = self.file.write_all_at(&kept, self.header.offset(slot)) {
            self.note(error);
        }
        self.header.format.decode(&bytes, values.len())
    }

    fn note(&self, error: std::io::Error) {
        self.trouble.get_or_init(|| Error::io(&self.path)(error));
    }

    /// Like [`Llava::image_features`], from the file where it has an image and computed (and kept) where not. `rows` are the
    /// batch's rows in the data.
    ///
    /// # Errors
    /// A batch that is not of these rows; a device that cannot give its values.
    pub fn image_features(
        &self,
        model: &Llava,
        batch: &PackedBatch,
        rows: &[usize],
        config: &LlavaConfig,
    ) -> Result<Option<Tensor<2>>> {
        let slots = self.slots(batch, rows, config)?;
        if slots.is_empty() {
            return Ok(None);
        }
        let mut kept: Vec<Option<Vec<f32>>> = slots.iter().map(|&slot| self.get(slot)).collect();
        let missing: Vec<usize> = (0..slots.len()).filter(|&index| kept[index].is_none()).collect();
        if !missing.is_empty() {
            let computed = compute(model, batch, &missing, config)?;
            for (&index, features) in missing.iter().zip(computed.chunks_exact(self.header.values_per_image)) {
                kept[index] = Some(self.put(slots[index], features.to_vec()));
            }
        }
        let values: Vec<f32> = kept.into_iter().flatten().flatten().collect();
        let features = slots.len() * config.image_seq_length();
        let shape = [features, values.len() / features.max(1)];
        Ok(Some(Tensor::from_data(TensorData::new(values, shape), &model.device())))
    }

    /// The slots of a batch's images, in order.
    fn slots(&self, batch: &PackedBatch, rows: &[usize], config: &LlavaConfig) -> Result<Vec<usize>> {
        let of_row = |row: usize| Some(*self.first_slots.get(row)?..*self.first_slots.get(row + 1)?);
        let known: Option<Vec<_>> = rows.iter().map(|&row| of_row(row)).collect();
        let counts = images_per_row(batch, config);
        match known {
            Some(known) if known.iter().map(ExactSizeIterator::len).eq(counts.iter().copied()) => {
                Ok(known.into_iter().flatten().collect())
            }
            _ => {
                let found = format!("rows {rows:?} with {counts:?} images");
                Err(Error::invalid(
                    self.path.display(),
                    found,
                    "the rows that it was opened for",
                    "report this as a bug",
                ))
            }
        }
    }
}

/// Where each row's images are: one after another.
fn first_slots(images_per_row: &[u32]) -> Vec<usize> {
    let ends = images_per_row.iter().scan(0, |end, &images| {
        *end += images as usize;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

fn values_per_image(config: &LlavaConfig) -> usize {
    config.image_seq_length() * config.vision.hidden_size * config.vision_feature_layers.len()
}

/// Refuses a file that would fill the file system, before hours of work; features already in it need no more room.
fn require_room(path: &Path, header: &Header, free_bytes: Option<u64>) -> Result<()> {
    const BLOCK: u64 = 512;
    let taken = path.metadata().map_or(0, |about| about.blocks() * BLOCK);
    let needed = header.file_bytes().saturating_sub(taken);
    match free_bytes {
        Some(free) if free < needed => {
            let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
            Err(Error::invalid(
                format!("cache_vision_features: {}", path.display()),
                format!("{} free on its file system", gigabytes(free)),
                format!("{} for the features of {} images", gigabytes(needed), header.images),
                "make room, put the shards on a larger file system, or leave --cache-vision-features out",
            ))
        }
        _ => Ok(()),
    }
}

/// The features of some of the batch's images, without a graph.
fn compute(model: &Llava, batch: &PackedBatch, images: &[usize], config: &LlavaConfig) -> Result<Vec<f32>> {
    let pixels_per_image = batch.pixel_values.len() / batch.num_images.max(1);
    let pixels = |&image: &usize| &batch.pixel_values[image * pixels_per_image..(image + 1) * pixels_per_image];
    let pixel_values = images.iter().flat_map(pixels).copied().collect();
    let chosen = PackedBatch { pixel_values, num_images: images.len(), ..Default::default() };
    let Some(features) = model.image_features(&chosen, config) else { return Ok(Vec::new()) };
    features.try_into_vec_as::<f32>().map_err(|error| {
        Error::invalid("image features", format!("{error:?}"), "f32 values from the device", "report this as a bug")
    })
}

fn images_per_row(batch: &PackedBatch, config: &LlavaConfig) -> Vec<usize> {
    let mut end = 0;
    let features_before = |end: usize| batch.image_positions.partition_point(|&position| position < end);
    let count = |&len: &usize| {
        let start = end;
        end += len;
        (features_before(end) - features_before(start)) / config.image_seq_length().max(1)
    };
    batch.seq_lens.iter().map(count).collect()
}

impl Header {
    fn new(rows: CachedRows<'_>, tower_sha256: String, values_per_image: usize, format: CachedAs) -> Self {
        let counts = rows.images_per_row;
        let is_plain = counts.iter().all(|&images| images == 1);
        let bytes = || counts.iter().flat_map(|images| images.to_le_bytes()).collect::<Vec<u8>>();
        Self {
            tower_sha256,
            data_fingerprint: rows.fingerprint.to_string(),
            images: counts.iter().map(|&images| images as usize).sum(),
            values_per_image,
            format,
            images_per_row_sha256: (!is_plain).then(|| files::sha256_hex(&bytes())),
        }
    }

    fn slot_bytes(&self) -> usize {
        // Both formats take two bytes a value; slots start at multiples of 8.
        (CHECKSUM_BYTES + 2 * self.values_per_image).next_multiple_of(8)
    }

    fn offset(&self, slot: usize) -> u64 {
        HEADER_BYTES + slot as u64 * self.slot_bytes() as u64
    }

    fn file_bytes(&self) -> u64 {
        self.offset(self.images)
    }
}

impl CachedAs {
    /// `None` if a value does not fit.
    fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity((2 * values.len()).next_multiple_of(8));
        for &value in values {
            let (bits, stored) = match self {
                Self::F16 => (f16::from_f32(value).to_bits(), f16::from_f32(value).to_f32()),
                Self::Bf16 => (bf16::from_f32(value).to_bits(), bf16::from_f32(value).to_f32()),
            };
            if !stored.is_finite() {
                return None;
            }
            bytes.extend(bits.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        Some(bytes)
    }

    fn decode(self, bytes: &[u8], len: usize) -> Vec<f32> {
        let bits = bytes.chunks_exact(2).take(len).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        match self {
            Self::F16 => bits.map(|bits| f16::from_bits(bits).to_f32()).collect(),
            Self::Bf16 => bits.map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        }
    }
}

/// The file with its header and empty slots (a hole, where the file system has holes). Ranks may create it at once: all use
/// the same one.
fn create(path: &Path, json: &[u8], header: &Header) -> Result<()> {
    files::create_once(path, |file| {
        file.write_all_at(&beginning(json), 0)?;
        file.set_len(header.file_bytes())
    })
    .map(drop)
}

/// Magic, the header's length, the header.
fn beginning(json: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &(json.len() as u64).to_le_bytes(), json].concat()
}

/// Gives a file that was cut (by a full disk, an interrupted copy) its length again: what is missing is computed again. Ranks may
/// do it at once: all write the same.
fn complete(path: &Path, file: &File, json: &[u8], header: &Header) -> Result<()> {
    let (found, whole) = (file.metadata().map_err(Error::io(path))?.len(), header.file_bytes());
    if found >= whole {
        return Ok(());
    }
    let beginning = beginning(json);
    let mut start = vec![0; beginning.len().min(found as usize)];
    file.read_exact_at(&mut start, 0).map_err(Error::io(path))?;
    if !beginning.starts_with(&start) {
        return Err(unreadable(path, "another kind of file"));
    }
    tracing::warn!("{}: found {found} of {whole} bytes; missing vision features are computed again", path.display());
    let written = file.write_all_at(&beginning, 0).and_then(|()| file.set_len(whole));
    written.map_err(Error::io(path))
}

fn read_header(path: &Path, file: &File) -> Result<Header> {
    let mut start = vec![0; HEADER_BYTES as usize];
    file.read_exact_at(&mut start, 0).map_err(Error::io(path))?;
    let len = u64::from_le_bytes(std::array::from_fn(|index| start[8 + index])) as usize;
    let json = start.get(16..16 + len.min(start.len()));
    match json {
        Some(json) if &start[..8] == MAGIC => {
            serde_json::from_slice(json).map_err(|error| unreadable(path, &error.to_string()))
        }
        _ => Err(unreadable(path, "another kind of file")),
    }
}

fn unreadable(path: &Path, found: &str) -> Error {
    Error::invalid(path.display(), found, "a file of vision features", "delete it; it will be made again")
}

/// The first bytes of SHA-256; never what an empty slot holds.
fn checksum_of(values: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(values);
    let checksum = std::array::from_fn(|index| digest[index]);
    if checksum == [0; CHECKSUM_BYTES] { [1; CHECKSUM_BYTES] } else { checksum }
}

/// SHA-256 over everything that a feature depends on: the tower's weights up to the selected layer, and the settings.
pub fn tower_sha256(model: &Llava, config: &LlavaConfig) -> String {
    let tower = &model.vision_tower.vision_model;
    let mut hasher = WeightHasher(Sha256::new());
    let settings = (&config.vision, config.selected_hidden_states(), config.vision_feature_select_strategy);
    hasher.0.update(format!("{settings:?}"));
    tower.embeddings.visit(&mut hasher);
    tower.pre_layrnorm.visit(&mut hasher);
    for layer in &tower.encoder.layers[..config.computed_vision_layers()] {
        layer.visit(&mut hasher);
    }
    hex(&hasher.0.finalize())
}

struct WeightHasher(Sha256);

impl ModuleVisitor for WeightHasher {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data();
        pulse::mark();
        self.0.update(format!("{:?}{:?}", data.shape(), data.dtype()));
        self.0.update(data.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<'a>(dir: &'a Path, images_per_row: &'a [u32]) -> CachedRows<'a> {
        CachedRows { dir, fingerprint: "d", images_per_row, free_bytes: None }
    }

    fn open(rows: CachedRows<'_>, tower: &str, format: CachedAs) -> Result<VisionFeatureCache> {
        VisionFeatureCache::open_with(rows, Header::new(rows, tower.into(), 3, format))
    }

    #[test]
    fn what_is_put_is_what_is_read_and_survives_reopening() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (format, third) in [(CachedAs::F16, 0.333_251_95), (CachedAs::Bf16, 0.333_984_38)] {
            let rows = rows(dir.path(), &[1; 4]);
            let cache = open(rows, "t", format).expect("created");
            assert_eq!(cache.get(2), None, "an empty slot");
            let used = cache.put(2, vec![1.0, 1.0 / 3.0, -0.0]);
            assert_eq!(used, [1.0, third, 0.0]);
            let again = open(rows, "t", format).expect("opened");
            assert_eq!(again.get(2), Some(used));
            assert_eq!(again.get(3), None, "the slot after it");
            assert_eq!(again.path().metadata().expect("a file").len(), cache.header.file_bytes());
            assert!(cache.trouble().is_none());
        }
    }

    #[test]
    fn a_half_written_slot_is_empty() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = open(rows(dir.path(), &[1; 2]), "t", CachedAs::F16).expect("created");
        cache.put(1, vec![1.0, 2.0, 3.0]);
        cache.file.write_all_at(&[7], cache.header.offset(1) + 9).expect("writable");
        assert_eq!(cache.get(1), None);
    }

    /// Behind the cut, slots are empty, wherever it is.
    #[test]
    fn a_file_that_was_cut_is_completed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let rows = rows(dir.path(), &[1; 3]);
        let path = open(rows, "t", CachedAs::F16).expect("created").path;
        let values = |slot: usize| vec![slot as f32, 1.0, 2.0];
        for (cut, kept) in [
            (HEADER_BYTES + 16 + 9, [true, false, false]),
            (HEADER_BYTES, [false; 3]),
            (10, [false; 3]),
            (0, [false; 3]),
        ] {
            let cache = open(rows, "t", CachedAs::F16).expect("opened");
            (0..3).for_each(|slot| drop(cache.put(slot, values(slot))));
            File::options().write(true).open(&path).expect("a file").set_len(cut).expect("cut");
            let cache = open(rows, "t", CachedAs::F16).expect("completed");
            for (slot, kept) in kept.into_iter().enumerate() {
                assert_eq!(cache.get(slot), kept.then(|| values(slot)), "slot {slot} after a cut at {cut}");
            }
            assert!(cache.trouble().is_none());
        }
        std::fs::write(&path, "something else").expect("writable");
        let error = open(rows, "t", CachedAs::F16).expect_err("refused").to_string();
        assert!(error.contains("another kind of file") && error.contains("delete it"), "{error}");
    }

    #[test]
    fn what_a_format_cannot_hold_is_used_as_it_is_and_not_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = open(rows(dir.path(), &[1]), "t", CachedAs::F16).expect("created");
        assert_eq!(cache.put(0, vec![1e6, 0.1, 0.2]), [1e6, 0.1, 0.2]);
        assert_eq!(cache.get(0), None);
    }

    #[test]
    fn another_tower_and_other_rows_get_another_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let rows = |images_per_row| rows(dir.path(), images_per_row);
        let mut paths: Vec<PathBuf> =
            [(&[1, 1][..], "t"), (&[1, 1], "u"), (&[1, 1, 1], "t"), (&[2, 0], "t"), (&[0, 2], "t")]
                .map(|(counts, tower)| open(rows(counts), tower, CachedAs::F16).expect("created").path)
                .to_vec();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 5);
    }

    #[test]
    fn every_image_of_a_row_has_a_slot() {
        assert_eq!(first_slots(&[1, 1]), [0, 1, 2]);
        assert_eq!(first_slots(&[2, 0, 3, 1]), [0, 2, 2, 5, 6]);
        assert_eq!(first_slots(&[]), [0]);
    }

    /// As on a file system that is full: the same values, nothing kept, and the reason.
    #[test]
    fn a_file_that_cannot_be_written_costs_nothing_but_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut cache = open(rows(dir.path(), &[1]), "t", CachedAs::F16).expect("created");
        cache.file = File::open(&cache.path).expect("only readable");
        assert_eq!(cache.put(0, vec![1.0, 1.0 / 3.0, 0.0]), [1.0, 0.333_251_95, 0.0], "rounded all the same");
        assert_eq!(cache.get(0), None);
        assert!(
            matches!(cache.trouble(), Some(Error::Io { path, .. }) if *path == cache.path),
            "{:?}",
            cache.trouble()
        );
    }

    #[test]
    fn a_file_that_would_not_fit_is_refused_before_it_is_made() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let counts = vec![2; 1_000_000];
        let rows = |free| CachedRows { free_bytes: free, ..rows(dir.path(), &counts) };
        let error = open(rows(Some(1_000_000)), "t", CachedAs::F16).expect_err("refused").to_string();
        for part in ["0.0 GB free", "2000000 images", "--cache-vision-features"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
        for free in [None, Some(100_000_000)] {
            open(rows(free), "t", CachedAs::F16).expect("fits");
        }
    }

    /// Rank threads and processes start at once.
    #[test]
    fn many_ranks_open_one_file() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let rows = rows(dir.path(), &[1, 0, 2]);
            std::thread::scope(|scope| {
                for rank in 0..3 {
                    scope
                        .spawn(move || open(rows, "t", CachedAs::F16).expect("opened").put(rank, vec![rank as f32; 3]));
                }
            });
            let cache = open(rows, "t", CachedAs::F16).expect("opened");
            assert_eq!([0, 1, 2].map(|slot| cache.get(slot)), [0.0, 1.0, 2.0].map(|value| Some(vec![value; 3])));
            assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
        }
    }

    #[test]
    fn a_file_that_is_not_one_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = open(rows(dir.path(), &[1]), "t", CachedAs::F16).expect("created").path;
        std::fs::write(&path, vec![0; HEADER_BYTES as usize]).expect("writable");
        let error = open(rows(dir.path(), &[1]), "t", CachedAs::F16).expect_err("no header");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
