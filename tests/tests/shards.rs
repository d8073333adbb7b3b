//! `preprocess shards` against the reference: ids, labels, pixels, verdicts, and who can read the result.

use chat::ChatProcessor;
use images::image_processor::ImageProcessor;
use serde_json::{Value, json};
use shards::{PixelFormat, Row, ShardIndex, ShardSet, Split};
use std::path::Path;
use tests::dataset::{Dataset, Output, answered, llava, question};

fn rows(output: &Path, split: Split) -> Vec<Row> {
    let set = ShardSet::open(output, split).expect("shards");
    (0..set.len()).map(|index| set.read_row(index).expect("a row")).collect()
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
}

fn integers(value: &Value) -> Vec<i32> {
    value.as_array().expect("a list").iter().map(|id| id.as_i64().expect("an integer") as i32).collect()
}

#[test]
fn tiny_rows_equal_the_reference() {
    let output = Dataset::reference("pictures").shards(&["--rows-per-shard", "10", "--max-row-group-rows", "4"]);
    let samples = json_file(&tests::reference("tiny/samples.json"));
    let samples = samples.as_array().expect("a list");
    let pixels = tests::tiny::read_tensors("tiny/pixels.safetensors");
    let (expected, _) = &pixels["pixel_values"];
    let rows = rows(output.path(), Split::Train);
    assert_eq!(rows.len(), samples.len());
    let per_row = expected.len() / samples.len();
    let mut found = Vec::new();
    for (row, sample) in rows.iter().zip(samples) {
        assert_eq!(Some(row.id.as_str()), sample["id"].as_str());
        assert_eq!(row.images, [sample["image"].as_str().expect("a name")]);
        assert_eq!(row.input_ids, integers(&sample["input_ids"]), "input_ids of {}", row.id);
        assert_eq!(row.labels, integers(&sample["labels"]), "labels of {}", row.id);
        assert_eq!(row.pixel_values.len(), per_row);
        found.extend_from_slice(&row.pixel_values);
    }
    // Decoder and resize are exact, so the normalised values are the reference's bits.
    tests::assert_close("pixel_values of pictures", &found, expected, 0.0);
}

/// The original project downloaded pictures into `images_dl`, beside chat.json.
#[test]
fn the_original_folder_is_taken_as_it_is() {
    let source = tests::reference("pictures");
    let original = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(source.join("chat.json"), original.path().join("chat.json")).expect("copied");
    std::fs::create_dir(original.path().join("images_dl")).expect("created");
    for image in std::fs::read_dir(source.join("images")).expect("the images").flatten() {
        std::fs::copy(image.path(), original.path().join("images_dl").join(image.file_name())).expect("copied");
    }
    let fingerprint = |data: &Path| {
        let output = tempfile::tempdir().expect("a temporary folder");
        let mut command = std::process::Command::new(tests::program("preprocess"));
        command.arg("shards").arg("--model").arg(llava()).arg("--data").arg(data).arg("--output").arg(output.path());
        tests::training::succeed(&mut command);
        let index = ShardIndex::read(output.path()).expect("an index");
        (index.fingerprint, ShardSet::open(output.path(), Split::Train).expect("shards").len())
    };
    let (found, rows) = fingerprint(original.path());
    assert_eq!((found, rows), fingerprint(&source));
    println!("{rows} rows from chat.json and images_dl, the same shards as from images");
}

#[test]
fn a_zip_file_gives_the_same_shards_as_a_folder() {
    let source = tests::reference("pictures");
    let folder = Dataset::reference("pictures").shards(&[]);
    let zipped = Dataset::empty();
    std::fs::copy(source.join("chat.json"), zipped.data().join("chat.json")).expect("copied");
    std::fs::copy(source.join("images.zip"), zipped.data().join("images.zip")).expect("copied");
    let published = zipped.shards(&[]);
    // 70,000 entries need zip64; deflated, in a folder of the archive, after entries that are no images.
    let large = Dataset::empty();
    std::fs::copy(source.join("chat.json"), large.data().join("chat.json")).expect("copied");
    write_zip64(&source.join("images"), &large.data().join("images.zip"));
    let large = large.shards(&[]);
    let hashes = |output: &Output| ShardIndex::read(output.path()).expect("an index").fingerprint;
    assert_eq!(hashes(&published), hashes(&folder));
    assert_eq!(hashes(&large), hashes(&folder));
}

