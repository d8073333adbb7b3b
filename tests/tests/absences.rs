//! Rules of the code's layout, each as a search through the sources.

use std::path::{Path, PathBuf};

/// Crates whose code ships.
const CRATES: [&str; 14] = [
    "common/base",
    "common/chat",
    "common/cli",
    "common/html",
    "common/images",
    "common/kernels",
    "common/metrics",
    "common/model",
    "common/shards",
    "common/store",
    "preprocess",
    "train",
    "infer",
    "pipelines",
];

/// A source file without its comments and without its tests.
struct Source {
    /// Relative to the workspace, with `/`.
    path: String,
    /// Line number and text.
    lines: Vec<(usize, String)>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    for name in CRATES {
        collect(&workspace().join(name).join("src"), &mut files);
    }
    files.sort();
    assert!(files.len() > 40, "only {} source files were found", files.len());
    files.iter().map(|path| read(path)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !is_test {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") && !is_test {
            files.push(path);
        }
    }
}

fn read(path: &Path) -> Source {
    let text = std::fs::read_to_string(path).expect("the source is readable");
    let root = workspace();
    let path = path.strip_prefix(&root).expect("below the workspace").to_string_lossy().replace('\\', "/");
    let code =
        |line: &str| line.find("//").filter(|&at| !inside_literal(line, at)).map_or(line, |at| &line[..at]).to_string();
    let lines = text.lines().enumerate();
    let lines = lines.take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"));
    Source { path, lines: lines.map(|(index, line)| (index + 1, code(line))).collect() }
}

/// Whether position `at` of a line lies between quotation marks.
fn inside_literal(line: &str, at: usize) -> bool {
    line[..at].replace("\\\"", "").matches('"').count() % 2 == 1
}

/// The literals of a line.
fn literals(line: &str) -> Vec<String> {
    line.replace("\\\"", "").split('"').skip(1).step_by(2).map(String::from).collect()
}

/// Fails with every place outside `allowed` where a line holds one of `words`.
fn forbid(rule: &str, words: &[&str], allowed: impl Fn(&str) -> bool) {
    let sources = sources();
    let elsewhere = sources.iter().filter(|source| !allowed(&source.path));
    let places: Vec<String> = elsewhere
        .flat_map(|source| {
            let hit = |line: &str| words.iter().any(|word| holds(line, word));
            source
                .lines
                .iter()
                .filter(move |(_, line)| hit(line))
                .map(|(number, line)| format!("  {}:{number}: {}", source.path, line.trim()))
        })
        .collect();
    println!("{rule}: {} files searched", sources.len());
    assert!(places.is_empty(), "{rule}, but:\n{}", places.join("\n"));
}

/// Whether a line holds a word that is not the end of a longer one (`println!` is not in `eprintln!`).
fn holds(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_') || !word.starts_with(|c: char| c.is_alphanumeric())
    })
}

