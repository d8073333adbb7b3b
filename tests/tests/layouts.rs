//! Datasets in every layout that `preprocess shards --data` reads: each gives the rows of the same chat.json.

use serde_json::{Value, json};
use shards::{Row, ShardSet, Split};
use std::path::Path;
use std::process::Command;
use tests::dataset::{Dataset, Finished, answered, question};

const PROMPT: [&str; 2] = ["--prompt", "What is it?"];

/// A folder, the options that it takes, and what the first line of output says of it.
const LAYOUTS: [(&str, &[&str], &str); 17] = [
    ("llava", &[], "LLaVA conversations (my_rows.json)"),
    ("llava_lines", &[], "LLaVA conversations (train.jsonl)"),
    ("sharegpt", &[], "messages (ShareGPT) (train.json)"),
    ("imagefolder_jsonl", &PROMPT, "Hugging Face imagefolder (metadata.jsonl)"),
    ("imagefolder_csv", &PROMPT, "Hugging Face imagefolder (metadata.csv)"),
    ("captions_jsonl", &PROMPT, "captions (captions.jsonl)"),
    ("captions_csv", &PROMPT, "captions (captions.csv)"),
    ("captions_tsv", &PROMPT, "captions (flickr.tsv)"),
    ("questions_csv", &[], "questions and answers (vqa.csv)"),
    ("questions_tsv", &[], "questions and answers (asked.tsv)"),
    ("questions_parquet", &[], "Parquet with questions and answers (rows.parquet)"),
    ("texts", &PROMPT, "a .txt beside each picture"),
    ("coco", &PROMPT, "COCO captions (annotations/captions_val2017.json)"),
    ("webdataset", &PROMPT, "WebDataset (2 files, shard-000000.tar … shard-000001.tar)"),
    ("webdataset_json", &[], "WebDataset (rows.tar)"),
    ("parquet", &PROMPT, "Parquet with captions, the split train; not read: test (data/train-00000-of-00001.parquet)"),
    ("parquet_messages", &[], "Parquet with messages (ShareGPT) (rows.parquet)"),
];

fn shards(data: &Path, output: &Path, options: &[&str]) -> Finished {
    let mut command = Command::new(tests::program("preprocess"));
    command.arg("shards").arg("--model").arg(tests::dataset::llava()).arg("--data").arg(data);
    let run = command.arg("--output").arg(output).args(options).output().expect("started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: run.status.code(), stdout: text(&run.stdout), stderr: text(&run.stderr) }
}

fn rows(shards: &Path) -> Vec<Row> {
    let set = ShardSet::open(shards, Split::Train).expect("shards");
    (0..set.len()).map(|row| set.read_row(row).expect("a row")).collect()
}

/// Pictures of the reference dataset with captions that CSV has to quote, as chat.json and in every layout.
fn make_layouts(dataset: &Dataset, output: &Path) -> Option<usize> {
    let mut python = tests::python()?;
    let names = dataset.copy_images("pictures", 12);
    let caption = |number: usize| format!("Picture \"{number}\", with a comma; and a | bar");
    let captions: Vec<Value> = names.iter().enumerate().map(|(number, name)| json!([name, caption(number)])).collect();
    let row = |pair: &Value| {
        let caption = answered(pair[1].as_str().expect("text"));
        json!({"image": pair[0], "conversations": [question("<image>\nWhat is it?"), caption]})
    };
    dataset.write(&captions.iter().map(row).collect());
    let pictures = dataset.data().join("images");
    std::fs::write(pictures.join("captions.json"), json!(captions).to_string()).expect("written");
    let script = tests::python_script("make_layouts.py");
    let made = python.arg(script).arg(&pictures).arg(output).env("HF_HUB_OFFLINE", "1").output().expect("started");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(names.len())
}

#[test]
fn every_layout_gives_the_rows_of_chat_json() {
    let (dataset, folder) = (Dataset::empty(), tempfile::tempdir().expect("a temporary folder"));
    let Some(count) = make_layouts(&dataset, folder.path()) else { return };
    let expected = rows(dataset.shards(&[]).path());
    assert_eq!(expected.len(), count);
    for (name, options, described) in LAYOUTS {
        let output = folder.path().join(format!("{name}.shards"));
        let run = shards(&folder.path().join(name), &output, options);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.contains(described), "{name}: {first}");
        let found = rows(&output);
        assert_eq!(found.len(), count, "{name}");
        let mut largest = 0f32;
        // Folders are read in the order of names, the others in the order of their rows.
        let order = |row: &Row| expected.iter().position(|other| other.labels == row.labels).expect("a known caption");
        for (number, row) in found.iter().enumerate() {
            let at = if name == "texts" { order(row) } else { number };
            assert_eq!((&row.input_ids, &row.labels), (&expected[at].input_ids, &expected[at].labels), "{name}");
            assert_eq!(row.pixel_values.len(), expected[at].pixel_values.len(), "{name}");
            let pairs = row.pixel_values.iter().zip(&expected[at].pixel_values);
            largest = pairs.fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
        }
        println!("{name}: {} — {count} rows, largest difference of a pixel value {largest:e}", first.trim());
        assert_eq!(largest, 0.0, "{name}");
        let again = shards(&folder.path().join(name), &output, options);
        assert_eq!((again.code, &again.stdout), (Some(0), &run.stdout), "{name}: the same command continues");
    }
}

