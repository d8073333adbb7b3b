//! A loaded model with its processors: prompts in, tokens out, any number of sequences side by side.

mod prompt;
mod sequence;

pub use prompt::{PICTURE, Part, single_question};
pub use sequence::{Request, Sequence};

use crate::args::{ModelArgs, Weights};
use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use chat::ChatProcessor;
use images::image_processor::ImageProcessor;
use kernels::device::DeviceKind;
use kernels::{MAX_INDEPENDENT_TOKENS, Quantization};
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::generate::Answering;
use std::path::Path;
use std::sync::Arc;
use store::checkpoint::{LoadAs, load_model};
use store::hub::{self, Wanted};

/// Conversations and pictures to input, ids to text; shared between threads.
pub struct Processors {
    /// The model's configuration.
    pub config: LlavaConfig,
    /// Tokenizer and chat template.
    pub chat: ChatProcessor,
    /// Pictures to pixel values.
    pub images: ImageProcessor,
}

/// The model with its processors.
pub struct Engine {
    /// The model's processors.
    pub processors: Arc<Processors>,
    model: Llava,
    device: Device,
    /// Settings of `generation_config.json` that are not used.
    unused_settings: Vec<String>,
}

impl Engine {
    /// Loads the model and adapter of a command line.
    ///
    /// # Errors
    /// A missing or unfitting file, tensor or adapter, by name.
    pub fn from_args(args: &ModelArgs) -> Result<Self> {
        let weights = args.weights();
        let load_as = if weights == Weights::F32 { LoadAs::F32 } else { LoadAs::Stored };
        let (model, adapter) = args.placed()?;
        if args.adapter.is_none()
            && let Some(adapter) = &adapter
        {
            tracing::info!("{} is an adapter: on its model, {}", adapter.display(), model.display());
        }
        let mut engine = Self::load(&model, adapter.as_deref(), load_as, args.device)?;
        if let Weights::Int8 | Weights::Nf4 = weights {
            // An adapter's matrices become part of the weights before these are rounded.
            let mut model = model::lora::merge(engine.model);
            if weights == Weights::Int8 {
                model.language_model.quantize_layers(Quantization::Int8);
                model.language_model.quantize_head(Quantization::Int8);
            } else {
                model.language_model.quantize_layers(Quantization::Nf4 { double_quant: true });
                // In 16 bits it would be half of what a decode step reads.
                model.language_model.quantize_head(Quantization::Int8);
            }
            engine.model = model;
        }
        engine.model.language_model.move_into_huge_pages();
        Ok(engine)
    }

    /// Loads a model directory, and an adapter on top.
    ///
    /// # Errors
    /// A missing or unfitting file, tensor or adapter, by name.
    pub fn load(model: &Path, adapter: Option<&Path>, load_as: LoadAs, device: DeviceKind) -> Result<Self> {
        let device = device.open()?;
        let model = &hub::resolve(model, Wanted::Llava)?;
        let store::processors::Processors { chat, images, .. } = store::processors::Processors::read(model)?;
        let unused_settings = chat::eos::unused_settings(model)?;
        let (config, mut llava) = load_model(model, load_as, &device).context("loading the model")?;
        if let Some(adapter) = adapter {
            store::adapter::warn_of_another_model(adapter, model, "--model");
            store::adapter::load_adapter(&mut llava, adapter, &device).context("loading the adapter")?;
            model::lora::keep_row_norms(&mut llava);
        }
        Ok(Self { processors: Arc::new(Processors { config, chat, images }), model: llava, device, unused_settings })
    }

    /// Says which settings of `generation_config.json`, which transformers would follow, the options decide instead.
    pub fn tell_unused_settings(&self) {
        if !self.unused_settings.is_empty() {
            let settings = self.unused_settings.join(", ");
            tracing::info!(
                "settings of generation_config.json without effect: {settings}; the options decide, greedy by default"
            );
        }
    }