fn write_zip64(images: &Path, path: &Path) {
    use std::io::Write;
    let file = std::io::BufWriter::new(std::fs::File::create(path).expect("created"));
    let mut archive = rawzip::ZipArchiveWriter::new(file);
    let mut add = |name: &str, bytes: &[u8]| {
        let builder = archive.new_file(name).compression_method(rawzip::CompressionMethod::DEFLATE);
        let (mut entry, config) = builder.start().expect("an entry");
        let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::fast());
        let mut writer = config.wrap(encoder);
        writer.write_all(bytes).expect("written");
        let (encoder, descriptor) = writer.finish().expect("finished");
        encoder.finish().expect("finished");
        entry.finish(descriptor).expect("finished");
    };
    (0..70_000).for_each(|number| add(&format!("images/filler-{number}"), b""));
    for entry in std::fs::read_dir(images).expect("listed") {
        let entry = entry.expect("an entry");
        let name = format!("images/{}", entry.file_name().to_string_lossy());
        add(&name, &std::fs::read(entry.path()).expect("read"));
    }
    archive.finish().expect("finished").flush().expect("flushed");
}

#[test]
fn pixel_formats_read_back_the_same_values() {
    let dataset = Dataset::reference("pictures");
    let predicted = rows(dataset.shards(&["--limit", "6"]).path(), Split::Train);
    for format in PixelFormat::ALL {
        let found = rows(dataset.shards(&["--limit", "6", "--pixels", format.name()]).path(), Split::Train);
        assert_eq!(found.len(), 6);
        for (found, expected) in found.iter().zip(&predicted) {
            tests::assert_close(
                &format!("{format} {}", found.id),
                &found.pixel_values,
                &expected.pixel_values,
                format.rounding(),
            );
            assert_eq!((&found.input_ids, &found.labels), (&expected.input_ids, &expected.labels));
        }
    }
}

#[test]
fn every_edge_file_gets_its_verdict() {
    let dataset = Dataset::empty();
    let edge = tests::reference("edge");
    let manifest = json_file(&edge.join("manifest.json"));
    let files = manifest["files"].as_array().expect("a list");
    let rows: Vec<Value> = files
        .iter()
        .map(|file| {
            let name = file["file"].as_str().expect("a name");
            std::os::unix::fs::symlink(edge.join(name), dataset.data().join(name)).expect("linked");
            json!({"id": name, "image": name, "conversations": [question("<image>"), answered("A picture.")]})
        })
        .collect();
    dataset.write(&Value::Array(rows));
    let output = dataset.shards(&["--max-rejected", "1"]);
    let rejected = output.rejected();
    for file in files {
        let (name, expect) = (file["file"].as_str().expect("a name"), file["expect"].as_str().expect("a verdict"));
        let found = rejected.iter().find(|row| row["id"] == name);
        println!("{name}: {expect}; {}", found.map_or("accepted".to_owned(), |row| row["detail"].to_string()));
        assert_eq!(found.is_none(), expect == "ok", "{name}");
    }
    let cause = |name: &str| rejected.iter().find(|row| row["id"] == name).map(|row| row["cause"].clone());
    assert_eq!(cause("bomb_header.png"), Some(json!("image_too_large")));
    assert_eq!(cause("text.jpg"), Some(json!("not_an_image")));
    assert_eq!(cause("truncated.jpg"), Some(json!("damaged_image")));
    assert_eq!(cause("a_directory.jpg"), Some(json!("unreadable_image")));
}

