//! The original project's command lines: everything behind `deepspeed … run.py` works as it is.

use serde_json::json;
use std::path::Path;
use std::process::Command;
use tests::runs::{json_file, json_lines, shards_with_validation};
use tests::training::{fail, succeed};
use tests::{program, reference};

/// The original `run_zero2.sh`'s options and its `ds_zero2_no_offload.json`, for the tiny model; `{…}` are paths.
const RUN_ZERO2: &str = "--deepspeed {ds} --model_name_or_path {model} --train_type use_lora --data_path {data} \
    --remove_unused_columns false --bf16 true --fp16 false --dataloader_pin_memory True --dataloader_num_workers 10 \
    --dataloader_persistent_workers True --output_dir {output} --num_train_epochs 2 --per_device_train_batch_size 2 \
    --per_device_eval_batch_size 1 --gradient_accumulation_steps 8 --evaluation_strategy no --save_strategy epoch \
    --save_total_limit 3 --report_to tensorboard --learning_rate 4e-4 --logging_steps 1";

fn zero2_json() -> serde_json::Value {
    json!({
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
            "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"last_batch_iteration": -1, "total_num_steps": "auto",
            "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none", "pin_memory": true},
            "offload_param": {"device": "none", "pin_memory": true}, "allgather_partitions": true,
            "allgather_bucket_size": 2e8, "overlap_comm": true, "reduce_scatter": true, "reduce_bucket_size": 2e8,
            "contiguous_gradients": true},
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 100,
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": false
    })
}

fn command_line(folder: &Path, shards: &Path, output: &Path) -> Vec<String> {
    let ds = folder.join("ds_zero2_no_offload.json");
    std::fs::write(&ds, zero2_json().to_string()).expect("written");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_string();
    let (ds, model, data, output) = (path(&ds), path(&reference("tiny/llava")), path(shards), path(output));
    let word = |word: &str| {
        word.replace("{ds}", &ds).replace("{model}", &model).replace("{data}", &data).replace("{output}", &output)
    };
    RUN_ZERO2.split_whitespace().map(word).collect()
}

#[test]
fn the_original_script_runs_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    succeed(Command::new(program("train")).args(command_line(folder.path(), &shards, &output)));
    let config = json_file(&output.join("train_config.json"));
    for (option, value) in [
        ("train_type", json!("use_lora")),
        ("bf16", json!(true)),
        ("eval_strategy", json!("no")),
        ("save_strategy", json!("epoch")),
        ("report_to", json!("tensorboard")),
        ("dataloader_num_workers", json!(10)),
        ("learning_rate", json!(4e-4)),
        ("max_grad_norm", json!(1.0)),
        ("lora_r", json!(32)),
    ] {
        assert_eq!(config[option], value, "{option}");
    }
    // 24 rows, 16 a step: two steps an epoch, two epochs, a checkpoint after each.
    let steps: Vec<_> = json_lines(&output.join("metrics.jsonl")).iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [Some(1), Some(2), Some(3), Some(4)]);
    let checkpoints = [2, 4].map(|step| output.join(format!("checkpoint-{step}")).is_dir());
    assert_eq!(checkpoints, [true, true]);
    assert!(output.join("adapter_model.safetensors").exists());
}

#[test]
fn an_unknown_option_names_the_nearest_known_one() {
    for (wrong, right) in [
        ("--learning_rat", "--learning_rate"),
        ("--per_device_train_batchsize", "--per_device_train_batch_size"),
        ("--lora-rank", "--lora_r"),
        ("--evaluate_strategy=no", "--evaluation_strategy"),
    ] {
        let output = Command::new(program("train")).arg(wrong).arg("1").output().expect("the program starts");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{wrong}: {error}");
        assert!(error.contains(&format!("did you mean {right}?")), "{wrong}: {error}");
    }
}

#[test]
fn what_is_not_done_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let paths = command_line(folder.path(), Path::new("nowhere"), &folder.path().join("run"));
    for (more, reason) in [
        (&["--fp16", "true"][..], "loss scaling"),
        (&["--train_type", "lora"], "use_lora, none, freeze_vision, projector"),
        (&["--device", "tpu"], "cpu"),
    ] {
        let error = fail(Command::new(program("train")).args(&paths).args(more));
        assert!(error.contains(reason), "{more:?}: {error}");
    }
}
