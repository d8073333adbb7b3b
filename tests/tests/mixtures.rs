//! Training on several folders of shards with weights: epochs, counts and losses by source, ranks, resuming, refusals, the
//! plan, recipes with several datasets.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::references;
use tests::runs::{json_file, json_lines, train};
use tests::training::{compare, fail, final_weights, metrics, shards_of, succeed};
use tests::{program, reference};

/// The first pictures of the reference as shards in a folder.
fn shards(folder: &Path, rows: usize) -> PathBuf {
    let shards = folder.join(format!("rows-{rows}"));
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(reference("tiny/llava")).arg("--data").arg(reference("pictures"));
    succeed(command.args(["--limit", &rows.to_string()]).arg("--output").arg(&shards));
    shards
}

fn mixture(parts: &[(&Path, &str)]) -> PathBuf {
    let words: Vec<String> = parts.iter().map(|(dir, weight)| format!("{}:{weight}", dir.display())).collect();
    words.join(",").into()
}

/// A number of a source in every line that has the source.
fn of_source(lines: &[Value], source: &str, key: &str) -> Vec<f64> {
    lines.iter().filter_map(|line| line["sources"].get(source)).filter_map(|source| source[key].as_f64()).collect()
}

#[test]
fn one_folder_of_weight_1_is_one_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards(folder.path(), 20);
    let run = |name: &str, data: &Path| {
        let output = folder.path().join(name);
        succeed(&mut train(data, &output, &["--train_type", "none", "--num_train_epochs", "1.5"]));
        output
    };
    let plain = run("plain", &shards);
    for (name, data) in [("weight", mixture(&[(&shards, "1.0")])), ("table", format!("{{{shards:?}: 1}}").into())] {
        let weighted = run(name, &data);
        assert!(final_weights(&plain) == final_weights(&weighted), "{name}: other weights");
        let settings = |run: &Path| json_file(&run.join("train_config.json"))["data_path"].clone();
        assert_eq!(settings(&plain), settings(&weighted), "{name}");
        let function = |run: &Path| json_file(&run.join("run.json"))["function"].clone();
        assert_eq!(function(&plain), function(&weighted), "{name}");
    }
    assert!(metrics(&plain).iter().all(|line| line.get("sources").is_none()), "one source");
}

/// 20 rows once and a quarter of 10 rows: 23 an epoch (2.5 is rounded away from zero), 12 a step.
#[test]
fn any_number_of_ranks_has_the_same_rows_and_losses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (a, b) = (shards(folder.path(), 20), shards(folder.path(), 10));
    let data = mixture(&[(&a, "1"), (&b, "0.25")]);
    let run = |ranks: &str, accumulation: &str| {
        let output = folder.path().join(ranks);
        let words = ["--train_type", "none", "--num_train_epochs", "4", "--nproc", ranks];
        let more = ["--gradient_accumulation_steps", accumulation];
        succeed(&mut train(&data, &output, &[&words[..], &more].concat()));
        metrics(&output)
    };
    let alone = run("1", "6");
    let epochs: Vec<f64> = alone.iter().map(|line| line["epoch"].as_f64().expect("a number")).collect();
    assert_eq!((epochs.len(), epochs[1], epochs[7]), (8, 1.0, 4.0), "{epochs:?}");
    // Every epoch has all rows of a, and three of b's.
    for (source, rows) in [("rows-20", 20.0), ("rows-10", 3.0)] {
        for epoch in 0..4 {
            let steps = &alone[2 * epoch..2 * epoch + 2];
            assert_eq!(of_source(steps, source, "samples").iter().sum::<f64>(), rows, "{source}, epoch {epoch}");
        }
    }
    // The parts make up the whole.
    for line in &alone {
        let sources: Vec<&Value> = line["sources"].as_object().expect("sources").values().collect();
        let tokens = |source: &Value| source["supervised_tokens"].as_f64().expect("a number");
        let sum: f64 = sources.iter().map(|source| tokens(source)).sum();
        let loss: f64 = sources.iter().map(|source| source["loss"].as_f64().expect("a number") * tokens(source)).sum();
        assert_eq!(sum, line["supervised_tokens"].as_f64().expect("a number"), "{line}");
        let difference = loss / sum - line["loss"].as_f64().expect("a number");
        assert!(difference.abs() < 1e-6, "{difference:e}: {line}");
    }
    for (ranks, accumulation) in [("2", "3"), ("3", "2")] {
        let found = run(ranks, accumulation);
        compare(&format!("{ranks} ranks"), "loss", &found, &alone, 1e-5);
        compare(&format!("{ranks} ranks"), "grad_norm", &found, &alone, 1e-4);
        for source in ["rows-20", "rows-10"] {
            for (key, tolerance) in [("samples", 0.0), ("supervised_tokens", 0.0), ("loss", 1e-5)] {
                let (found, expected) = (of_source(&found, source, key), of_source(&alone, source, key));
                assert_eq!(found.len(), expected.len());
                let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
                println!("{ranks} ranks: {source}: {key}: largest relative difference {largest:e}");
                assert!(largest <= tolerance, "{ranks} ranks: {source}: {key}: {found:?}, {expected:?}");
            }
        }
    }
}

