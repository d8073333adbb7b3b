//! `infer caption` over a folder, a dataset, a zip file and shards; killed and run again; with bad pictures; with references.

use metrics::captions::caption_metrics;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::inference::{infer, infer_ok, model_dir};
use tests::{program, reference};

/// The tokens of a caption here: enough that a run can be met in the middle.
const TOKENS: &str = "40";

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the captions are readable");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

/// A folder of pictures in two rounds of names, with a cut one, a text and a bomb among them, and a file that is none of it.
fn folder_with_bad_pictures(dir: &Path) -> PathBuf {
    let folder = dir.join("pictures");
    std::fs::create_dir(&folder).expect("a folder");
    let images = std::fs::read_dir(reference("pictures/images")).expect("readable");
    for image in images.map(|entry| entry.expect("an entry").path()) {
        let name = image.file_name().expect("a name").to_str().expect("UTF-8");
        for round in ["a", "b", "c"] {
            std::fs::copy(&image, folder.join(format!("{round}-{name}"))).expect("copied");
        }
    }
    let whole = std::fs::read(reference("pictures/images/100000000.jpg")).expect("readable");
    std::fs::write(folder.join("a-cut.jpg"), &whole[..whole.len() / 2]).expect("written");
    std::fs::write(folder.join("a-text.png"), "no picture").expect("written");
    std::fs::copy(reference("edge/bomb_header.png"), folder.join("b-bomb.png")).expect("copied");
    std::fs::write(folder.join("notes.txt"), "not looked at").expect("written");
    folder
}

