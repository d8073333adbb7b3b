//! The most likely first errors of every program: each says what to do next, and before anything is loaded.

use std::path::Path;
use std::process::Command;
use tests::dataset::llava;
use tests::program;
use tests::runs::train;
use tests::training::{shards, succeed};

/// Exit code, stdout and stderr of a program in a folder.
fn run(folder: &Path, name: &str, words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(program(name)).args(words).current_dir(folder).output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A small picture.
fn llava_picture() -> std::path::PathBuf {
    let images = tests::reference("pictures/images");
    let mut names: Vec<_> =
        std::fs::read_dir(images).expect("pictures").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names.remove(0)
}

#[test]
fn first_errors_say_the_next_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = llava();
    let model = model.to_str().expect("UTF-8");
    let without_tokenizer = folder.path().join("bare");
    std::fs::create_dir(&without_tokenizer).expect("created");
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(llava().join(file), without_tokenizer.join(file)).expect("copied");
    }
    std::fs::write(folder.path().join("bad.toml"), "[train]\nlearning_rat = 1.0\n").expect("written");
    let trained = ["--data_path", "s", "--output_dir", "o", "--train_type", "use_lora"];
    let with_trained = |words: &[&'static str]| [words, &trained[..]].concat();
    let cases: [(&str, Vec<&str>, i32, &[&str]); 24] = [
        (
            "train",
            with_trained(&["--model_name_or_path", "models/llava"]),
            1,
            &["models/llava: found no such folder", "preprocess model --vision-tower DIR", "--output models/llava"],
        ),
        ("train", vec!["plan", "--model_name_or_path", "models/llava"], 1, &["no such folder", "--vision-tower"]),
        ("train", vec!["plan"], 2, &["found no model", "--model_name_or_path"]),
        (
            "preprocess",
            vec![
                "model",
                "--vision-tower",
                "models/clip-vit-large-patch14-336",
                "--language-model",
                "x",
                "--output",
                "o",
            ],
            1,
            &[
                "no such folder",
                "hf download openai/clip-vit-large-patch14-336 --local-dir models/clip-vit-large-patch14-336",
            ],
        ),
        (
            "preprocess",
            vec!["shards", "--model", model, "--data", "bare", "--output", "o"],
            1,
            &["captions.csv beside the pictures"],
        ),
        (
            "infer",
            vec!["generate", "--model", "bare", "--prompt", "What?"],
            1,
            &["bare: found no tokenizer.json", "copy the tokenizer's files"],
        ),
        ("infer", vec!["generate", "--model", "runs/x", "--prompt", "What?"], 1, &["runs/x: found no such folder"]),
        (
            "infer",
            vec!["generate", "--model", model, "--device", "cuda", "--prompt", "What?"],
            1,
            &["cargo build --release --features cuda -p train -p infer"],
        ),
        ("infer", vec!["serve", "--model", model, "--host", "example"], 2, &["127.0.0.1 or localhost", "0.0.0.0"]),
        (
            "infer",
            vec!["serve", "--model", model, "--host", "192.0.2.1"],
            1,
            &["give --host an address of this machine"],
        ),
        ("pipelines", vec!["run", "bad.toml"], 2, &["did you mean learning_rate?"]),
        ("pipelines", vec!["run", "none.toml"], 1, &["none.toml: ", "; check the path"]),
        ("train", vec!["none.toml"], 1, &["none.toml: ", "; check the path"]),
        ("train", vec!["bad.tml"], 1, &["bad.tml: ", "; check the path (there is bad.toml)"]),
        ("pipelines", vec!["run", "bad.toml"], 2, &["bad.toml: line 2: [train]: found unknown key learning_rat"]),
        (
            "pipelines",
            vec!["report", "bare"],
            1,
            &["bare: found no metrics.jsonl, expected the output folder of a training"],
        ),
        ("train", vec!["--model", "m"], 2, &["unknown option --model: did you mean --model_name_or_path?"]),
        ("train", vec!["--lr", "1"], 2, &["did you mean --learning_rate?"]),
        ("train", vec!["--epochs=3"], 2, &["did you mean --num_train_epochs?"]),
        (
            "infer",
            vec!["generate", "--model", model, "--adapter", model, "--prompt", "What?"],
            1,
            &["found a whole model, expected an adapter", "give this one as the model"],
        ),
        ("train", vec!["--lerning_rate", "1"], 2, &["did you mean --learning_rate?"]),
        ("train", vec!["--gradient_chekpointing_kwargs", "{}"], 2, &["did you mean --gradient_checkpointing_kwargs?"]),
        ("train", vec!["--per_device_train_batchsize", "4"], 2, &["did you mean --per_device_train_batch_size?"]),
        ("train", vec!["--rope_scaling", "2"], 2, &["unknown option --rope_scaling: train --help lists all options"]),
    ];
    for (name, words, code, parts) in cases {
        let (found, _, stderr) = run(folder.path(), name, &words);
        println!("{name} {}: {}", words.join(" "), stderr.trim());
        assert_eq!(found, Some(code), "{name} {words:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{name} {words:?}: {part:?} is not in {stderr}");
        }
    }
    // A path that is nearly right.
    std::fs::create_dir(folder.path().join("barf")).expect("created");
    let (_, _, stderr) = run(folder.path(), "infer", &["generate", "--model", "./bars", "--prompt", "What?"]);
    assert!(stderr.contains("did you mean ./bar"), "{stderr}");
    // A folder of checkpoints.
    std::fs::create_dir_all(folder.path().join("run/checkpoint-10")).expect("created");
    std::fs::write(folder.path().join("run/checkpoint-10/config.json"), "{}").expect("written");
    let (_, _, stderr) = run(folder.path(), "infer", &["generate", "--model", "./run", "--prompt", "What?"]);
    assert!(stderr.contains("./run: found no config.json") && stderr.contains("./run/checkpoint-10"), "{stderr}");
    // The folder of the first case exists: the name stays a path.
    std::fs::create_dir(folder.path().join("own")).expect("created");
    let (_, _, stderr) = run(folder.path(), "infer", &["generate", "--model", "own/llava", "--prompt", "What?"]);
    assert!(stderr.contains("own/llava: found no such folder"), "{stderr}");
}