/// Without learning, the loss of a source over an epoch is that of `infer score` on its folder.
#[test]
fn the_loss_of_a_source_is_that_of_its_rows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (a, b) = (shards(folder.path(), 9), shards(folder.path(), 5));
    let output = folder.path().join("run");
    let words = ["--train_type", "projector", "--learning_rate", "0", "--num_train_epochs", "1"];
    let data = mixture(&[(&a, "1"), (&b, "2")]);
    succeed(&mut train(&data, &output, &[&words[..], &["--logging_steps", "100", "--nproc", "2"]].concat()));
    let lines = metrics(&output);
    for (dir, source, passes) in [(&a, "rows-9", 1.0), (&b, "rows-5", 2.0)] {
        let scores = folder.path().join("scores.jsonl");
        let mut command = Command::new(program("infer"));
        command.arg("score").arg("--model").arg(reference("tiny/llava")).arg("--shards").arg(dir);
        succeed(command.args(["--split", "train"]).arg("--output").arg(&scores));
        let sum = |key: &str| json_lines(&scores).iter().filter_map(|line| line[key].as_f64()).sum::<f64>();
        let (loss, tokens) = (sum("loss_sum") / sum("tokens"), sum("tokens"));
        let found = of_source(&lines, source, "loss")[0];
        println!("{source}: loss {found}, {loss} by infer score: difference {:e}", found - loss);
        assert!((found - loss).abs() < 1e-5 * loss, "{source}: {found}, {loss}");
        assert_eq!(of_source(&lines, source, "supervised_tokens"), [passes * tokens]);
    }
}

/// The same for the held-out rows, which make up the evaluation's loss.
#[test]
fn the_evaluation_tells_the_loss_of_every_source() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let held_out = |rows: usize| {
        let shards = folder.path().join(format!("rows \"{rows}\" <u>"));
        let mut command = Command::new(program("preprocess"));
        command.arg("shards").arg("--model").arg(reference("tiny/llava")).arg("--data").arg(reference("pictures"));
        command.args(["--limit", &rows.to_string(), "--validation-fraction", "0.4"]).arg("--output").arg(&shards);
        succeed(&mut command);
        shards
    };
    let (a, b) = (held_out(20), held_out(10));
    let data = format!("{{{a:?}: 0.5, {b:?}: 2}}");
    let run = |nproc: &str, data: &str| {
        let output = folder.path().join(format!("run-{nproc}-{}", data.len()));
        let words = ["--train_type", "projector", "--learning_rate", "0", "--max_steps", "1", "--eval_captions", "0"];
        let more = ["--eval_strategy", "steps", "--eval_steps", "1", "--report_to", "tensorboard", "--nproc", nproc];
        succeed(&mut train(Path::new(data), &output, &[&words[..], &more].concat()));
        output
    };
    let evaluation = |run: &Path| {
        let lines = json_lines(&run.join("metrics.jsonl"));
        lines.into_iter().find(|line| line.get("eval_loss").is_some()).expect("an evaluation")
    };
    let output = run("1", &data);
    let line = evaluation(&output);
    let number = |value: &Value| value.as_f64().expect("a number");
    let (mut losses, mut tokens, mut rows) = (0.0, 0.0, 0.0);
    for dir in [&a, &b] {
        let scores = folder.path().join("scores.jsonl");
        let mut command = Command::new(program("infer"));
        command.arg("score").arg("--model").arg(reference("tiny/llava")).arg("--shards").arg(dir);
        succeed(command.args(["--split", "validation"]).arg("--output").arg(&scores));
        let sum = |key: &str| json_lines(&scores).iter().filter_map(|line| line[key].as_f64()).sum::<f64>();
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        let of_source = &line["eval_sources"][&name];
        let (found, expected) = (number(&of_source["loss"]), sum("loss_sum") / sum("tokens"));
        println!("{name}: eval loss {found}, {expected} by infer score: difference {:e}", found - expected);
        assert!((found - expected).abs() < 1e-5 * expected, "{name}: {found}, {expected}");
        assert_eq!(number(&of_source["supervised_tokens"]), sum("tokens"));
        losses += found * number(&of_source["supervised_tokens"]);
        tokens += number(&of_source["supervised_tokens"]);
        rows += number(&of_source["samples"]);
    }
    assert_eq!((tokens, rows), (number(&line["eval_supervised_tokens"]), number(&line["eval_samples"])));
    assert!((losses / tokens - number(&line["eval_loss"])).abs() < 1e-6, "{line}");
    let of_two = evaluation(&run("2", &data))["eval_sources"].clone();
    for (name, source) in of_two.as_object().expect("sources") {
        let expected = &line["eval_sources"][name];
        assert_eq!(
            (&source["samples"], &source["supervised_tokens"]),
            (&expected["samples"], &expected["supervised_tokens"])
        );
        assert!((number(&source["loss"]) - number(&expected["loss"])).abs() < 1e-5, "{name}: two ranks");
    }
    assert!(evaluation(&run("1", &a.display().to_string())).get("eval_sources").is_none(), "one source");

    // Names with signs of HTML are text on the page.
    let page = folder.path().join("report.html");
    succeed(Command::new(program("pipelines")).arg("report").arg(&output).arg("--html").arg(&page));
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("<td>rows &quot;20&quot; &lt;u&gt;</td>") && !page.contains("<u>"), "{page}");
    assert!(page.contains("eval_loss_rows") && page.contains("last evaluation loss"), "{page}");
}

