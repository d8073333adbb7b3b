//! README.md and docs/ as a reader uses them: every command runs on small stand-ins of the models and data that it names, every
//! option exists, every link leads somewhere.

use pipelines::quickstart::dataset::{self, DatasetSettings};
use pipelines::quickstart::{backbones, tokenizer};
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::documents::{Block, Call, NOT_RUN, Options, Page, blocks, calls, pages, root};
use tests::training::succeed;
use tests::{program, python};

/// Options of other programs that documents name.
const FOREIGN: [&str; 24] = [
    "parts",
    "cublas_lt",
    "dry",
    "work",
    "release",
    "features",
    "locked",
    "local_dir",
    "repo_type",
    "include",
    "nproc_per_node",
    "mpi",
    "nodes",
    "ntasks_per_node",
    "cpus_per_task",
    "signal",
    "requeue",
    "mmproj",
    "image",
    "privileged",
    "network",
    "time",
    "open_mode",
    "no_deps",
];

/// The shell's functions for what a test cannot do as a reader does: build with cargo, leave a server running, wait for hours.
const PREAMBLE: &str = r#"
set -euo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
cargo() {
    case "$*" in
        "build --release"*) for program in preprocess train infer pipelines; do command -v $program >/dev/null; done ;;
        "run --release -p pipelines -- "*) shift 5; pipelines "$@" ;;
        *) echo "no stand-in for cargo $*" >&2; return 1 ;;
    esac
}
pipelines() {
    if [ "$1" = quickstart ]; then shift; set -- quickstart --pictures 64 --held-out 10 --epochs 1 "$@"; fi
    command pipelines "$@"
}
command -v mpirun >/dev/null || mpirun() { echo "not run: no mpirun" >&2; }
infer() {
    if [ "$1" != serve ]; then command infer "$@"; return; fi
    local arguments=()
    while [ $# -gt 0 ]; do
        if [ "$1" = --port ]; then arguments+=(--port 0); shift 2; else arguments+=("$1"); shift; fi
    done
    command infer "${arguments[@]}" >serve.log &
    local server=$! left=600
    until grep -q listening serve.log; do kill -0 $server; sleep 0.05; left=$((left - 1)); [ $left -gt 0 ]; done
    kill -TERM $server; wait $server
}
"#;

fn english(page: &Page) -> bool {
    !page.name.starts_with("docs/zh/")
}

/// A folder with everything that documents name: downloads, an assembled model, shards, a run, pictures, recipes, programs.
fn working_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["models", "data"] {
        std::fs::create_dir(at(name)).expect("created");
    }
    let [clip, qwen] = ["models/clip-vit-large-patch14-336", "models/Qwen1.5-4B-Chat"].map(at);
    std::fs::create_dir(&qwen).expect("created");
    let vocabulary = tokenizer::write(&dataset::texts(), &qwen).expect("a tokenizer");
    backbones::write(vocabulary, 1, &clip, &qwen).expect("backbones");
    let settings = DatasetSettings { training_pictures: 50, held_out_pictures: 5, seed: 1 };
    dataset::write(&settings, &at("data/LLaVA-CC3M-Pretrain-595K"), &at("data/held-out")).expect("a dataset");
    let ds = json!({"zero_optimization": {"stage": 2}, "gradient_clipping": "auto", "train_batch_size": "auto"});
    std::fs::write(at("ds_zero2_no_offload.json"), ds.to_string()).expect("written");
    std::fs::copy(at("data/held-out/images/000000.png"), at("photo.png")).expect("copied");
    symlink("data/held-out/images", at("photos")).expect("linked");
    for name in ["examples", "tests"] {
        symlink(root().join(name), at(name)).expect("linked");
    }
    copy_recipes(&at("pipelines/recipes"));
    let prepared = "pipelines run pipelines/recipes/llava-qwen1.5-4b-lora.toml";
    succeed(&mut shell(folder.path(), prepared));
    folder
}

/// The recipes, on the CPU: the stand-ins are small enough, and a GPU is not everywhere.
fn copy_recipes(to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(root().join("pipelines/recipes")).expect("recipes") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a recipe").replace("device = \"cuda\"", "device = \"cpu\"");
        std::fs::write(to.join(path.file_name().expect("a name")), text).expect("written");
    }
}

