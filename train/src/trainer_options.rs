//! Options of the Hugging Face `Trainer` (transformers 4.41 to 5.x), and of LLaVA's scripts, that are none of [`Config`]'s:
//! for each, what becomes of it. None is ignored without a word.
//!
//! [`Config`]: crate::config::Config

use base::{Error, Result};
use std::ffi::{OsStr, OsString};

/// What becomes of an option.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// It is another name of one of ours.
    SameAs(&'static str),
    /// Each of these values sets options of ours (`name=true` or `name=false`); any other is refused, because …
    Sets(&'static [(&'static str, &'static [&'static str])], &'static str),
    /// It is accepted with any value and changes nothing, because …
    NoEffect(&'static str),
    /// It is accepted with these values, which change nothing; any other is refused, because …
    Only(&'static [&'static str], &'static str),
}
use Answer::{NoEffect, Only, SameAs, Sets};

const FALSE: &[&str] = &["false"];
const TRUE: &[&str] = &["true"];
const NOTHING: &[&str] = &["none", "", "false"];
const ZERO: &[&str] = &["0", "none"];

const NO_PREDICTIONS: &str = "evaluation computes losses and sample captions and keeps no predictions";
const NO_HUB: &str = "nothing is pushed anywhere";
const NO_TORCH: &str = "it is a setting of torch";
const ZERO_2: &str = "ranks share the work by ZeRO-2 only";
const ONE_EVALUATION: &str = "evaluation computes as training does";
const PACKED: &str = "rows are packed without padding, so that batches of rows of one length save nothing";
const WEIGHTS_ONLY: &str = "weights alone are rounded, activations are not";
/// A base as it is held in its files.
const NOT_ROUNDED: &[&str] = &["load_in_8bit=false", "load_in_4bit=false"];
const NF4_ONLY: &str = "of the 4-bit formats NF4 is implemented";
const PREPROCESS: &str = "rows and images are processed by preprocess shards, before training";

