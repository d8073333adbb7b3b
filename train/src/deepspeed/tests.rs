use super::*;
use serde_json::json;

fn over(json: &str, options: &[(&str, Value)], ranks: u64) -> Result<Given> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ds_zero2.json");
    std::fs::write(&path, json).expect("the file is written");
    let mut given = Given::default();
    options.iter().for_each(|(name, value)| given.insert(name, value.clone(), format!("--{name}")));
    overlay(path.to_str().expect("UTF-8"), &mut given, ranks).map(|()| given)
}

/// `more` beside ZeRO-2.
fn zero2(more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    format!(r#"{{"zero_optimization": {{"stage": 2}}{comma}{more}}}"#)
}

#[test]
fn values_are_honoured_and_auto_is_left_alone() {
    let json = r#"{"bf16": {"enabled": "auto"}, "gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "overlap_comm": true},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.8, 0.99], "eps": "auto"}}}"#;
    let given = over(json, &[("learning_rate", json!(1e-4))], 1).expect("valid");
    assert_eq!(given.get("max_grad_norm"), Some(&json!(0.5)));
    assert_eq!((given.get("adam_beta1"), given.get("adam_beta2")), (Some(&json!(0.8)), Some(&json!(0.99))));
    assert_eq!((given.get("bf16"), given.get("adam_epsilon")), (None, None));
}

#[test]
fn text_in_place_of_a_file_is_read() {
    let mut given = Given::default();
    overlay(&zero2(r#""gradient_clipping": 2"#), &mut given, 1).expect("valid");
    assert_eq!(given.get("max_grad_norm"), Some(&json!(2)));
}

#[test]
fn whole_numbers_may_have_a_point() {
    let json = zero2(r#""train_micro_batch_size_per_gpu": 4.0, "gradient_accumulation_steps": 2.0"#);
    let given = over(&json, &[], 1).expect("valid");
    assert_eq!(given.get("per_device_train_batch_size"), Some(&json!(4)));
    for (more, key) in [
        (r#""train_micro_batch_size_per_gpu": 4.5"#, "train_micro_batch_size_per_gpu"),
        (r#""gradient_accumulation_steps": "2""#, "gradient_accumulation_steps"),
        (r#""gradient_clipping": true"#, "gradient_clipping"),
        (r#""bf16": {"enabled": 1}"#, "bf16.enabled"),
        (r#""optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}"#, "optimizer.params.betas"),
        (r#""optimizer": []"#, "optimizer"),
    ] {
        let error = over(&zero2(more), &[], 1).expect_err(more).to_string();
        assert!(error.contains(&format!("ds_zero2.json: {key}: found")), "{more}: {error}");
    }
}

/// `train_batch_size`, what else is given, ranks, and micro-batch and accumulation that follow.
#[test]
fn the_batch_follows_as_in_deepspeed() {
    let micro = |value: u64| ("per_device_train_batch_size", json!(value));
    let steps = |value: u64| ("gradient_accumulation_steps", json!(value));
    for (total, options, ranks, expected) in [
        (32, vec![], 1, Some((32, 1))),
        (32, vec![], 4, Some((8, 1))),
        (32, vec![micro(4)], 2, Some((4, 4))),
        (32, vec![steps(4)], 2, Some((4, 4))),
        (32, vec![micro(4), steps(4)], 2, Some((4, 4))),
        (32, vec![micro(4), steps(2)], 1, None),
        (32, vec![micro(3)], 1, None),
        (32, vec![], 5, None),
        (32, vec![micro(64)], 1, None),
    ] {
        let found = over(&zero2(&format!(r#""train_batch_size": {total}"#)), &options, ranks);
        let name = format!("{total} with {options:?} on {ranks} ranks");
        match (found, expected) {
            (Ok(given), Some((micro_batch, accumulation))) => {
                assert_eq!(given.get("per_device_train_batch_size"), Some(&json!(micro_batch)), "{name}");
                assert_eq!(given.get("gradient_accumulation_steps"), Some(&json!(accumulation)), "{name}");
            }
            (Err(error), None) => assert!(error.to_string().contains("train_batch_size: found 32"), "{name}: {error}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}

#[test]
fn what_is_not_done_is_refused_by_key() {
    for (json, options, named) in [
        (r#"{"zero_optimization": {"stage": 3}}"#.to_string(), vec![], "zero_optimization.stage"),
        ("{}".to_string(), vec![], "zero_optimization.stage"),
        ("[]".to_string(), vec![], "an object"),
        (zero2(r#""bf16": {"enabled": true}, "bf16": {"enabled": true}"#), vec![], "the key bf16 twice"),
        (
            zero2(r#""optimizer": {"params": {"eps": 1e-8, "lr": 1e-4, "eps": 1e-6}}"#),
            vec![],
            "the key optimizer.params.eps twice",
        ),
        (
            zero2(r#""comms_logger": {"prof_ops": [{"a": 1, "a": 2}]}"#),
            vec![],
            "the key comms_logger.prof_ops.0.a twice",
        ),
        (
            r#"{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}"#.into(),
            vec![],
            "offload_optimizer.device",
        ),
        (r#"{"zero_optimization": {"stage": 2, "cpu_offload": true}}"#.into(), vec![], "zero_optimization.cpu_offload"),
        (
            r#"{"zero_optimization": {"stage": 2, "zero_quantized_gradients": true}}"#.into(),
            vec![],
            "zero_quantized_gradients",
        ),
        (
            r#"{"zero_optimization": {"stage": 2, "reduce_buket_size": 1}}"#.into(),
            vec![],
            "did you mean reduce_bucket_size",
        ),
        (zero2(r#""fp16": {"enabled": true}"#), vec![], "fp16.enabled"),
        (zero2(r#""amp": {"enabled": true, "opt_level": "O1"}"#), vec![], "amp.enabled"),
        (zero2(r#""optimizer": {"type": "Lamb"}"#), vec![], "optimizer.type"),
        (zero2(r#""optimizer": {"type": "OneBitAdam"}"#), vec![], "optimizer.type"),
        (zero2(r#""optimizer": {"type": "Adam", "params": {"adam_w_mode": false}}"#), vec![], "adam_w_mode"),
        (zero2(r#""optimizer": {"type": "AdamW", "params": {"momentum": 0.9}}"#), vec![], "optimizer.params.momentum"),
        (zero2(r#""gradient_clip": 1.0"#), vec![], "did you mean gradient_clipping"),
        (zero2(r#""flops_profiler": {"enabled": true}"#), vec![], "flops_profiler.enabled"),
        (zero2(r#""curriculum_learning": {"enabled": true}"#), vec![], "curriculum_learning.enabled"),
        (zero2(r#""communication_data_type": "fp16""#), vec![], "communication_data_type"),
        (zero2(r#""gradient_clipping": 1.0"#), vec![("max_grad_norm", json!(2.0))], "--max_grad_norm"),
    ] {
        let error = over(&json, &options, 1).expect_err(&json).to_string();
        assert!(error.contains(named), "{json}: {error}");
    }
}

#[test]
fn schedules_are_read() {
    let json = zero2(
        r#""scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 1e-4, "warmup_max_lr": 1e-3, "warmup_num_steps": 4.0}}"#,
    );
    let given = over(&json, &[], 1).expect("valid");
    assert_eq!((given.get("learning_rate"), given.get("warmup_steps")), (Some(&json!(1e-3)), Some(&json!(4.0))));
    let schedule = given.get("deepspeed_scheduler").expect("a schedule");
    assert_eq!((&schedule["kind"], &schedule["warmup_type"]), (&json!("WarmupLR"), &json!("log")));
    let auto = r#""scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_min_lr": "auto",
        "warmup_max_lr": "auto", "warmup_num_steps": "auto", "last_batch_iteration": -1}}"#;
    let given = over(&zero2(auto), &[("learning_rate", json!(5e-5)), ("warmup_ratio", json!(0.03))], 1).expect("valid");
    assert_eq!((given.get("warmup_steps"), given.get("deepspeed_scheduler").is_some()), (None, true));
}

#[test]
fn schedules_that_are_not_done_are_refused_by_key() {
    let decay = |params: &str| format!(r#""scheduler": {{"type": "WarmupDecayLR", "params": {{{params}}}}}"#);
    let whole = r#""warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto""#;
    let rate = ("learning_rate", json!(5e-5));
    for (more, options, named) in [
        (r#""scheduler": {"type": "OneCycle", "params": {}}"#.to_string(), vec![], "scheduler.type: found OneCycle"),
        (r#""scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 9}}"#.into(), vec![], "scheduler.type"),
        (r#""scheduler": {"params": {"warmup_num_steps": 4}}"#.into(), vec![], "scheduler.type"),
        (decay(r#""warmup_max_lr": 1e-5, "warmup_num_steps": 4, "total_num_steps": 8"#), vec![rate], "--learning_rate"),
        (decay(r#""warmup_num_steps": 4, "total_num_steps": 8"#), vec![], "warmup_max_lr"),
        (decay(r#""warmup_max_lr": "auto", "warmup_num_steps": 4"#), vec![], "total_num_steps"),
        (decay(&format!(r#"{whole}, "decay": 1"#)), vec![], "params.decay"),
        (decay(&format!(r#"{whole}, "warmup_type": "cubic""#)), vec![], "warmup_type"),
        (decay(&format!(r#"{whole}, "warmup_min_lr": -1"#)), vec![], "warmup_min_lr"),
        (decay(&format!(r#"{whole}, "warmup_min_lr": [0, 1]"#)), vec![], "warmup_min_lr"),
        (decay(&format!(r#"{whole}, "last_batch_iteration": 7"#)), vec![], "last_batch_iteration"),
        (
            decay(&whole.replace("\"warmup_num_steps\": \"auto\"", "\"warmup_num_steps\": 0")),
            vec![],
            "warmup_num_steps",
        ),
        (
            decay(&whole.replace("\"warmup_num_steps\": \"auto\"", "\"warmup_num_steps\": 3")),
            vec![("warmup_steps", json!(4.0))],
            "--warmup_steps",
        ),
        (
            decay(&whole.replace("\"warmup_num_steps\": \"auto\"", "\"warmup_num_steps\": 3")),
            vec![("warmup_ratio", json!(0.1))],
            "--warmup_ratio",
        ),
        (decay(whole), vec![("lr_scheduler_type", json!("cosine"))], "--lr_scheduler_type"),
        (
            r#""scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": 1, "total_num_steps": "auto"}}"#
                .into(),
            vec![],
            "params.warmup_max_lr",
        ),
    ] {
        let error = over(&zero2(&more), &options, 1).expect_err(&more).to_string();
        assert!(error.contains(named), "{more}: {error}");
    }
}

/// Files that people use: LLaVA's zero2.json, the Trainer's documentation, Megatron-style ones with everything written out.
#[test]
#[rustfmt::skip]
fn real_files() {
    let llava_zero2 = r#"{"fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
        "hysteresis": 2, "min_loss_scale": 1}, "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto", "gradient_accumulation_steps": "auto", "zero_optimization": {"stage": 2,
        "overlap_comm": true, "contiguous_gradients": true, "sub_group_size": 1e9, "reduce_bucket_size": "auto"}}"#;
    let llava_zero3 = r#"{"bf16": {"enabled": "auto"}, "train_batch_size": "auto", "zero_optimization": {"stage": 3,
        "overlap_comm": true, "stage3_max_live_parameters": 1e9, "stage3_gather_16bit_weights_on_model_save": true}}"#;
    let llava_zero3_offload = r#"{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}"#;
    let trainer_docs_stage2 = r#"{"fp16": {"enabled": "auto", "loss_scale": 0}, "optimizer": {"type": "AdamW", "params":
        {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}, "scheduler": {"type": "WarmupLR", "params":
        {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}}, "zero_optimization": {"stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": true}, "allgather_partitions": true,
        "allgather_bucket_size": 2e8, "overlap_comm": true, "reduce_scatter": true, "reduce_bucket_size": 2e8,
        "contiguous_gradients": true}, "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
        "steps_per_print": 2000, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": false}"#;
    let llama_factory_z2 = r#"{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "zero_allow_untested_optimizer": true,
        "fp16": {"enabled": "auto", "loss_scale": 0}, "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2,
        "allgather_partitions": true, "allgather_bucket_size": 5e8, "overlap_comm": false, "reduce_scatter": true,
        "reduce_bucket_size": 5e8, "contiguous_gradients": true, "round_robin_gradients": true}}"#;
    let deepspeed_docs = r#"{"train_batch_size": 8, "gradient_accumulation_steps": 1, "optimizer": {"type": "Adam", "params":
        {"lr": 0.00015}}, "fp16": {"enabled": true}, "zero_optimization": true}"#;
    let cifar = r#"{"train_batch_size": 16, "steps_per_print": 2000, "optimizer": {"type": "Adam", "params": {"lr": 0.001,
        "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7}}, "scheduler": {"type": "WarmupLR", "params":
        {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000}}, "gradient_clipping": 1.0,
        "prescale_gradients": false, "bf16": {"enabled": false}, "fp16": {"enabled": false}, "wall_clock_breakdown": false,
        "zero_optimization": {"stage": 2, "allgather_partitions": true, "reduce_scatter": true, "cpu_offload": false}}"#;
    let profiled = r#"{"zero_optimization": {"stage": 2}, "activation_checkpointing": {"partition_activations": true,
        "cpu_checkpointing": false, "profile": false}, "comms_logger": {"enabled": false, "verbose": false},
        "flops_profiler": {"enabled": false, "profile_step": 1, "module_depth": -1, "top_modules": 1, "detailed": true},
        "tensorboard": {"enabled": false}, "aio": {"block_size": 1048576}, "data_types": {"grad_accum_dtype": "fp32"}}"#;
    for (name, json, refused) in [
        ("LLaVA zero2.json", llava_zero2, None),
        ("LLaVA zero3.json", llava_zero3, Some("zero_optimization.stage: found 3")),
        ("LLaVA zero3_offload.json", llava_zero3_offload, Some("zero_optimization.stage: found 3")),
        ("Trainer's documentation, stage 2", trainer_docs_stage2, Some("offload_optimizer.device")),
        ("the same without offloading", &trainer_docs_stage2.replace(r#""device": "cpu""#, r#""device": "none""#), None),
        ("LLaMA-Factory ds_z2_config.json", llama_factory_z2, None),
        ("DeepSpeed's documentation", deepspeed_docs, Some("fp16.enabled")),
        ("DeepSpeedExamples cifar", cifar, None),
        ("profilers and monitors off", profiled, None),
    ] {
        match (over(json, &[], 1), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(key)) => assert!(error.to_string().contains(key), "{name}: {error}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}
