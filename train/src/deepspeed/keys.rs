//! Every key of a DeepSpeed file: honoured, without effect here, or refused by name. An unknown one is refused.
//!
//! # Source
//! DeepSpeed 0.15 to 0.19: `runtime/config.py`, `runtime/constants.py`, `runtime/zero/config.py`, and its documentation of
//! the configuration file.

use super::File;
use base::{Result, nearest};
use serde_json::{Map, Value};

/// What becomes of a key.
enum Key {
    /// An option is set from it, elsewhere in this module.
    Honoured,
    /// It is about speed, memory or messages of DeepSpeed's own implementation: no result depends on it.
    Harmless,
    /// Accepted with these values, `auto` and null; others are refused with the reason.
    Only(&'static [&'static str], &'static str),
    /// A section that is accepted unless it is enabled.
    Disabled(&'static str),
    /// A section with keys of its own.
    Section(&'static [(&'static str, Key)]),
}
use Key::{Disabled, Harmless, Honoured, Only, Section};

const FALSE: &[&str] = &["false"];
const F32_MASTERS: &str = "master weights, moments and accumulated gradients are f32";
const NO_MONITOR: &str = "metrics.jsonl has the numbers, and --report_to tensorboard writes event files";
const NOT_DONE: &str = "it is not done here";