    /// The model itself.
    pub fn model(&self) -> &Llava {
        &self.model
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs the prompt and chooses the first token. Returns the sequence and the text that is certain so far.
    ///
    /// # Errors
    /// A prompt that leaves no room for an answer.
    pub fn start(&self, request: Request) -> Result<(Sequence, String)> {
        let config = &self.processors.config;
        let (prompt_len, context) = (request.prompt.input_ids.len(), config.text.max_position_embeddings);
        anyhow::ensure!(prompt_len > 0, "the prompt has no tokens");
        anyhow::ensure!(
            prompt_len < context,
            "the prompt has {prompt_len} tokens, the model takes {context} with the answer; shorten the conversation"
        );
        let max_new_tokens = request.max_new_tokens.min(context - prompt_len);
        let eos_token_ids = if request.ignore_eos { Vec::new() } else { self.processors.chat.eos_token_ids.clone() };
        let answering = Answering { sampling: request.sampling, max_new_tokens, eos_token_ids };
        in_pool(|| {
            let mut answers = self.model.begin_answers(&request.prompt, &[answering], config)?;
            let answer = answers.pop().context("a batch of one row has one answer")?;
            let mut sequence = Sequence::new(answer, request.stop, prompt_len);
            let text = sequence.text(&self.processors.chat)?;
            Ok((sequence, text))
        })
    }

    /// One more token for each of the sequences, none of them finished. Returns their new texts, in order.
    ///
    /// A sequence's tokens do not depend on the others: no more are computed together than the products keep apart.
    ///
    /// # Errors
    /// A token that the tokenizer cannot decode.
    pub fn step(&self, sequences: &mut [&mut Sequence]) -> Result<Vec<String>> {
        in_pool(|| {
            let groups = sequences.chunks_mut(MAX_INDEPENDENT_TOKENS);
            let texts = groups.map(|group| self.step_together(group)).collect::<Result<Vec<_>>>()?;
            Ok(texts.concat())
        })
    }

    fn step_together(&self, sequences: &mut [&mut Sequence]) -> Result<Vec<String>> {
        let mut answers: Vec<_> = sequences.iter_mut().map(|sequence| sequence.answer_mut()).collect();
        self.model.continue_answers(&mut answers, &self.processors.config)?;
        sequences.iter_mut().map(|sequence| Ok(sequence.text(&self.processors.chat)?)).collect()
    }

    /// Sum of the cross entropy over a batch's supervised tokens, nats, and their number.
    ///
    /// # Errors
    /// The device cannot give its result.
    pub fn loss_sum(&self, batch: &PackedBatch) -> Result<(f64, usize)> {
        in_pool(|| {
            let (loss, tokens) = self.model.loss(batch, &self.processors.config);
            Ok((read_f32(loss)?.iter().map(|&value| f64::from(value)).sum(), tokens))
        })
    }

    /// f32 logits `[rows · V]` after the last `rows` tokens of a prompt.
    ///
    /// # Errors
    /// The device cannot give its result.
    pub fn last_logits(&self, prompt: &PackedBatch, rows: usize) -> Result<Vec<f32>> {
        let tokens = prompt.input_ids.len();
        let positions: Vec<usize> = (tokens.saturating_sub(rows)..tokens).collect();
        read_f32(self.model.logits(prompt, &positions, &self.processors.config))
    }

    /// The engine with a changed model.
    ///
    /// # Errors
    /// Those of the change.
    pub fn with_model(self, change: impl FnOnce(Llava) -> Result<Llava>) -> Result<Self> {
        Ok(Self { model: change(self.model)?, ..self })
    }

    /// Gives the model away.
    pub fn into_model(self) -> Llava {
        self.model
    }
}

/// Computes on a thread of the pool that the kernels divide their work over: work that is begun from outside would be handed
/// over and waited for at each of the hundreds of operations of a step.
fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

fn read_f32<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().convert::<f32>().try_into_vec().map_err(|error| anyhow::anyhow!("reading a result: {error:?}"))
}
