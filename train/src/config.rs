//! Every setting of a run: one struct is the command line, the recipe's `[train]` table and the record kept with the run.

mod checks;
mod choices;
mod derived;

pub use choices::{
    Accumulate, CacheVisionFeatures, CollectiveChoice, Extent, LossNormalization, ReportTo, ScheduleType, Strategy,
    TrainType,
};

use crate::interval::Interval;
use crate::schedule::{DeepspeedSchedule, SchedulerKwargs};
use crate::trainer_options::TRAINER_OPTIONS;
use base::names::PROJECTOR;
use clap::ArgAction;
use clap::builder::{OsStringValueParser, TypedValueParser};
use cli::options::{Kind, Options};
use cli::values::boolean;
use cli::weighted::WeightedFolders;
use metrics::Metric;
use serde::{Deserialize, Deserializer, Serialize};
use std::convert::Infallible;
use std::path::PathBuf;
use store::adapter::LayerPattern;

/// How a run begins, as `resume_from_checkpoint` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Anew.
    No,
    /// From the newest valid checkpoint of the run in `output_dir`.
    Newest,
    /// From a checkpoint's folder.
    From(PathBuf),
}

/// Settings of `train`. Each option's `under_score` spelling works too, on the command line and in a recipe's `[train]`.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Model directory to start from (a complete LLaVA, as `preprocess model` writes), or its name on Hugging Face.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = any_path())]
    pub model_name_or_path: PathBuf,
    /// Shards to train on (as `preprocess shards` writes). Several folders with weights: `a:1.0,b:0.3` passes once over a and over
    /// three tenths of b in an epoch; a folder without a weight has 1.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub data_path: WeightedFolders,
    /// Folder of the run: checkpoints, metrics and the final model or adapter.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = any_path())]
    pub output_dir: PathBuf,
    /// Which parts are trained.
    #[arg(long, value_enum, default_value_t = TrainType::UseLora)]
    pub train_type: TrainType,
    /// Ranks as threads of this process. Under mpirun or srun each process is a rank instead.
    #[arg(long, default_value_t = 1)]
    pub nproc: usize,
    /// DeepSpeed ZeRO-2 JSON file (or its text); its values and `auto` are honoured, unknown keys are refused.
    /// `None` or an empty text: none.
    #[arg(long, value_parser = any_path())]
    pub deepspeed: Option<PathBuf>,
    /// Compute in bf16 where the device can; the CPU computes in f32. Master weights, moments and accumulated gradients are
    /// f32 always.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub bf16: bool,
    /// Not supported: needs loss scaling, which bf16 does not.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub fp16: bool,
    /// Passes over the data, above 0; may be a fraction. Ignored when `max_steps` is positive.
    #[arg(long, default_value_t = 3.0)]
    pub num_train_epochs: f64,
    /// Optimizer steps in all; ≤ 0: as many as `num_train_epochs` needs.
    #[arg(long, default_value_t = -1)]
    pub max_steps: i64,
    /// Rows of a micro-batch, per rank.
    #[arg(long, default_value_t = 8)]
    pub per_device_train_batch_size: usize,
    /// Rows of an evaluation batch, per rank.
    #[arg(long, default_value_t = 8)]
    pub per_device_eval_batch_size: usize,
    /// Micro-batches per optimizer step.
    #[arg(long, default_value_t = 1)]
    pub gradient_accumulation_steps: usize,
    /// Highest learning rate, at least 0.
    #[arg(long, default_value_t = 5e-5)]
    pub learning_rate: f64,
    /// Highest learning rate of the projector, at least 0; it follows the schedule as `learning_rate` does, which it has unless
    /// this is given.
    #[arg(long)]
    #[serde(default)]
    pub mm_projector_lr: Option<f64>,
    /// The same for the vision tower, where it is trained.
    #[arg(long)]
    #[serde(default)]
    pub vision_tower_lr: Option<f64>,
    /// Decoupled weight decay of everything but biases and norm weights.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// AdamW's decay of the first moment, at least 0 and below 1.
    #[arg(long, default_value_t = 0.9)]
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment, at least 0 and below 1.
    #[arg(long, default_value_t = 0.999)]
    pub adam_beta2: f64,
    /// AdamW's epsilon, outside the root, after bias correction; above 0.
    #[arg(long, default_value_t = 1e-8)]
    pub adam_epsilon: f64,
    /// Global gradient norm above which gradients are scaled down; 0: never.
    #[arg(long, default_value_t = 1.0)]
    pub max_grad_norm: f64,
    /// Learning-rate schedule.
    #[arg(long, value_enum, default_value_t = ScheduleType::Linear)]
    pub lr_scheduler_type: ScheduleType,
    /// Arguments of the schedule by transformers' names, as JSON: `{"min_lr": 1e-6}` for `cosine_with_min_lr`.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    #[serde(default)]
    pub lr_scheduler_kwargs: SchedulerKwargs,
    /// The schedule of the DeepSpeed file, in place of `lr_scheduler_type`.
    #[arg(skip)]
    #[serde(default)]
    pub deepspeed_scheduler: Option<DeepspeedSchedule>,
    /// Steps of linear warm-up; below 1: that fraction of all steps.
    #[arg(long, default_value_t = 0.0)]
    pub warmup_steps: f64,
    /// Fraction of all steps to warm up, if `warmup_steps` is 0.
    #[arg(long, default_value_t = 0.0)]
    pub warmup_ratio: f64,
    /// Half cosines of `cosine_with_restarts`.
    #[arg(long, default_value_t = 1)]
    pub lr_num_cycles: usize,
    /// Exponent of `polynomial`.
    #[arg(long, default_value_t = 1.0)]
    pub lr_power: f64,
    /// Final learning rate of `polynomial`.
    #[arg(long, default_value_t = 1e-7)]
    pub lr_end: f64,
    /// How the loss is averaged.
    #[arg(long, value_enum, default_value_t = LossNormalization::GlobalTokens)]
    pub loss_normalization: LossNormalization,
    /// Where gradients accumulate over micro-steps.
    #[arg(long, value_enum, default_value_t = Accumulate::Shard)]
    pub accumulate: Accumulate,
    /// Recompute each block in the backward pass instead of keeping its activations.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub gradient_checkpointing: bool,
    /// Compute the features of a frozen vision tower once for each image and keep them, 2 bytes a value, in a file beside the
    /// shards that later epochs and runs use: f16 or bf16. The run says how large it gets, and does not start where it would
    /// not fit.
    #[arg(long, value_enum, default_value_t = CacheVisionFeatures::No, num_args = 0..=1, default_missing_value = "f16")]
    pub cache_vision_features: CacheVisionFeatures,
    /// Longest row, tokens with images expanded; longer rows are an error before training. 0: the model's own limit.
    #[arg(long, default_value_t = 0)]
    pub model_max_length: usize,
    /// Rows in a new random order every epoch; false: in the order of the shards.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub shuffle: bool,
    /// Seed of order, LoRA initialisation and dropout.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Loader threads per rank; 0: rows are read by the training thread.
    #[arg(long, default_value_t = 2)]
    pub dataloader_num_workers: usize,
    /// Micro-batches that each loader thread may be ahead.
    #[arg(long, default_value_t = 2)]
    pub dataloader_prefetch_factor: usize,
    /// Accepted for the original command lines: host memory needs no pinning on a CPU.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub dataloader_pin_memory: bool,
    /// Accepted for the original command lines: loader threads always live as long as the run.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub dataloader_persistent_workers: bool,
    /// Accepted for the original command lines: shards have no unused columns.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub remove_unused_columns: bool,
    /// Steps between lines of `metrics.jsonl`; below 1: that fraction of all steps.
    #[arg(long, default_value_t = Interval::steps(10))]
    pub logging_steps: Interval,
    /// A line for the first step, too.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default)]
    pub logging_first_step: bool,
    /// When checkpoints are written. With `steps` and `epoch` the last step is saved, too.
    #[arg(long, value_enum, default_value_t = Strategy::Steps)]
    pub save_strategy: Strategy,
    /// Steps between checkpoints; below 1: that fraction of all steps.
    #[arg(long, default_value_t = Interval::steps(500))]
    pub save_steps: Interval,
    /// Checkpoints kept, the newest ones (and the best, with `load_best_model_at_end`); 0, -1 or None: all.
    #[arg(long, default_value = "0", value_parser = parse_limit)]
    #[serde(deserialize_with = "limit")]
    pub save_total_limit: usize,
    /// When the validation rows are evaluated. With `steps` and `epoch` also after the last step.
    #[arg(long, visible_alias = "evaluation-strategy", value_enum, default_value_t = Strategy::No)]
    #[serde(alias = "evaluation_strategy")]
    pub eval_strategy: Strategy,
    /// Steps between evaluations; below 1: that fraction of all steps; 0: `logging_steps`.
    #[arg(long, default_value_t = Interval::NONE)]
    pub eval_steps: Interval,
    /// Sample captions at every evaluation: of the first so many validation rows. They go to `captions-<step>.jsonl`.
    #[arg(long, default_value_t = 4)]
    pub eval_captions: usize,
    /// Score answers to the first question of held-out rows at every evaluation, as `infer eval` does; the figures are
    /// `eval_exact_match`, `eval_accuracy`, … in `metrics.jsonl`.
    #[arg(long, value_enum)]
    #[serde(default)]
    pub eval_metric: Option<Metric>,
    /// Rows that `eval_metric` takes: the first so many of the validation rows; 0: all. `answers-<step>.jsonl` has their ids and answers.
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub eval_metric_samples: usize,
    /// Longest answer for `eval_metric`, tokens.
    #[arg(long, default_value_t = EVAL_MAX_NEW_TOKENS)]
    #[serde(default = "eval_max_new_tokens")]
    pub eval_max_new_tokens: usize,
    /// What `load_best_model_at_end` and `early_stopping_patience` go by: a figure of `eval_metric`, or `loss` (the default).
    #[arg(long)]
    #[serde(default)]
    pub metric_for_best_model: Option<String>,
    /// Whether a larger value of it is better; default: unless its name ends with `loss`.
    #[arg(long, value_parser = boolean)]
    #[serde(default)]
    pub greater_is_better: Option<bool>,
    /// Put the weights with the best evaluation into `output_dir` at the end.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub load_best_model_at_end: bool,
    /// Stop after so many evaluations in a row without a better value; 0: never.
    #[arg(long, default_value_t = 0)]
    pub early_stopping_patience: usize,
    /// Where progress is also reported: `none`, or `tensorboard` for event files beside `metrics.jsonl`.
    #[arg(long, default_value = "none")]
    pub report_to: ReportTo,
    /// File of the metrics; default `output_dir/metrics.jsonl`.
    #[arg(long)]
    pub metrics: Option<PathBuf>,
    /// `true`: go on from the newest valid checkpoint of the run in `output_dir` (a folder without a run: begin one); or a
    /// checkpoint's folder. What defines the trained function (model, data, train_type, LoRA settings, seed, shuffle,
    /// loss_normalization) must be that of the run.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub resume_from_checkpoint: Option<String>,
    /// Begin a new run in an `output_dir` that holds another one, and replace its output, metrics and captions. Its checkpoints
    /// stay and are not used; one of a step that the new run saves too is renamed `checkpoint-STEP.of-RUN`. Without effect together
    /// with `resume_from_checkpoint true`.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub overwrite_output_dir: bool,
    /// Resume with another number of rows a step than the run has. Without it, accumulation is changed so that the rows stay.
    /// With it, epochs end at the same rows and the schedule goes on by the fraction done.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub allow_global_batch_change: bool,
    /// Start although the plan says that memory, disk or validation rows do not suffice.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default)]
    pub force: bool,
    /// PEFT adapter directory to go on from (`use_lora`); its rank, targets, modules to save and dropout are taken from it.
    #[arg(long)]
    pub init_adapter: Option<PathBuf>,
    /// LoRA rank.
    #[arg(long, default_value_t = 32)]
    pub lora_r: usize,
    /// LoRA scale is `lora_alpha / lora_r`, or `lora_alpha / √lora_r` with `use_rslora`.
    #[arg(long, default_value_t = 8.0)]
    pub lora_alpha: f64,
    /// Dropout on the input of the LoRA branch, probability: at least 0 and below 1. With `init_adapter` the adapter's, unless this
    /// is given.
    #[arg(long, default_value_t = 0.05)]
    pub lora_dropout: f64,
    /// Rank-stabilised LoRA: the scale falls with the root of the rank.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default)]
    pub use_rslora: bool,
    /// DoRA: the length of each row of a weight with LoRA is a trained magnitude. Slower than LoRA, and saved and merged as in PEFT.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default)]
    pub use_dora: bool,
    /// Projections of the language model that get LoRA, with commas between; `lm_head`: its output weights. `all-linear`: every linear layer but the output
    /// weights, as in PEFT: those of the language model, of the vision tower, and of a projector that is not in
    /// `modules_to_save`.
    #[arg(long, value_delimiter = ',', default_value = "q_proj,k_proj,v_proj,o_proj", value_parser = trimmed)]
    pub lora_target_modules: Vec<String>,
    /// Modules that are trained in full beside LoRA and saved in the adapter, as in PEFT: ends of module paths with commas
    /// between (`multi_modal_projector,embed_tokens,lm_head`); `None` or an empty text: none, so that the projector gets LoRA
    /// with `all-linear`, and is frozen without.
    #[arg(long, value_delimiter = ',', default_value = PROJECTOR, value_parser = trimmed)]
    #[serde(default = "projector_alone")]
    pub modules_to_save: Vec<String>,
    /// Ranks of single layers as JSON, as in PEFT: regular expressions for the ends of their paths, of which the first that fits
    /// counts (`{"layers.0.self_attn.q_proj": 16, "v_proj": 8}`).
    #[arg(long, value_name = "JSON", default_value = "{}")]
    #[serde(default)]
    pub rank_pattern: LayerPattern<usize>,
    /// The same for `lora_alpha`.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    #[serde(default)]
    pub alpha_pattern: LayerPattern<f64>,
    /// LoRA on the vision tower's q, k, v as well.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub lora_vision: bool,
    /// Hold the frozen matrices of the language model's layers in 8-bit integers, one scale for each output channel (`use_lora`,
    /// `projector`). Products are computed in the run's dtype; what is written belongs to the model as it is stored.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default)]
    pub load_in_8bit: bool,
    /// The same in 4 bits: NF4 in blocks of 64 values, as bitsandbytes rounds (QLoRA).
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default)]
    pub load_in_4bit: bool,
    /// With `load_in_4bit`: hold the blocks' largest magnitudes in 8 bits, too.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    #[serde(default = "yes")]
    pub bnb_4bit_use_double_quant: bool,
    /// Layers that stay as they are where the others are rounded, as in transformers: the beginnings (regular expressions) or the
    /// ends of their paths, with commas between (`down_proj,model.language_model.layers.0`); `None`: none.
    #[arg(long, value_delimiter = ',', value_parser = trimmed)]
    #[serde(default)]
    pub llm_int8_skip_modules: Vec<String>,
    /// Longest time that a rank may wait for another one without any progress of it before the run is ended, seconds.
    /// A rank that loads, hashes, evaluates or saves makes progress.
    #[arg(long, default_value_t = 600)]
    pub collective_timeout_seconds: u64,
    /// What exchanges gradients and parameters between ranks: NCCL from GPU to GPU, or threads and MPI through the host's memory. What ranks
    /// agree on goes through threads or MPI always.
    #[arg(long, value_enum, default_value_t = CollectiveChoice::Auto)]
    #[serde(default)]
    pub collective: CollectiveChoice,
    /// Ranks of a host. Where there are several hosts with several ranks each, MPI ranks exchange within each host first, then between
    /// them, which sums in another order than one host; threads take that order where this is given
    /// [default: the hosts that MPI ranks are on; threads: all on one].
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub ranks_per_host: Option<usize>,
    /// Where to compute: `auto` (the GPU that `train devices` names as such, else the CPU), `cpu`, `cuda:N` (rank r of a machine on
    /// GPU N + r; needs a build with `--features cuda`), or `vulkan:N`, on macOS `metal:N` (need a build with `--features wgpu`).
    #[arg(long, default_value = AUTO)]
    pub device: String,
}

