//! The image processor against transformers' PIL one: recorded crops, recorded pixel values, and every picture of the data.

use images::image_processor::{ImageProcessor, Resample};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tests::{assert_close, reference, references, shared};

const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Processors of either family, with either filter, as `preprocessor_config.json` has them.
fn processors() -> Vec<Value> {
    let square = |side: usize| json!({"height": side, "width": side});
    vec![
        json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "crop_size": square(336)}),
        json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 60}, "crop_size": square(56), "resample": 2}),
        json!({"image_processor_type": "SiglipImageProcessor", "size": square(384), "resample": 3}),
        json!({"image_processor_type": "SiglipImageProcessor", "size": square(224), "resample": 2}),
        // Smaller than most pictures, and no multiple of any vector's length.
        json!({"image_processor_type": "SiglipImageProcessorFast", "size": square(62), "resample": 3}),
        json!({"image_processor_type": "SiglipImageProcessorPil", "size": square(37), "resample": 2,
            "image_mean": [0.25, 0.5, 0.4], "image_std": [0.3, 0.5, 1.0]}),
    ]
}

fn clip336() -> ImageProcessor {
    ImageProcessor::new(Some(336), 336, Resample::Bicubic, CLIP_MEAN, CLIP_STD)
}

#[test]
fn crops_and_pixel_values_of_the_tiny_models_are_equal_to_the_bit() {
    for model in references::all() {
        equals_recorded(model.name, &reference(model.name), &reference("pictures"));
    }
}

#[test]
fn crops_and_pixel_values_of_real_photos_are_equal_to_the_bit() {
    for name in ["siglip_qwen3", "clip_llama3"] {
        let Some(fixture) = shared(&format!("fixtures/{name}")) else { return };
        let Some(data) = shared("data/coco224_tiny") else { return };
        equals_recorded(name, &fixture, &data);
    }
}

/// The recorded crops and values, row by row, with the pictures of the samples.
fn equals_recorded(name: &str, folder: &Path, data: &Path) {
    let processor = ImageProcessor::from_dir(&folder.join("llava")).expect("settings of the model");
    let bytes = fs::read(folder.join("pixels.safetensors")).expect("pixels.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let crops = tensors.tensor("crop").expect("crop").data();
    let values = tensors.tensor("pixel_values").expect("pixel_values").data();
    let values: Vec<f32> = values.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect();
    let samples = fs::read(folder.join("samples.json")).expect("samples.json");
    let samples: Value = serde_json::from_slice(&samples).expect("JSON");
    let samples = samples.as_array().expect("an array");
    let len = 3 * processor.crop_size * processor.crop_size;
    assert_eq!(crops.len(), samples.len() * len, "{name}");
    for (row, sample) in samples.iter().enumerate() {
        let image = sample["image"].as_str().expect("image");
        let file = fs::read(data.join("images").join(image)).expect(image);
        let codes = processor.process(&file).expect(image).codes;
        let bad = codes.iter().zip(&crops[row * len..][..len]).position(|(a, b)| a != b);
        assert_eq!(bad, None, "{name}: {image}: first different code");
        let mut found = vec![0f32; len];
        processor.normalize_into(&codes, &mut found);
        for (index, (a, b)) in found.iter().zip(&values[row * len..][..len]).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{name}: {image}: pixel_values[{index}] is {a}, expected {b}");
        }
    }
    println!("{name}: the codes of {} pictures are equal (tolerance 0)", samples.len());
}

/// The numbers that the first LLaVA notebook printed for this picture, four decimals.
#[test]
fn published_pixel_values_of_000000039769() {
    let Some(text) = shared("data/000000039769.pixels.json") else { return };
    let text = fs::read(text).expect("pixels.json");
    let published: Value = serde_json::from_slice(&text).expect("JSON");
    let positions = |key: &str| -> Vec<usize> {
        published[key].as_array().expect(key).iter().map(|v| v.as_u64().expect(key) as usize).collect()
    };
    let (rows, columns) = (positions("rows"), positions("cols"));
    let processor = clip336();
    let Some(picture) = shared("data/000000039769.jpg") else { return };
    let file = fs::read(picture).expect("the picture");
    let codes = processor.process(&file).expect("a JPEG").codes;
    let mut values = vec![0f32; codes.len()];
    processor.normalize_into(&codes, &mut values);
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for channel in 0..3 {
        for (i, row) in rows.iter().enumerate() {
            for (j, column) in columns.iter().enumerate() {
                found.push(values[channel * 336 * 336 + row * 336 + column]);
                expected.push(published["values"][channel][i][j].as_f64().expect("a number") as f32);
            }
        }
    }
    assert_close("000000039769 at 336 px", &found, &expected, 2e-2);
}

/// Every picture of the edge cases and the datasets, bit for bit against the installed transformers, verdicts included.
#[test]
fn every_picture_equals_transformers() {
    equal_transformers(["edge", "pictures/images", "pictures_large/images"].map(reference).to_vec());
}

