//! `preprocess shards` killed, continued, split over machines or misused: byte-identical output, or an error.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::dataset::{Dataset, answered, question, reference_rows};

const ARGS: [&str; 8] =
    ["--rows-per-shard", "24", "--max-row-group-rows", "5", "--validation-fraction", "0.2", "--workers", "2"];

/// Rows of the tiny dataset over and over under new ids, some of them faulty.
fn dataset(repeat: usize) -> Dataset {
    let dataset = Dataset::empty();
    let rows = reference_rows("pictures");
    dataset.copy_images("pictures", rows.len());
    let mut all = Vec::new();
    for number in 0..repeat * rows.len() {
        let mut row = rows[number % rows.len()].clone();
        row["id"] = if number % 50 == 7 { json!("again and again") } else { json!(format!("row {number}")) };
        if number % 31 == 3 {
            row["image"] = json!("absent.jpg");
        }
        all.push(row);
    }
    dataset.write(&Value::Array(all));
    dataset
}

/// Every file below a folder, by relative name.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(root: &Path, dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(root, &path, found);
            } else {
                let name = path.strip_prefix(root).expect("below").display().to_string();
                found.insert(name, std::fs::read(&path).expect("read"));
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(dir, dir, &mut found);
    found
}

fn assert_same(found: &Path, expected: &Path) {
    let (found, expected) = (contents(found), contents(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "the same files");
    for (name, bytes) in &found {
        assert!(bytes == &expected[name], "{name} differs");
    }
}

#[test]
fn killed_at_twenty_random_moments_it_gives_the_same_bytes() {
    let dataset = dataset(12);
    let started = Instant::now();
    let expected = dataset.shards(&ARGS);
    let undisturbed = started.elapsed();
    let mut random = StdRng::seed_from_u64(20);
    let (mut kills, mut folders) = (0, 0);
    while kills < 20 {
        let output = tempfile::tempdir().expect("a temporary folder");
        folders += 1;
        loop {
            let mut child = dataset.command(output.path(), &ARGS).spawn().expect("started");
            std::thread::sleep(undisturbed.mul_f64(random.random_range(0.02..0.6)));
            child.kill().expect("killed");
            let killed = !child.wait().expect("ended").success();
            kills += usize::from(killed);
            if !killed || kills == 20 {
                break;
            }
        }
        let run = dataset.run_into(output.path(), &ARGS);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(run.stdout.lines().next(), expected.stdout.lines().next());
        assert_same(output.path(), expected.path());
    }
    println!("{kills} kills in {folders} folders, undisturbed run {undisturbed:?}");
}

#[test]
fn workers_do_not_change_the_bytes() {
    let dataset = dataset(3);
    let expected = dataset.shards(&ARGS);
    for workers in ["1", "7"] {
        assert_same(dataset.shards(&[&ARGS[..6], &["--workers", workers]].concat()).path(), expected.path());
    }
}

#[test]
fn parts_on_several_machines_are_one_run() {
    let dataset = dataset(4);
    let expected = dataset.shards(&ARGS);
    let joined = tempfile::tempdir().expect("a temporary folder");
    let index = || {
        let mut command = Command::new(tests::program("preprocess"));
        command.arg("index").arg(joined.path()).output().expect("started")
    };
    for (number, part) in ["2/3", "1/3", "3/3"].into_iter().enumerate() {
        let run = dataset.run_into(joined.path(), &[&ARGS[..], &["--part", part]].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(!joined.path().join("index.json").exists());
        if number < 2 {
            let early = index();
            assert_eq!(early.status.code(), Some(1));
            let message = String::from_utf8_lossy(&early.stderr).into_owned();
            assert!(message.contains("shards are missing"), "{message}");
        }
    }
    let run = index();
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    assert_same(joined.path(), expected.path());
}

#[test]
fn another_input_or_option_is_refused_by_name() {
    let dataset = dataset(1);
    let output = tempfile::tempdir().expect("a temporary folder");
    let run = |args: &[&str]| dataset.run_into(output.path(), args);
    assert_eq!(run(&ARGS).code, Some(0));
    for (option, value, name) in [
        ("--rows-per-shard", "25", "rows_per_shard"),
        ("--max-row-group-rows", "6", "max_row_group_rows"),
        ("--validation-fraction", "0.3", "validation_fraction"),
        ("--pixels", "u8", "pixels"),
        ("--system-prompt", "Hello.", "system_prompt"),
        ("--max-length", "99", "max_length"),
        ("--limit", "5", "limit"),
    ] {
        let mut args: Vec<&str> = ARGS.to_vec();
        match args.iter().position(|arg| *arg == option) {
            Some(index) => args[index + 1] = value,
            None => args.extend([option, value]),
        }
        let refused = run(&args);
        assert_eq!(refused.code, Some(1), "{option}");
        assert!(refused.stderr.contains(&format!("{name} was")), "{option}: {}", refused.stderr);
    }
    assert_eq!(run(&ARGS).code, Some(0), "the folder is as it was");
    let foreign = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(foreign.path().join("thesis.tex"), "").expect("written");
    let refused = dataset.run_into(foreign.path(), &ARGS);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("thesis.tex"), "{}", refused.stderr);
}

#[test]
fn a_changed_input_or_model_is_refused_by_name() {
    let dataset = dataset(1);
    std::fs::copy(tests::reference("pictures/images.zip"), dataset.data().join("images.zip")).expect("copied");
    let output = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(dataset.run_into(output.path(), &ARGS).code, Some(0));
    let refused = |model: Option<&Path>, difference: &str| {
        let model = model.map_or_else(tests::dataset::llava, Path::to_path_buf);
        let run = dataset.command_for(&model, output.path(), &ARGS).output().expect("started");
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(1), "{difference}: {stderr}");
        assert!(stderr.contains(difference), "{difference:?} is missing in {stderr}");
        println!("{stderr}");
    };
    for (file, from, to, difference) in [
        ("preprocessor_config.json", "0.48145466", "0.5", "metadata.image_mean[0] was 0.48145466, is 0.5"),
        ("chat_template.jinja", "<|im_start|>", "<|im_start|> ", "metadata.chat_template_sha256 was"),
        ("tokenizer_config.json", "\"eos_token\": \"<|im_end|>\"", "\"eos_token\": \"<|endoftext|>\"", "eos_token_id"),
    ] {
        let model = tempfile::tempdir().expect("a temporary folder");
        for entry in std::fs::read_dir(tests::dataset::llava()).expect("listed") {
            let source = entry.expect("an entry").path();
            std::fs::copy(&source, model.path().join(source.file_name().expect("a name"))).expect("copied");
        }
        let text = std::fs::read_to_string(model.path().join(file)).expect("read");
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::remove_file(model.path().join(file)).expect("removed");
        std::fs::write(model.path().join(file), text.replacen(from, to, 1)).expect("written");
        refused(Some(model.path()), difference);
    }
    let image = dataset.data().join("images").join(reference_rows("pictures")[0]["image"].as_str().expect("a name"));
    let bytes = std::fs::read(&image).expect("read");
    std::fs::remove_file(&image).expect("removed");
    refused(None, "image_files.found was");
    refused(None, "belongs to another run: the dataset has changed; to make its shards anew remove the folder");
    std::fs::write(&image, &bytes[1..]).expect("written");
    refused(None, "image_files.bytes was");
    std::fs::write(&image, bytes).expect("written");
    assert_eq!(dataset.run_into(output.path(), &ARGS).code, Some(0), "as it was");
    std::fs::copy(tests::reference("pictures_large/images.zip"), dataset.data().join("images.zip")).expect("copied");
    refused(None, "images[2] was \"images.zip (");
    let again = [question("<image>"), answered("A dog.")];
    dataset.write(&json!([{"id": "new", "image": "absent.jpg", "conversations": again}]));
    refused(None, "records.sha256 was");
}