fn projector_alone() -> Vec<String> {
    vec![PROJECTOR.to_string()]
}

/// The default of an option that older runs did not have.
fn yes() -> bool {
    true
}

const EVAL_MAX_NEW_TOKENS: usize = 64;

/// Of records that were written before there was such a setting.
fn eval_max_new_tokens() -> usize {
    EVAL_MAX_NEW_TOKENS
}

/// A word of a list that may have spaces behind its commas.
fn trimmed(text: &str) -> Result<String, Infallible> {
    Ok(text.trim().to_string())
}

/// A path that may be empty: whether one is needed depends on the recipe, which is read later.
fn any_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// `--device`: the best that the machine has.
pub const AUTO: &str = "auto";

/// What options name. A recipe's runner learns from it what a run reads and writes.
pub const KINDS: [(&str, Kind); 6] = [
    ("model_name_or_path", Kind::ModelOrRepository),
    ("data_path", Kind::WeightedShards),
    ("output_dir", Kind::Output),
    ("deepspeed", Kind::FileOrText),
    ("init_adapter", Kind::Model),
    ("report_to", Kind::Words),
];

/// The options, those of the Trainer among them.
pub fn options() -> Options {
    let command = <Config as clap::Args>::augment_args(clap::Command::new("train"));
    Options::of("train", &command, &KINDS).with_names(TRAINER_OPTIONS.iter().map(|(name, _)| *name))
}