/// SIGKILL in the middle, as often as the run lasts; then the file is the one of an undisturbed run, byte for byte.
#[test]
fn a_killed_run_goes_on_and_bad_pictures_are_recorded() {
    let (dir, model) = (tempfile::tempdir().expect("a temporary folder"), model_dir("tiny/train_none"));
    let folder = folder_with_bad_pictures(dir.path());
    let args = |output: &str| -> Vec<String> {
        let output = dir.path().join(output);
        let args = ["caption", "--model", text(model.path()), "--images", text(&folder), "--output", text(&output)];
        args.into_iter().chain(["--max-new-tokens", TOKENS, "--batch-size", "5"]).map(String::from).collect()
    };
    let whole = args("whole.jsonl");
    let summary: Value =
        serde_json::from_str(&infer_ok(&whole.iter().map(String::as_str).collect::<Vec<_>>())).expect("JSON");
    let expected = std::fs::read(dir.path().join("whole.jsonl")).expect("readable");

    let found = lines(&dir.path().join("whole.jsonl"));
    let pictures = found.len();
    assert_eq!(summary["pictures"].as_u64(), Some(pictures as u64));
    assert_eq!((summary["failed"].as_u64(), summary["captioned"].as_u64()), (Some(3), Some(pictures as u64 - 3)));
    let bad: Vec<&Value> = found.iter().filter(|line| line["error"].is_string()).collect();
    assert_eq!(
        bad.iter().map(|line| line["image"].as_str().expect("a name")).collect::<Vec<_>>(),
        ["a-cut.jpg", "a-text.png", "b-bomb.png"]
    );
    assert!(bad.iter().all(|line| line["caption"].is_null()));
    let mut names: Vec<&str> = found.iter().map(|line| line["image"].as_str().expect("a name")).collect();
    assert!(names.is_sorted(), "in the order of the names");
    names.dedup();
    assert_eq!(names.len(), pictures, "each picture once");
    assert!(!names.contains(&"notes.txt"));

    let output = dir.path().join("killed.jsonl");
    let mut kills = 0;
    loop {
        let mut child = Command::new(program("infer"))
            .args(args("killed.jsonl"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("infer starts");
        let before = std::fs::metadata(&output).map_or(0, |metadata| metadata.len());
        // Killed when a few more lines are there.
        let begin = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait().expect("a status") {
                break Some(status);
            }
            let now = std::fs::metadata(&output).map_or(0, |metadata| metadata.len());
            if now > before + 2000 || begin.elapsed() > Duration::from_secs(60) {
                child.kill().expect("killed");
                child.wait().expect("gone");
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) => break assert!(status.success()),
            None => kills += 1,
        }
        let written = std::fs::read(&output).expect("readable");
        let whole_lines = written.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        assert_eq!(written[..whole_lines], expected[..whole_lines], "after kill {kills}");
    }
    println!("{pictures} pictures, killed {kills} times");
    assert!(kills >= 2, "the run was never met in the middle");
    assert_eq!(std::fs::read(&output).expect("readable"), expected);

    // Other settings do not go on with this file.
    let mut other = args("killed.jsonl");
    other.extend(["--prompt", "What is this?"].map(String::from));
    let refused = infer(&other.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("prompt"));
}

/// The same captions from a dataset's folder, from its zip file and from shards made of it; figures against references.
#[test]
fn a_dataset_a_zip_file_and_shards_give_the_same_captions() {
    let (dir, model) = (tempfile::tempdir().expect("a temporary folder"), model_dir("tiny/train_none"));
    let data = reference("pictures");
    let zipped = dir.path().join("zipped");
    std::fs::create_dir(&zipped).expect("a folder");
    for name in ["chat.json", "images.zip", "references.json"] {
        std::fs::copy(data.join(name), zipped.join(name)).expect("copied");
    }
    let shards = dir.path().join("shards");
    let made = Command::new(program("preprocess"))
        .args(["shards", "--model", text(model.path()), "--data", text(&data), "--output", text(&shards)])
        .output()
        .expect("preprocess runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let caption = |name: &str, source: [&str; 2]| -> (Value, Vec<Value>) {
        let output = dir.path().join(name);
        let args = ["caption", "--model", text(model.path()), source[0], source[1], "--output", text(&output)];
        let summary = infer_ok(&[&args[..], &["--max-new-tokens", TOKENS]].concat());
        (serde_json::from_str(&summary).expect("JSON"), lines(&output))
    };
    let (summary, from_folder) = caption("folder.jsonl", ["--data", text(&data)]);
    assert_eq!(caption("zip.jsonl", ["--data", text(&zipped)]), (summary.clone(), from_folder.clone()));
    let (_, from_shards) = caption("shards.jsonl", ["--shards", text(&shards)]);
    let captions =
        |lines: &[Value]| lines.iter().map(|line| (line["id"].clone(), line["caption"].clone())).collect::<Vec<_>>();
    assert_eq!(captions(&from_shards), captions(&from_folder));
    assert_eq!(from_folder.len(), 32);

    // The summary's figures are those of its own lines and references, five an image.
    let strings = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).expect("texts") };
    let pairs: Vec<(String, Vec<String>)> = from_folder
        .iter()
        .map(|line| (line["caption"].as_str().expect("a caption").to_string(), strings(&line["references"])))
        .collect();
    assert!(pairs.iter().all(|(_, references)| references.len() == 5));
    let expected = caption_metrics(&pairs);
    for (name, expected) in [("bleu_4", expected.bleu_4), ("rouge_l", expected.rouge_l), ("cider_d", expected.cider_d)]
    {
        let found = summary["metrics"][name].as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-9, "{name}: {found} where {expected} is expected");
    }
    println!("{}", summary["metrics"]);
}