#[test]
fn a_port_in_use_is_an_error_before_the_model_is_loaded() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = llava();
    let words = ["serve", "--model", model.to_str().expect("UTF-8"), "--host", "localhost", "--port", &port];
    let (code, _, stderr) = run(folder.path(), "infer", &words);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&format!("127.0.0.1:{port}: found ")) && stderr.contains("in use"), "{stderr}");
    assert!(stderr.contains("give another --port") && !stderr.contains("adapter"), "{stderr}");
}

/// The base is named in the adapter; the same answer as with both named.
#[test]
fn an_adapter_given_as_the_model_answers_on_its_base() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let adapter = folder.path().join("adapter");
    succeed(&mut train(&shards(), &adapter, &["--train_type", "use_lora", "--max_steps", "1"]));
    let (model, adapter) = (llava(), adapter.to_str().expect("UTF-8").to_owned());
    let model = model.to_str().expect("UTF-8");
    let ask = ["--prompt", "What?", "--max-new-tokens", "5"];
    let generate = |words: &[&str]| run(folder.path(), "infer", &[&["generate"], words, &ask[..]].concat());
    let (code, alone, stderr) = generate(&["--model", &adapter]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("is an adapter: on its model, "), "{stderr}");
    let (code, both, stderr) = generate(&["--model", model, "--adapter", &adapter]);
    assert_eq!((code, &both), (Some(0), &alone), "{stderr}");
    // A program that trains or merges says which two options to give.
    for (name, words) in [
        (
            "train",
            vec!["--model_name_or_path", &adapter, "--data_path", "s", "--output_dir", "o", "--train_type", "none"],
        ),
        ("infer", vec!["export", "--model", &adapter, "--output", "o"]),
        ("preprocess", vec!["shards", "--model", &adapter, "--data", "data", "--output", "o"]),
    ] {
        std::fs::create_dir_all(folder.path().join("data")).expect("created");
        std::fs::write(folder.path().join("data/chat.json"), "[]").expect("written");
        let (_, _, stderr) = run(folder.path(), name, &words);
        assert!(stderr.contains("found an adapter, expected a whole model"), "{name}: {stderr}");
        assert!(stderr.contains(&format!("--init_adapter {adapter}")), "{name}: {stderr}");
    }
}

#[test]
fn a_recipe_needs_no_purpose() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipe =
        "[train]\nmodel_name_or_path = \"m\"\ndata_path = \"s\"\noutput_dir = \"o\"\ntrain_type = \"projector\"\n";
    std::fs::write(folder.path().join("r.toml"), recipe).expect("written");
    let (code, stdout, stderr) = run(folder.path(), "pipelines", &["run", "r.toml", "--dry-run"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("--train_type projector"), "{stdout}");
}