/// Every such option by its name.
#[rustfmt::skip]
pub const TRAINER_OPTIONS: &[(&str, Answer)] = &[
    // Optimizer and loss.
    ("optim", Only(&["adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused"], "torch's AdamW with f32 moments is the only optimizer")),
    ("optim_args", Only(NOTHING, "AdamW takes --adam_beta1, --adam_beta2, --adam_epsilon and --weight_decay")),
    ("optim_target_modules", Only(NOTHING, "AdamW updates whole tensors")),
    ("adafactor", Only(FALSE, "torch's AdamW is the only optimizer")),
    ("average_tokens_across_devices", Only(TRUE, "the loss is averaged over the tokens of all ranks; --loss_normalization micro_batch_mean gives the older averaging")),
    ("label_smoothing_factor", Only(ZERO, "the loss is plain cross entropy")),
    ("neftune_noise_alpha", Only(ZERO, "no noise is added to embeddings")),
    // Precision and kernels.
    ("bf16_full_eval", Only(FALSE, ONE_EVALUATION)),
    ("fp16_full_eval", Only(FALSE, ONE_EVALUATION)),
    ("fp16_opt_level", NoEffect("fp16 is refused")),
    ("fp16_backend", NoEffect("fp16 is refused")),
    ("half_precision_backend", NoEffect("fp16 is refused")),
    ("tf32", NoEffect("products of f32 are computed in f32, which is more than tf32 promises")),
    ("torch_compile", NoEffect("kernels are compiled already")),
    ("torch_compile_backend", NoEffect("kernels are compiled already")),
    ("torch_compile_mode", NoEffect("kernels are compiled already")),
    ("torchdynamo", NoEffect("kernels are compiled already")),
    ("jit_mode_eval", NoEffect("kernels are compiled already")),
    ("use_ipex", NoEffect("kernels are compiled already")),
    ("use_liger_kernel", NoEffect("fused kernels are always used")),
    ("liger_kernel_config", NoEffect("fused kernels are always used")),
    ("use_cache", NoEffect("training has no key-value cache")),
    ("activation_checkpointing", SameAs("gradient_checkpointing")),
    ("activation_checkpointing_kwargs", NoEffect("a recomputed block has the same values whatever they say")),
    ("gradient_checkpointing_kwargs", NoEffect("a recomputed block has the same values whatever they say")),
    ("torch_empty_cache_steps", NoEffect(NO_TORCH)),
    ("auto_find_batch_size", Only(FALSE, "the batch is what --per_device_train_batch_size says; train plan tells what fits")),
    ("full_determinism", NoEffect("on a CPU a run gives the same bits every time")),
    ("use_cpu", Only(FALSE, "--device cpu computes on the CPU")),
    ("no_cuda", Only(FALSE, "--device cpu computes on the CPU")),
    ("use_mps_device", Only(FALSE, "--device says where to compute")),
    ("tpu_num_cores", Only(NOTHING, "--device says where to compute")),
    ("tpu_metrics_debug", Only(FALSE, "--device says where to compute")),
    // Batches.
    ("per_gpu_train_batch_size", SameAs("per_device_train_batch_size")),
    ("per_gpu_eval_batch_size", SameAs("per_device_eval_batch_size")),
    ("dataloader_drop_last", Only(FALSE, "every row is trained on once an epoch; the last batch of an epoch may be smaller")),
    ("dataloader_multiprocessing_context", NoEffect("loaders are threads")),
    ("dataloader_in_order", NoEffect("the order of rows never depends on loaders")),
    ("group_by_length", Only(FALSE, PACKED)),
    ("group_by_modality_length", Only(FALSE, PACKED)),
    ("length_column_name", NoEffect(PACKED)),
    ("train_sampling_strategy", Only(&["random"], "--shuffle true or false chooses the order; rows are packed without padding, so that grouping them saves nothing")),
    ("data_seed", Only(NOTHING, "--seed is the seed of order, initialisation and dropout")),
    ("ignore_data_skip", Only(FALSE, "a resumed run continues with the next row")),
    ("label_names", NoEffect("labels are a column of the shards")),
    ("accelerator_config", Only(&["none", "", "{}"], "rows are dealt out to ranks in one way only")),
    ("split_batches", Only(NOTHING, "--per_device_train_batch_size is the batch of a rank")),
    ("dispatch_batches", NoEffect("every rank reads its own rows")),
    ("past_index", Only(&["-1"], "the models have no such state")),
    ("mp_parameters", Only(NOTHING, ZERO_2)),
    // A base in few bits: transformers' BitsAndBytesConfig.
    ("bnb_4bit_quant_type", Only(&["nf4"], NF4_ONLY)),
    ("bnb_4bit_compute_dtype", NoEffect("products are computed in the run's dtype: f32 on a CPU, bf16 on a GPU with --bf16")),
    ("bnb_4bit_quant_storage", Only(&["uint8", "torch.uint8"], "codes are held as bytes")),
    ("llm_int8_threshold", NoEffect(WEIGHTS_ONLY)),
    ("llm_int8_enable_fp32_cpu_offload", Only(FALSE, "all of the model is on one device")),
    ("llm_int8_has_fp16_weight", Only(FALSE, WEIGHTS_ONLY)),
    // Ranks.
    ("ddp_timeout", SameAs("collective_timeout_seconds")),
    ("ddp_backend", NoEffect("the exchange follows from the launcher and the device")),
    ("ddp_find_unused_parameters", NoEffect("ranks exchange every block, also one without a gradient")),
    ("ddp_bucket_cap_mb", NoEffect("a block of the model is a bucket")),
    ("ddp_broadcast_buffers", NoEffect("the models have no buffers that change")),
    ("ddp_static_graph", NoEffect("ranks exchange every block, also one without a gradient")),
    ("fsdp", Only(NOTHING, ZERO_2)),
    ("fsdp_config", Only(NOTHING, ZERO_2)),
    ("fsdp_min_num_params", Only(ZERO, ZERO_2)),
    ("fsdp_transformer_layer_cls_to_wrap", Only(NOTHING, ZERO_2)),
    ("parallelism_config", Only(NOTHING, ZERO_2)),
    ("local_rank", Only(&["-1", "0"], "torchrun and deepspeed cannot start ranks here; use --nproc N, mpirun or srun")),
    // Logging.
    ("logging_strategy", Only(&["steps"], "metrics.jsonl has a line every --logging_steps")),
    ("logging_dir", NoEffect("event files are beside metrics.jsonl, in --output_dir")),
    ("logging_nan_inf_filter", NoEffect("a step whose loss is not finite is skipped and counted in skipped_steps")),
    ("log_on_each_node", NoEffect("rank 0 logs")),
    ("log_level", NoEffect("messages go to stderr, all of them")),
    ("log_level_replica", NoEffect("rank 0 logs")),
    ("include_num_input_tokens_seen", NoEffect("trainer_state.json always has num_input_tokens_seen")),
    ("include_tokens_per_second", NoEffect("metrics.jsonl always has tokens_per_second")),
    ("disable_tqdm", NoEffect("progress is a bar on a terminal, and a line every few seconds elsewhere")),
    ("run_name", NoEffect("a run is called by its --output_dir")),
    ("project", NoEffect("a run is called by its --output_dir")),
    ("trackio_space_id", NoEffect("there is no report to trackio")),
    ("trackio_bucket_id", NoEffect("there is no report to trackio")),
    ("trackio_static_space_id", NoEffect("there is no report to trackio")),
    ("skip_memory_metrics", NoEffect("metrics.jsonl always has peak_rss_mb")),
    ("debug", Only(NOTHING, "there is no such debugger here")),
    // Evaluation.
    ("eval_delay", Only(ZERO, "evaluations begin with the first that is due")),
    ("eval_on_start", Only(FALSE, "infer score evaluates a model that is not trained yet")),
    ("prediction_loss_only", NoEffect(NO_PREDICTIONS)),
    ("eval_do_concat_batches", NoEffect(NO_PREDICTIONS)),
    ("eval_use_gather_object", NoEffect(NO_PREDICTIONS)),
    ("eval_accumulation_steps", NoEffect(NO_PREDICTIONS)),
    ("include_for_metrics", NoEffect(NO_PREDICTIONS)),
    ("include_inputs_for_metrics", NoEffect(NO_PREDICTIONS)),
    ("batch_eval_metrics", NoEffect(NO_PREDICTIONS)),
    ("use_legacy_prediction_loop", NoEffect(NO_PREDICTIONS)),
    ("ray_scope", NoEffect("there is no search for hyperparameters")),
    // Checkpoints.
    ("save_only_model", Only(FALSE, "a checkpoint always has the optimizer's state, so that the run can go on from it")),
    ("save_on_each_node", Only(FALSE, "all ranks write one checkpoint, on a file system that they share")),
    ("save_safetensors", Only(TRUE, "weights are written as safetensors only")),
    ("enable_jit_checkpoint", NoEffect("SIGTERM always ends a run with a checkpoint")),
    ("restore_callback_states_from_checkpoint", NoEffect("there are no callbacks")),
    ("push_to_hub", Only(FALSE, NO_HUB)),
    ("hub_token", NoEffect(NO_HUB)),
    ("hub_private_repo", NoEffect(NO_HUB)),
    ("hub_model_id", NoEffect(NO_HUB)),
    ("hub_strategy", NoEffect(NO_HUB)),
    ("hub_always_push", NoEffect(NO_HUB)),
    ("hub_revision", NoEffect(NO_HUB)),
    ("push_to_hub_model_id", NoEffect(NO_HUB)),
    ("push_to_hub_organization", NoEffect(NO_HUB)),
    ("push_to_hub_token", NoEffect(NO_HUB)),
    // Scripts around the Trainer.
    ("do_train", Only(TRUE, "train trains")),
    ("do_eval", NoEffect("--eval_strategy asks for evaluations")),
    ("do_predict", Only(FALSE, "infer caption and infer score do that")),
    // LLaVA's own scripts.
    ("lora_enable", Only(TRUE, "--train_type says what is trained; leave it out")),
    ("tune_mm_mlp_adapter", Only(FALSE, "--train_type projector trains the projector alone")),
    ("freeze_backbone", Only(FALSE, "--train_type projector trains the projector alone")),
    ("freeze_mm_mlp_adapter", Only(FALSE, "every train_type trains the projector")),
    ("mm_vision_tower_lr", SameAs("vision_tower_lr")),
    ("lora_bias", Only(&["none"], "LoRA trains no biases")),
    ("lora_weight_path", Only(NOTHING, "--init_adapter starts from an adapter")),
    ("pretrain_mm_mlp_adapter", Only(NOTHING, "--model_name_or_path takes the model that the first stage wrote, projector included")),
    ("bits", Sets(&[("16", NOT_ROUNDED), ("32", NOT_ROUNDED), ("8", &["load_in_8bit=true", "load_in_4bit=false"]), ("4", &["load_in_8bit=false", "load_in_4bit=true"])], "the base is held as it is, or in 8 or 4 bits")),
    ("double_quant", SameAs("bnb_4bit_use_double_quant")),
    ("quant_type", Only(&["nf4"], NF4_ONLY)),
    ("version", Only(NOTHING, "the chat template is the model's own; conversations are made by preprocess shards")),
    ("vision_tower", Only(NOTHING, "preprocess model joins vision tower and language model; give --model_name_or_path its output")),
    ("mm_projector_type", Only(&["mlp2x_gelu"], "the projector is LLaVA 1.5's")),
    ("mm_vision_select_layer", Only(NOTHING, "it is the model's vision_feature_layer; preprocess model sets it")),
    ("mm_vision_select_feature", Only(NOTHING, "it is the model's vision_feature_select_strategy; preprocess model sets it")),
    ("mm_use_im_start_end", Only(FALSE, "an image is one <image> token")),
    ("mm_use_im_patch_token", Only(FALSE, "an image is one <image> token")),
    ("image_folder", Only(NOTHING, PREPROCESS)),
    ("image_aspect_ratio", Only(NOTHING, PREPROCESS)),
    ("lazy_preprocess", NoEffect(PREPROCESS)),
    ("is_multimodal", NoEffect("rows have images where the shards have them")),
    ("cache_dir", NoEffect("HF_HOME says where models from Hugging Face are kept")),
    ("attn_implementation", NoEffect("attention is packed and never makes a T × T matrix")),
    ("mpt_attn_impl", NoEffect("attention is packed and never makes a T × T matrix")),
];