/// Rows as people write them: a number for an id, twice; no picture; several pictures; no id; one that cannot be read.
#[test]
fn every_row_of_a_dataset_has_its_line() {
    let (dir, model) = (tempfile::tempdir().expect("a temporary folder"), model_dir("tiny/train_none"));
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("images")).expect("created");
    for number in 0..2u8 {
        let path = data.join(format!("images/{number}.bmp"));
        std::fs::write(path, tests::byte_model::picture(number)).expect("written");
    }
    let turns =
        |text: &str| serde_json::json!([{"from": "human", "value": text}, {"from": "gpt", "value": "A slope."}]);
    let rows = serde_json::json!([
        {"id": 7, "image": "0.bmp", "conversations": turns("<image>\nWhat?")},
        {"id": 7, "image": "1.bmp", "conversations": turns("<image>\nWhat?")},
        {"id": "text", "conversations": turns("Why?")},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>Which? <image>"},
                      {"role": "assistant", "content": "Both."}], "images": ["0.bmp", "1.bmp"]},
        {"id": "film", "video": "a.mp4", "conversations": turns("<video>\nWhat?")},
        {"id": "gone", "image": "gone.bmp", "conversations": turns("<image>\nWhat?")},
    ]);
    let write = |name: &str, value: &Value| std::fs::write(data.join(name), value.to_string()).expect("written");
    write("chat.json", &rows);
    write("references.json", &serde_json::json!([{"id": 7, "captions": ["A ramp."]}]));
    let output = dir.path().join("captions.jsonl");
    let args = ["caption", "--model", text(model.path()), "--data", text(&data), "--output", text(&output)];
    let args = [&args[..], &["--max-new-tokens", "4"]].concat();
    let refused = infer(&args);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && message.contains("2 of 6 pictures failed, more than --max-failed 0.1"),
        "{message}"
    );
    let summary: Value =
        serde_json::from_str(&infer_ok(&[&args[..], &["--max-failed", "0.5"]].concat())).expect("JSON");
    assert_eq!((summary["captioned"].as_u64(), summary["failed"].as_u64()), (Some(4), Some(2)));
    let found: Vec<(String, String, Value)> = lines(&output)
        .into_iter()
        .map(|line| (line["id"].to_string(), line["image"].to_string(), line["references"].clone()))
        .collect();
    let expected = [
        ("\"7\"", "\"0.bmp\"", serde_json::json!(["A ramp."])),
        ("\"7\"", "\"1.bmp\"", serde_json::json!(["A ramp."])),
        ("\"text\"", "\"\"", serde_json::json!(["A slope."])),
        ("\"row 3\"", "\"0.bmp, 1.bmp\"", serde_json::json!(["Both."])),
        ("\"film\"", "\"\"", Value::Null),
        ("\"gone\"", "\"gone.bmp\"", serde_json::json!(["A slope."])),
    ];
    assert_eq!(found, expected.map(|(id, image, references)| (id.to_owned(), image.to_owned(), references)));
    let errors: Vec<String> =
        lines(&output).iter().map(|line| line["error"].as_str().unwrap_or_default().to_owned()).collect();
    assert!(errors[4].contains("\"video\"") && errors[5].contains("the data folder"), "{errors:?}");
}

