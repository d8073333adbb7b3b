//! Options: all of the Trainer's, complete command lines, values out of range.

use clap::{Args, FromArgMatches};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::training::{fail, succeed};
use tests::{program, python};
use train::config::Config;
use train::recipe;
use train::trainer_options::{answer, translate};

/// Names of transformers 4.41's TrainingArguments that 5.x no longer has.
const REMOVED: &str = "overwrite_output_dir per_gpu_train_batch_size per_gpu_eval_batch_size warmup_ratio logging_dir \
    save_safetensors no_cuda use_mps_device jit_mode_eval use_ipex fp16_opt_level half_precision_backend tpu_num_cores \
    tpu_metrics_debug past_index fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap adafactor group_by_length \
    use_legacy_prediction_loop include_inputs_for_metrics fp16_backend evaluation_strategy push_to_hub_model_id \
    push_to_hub_organization push_to_hub_token mp_parameters torchdynamo ray_scope dispatch_batches split_batches \
    include_tokens_per_second";

/// Names of our options, with their aliases.
fn our_names() -> Vec<String> {
    let command = Config::augment_args(clap::Command::new("train"));
    let names = command.get_arguments().filter_map(clap::Arg::get_long_and_visible_aliases).flatten();
    names.map(|name| name.replace('-', "_")).collect()
}

fn assert_known(source: &str, names: impl Iterator<Item = String>) {
    let ours = our_names();
    let unknown: Vec<String> = names.filter(|name| !ours.contains(name) && answer(name).is_none()).collect();
    assert!(unknown.is_empty(), "{source}: no answer to {unknown:?} in train/src/trainer_options.rs");
}

#[test]
fn every_option_of_the_trainer_has_an_answer() {
    assert_known("transformers 4.41", REMOVED.split_whitespace().map(String::from));
    let Some(mut python) = python() else { return };
    let script = "import dataclasses, transformers\n\
        print(*[field.name for field in dataclasses.fields(transformers.TrainingArguments)])";
    let output = succeed(python.args(["-c", script]));
    let names = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(names.split_whitespace().count() > 90, "{names}");
    assert_known("the transformers that is installed", names.split_whitespace().map(String::from));
}

/// What `pipelines` reads: every option under its names, with what its value is.
#[test]
fn programs_print_their_options_as_json() {
    for (name, subcommand, option, expected) in [
        ("preprocess", Some("model"), "vision_feature_layer", json!({"list": "commas", "kind": null})),
        ("preprocess", Some("shards"), "data", json!({"list": null, "kind": "path"})),
        ("train", None, "deepspeed", json!({"list": null, "kind": "file_or_text"})),
        ("train", None, "evaluation_strategy", json!({"name": "eval_strategy", "list": null, "kind": null})),
        ("train", None, "optim", json!({"list": null, "kind": null})),
        ("infer", Some("caption"), "model", json!({"list": null, "kind": "model_or_repository"})),
        ("infer", Some("caption"), "stop", json!({"list": "repeated", "kind": null})),
    ] {
        let output = succeed(Command::new(program(name)).arg("options").args(subcommand));
        let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut expected = expected;
        if expected.get("name").is_none() {
            expected["name"] = json!(option);
        }
        assert_eq!(printed["options"][option], expected, "{name} {option}");
    }
    let refused = Command::new(program("infer")).args(["options", "captoin"]).output().expect("it starts");
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
}

/// The names of schedules, too.
#[test]
fn every_schedule_of_transformers_has_an_answer() {
    let Some(mut python) = python() else { return };
    let script = "from transformers.trainer_utils import SchedulerType\nprint(*[kind.value for kind in SchedulerType])";
    let output = succeed(python.args(["-c", script]));
    let names = String::from_utf8(output.stdout).expect("UTF-8");
    for name in names.split_whitespace() {
        let kwargs = match name {
            "cosine_with_min_lr" | "cosine_warmup_with_min_lr" => r#"{"min_lr_rate": 0.1}"#,
            "warmup_stable_decay" => r#"{"num_decay_steps": 2}"#,
            _ => "{}",
        };
        match settings(&format!("--lr_scheduler_type {name} --lr_scheduler_kwargs"), Some(kwargs)) {
            Ok(config) => assert_eq!(serde_json::to_value(config.lr_scheduler_type).expect("a name"), name),
            Err(error) => assert!(
                ["reduce_lr_on_plateau", "greedy"].contains(&name) && error.contains("a function of the step"),
                "{name}: {error}"
            ),
        }
    }
}

