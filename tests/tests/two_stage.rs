//! The two-stage recipe, end to end: projector, then LoRA from the first stage's output, then training from that adapter.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::runs::{json_file, json_lines, shards_with_validation};
use tests::tiny::read_tensors_at;
use tests::training::succeed;
use tests::{program, reference};

fn recipe(folder: &Path, shards: &Path) -> String {
    let model = reference("tiny/llava");
    let path = |path: &Path| path.display().to_string().replace('\\', r"\\");
    let (model, shards, folder) = (path(&model), path(shards), path(folder));
    let stage = |start: &str, output: &str, rest: &str| {
        format!(
            "[[train]]\nmodel_name_or_path = \"{start}\"\ndata_path = \"{shards}\"\noutput_dir = \"{folder}/{output}\"\n\
             per_device_train_batch_size = 4\nmax_steps = 6\nshuffle = false\nlogging_steps = 1\nsave_strategy = \"no\"\n\
             lora_dropout = 0.0\nlora_r = 8\n{rest}\n"
        )
    };
    let first = stage(&model, "1-projector", "train_type = \"projector\"\nlearning_rate = 1e-2");
    let assembled = format!("{folder}/1-projector");
    let second = stage(&assembled, "2-lora", "train_type = \"use_lora\"\nlearning_rate = 2e-3\nnproc = 2");
    // Nothing is learned at rate 0: the output equals the input.
    let adapter = format!("train_type = \"use_lora\"\nlearning_rate = 0.0\ninit_adapter = \"{folder}/2-lora\"");
    let third = stage(&assembled, "3-continued", &adapter);
    let infer = format!(
        "[infer]\nmodel = \"{assembled}\"\nadapter = \"{folder}/3-continued\"\nshards = \"{shards}\"\nlimit = 2\n\
         max_new_tokens = 4\noutput = \"{folder}/captions.jsonl\"\n"
    );
    format!("purpose = \"two stages on the tiny model\"\n\n{first}\n{second}\n{third}\n{infer}")
}

/// Mean loss over the supervised tokens of the first rows of shards, by `infer score`.
fn score(model: &Path, shards: &Path, rows: usize, output: &Path) -> f64 {
    let mut command = Command::new(program("infer"));
    command.arg("score").arg("--model").arg(model).arg("--shards").arg(shards).arg("--output").arg(output);
    succeed(command.args(["--split", "train", "--limit", &rows.to_string()]));
    let lines = json_lines(output);
    let sum = |key: &str| lines.iter().take(rows).filter_map(|line| line[key].as_f64()).sum::<f64>();
    sum("loss_sum") / sum("tokens")
}

fn first_loss(run: &Path) -> f64 {
    json_lines(&run.join("metrics.jsonl"))[0]["loss"].as_f64().expect("a number")
}

#[test]
fn each_stage_starts_from_the_one_before() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let file = folder.path().join("recipe.toml");
    std::fs::write(&file, recipe(folder.path(), &shards)).expect("written");
    let run = || {
        let output = succeed(Command::new(program("pipelines")).arg("run").arg(&file));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    run();
    let [first, second, third] = ["1-projector", "2-lora", "3-continued"].map(|name| folder.path().join(name));

    // The second stage's first step is computed before anything has been updated: it is the first stage's model.
    let expected = score(&first, &shards, 8, &folder.path().join("score.jsonl"));
    let found = first_loss(&second);
    println!("first loss of stage two {found}, the first stage's model has {expected} on these rows");
    assert!((found - expected).abs() <= 1e-5 * expected, "{found}, {expected}");
    let base = json_file(&second.join("adapter_config.json"))["base_model_name_or_path"].clone();
    assert_eq!(base, Value::from(first.display().to_string()));

    // Going on from an adapter at rate 0 gives it back.
    let [adapter, continued] = [&second, &third].map(|dir| read_tensors_at(&dir.join("adapter_model.safetensors")));
    assert_eq!(adapter.keys().collect::<Vec<_>>(), continued.keys().collect::<Vec<_>>());
    let changed: Vec<_> = adapter.iter().filter(|(name, tensor)| continued[*name].0 != tensor.0).collect();
    assert!(changed.is_empty(), "{} tensors changed", changed.len());
    assert!(first_loss(&third) < first_loss(&second), "the adapter has learned something");
    assert_eq!(json_lines(&folder.path().join("captions.jsonl")).len(), 2);

    let again = run();
    assert_eq!(again.matches("unchanged").count(), 4, "{again}");
}