/// A command line of `train`'s own options, and messages about the others.
#[derive(Debug, Default, PartialEq)]
pub struct Translated {
    /// The words that are left.
    pub words: Vec<OsString>,
    /// Options that have no effect, each with the reason.
    pub notes: Vec<String>,
}

/// What becomes of an option, by its name with underscores.
pub fn answer(name: &str) -> Option<Answer> {
    TRAINER_OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, answer)| *answer)
}

/// Words of other programs, of this project's too, for options of `train`; the suggestion where one of them is given.
const OTHER_WORDS: [(&[&str], &str); 13] = [
    (&["model", "model-name", "model-path", "base-model"], "model_name_or_path"),
    (&["data", "dataset", "shards", "train-data", "data-dir"], "data_path"),
    (&["output", "out", "save-dir", "output-path"], "output_dir"),
    (&["lr"], "learning_rate"),
    (&["epochs", "num-epochs", "epoch"], "num_train_epochs"),
    (&["steps", "num-steps", "max-train-steps"], "max_steps"),
    (&["batch-size", "micro-batch-size", "train-batch-size"], "per_device_train_batch_size"),
    (&["accumulation", "grad-accum", "accumulation-steps"], "gradient_accumulation_steps"),
    (&["lora", "finetuning-type", "tuner-type", "method"], "train_type"),
    (&["resume"], "resume_from_checkpoint"),
    (&["adapter", "adapter-name-or-path"], "init_adapter"),
    (&["force-overwrite", "overwrite"], "overwrite_output_dir"),
    (&["num-processes", "ranks", "num-gpus", "world-size"], "nproc"),
];

