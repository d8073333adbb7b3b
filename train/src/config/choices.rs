//! Options that are one of a few names.

use crate::order::Cursor;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// How much of a part of the model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Nothing.
    Frozen,
    /// The adapter's matrices in it.
    Lora,
    /// All of its parameters.
    Whole,
}

/// How much a train type trains of each part of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainedParts {
    /// The vision tower; [`Extent::Lora`] with `lora_vision` only.
    pub vision_tower: Extent,
    /// The projector.
    pub projector: Extent,
    /// The language model.
    pub language_model: Extent,
}

/// Makes the enum of a table of train types; everything that depends on the train type asks [`TrainType::parts`].
macro_rules! train_types {
    ($($(#[$doc:meta])* $name:ident => $vision_tower:ident, $projector:ident, $language_model:ident;)*) => {
        /// Which parts of the model are trained.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
        #[value(rename_all = "snake_case")]
        #[serde(rename_all = "snake_case")]
        pub enum TrainType {
            $($(#[$doc])* $name,)*
        }

        impl TrainType {
            /// How much is trained of each part.
            pub const fn parts(self) -> TrainedParts {
                let (vision_tower, projector, language_model) = match self {
                    $(Self::$name => (Extent::$vision_tower, Extent::$projector, Extent::$language_model),)*
                };
                TrainedParts { vision_tower, projector, language_model }
            }
        }
    };
}

train_types! {
    //             vision tower, projector, language model
    /// LoRA on the language model's attention, and the whole projector.
    UseLora =>      Lora,         Whole,     Lora;
    /// Everything.
    None =>         Whole,        Whole,     Whole;
    /// Projector and language model.
    FreezeVision => Frozen,       Whole,     Whole;
    /// The projector alone.
    Projector =>    Frozen,       Whole,     Frozen;
}

impl TrainType {
    /// Whether an adapter is trained, and written in place of the model.
    pub fn uses_lora(self) -> bool {
        let TrainedParts { vision_tower, projector, language_model } = self.parts();
        [vision_tower, projector, language_model].contains(&Extent::Lora)
    }
}

/// When something recurring (saving, evaluating) happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many optimizer steps.
    Steps,
    /// At the end of every epoch, and of the part of an epoch that a run ends with.
    Epoch,
}

impl Strategy {
    /// Whether it is time, where transformers' Trainer acts: `ends` says that no step follows, which ends an epoch, too, whether
    /// it is complete or not, and counts as one of the steps.
    pub fn is_due(self, global_step: u64, every: u64, cursor: Cursor, ends: bool) -> bool {
        let due = match self {
            Self::No => return false,
            Self::Steps => global_step.is_multiple_of(every),
            Self::Epoch => cursor.position == 0,
        };
        global_step > 0 && (due || ends)
    }
}

/// How losses of micro-batches become one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum LossNormalization {
    /// Sum over supervised tokens ÷ supervised tokens of the global batch.
    GlobalTokens,
    /// Mean over micro-batches of each micro-batch's mean: depends on how the batch is split.
    MicroBatchMean,
}

/// What accumulates gradients over micro-steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Accumulate {
    /// The rank's reduced slice (memory ÷ ranks, a reduce-scatter every micro-step).
    Shard,
    /// The whole local gradient (one reduce-scatter a step).
    Local,
}

/// What exchanges gradients and parameters between ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum CollectiveChoice {
    /// NCCL between GPUs where it is there, else the host.
    #[default]
    Auto,
    /// Threads or MPI, through the host's memory.
    Host,
    /// NCCL, or an error.
    Nccl,
}

/// Whether, and as what, the features of a frozen vision tower are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum CacheVisionFeatures {
    /// Computed whenever a row is trained on.
    #[value(alias = "false")]
    #[serde(alias = "false")]
    No,
    /// Rounded to f16.
    #[value(alias = "true")]
    #[serde(alias = "true")]
    F16,
    /// Rounded to bf16.
    Bf16,
}

/// Learning rate over the run, as transformers' `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ScheduleType {
    /// Down to 0 in a line.
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// `lr_num_cycles` half cosines, each from the top.
    CosineWithRestarts,
    /// Power `lr_power` down to `lr_end`.
    Polynomial,
    /// Unchanged, without warm-up.
    Constant,
    /// Unchanged after warm-up.
    ConstantWithWarmup,
    /// `1/√step`.
    InverseSqrt,
    /// Half a cosine down to `min_lr` or `min_lr_rate` of `lr_scheduler_kwargs`.
    CosineWithMinLr,
    /// The same, from a warm-up that begins above 0.
    CosineWarmupWithMinLr,
    /// Unchanged between warm-up and a fall of `num_decay_steps` steps.
    WarmupStableDecay,
    /// Refused: the rate would depend on evaluations.
    ReduceLrOnPlateau,
    /// Refused: the rate would depend on losses.
    Greedy,
}

/// Where progress is also reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum ReportTo {
    /// `metrics.jsonl` only.
    None,
    /// TensorBoard event files beside it.
    Tensorboard,
}

impl FromStr for ReportTo {
    type Err = String;

    /// Names as the Trainer takes them, with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Self::None;
        for name in text.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty()) {
            match name.to_ascii_lowercase().as_str() {
                "none" => {}
                "tensorboard" | "all" => found = Self::Tensorboard,
                _ => {
                    return Err(format!(
                        "no report to {name}: expected none or tensorboard (metrics.jsonl has all numbers, a JSON line a step)"
                    ));
                }
            }
        }
        Ok(found)
    }
}

impl TryFrom<String> for ReportTo {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