fn programs() -> PathBuf {
    program("train").parent().expect("a folder").to_path_buf()
}

/// A command of bash in a working folder.
fn shell(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("timeout");
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").expect("PATH"));
    command.args(["900", "bash", "-c", script]).current_dir(folder).env("PATH", path);
    command.env("HF_HUB_OFFLINE", "1").env_remove("CARGO").env_remove("CARGO_PKG_NAME");
    command
}

/// One script of a page's blocks, in their order.
fn script(page: &Page, blocks: &[Block], python: Option<&str>) -> String {
    let mut script = PREAMBLE.to_string();
    for block in blocks.iter().filter(|block| block.not_run().is_none()) {
        let place = format!("echo '== {}:{}' >&2\n", page.name, block.line);
        if block.is_commands() {
            // The preamble's functions stand for the programs, in whatever folder they are built.
            script += &format!("{place}{}\n", block.text.replace("target/release/", ""));
        } else if let Some(python) = python.filter(|_| block.is_python()) {
            script += &format!("{place}{python} - <<'END OF PYTHON'\n{}END OF PYTHON\n", block.text);
        }
    }
    script
}

#[test]
fn every_command_runs() {
    let python = python().map(|command| command.get_program().to_string_lossy().into_owned());
    let (prepared, mut ran) = (working_folder(), 0);
    for page in pages().iter().filter(|page| english(page)) {
        let blocks = blocks(&page.text);
        let own = blocks
            .iter()
            .filter(|block| block.not_run().is_none() && (block.is_commands() || block.is_python()))
            .count();
        if own == 0 {
            continue;
        }
        // Each page from the same start. The one that makes the model, the shards and the run itself begins without them.
        let folder = tempfile::tempdir().expect("a folder");
        succeed(Command::new("cp").arg("-a").arg(format!("{}/.", prepared.path().display())).arg(folder.path()));
        if page.name == "docs/real-job.md" {
            for made in ["models/llava-qwen1.5-4b", "shards", "runs"] {
                std::fs::remove_dir_all(folder.path().join(made)).expect("removed");
            }
        }
        let script = script(page, &blocks, python.as_deref());
        let output = shell(folder.path(), &script).output().expect("bash starts");
        let [told, said] = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{}: {}\n{said}\n{told}", page.name, output.status);
        println!("{}: {own} blocks ran", page.name);
        ran += own;
    }
    assert!(ran >= 15, "{ran} blocks");
}

/// The Chinese pages show commands of the English ones, which are run there.
#[test]
fn commands_of_translations_are_those_of_the_english_pages() {
    let (english, translated): (Vec<Page>, Vec<Page>) = pages().into_iter().partition(english);
    let lines = |text: &str| -> Vec<String> {
        let joined = text.replace("\\\n", " ");
        let code = joined.lines().map(|line| line.split(" #").next().unwrap_or_default());
        code.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect()
    };
    let known: BTreeSet<String> = english
        .iter()
        .flat_map(|page| blocks(&page.text))
        .filter(|block| block.is_commands() || block.is_python())
        .flat_map(|block| lines(&block.text))
        .collect();
    let mut found = 0;
    for page in &translated {
        for block in blocks(&page.text).iter().filter(|block| block.is_commands() || block.is_python()) {
            for line in lines(&block.text) {
                assert!(known.contains(&line), "{}:{}: {line:?} is in no English page", page.name, block.line);
                found += 1;
            }
        }
    }
    println!("{found} commands of {} translated pages", translated.len());
    assert!(translated.is_empty() || found > 10, "{found}");
}

/// Names behind `--` in code within a line of text.
fn inline_options(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        for code in line.split('`').skip(1).step_by(2) {
            for word in code.split([' ', '=', '[', ']', '(', ')', ',', '|', '\\']) {
                if let Some(name) =
                    word.strip_prefix("--").filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
                {
                    found.push(name.trim_end_matches(['.', ';', '…', '"']).replace('-', "_"));
                }
            }
        }
    }
    found
}

