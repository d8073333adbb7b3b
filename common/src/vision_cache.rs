//! Features of a frozen vision tower, kept in a file beside the shards so that later epochs need not compute them.
//!
//! The file is a header and one slot for each row of the data, filled as rows are first seen, in any order and by any number
//! of ranks. A slot begins with a checksum of its values: one that was never or only half written counts as empty. What is
//! used is always the rounded value, also where it was just computed, so that a run does not depend on what the file held.

use crate::batch::PackedBatch;
use crate::config::LlavaConfig;
use crate::files::hex;
use crate::model::Llava;
use crate::{Error, Result};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes before the first slot: magic, header length, header as JSON.
const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"LLVAVFC1";
const CHECKSUM_BYTES: usize = 8;

/// Number format of the kept values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CachedAs {
    /// 11 significant bits; a row with a value beyond ±65504 is computed every time.
    F16,
    /// 8 significant bits, the range of f32.
    Bf16,
}

/// What a file belongs to: it is used for nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    tower_sha256: String,
    data_fingerprint: String,
    rows: usize,
    values_per_row: usize,
    format: CachedAs,
}

/// An open file of features. Ranks and threads may share it.
#[derive(Debug)]
pub struct VisionFeatureCache {
    path: PathBuf,
    file: File,
    header: Header,
}

impl VisionFeatureCache {
    /// Opens, or creates, the file in `dir` for this tower and these data: `rows` rows whose `data_fingerprint` is the
    /// shards'.
    ///
    /// # Errors
    /// The file cannot be made, or is not such a file.
    pub fn open(
        dir: &Path,
        model: &Llava,
        config: &LlavaConfig,
        data_fingerprint: &str,
        rows: usize,
        format: CachedAs,
    ) -> Result<Self> {
        let width = config.vision.hidden_size * config.vision_feature_layers.len();
        let header = Header {
            tower_sha256: tower_sha256(model, config),
            data_fingerprint: data_fingerprint.to_string(),
            rows,
            values_per_row: config.image_seq_length() * width,
            format,
        };
        Self::open_with(dir, header)
    }

    fn open_with(dir: &Path, header: Header) -> Result<Self> {
        let json = serde_json::to_vec(&header).map_err(|error| unreadable(dir, &error.to_string()))?;
        let path = dir.join(format!("vision_features-{}.bin", &hex(&Sha256::digest(&json))[..16]));
        if !path.exists() {
            create(&path, &json, &header)?;
        }
        let file = File::options().read(true).write(true).open(&path).map_err(Error::io(&path))?;
        let found = read_header(&path, &file)?;
        if found != header {
            return Err(unreadable(&path, "the header of another tower or other data"));
        }
        Ok(Self { path, file, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the file takes when every row is in it.
    pub fn full_bytes(&self) -> u64 {
        self.header.file_bytes()
    }

    /// A row's features, if the file has them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, row: usize) -> Result<Option<Vec<f32>>> {
        let mut slot = vec![0; self.header.slot_bytes()];
        self.file.read_exact_at(&mut slot, self.header.offset(row)).map_err(Error::io(&self.path))?;
        let (checksum, values) = slot.split_at(CHECKSUM_BYTES);
        let Header { format, values_per_row, .. } = self.header;
        Ok((checksum == checksum_of(values)).then(|| format.decode(values, values_per_row)))
    }

    /// Keeps a row's features and gives them as they will be read again; as they are if the format cannot hold them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, row: usize, values: Vec<f32>) -> Result<Vec<f32>> {
        let Some(bytes) = self.header.format.encode(&values) else { return Ok(values) };
        let slot = [&checksum_of(&bytes)[..], &bytes].concat();
        self.file.write_all_at(&slot, self.header.offset(row)).map_err(Error::io(&self.path))?;
        Ok(self.header.format.decode(&bytes, values.len()))
    }

    /// Like [`Llava::image_features`], from the file where it has a row and computed (and kept) where not. `rows` are the
    /// batch's rows in the data. Rows with another number of images than one are computed every time.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn image_features(
        &self,
        model: &Llava,
        batch: &PackedBatch,
        rows: &[usize],
        config: &LlavaConfig,
    ) -> Result<Option<Tensor<2>>> {
        if batch.num_images != rows.len() || images_per_row(batch, config).iter().any(|&images| images != 1) {
            return Ok(model.image_features(batch, config).map(Tensor::detach));
        }
        let mut kept = rows.iter().map(|&row| self.get(row)).collect::<Result<Vec<_>>>()?;
        let missing: Vec<usize> = (0..rows.len()).filter(|&index| kept[index].is_none()).collect();
        let computed = compute(model, batch, &missing, config);
        for (&index, features) in missing.iter().zip(computed.chunks_exact(self.header.values_per_row)) {
            kept[index] = Some(self.put(rows[index], features.to_vec())?);
        }
        let values: Vec<f32> = kept.into_iter().flatten().flatten().collect();
        let features = rows.len() * config.image_seq_length();
        let shape = [features, values.len() / features.max(1)];
        Ok((features > 0).then(|| Tensor::from_data(TensorData::new(values, shape), &model.device())))
    }
}