/// What the plan knows is said before anything is loaded, with settings that fit; `--force` starts all the same.
#[test]
fn a_run_that_does_not_fit_is_refused_with_what_helps() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    let outcome = |more: &[&str]| {
        let run = train(&shards(), &output, more).output().expect("it starts");
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let ranks = ["--train_type", "none", "--nproc", "20000", "--max_steps", "1"];
    let (code, stderr) = outcome(&ranks);
    println!("{stderr}");
    assert_eq!(code, Some(3), "{stderr}");
    for part in ["memory: the 20000 ranks here need", "are available", "--nproc 1 (", "--force true"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert!(!stderr.contains("--train_type none ("), "not the one in use: {stderr}");
    assert!(!output.exists(), "nothing was begun");
    let no_rows = ["--train_type", "projector", "--max_steps", "1", "--eval_strategy", "steps"];
    let (code, stderr) = outcome(&no_rows);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("the job cannot start: validation rows: ") && stderr.contains("--validation-fraction"),
        "{stderr}"
    );
    let (code, stderr) = outcome(&[&no_rows[..], &["--force"]].concat());
    assert!(code == Some(1) && stderr.contains("warning: --force: validation rows"), "{code:?}: {stderr}");
    let mut plan = Command::new(program("train"));
    plan.arg("plan").arg("--model_name_or_path").arg(llava()).arg("--data_path").arg(shards());
    let plan = plan.arg("--output_dir").arg(&output).args(ranks).output().expect("it starts");
    let text = String::from_utf8_lossy(&plan.stdout);
    assert_eq!(plan.status.code(), Some(3), "{text}");
    assert!(text.contains("DOES NOT FIT") && text.contains("helps: --nproc 1 ("), "{text}");
}

/// Disk that checkpoints of the real job would take, in a folder of this machine.
#[test]
fn a_plan_says_what_fits_the_disk_how_long_it_takes_and_what_computes() {
    let config = |name: &str| tests::project_file(&format!("configs/{name}"));
    let plan = |more: &[&str]| {
        let mut command = Command::new(program("train"));
        command.arg("plan").arg("--vision-tower").arg(config("clip-vit-large-patch14-336"));
        command.arg("--language-model").arg(config("qwen1.5-4b-chat"));
        let output =
            command.args(["--output_dir", "/tmp/none", "--save_steps", "1"]).args(more).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = plan(&["--train_type", "none", "--bf16", "true"]);
    println!("{text}");
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("device: cpu, computes in f32 (bf16 has no effect there"), "{text}");
    assert!(
        text.contains("disk                DOES NOT FIT") && text.contains("helps: another --output_dir"),
        "{text}"
    );
    let time = text.lines().find(|line| line.trim_start().starts_with("time")).expect("a line");
    assert!(time.contains("days an epoch") && time.contains("GFLOP/s measured here"), "{time}");
    let (_, text) = plan(&["--train_type", "use_lora", "--device", "cuda:0", "--bf16", "true", "--nproc", "4"]);
    assert!(text.contains("device: cuda:0, computes in bf16, rank r on GPU r"), "{text}");
    assert!(
        text.contains("NOT CHECKED: a rank needs ") && text.contains("time                not known here"),
        "{text}"
    );
}

/// Folders of splits: the hint names the one to train on. A fraction that holds out nothing says which one does.
#[test]
fn hints_about_a_small_dataset_can_be_followed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let picture = llava_picture();
    for split in ["test", "train", "validation"] {
        let rows = folder.path().join("data").join(split);
        std::fs::create_dir_all(&rows).expect("created");
        let mut table = String::from("file_name,text\n");
        for row in 0..12 {
            std::fs::copy(&picture, rows.join(format!("{row}.png"))).expect("copied");
            table += &format!("{row}.png,a picture\n");
        }
        std::fs::write(rows.join("metadata.csv"), table).expect("written");
    }
    let model = llava();
    let model = model.to_str().expect("UTF-8");
    let shards = |more: &[&str]| run(folder.path(), "preprocess", &[&["shards", "--model", model], more].concat());
    let (code, _, stderr) = shards(&["--data", "data", "--output", "s"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("give the folder of the dataset itself (there is data/train: "), "{stderr}");
    let (code, stdout, stderr) = shards(&["--data", "data/train", "--output", "s", "--validation-fraction", "0.001"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("+ 0 validation"), "{stdout}");
    let hint =
        "--validation-fraction 0.001 of 12 rows holds out none: --validation-fraction 0.5 does, into another --output";
    assert!(stderr.contains(hint), "{stderr}");
    let (code, stdout, stderr) = shards(&["--data", "data/train", "--output", "s5", "--validation-fraction", "0.5"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stdout.contains("+ 0 validation"), "{stdout}");
    // A name that is nearly that of a folder of shards.
    let trained = ["--model_name_or_path", model, "--output_dir", "o", "--train_type", "projector"];
    let (code, _, stderr) = run(folder.path(), "train", &[&trained[..], &["--data_path", "s5x"]].concat());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("s5x: found no such folder") && stderr.contains("did you mean s5?"), "{stderr}");
    // Two spellings of one folder.
    let (code, _, stderr) = run(folder.path(), "train", &[&trained[..], &["--data_path", "./s5,s5:0.5"]].concat());
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("found s5 twice, as ./s5"), "{stderr}");
    let evaluated = [&trained[..], &["--data_path", "s", "--eval_strategy", "steps"]].concat();
    let (code, _, stderr) = run(folder.path(), "train", &evaluated);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("--validation-fraction 0.5"), "{stderr}");
}
