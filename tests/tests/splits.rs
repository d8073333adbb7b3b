//! Train and validation: no picture is in both, whatever the layout; several pictures of a row in a tar.

use serde_json::{Value, json};
use shards::{RowText, ShardSet, Split};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use tests::dataset::{Dataset, answered, question, reference_rows};
use tests::program;
use tests::training::succeed;

const PICTURES: usize = 16;

fn texts(shards: &Path, split: Split) -> Vec<RowText> {
    let set = ShardSet::open(shards, split).expect("shards");
    set.texts().map(|row| row.expect("a row")).collect()
}

fn make(data: &Path, output: &Path, more: &[&str]) {
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(tests::dataset::llava()).arg("--data").arg(data);
    succeed(command.arg("--output").arg(output).args(more));
}

/// Splits, by the pictures' contents.
fn check(name: &str, data: &Path, rows: usize) {
    let output = tempfile::tempdir().expect("a temporary folder");
    make(data, output.path(), &["--validation-fraction", "0.4"]);
    let [train, held_out] = Split::ALL.map(|split| texts(output.path(), split));
    let pictures = |rows: &[RowText]| -> BTreeSet<String> {
        rows.iter().flat_map(|row| row.images.iter().map(|image| image.sha256.clone())).collect()
    };
    let (of_train, of_held_out) = (pictures(&train), pictures(&held_out));
    println!(
        "{name}: {} rows of {} pictures and {} of {}",
        train.len(),
        of_train.len(),
        held_out.len(),
        of_held_out.len()
    );
    assert_eq!(train.len() + held_out.len(), rows, "{name}");
    assert!(of_train.len() > 2 && of_held_out.len() > 2, "{name}: both splits have pictures");
    assert_eq!(of_train.intersection(&of_held_out).count(), 0, "{name}: pictures in both splits");
}

/// Three rows for each picture, with ids of their own or without.
#[test]
fn no_picture_is_in_train_and_validation() {
    let dataset = Dataset::empty();
    let names = dataset.copy_images("pictures", PICTURES);
    let triples = || names.iter().flat_map(|name| (0..3).map(move |number| (name, number)));
    let conversation =
        |number: usize| json!([question("<image>\nWhat is it?"), answered(&format!("Picture {number}."))]);

    let rows = |id: &dyn Fn(&str, usize) -> Value| -> Value {
        let row = |(name, number): (&String, usize)| json!({"id": id(name, number), "image": name, "conversations": conversation(number)});
        triples().map(row).collect()
    };
    for (name, rows) in [
        ("ids of rows", rows(&|name, number| json!(format!("{name}-{number}")))),
        ("ids of pictures", rows(&|name, _| json!(name.trim_end_matches(".jpg")))),
        ("no ids", rows(&|_, _| Value::Null)),
    ] {
        dataset.write(&rows);
        check(name, dataset.data(), 3 * PICTURES);
    }
    std::fs::remove_file(dataset.data().join("chat.json")).expect("there");

    let table: String = triples().map(|(name, number)| format!("{name}-{number},{name},Q {number}?,A.\n")).collect();
    std::fs::write(dataset.data().join("vqa.csv"), format!("id,image,question,answer\n{table}")).expect("written");
    check("questions in CSV", dataset.data(), 3 * PICTURES);

    // The same pictures in a tar, each row with a copy of its own.
    let packed = tempfile::tempdir().expect("a temporary folder");
    let mut tar = tar::Builder::new(std::fs::File::create(packed.path().join("rows.tar")).expect("created"));
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).expect("appended");
    };
    for (number, (name, copy)) in triples().enumerate() {
        let bytes = std::fs::read(dataset.data().join("images").join(name)).expect("readable");
        add(format!("{number:04}.jpg"), &bytes);
        add(format!("{number:04}.txt"), format!("Picture {copy}.").as_bytes());
    }
    tar.into_inner().expect("finished");
    check("WebDataset", packed.path(), 3 * PICTURES);

    let tables = tempfile::tempdir().expect("a temporary folder");
    let Some(mut python) = tests::python() else { return };
    let script = tests::python_script("make_questions.py");
    let pictures = dataset.data().join("images");
    succeed(python.arg(script).arg(&pictures).arg(tables.path()).env("HF_HUB_OFFLINE", "1"));
    for name in ["bytes", "paths", "messages"] {
        check(&format!("Parquet, {name}"), &tables.path().join(name), 3 * PICTURES);
    }
}

