//! The command line's options, as written; each subcommand checks its own.

use crate::serve::args::ServeArgs;
use base::{Error, Result};
use chat::dataset::DEFAULT_QUESTION;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use cli::check::CheckArgs;
use cli::options::Kind;
use cli::pages::Pages;
use cli::values::{at_least_1, share};
use kernels::device::DeviceKind;
use metrics::Metric;
use model::sampling::{OutOfRange, SamplingConfig};
use std::path::PathBuf;
use store::adapter;
use store::hub::{self, Wanted};

/// Question about the pictures of a folder: one of the real job's dataset.
const QUESTION_OF_FOLDERS: &str = "Give a brief description of the image.";

/// Generate, caption, score, merge and serve with the checkpoints of a run.
#[derive(Parser, Debug)]
#[command(name = "infer", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Answer one question, with or without a picture; the answer streams to stdout.
    Generate(GenerateArgs),
    /// Caption every picture of a folder, a dataset or shards into a JSONL file; started again, it continues the file.
    Caption(CaptionArgs),
    /// Answer the questions of a file about pictures, and score the answers; started again, it continues the file of answers.
    Eval(EvalArgs),
    /// Write the loss sum and the number of supervised tokens of every row of the shards, and print the total.
    Score(ScoreArgs),
    /// Merge an adapter into its model and write a full checkpoint.
    Merge(MergeArgs),
    /// Round the model's language model to NF4 and write it as bitsandbytes does, for training and for transformers.
    Quantize(QuantizeArgs),
    /// Write the model as two GGUF files for llama.cpp and Ollama: language model, and vision tower with projector (mmproj).
    Export(ExportArgs),
    /// Serve a web page and an OpenAI-compatible API.
    Serve(ServeArgs),
    /// Print the options of a subcommand as JSON, for programs that run this one.
    #[command(hide = true)]
    Options(OptionsArgs),
    /// Say what of a command line would be refused, for programs that run this one.
    #[command(hide = true)]
    CheckOptions(CheckArgs),
    /// Completions and man pages.
    #[command(flatten)]
    Pages(Pages),
}

/// Options of `infer options`.
#[derive(Args, Debug)]
pub struct OptionsArgs {
    /// `caption`, `eval`, ….
    pub subcommand: String,
}

/// What options of `infer caption` name.
pub const CAPTION_KINDS: [(&str, Kind); 7] = [
    ("model", Kind::ModelOrRepository),
    ("adapter", Kind::Model),
    ("images", Kind::Path),
    ("data", Kind::Path),
    ("shards", Kind::Shards),
    ("references", Kind::Path),
    ("output", Kind::Output),
];

/// What options of `infer eval` name.
pub const EVAL_KINDS: [(&str, Kind); 6] = [
    ("model", Kind::ModelOrRepository),
    ("adapter", Kind::Model),
    ("questions", Kind::Path),
    ("annotations", Kind::Path),
    ("images", Kind::Path),
    ("output", Kind::Output),
];

/// Which model, with which adapter, held how.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Model directory (LLaVA, as transformers reads it); or an adapter's, which is put on the model that it names.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// PEFT adapter directory to put on the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Format of the weights in memory: as stored in the files, f32, or 8-bit integers or NF4 for the language model.
    #[arg(long, value_enum, default_value_t = Weights::Stored)]
    pub weights: Weights,
    /// Short for --weights: 8-bit weights with one scale per output channel, or 4-bit weights as bitsandbytes rounds them.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "weights")]
    pub quantize: Option<Quantization>,
    /// Device: auto (the GPU that `train devices` names as such, else the CPU), cpu, cuda or cuda:N, vulkan or vulkan:N, on macOS
    /// metal or metal:N.
    #[arg(long, default_value = "auto")]
    pub device: DeviceKind,
}

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// As in the files: f32, bf16 or f16.
    Stored,
    /// f32 whatever the files hold.
    F32,
    /// 8-bit integers with one scale per output channel.
    Int8,
    /// 4-bit NormalFloat in blocks of 64, with double quantization; the head in 8-bit integers.
    Nf4,
}

/// Formats of `--quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 8-bit integers with one scale per output channel.
    Int8,
    /// 4-bit NormalFloat in blocks of 64, with double quantization; the head in 8-bit integers.
    Nf4,
}

impl ModelArgs {
    /// The model's directory, and the adapter on it: an adapter that is given as the model stands on its own base.
    ///
    /// # Errors
    /// A directory or repository that cannot be found.
    pub fn placed(&self) -> Result<(PathBuf, Option<PathBuf>)> {
        if self.adapter.is_none()
            && let Some(base) = adapter::base_of(&self.model)?
        {
            return Ok((hub::resolve(&base, Wanted::Llava)?, Some(self.model.clone())));
        }
        Ok((hub::resolve(&self.model, Wanted::Llava)?, self.adapter.clone()))
    }

