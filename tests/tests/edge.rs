//! Difficult files: each gets the verdict of Pillow, and pixels of transformers where it is an image.

use images::image_processor::{ImageError, ImageProcessor, Resample};
use std::fs;
use std::path::Path;
use tests::{assert_close, reference, shared};

const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

#[test]
fn every_file_gets_its_verdict() {
    verdicts(&reference("edge"));
}

#[test]
fn every_file_made_from_a_photo_gets_its_verdict() {
    let Some(edge) = shared("data/edge") else { return };
    verdicts(&edge);
}

fn verdicts(folder: &Path) {
    let processor = ImageProcessor::new(Some(336), 336, Resample::Bicubic, CLIP_MEAN, CLIP_STD);
    let manifest = json(&folder.join("manifest.json"));
    for entry in manifest["files"].as_array().expect("files") {
        let name = entry["file"].as_str().expect("file");
        let path = folder.join(name);
        if path.is_dir() {
            continue; // There are no bytes to judge; reading it is the caller's error.
        }
        let result = processor.process(&fs::read(&path).expect(name));
        match entry["expect"].as_str() {
            Some("ok") => {
                let image = result.unwrap_or_else(|error| panic!("{name}: {error}"));
                let size = entry["pil"]["size"].as_array().expect("size");
                assert_eq!(Some(u64::from(image.width)), size[0].as_u64(), "{name}: width");
                assert_eq!(Some(u64::from(image.height)), size[1].as_u64(), "{name}: height");
            }
            Some("error") => {
                let error = result.expect_err(name);
                println!("{name}: {error} (Pillow: {})", entry["pil_error"]);
            }
            other => panic!("{name}: verdict {other:?} in the manifest"),
        }
    }
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let processor = ImageProcessor::new(Some(336), 336, Resample::Bicubic, CLIP_MEAN, CLIP_STD);
    let bytes = fs::read(reference("edge/bomb_header.png")).expect("bomb_header.png");
    let error = processor.process(&bytes).expect_err("60,000 × 60,000 pixels");
    assert_eq!(error, ImageError::TooLarge { width: 60_000, height: 60_000, limit: 178_956_970 });
}

/// Means of the pictures with an alpha channel. `expected_clip336.json` was recorded with a processor that dropped alpha;
/// transformers since 5 blends over white, and these are 5.24's means (the pixel-by-pixel comparison is in `pixels`).
const OVER_WHITE: [(&str, [f32; 3]); 3] = [
    ("rgba.png", [0.932_790_5, 1.212_312_9, 1.452_344_4]),
    ("la.png", [1.058_279_6, 1.178_374_6, 1.296_442_4]),
    ("lossless_alpha.webp", [0.932_790_5, 1.212_312_9, 1.452_344_4]),
];

/// Mean, standard deviation and three pixels of each image, five decimals, as transformers gives them.
///
/// Tolerance: the records are rounded to five (mean, std) and four decimals (pixels). Mean and std of a picture whose
/// transparency was dropped instead of blended would be off by tenths.
#[test]
fn pixels_are_the_recorded_ones() {
    let processor = ImageProcessor::new(Some(336), 336, Resample::Bicubic, CLIP_MEAN, CLIP_STD);
    let Some(edge) = shared("data/edge") else { return };
    let expected = json(&edge.join("expected_clip336.json"));
    for (name, record) in expected.as_object().expect("an object") {
        let image = processor.process(&fs::read(edge.join(name)).expect(name)).expect(name);
        let mut values = vec![0f32; image.codes.len()];
        processor.normalize_into(&image.codes, &mut values);
        let planes: Vec<&[f32]> = values.chunks_exact(336 * 336).collect();
        let mean = |plane: &[f32]| plane.iter().map(|&v| f64::from(v)).sum::<f64>() / plane.len() as f64;
        let std = |plane: &[f32]| {
            let mean = mean(plane);
            (plane.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / plane.len() as f64).sqrt()
        };
        let at = |row: usize, column: usize| planes.iter().map(move |plane| plane[row * 336 + column]);
        let found: [(&str, Vec<f32>, f32); 5] = [
            ("mean", planes.iter().map(|plane| mean(plane) as f32).collect(), 2e-5),
            ("std", planes.iter().map(|plane| std(plane) as f32).collect(), 2e-5),
            ("corner_tl", at(0, 0).collect(), 1e-4),
            ("centre", at(168, 168).collect(), 1e-4),
            ("corner_br", at(335, 335).collect(), 1e-4),
        ];
        if let Some((_, mean)) = OVER_WHITE.iter().find(|(transparent, _)| transparent == name) {
            assert_close(&format!("{name} mean"), &found[0].1, mean, 2e-5);
            continue;
        }
        for (key, found, tolerance) in found {
            let record = record[key].as_array().expect(key);
            let record: Vec<f32> = record.iter().map(|v| v.as_f64().expect(key) as f32).collect();
            assert_close(&format!("{name} {key}"), &found, &record, tolerance);
        }
    }
}
