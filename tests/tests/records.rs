//! Records as published datasets have them, through `preprocess shards`: every key is read, harmless, or the row is refused by it.

use chat::ChatProcessor;
use serde_json::{Value, json};
use shards::{ShardSet, Split};
use std::collections::BTreeMap;
use std::path::Path;
use tests::byte_model;
use tests::dataset::{Dataset, answered, question};

/// What became of a record.
enum Expected {
    /// A sample with these images, whose text begins so after the system turn.
    Row(&'static [&'static str], &'static str),
    /// Refused: the cause, and a part of the detail.
    Refused(&'static str, &'static str),
}
use Expected::{Refused, Row};

/// A record of a layout, under its name.
type Layout = (&'static str, Value, Expected);

fn turns(question_text: &str) -> Value {
    json!([question(question_text), answered("A slope.")])
}

fn messages(content: &str) -> Value {
    json!([{"role": "user", "content": content}, {"role": "assistant", "content": "A slope."}])
}

/// Layouts of published datasets that are samples.
fn accepted() -> Vec<Layout> {
    vec![
        (
            "LLaVA-Instruct-150K: the picture's id, several turns",
            json!({"id": "000000033471", "image": "0.bmp", "conversations": [
                question("<image>\nWhat?"), answered("A slope."), question("Why?"), answered("So.")]}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "TRL: contents as lists",
            json!({"images": ["0.bmp"], "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A slope."}]}]}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "llava-instruct-mix-vsft: parts with an index, the picture behind the text",
            json!({"images": ["0.bmp"], "messages": [
                {"role": "user", "content": [{"index": null, "text": "What?", "type": "text"}, {"index": 0, "text": null, "type": "image"}]},
                {"role": "assistant", "content": [{"index": null, "text": "A slope.", "type": "text"}]}]}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        ("Alpaca", json!({"instruction": "Why?", "input": "", "output": "So."}), Row(&[], "Why?")),
        (
            "llava_v1_5_mix665k: text only, with the model that wrote it",
            json!({"id": "wgByO4Y_0", "model": "gpt4", "conversations": turns("Why?")}),
            Row(&[], "Why?"),
        ),
        (
            "ShareGPT4V: pictures in folders",
            json!({"id": "000000000009", "image": "coco/train2017/1.bmp", "conversations": turns("What?\n<image>")}),
            Row(&["coco/train2017/1.bmp"], "What?\n<image>"),
        ),
        (
            "LLaVA-OneVision: data_source",
            json!({"id": "ai2d_1", "image": "0.bmp", "conversations": turns("<image>\nWhat?"), "data_source": "ai2d(gpt4v)"}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "ALLaVA: where the picture was",
            json!({"id": "allava_laion_inst_0", "image": "0.bmp", "conversations": turns("<image>\nWhat?"),
                   "url": "https://example.com/0.jpg"}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "Cambrian: source and type, text only with a null image",
            json!({"id": "c-1", "source": "orca_994k.json", "image": null, "type": "language", "conversations": turns("Why?")}),
            Row(&[], "Why?"),
        ),
        (
            "M4-Instruct: several pictures, sample_id, metadata",
            json!({"sample_id": 0, "conversations": turns("<image>\n<image>\nWhich?"), "image": ["0.bmp", "1.bmp"],
                   "choice_list": null, "metadata": {"dataset": "IEdit", "split": "train", "image": "x.jpg"}}),
            Row(&["0.bmp", "1.bmp"], "<image>\n<image>\nWhich?"),
        ),
        (
            "COCO: a number for an id",
            json!({"id": 9, "image": "0.bmp", "conversations": turns("<image>\nWhat?")}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "LLaMA-Factory: messages and images, no id, empty companions",
            json!({"messages": messages("<image>Who?"), "images": ["0.bmp"], "videos": [], "audios": [], "tools": "", "system": ""}),
            Row(&["0.bmp"], "<image>Who?"),
        ),
        (
            "InternVL: sizes beside the picture",
            json!({"id": 0, "image": "0.bmp", "width": 40, "height": 32, "conversations": turns("<image>\nWhat?")}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "MiniCPM-V: roles in conversations",
            json!({"id": "m-0", "image": "0.bmp", "conversations": messages("<image>\nWhat?")}),
            Row(&["0.bmp"], "<image>\nWhat?"),
        ),
        (
            "ShareGPT: null markdown in a turn, chatgpt",
            json!({"id": "s", "conversations": [{"from": "Human", "value": "Why?", "markdown": null, "text": null},
                                                {"from": "chatgpt", "value": "So."}]}),
            Row(&[], "Why?"),
        ),
        (
            "ms-swift: turns and rows that are trained on in full",
            json!({"id": "full", "weight": 1.0, "messages": [{"role": "user", "content": "Why?"},
                   {"role": "assistant", "content": "So.", "loss": true}]}),
            Row(&[], "Why?"),
        ),
        (
            "text only, with metadata that names no file",
            json!({"id": "nested", "conversations": turns("Why?"),
                   "metadata": {"image": null, "origin": ["flan v2.1", {"has_video": false}]}}),
            Row(&[], "Why?"),
        ),
    ]
}

/// Layouts that would become another row than their author means.
fn refused() -> Vec<Layout> {
    vec![
        (
            "LLaVA-Video",
            json!({"id": "v", "video": "a.mp4", "data_source": "0_30_s", "conversations": turns("<image>\nWhat?")}),
            Refused("unread_key", "\"video\""),
        ),
        (
            "LLaMA-Factory: video without marker",
            json!({"messages": messages("What happens?"), "videos": ["a.mp4"]}),
            Refused("unread_key", "\"videos\""),
        ),
        (
            "LLaMA-Factory: tools",
            json!({"conversations": turns("Why?"), "tools": "[{\"name\": \"f\"}]"}),
            Refused("unread_key", "\"tools\""),
        ),
        (
            "LLaMA-Factory: ShareGPT preference",
            json!({"conversations": [question("Why?")], "chosen": answered("So."), "rejected": answered("No.")}),
            Refused("unread_key", "\"chosen\""),
        ),
        (
            "Alpaca with an input",
            json!({"instruction": "Why?", "input": "1 + 1", "output": "So."}),
            Refused("bad_row", "\"input\" is not read beside \"instruction\""),
        ),
        (
            "ms-swift: boxes in place of <bbox>",
            json!({"messages": messages("<image>Find <ref-object>"), "images": ["0.bmp"],
                   "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}}),
            Refused("unread_key", "\"objects\""),
        ),
        (
            "ms-swift: a turn that is not trained on",
            json!({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "loss": 0.0}]}),
            Refused("unread_key", "turn 1, key \"loss\""),
        ),
        (
            "axolotl: a turn that is not trained on",
            json!({"conversations": [question("Why?"), answered("So."), question("And?"),
                                     {"from": "gpt", "value": "No.", "train": false}]}),
            Refused("unread_key", "turn 3, key \"train\""),
        ),
        (
            "a turn with a switch of unknown meaning",
            json!({"conversations": [question("Why?"), {"from": "gpt", "value": "So.", "supervised": false}]}),
            Refused("unread_key", "turn 1, key \"supervised\""),
        ),
        (
            "TRL: an undesired answer",
            json!({"messages": messages("Why?"), "label": false}),
            Refused("unread_key", "\"label\""),
        ),
        ("a masked row", json!({"messages": messages("Why?"), "masked": 1}), Refused("unread_key", "\"masked\"")),
        (
            "pictures in metadata alone",
            json!({"conversations": turns("What is it?"), "metadata": {"files": [{"path": "coco/0.bmp"}]}}),
            Refused("unread_key", "\"metadata\""),
        ),
        (
            "Qwen-VL: a picture in the question",
            json!({"conversations": turns("Left: <img>0.bmp</img> What?")}),
            Refused("image_markers", "<img> in a question"),
        ),
        (
            "a numbered marker without an image",
            json!({"messages": messages("Describe <image_2>.")}),
            Refused("image_markers", "<image_2> in a question"),
        ),
        (
            "MiniCPM-V: several pictures by marker",
            json!({"id": "m", "image": {"<image_00>": "0.bmp"}, "conversations": messages("<image_00>\nWhat?")}),
            Refused("bad_row", "image: found an object, expected a name or a list of names"),
        ),
        (
            "TRL: a picture named in its part",
            json!({"messages": [{"role": "user", "content": [{"type": "image", "image": "0.bmp"}, {"type": "text", "text": "What?"}]}]}),
            Refused("bad_row", "turn 0: content: part 0: key \"image\" is not read"),
        ),
        (
            "LLaVA-Med: conversatons",
            json!({"id": "1", "image": "0.bmp", "conversatons": turns("<image>\nWhat?")}),
            Refused("no_turns", "id, image, conversatons"),
        ),
        (
            "a second picture under a name of its own",
            json!({"id": "2", "image": "0.bmp", "image_b": "1.bmp", "conversations": turns("<image>\nWhat?")}),
            Refused("unread_key", "\"image_b\""),
        ),
        (
            "a picture under another key alone",
            json!({"id": "3", "file_name": "0.bmp", "conversations": turns("What is it?")}),
            Refused("unread_key", "\"file_name\""),
        ),
        (
            "pictures without a marker",
            json!({"messages": messages("Which animal?"), "images": ["0.bmp"]}),
            Refused("image_markers", "0 <image> marker(s), 1 image(s)"),
        ),
    ]
}

fn dataset(rows: &Value) -> Dataset {
    let dataset = Dataset::empty();
    dataset.write_pictures(2);
    let folder = dataset.data().join("images/coco/train2017");
    std::fs::create_dir_all(&folder).expect("created");
    std::fs::copy(dataset.data().join("images/1.bmp"), folder.join("1.bmp")).expect("copied");
    dataset.write(rows);
    dataset
}

/// Text and images of every row of a split, by id.
fn samples(output: &Path, model: &Path) -> BTreeMap<String, (String, Vec<String>)> {
    let chat = ChatProcessor::from_dir(model).expect("the model's processor");
    let set = ShardSet::open(output, Split::Train).expect("shards");
    set.texts()
        .map(|row| {
            let row = row.expect("a row");
            let ids: Vec<u32> = row.input_ids.iter().map(|&id| id as u32).collect();
            let images = row.images.into_iter().map(|image| image.name).collect();
            (row.id, (chat.decode(&ids, false).expect("text"), images))
        })
        .collect()
}

#[test]
fn published_layouts_are_read_or_refused_by_name() {
    let layouts: Vec<Layout> = accepted().into_iter().chain(refused()).collect();
    let (model, dataset) = (byte_model::make(), dataset(&layouts.iter().map(|(_, row, _)| row.clone()).collect()));
    let output = tempfile::tempdir().expect("a temporary folder");
    let run = dataset.run_for(model.path(), output.path(), &["--max-rejected", "1"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let samples = samples(output.path(), model.path());
    let rejected: Vec<Value> = std::fs::read_to_string(output.path().join("rejected.jsonl"))
        .expect("read")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (number, (name, row, expected)) in layouts.iter().enumerate() {
        let refusal = rejected.iter().find(|line| line["row"] == number);
        match expected {
            Row(images, text) => {
                assert!(refusal.is_none(), "{name}: {refusal:?}");
                let id = match &row["id"] {
                    Value::Null => format!("row {number}"),
                    Value::String(id) => id.clone(),
                    id => id.to_string(),
                };
                let (found, names) = samples.get(&id).unwrap_or_else(|| panic!("{name}: no row {id:?}"));
                let begin = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n";
                assert!(found.starts_with(&format!("{begin}{text}<|im_end|>")), "{name}: {found}");
                assert_eq!(names, images, "{name}");
            }
            Refused(cause, detail) => {
                let refusal = refusal.unwrap_or_else(|| panic!("{name}: accepted"));
                let found = refusal["detail"].as_str().expect("text");
                assert_eq!(refusal["cause"], *cause, "{name}: {found}");
                assert!(found.contains(detail), "{name}: {found}");
                println!("{name}: {cause}: {found}");
            }
        }
    }
    assert_eq!(samples.len() + rejected.len(), layouts.len());
}

#[test]
fn a_rows_own_system_prompt_is_used() {
    let rows = json!([
        {"id": "key", "system": "Answer in French.", "conversations": turns("Why?")},
        {"id": "prompt", "system_prompt": "Answer in Latin.", "conversations": turns("Why?")},
        {"id": "turn", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
                                    {"role": "assistant", "content": "So."}]},
        {"id": "both", "system": "Be brief.", "conversations": [{"from": "system", "value": "Be brief."},
                                                                question("Why?"), answered("So.")]},
        {"id": "none", "conversations": turns("Why?")},
    ]);
    let (model, dataset) = (byte_model::make(), dataset(&rows));
    let output = tempfile::tempdir().expect("a temporary folder");
    let run = dataset.run_for(model.path(), output.path(), &["--system-prompt", "Be kind."]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let samples = samples(output.path(), model.path());
    for (id, system) in [
        ("key", "Answer in French."),
        ("prompt", "Answer in Latin."),
        ("turn", "Be brief."),
        ("both", "Be brief."),
        ("none", "Be kind."),
    ] {
        let (text, _) = &samples[id];
        assert!(
            text.starts_with(&format!("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhy?")),
            "{id}: {text}"
        );
    }
}

#[test]
fn an_id_is_a_label_and_rows_are_never_lost_over_it() {
    // Numbers that differ only beyond 64 bits and beyond an f64; NaN and an unread key are peculiar, too.
    let text = r#"[
        {"id": 12345678901234567890123, "image": "0.bmp", "conversations": [{"from": "human", "value": "<image>1"}, {"from": "gpt", "value": "A"}]},
        {"id": 12345678901234567890124, "image": "0.bmp", "conversations": [{"from": "human", "value": "<image>2"}, {"from": "gpt", "value": "A"}]},
        {"id": "same", "image": "0.bmp", "conversations": [{"from": "human", "value": "<image>3"}, {"from": "gpt", "value": "A"}]},
        {"id": "same", "image": "0.bmp", "conversations": [{"from": "human", "value": "<image>4"}, {"from": "gpt", "value": "A"}]},
        {"id": "same", "image": "1.bmp", "note": [NaN, -Infinity], "conversations": [{"from": "human", "value": "<image>5"}, {"from": "gpt", "value": "A"}]},
        {"id": NaN, "image": NaN, "conversations": [{"from": "human", "value": "6"}, {"from": "gpt", "value": "A"}]}
    ]"#;
    let (model, dataset) = (byte_model::make(), dataset(&json!([])));
    for (mark, kind) in [("", "plain"), ("\u{feff}", "with a byte order mark")] {
        std::fs::write(dataset.data().join("chat.json"), format!("{mark}{text}")).expect("written");
        let output = tempfile::tempdir().expect("a temporary folder");
        let run = dataset.run_for(model.path(), output.path(), &["--rows-per-shard", "2"]);
        assert_eq!(run.code, Some(0), "{kind}: {}", run.stderr);
        let set = ShardSet::open(output.path(), Split::Train).expect("shards");
        let ids: Vec<String> = set.texts().map(|row| row.expect("a row").id).collect();
        let expected = ["12345678901234567890123", "12345678901234567890124", "same", "same", "same", "row 5"];
        assert_eq!(ids, expected, "{kind}");
        for warning in [
            "the id of an earlier row: 2;",
            "without an id: 1;",
            "a missing value: 4 times",
            "not read: \"note\" (rows: 1)",
        ] {
            assert_eq!(run.stderr.matches(warning).count(), 1, "{kind}: {warning:?} in {}", run.stderr);
        }
        // Rows of one picture are on one side, whatever their ids.
        let output = tempfile::tempdir().expect("a temporary folder");
        let run = dataset.run_for(model.path(), output.path(), &["--validation-fraction", "0.4"]);
        assert_eq!(run.code, Some(0), "{kind}: {}", run.stderr);
        let sides = Split::ALL.map(|split| {
            let set = ShardSet::open(output.path(), split).expect("shards");
            let of_picture = |images: &[shards::ImageText]| images.iter().any(|image| image.name == "0.bmp");
            set.texts().filter(|row| row.as_ref().is_ok_and(|row| of_picture(&row.images))).count()
        });
        assert!(sides == [0, 4] || sides == [4, 0], "{kind}: {sides:?}");
        // What finds its own shards whole finds these whole.
        let verify = std::process::Command::new(tests::program("preprocess")).arg("verify").arg(output.path()).output();
        let verify = verify.expect("started");
        assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    }
}

#[test]
fn utf_16_and_an_object_are_refused_with_the_remedy() {
    let (model, dataset) = (byte_model::make(), dataset(&json!([])));
    let utf_16: Vec<u8> = "\u{feff}[{\"id\": 1}]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, remedy) in
        [(utf_16.as_slice(), "iconv -f UTF-16"), (b"{\"id\": 1}", "expected chat.json or another JSON list of rows")]
    {
        std::fs::write(dataset.data().join("chat.json"), bytes).expect("written");
        let output = tempfile::tempdir().expect("a temporary folder");
        let run = dataset.run_for(model.path(), output.path(), &[]);
        assert_eq!(run.code, Some(1));
        assert!(run.stderr.contains("chat.json") && run.stderr.contains(remedy), "{}", run.stderr);
    }
}