#[test]
fn a_run_resumes_bit_for_bit_and_only_with_its_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (a, b) = (shards(folder.path(), 20), shards(folder.path(), 10));
    let data = mixture(&[(&a, "1"), (&b, "0.3")]);
    let words = ["--train_type", "use_lora", "--lora_r", "4", "--lora_dropout", "0.1", "--num_train_epochs", "3"];
    // A line of the log covers steps before and behind the checkpoint.
    let words = [&words[..], &["--save_strategy", "steps", "--save_steps", "8", "--logging_steps", "3"]].concat();
    let whole = folder.path().join("whole");
    succeed(&mut train(&data, &whole, &words));
    let (expected, lines) = (final_weights(&whole), metrics(&whole));
    // 23 rows an epoch, 4 a step: step 8 is the second step of the second epoch.
    assert_eq!(lines.len(), 6);
    for step in [16, 18] {
        std::fs::remove_dir_all(whole.join(format!("checkpoint-{step}"))).expect("saved");
    }
    let resumed = |data: &Path, more: &[&str]| {
        train(data, &whole, &[&words[..], &["--resume_from_checkpoint", "true"], more].concat())
    };
    let other = mixture(&[(&a, "1"), (&b, "0.5")]);
    for (data, shown) in [(other, "0.5"), (mixture(&[(&b, "0.3"), (&a, "1")]), "0.3"), (a.clone(), "rows-20 (")] {
        let error = fail(&mut resumed(&data, &[]));
        assert!(error.contains("trains another function: data_path is ") && error.contains(shown), "{error}");
        assert!(error.contains("rows-10:0.3 (fingerprint"), "{error}");
    }
    let said = String::from_utf8_lossy(&succeed(&mut resumed(&data, &[])).stderr).into_owned();
    assert!(said.contains("checkpoint-8 at step 8"), "{said}");
    assert!(final_weights(&whole) == expected, "resumed: other weights");
    let of_data = |lines: &[Value]| lines.iter().map(|line| line["sources"].clone()).collect::<Vec<_>>();
    assert_eq!(of_data(&metrics(&whole)), of_data(&lines));
    for step in [16, 18] {
        std::fs::remove_dir_all(whole.join(format!("checkpoint-{step}"))).expect("saved");
    }
    succeed(&mut resumed(&data, &["--nproc", "2"]));
    compare("resumed on 2 ranks", "loss", &metrics(&whole), &lines, 1e-4);
}