    /// How to hold the weights, whichever option says so.
    pub fn weights(&self) -> Weights {
        match self.quantize {
            None => self.weights,
            Some(Quantization::Int8) => Weights::Int8,
            Some(Quantization::Nf4) => Weights::Nf4,
        }
    }
}

/// How answers are generated.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = at_least_1)]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0: greedy.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f32,
    /// Sample from the smallest set of tokens whose probabilities sum to this; 1: off.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,
    /// Sample from this many most likely tokens; 0: off.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Divides positive and multiplies negative logits of tokens in the prompt or answer; 1: off.
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub repetition_penalty: f32,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The sampling part, checked.
    ///
    /// # Errors
    /// A value out of range.
    pub fn sampling(&self) -> Result<SamplingConfig> {
        let config = SamplingConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        config.validate().map_err(|OutOfRange { setting, found, expected }| {
            Error::usage(format!("--{setting}"), found, expected, "correct it")
        })?;
        let draws = [
            ("top_p", self.top_p != 1.0, self.top_p.to_string()),
            ("top_k", self.top_k != 0, self.top_k.to_string()),
            ("seed", self.seed != 0, self.seed.to_string()),
        ];
        if let (0.0, Some((option, _, found))) = (self.temperature, draws.into_iter().find(|(_, given, _)| *given)) {
            return Err(Error::usage(
                format!("--{option}"),
                format!("{found}, which has no effect: at temperature 0 the most likely token is taken"),
                "a temperature above 0 beside it",
                format!("add --temperature 0.7, say, or leave --{option} out"),
            ));
        }
        Ok(config)
    }
}

/// Options of `infer generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Picture to ask about; may be given several times, in order.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// The question. `<image>` marks a picture's place; without it pictures precede the question. Other special tokens in it
    /// are text.
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// System prompt; "" is an empty one, as in `preprocess shards --system-prompt ""`.
    #[arg(long, default_value = chat::SYSTEM_PROMPT, value_name = "TEXT")]
    pub system_prompt: String,
    /// How the answer is generated.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print one JSON object (text, finish reason, token counts, seconds, memory) instead of streaming the text.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub json: bool,
}

/// Options of `infer caption`.
#[derive(Args, Debug)]
pub struct CaptionArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the pictures are.
    #[command(flatten)]
    pub source: CaptionSource,
    /// Which rows of the shards.
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    pub split: SplitArg,
    /// JSONL file to write: one line a picture, in order. An existing file is continued if model (by content), pictures
    /// and settings are those recorded in FILE.jsonl.settings.json, and refused otherwise.
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: PathBuf,
    /// Start a new file if the output file exists.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub overwrite: bool,
    /// Pictures decoded together.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least_1)]
    pub batch_size: usize,
    /// Question about pictures of a folder, and about rows of a dataset that have a caption only (other rows, and shards, have their
    /// own): the one of the training. `<image>` marks the picture's place. [default: `Give a brief description of the image.` for
    /// --images, `Describe the picture.`, that of preprocess shards, for --data]
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// System prompt; "" is an empty one (shards have their own).
    #[arg(long, default_value = chat::SYSTEM_PROMPT, value_name = "TEXT")]
    pub system_prompt: String,
    /// JSON list of {"id" or "image", "captions": […]} to compare with (default: references.json of --data, if there is one).
    #[arg(long, value_name = "FILE.json")]
    pub references: Option<PathBuf>,
    /// Only the first N pictures.
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub limit: Option<usize>,
    /// Share of the pictures that may fail (0 to 1); with more, the run ends with an error after all lines are written.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", value_parser = share)]
    pub max_failed: f64,
    /// How captions are generated.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

impl CaptionArgs {
    /// [`Self::prompt`], or the default one for this source.
    pub fn question(&self) -> &str {
        let default = if self.source.data.is_some() { DEFAULT_QUESTION } else { QUESTION_OF_FOLDERS };
        self.prompt.as_deref().unwrap_or(default)
    }
}

/// Where captions' pictures come from: exactly one.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct CaptionSource {
    /// Folder of pictures, in the order of their names, then those of the folders in it.
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Dataset, read as `preprocess shards` reads it (but for Parquet); a row that cannot be used gets a line with its error.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Shards written by `preprocess shards`.
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
}

