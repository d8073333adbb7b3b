//! The errors that a new user meets first: each names the place and the next step.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::program;
use tests::training::{fail, shards};

/// A command line, and parts of its last line.
struct Row {
    program: &'static str,
    args: Vec<String>,
    place: &'static str,
    next: &'static str,
}

fn row(program: &'static str, args: &[&str], place: &'static str, next: &'static str) -> Row {
    Row { program, args: args.iter().map(|arg| arg.to_string()).collect(), place, next }
}

/// A copy of the tiny model without one of its files, and with another one.
fn model_without(file: &str, with: Option<&str>, to: &Path) -> PathBuf {
    std::fs::create_dir(to).expect("created");
    for entry in std::fs::read_dir(tests::reference("tiny/llava")).expect("the model").flatten() {
        if entry.file_name() != file {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
    with.iter().for_each(|name| std::fs::write(to.join(name), "{}").expect("written"));
    to.to_path_buf()
}

#[test]
fn each_names_the_next_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_string();
    let model = text(tests::reference("tiny/llava"));
    let no_tokenizer = text(model_without("tokenizer.json", None, &at("no_tokenizer")));
    let adapter = text(model_without("tokenizer.json", Some("adapter_config.json"), &at("adapter")));
    let empty = at("empty");
    std::fs::create_dir(&empty).expect("created");
    let (empty, absent, shards) = (text(empty), text(at("absent")), text(shards().to_path_buf()));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let train = |data: &str, more: &[&str]| {
        let options =
            ["--model-name-or-path", &model, "--data-path", data, "--output-dir", "run", "--train-type", "none"];
        row("train", &[&options, more].concat(), "", "")
    };
    let ask = |model: &str, more: &[&str]| {
        row("infer", &[&["generate", "--model", model, "--prompt", "What is it?"][..], more].concat(), "", "")
    };
    let caption = |more: &[&str], place: &'static str, next: &'static str| {
        row("infer", &[&["caption", "--model", &model][..], more].concat(), place, next)
    };
    let misspelt = text(at("misspelt.toml"));
    std::fs::write(&misspelt, "[trian]\nseed = 1\n").expect("written");
    let rows = [
        row(
            "preprocess",
            &["shards", "--model", &model, "--data", &absent, "--output", "s"],
            "absent",
            "give the dataset's folder",
        ),
        row(
            "preprocess",
            &["shards", "--model", &absent, "--data", &empty, "--output", "s"],
            "absent",
            "hf download OWNER/NAME",
        ),
        row(
            "preprocess",
            &["shards", "--model", &no_tokenizer, "--data", &empty, "--output", "s"],
            "no_tokenizer",
            "copy the tokenizer's files",
        ),
        row(
            "preprocess",
            &["model", "--vision-tower", &absent, "--language-model", &model, "--output", "m"],
            "--vision-tower",
            "check the path",
        ),
        Row { place: "absent", next: "check the path; preprocess shards --output", ..train(&absent, &[]) },
        Row {
            place: "cuda:0",
            next: "cargo build --release --features cuda -p train -p infer",
            ..train(&shards, &["--device", "cuda:0"])
        },
        Row { place: "metal:0", next: "--device vulkan", ..train(&shards, &["--device", "metal"]) },
        Row { place: "absent", next: "hf download OWNER/NAME", ..ask(&absent, &[]) },
        Row { place: "adapter", next: "give its base as --model and this folder as --adapter", ..ask(&adapter, &[]) },
        Row { place: "absent", next: "check the path", ..ask(&model, &["--image", &absent]) },
        caption(&["--images", &absent, "--output", "o"], "absent", "expected a folder of pictures; check the path"),
        caption(&["--shards", &empty, "--output", "o"], "empty", "preprocess shards"),
        caption(&["--images", &empty, "--output", "nowhere/o"], "nowhere", "mkdir -p nowhere"),
        row("infer", &["serve", "--model", &model, "--api-key-file", &absent], "absent", "a file with the key"),
        row("train", &[&absent], "absent", "expected a recipe"),
        Row { place: "absent", next: "a DeepSpeed configuration", ..train(&shards, &["--deepspeed", &absent]) },
        row("train", &[&misspelt], "[trian]", "did you mean [train]"),
        row("infer", &["serve", "--model", &model, "--port", &port], "in use", "give another --port"),
        row("pipelines", &["run", &absent], "absent", "check the path"),
    ];
    for Row { program: name, args, place, next } in rows {
        let told = fail(Command::new(program(name)).args(&args).current_dir(folder.path()));
        let last = told.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error: {told}"));
        println!("{name} {}\n  {last}", args[0]);
        assert!(last.contains(place) && last.contains(next), "{name} {args:?}: expected {place} and {next}: {told}");
    }
}

/// `localhost` is an address; other names are not.
#[test]
fn a_server_listens_on_addresses() {
    let model = tests::reference("tiny/llava");
    let serve = |host: &str| {
        let mut command = Command::new(program("infer"));
        command.args(["serve", "--host", host, "--port", "0", "--api-key", "", "--model"]).arg(&model);
        fail(&mut command)
    };
    // The host is taken, and the next thing is refused.
    assert!(serve("localhost").contains("--api-key"), "{}", serve("localhost"));
    assert!(serve("example.org").contains("0.0.0.0 for all networks"), "{}", serve("example.org"));
}

#[test]
fn a_full_disk_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (disk, log) = (folder.path().join("disk"), folder.path().join("log"));
    std::fs::create_dir(&disk).expect("created");
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {disk} || exit 77; {quickstart} --output {disk}/quickstart 2>{log}",
        disk = disk.display(),
        log = log.display(),
        quickstart = format_args!("{} quickstart --pictures 200", program("pipelines").display()),
    );
    let status = Command::new("unshare").args(["-m", "sh", "-c", &script]).status().expect("unshare starts");
    if !log.exists() {
        println!("not run: mounting a small file system needs root");
        return;
    }
    let log = std::fs::read_to_string(&log).expect("the log");
    println!("{log}");
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().rfind(|line| line.starts_with("error: ")).expect("an error");
    assert!(last.contains("No space left on device") && last.contains("free space there"), "{log}");
}
