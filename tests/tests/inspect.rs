//! `preprocess inspect` and `preprocess verify`: the numbers, the page in a browser, and a flipped byte.

use serde_json::{Value, json};
use shards::ShardIndex;
use std::path::Path;
use std::process::Command;
use tests::dataset::{Dataset, Output, llava};

fn preprocess(args: &[&str]) -> (Option<i32>, String, String) {
    let run = Command::new(tests::program("preprocess")).args(args).output().expect("started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (run.status.code(), text(&run.stdout), text(&run.stderr))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Twelve good rows of which two share picture and caption, one whose picture is missing, one without turns.
fn shards() -> Output {
    let dataset = Dataset::empty();
    let names = dataset.copy_images("pictures", 12);
    let mut rows: Vec<Value> = tests::dataset::reference_rows("pictures").into_iter().take(12).collect();
    rows[11]["image"] = rows[0]["image"].clone();
    rows[11]["conversations"] = rows[0]["conversations"].clone();
    let mut missing = rows[1].clone();
    (missing["id"], missing["image"]) = (json!("missing"), json!("nowhere.jpg"));
    rows.push(missing);
    rows.push(json!({"id": "silent", "image": names[0], "conversations": []}));
    dataset.write(&Value::Array(rows));
    dataset.shards(&["--rows-per-shard", "5", "--max-row-group-rows", "2", "--max-rejected", "1"])
}

#[test]
fn inspect_counts_rows_rejects_and_duplicates() {
    let shards = shards();
    let (code, text, stderr) = preprocess(&["inspect", path(shards.path())]);
    assert_eq!(code, Some(0), "{stderr}");
    for line in ["14 in = 12 train + 0 validation + 2 rejected", "1 missing_image", "1 no_turns"] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    for what in ["image", "caption"] {
        let line = format!("1 {what} in 2 places, the most frequent 2 times");
        assert!(text.contains(&line), "{line:?} is missing in\n{text}");
    }
    assert!(text.contains("224×224 (12)"), "{text}");
}

#[test]
fn a_row_shows_its_text_with_the_answer_marked() {
    let shards = shards();
    let model = llava();
    let (code, with_model, stderr) =
        preprocess(&["inspect", path(shards.path()), "--row", "0", "--model", path(&model)]);
    assert_eq!(code, Some(0), "{stderr}");
    // The shards carry their tokenizer.
    let (code, text, stderr) = preprocess(&["inspect", path(shards.path()), "--row", "0"]);
    assert_eq!((code, &text), (Some(0), &with_model), "{stderr}");
    assert!(text.contains("<|im_start|>user"), "{text}");
    assert!(text.contains("«<|im_end|>»"), "the end token is supervised: {text}");
    assert!(!text.contains("«<image>»"), "the image is given: {text}");
    let (code, _, stderr) = preprocess(&["inspect", path(shards.path()), "--row", "12"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("0 to 11"), "{stderr}");
}

#[test]
fn rejected_rows_are_listed_by_cause_and_samples_chosen_by_length() {
    let shards = shards();
    let (code, text, stderr) = preprocess(&["inspect", path(shards.path()), "--cause", "missing_image"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        text.starts_with("row 12 (id \"missing\"): missing_image: nowhere.jpg") && text.lines().count() == 1,
        "{text}"
    );
    let (code, _, stderr) = preprocess(&["inspect", path(shards.path()), "--cause", "too_long"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("missing_image, no_turns"), "{stderr}");
    let page = shards.path().join("page.html");
    let (code, _, stderr) =
        preprocess(&["inspect", path(shards.path()), "--html", path(&page), "--min-tokens", "100000"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no row of 100000"), "{stderr}");
    let set = shards::ShardSet::open(shards.path(), shards::Split::Train).expect("opens");
    let lengths: Vec<usize> = set.texts().map(|row| row.expect("a row").input_ids.len()).collect();
    let longest = *lengths.iter().max().expect("rows");
    let (code, _, stderr) =
        preprocess(&["inspect", path(shards.path()), "--html", path(&page), "--min-tokens", &longest.to_string()]);
    assert_eq!(code, Some(0), "{stderr}");
    let html = std::fs::read_to_string(&page).expect("the page");
    assert_eq!(
        html.matches("<details class=\"sample\"").count(),
        lengths.iter().filter(|&&length| length == longest).count()
    );
}

/// The page as Chromium shows it. `tests/run` installs it; the test fails where it is missing.
#[test]
fn the_page_renders_in_a_browser() {
    let shards = shards();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let page = folder.path().join("page.html");
    let model = llava();
    let args = ["inspect", path(shards.path()), "--html", path(&page), "--model", path(&model), "--samples", "6"];
    let (code, _, stderr) = preprocess(&args);
    assert_eq!(code, Some(0), "{stderr}");
    let html = std::fs::read_to_string(&page).expect("the page");
    for outside in ["http://", "https://", "<script src", "<link"] {
        assert!(!html.contains(outside), "the page is not self-contained: {outside}");
    }
    // What the browser made of it, after layout: six samples with pictures, both kinds of tokens, five charts.
    let dom = chromium(folder.path(), &page, &["--dump-dom"]);
    assert_eq!(dom.matches("<details class=\"sample\"").count(), 6);
    assert_eq!(dom.matches("src=\"data:image/jpeg;base64,").count(), 6);
    assert!(dom.contains("6 of 6 samples") && dom.contains("2 of 2 listed rows"), "the script ran");
    assert_eq!(dom.matches("<figure>").count(), 5);
    assert!(dom.contains("class=\"on\"") && dom.contains("missing_image"), "tokens and rejects");
    let picture = folder.path().join("page.png");
    chromium(folder.path(), &page, &[&format!("--screenshot={}", path(&picture)), "--window-size=420,900"]);
    let bytes = std::fs::read(&picture).expect("a screenshot");
    let mut pixels = Vec::new();
    let raster = images::image_processor::decode(&bytes, &mut pixels).expect("a PNG");
    let colours: std::collections::HashSet<&[u8]> = pixels.chunks_exact(raster.layout.channels()).collect();
    println!("screenshot {}×{}, {} colours", raster.width, raster.height, colours.len());
    assert!(colours.len() > 20, "the page is blank");
}

fn chromium(folder: &Path, page: &Path, args: &[&str]) -> String {
    let profile = tempfile::tempdir_in(folder).expect("a profile");
    let run = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(args)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium starts (tests/run installs it)");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

#[test]
fn verify_passes_good_shards_and_finds_a_flipped_byte_anywhere() {
    let shards = shards();
    let dir = shards.path();
    let (code, text, stderr) = preprocess(&["verify", path(dir)]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(text.contains("12 rows and 2 rejected"), "{text}");
    for shard in ShardIndex::read(dir).expect("an index").shards {
        let file = dir.join(&shard.file);
        let bytes = std::fs::read(&file).expect("read");
        for position in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            std::fs::write(&file, damaged).expect("written");
            let (code, _, stderr) = preprocess(&["verify", path(dir)]);
            assert_eq!(code, Some(1), "{}: byte {position}", shard.file);
            assert!(stderr.contains(&shard.file) && stderr.contains("SHA-256"), "{stderr}");
        }
        std::fs::write(&file, bytes).expect("written");
    }
    assert_eq!(preprocess(&["verify", path(dir)]).0, Some(0), "whole again");
}

#[test]
fn verify_finds_a_wrong_account() {
    let shards = shards();
    let rejected = shards.path().join("rejected.jsonl");
    let text = std::fs::read_to_string(&rejected).expect("read");
    let first = text.lines().next().expect("a line");
    std::fs::write(&rejected, format!("{first}\n")).expect("written");
    let (code, _, stderr) = preprocess(&["verify", path(shards.path())]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("rejected.jsonl"), "{stderr}");
}

#[test]
fn files_rows_and_causes_that_are_not_there_say_what_to_do() {
    let shards = shards();
    let dir = shards.path();
    let refused = |words: &[&str], part: &str| {
        let (code, _, stderr) = preprocess(words);
        assert!(code == Some(1) && stderr.contains(part), "{words:?}: {part:?} is not in {stderr}");
    };
    refused(&["inspect", path(dir), "--cause", "x"], "choose a cause that rows were rejected for");
    refused(&["inspect", path(dir), "--row", "100000"], "rows); choose another");
    std::fs::remove_file(dir.join("rejected.jsonl")).expect("removed");
    refused(
        &["verify", path(dir)],
        "rejected.jsonl: found no such file, expected the rejected rows, beside index.json; copy",
    );
    let shard = ShardIndex::read(dir).expect("an index").shards.remove(0);
    std::fs::remove_file(dir.join(&shard.file)).expect("removed");
    refused(
        &["verify", path(dir)],
        &format!("{}: found no such file, expected a file that index.json lists", shard.file),
    );
}