/// The answer to "which question" is a function of seed and row; it is another for other options.
#[test]
fn questions_are_drawn_by_row() {
    let dataset = Dataset::empty();
    let names = dataset.copy_images("pictures", 12);
    let table: String = names.iter().map(|name| format!("{name},A slope.\n")).collect();
    std::fs::write(dataset.data().join("captions.csv"), format!("image,caption\n{table}")).expect("written");
    let drawn = |options: &[&str]| -> Vec<Vec<i32>> {
        rows(dataset.shards(options).path()).into_iter().map(|row| row.input_ids).collect()
    };
    let two = ["--prompt", "A?", "--prompt", "B?"];
    let first = drawn(&two);
    assert_eq!(first, drawn(&[&two[..], &["--workers", "1", "--max-row-group-rows", "5"]].concat()));
    let mut kinds = first.clone();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds.len(), 2, "both questions are asked");
    assert_ne!(first, drawn(&[&two[..], &["--seed", "1"]].concat()));
    assert_eq!(drawn(&[]), drawn(&["--prompt", "Describe the picture."]), "the default question");
    // Rows of one run keep their questions: another one is another run.
    let output = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(dataset.run_into(output.path(), &two).code, Some(0));
    let other = dataset.run_into(output.path(), &["--prompt", "C?"]);
    assert!(other.code == Some(1) && other.stderr.contains("prompts was"), "{}", other.stderr);
}

/// A folder without a dataset, or with two, is refused with what is in it and with what to do.
#[test]
fn folders_that_fit_no_layout_are_described() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(path, text).expect("written");
    };
    let refused = |data: &Path, parts: &[&str]| {
        let run = shards(data, &folder.path().join("output"), &[]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
        }
        println!("{}", run.stderr.trim());
    };
    let example = "image,caption\ncat.jpg,A cat on a sofa.";
    refused(&folder.path().join("none"), &["found no such folder", "give the dataset's folder"]);
    write("empty/.hidden", "");
    refused(&folder.path().join("empty"), &["found nothing", example]);
    write("near/list.csv", "path,label\na.jpg,cat\n");
    write("near/rows.json", "[{\"question\": \"Q\"}]");
    write("near/info.json", "{\"version\": 1}");
    write("near/a.jpg", "");
    let near = ["list.csv (columns path, label)", "rows.json (a list of rows with the keys question)", "1 picture"];
    refused(
        &folder.path().join("near"),
        &[&near[..], &["info.json (an object with the keys version)", example]].concat(),
    );
    write("open/captions.csv", "image,caption\na.jpg,\"A.\nb.jpg,B.\nc.jpg,C.\n");
    refused(&folder.path().join("open"), &["captions.csv: line 2", "over 3 lines", "quotation mark"]);
    write("stray/captions.csv", "image,caption\na.jpg,A.\nb.jpg,\"Big\" dog and \"small\" cat\n");
    refused(&folder.path().join("stray"), &["captions.csv: line 3", "behind a cell's closing quotation mark"]);
    write("tabs/captions.tsv", "image\tcaption\na.jpg\t\"Big\" dog\nb.jpg\tA.\n");
    refused(&folder.path().join("tabs"), &["captions.tsv: line 2", "\" dog\""]);
    write("two/a.jsonl", "{\"image\": \"a.jpg\", \"caption\": \"A.\"}\n");
    write("two/b.csv", "image,caption\na.jpg,A.\n");
    refused(&folder.path().join("two"), &["2 datasets: a.jsonl (captions), b.csv (captions)", "two/a.jsonl"]);
    write("below/train/metadata.csv", "file_name,text\na.jpg,A.\n");
    refused(
        &folder.path().join("below"),
        &["1 folder (train)", "below/train: Hugging Face imagefolder (metadata.csv)"],
    );
    write("broken/captions.csv", "image,caption\na.jpg,A, B\n");
    refused(&folder.path().join("broken"), &["captions.csv: line 2: found 3 cells, where the first line has 2"]);
    write("lines/captions.jsonl", "{\"image\": \"a.jpg\", \"caption\": \"A.\"}\n\n{\"image\": }\n");
    refused(&folder.path().join("lines"), &["captions.jsonl: line 3, column 11"]);
    write("cut/rows.tar", "no tar");
    refused(&folder.path().join("cut"), &["rows.tar: after \"\"", "make it again"]);
    write("named/captions.csv", "图片,描述\na.jpg,A.\n");
    refused(
        &folder.path().join("named"),
        &["(columns 图片, 描述)", "in captions.csv rename 图片, 描述 to image, caption"],
    );
    write("capitals/captions.csv", "Image,Caption\na.jpg,A.\n");
    refused(
        &folder.path().join("capitals"),
        &["in captions.csv rename Image, Caption to image, caption; else", example],
    );
    write("bare/captions.csv", "a.jpg,A.\nb.jpg,B.\n");
    refused(&folder.path().join("bare"), &["in captions.csv write a first line image,caption", example]);
    write("header/captions.csv", "image,caption\n");
    refused(&folder.path().join("header"), &["found no rows: captions (captions.csv)", "add rows to it", example]);
    write("keys/chat.jsonl", "{}\n{}\n");
    refused(&folder.path().join("keys"), &["chat.jsonl (rows with the keys none)", example]);
    write("twice/captions.csv", "image,caption,note,caption\na.jpg,A.,,B.\n");
    refused(&folder.path().join("twice"), &["captions.csv: line 1: found the column \"caption\" twice", "rename one"]);
    write("pictures/captions.csv", "image; caption ;image\na.jpg;A.;b.jpg\n");
    let named = folder.path().join("pictures/captions.csv");
    refused(&named, &["captions.csv: line 1: found the column \"image\" twice", "each name once"]);
    write("encoded/captions.csv", "image,caption\na.jpg,A.\n");
    let utf16 = "\u{feff}image,caption\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    std::fs::write(folder.path().join("encoded/captions.csv"), utf16).expect("written");
    refused(&folder.path().join("encoded"), &["captions.csv (text that is not UTF-8: save the table as UTF-8"]);
    write("table/rows.parquet", "no table");
    refused(&folder.path().join("table"), &["rows.parquet (unreadable:", example]);
}