/// A recipe's table is a mixture in the order of the file, as on the command line; its keys are folders whatever their names.
#[test]
fn a_recipes_table_keeps_its_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Not in the order of the alphabet.
    let (a, b) = (shards(folder.path(), 20), shards(folder.path(), 10));
    let table = |keys: &[&Path]| {
        let pairs: Vec<String> = keys.iter().map(|key| format!("{key:?} = 1.0")).collect();
        format!("[train]\ndata_path = {{ {} }}\n", pairs.join(", "))
    };
    let recipe = folder.path().join("recipe.toml");
    let words = ["--train_type", "projector", "--num_train_epochs", "1", "--shuffle", "false"];
    let words = [&words[..], &["--save_strategy", "steps", "--save_steps", "4"]].concat();
    let run = |data: &str, output: &Path, more: &[&str]| {
        std::fs::write(&recipe, data).expect("written");
        let mut command = Command::new(program("train"));
        command.arg(&recipe).arg("--model_name_or_path").arg(reference("tiny/llava")).arg("--output_dir").arg(output);
        command.args(["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]);
        command.args(["--learning_rate", "0.002", "--logging_steps", "1"]).args(&words).args(more);
        command
    };
    let (by_recipe, by_flag) = (folder.path().join("recipe"), folder.path().join("flag"));
    succeed(&mut run(&table(&[&a, &b]), &by_recipe, &[]));
    succeed(&mut train(&mixture(&[(&a, "1"), (&b, "1")]), &by_flag, &words));
    assert!(final_weights(&by_recipe) == final_weights(&by_flag), "other weights");
    let function = |run: &Path| json_file(&run.join("run.json"))["function"].clone();
    assert_eq!(function(&by_recipe), function(&by_flag));
    let first = &metrics(&by_recipe)[0]["sources"];
    assert!(first.get("rows-20").is_some() && first.get("rows-10").is_none(), "{first}");
    // Another order is another function, and that is said.
    let error = fail(&mut run(&table(&[&b, &a]), &by_recipe, &["--resume_from_checkpoint", "true"]));
    assert!(error.contains("trains another function: data_path is ") && error.contains("rows-10:1,"), "{error}");
    // One folder, although there are two of the names with a comma between.
    let joined = PathBuf::from(format!("{},{}", a.display(), b.display()));
    let output = folder.path().join("joined");
    let error = fail(&mut run(&table(&[&joined]), &output, &[]));
    assert!(error.contains("rows-20,") && error.contains("no such folder") && !output.exists(), "{error}");
}

#[test]
fn what_cannot_be_mixed_is_refused_before_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (a, b) = (shards(folder.path(), 20), shards(folder.path(), 10));
    let foreign = shards_of(references::all().find(|model| model.name == "siglip_qwen3").expect("a reference"));
    let missing = folder.path().join("missing");
    let output = folder.path().join("run");
    for (data, named) in [
        (mixture(&[(&a, "1"), (&b, "0")]), vec!["found weight 0 of ", "rows-10, expected a number above 0"]),
        (mixture(&[(&a, "-1")]), vec!["found weight -1 of "]),
        (mixture(&[(&a, "1"), (&b, "1e308")]), vec!["found weight 1e308 of ", "rows-10, expected", "at most 1000000"]),
        (mixture(&[(&a, "1"), (&a, "2")]), vec!["rows-20 twice"]),
        (
            mixture(&[(&a, "1"), (&b, "0.01")]),
            vec!["rows-10: found weight 0.01 of 10 rows, which is no row", "at least 0.1"],
        ),
        (mixture(&[(&a, "1"), (&missing, "1")]), vec!["missing: found no such folder"]),
        (
            mixture(&[(&a, "1"), (&foreign, "0.5")]),
            vec![
                "test-shards-siglip_qwen3: found another ",
                "expected that of ",
                "rows-20",
                "one model for all folders",
            ],
        ),
        (foreign.clone(), vec!["test-shards-siglip_qwen3: found another ", "expected the model's"]),
    ] {
        let error = fail(&mut train(&data, &output, &["--train_type", "none"]));
        for part in named {
            assert!(error.contains(part), "{}: {part}: {error}", data.display());
        }
        assert!(!output.exists(), "nothing was begun");
    }
    // The folder of a source is no place for a run.
    let error = fail(&mut train(&mixture(&[(&a, "1"), (&b, "2")]), &b, &["--train_type", "none"]));
    assert!(error.contains("the same folder as --data_path"), "{error}");
}