/// The option that is meant by another program's word for it, in hyphens.
pub fn meant(name: &str) -> Option<&'static str> {
    OTHER_WORDS.iter().find(|(words, _)| words.contains(&name)).map(|(_, ours)| *ours)
}

/// The table for people, at the end of `train --help`.
pub fn help() -> String {
    let mut text = "Options of the Hugging Face Trainer and of LLaVA's scripts:\n".to_string();
    for (name, answer) in TRAINER_OPTIONS {
        let answer = match answer {
            SameAs(ours) => format!("the same as --{}", ours.replace('_', "-")),
            NoEffect(why) => format!("accepted without effect: {why}"),
            Sets(values, why) => {
                format!("{}: {why}", values.iter().map(|(value, _)| *value).collect::<Vec<_>>().join(", "))
            }
            Only(accepted, why) => match accepted.iter().find(|accepted| !accepted.is_empty()) {
                Some(first) => format!("{first}: {why}"),
                None => why.to_string(),
            },
        };
        text += &format!("      --{:<40} {answer}\n", name.replace('_', "-"));
    }
    text
}

/// Takes the Trainer's options out of a command line; `flags` are our options that are true or false, which the Trainer also
/// takes as `--no_name`; `kept` are names that are options of the subcommand.
///
/// # Errors
/// An option that is not implemented, with the reason.
pub fn translate(words: impl IntoIterator<Item = OsString>, flags: &[String], kept: &[&str]) -> Result<Translated> {
    let mut translated = Translated::default();
    // What values switch off, with the option and its value.
    let mut off: Vec<(&str, String, String)> = Vec::new();
    let mut own = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        own.push(word.clone());
        let text = word.to_str().unwrap_or_default();
        let option = text.strip_prefix("--").filter(|name| !name.is_empty());
        let Some((name, value)) =
            option.map(|option| option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v))))
        else {
            translated.words.push(word);
            continue;
        };
        let name = name.replace('-', "_");
        // Without a value it asks for this program's version; with one it is the conversation's, of LLaVA's scripts.
        let asks_for_version = name == "version" && value.is_none() && !words.peek().is_some_and(|next| is_value(next));
        if asks_for_version {
            translated.words.push(word);
            continue;
        }
        match answer(&name).filter(|_| !kept.contains(&name.as_str())) {
            None => translated.words.push(negated(&name, flags).filter(|_| value.is_none()).unwrap_or(word)),
            Some(SameAs(ours)) => {
                let value = value.map(|value| format!("={value}")).unwrap_or_default();
                translated.words.push(format!("--{ours}{value}").into());
            }
            Some(answer) => {
                let mut values: Vec<String> = value.map(String::from).into_iter().collect();
                while let Some(next) = words.next_if(|next| value.is_none() && is_value(next.as_os_str())) {
                    values.push(next.to_string_lossy().into_owned());
                }
                let value = if value.is_none() && values.is_empty() { "true".to_string() } else { values.join(" ") };
                translated.notes.extend(take(&format!("--{name}"), &name, answer, &value)?);
                for setting in set_by(answer, &value) {
                    off.extend(setting.strip_suffix("=false").map(|option| (option, name.clone(), value.clone())));
                    translated.words.push(format!("--{setting}").into());
                }
            }
        }
    }
    for (option, name, value) in off {
        if is_switched_on(&own, option) {
            let found = format!("{value}, and --{option}");
            return Err(Error::invalid(format!("--{name}"), found, "one of the two", "remove one"));
        }
    }
    Ok(translated)
}