#[test]
fn every_real_picture_equals_transformers() {
    let folders = ["data/edge", "data/coco_tiny/images", "data/coco224_main/images", "data/nlvr_main/images"];
    let folders: Vec<PathBuf> = folders.into_iter().map_while(shared).collect();
    if !folders.is_empty() {
        equal_transformers(folders);
    }
}

fn equal_transformers(folders: Vec<PathBuf>) {
    let Some(mut python) = tests::python() else { return };
    python.arg(tests::python_script("pixel_hashes.py"));
    let mut paths = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_file() && path.extension().is_none_or(|extension| extension != "json") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut processors_of = Vec::new();
    for (index, settings) in processors().iter().enumerate() {
        let dir = folder.path().join(index.to_string());
        fs::create_dir(&dir).expect("a folder");
        fs::write(dir.join("preprocessor_config.json"), settings.to_string()).expect("written");
        processors_of.push(ImageProcessor::from_dir(&dir).expect("read"));
        python.arg(dir);
    }
    let list = folder.path().join("list");
    let text: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    fs::write(&list, text.join("\n")).expect("written");
    let output = python.stdin(fs::File::open(list).expect("the list")).output().expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut equal, mut different) = (0, Vec::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(expected), Some(index), Some(path)) = (words.next(), words.next(), words.next()) else {
            panic!("a hash, a number and a path, not {line}");
        };
        let processor = &processors_of[index.parse::<usize>().expect("a number")];
        let found = match processor.process(&fs::read(path).expect(path)) {
            Err(_) => "error".to_owned(),
            Ok(image) => {
                let mut values = vec![0f32; image.codes.len()];
                processor.normalize_into(&image.codes, &mut values);
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                base::files::sha256_hex(&bytes)
            }
        };
        if found == expected {
            equal += 1;
        } else {
            different.push(format!("processor {index}: {path}: {found}, transformers {expected}"));
        }
    }
    let expected = paths.len() * processors_of.len();
    println!("{equal} of {expected} pictures equal transformers' PIL processors bit for bit");
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(equal, expected, "files that the script did not report");
}

/// Pictures that Pillow reads and we refuse.
const REFUSED: [&str; 19] = [
    "F.tiff",
    "I.tiff",
    "LA.tiff",
    "LAB.tiff",
    "P.tiff",
    "YCbCr.tiff",
    "cmyk-jpeg.tiff",
    "cmyk5-big.tiff",
    "cmyk5-little.tiff",
    "gray8-extra-1-big.tiff",
    "gray8-extra-1-little.tiff",
    "gray8-reversed-1-big.tiff",
    "gray8-reversed-1-little.tiff",
    "rgb-reversed-big.tiff",
    "rgb-reversed-little.tiff",
    "rgb4-999-big.tiff",
    "rgb4-999-little.tiff",
    "rgb5-big.tiff",
    "rgb5-little.tiff",
];

/// Every mode of every format: colour types, depths, interlacing, transparency, sampling, scans, compressions, damage.
#[test]
fn pictures_in_every_mode_equal_transformers() {
    let Some(mut python) = tests::python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let photo =
        fs::read_dir(reference("pictures_large/images")).expect("listed").map(|entry| entry.expect("an entry").path());
    let output = python.arg(tests::python_script("pictures.py")).arg(photo.min().expect("a photo")).arg(folder.path());
    let output = output.output().expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let processor = ImageProcessor::new(Some(112), 112, Resample::Bicubic, CLIP_MEAN, CLIP_STD);
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    let files = fs::read_dir(folder.path()).expect("listed").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e != "values" && e != "error")).collect();
    files.sort();
    for path in &files {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let beside = |ending: &str| fs::read(path.with_file_name(format!("{name}.{ending}"))).ok();
        let found = processor.process(&fs::read(path).expect(name));
        let expected = beside("values").map(|bytes| -> Vec<f32> {
            bytes.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect()
        });
        match (found, expected) {
            (Err(error), None) => {
                println!("{name}: {error} (Pillow: {})", String::from_utf8_lossy(&beside("error").expect("a message")));
                refused += 1;
            }
            (Err(error), Some(_)) => match REFUSED.contains(&name) {
                true => println!("{name}: refused on purpose: {error}"),
                false => wrong.push(format!("{name}: {error}; Pillow reads it")),
            },
            (Ok(_), None) => wrong.push(format!("{name}: read; Pillow refuses it")),
            (Ok(image), Some(expected)) => {
                let mut values = vec![0f32; image.codes.len()];
                processor.normalize_into(&image.codes, &mut values);
                let levels = |(index, (a, b)): (usize, (&f32, &f32))| {
                    (a - b).abs() * CLIP_STD[index / (112 * 112)] as f32 * 255.0
                };
                let largest = values.iter().zip(&expected).enumerate().map(levels).fold(0f32, f32::max);
                let bits = values.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                equal += usize::from(bits);
                if !bits {
                    let share =
                        values.iter().zip(&expected).filter(|(a, b)| a != b).count() as f32 / values.len() as f32;
                    wrong.push(format!(
                        "{name}: differs by up to {largest} levels at {:.1} % of the values",
                        100.0 * share
                    ));
                }
            }
        }
    }
    println!("{} pictures: {equal} equal to the bit, {refused} refused as Pillow does", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