#[test]
fn the_plan_counts_every_source() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (a, b) = (shards(folder.path(), 20), shards(folder.path(), 10));
    let plan = |data: &Path, more: &[&str]| {
        let mut command = Command::new(program("train"));
        command.arg("plan").arg("--model_name_or_path").arg(reference("tiny/llava")).arg("--data_path").arg(data);
        let output =
            succeed(command.args(["--per_device_train_batch_size", "4", "--num_train_epochs", "2"]).args(more));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = plan(&mixture(&[(&a, "1"), (&b, "0.25")]), &[]);
    for part in
        ["rows                23 (", "20 an epoch from ", "rows-20: 20 × 1", "3 an epoch from ", "rows-10: 10 × 0.25"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("an epoch            6 steps") && text.contains("12 steps, 2.00 epochs"), "{text}");
    assert!(!plan(&a, &[]).contains("an epoch from"), "one folder needs no list");
    assert!(plan(Path::new("shards/a:1,shards/b:0.5"), &["--rows", "50"]).contains("rows                50 (--rows)"));
}

/// Two datasets in one recipe, each made by a stage of its own, and trained on together; the report shows both.
#[test]
fn a_recipe_may_list_several_datasets() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let second = folder.path().join("second");
    std::fs::create_dir(&second).expect("made");
    let records: Vec<Value> = json_file(&reference("pictures/chat.json")).as_array().expect("records")[..6].to_vec();
    base::json::write(&second.join("chat.json"), &records).expect("written");
    succeed(Command::new("cp").arg("-r").arg(reference("pictures/images")).arg(&second));
    let (here, pictures) = (folder.path().display(), reference("pictures"));
    let recipe = |third: &str| {
        format!(
            "purpose = \"two datasets\"\n\
             [[data]]\ndir = {pictures:?}\nshards = \"{here}/a\"\nmodel = {model:?}\n\
             [[data]]\ndir = {second:?}\nshards = \"{here}/b\"\nmodel = {model:?}\n{third}\
             [train]\nmodel_name_or_path = {model:?}\ndata_path = {{ \"{here}/a\" = 0.5, \"{here}/b\" = 1 }}\n\
             output_dir = \"{here}/run\"\ntrain_type = \"projector\"\nper_device_train_batch_size = 4\n\
             num_train_epochs = 1\nlogging_steps = 1\nsave_strategy = \"no\"\n",
            model = reference("tiny/llava"),
        )
    };
    let file = folder.path().join("recipe.toml");
    let command = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new(program("pipelines"));
        command.current_dir(folder.path()).env_remove("CARGO").env_remove("CARGO_PKG_NAME");
        command.arg("run").arg(&file).args(more);
        command
    };
    let said =
        |text: &str, more: &[&str]| String::from_utf8_lossy(&succeed(&mut command(text, more)).stdout).into_owned();
    let plain = recipe("");
    let dry = said(&plain, &["--dry-run"]);
    assert!(dry.contains("--output ") && dry.matches("preprocess shards").count() == 2, "{dry}");
    said(&plain, &[]);
    let lines = metrics(&folder.path().join("run"));
    let rows: Vec<f64> = ["a", "b"].map(|source| of_source(&lines, source, "samples").iter().sum()).to_vec();
    assert_eq!(rows, [16.0, 6.0]);
    assert_eq!(said(&plain, &[]).matches("unchanged").count(), 3, "two datasets and a training");

    let page = folder.path().join("report.html");
    succeed(command(&plain, &[]).arg("--dry-run"));
    let mut report = Command::new(program("pipelines"));
    succeed(report.arg("report").arg(folder.path().join("run")).arg("--html").arg(&page));
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(
        page.contains("Loss by source") && page.contains("loss_b") && page.contains("<td>run</td><td>b</td><td>6</td>"),
        "{page}"
    );

    // Another dataset of the mixture is another training.
    let mut more = records.clone();
    more.truncate(5);
    // preprocess replaces no shards of other rows.
    std::fs::remove_dir_all(folder.path().join("b")).expect("made");
    base::json::write(&second.join("chat.json"), &more).expect("written");
    let log = String::from_utf8_lossy(&succeed(&mut command(&plain, &[])).stderr).into_owned();
    assert!(log.contains("[shards 1 of 2] nothing has changed") && log.contains("[train] changed: "), "{log}");

    for (text, named) in [
        (
            recipe(&format!("[[data]]\ndir = \"x\"\nshards = \"{here}/a\"\nmodel = \"m\"\n")),
            "the output of another stage",
        ),
        (recipe("[[data]]\ndir = \"x\"\n"), "[[data]]: found missing field `shards`"),
        (recipe("[[data]]\ndir = \"x\"\nshards = \"s\"\nweight = 2\n"), "unknown field `weight`"),
        (plain.replace("= 0.5", "= -0.5"), "found weight -0.5 of "),
    ] {
        let error = fail(&mut command(&text, &["--dry-run"]));
        assert!(error.contains(named), "{named}: {error}");
    }
}