/// Whether the last of the words for an option that is true or false asks for it.
fn is_switched_on(words: &[OsString], option: &str) -> bool {
    let is_on = |(index, word): (usize, &OsString)| {
        let name = word.to_str()?.strip_prefix("--")?;
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        let next = words.get(index + 1).filter(|next| is_value(next)).and_then(|next| next.to_str());
        (name.replace('-', "_") == option).then(|| value.or(next).is_none_or(|value| is_same("true", value)))
    };
    words.iter().enumerate().filter_map(is_on).next_back().unwrap_or(false)
}

/// Whether a word is an option's value: no option, and not the recipe, which is the only other thing there may be.
fn is_value(word: &OsStr) -> bool {
    let text = word.to_string_lossy();
    !text.starts_with("--") && !text.ends_with(".toml")
}

/// The options of ours that a value sets.
fn set_by(answer: Answer, value: &str) -> &'static [&'static str] {
    let Sets(values, _) = answer else { return &[] };
    values.iter().find(|(accepted, _)| is_same(accepted, value)).map_or(&[], |(_, options)| options)
}

fn negated(name: &str, flags: &[String]) -> Option<OsString> {
    let flag = name.strip_prefix("no_").filter(|name| flags.iter().any(|flag| flag == name))?;
    Some(format!("--{flag}=false").into())
}

/// Accepts a value, with a note where it has no effect, or refuses it; `place` is where it was given.
///
/// # Errors
/// A value that is not implemented.
pub fn take(place: &str, name: &str, answer: Answer, value: &str) -> Result<Option<String>> {
    match answer {
        Only(accepted, why) if !accepted.iter().any(|accepted| is_same(accepted, value)) => {
            let words: Vec<&str> = accepted.iter().filter(|accepted| !accepted.is_empty()).copied().collect();
            let expected = format!("{} ({why})", words.join(" or "));
            Err(Error::invalid(place, value, expected, format!("leave {name} out")))
        }
        Sets(accepted, why) if !accepted.iter().any(|(accepted, _)| is_same(accepted, value)) => {
            let words: Vec<&str> = accepted.iter().map(|(accepted, _)| *accepted).collect();
            Err(Error::invalid(place, value, format!("{} ({why})", words.join(" or ")), format!("leave {name} out")))
        }
        NoEffect(why) => Ok(Some(format!("{name} has no effect: {why}"))),
        Only(..) | SameAs(_) | Sets(..) => Ok(None),
    }
}

