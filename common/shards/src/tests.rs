//! Round trips of rows: every format, several images, no image, every access.

use super::*;
use base::IGNORE_INDEX;
use chat::TokenizedSample;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::path::Path;

const SIDE: usize = 14;

fn metadata(pixels: PixelFormat) -> ShardMetadata {
    let table =
        std::array::from_fn(|channel| std::array::from_fn(|code| (code as f32 - 120.5) / (channel as f32 + 3.)));
    ShardMetadata {
        format_version: FORMAT_VERSION,
        tokenizer_sha256: "t".repeat(64),
        chat_template_sha256: "c".repeat(64),
        image_processor_sha256: "i".repeat(64),
        pixels,
        image_decoder: String::new(),
        shortest_edge: Some(SIDE),
        resample: Default::default(),
        crop_size: SIDE,
        image_mean: [0.5, 0.25, 0.125],
        image_std: [0.5, 0.25, 0.1],
        code_to_f32: CodeTable::new(table),
    }
}

/// Row `number` has `number % 3` images and `number` more tokens than the shortest.
fn sample(number: usize) -> Sample {
    let mut random = StdRng::seed_from_u64(number as u64);
    let images = (0..number % 3).map(|image| {
        let mut payload = vec![0; 3 * SIDE * SIDE];
        random.fill_bytes(&mut payload);
        let (width, height) = (100 + image as u32, 50 + number as u32);
        SampleImage { name: format!("{number}-{image}.jpg"), sha256: format!("{number:064}"), width, height, payload }
    });
    let images = images.collect();
    let input_ids: Vec<i32> = (0..5 + number as i32).collect();
    let labels = input_ids.iter().map(|&id| if id < 4 { IGNORE_INDEX } else { id }).collect();
    Sample { id: format!("row {number}"), tokens: TokenizedSample { input_ids, labels }, images }
}

fn write(dir: &Path, metadata: &ShardMetadata, split: Split, shard: usize, row_groups: &[&[usize]]) -> ShardFile {
    let mut writer = ShardWriter::create(dir, split, shard, metadata).expect("created");
    for rows in row_groups {
        let mut encoder = RowGroupEncoder::new(metadata).expect("encoder");
        rows.iter().for_each(|&row| encoder.push(&sample(row)).expect("pushed"));
        writer.append(encoder.finish().expect("encoded").expect("rows")).expect("appended");
    }
    writer.finish().expect("finished")
}

fn write_set(dir: &Path, pixels: PixelFormat) -> ShardMetadata {
    let metadata = metadata(pixels);
    let shards = vec![
        write(dir, &metadata, Split::Train, 0, &[&[0, 1, 2], &[3, 4]]),
        write(dir, &metadata, Split::Validation, 0, &[&[100]]),
        write(
            dir,
            &metadata,
            Split::Train,
            1,
            &[&[5], &[6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]],
        ),
    ];
    let counts = Counts { rows_in: 24, train: 23, validation: 1, ..Counts::default() };
    ShardIndex::new(metadata.clone(), counts, shards).write(dir).expect("index");
    metadata
}

fn expected_row(metadata: &ShardMetadata, number: usize) -> Row {
    let sample = sample(number);
    let mut pixel_values = Vec::new();
    for image in &sample.images {
        PixelFormat::U8.decode(&image.payload, 1, SIDE, &metadata.code_to_f32, &mut pixel_values).expect("decoded");
    }
    Row {
        id: sample.id,
        images: sample.images.into_iter().map(|image| image.name).collect(),
        input_ids: sample.tokens.input_ids,
        labels: sample.tokens.labels,
        pixel_values,
    }
}

#[test]
fn rows_come_back_in_any_order_and_from_any_thread() {
    let is_exact = |format: &PixelFormat| !format.stores_source() && format.rounding() == 0.0;
    for pixels in PixelFormat::ALL.iter().copied().filter(is_exact) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let metadata = write_set(dir.path(), pixels);
        let set = ShardSet::open(dir.path(), Split::Train).expect("opened");
        assert_eq!((set.len(), set.metadata()), (23, &metadata));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (set, metadata) = (&set, &metadata);
                scope.spawn(move || {
                    for step in 0..23 {
                        let row = (step * 7 + thread * 5) % 23;
                        assert_eq!(set.read_row(row).expect("read"), expected_row(metadata, row), "{pixels} row {row}");
                    }
                });
            }
        });
        let validation = ShardSet::open(dir.path(), Split::Validation).expect("opened");
        assert_eq!(validation.read_row(0).expect("read"), expected_row(&metadata, 100));
        assert_ne!(validation.fingerprint(), set.fingerprint());
        assert!(set.read_row(23).is_err());
    }
}

