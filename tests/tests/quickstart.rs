//! The runner of recipes and the quickstart, as programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn pipelines(folder: &Path, args: &[&str]) -> Output {
    tests::program("preprocess");
    let mut command = Command::new(tests::program("pipelines"));
    // As a user starts it: not through cargo, which would build the programs first.
    command.current_dir(folder).args(args).env_remove("CARGO").env_remove("CARGO_PKG_NAME");
    command.output().expect("pipelines starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn recipes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/recipes");
    let entries = std::fs::read_dir(folder).expect("the recipes' folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
    paths.sort();
    paths
}

/// Every key of every recipe is an option of its program.
#[test]
fn the_recipes_of_the_real_job_fit_the_programs() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths: Vec<PathBuf> = recipes().into_iter().filter(|path| !path.ends_with("quickstart.toml")).collect();
    assert!(paths.len() >= 5, "{paths:?}");
    for path in paths {
        let output = pipelines(folder.path(), &["run", path.to_str().expect("UTF-8"), "--dry-run"]);
        let (lines, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}: {errors}", path.display());
        let programs: Vec<&str> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
        println!("{}: {programs:?}", path.display());
        // A model, shards of one dataset or more, one training or more, and mostly captions.
        let mut in_order = programs.clone();
        in_order.dedup();
        let stages = programs.iter().filter(|&&program| program == "preprocess").count();
        assert!(stages >= 2 && in_order[..2] == ["preprocess", "train"], "{lines}");
        assert!(in_order[2..].iter().all(|&program| program == "infer"), "{lines}");
    }
}

#[test]
fn mistakes_in_a_recipe_are_named_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        ("purpose = \"x\"\n[modle]\n", "modle", 2),
        ("purpose = \"x\"\n[train]\noutput_dir = \"o\"\nlearning_rat = 1.0\n", "did you mean learning_rate?", 2),
        ("purpose = \"x\"\n[data]\ndir = \"d\"\nshards = \"s\"\n", "no model directory", 2),
        ("purpose = \"x\"\n[train]\nseed = 1\n", "no output_dir", 2),
        ("purpose = \"x\"\n", "no stages", 2),
        (
            "[[train]]\noutput_dir = \"o\"\n[[train]]\nseed = 1\noutput_dir = \"./o/\"\n",
            "line 5: [[train]] output_dir: found the output of another stage, train 1 of 2: ./o/",
            2,
        ),
        (
            "[infer]\nmodel = \"m\"\nimages = \"i\"\noutput = \"o\"\n[eval]\nmodel = \"m\"\noutput = \"o\"\n",
            "[eval] output: found the output of another stage, infer: o",
            2,
        ),
        (
            "purpose = \"x\"\n[train]\noutput_dir = \"o\"\n# soon\nlearning_rate = \"fast\"\n",
            "recipe.toml: line 5: [train] learning_rate: found fast, expected a number; see train --help",
            2,
        ),
        (
            "[train]\nmodel_name_or_path = \"m\"\ndata_path = \"s\"\noutput_dir = \"o\"\nadam_beta1 = 1.5\n",
            "recipe.toml: line 5: [train] adam_beta1: found 1.5, expected a number at least 0 and below 1",
            2,
        ),
        ("[train]\noutput_dir = \"o\"\n", "recipe.toml: [train]: model_name_or_path: found nothing", 2),
        (
            "[[train]]\nmodel_name_or_path = \"m\"\ndata_path = \"s\"\noutput_dir = \"a\"\n\
             [[train]]\noutput_dir = \"b\"\ntrain_type = \"lora\"\n",
            "recipe.toml: line 7: [[train]] train_type: found lora, expected use_lora, ",
            2,
        ),
        (
            "[data]\ndir = \"d\"\nshards = \"s\"\nmodel = \"m\"\n[preprocess]\nvalidation_fraction = 1\n",
            "recipe.toml: line 6: [preprocess] validation_fraction: found 1, expected a share from 0 to below 1",
            2,
        ),
        (
            "[infer]\nmodel = \"m\"\nimages = \"i\"\noutput = \"o\"\ntemperature = -1\n",
            "recipe.toml: line 5: [infer] temperature: found -1",
            2,
        ),
        (
            "[infer]\nmodel = \"m\"\noutput = \"o\"\n",
            "recipe.toml: [infer]: found options that are refused (the following required arguments were not provided",
            2,
        ),
        (
            "[eval]\nmodel = \"m\"\nquestions = \"q\"\nimages = \"i\"\noutput = \"o\"\nmetric = \"vqaa\"\n",
            "recipe.toml: line 6: [eval] metric: found vqaa, expected ",
            2,
        ),
        (
            "purpose = \"x\"\n[model]\nvision_tower = \"c\"\nlanguage_model = \"q\"\noutput = \"o\"\n",
            "q: no such file or folder",
            1,
        ),
    ];
    for (recipe, named, code) in cases {
        std::fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
        let output = pipelines(folder.path(), &["run", "recipe.toml"]);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{recipe}: {errors}");
        assert!(errors.contains(named), "{recipe}: {errors}");
        if code == 2 {
            // Without starting a stage, and the same for --dry-run.
            assert!(!errors.contains("== stage"), "{recipe}: {errors}");
            assert_eq!(
                pipelines(folder.path(), &["run", "recipe.toml", "--dry-run"]).status.code(),
                Some(2),
                "{recipe}"
            );
        }
    }
}