/// A search that finds nothing because it reads nothing would be no test.
#[test]
fn the_search_finds_what_is_there() {
    assert!(holds("    println!(\"x\")", "println!(") && !holds("    eprintln!(\"x\")", "println!("));
    assert!(holds("value.unwrap()", ".unwrap()"));
    assert_eq!(literals(r#"f("a", "b.c")"#), ["a", "b.c"]);
    assert!(inside_literal(r#"let url = "http://x";"#, 16));
    let sources = sources();
    let shard = sources.iter().filter(|source| source.path.starts_with("common/shards/src/"));
    assert!(shard.flat_map(|source| &source.lines).any(|(_, line)| holds(line, "parquet::")));
    let mains = sources.iter().filter(|source| source.path.ends_with("/src/main.rs"));
    assert!(mains.flat_map(|source| &source.lines).any(|(_, line)| holds(line, "env::args_os")));
}

/// Configurations are read from files; nothing else of the model is.
#[test]
fn the_model_touches_no_files_no_environment_and_no_ranks() {
    let words = ["std::fs", "std::env", "std::path", "std::net", "std::process", "std::io", "world_size", "Collective"];
    let model = |path: &str| {
        path.starts_with("common/model/src/") && !path.starts_with("common/model/src/config/")
            || path.starts_with("common/kernels/src/cpu/")
    };
    forbid("the model touches no files, no environment, no ranks", &words, |path| !model(path));
}

#[test]
fn only_train_collective_talks_to_other_ranks() {
    let words = ["MPI_", "libmpi", "Barrier"];
    forbid("only train::collective talks to other ranks", &words, |path| path.starts_with("train/src/collective/"));
}

#[test]
fn only_main_reads_arguments_prints_results_and_exits() {
    let words = ["env::args", "println!(", "print!(", "process::exit", "stdout()"];
    forbid("only main.rs reads arguments, prints results, exits", &words, |path| path.ends_with("/src/main.rs"));
}

/// These macros panic where stdout or stderr is closed or its disk is full.
#[test]
fn nothing_prints_in_a_way_that_panics() {
    let words = ["println!(", "print!(", "eprintln!(", "eprint!("];
    forbid("stdout is written by base::output, stderr by cli::log", &words, |_| false);
}

/// There, what gets a name is on disk first.
#[test]
fn only_base_files_gives_files_their_names() {
    let words = ["fs::rename(", "fs::copy(", "hard_link(", ".persist(", ".persist_noclobber("];
    forbid("only base::files renames, links and copies", &words, |path| path.starts_with("common/base/src/files"));
}

#[test]
fn nothing_gives_up_on_what_a_user_controls() {
    let words = [".unwrap()", "panic!(", "todo!(", "unimplemented!(", "dbg!(", ".unwrap_unchecked("];
    forbid("no unwrap, no panic, nothing unfinished", &words, |_| false);
}

/// Its name is written once; who wants its rows asks that reader.
#[test]
fn only_chat_dataset_reads_chat_json() {
    let mut places = Vec::new();
    for source in sources().iter().filter(|source| !source.path.starts_with("common/chat/src/dataset/")) {
        for (number, line) in &source.lines {
            let named = literals(line).iter().any(|text| text == "chat.json");
            places.extend(named.then(|| format!("  {}:{number}: {}", source.path, line.trim())));
        }
    }
    assert!(places.is_empty(), "only chat::dataset names chat.json's path, but:\n{}", places.join("\n"));
}

/// Names of tensors and of files are in `common/base/src/names.rs`; elsewhere they are its constants, or the model's own paths.
#[test]
fn hugging_face_keys_are_in_one_file() {
    let beginnings =
        ["language_model.", "vision_tower.", "multi_modal_projector.", "vision_model.", "base_model.", "model.layers."];
    let files =
        ["model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json", "adapter_config.json"];
    let mut places = Vec::new();
    for source in sources().iter().filter(|source| source.path != "common/base/src/names.rs") {
        for (number, line) in &source.lines {
            let found = literals(line);
            let key = found.iter().find(|text| {
                files.contains(&text.as_str()) || beginnings.iter().any(|beginning| text.starts_with(beginning))
            });
            places.extend(key.map(|key| format!("  {}:{number}: {key:?}", source.path)));
        }
    }
    assert!(
        places.is_empty(),
        "Hugging Face key strings live in common/base/src/names.rs, but:\n{}",
        places.join("\n")
    );
}

#[test]
fn no_test_is_ignored() {
    let mut files = Vec::new();
    for name in CRATES {
        collect(&workspace().join(name).join("src"), &mut files);
    }
    collect(&workspace().join("tests/tests"), &mut files);
    let ignored = concat!("#[ign", "ore");
    let found = files.iter().filter(|path| std::fs::read_to_string(path).expect("readable").contains(ignored));
    assert_eq!(found.collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "tests that never run");
}