/// A limit as the Trainer takes it: `None` and what is not positive are no limit.
fn parse_limit(text: &str) -> Result<usize, String> {
    match text {
        "None" | "none" | "null" => Ok(0),
        _ => match text.parse::<i64>() {
            Ok(limit) => Ok(usize::try_from(limit).unwrap_or(0)),
            Err(_) => Err(format!("found {text:?}, expected a whole number, or None for no limit")),
        },
    }
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    i64::deserialize(deserializer).map(|limit| usize::try_from(limit).unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    /// The settings of an empty command line.
    pub(crate) fn defaults() -> Config {
        let matches = Config::augment_args(Command::new("train")).get_matches_from(["train"]);
        Config::from_arg_matches(&matches).expect("the defaults are settings")
    }

    #[test]
    fn kinds_are_of_options() {
        let command = Config::augment_args(Command::new("train"));
        assert_eq!(cli::options::without_option(&command, &KINDS), Vec::<&str>::new());
    }

    #[test]
    fn limits_and_reports_are_read_as_the_trainer_reads_them() {
        for (text, expected) in [("3", Ok(3)), ("-1", Ok(0)), ("None", Ok(0)), ("0", Ok(0)), ("two", Err(()))] {
            assert_eq!(parse_limit(text).map_err(|_| ()), expected, "{text}");
        }
        for (text, expected) in [
            ("none", Some(ReportTo::None)),
            ("all", Some(ReportTo::Tensorboard)),
            ("tensorboard,none", Some(ReportTo::Tensorboard)),
            ("wandb", None),
            ("tensorboard,mlflow", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