/// Faults of single rows have their place and reject that row alone.
#[test]
fn a_row_of_any_layout_fares_on_its_own() {
    let dataset = Dataset::empty();
    dataset.write_pictures(4);
    let rejected = |options: &[&str]| -> Vec<(String, String)> {
        let output = dataset.shards(&[&["--max-rejected", "1"], options].concat());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        output.rejected().iter().map(|row| (text(&row["cause"]), text(&row["detail"]))).collect()
    };
    let write = |name: &str, text: &[u8]| std::fs::write(dataset.data().join(name), text).expect("written");
    let expect = |found: Vec<(String, String)>, expected: &[(&str, &str)]| {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((cause, detail), (expected_cause, part)) in found.iter().zip(expected) {
            assert!(cause == expected_cause && detail.contains(part), "{cause}: {detail}");
        }
    };
    write("captions.csv", b"image,caption,label\n0.bmp,A.,\n1.bmp,,\n9.bmp,A.,\n,A.,\n2.bmp,A.,cat\n");
    let expected = [
        ("no_turns", "caption is empty; write its text, or take the row out"),
        ("missing_image", "9.bmp"),
        ("bad_row", "captions.csv line 5: caption: no image"),
        ("unread_key", "label"),
    ];
    expect(rejected(&[]), &expected);
    std::fs::remove_file(dataset.data().join("captions.csv")).expect("removed");
    write("images/0.txt", b"A slope.");
    write("images/1.txt", b"\xff\xfe");
    write("images/2.txt", b" \n");
    let expected = [
        ("bad_row", "images/1.txt: text that is not UTF-8"),
        ("empty_answer", "turn 1 is empty"),
        ("bad_row", "images/3.txt: no such file, expected the caption of images/3.bmp"),
    ];
    expect(rejected(&[]), &expected);
    let coco = json!({"images": [{"id": 1, "file_name": "0.bmp"}], "annotations": [
        {"image_id": 1, "caption": "A."}, {"image_id": 2, "caption": "A."}, {"image_id": 1}]});
    write("captions_own.json", coco.to_string().as_bytes());
    let expected =
        [("bad_row", "captions_own.json annotation 1: image_id 2: no such entry"), ("no_turns", "caption is empty")];
    expect(rejected(&[]), &expected);
}

/// A link to a folder above is no further folder of pictures.
#[test]
fn links_to_folders_above_are_not_followed() {
    let dataset = Dataset::empty();
    dataset.write_pictures(1);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("created");
    std::fs::copy(dataset.data().join("images/0.bmp"), data.join("0.bmp")).expect("copied");
    std::fs::write(data.join("0.txt"), "A slope.").expect("written");
    std::os::unix::fs::symlink(&data, data.join("again")).expect("linked");
    let run = shards(&data, &folder.path().join("output"), &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("a .txt beside each picture, 1 pictures"), "{}", run.stderr);
}
