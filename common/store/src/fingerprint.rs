//! The identity of a model or adapter folder, fast enough to compute at every start.

use crate::{adapter, checkpoint};
use base::{Error, Result, files, names};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files up to this size are hashed whole, bytes.
const WHOLE_BYTES: u64 = 16 << 20;
/// Bytes read at each sampled place of a larger file.
const SAMPLE_BYTES: u64 = 512;
/// Places that are sampled in each tensor: its beginning, its middle, its end.
const PLACES: u64 = 3;
/// Places that are sampled in a large file of another format.
const PLACES_OF_UNKNOWN: u64 = 256;

/// Lower-case hex SHA-256 that identifies the weights of a folder.
///
/// Covered are the model's or adapter's configuration (whole), and of every weight file that is loaded (of the same weights in two
/// formats one is) its name, its size and: up to 16 MB all
/// of it; beyond that names, formats and shapes of its tensors, and 512 bytes from the beginning, the middle and the end of
/// each tensor, so that training any part changes it. Not covered are tokenizer and processors (the shards' metadata has
/// their hashes), times and paths: a copy has the same fingerprint.
///
/// # Errors
/// A folder without weights; files that cannot be read.
pub fn of_weights(dir: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    for name in [names::CONFIG_FILE, names::ADAPTER_CONFIG_FILE] {
        let path = dir.join(name);
        if path.exists() {
            digest.update(std::fs::read(&path).map_err(Error::io(&path))?);
        }
    }
    let files = weight_files(dir)?;
    if files.is_empty() {
        let remedy = "give the folder of a model or adapter";
        return Err(Error::invalid(
            dir.display(),
            "no weights",
            "model.safetensors, its parts with their index, pytorch_model.bin, or an adapter's",
            remedy,
        ));
    }
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(&path).map_err(Error::io(&path))?;
        let len = file.metadata().map_err(Error::io(&path))?.len();
        digest.update(format!("\n{name} {len}\n"));
        if len <= WHOLE_BYTES {
            digest.update(files::sha256_of_file(&path)?);
            continue;
        }
        for (at, bytes) in samples(&file, len) {
            let mut sample = vec![0; bytes as usize];
            file.read_exact_at(&mut sample, at).map_err(Error::io(&path))?;
            digest.update(sample);
        }
    }
    Ok(files::hex(&digest.finalize()))
}

/// The files that are read of a model's folder, of an adapter's, or of one that is both.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = checkpoint::weight_files(dir)?;
    paths.extend(Some(adapter::weights_file(dir)).filter(|path| path.exists()));
    paths.sort();
    Ok(paths)
}

/// Where to read, and how many bytes.
fn samples(file: &File, len: u64) -> Vec<(u64, u64)> {
    let Some((header, tensors)) = header(file, len) else {
        let at = |place: u64| place * (len - SAMPLE_BYTES) / (PLACES_OF_UNKNOWN - 1);
        return (0..PLACES_OF_UNKNOWN).map(|place| (at(place), SAMPLE_BYTES)).collect();
    };
    let mut places = vec![(0, header)];
    for [begin, end] in tensors {
        let bytes = (end - begin).min(SAMPLE_BYTES);
        let at = |place: u64| header + begin + place * (end - begin - bytes) / (PLACES - 1);
        places.extend((0..PLACES).map(|place| (at(place), bytes)));
    }
    places
}

/// A tensor's entry in the header of a safetensors file.
#[derive(Deserialize)]
struct TensorEntry {
    data_offsets: [u64; 2],
}