#[test]
fn a_lost_shard_is_made_again() {
    let dataset = dataset(2);
    let expected = dataset.shards(&ARGS);
    let output = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(dataset.run_into(output.path(), &ARGS).code, Some(0));
    std::fs::remove_file(output.path().join("shard-00001.parquet")).expect("removed");
    let cut = output.path().join("shard-00000.parquet");
    let bytes = std::fs::read(&cut).expect("read");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("written");
    assert_eq!(dataset.run_into(output.path(), &ARGS).code, Some(0));
    assert_same(output.path(), expected.path());
}

#[test]
fn memory_does_not_grow_with_the_rows() {
    let peak = |rows: usize| {
        let dataset = Dataset::empty();
        // Text-only rows with a long note that nobody reads: many bytes of chat.json, little work.
        let row = |number: usize| {
            let turns = [question("Say something."), answered("Something.")];
            json!({"id": format!("row {number}"), "note": "n".repeat(1500), "conversations": turns})
        };
        dataset.write(&(0..rows).map(row).collect());
        let output = tempfile::tempdir().expect("a temporary folder");
        let mut command = dataset.command(output.path(), &["--workers", "2"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        let mut peak_kb = 0;
        while child.try_wait().expect("waited").is_none() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("VmHWM:"));
            let kb = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
            peak_kb = peak_kb.max(kb);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(child.wait().expect("ended").success());
        let bytes = std::fs::metadata(dataset.data().join("chat.json")).expect("read").len();
        println!("{rows} rows, chat.json of {} MB: peak RSS {} MB", bytes / 1_000_000, peak_kb / 1000);
        peak_kb
    };
    let (few, many) = (peak(4_000), peak(40_000));
    assert!(many < 400_000, "{many} kB");
    // 16 bytes a row are meant to grow (the ids' hashes), and the allocator keeps some; 60 MB of JSON must not.
    assert!(many < few + 20_000, "{few} kB for 4,000 rows, {many} kB for 40,000");
}