/// The features of some of the batch's images, without a graph.
fn compute(model: &Llava, batch: &PackedBatch, images: &[usize], config: &LlavaConfig) -> Vec<f32> {
    let pixels_per_image = batch.pixel_values.len() / batch.num_images.max(1);
    let pixels = |&image: &usize| &batch.pixel_values[image * pixels_per_image..(image + 1) * pixels_per_image];
    let pixel_values = images.iter().flat_map(pixels).copied().collect();
    let chosen = PackedBatch { pixel_values, num_images: images.len(), ..Default::default() };
    let features = model.image_features(&chosen, config).map(|features| features.try_into_vec_as::<f32>());
    features.and_then(std::result::Result::ok).unwrap_or_default()
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
    fn slot_bytes(&self) -> usize {
        // Both formats take two bytes a value; slots start at multiples of 8.
        (CHECKSUM_BYTES + 2 * self.values_per_row).next_multiple_of(8)
    }

    fn offset(&self, row: usize) -> u64 {
        HEADER_BYTES + row as u64 * self.slot_bytes() as u64
    }

    fn file_bytes(&self) -> u64 {
        self.offset(self.rows)
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

/// The file with its header and empty slots (a hole, where the file system has holes), under its name only when whole.
fn create(path: &Path, json: &[u8], header: &Header) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let file = File::create(&temporary).map_err(Error::io(&temporary))?;
    let write = || {
        file.write_all_at(MAGIC, 0)?;
        file.write_all_at(&(json.len() as u64).to_le_bytes(), 8)?;
        file.write_all_at(json, 16)?;
        file.set_len(header.file_bytes())?;
        file.sync_all()
    };
    write().map_err(Error::io(&temporary))?;
    // A link, not a rename: of several ranks that create the file at once, the first wins and all use the same one.
    let linked = std::fs::hard_link(&temporary, path);
    std::fs::remove_file(&temporary).map_err(Error::io(&temporary))?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
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
        self.0.update(format!("{:?}{:?}", data.shape(), data.dtype()));
        self.0.update(data.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(rows: usize, format: CachedAs) -> Header {
        Header { tower_sha256: "t".into(), data_fingerprint: "d".into(), rows, values_per_row: 3, format }
    }

    #[test]
    fn what_is_put_is_what_is_read_and_survives_reopening() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (format, third) in [(CachedAs::F16, 0.333_251_95), (CachedAs::Bf16, 0.333_984_38)] {
            let cache = VisionFeatureCache::open_with(dir.path(), header(4, format)).expect("created");
            assert_eq!(cache.get(2).expect("readable"), None, "an empty slot");
            let used = cache.put(2, vec![1.0, 1.0 / 3.0, -0.0]).expect("writable");
            assert_eq!(used, [1.0, third, 0.0]);
            let again = VisionFeatureCache::open_with(dir.path(), header(4, format)).expect("opened");
            assert_eq!(again.get(2).expect("readable"), Some(used));
            assert_eq!(again.get(3).expect("readable"), None, "the slot after it");
            assert_eq!(again.path().metadata().expect("a file").len(), cache.full_bytes());
        }
    }

    #[test]
    fn a_half_written_slot_is_empty() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = VisionFeatureCache::open_with(dir.path(), header(2, CachedAs::F16)).expect("created");
        cache.put(1, vec![1.0, 2.0, 3.0]).expect("writable");
        cache.file.write_all_at(&[7], cache.header.offset(1) + 9).expect("writable");
        assert_eq!(cache.get(1).expect("readable"), None);
    }

    #[test]
    fn what_a_format_cannot_hold_is_used_as_it_is_and_not_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = VisionFeatureCache::open_with(dir.path(), header(1, CachedAs::F16)).expect("created");
        assert_eq!(cache.put(0, vec![1e6, 0.1, 0.2]).expect("nothing to write"), [1e6, 0.1, 0.2]);
        assert_eq!(cache.get(0).expect("readable"), None);
    }

    #[test]
    fn another_tower_or_other_data_get_another_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let open = |header| VisionFeatureCache::open_with(dir.path(), header).expect("created").path;
        let other = Header { tower_sha256: "u".into(), ..header(1, CachedAs::F16) };
        assert_ne!(open(header(1, CachedAs::F16)), open(other));
        assert_ne!(open(header(1, CachedAs::F16)), open(header(2, CachedAs::F16)));
    }

    #[test]
    fn a_file_that_is_not_one_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = VisionFeatureCache::open_with(dir.path(), header(1, CachedAs::F16)).expect("created").path;
        std::fs::write(&path, vec![0; HEADER_BYTES as usize]).expect("writable");
        let error = VisionFeatureCache::open_with(dir.path(), header(1, CachedAs::F16)).expect_err("no header");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