#[rustfmt::skip]
const KEYS: &[(&str, Key)] = &[
    ("train_batch_size", Honoured),
    ("train_micro_batch_size_per_gpu", Honoured),
    ("gradient_accumulation_steps", Honoured),
    ("gradient_clipping", Honoured),
    ("optimizer", Section(&[
        ("type", Honoured),
        ("legacy_fusion", Harmless),
        ("params", Section(&[
            ("lr", Honoured), ("betas", Honoured), ("eps", Honoured), ("weight_decay", Honoured),
            ("adam_w_mode", Only(&["true"], "weight decay is decoupled, as AdamW's is; without it Adam adds the decay to the gradient")),
            ("bias_correction", Only(&["true"], "AdamW corrects the bias")),
            ("amsgrad", Only(FALSE, "plain AdamW is done")),
            ("maximize", Only(FALSE, "losses are made small")),
            ("fp32_optimizer_states", Only(&["true"], F32_MASTERS)),
            ("max_grad_norm", Only(&["0"], "write it as gradient_clipping, beside the optimizer")),
            ("torch_adam", Harmless), ("fused", Harmless), ("foreach", Harmless), ("capturable", Harmless),
            ("differentiable", Harmless), ("set_grad_none", Harmless),
        ])),
    ])),
    ("scheduler", Section(&[("type", Honoured), ("params", Honoured)])),
    ("bf16", Section(BF16)),
    ("bfloat16", Section(BF16)),
    ("fp16", Disabled("fp16 needs loss scaling, which is not done; enable bf16 instead")),
    ("amp", Disabled("mixed precision is bf16's; enable bf16 instead")),
    ("torch_autocast", Disabled("mixed precision is bf16's; enable bf16 instead")),
    ("data_types", Section(&[("grad_accum_dtype", Only(&["fp32", "none"], F32_MASTERS))])),
    ("communication_data_type", Only(&["fp32", "none"], "gradients are exchanged in f32")),
    ("seq_parallel_communication_data_type", Harmless),
    ("gradient_allreduce_op", Only(&["mean"], "gradients are averaged over the global batch")),
    ("prescale_gradients", Harmless),
    ("gradient_predivide_factor", Harmless),
    ("sparse_gradients", Harmless),
    ("disable_allgather", Harmless),
    ("zero_allow_untested_optimizer", Harmless),
    ("zero_force_ds_cpu_optimizer", Harmless),
    ("zero_optimization", Section(&[
        ("stage", Honoured),
        ("offload_optimizer", Honoured), ("offload_param", Honoured),
        ("cpu_offload", Only(FALSE, "optimizer state lives where the rank computes")),
        ("cpu_offload_params", Only(FALSE, "parameters live where the rank computes")),
        ("cpu_offload_param", Only(FALSE, "parameters live where the rank computes")),
        ("cpu_offload_use_pin_memory", Harmless),
        ("zenflow", Only(&["none"], NOT_DONE)),
        ("compute_grad_norm", Only(&["true"], "the gradient's norm is always computed")),
        ("zero_hpz_partition_size", Only(&["1"], "parameters are not partitioned")),
        ("zero_quantized_weights", Only(FALSE, "ranks exchange exact values")),
        ("zero_quantized_nontrainable_weights", Only(FALSE, "ranks exchange exact values")),
        ("zero_quantized_gradients", Only(FALSE, "ranks exchange exact values")),
        ("loco_param", Only(&["none"], "ranks exchange exact values")),
        ("mics_shard_size", Only(&["-1"], "it is of stage 3")),
        ("mics_hierarchical_params_gather", Harmless),
        ("contiguous_gradients", Harmless), ("reduce_scatter", Harmless), ("reduce_bucket_size", Harmless),
        ("use_multi_rank_bucket_allreduce", Harmless), ("allgather_partitions", Harmless),
        ("allgather_bucket_size", Harmless), ("overlap_comm", Harmless), ("sub_group_size", Harmless),
        ("load_from_fp32_weights", Harmless), ("elastic_checkpoint", Harmless), ("ignore_unused_parameters", Harmless),
        ("legacy_stage1", Harmless), ("round_robin_gradients", Harmless), ("parameter_alignment", Harmless),
        ("memory_efficient_linear", Harmless), ("pipeline_loading_checkpoint", Harmless),
        ("override_module_apply", Harmless), ("log_trace_cache_warnings", Harmless), ("enable_sanity_checks", Harmless),
        ("save_muon_momentum_buffer_in_memory", Harmless), ("leaf_module", Harmless),
        ("grad_hooks", Harmless), ("fast_sharding_for_leaf_module", Harmless),
        // Of stage 3, which this file does not ask for.
        ("stage3_max_live_parameters", Harmless), ("stage3_max_reuse_distance", Harmless),
        ("stage3_prefetch_bucket_size", Harmless), ("stage3_param_persistence_threshold", Harmless),
        ("stage3_model_persistence_threshold", Harmless), ("stage3_gather_16bit_weights_on_model_save", Harmless),
        ("stage3_gather_fp16_weights_on_model_save", Harmless), ("stage3_module_granularity_threshold", Harmless),
        ("stage3_use_all_reduce_for_fetch_params", Harmless), ("stage3_allgather_sequential", Harmless),
    ])),
    // They act only in models that call deepspeed.checkpointing; --gradient_checkpointing recomputes here.
    ("activation_checkpointing", Harmless),
    ("aio", Harmless),
    ("steps_per_print", Harmless),
    ("wall_clock_breakdown", Harmless),
    ("memory_breakdown", Harmless),
    ("dump_state", Harmless),
    ("log_level", Harmless),
    ("vocabulary_size", Harmless),
    ("disable_python_gc", Harmless),
    ("use_data_before_expert_parallelism", Harmless),
    ("timers", Harmless),
    ("checkpoint", Section(&[
        ("tag_validation", Harmless), ("parallel_write", Harmless), ("load_universal", Only(FALSE, "checkpoints are of one kind")),
        ("use_node_local_storage", Only(FALSE, "all ranks write one checkpoint, on a file system that they share")),
        ("checkpoint_serialization", Harmless), ("writer", Harmless),
    ])),
    ("dataloader_drop_last", Only(FALSE, "every row is trained on once an epoch")),
    ("tensorboard", Disabled(NO_MONITOR)),
    ("wandb", Disabled(NO_MONITOR)),
    ("comet", Disabled(NO_MONITOR)),
    ("csv_monitor", Disabled(NO_MONITOR)),
    ("comms_logger", Disabled("metrics.jsonl has bytes_sent and communication_seconds of every step")),
    ("flops_profiler", Disabled("metrics.jsonl has the times of every step")),
    ("autotuning", Disabled("train plan says what fits")),
    ("elasticity", Disabled("a run can be resumed at another number of ranks")),
    ("progressive_layer_drop", Disabled(NOT_DONE)),
    ("eigenvalue", Disabled(NOT_DONE)),
    ("curriculum_learning", Disabled(NOT_DONE)),
    ("data_efficiency", Disabled(NOT_DONE)),
    ("hybrid_engine", Disabled(NOT_DONE)),
    ("nebula", Disabled(NOT_DONE)),
    ("quantize_training", Disabled(NOT_DONE)),
    ("pld", Disabled(NOT_DONE)),
    ("compile", Section(&[
        ("deepcompile", Only(FALSE, NOT_DONE)), ("enabled", Harmless), ("backend", Harmless), ("kwargs", Harmless),
    ])),
    ("compression_training", Only(&["none", "{}"], NOT_DONE)),
    ("sparse_attention", Only(&["none", "{}"], "attention is full")),
    ("pipeline", Only(&["none", "{}"], "ranks share the work by ZeRO-2 only")),
    ("tensor_parallel", Section(&[("autotp_size", Only(&["0", "1"], "ranks share the work by ZeRO-2 only"))])),
    ("sequence_parallel_size", Only(&["1"], "ranks share the work by ZeRO-2 only")),
];