/// A model that was trained again into the same folder is another model: its file is neither continued nor passed off as the new
/// one's, half or whole. What the model is counts, not where it is.
#[test]
fn captions_of_another_model_are_refused_whole_or_half() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = model_dir("tiny/llava");
    let weights = |name: &str| {
        let source = reference(&format!("tiny/{name}/model.safetensors"));
        std::fs::copy(source, model.path().join("model.safetensors")).expect("copied");
    };
    let pictures = dir.path().join("pictures");
    std::fs::create_dir(&pictures).expect("a folder");
    let images = std::fs::read_dir(reference("pictures/images")).expect("readable").flatten();
    for (number, image) in images.take(3).enumerate() {
        std::fs::copy(image.path(), pictures.join(format!("{number}.jpg"))).expect("copied");
    }
    let caption = |model: &Path, name: &str, more: &[&str]| {
        let output = dir.path().join(name);
        let args = ["caption", "--model", text(model), "--images", text(&pictures), "--output", text(&output)];
        let ran = infer(&[&args[..], &["--max-new-tokens", "5"], more].concat());
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("readable");
    assert_eq!(caption(model.path(), "half.jsonl", &["--limit", "1"]).0, Some(0));
    assert_eq!(caption(model.path(), "whole.jsonl", &[]).0, Some(0));
    let (half, whole) = (read("half.jsonl"), read("whole.jsonl"));

    // The same model elsewhere goes on.
    let moved = model_dir("tiny/llava");
    std::fs::copy(dir.path().join("half.jsonl"), dir.path().join("moved.jsonl")).expect("copied");
    let settings = |name: &str| dir.path().join(format!("{name}.jsonl.settings.json"));
    std::fs::copy(settings("half"), settings("moved")).expect("copied");
    assert_eq!(caption(moved.path(), "moved.jsonl", &[]).0, Some(0));
    assert_eq!(read("moved.jsonl"), whole);

    weights("train_none");
    let adapter = reference("tiny/train_use_lora");
    for (name, before) in [("half.jsonl", &half), ("whole.jsonl", &whole)] {
        let (code, error) = caption(model.path(), name, &[]);
        assert_eq!(code, Some(1), "{name}: {error}");
        assert!(error.contains("was begun with another model: ") && error.contains("--overwrite true"), "{error}");
        let (code, error) = caption(moved.path(), name, &["--adapter", text(&adapter)]);
        assert_eq!(code, Some(1), "{name}: {error}");
        assert!(error.contains("was begun with no adapter"), "{error}");
        assert_eq!(&read(name), before, "as it was");
    }
    assert_eq!(caption(model.path(), "fresh.jsonl", &[]).0, Some(0));
    assert_ne!(read("fresh.jsonl"), whole, "another model says something else");
    for name in ["half.jsonl", "whole.jsonl"] {
        assert_eq!(caption(model.path(), name, &["--overwrite", "true"]).0, Some(0));
        assert_eq!(read(name), read("fresh.jsonl"));
    }

    // Pictures after the captioned ones are added; one before them would shift the lines.
    std::fs::copy(pictures.join("0.jpg"), pictures.join("3.jpg")).expect("copied");
    assert_eq!(caption(model.path(), "whole.jsonl", &[]).0, Some(0));
    assert_eq!(read("whole.jsonl").lines().count(), 4);
    std::fs::copy(pictures.join("0.jpg"), pictures.join("00.jpg")).expect("copied");
    let (code, error) = caption(model.path(), "whole.jsonl", &[]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("line 2 is of 1.jpg, where the folder now has 00.jpg"), "{error}");
}

/// A dataset that was changed gives other questions and references.
#[test]
fn captions_of_a_dataset_that_was_changed_are_refused() {
    let (dir, model) = (tempfile::tempdir().expect("a temporary folder"), model_dir("tiny/llava"));
    let (data, output) = (dir.path().join("data"), dir.path().join("captions.jsonl"));
    std::fs::create_dir(&data).expect("a folder");
    for name in ["chat.json", "images.zip", "references.json"] {
        std::fs::copy(reference("pictures").join(name), data.join(name)).expect("copied");
    }
    let caption = |limit: &str| {
        let args = ["caption", "--model", text(model.path()), "--data", text(&data), "--output", text(&output)];
        infer(&[&args[..], &["--max-new-tokens", "3", "--limit", limit]].concat())
    };
    assert!(caption("1").status.success());
    assert!(caption("2").status.success(), "goes on");
    for (name, word) in [("references.json", "another references: "), ("chat.json", "another data: ")] {
        let path = data.join(name);
        let before = std::fs::read(&path).expect("readable");
        // White space between rows is no change of a dataset.
        let changed = match name {
            "chat.json" => [&b"[{\"id\": \"new\"},"[..], &before[1..]].concat(),
            _ => [&before[..], b"\n"].concat(),
        };
        std::fs::write(&path, changed).expect("written");
        let ran = caption("3");
        let error = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{error}");
        assert!(error.contains(word), "{error}");
        std::fs::write(&path, before).expect("written");
    }
    assert!(caption("3").status.success());
    assert_eq!(lines(&output).len(), 3);
}