fn tar_of(folder: &Path, members: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(std::fs::File::create(folder.join("rows.tar")).expect("created"));
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).expect("appended");
    }
    tar.into_inner().expect("finished").flush().expect("written");
}

/// Several pictures of a row with turns stand in the order that its JSON member or their numbers say, whatever the tar's order is;
/// where nothing says it, the row is refused by name.
#[test]
fn several_pictures_of_a_tar_are_in_the_order_of_their_markers() {
    let names: Vec<String> =
        reference_rows("pictures").iter().take(3).filter_map(|row| row["image"].as_str().map(String::from)).collect();
    let bytes: Vec<Vec<u8>> = names
        .iter()
        .map(|name| std::fs::read(tests::reference("pictures/images").join(name)).expect("readable"))
        .collect();
    let hashes: Vec<String> = bytes.iter().map(|bytes| base::files::sha256_hex(bytes)).collect();
    let turns = json!([
        question("<image>\n<image>\nWhat differs?"),
        answered("The colour."),
        question("And here? <image>"),
        answered("The shape.")
    ]);
    let row = |images: Value| json!({"conversations": turns, "images": images}).to_string();
    for (name, endings, json, order) in [
        ("names of endings", ["b.jpg", "a.jpg", "c.jpg"], row(json!(["c.jpg", "a.jpg", "b.jpg"])), Ok([2, 1, 0])),
        ("names without the format", ["b.jpg", "a.jpg", "c.jpg"], row(json!(["a", "b", "c"])), Ok([1, 0, 2])),
        ("names of members", ["b.jpg", "a.jpg", "c.jpg"], row(json!(["x.a.jpg", "x.c.jpg", "x.b.jpg"])), Ok([1, 2, 0])),
        ("numbers", ["10.jpg", "2.jpg", "1.jpg"], row(Value::Null), Ok([2, 1, 0])),
        ("numbers behind letters of several bytes", ["é2.jpg", "é0.jpg", "é1.jpg"], row(Value::Null), Ok([1, 2, 0])),
        ("numbers behind a name", ["img2.jpg", "img0.jpg", "img1.jpg"], row(Value::Null), Ok([1, 2, 0])),
        ("nothing", ["left.jpg", "right.jpg", "mask.jpg"], row(Value::Null), Err("nothing says in which order")),
        ("two series", ["a1.jpg", "b2.jpg", "a3.jpg"], row(Value::Null), Err("nothing says in which order")),
        ("others", ["b.jpg", "a.jpg", "c.jpg"], row(json!(["a.jpg", "b.jpg", "d.jpg"])), Err("lists others")),
        ("one of them twice", ["b.jpg", "a.jpg", "c.jpg"], row(json!(["a", "a", "b"])), Err("lists others")),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, output) = (folder.path().join("data"), folder.path().join("shards"));
        std::fs::create_dir(&data).expect("created");
        let members = endings.map(|ending| format!("x.{ending}"));
        let whole = json!({"conversations": [question("What?"), answered("A slope.")]}).to_string();
        let mut content: Vec<(&str, &[u8])> =
            members.iter().zip(&bytes).map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        content.push(("x.json", json.as_bytes()));
        content.push(("y.json", whole.as_bytes()));
        tar_of(&data, &content);
        make(&data, &output, &["--max-rejected", "1"]);
        let rows = texts(&output, Split::Train);
        let rejected = std::fs::read_to_string(output.join("rejected.jsonl")).expect("there");
        match order {
            Ok(order) => {
                assert_eq!(rejected, "", "{name}");
                let row = rows.iter().find(|row| row.id == "x").expect("the row");
                let found: Vec<&String> = row.images.iter().map(|image| &image.sha256).collect();
                assert_eq!(found, order.map(|index: usize| &hashes[index]), "{name}");
            }
            Err(words) => {
                assert!(rejected.contains(words) && rejected.contains(&members[0]), "{name}: {rejected}");
                assert_eq!(rows.len(), 1, "{name}");
            }
        }
    }
}