/// First column of the tables whose first head is `option`: options of `train`.
fn table_options(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        let first = line.strip_prefix("| ").and_then(|rest| rest.split(" |").next());
        match first {
            Some("option") => inside = true,
            Some(cell) if inside => found.extend(cell.split('`').skip(1).step_by(2).map(str::to_string)),
            Some(_) => {}
            None if line.starts_with('|') => {}
            None => inside = false,
        }
    }
    found
}

#[test]
fn every_option_exists() {
    let options = Options::read();
    let (mut checked, mut faults) = (0, Vec::new());
    for page in pages() {
        for block in blocks(&page.text).iter().filter(|block| block.is_commands()) {
            for call in calls(&block.text) {
                checked += call.options.len();
                faults.extend(
                    options
                        .unknown(&call)
                        .map(|option| format!("{}:{}: {} has no --{option}", page.name, block.line, call.command)),
                );
            }
        }
        for option in inline_options(&page.text) {
            checked += 1;
            if !options.any(&option) && !FOREIGN.contains(&option.as_str()) {
                faults.push(format!("{}: no program has --{option}", page.name));
            }
        }
        for option in table_options(&page.text) {
            checked += 1;
            if !options.has("train", &option) {
                faults.push(format!("{}: train has no {option}", page.name));
            }
        }
    }
    println!("{checked} options");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(checked > 150, "{checked} options");
    // The check finds what is wrong.
    let wrong = calls(
        "FOO=1 mpirun -np 4 train r.toml --max_steps 3 \\\n  --no-such-option 4 # --neither\ntarget/release/infer serve --prompt x\n",
    );
    let found: Vec<(&str, Option<&str>)> =
        wrong.iter().map(|call| (call.command.as_str(), options.unknown(call))).collect();
    assert_eq!(found, [("train", Some("no_such_option")), ("infer serve", Some("prompt"))]);
    assert_eq!(inline_options("`--a_b=1` and `train [--c-d]` and --e"), ["a_b", "c_d"]);
    assert_eq!(table_options("| option | |\n|---|---|\n| `a`, `b` | `c` |\n\n| x |\n| `d` |"), ["a", "b"]);
}

#[test]
fn code_blocks_are_found() {
    let text = "a\n\n    train x\n    y\n\nb\n\n```sh\ninfer a\n\n# not run by the tests: why\n```\n\n```toml\ntrain = 1\n```\n\n    chat.json ──▶\n";
    let found = blocks(text);
    let texts: Vec<(usize, &str, bool)> =
        found.iter().map(|block| (block.line, block.text.trim_end(), block.is_commands())).collect();
    assert_eq!(
        texts,
        [
            (3, "train x\ny", true),
            (9, "infer a\n\n# not run by the tests: why", true),
            (15, "train = 1", false),
            (18, "chat.json ──▶", false)
        ]
    );
    assert_eq!(found[1].not_run(), Some("why"));
    assert_eq!(
        calls("cd x && preprocess shards --data a | cat"),
        [Call { command: "preprocess shards".into(), options: vec!["data".into()] }]
    );
}

/// What is not run says why, in words that a reader sees.
#[test]
fn blocks_that_are_not_run_say_why() {
    let mut left_out = 0;
    for page in pages() {
        for block in blocks(&page.text) {
            if let Some(reason) = block.not_run() {
                assert!(reason.len() > 10, "{}:{}: {NOT_RUN}{reason}", page.name, block.line);
                println!("{}:{}: {reason}", page.name, block.line);
                left_out += 1;
            }
        }
    }
    println!("{left_out} blocks are not run");
}

/// A heading's anchor as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for page in pages() {
        let folder = root().join(&page.name);
        let folder = folder.parent().expect("a folder");
        for target in page.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") || target.contains(' ') {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { root().join(&page.name) } else { folder.join(file) };
            assert!(path.exists(), "{}: {target}: no such file", page.name);
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&path).expect("readable");
                let found = text
                    .lines()
                    .filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()))
                    .any(|line| anchor(line) == heading);
                assert!(found, "{}: {target}: no such heading", page.name);
            }
            checked += 1;
        }
    }
    println!("{checked} links");
    assert!(checked > 30 && Path::new(&root()).join("docs").is_dir(), "{checked} links");
}