/// Length of a safetensors header with its size field, and the tensors' places behind it in file order; `None` for a file of
/// another format, or a damaged one (which fails when it is loaded).
fn header(file: &File, len: u64) -> Option<(u64, Vec<[u64; 2]>)> {
    let mut size = [0; 8];
    file.read_exact_at(&mut size, 0).ok()?;
    let header = u64::from_le_bytes(size).checked_add(8).filter(|&header| header < len)?;
    let mut text = vec![0; (header - 8) as usize];
    file.read_exact_at(&mut text, 8).ok()?;
    let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text).ok()?;
    let tensors = entries.into_iter().filter(|(name, _)| name != "__metadata__");
    let mut places = Vec::new();
    for (_, entry) in tensors {
        let [begin, end] = serde_json::from_value::<TensorEntry>(entry).ok()?.data_offsets;
        if begin > end || end > len - header {
            return None;
        }
        places.push([begin, end]);
    }
    places.sort_unstable();
    Some((header, places))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model folder with two tensors of `values` f32 each; the bytes are a function of the position.
    fn model(values: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join(names::CONFIG_FILE), "{}").expect("written");
        let bytes = values * 4;
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"b":{{"dtype":"F32","shape":[{values}],"data_offsets":[{bytes},{end}]}},
               "a":{{"dtype":"F32","shape":[{values}],"data_offsets":[0,{bytes}]}}}}"#,
            end = 2 * bytes
        );
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.into_bytes());
        file.extend((0..2 * bytes).map(|at| (at % 251) as u8));
        std::fs::write(dir.path().join(names::WEIGHTS_FILE), file).expect("written");
        dir
    }

    fn of(dir: &Path) -> String {
        of_weights(dir).expect("a fingerprint")
    }

    #[test]
    fn a_copy_is_the_same_and_any_trained_part_is_another() {
        // Hashed whole, and sampled.
        for values in [1000, 3 << 20] {
            let dir = model(values);
            let expected = of(dir.path());
            assert_eq!(expected, of(model(values).path()), "{values}: a copy");
            let path = dir.path().join(names::WEIGHTS_FILE);
            let len = std::fs::metadata(&path).expect("there").len();
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
            // First and last value of the second tensor, and the middle of the first.
            for at in [len - 4, len - 4 * values as u64, len - 6 * values as u64] {
                let mut old = [0];
                File::open(&path).expect("opened").read_exact_at(&mut old, at).expect("read");
                file.write_all_at(&[old[0] ^ 1], at).expect("written");
                assert_ne!(expected, of(dir.path()), "{values}: byte {at} changed");
                file.write_all_at(&old, at).expect("written");
            }
            assert_eq!(expected, of(dir.path()), "{values}: changed back");
            std::fs::write(dir.path().join(names::CONFIG_FILE), "{ }").expect("written");
            assert_ne!(expected, of(dir.path()), "{values}: another config");
        }
    }

    /// Of two formats one is loaded, and counts alone.
    #[test]
    fn what_is_not_loaded_does_not_count() {
        let dir = model(1000);
        let at = |name: &str| dir.path().join(name);
        let expected = of(dir.path());
        std::fs::write(at(names::PICKLED_WEIGHTS_FILE), "pickled").expect("written");
        std::fs::write(at("consolidated.safetensors"), "of another program").expect("written");
        std::fs::write(at("pytorch_model-00001-of-00002.bin"), "a part").expect("written");
        assert_eq!(expected, of(dir.path()));

        let single = at(names::WEIGHTS_FILE);
        std::fs::rename(&single, at("a.safetensors")).expect("renamed");
        let pickled = of(dir.path());
        std::fs::write(
            at(names::WEIGHTS_INDEX_FILE),
            r#"{"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}"#,
        )
        .expect("written");
        let parts = of(dir.path());
        std::fs::write(at(names::PICKLED_WEIGHTS_FILE), "another").expect("written");
        assert_eq!(parts, of(dir.path()));
        assert!(parts != pickled && parts != expected);

        let adapter = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(adapter.path().join(names::PICKLED_ADAPTER_WEIGHTS_FILE), "pickled").expect("written");
        let pickled = of(adapter.path());
        std::fs::write(adapter.path().join(names::ADAPTER_WEIGHTS_FILE), "tensors").expect("written");
        let both = of(adapter.path());
        std::fs::remove_file(adapter.path().join(names::PICKLED_ADAPTER_WEIGHTS_FILE)).expect("removed");
        assert!(both == of(adapter.path()) && both != pickled);
    }

    /// Runs that are resumed have recorded such values.
    #[test]
    fn values_are_those_of_earlier_versions() {
        let dir = model(1000);
        assert_eq!(of(dir.path()), "5d35dc701b8318af76d4325b27686bcc52ec0fbb33a466f92e80446fd517ce5c");
    }

    #[test]
    fn large_files_of_other_formats_are_sampled_and_empty_folders_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert!(of_weights(dir.path()).expect_err("no weights").to_string().contains("no weights"));
        let path = dir.path().join(names::PICKLED_WEIGHTS_FILE);
        let mut bytes = vec![7; WHOLE_BYTES as usize + 1000];
        std::fs::write(&path, &bytes).expect("written");
        let expected = of(dir.path());
        let last = bytes.len() - 1;
        bytes[last] = 8;
        std::fs::write(&path, &bytes).expect("written");
        assert_ne!(expected, of(dir.path()));
    }
}