#[test]
fn texts_are_all_rows_without_pixels() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_set(dir.path(), PixelFormat::Predicted);
    let set = ShardSet::open(dir.path(), Split::Train).expect("opened");
    let texts: Vec<RowText> = set.texts().collect::<base::Result<_>>().expect("read");
    assert_eq!(texts.len(), 23);
    for (number, text) in texts.into_iter().enumerate() {
        let sample = sample(number);
        let images = sample.images.into_iter().map(|image| ImageText {
            name: image.name,
            sha256: image.sha256,
            width: image.width,
            height: image.height,
        });
        assert_eq!(text.images, images.collect::<Vec<_>>());
        assert_eq!((text.id, text.input_ids, text.labels), (sample.id, sample.tokens.input_ids, sample.tokens.labels));
    }
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let write = || write(dir.path(), &metadata(PixelFormat::Predicted), Split::Train, 0, &[&[1, 2], &[3]]);
    let first = write();
    assert_eq!(first, write());
    assert_eq!(base::files::sha256_of_file(&dir.path().join(&first.file)).expect("read"), first.sha256);
}

#[test]
fn foreign_and_damaged_files_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let error = ShardSet::open(dir.path(), Split::Train).err().expect("refused").to_string();
    assert!(error.contains("no index.json"), "{error}");

    write_set(dir.path(), PixelFormat::U8);
    // A file of another run, of the same size: noticed by its metadata.
    let mut other = metadata(PixelFormat::U8);
    other.tokenizer_sha256 = "x".repeat(64);
    write(dir.path(), &other, Split::Train, 0, &[&[0, 1, 2], &[3, 4]]);
    let set = ShardSet::open(dir.path(), Split::Train).expect("opened");
    let error = set.read_row(0).expect_err("refused").to_string();
    assert!(error.contains("shard-00000.parquet") && error.contains("tokenizer_sha256"), "{error}");

    let path = dir.path().join("shard-00001.parquet");
    let bytes = std::fs::read(&path).expect("read");
    std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    let error = ShardSet::open(dir.path(), Split::Train).err().expect("refused").to_string();
    assert!(error.contains("shard-00001.parquet"), "{error}");
    std::fs::remove_file(&path).expect("removed");
    let error = ShardSet::open(dir.path(), Split::Train).err().expect("refused").to_string();
    assert!(
        error.contains("shard-00001.parquet: found no such file, expected a file that index.json lists"),
        "{error}"
    );
    assert!(error.contains("copy it again, or run the same preprocess shards again"), "{error}");
    let error = ShardIndex::sha256(&dir.path().join("other")).expect_err("refused").to_string();
    assert!(error.contains("found no such folder, expected a folder of finished shards"), "{error}");
}

#[test]
fn images_of_every_row_are_counted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for pixels in [PixelFormat::Predicted, PixelFormat::F16] {
        write_set(dir.path(), pixels);
        for split in Split::ALL {
            let set = ShardSet::open(dir.path(), split).expect("opened");
            let rows = (0..set.len()).map(|row| set.read_row(row).expect("a row").images.len() as u32);
            assert_eq!(set.images_per_row().expect("readable"), rows.collect::<Vec<_>>());
        }
    }
}

#[test]
fn an_index_that_names_files_elsewhere_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_set(dir.path(), PixelFormat::U8);
    let path = dir.path().join(INDEX_FILE);
    let text = std::fs::read_to_string(&path).expect("read");
    for name in ["../shard-00000.parquet", "/dev/zero", "a/shard-00000.parquet", ".."] {
        std::fs::write(&path, text.replacen("shard-00000.parquet", name, 1)).expect("written");
        let error = ShardSet::open(dir.path(), Split::Train).err().expect("refused").to_string();
        assert!(error.contains("index.json") && error.contains(name), "{error}");
    }
}