const BF16: &[(&str, Key)] = &[
    ("enabled", Honoured),
    ("auto_cast", Harmless),
    ("check_overflow", Harmless),
    ("immediate_grad_update", Harmless),
    ("bf16_master_weights_and_grads", Only(FALSE, F32_MASTERS)),
    ("bf16_optimizer_states", Only(FALSE, F32_MASTERS)),
    // Of fp16, copied along.
    ("loss_scale", Harmless),
    ("loss_scale_window", Harmless),
    ("initial_scale_power", Harmless),
    ("hysteresis", Harmless),
    ("min_loss_scale", Harmless),
];

/// Refuses the first key that is unknown or not implemented.
///
/// # Errors
/// The key, its value, and the reason.
pub(super) fn check(file: &File<'_>) -> Result<()> {
    let json = file
        .json
        .as_object()
        .ok_or_else(|| file.invalid("", kind(&file.json), "an object of DeepSpeed's settings", "correct the file"))?;
    check_section(file, "", json, KEYS)
}

fn check_section(file: &File<'_>, parent: &str, section: &Map<String, Value>, keys: &[(&str, Key)]) -> Result<()> {
    for (name, value) in section {
        let pointer = format!("{parent}/{name}");
        let Some((_, key)) = keys.iter().find(|(known, _)| known == name) else {
            let nearest = nearest(name, keys.iter().map(|(known, _)| *known));
            let remedy = match nearest {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => "remove it if the run does not depend on it".to_string(),
            };
            return Err(file.invalid(&pointer, "an unknown key", "one of DeepSpeed's keys", &remedy));
        };
        check_key(file, &pointer, value, key)?;
    }
    Ok(())
}

fn check_key(file: &File<'_>, pointer: &str, value: &Value, key: &Key) -> Result<()> {
    if value.is_null() || value == "auto" {
        return Ok(());
    }
    match key {
        Honoured | Harmless => Ok(()),
        Only(accepted, why) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            if accepted.iter().any(|accepted| crate::trainer_options::is_same(accepted, &text)) {
                return Ok(());
            }
            Err(file.invalid(pointer, value, &format!("{} ({why})", accepted.join(" or ")), "correct or remove it"))
        }
        Disabled(why) => {
            let enabled = value.get("enabled").filter(|enabled| !enabled.is_null() && *enabled != "auto");
            if enabled.is_none_or(|enabled| enabled == &Value::Bool(false)) {
                return Ok(());
            }
            Err(file.invalid(&format!("{pointer}/enabled"), &value["enabled"], &format!("false ({why})"), "disable it"))
        }
        Section(keys) => match value {
            Value::Object(section) => check_section(file, pointer, section, keys),
            other => Err(file.invalid(pointer, kind(other), "an object", "correct the file")),
        },
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
        plain => plain.to_string(),
    }
}