/// A stage that fails ends the run with its command line and the program's own words.
#[test]
fn a_failing_stage_is_shown_with_its_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("clip")).expect("created");
    let recipe = "purpose = \"x\"\n[model]\nvision_tower = \"clip\"\nlanguage_model = \"clip\"\noutput = \"out\"\n";
    std::fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    let output = pipelines(folder.path(), &["run", "recipe.toml"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("stage model: preprocess ended with exit status: 1"), "{errors}");
    assert!(errors.contains("  preprocess model --") && errors.contains("--vision_tower clip"), "{errors}");
    assert!(errors.contains("config.json"), "{errors}");
}

/// What the quickstart ends with: purposes and command lines.
fn next_steps(said: &str) -> Vec<(String, String)> {
    let (_, steps) = said.split_once("what to look at next").expect("the next steps");
    let lines: Vec<&str> = steps.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let pairs = lines.windows(2).filter(|pair| pair[0].starts_with('#') && !pair[1].starts_with('#'));
    let steps: Vec<(String, String)> =
        pairs.map(|pair| (pair[0].trim_start_matches("# ").to_string(), pair[1].to_string())).collect();
    assert!(steps.len() >= 5, "{said}");
    steps
}

/// The main job, small: every stage runs, captions come out, and the second time nothing has to run. How good the captions of
/// the whole quickstart are is checked by running it (.ci/run).
#[test]
fn a_small_quickstart_runs_and_runs_only_once() {
    let folder = tempfile::tempdir().expect("a folder");
    // A short training: few captions are right, and that is no failure.
    let args = ["quickstart", "--pictures", "64", "--held-out", "10", "--epochs", "1"];
    let first = pipelines(folder.path(), &args);
    let (said, log) = (text(&first.stdout), text(&first.stderr));
    assert!(first.status.success(), "{log}");
    assert!(said.contains("of 10 held-out captions"), "{said}");
    for (number, name) in ["data", "model", "shards", "train", "eval"].iter().enumerate() {
        assert!(log.contains(&format!("== stage {} of 5: {name}", number + 1)), "{name}: {log}");
    }
    assert!(log.contains("64/64 pictures"), "progress of the data: {log}");
    for (step, command) in next_steps(&said) {
        if command.contains(" serve ") {
            continue;
        }
        println!("# {step}\n{command}");
        let output = Command::new("sh").args(["-c", &command]).current_dir(folder.path()).output().expect("a shell");
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    }
    assert!(folder.path().join("quickstart/report.html").is_file());
    let run = folder.path().join("quickstart/run");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"] {
        assert!(run.join(file).is_file(), "{file} is missing in {}", run.display());
    }
    let second = pipelines(folder.path(), &args);
    let skipped = text(&second.stderr).matches("nothing has changed, skipped").count();
    assert_eq!(skipped, 5, "data and four stages: {}", text(&second.stderr));

    // Another training setting: what comes before is kept.
    let args = ["quickstart", "--pictures", "64", "--held-out", "10", "--epochs", "2"];
    let third = pipelines(folder.path(), &args);
    assert!(third.status.success(), "{}", text(&third.stderr));
    let skipped = text(&third.stderr).matches("nothing has changed, skipped").count();
    assert_eq!(skipped, 3, "data, model, shards: {}", text(&third.stderr));
}