#[test]
fn every_row_is_accounted_for_with_its_cause() {
    let dataset = Dataset::empty();
    let image = dataset.copy_images("pictures", 1).remove(0);
    let row = |id: &str, image: &str, turns: &[Value]| json!({"id": id, "image": image, "conversations": turns});
    let good = [question("<image>"), answered("A cat.")];
    let long = "word ".repeat(400);
    let rows = [
        (row("good", &image, &good), None),
        (row("good", &image, &good), None),
        (row("turnless", &image, &[]), Some("no_turns")),
        (row("unanswered", &image, &good[..1]), Some("bad_turns")),
        (row("silent", &image, &[question("<image>"), answered(" ")]), Some("empty_answer")),
        (row("unmarked", &image, &[question("What?"), answered("A cat.")]), Some("image_markers")),
        (row("absent", "absent.jpg", &good), Some("missing_image")),
        (row("outside", "../../etc/passwd", &good), Some("missing_image")),
        (row("long", &image, &[question("<image>"), answered(&long)]), Some("too_long")),
        (row("long question", &image, &[question(&format!("<image>{long}")), answered("A cat.")]), Some("too_long")),
        (json!({"image": image, "conversations": good}), None),
        (json!({"id": "wrong", "conversations": "text"}), Some("bad_row")),
        (json!(null), Some("bad_row")),
        (row("last", &image, &good), None),
    ];
    dataset.write(&rows.iter().map(|(row, _)| row.clone()).collect());
    let args = ["--max-length", "200", "--rows-per-shard", "4", "--max-row-group-rows", "3", "--max-rejected", "1"];
    let output = dataset.shards(&args);
    let expected: Vec<(usize, &str)> =
        rows.iter().enumerate().filter_map(|(number, (_, cause))| Some((number, (*cause)?))).collect();
    let rejected = output.rejected();
    let found: Vec<(usize, &str)> = rejected
        .iter()
        .map(|row| (row["row"].as_u64().expect("a number") as usize, row["cause"].as_str().expect("a cause")))
        .collect();
    assert_eq!(found, expected);
    let detail = |number: usize| rejected.iter().find(|row| row["row"] == number).map(|row| row["detail"].to_string());
    assert!(detail(8).expect("too long").contains("answers would be cut"));
    assert!(detail(9).expect("too long").contains("question and image would be cut"));
    let counts = ShardIndex::read(output.path()).expect("an index").counts;
    assert_eq!((counts.rows_in, counts.train, counts.validation, counts.rejected), (14, 4, 0, 10));
    assert!(output.stdout.contains("14 rows in = 4 train + 0 validation + 10 rejected"), "{}", output.stdout);

    let strict = dataset.run(&[&args[..], &["--strict"]].concat());
    assert_eq!(strict.code, Some(1));
    assert!(strict.stderr.contains("row 2 (id \"turnless\"): no_turns"), "{}", strict.stderr);
}

#[test]
fn mistakes_end_with_code_1_and_say_where() {
    let dataset = Dataset::empty();
    std::fs::write(dataset.data().join("chat.json"), "[{\"id\": \"a\"},\n {\"id\" 2}]").expect("written");
    let broken = dataset.run(&[]);
    assert_eq!(broken.code, Some(1));
    assert!(broken.stderr.contains("chat.json: line 2, column 8"), "{}", broken.stderr);
    std::fs::remove_file(dataset.data().join("chat.json")).expect("removed");
    let missing = dataset.run(&[]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("chat.json"), "{}", missing.stderr);
    assert_eq!(dataset.run(&["--pixels", "png"]).code, Some(2));
    assert_eq!(dataset.run(&["--part", "3/2"]).code, Some(2));
    dataset
        .write(&json!([{"id": "a", "image": "none.jpg", "conversations": [question("<image>"), answered("A cat.")]}]));
    let nothing = dataset.run(&[]);
    assert_eq!(nothing.code, Some(1), "a dataset without a training row is a failure");
    assert!(nothing.stderr.contains("missing_image 1"), "{}", nothing.stderr);
}

#[test]
fn validation_rows_are_a_share_chosen_by_id() {
    let dataset = Dataset::empty();
    let turns = [question("Say something."), answered("Something.")];
    let ids = |range: std::ops::Range<usize>| -> Value {
        range.map(|number| json!({"id": format!("row {number}"), "conversations": turns})).collect()
    };
    dataset.write(&ids(0..400));
    let output = dataset.shards(&["--validation-fraction", "0.25", "--rows-per-shard", "64"]);
    let names =
        |output: &Output, split| -> Vec<String> { rows(output.path(), split).into_iter().map(|row| row.id).collect() };
    let (train, validation) = (names(&output, Split::Train), names(&output, Split::Validation));
    assert_eq!(train.len() + validation.len(), 400);
    assert!((70..130).contains(&validation.len()), "{} of 400 held out", validation.len());
    dataset.write(&ids(200..600));
    let shifted = names(&dataset.shards(&["--validation-fraction", "0.25"]), Split::Validation);
    for id in &validation {
        let number: usize = id["row ".len()..].parse().expect("a number");
        assert_eq!(shifted.contains(id), number >= 200, "{id} stays where it was");
    }
}

#[test]
fn another_models_shards_are_refused() {
    let output = Dataset::reference("pictures").shards(&["--limit", "2"]);
    let set = ShardSet::open(output.path(), Split::Train).expect("shards");
    let chat = ChatProcessor::from_dir(&llava()).expect("a tokenizer");
    let mut processor = ImageProcessor::from_dir(&llava()).expect("a processor");
    set.metadata().check(&chat, &processor).expect("the model's own shards");
    processor.sha256 = "0".repeat(64);
    let error = set.metadata().check(&chat, &processor).expect_err("refused").to_string();
    assert!(error.contains("image processor"), "{error}");
}