/// What `train` makes of a command line (and one more word), for a run that does not exist.
fn settings(line: &str, last: Option<&str>) -> Result<Config, String> {
    let paths = "train --model_name_or_path m --data_path d --output_dir o";
    let words = paths.split_whitespace().chain(line.split_whitespace()).chain(last).map(OsString::from);
    let command = Config::augment_args(clap::Command::new("train"));
    let is_flag =
        |arg: &&clap::Arg| arg.get_default_values().first().is_some_and(|value| value == "true" || value == "false");
    let flags: Vec<String> = command.get_arguments().filter(is_flag).map(|arg| arg.get_id().to_string()).collect();
    let translated = translate(words, &flags, &[]).map_err(|error| error.to_string())?;
    let command = command.args_override_self(true);
    let matches = command
        .try_get_matches_from(cli::args::with_dashes(translated.words))
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_string())?;
    let config = Config::from_arg_matches(&matches).expect("options of train");
    recipe::resolve(config, &matches, None).map_err(|error| error.to_string())
}

/// Command lines of other projects, the options for data and model left out where these are other programs' here. Each with
/// settings that must come out, or with what the error must say.
#[test]
fn command_lines_of_other_projects() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, json: Value| {
        std::fs::write(folder.path().join(name), json.to_string()).expect("written");
        folder.path().join(name).display().to_string()
    };
    let auto = json!({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto", "gradient_accumulation_steps": "auto", "zero_optimization": {"stage": 2,
        "overlap_comm": true, "contiguous_gradients": true, "sub_group_size": 1e9, "reduce_bucket_size": "auto"}});
    let zero2 = file("zero2.json", auto.clone());
    let mut stage3 = auto;
    stage3["zero_optimization"]["stage"] = json!(3);
    let zero3 = file("zero3.json", stage3);
    let llava = "--bf16 True --num_train_epochs 1 --per_device_train_batch_size 16 --per_device_eval_batch_size 4 \
        --gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps --save_total_limit 1 --weight_decay 0. \
        --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048 \
        --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to";
    for (name, line, expected) in [
        (
            "LLaVA pretrain.sh, with the options that are done elsewhere left out",
            format!("--deepspeed {zero2} {llava} none --save_steps 24000 --learning_rate 1e-3 --mm_use_im_start_end False"),
            Ok(json!({"bf16": true, "per_device_train_batch_size": 16, "warmup_ratio": 0.03, "save_steps": 24000,
                "model_max_length": 2048, "gradient_checkpointing": true, "lr_scheduler_type": "cosine"})),
        ),
        ("LLaVA pretrain.sh", format!("--deepspeed {zero2} --tune_mm_mlp_adapter True {llava} wandb"), Err("--train_type projector")),
        ("LLaVA finetune.sh", format!("--deepspeed {zero3} {llava} none"), Err("stage 3 shards them")),
        (
            "LLaVA finetune_lora.sh",
            format!("--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4 {llava} none"),
            Ok(json!({"lora_r": 128, "learning_rate": 2e-4, "mm_projector_lr": 2e-5, "vision_tower_lr": null})),
        ),
        (
            "LLaVA-NeXT finetune_ov.sh, the rates",
            format!("--train_type none --mm_vision_tower_lr 2e-6 --learning_rate 1e-5 {llava} none"),
            Ok(json!({"learning_rate": 1e-5, "mm_projector_lr": null, "vision_tower_lr": 2e-6})),
        ),
        ("LLaVA's default report", format!("{llava} wandb"), Err("no report to wandb")),
        ("LLaVA finetune.sh, grouping", format!("--group_by_modality_length True {llava} none"), Err("packed without padding")),
        (
            "Trainer, run_clm.py",
            "--do_train --do_eval --overwrite_cache --fp16".to_string(),
            Err("--overwrite-cache"),
        ),
        (
            "Trainer, with everything that is default spelled out",
            "--do_train --optim adamw_torch_fused --adam_beta1 0.9 --adam_beta2 0.999 --adam_epsilon 1e-08 --max_grad_norm 1.0 \
             --max_steps -1 --lr_scheduler_type linear --log_level passive --logging_strategy steps --save_total_limit None \
             --save_safetensors True --seed 42 --dataloader_drop_last False --past_index -1 --disable_tqdm False \
             --remove_unused_columns True --label_smoothing_factor 0.0 --fsdp_min_num_params 0 --ddp_timeout 1800 \
             --dataloader_pin_memory True --skip_memory_metrics True --push_to_hub False --hub_strategy every_save \
             --gradient_checkpointing False --torch_compile False --optim_args None --local_rank -1"
                .to_string(),
            Ok(json!({"max_steps": -1, "save_total_limit": 0, "collective_timeout_seconds": 1800, "seed": 42})),
        ),
        (
            "LLaMA-Factory, qwen2vl_lora_sft.yaml as flags",
            "--per_device_train_batch_size 1 --gradient_accumulation_steps 8 --learning_rate 1.0e-4 --num_train_epochs 3.0 \
             --lr_scheduler_type cosine --warmup_ratio 0.1 --bf16 true --ddp_timeout 180000000 --resume_from_checkpoint false \
             --logging_steps 10 --save_steps 500 --report_to none --save_only_model false --lora_dropout 0.0"
                .to_string(),
            Ok(json!({"collective_timeout_seconds": 180_000_000, "learning_rate": 1e-4, "warmup_ratio": 0.1})),
        ),
        ("LLaMA-Factory, its own names", "--lora_rank 8".to_string(), Err("--lora-rank")),
        (
            "ms-swift, sft",
            "--learning_rate 1e-4 --lora_alpha 32 --gradient_accumulation_steps 16 --eval_steps 50 --save_steps 50 \
             --save_total_limit 2 --logging_steps 5 --warmup_ratio 0.05 --dataloader_num_workers 4 --logging_first_step true \
             --eval_strategy steps --metric_for_best_model loss --greater_is_better false --load_best_model_at_end true"
                .to_string(),
            Ok(json!({"logging_first_step": true, "eval_steps": 50, "load_best_model_at_end": true, "lora_alpha": 32.0})),
        ),
        (
            "Trainer 5, fractions and arguments of the schedule",
            "--activation_checkpointing --logging_steps 0.01 --eval_steps 0.1 --save_steps 0.2 --eval_strategy steps \
             --load_best_model_at_end --lr_scheduler_type cosine_with_min_lr --warmup_steps 0.05 --lr_scheduler_kwargs \
             {\"min_lr_rate\":\"0.1\"} --no_dataloader_pin_memory --use_liger_kernel --torch_compile"
                .to_string(),
            Ok(json!({"gradient_checkpointing": true, "logging_steps": 0.01, "save_steps": 0.2,
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "dataloader_pin_memory": false})),
        ),
        ("TRL, packing and 8-bit AdamW", "--optim adamw_8bit --learning_rate 2e-5".to_string(), Err("torch's AdamW")),
        ("QLoRA, with its optimizer", "--bits 4 --double_quant True --optim paged_adamw_32bit".to_string(), Err("torch's AdamW")),
        (
            "QLoRA",
            "--bits 4 --double_quant False --quant_type nf4 --train_type use_lora".to_string(),
            Ok(json!({"load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_use_double_quant": false})),
        ),
        (
            "TRL, ModelConfig",
            "--load_in_4bit --bnb_4bit_quant_type nf4 --bnb_4bit_compute_dtype bfloat16 --bnb_4bit_use_double_quant".to_string(),
            Ok(json!({"load_in_4bit": true, "bnb_4bit_use_double_quant": true})),
        ),
        ("TRL's other 4-bit format", "--load_in_4bit --bnb_4bit_quant_type fp4".to_string(), Err("NF4")),
        ("two formats", "--load_in_4bit --load_in_8bit".to_string(), Err("load_in_8bit")),
        ("a full train type", "--load_in_4bit --train_type freeze_vision".to_string(), Err("train_type freeze_vision")),
        ("FSDP", "--fsdp full_shard --fsdp_config {}".to_string(), Err("ZeRO-2")),
        ("torchrun", "--local_rank=3 --ddp_backend nccl".to_string(), Err("mpirun")),
    ] {
        match (settings(&line, None), expected) {
            (Ok(config), Ok(expected)) => {
                let found = serde_json::to_value(&config).expect("JSON");
                for (option, value) in expected.as_object().expect("options") {
                    assert_eq!(&found[option], value, "{name}: {option}");
                }
            }
            (Err(error), Err(named)) => assert!(error.contains(named), "{name}: {error}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}

/// The Trainer's spellings in a run: what was asked for happens, and what has no effect is told.
#[test]
fn a_run_in_the_trainers_spellings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let more = "--num_train_epochs 1 --logging_steps 0.25 --logging_first_step --save_strategy steps --save_steps 0.5 \
        --save_total_limit -1 --eval_strategy steps --eval_steps 0.34 --eval_captions 0 --optim adamw_torch --tf32 True \
        --ddp_timeout 1800 --run_name x --train_type projector --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs";
    let more: Vec<&str> =
        more.split_whitespace().chain([r#"{"num_decay_steps": 2, "decay_type": "linear"}"#]).collect();
    let told = succeed(&mut train(&shards, &output, &more)).stderr;
    let told = String::from_utf8_lossy(&told);
    for note in ["tf32 has no effect: ", "run_name has no effect: "] {
        assert!(told.contains(note), "{told}");
    }
    // 24 rows, 4 a step: 6 steps; a quarter of them is 1.5, a third 2.04, rounded up.
    let lines = json_lines(&output.join("metrics.jsonl"));
    let steps = |key: &str| -> Vec<u64> {
        lines.iter().filter(|line| line.get(key).is_some()).filter_map(|line| line["step"].as_u64()).collect()
    };
    assert_eq!((steps("loss"), steps("eval_loss")), (vec![1, 2, 4, 6], vec![3, 6]));
    let rates: Vec<f64> = lines.iter().filter_map(|line| line.get("learning_rate")?.as_f64()).collect();
    assert_eq!(rates, [0.002, 0.002, 0.002, 0.001]);
    assert!(output.join("checkpoint-3").is_dir() && output.join("checkpoint-6").is_dir());
    let config = json_file(&output.join("train_config.json"));
    assert_eq!((&config["logging_steps"], &config["collective_timeout_seconds"]), (&json!(0.25), &json!(1800)));
}

/// The batch that a DeepSpeed file asks for, and a schedule of its own.
#[test]
fn a_run_by_a_deepspeed_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (shards, output) = (shards_with_validation(folder.path()), folder.path().join("run"));
    let ds = folder.path().join("ds.json");
    let json = json!({"zero_optimization": {"stage": 2}, "train_batch_size": 8.0, "scheduler": {"type": "WarmupDecayLR",
        "params": {"warmup_min_lr": 1e-5, "warmup_max_lr": 2e-3, "warmup_num_steps": 2, "total_num_steps": "auto"}}});
    std::fs::write(&ds, json.to_string()).expect("written");
    let command = |output: &Path, more: &[&str]| {
        let mut command = Command::new(program("train"));
        command.arg("--model_name_or_path").arg(tests::reference("tiny/llava"));
        command.arg("--data_path").arg(&shards).arg("--output_dir").arg(output).arg("--deepspeed").arg(&ds);
        command.args(["--train_type", "projector", "--logging_steps", "1", "--save_strategy", "no"]);
        command.args(["--num_train_epochs", "2"]).args(more);
        command
    };
    succeed(&mut command(&output, &["--nproc", "2"]));
    let config = json_file(&output.join("train_config.json"));
    assert_eq!(
        (&config["per_device_train_batch_size"], &config["gradient_accumulation_steps"]),
        (&json!(4), &json!(1))
    );
    // 24 rows, 8 a step. DeepSpeed 0.19.8's lr_schedules.py for 6 steps.
    let lines = json_lines(&output.join("metrics.jsonl"));
    let rates: Vec<f64> = lines.iter().filter_map(|line| line["learning_rate"].as_f64()).collect();
    let expected = [1e-5, 0.002, 0.002, 0.0015025, 0.001005, 0.0005075000000000001];
    assert_eq!(rates.len(), expected.len());
    for (found, expected) in rates.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-15, "{rates:?}");
    }
    for (more, named) in [
        (&["--nproc", "3"][..], "train_batch_size: found 8, expected a multiple of 3"),
        (
            &["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"],
            "train_batch_size: found 8, expected 4",
        ),
        (&["--learning_rate", "1e-3"], "expected 0.001 as --learning_rate says"),
        (&["--lr_scheduler_type", "cosine"], "no scheduler, because of --lr_scheduler_type"),
    ] {
        let error = fail(&mut command(&folder.path().join("refused"), more));
        assert!(error.contains(named), "{more:?}: {error}");
    }
    assert!(!folder.path().join("refused").exists(), "nothing is begun");
}

/// 2: nothing but other options helps. 1: the work failed.
#[test]
fn wrong_options_and_failed_work_have_their_exit_codes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, "[train]\nlearning_rate = \"fast\"\n").expect("written");
    let recipe = recipe.display().to_string();
    let paths = ["--model_name_or_path", "nowhere", "--data_path", "nowhere", "--output_dir", "nowhere"];
    for (words, launched, code) in [
        (&["--learning_rate", "fast"][..], false, 2),
        (&["--learning_rate", "-1"], false, 2),
        (&["--adam_beta1", "1.5"], false, 2),
        (&["--optim", "adafactor"], false, 2),
        (&["--deepspeed", "nowhere.json"], false, 1),
        (&["nowhere.toml"], false, 1),
        (&[&recipe], false, 2),
        (&["--nproc", "2"], true, 2),
        (&[], false, 1),
        (&["--resume_from_checkpoint", "nowhere"], false, 1),
    ] {
        let mut command = Command::new(program("train"));
        command.args(words).args(paths).current_dir(folder.path());
        if launched {
            // The rank of such a launch, as its supervisor starts it.
            command.env("OMPI_COMM_WORLD_SIZE", "2").env("LLAVA_RANK_GUARD", "1:1");
        }
        let output = command.output().expect("the program starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
        assert_eq!(error.matches("error: ").count(), 1, "{words:?}: {error}");
    }
    let plan = Command::new(program("train")).arg("plan").args(paths).args(["--learning_rate", "-1"]).output();
    assert_eq!(plan.expect("the program starts").status.code(), Some(2));
}

#[test]
fn rows_that_are_too_long_are_refused_before_training() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (shards, output) = (shards_with_validation(folder.path()), folder.path().join("run"));
    for (limit, named) in [("40", "more than the 40 allowed"), ("100000000", "max_position_embeddings")] {
        let error = fail(&mut train(&shards, &output, &["--model_max_length", limit]));
        assert!(error.contains(named), "{error}");
        assert!(!output.exists(), "nothing is begun");
        let mut plan = Command::new(program("train"));
        plan.arg("plan").arg("--model_name_or_path").arg(tests::reference("tiny/llava"));
        let error = fail(plan.arg("--data_path").arg(&shards).args(["--model_max_length", limit]));
        assert!(error.contains(named), "{error}");
    }
}