/// Equal as words in any case, as numbers, or as true and false.
pub(crate) fn is_same(accepted: &str, value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    let word = match value.as_str() {
        "null" => "none",
        "1" | "yes" | "y" | "t" if accepted == "true" => "true",
        "0" | "no" | "n" | "f" if accepted == "false" => "false",
        value => value,
    };
    let numbers = accepted.parse::<f64>().ok().zip(word.parse::<f64>().ok());
    accepted == word || numbers.is_some_and(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn translated(line: &str) -> Result<Translated> {
        translate(words(line), &["bf16".to_string(), "remove_unused_columns".to_string()], &["vision_tower"])
    }

    #[test]
    fn names_are_in_the_table_once_and_not_ours() {
        let ours = serde_json::to_value(crate::config::tests::defaults()).expect("JSON");
        for (index, (name, answer)) in TRAINER_OPTIONS.iter().enumerate() {
            assert!(TRAINER_OPTIONS[..index].iter().all(|(other, _)| other != name), "{name} twice");
            assert!(ours.get(name).is_none(), "{name} is an option of ours");
            let others = match answer {
                SameAs(other) => vec![*other],
                Sets(values, _) => {
                    let settings = values.iter().flat_map(|(_, settings)| settings.iter());
                    settings.filter_map(|setting| setting.split('=').next()).collect()
                }
                _ => Vec::new(),
            };
            assert!(others.iter().all(|other| ours.get(other).is_some()), "{name}: {others:?} are options of ours");
        }
    }

    #[test]
    fn every_kind_of_answer() {
        let line = "train r.toml --bits 4 --optim adamw_torch_fused --tf32 True --max_steps 3 --ddp-timeout=1800 --label_names a b \
            --do_train --label_smoothing_factor 0.0 --no_remove_unused_columns --bf16 --vision_tower clip --accelerator_config {} x.toml";
        let Translated { words: left, notes } = translated(line).expect("accepted");
        let expected = "train r.toml --load_in_8bit=false --load_in_4bit=true --max_steps 3 --collective_timeout_seconds=1800 \
            --remove_unused_columns=false --bf16 --vision_tower clip x.toml";
        assert_eq!(left, words(expected));
        let told: Vec<&str> = notes.iter().filter_map(|note| note.split_whitespace().next()).collect();
        assert_eq!(told, ["tf32", "label_names"]);
    }

    /// Its bits and an option that says otherwise are refused, in any order; without a contradiction the bits count.
    #[test]
    fn bits_contradict_an_option_that_says_otherwise() {
        for line in [
            "--bits 16 --load_in_8bit true",
            "--load-in-4bit=True --bits 32",
            "--load_in_8bit --bits=16",
            "--bits 4 --load_in_8bit 1",
        ] {
            let error = translated(line).expect_err(line).to_string();
            assert!(error.starts_with("--bits: found ") && error.contains(", and --load_in_"), "{line}: {error}");
        }
        let off = "--load_in_8bit=false --load_in_4bit=false";
        for line in
            ["--load_in_8bit false --bits 16", "--load_in_8bit --load_in_8bit=0 --bits 16", "--no_bf16 --bits 16"]
        {
            let expected =
                format!("{} {off}", line.trim_end_matches(" --bits 16").replace("--no_bf16", "--bf16=false"));
            assert_eq!(translated(line).expect(line).words, words(&expected), "{line}");
        }
    }

    #[test]
    fn the_programs_own_version_can_be_asked_for() {
        let own = ["train --version", "train -V", "train --help", "train plan --help"];
        for line in own {
            assert_eq!(translated(line).expect(line), Translated { words: words(line), notes: Vec::new() });
        }
        assert!(translated("train --version v1").is_err() && translated("train --version=plain").is_err());
    }

    #[test]
    fn what_is_not_done_is_refused_with_the_reason() {
        for (line, reason) in [
            ("--optim adafactor", "torch's AdamW"),
            ("--optim=paged_adamw_8bit", "torch's AdamW"),
            ("--fsdp full_shard auto_wrap", "ZeRO-2"),
            ("--label_smoothing_factor 0.1", "cross entropy"),
            ("--push_to_hub", "nothing is pushed"),
            ("--dataloader_drop_last True", "every row"),
            ("--no_cuda", "--device"),
            ("--save_safetensors 0", "safetensors"),
            ("--local_rank=1", "mpirun"),
            ("--bits 2", "8 or 4 bits"),
            ("--quant_type fp4", "NF4"),
            ("--bnb_4bit_quant_type fp4", "NF4"),
            ("--data_seed 7", "--seed"),
        ] {
            let error = translated(line).expect_err(line).to_string();
            assert!(error.contains(reason) && error.starts_with("--"), "{line}: {error}");
        }
    }
}
