//! `preprocess model`: a vision tower and a language model become a LLaVA directory. Reads top to bottom in [`run`].

mod output;
mod processors;
mod weights;

use anyhow::{Context, Result};
use base::Error;
use clap::ValueEnum;
use cli::options::Kind;
use cli::units::bytes;
use model::config::{Activation, FeatureSelect, LlavaConfig, TextConfig, VisionConfig, WeightDtype};
use output::Output;
use processors::Processors;
use std::path::PathBuf;
use store::checkpoint::{DEFAULT_MAX_PART_BYTES, expected_tensors};
use store::hub::{self, Wanted};

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory of a CLIPModel, SiglipModel or a vision model of either (config.json, safetensors, preprocessor_config.json or
    /// the processor_config.json of transformers 5), or its name on Hugging Face
    #[arg(long, value_name = "DIR")]
    pub vision_tower: PathBuf,
    /// Directory of a Qwen2ForCausalLM, Qwen3ForCausalLM or LlamaForCausalLM (config.json, safetensors, tokenizer.json,
    /// tokenizer_config.json), or its name on Hugging Face
    #[arg(long, value_name = "DIR")]
    pub language_model: PathBuf,
    /// Output directory; an earlier result of this command is replaced
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Hidden state of the vision tower that the projector gets (0 is the embedding's output, negative counts from the end);
    /// several, separated by commas, are joined
    #[arg(long, value_name = "N", default_value = "-2", allow_hyphen_values = true, value_delimiter = ',')]
    pub vision_feature_layer: Vec<i64>,
    /// `default` drops the class token, `full` keeps all features [default: default; full for a tower without a class token, as
    /// SigLIP is]
    #[arg(long, value_enum)]
    pub vision_feature_select_strategy: Option<SelectStrategy>,
    /// Dtype of the written weights [default: the language model's]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// File with the chat template (Jinja), for a language model that has none or in place of its own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Seed of the random weights: the projector's, and those of the rows that the vocabulary grows by
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What options name.
pub const KINDS: [(&str, Kind); 3] =
    [("vision_tower", Kind::ModelOrRepository), ("language_model", Kind::ModelOrRepository), ("output", Kind::Output)];

/// `--vision-feature-select-strategy`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SelectStrategy {
    /// Patches alone.
    Default,
    /// All features: with the class token, if there is one.
    Full,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Dtype {
    /// float32
    F32,
    /// bfloat16
    Bf16,
    /// float16
    F16,
}

/// Runs the command; the text is its result for stdout.
pub fn run(args: &Args) -> Result<String> {
    let vision_tower = hub::resolve(&args.vision_tower, Wanted::VisionTower).context("--vision-tower")?;
    let language_model = hub::resolve(&args.language_model, Wanted::LanguageModel).context("--language-model")?;
    let (vision, _) = VisionConfig::read(&vision_tower).context("--vision-tower")?;
    let (source_text, text_dtype) = TextConfig::read(&language_model).context("--language-model")?;
    let processors = Processors::read(&vision_tower, &language_model, args.chat_template.as_deref())?;
    let config = llava_config(args, vision, source_text.clone(), text_dtype, &processors)?;

    let output = Output::create(&args.output)?;
    config.write(output.path())?;
    processors.write(output.path(), &config)?;
    // Before the weights: a template that cannot serve is found in a second.
    processors::check(output.path(), &config)?;
    weights::Sources::open(&vision_tower, &language_model, &config, &source_text)?.write(
        output.path(),
        args.seed,
        DEFAULT_MAX_PART_BYTES,
    )?;
    output.publish()?;
    Ok(report(args, &config, &source_text))
}

fn llava_config(
    args: &Args,
    vision: VisionConfig,
    mut text: TextConfig,
    text_dtype: WeightDtype,
    processors: &Processors,
) -> Result<LlavaConfig> {
    let states = vision.num_hidden_layers as i64 + 1;
    for &layer in &args.vision_feature_layer {
        if !(-states..states).contains(&layer) {
            let expected = format!("a hidden state of the vision tower, {} to {}", -states, states - 1);
            return Err(Error::usage("--vision-feature-layer", layer, expected, "correct it").into());
        }
    }
    let has_class_token = vision.family.has_class_token();
    let strategy = match args.vision_feature_select_strategy {
        Some(SelectStrategy::Default) => FeatureSelect::Default,
        None if has_class_token => FeatureSelect::Default,
        Some(SelectStrategy::Full) | None => FeatureSelect::Full,
    };
    if strategy == FeatureSelect::Default && !has_class_token {
        let expected = format!("full: {} has no class token to drop", vision.family.model_type());
        let remedy = "give full, or leave the option out";
        return Err(Error::usage("--vision-feature-select-strategy", strategy.name(), expected, remedy).into());
    }
    // Only if the id does not fit: a vocabulary that is padded, as Qwen's is, keeps its size.
    text.vocab_size = text.vocab_size.max(processors.image_token_id() as usize + 1);
    Ok(LlavaConfig {
        vision,
        text,
        image_token_index: processors.image_token_id(),
        pad_token_id: processors.pad_token_id(),
        vision_feature_layer_is_scalar: args.vision_feature_layer.len() == 1,
        quantization: None,
        vision_feature_layers: args.vision_feature_layer.clone(),
        vision_feature_select_strategy: strategy,
        projector_hidden_act: Activation::Gelu,
        multimodal_projector_bias: true,
        dtype: match args.dtype {
            None => text_dtype,
            Some(Dtype::F32) => WeightDtype::F32,
            Some(Dtype::Bf16) => WeightDtype::Bf16,
            Some(Dtype::F16) => WeightDtype::F16,
        },
    })
}

fn report(args: &Args, config: &LlavaConfig, source: &TextConfig) -> String {
    let parameters: usize = expected_tensors(config).iter().map(|tensor| tensor.len()).sum();
    let vocabulary = match config.text.vocab_size == source.vocab_size {
        true => format!("{} rows, unchanged", source.vocab_size),
        false => format!("{} rows, {} before", config.text.vocab_size, source.vocab_size),
    };
    format!(
        "{}: {parameters} parameters, {} ({}); <image> is {}, {} features an image; vocabulary {vocabulary}",
        args.output.display(),
        config.dtype.torch_name(),
        bytes((parameters * config.dtype.size()) as u64),
        config.image_token_index,
        config.image_seq_length(),
    )
}