/// Options of `infer eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Questions: JSON lines of `question_id`, `image`, `text` (LLaVA's, POPE's), VQAv2's `{"questions": […]}`, or a dataset's
    /// chat.json, of which the first question of each row is asked.
    #[arg(long, value_name = "FILE")]
    pub questions: PathBuf,
    /// Folder of the pictures (or the folder of an images.zip).
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Expected answers, where the questions have none: VQAv2's annotations, POPE's labels, captions as in COCO, or a list of
    /// {"id" or "image", "captions": […]}. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub annotations: Vec<PathBuf>,
    /// How answers are scored.
    #[arg(long, value_enum)]
    pub metric: Metric,
    /// JSONL file of the answers, one line a question, in order. An existing file is continued if model (by content), questions
    /// and settings are those recorded in FILE.jsonl.settings.json, and refused otherwise. Scores are in FILE.jsonl.scores.json,
    /// answers with their scores and the expected answers in FILE.jsonl.scored.jsonl.
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: PathBuf,
    /// Start a new file if the output file exists.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub overwrite: bool,
    /// Questions answered together.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least_1)]
    pub batch_size: usize,
    /// Text after each question, on a line of its own: "Answer the question using a single word or phrase."
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub prompt_suffix: String,
    /// System prompt; "" is an empty one.
    #[arg(long, default_value = chat::SYSTEM_PROMPT, value_name = "TEXT")]
    pub system_prompt: String,
    /// Only the first N questions.
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub limit: Option<usize>,
    /// Share of the questions whose picture may be damaged (0 to 1); they are left out of the scores. With more, the run ends with an
    /// error after all lines are written.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub max_failed: f64,
    /// How answers are generated.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Options of `infer score`.
#[derive(Args, Debug)]
pub struct ScoreArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Shards written by `preprocess shards` with this model's tokenizer and processor.
    #[arg(long, value_name = "DIR")]
    pub shards: PathBuf,
    /// Which rows.
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    pub split: SplitArg,
    /// JSONL file to write: id, loss_sum (nats), tokens of every row. Scores that are there are replaced, another file is not.
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: PathBuf,
    /// Replace whatever file the output is.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub overwrite: bool,
    /// Only the first N rows.
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub limit: Option<usize>,
}

/// Rows of the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// Rows to train on.
    Train,
    /// Rows held out.
    Validation,
}

impl From<SplitArg> for shards::Split {
    fn from(split: SplitArg) -> Self {
        match split {
            SplitArg::Train => Self::Train,
            SplitArg::Validation => Self::Validation,
        }
    }
}

/// Options of `infer export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Model directory.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// PEFT adapter directory, merged into the model first.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Directory for the two files and an Ollama Modelfile; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Types of the language model's matrices, as llama-quantize names and mixes them. The mmproj file is f16 in any case.
    #[arg(long, value_enum, default_value_t = ExportType::F16, value_name = "TYPE")]
    pub quantize: ExportType,
    /// Read the files back and compare N rows of --shards with the model: loss and greedy text.
    #[arg(long, value_name = "N", requires = "shards", value_parser = at_least_1)]
    pub check: Option<usize>,
    /// Shards written by `preprocess shards` with this model's tokenizer and processor, for --check.
    #[arg(long, value_name = "DIR", requires = "check")]
    pub shards: Option<PathBuf>,
    /// Rows that --check takes.
    #[arg(long, value_enum, default_value_t = SplitArg::Validation, requires = "check")]
    pub split: SplitArg,
    /// Merge the adapter although its run.json says that it was trained on another model.
    #[arg(long, requires = "adapter", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub force: bool,
}

/// Types of an exported language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportType {
    /// 16-bit floats.
    #[value(name = "f16")]
    F16,
    /// 8 bits, a scale for each 32 values.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits, and 6 for the output weights and for half of the value and down projections.
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl ExportType {
    /// As on the command line, and in the name of the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4KM => "q4_k_m",
        }
    }
}

/// Options of `infer quantize`.
#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// Model directory.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// PEFT adapter directory, merged into the model first.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Directory to write; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// 8-bit integers with a scale for each output channel in place of NF4.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub load_in_8bit: bool,
    /// Of NF4: store the blocks' largest magnitudes in 8 bits, too.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub bnb_4bit_use_double_quant: bool,
    /// Largest weights file, bytes; larger models are written in parts with an index.
    #[arg(long, default_value_t = 5_000_000_000, value_name = "BYTES")]
    pub max_part_bytes: usize,
    /// Merge the adapter although its run.json says that it was trained on another model.
    #[arg(long, requires = "adapter", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub force: bool,
}

/// Options of `infer merge`.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// Model directory that the adapter was trained on.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// PEFT adapter directory.
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Directory to write; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Largest weights file, bytes; larger models are written in parts with an index.
    #[arg(long, default_value_t = 5_000_000_000, value_name = "BYTES")]
    pub max_part_bytes: usize,
    /// Merge the adapter although its run.json says that it was trained on another model.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_of_options() {
        let command = CaptionArgs::augment_args(clap::Command::new("caption"));
        assert_eq!(cli::options::without_option(&command, &CAPTION_KINDS), Vec::<&str>::new());
        let command = EvalArgs::augment_args(clap::Command::new("eval"));
        assert_eq!(cli::options::without_option(&command, &EVAL_KINDS), Vec::<&str>::new());
    }
}
