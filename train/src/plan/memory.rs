//! Memory of a rank, by part: persistent memory, and the peak that a step adds. `train plan` and the line that a
//! run begins with are the same [`Memory`]. Activations are in `activations.rs`.

use super::data::MeanRow;
use super::gpu;
use super::parameters::tensors;
use crate::captions;
use crate::config::{Accumulate, Config, Strategy};
use crate::layout::MAX_BUCKET_VALUES;
use crate::trainable::Choice;
use base::names::{self, Block};
use kernels::MAX_INDEPENDENT_TOKENS;
use kernels::device::DeviceKind;
use model::config::{LlavaConfig, TextConfig, VisionConfig};
use model::lora::LoraConfig;
use model::quantized::Rounding;
use std::collections::BTreeMap;
use store::checkpoint::ExpectedTensor;

pub(super) const F32: f64 = 4.0;
const BF16: f64 = 2.0;
/// The program itself, its threads, the tokenizer, the allocator's slack, bytes.
const BASE: f64 = 40e6;

/// Bytes of a rank: of its GPU's memory, where it computes on one.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// All parameters; in f32 the owned part of the trained ones is the master copy at the same time.
    pub weights: f64,
    /// This rank's master weights, where the parameters are bf16.
    pub masters: f64,
    /// Gradients, at the busiest moment: this rank's part of them, or those of the blocks that are done.
    pub gradients: f64,
    /// This rank's part of AdamW's two moments.
    pub moments: f64,
    /// Activations at the busiest moment.
    pub activations: f64,
    /// Gradients of blocks in transit to other ranks, at the peak.
    pub exchange: f64,
    /// Micro-batches that were read ahead.
    pub loader: f64,
    /// The program itself; of a GPU, what CUDA keeps there.
    pub base: f64,
}

/// What a run computes with.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The model.
    pub model: &'a LlavaConfig,
    /// The adapter, if one is trained.
    pub lora: Option<&'a LoraConfig>,
    /// Ranks.
    pub world_size: usize,
    /// Parameters and activations are bf16.
    pub in_bf16: bool,
    /// How the frozen base is held, where it is in few bits.
    pub base: Option<&'a Rounding>,
}

/// What a run trains on.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Rows of the training split, of all sources.
    pub count: usize,
    /// Their mean.
    pub mean: MeanRow,
}

impl Memory {
    /// All parts.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Every part with its name.
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("weights", self.weights),
            ("master weights", self.masters),
            ("gradients", self.gradients),
            ("AdamW's moments, its share", self.moments),
            ("activations", self.activations),
            ("gradients in exchange", self.exchange),
            ("rows read ahead", self.loader),
            ("program", self.base),
        ]
    }

    /// Memory of a rank.
    pub fn estimate(setting: Setting, rows: Rows) -> Self {
        let Setting { config, model, lora, world_size, in_bf16, .. } = setting;
        let blocks = Blocks::of(setting);
        let shape = StepShape::new(config, rows, model);
        let on_gpu = config.device_kind().is_ok_and(DeviceKind::is_gpu);
        let step = Step { config, model, lora, world_size, blocks: &blocks, shape: &shape, on_gpu };
        let Moment { activations, exchange, gradients } = step.busiest();
        let micro_batches = if config.dataloader_num_workers == 0 {
            1
        } else {
            // Full queues, one in each thread's hands, one in use.
            config.dataloader_num_workers * (config.dataloader_prefetch_factor + 1) + config.gradient_accumulation_steps
        };
        let of_model = if in_bf16 { BF16 } else { F32 };
        Self {
            weights: of_model * blocks.all + blocks.rounded,
            masters: if in_bf16 { F32 * step.owned() } else { 0.0 },
            gradients: F32 * gradients,
            // Memory that is never written takes none, but for a GPU's.
            moments: 2.0 * F32 * (step.owned() - if on_gpu { 0.0 } else { step.never_updated(rows) }),
            activations: activations * of_model / F32,
            exchange: F32 * exchange,
            // Rows wait in the host's memory, where the program is.
            loader: if on_gpu { 0.0 } else { F32 * shape.pixels * micro_batches as f64 },
            base: if on_gpu { gpu::CONTEXT } else { BASE },
        }
    }
}

/// Values of the model's blocks.
pub(super) struct Blocks {
    /// Values of all of them that are held as floats.
    all: f64,
    /// Bytes of those that are held in few bits.
    rounded: f64,
    trained: BTreeMap<Block, usize>,
}

impl Blocks {
    fn of(Setting { config, model, lora, base, .. }: Setting) -> Self {
        let train_type = config.train_type;
        let tensors = tensors(model, lora);
        let mut trained = BTreeMap::new();
        let choice = Choice::new(train_type, lora);
        for tensor in tensors.iter().filter(|tensor| choice.is_trained(&tensor.name, model)) {
            if let Some(block) = names::block(&tensor.name) {
                *trained.entry(block).or_insert(0) += tensor.len();
            }
        }
        let bytes = |tensor: &ExpectedTensor| {
            let &[rows, width] = tensor.shape.as_slice() else { return None };
            base.filter(|base| base.rounds(&tensor.name)).map(|base| base.format.bytes_of([rows, width]))
        };
        let all = tensors.iter().filter(|tensor| bytes(tensor).is_none()).map(ExpectedTensor::len).sum::<usize>();
        let rounded = tensors.iter().filter_map(bytes).sum::<usize>();
        Self { all: all as f64, rounded: rounded as f64, trained }
    }

    fn len(&self, block: Block) -> f64 {
        self.trained.get(&block).map_or(0.0, |&len| len as f64)
    }

    fn trained_values(&self) -> f64 {
        self.trained.values().sum::<usize>() as f64
    }

    /// The head, or the token embeddings that it shares its weight with.
    pub(super) fn trains_head(&self) -> bool {
        self.trained.keys().any(|block| matches!(block, Block::Head | Block::TokenEmbeddings))
    }

    pub(super) fn trains_vision(&self) -> bool {
        self.trained.keys().any(|block| matches!(block, Block::VisionEmbeddings | Block::VisionLayer(_)))
    }
}

/// A rank's part of a block, every bucket rounded up.
fn padded(len: usize, world_size: usize) -> f64 {
    let (full, rest) = (len / MAX_BUCKET_VALUES, len % MAX_BUCKET_VALUES);
    (full * MAX_BUCKET_VALUES.div_ceil(world_size) + rest.div_ceil(world_size)) as f64
}

/// Sizes of a micro-batch.
pub(super) struct StepShape {
    /// Tokens of the language model.
    pub(super) tokens: f64,
    pub(super) supervised: f64,
    /// Tokens of the vision tower, class tokens included.
    pub(super) vision_tokens: f64,
    /// Image features that the projector gets.
    pub(super) features: f64,
    pub(super) pixels: f64,
    pub(super) tokens_per_row: f64,
}

impl StepShape {
    fn new(config: &Config, rows: Rows, model: &LlavaConfig) -> Self {
        let Rows { count, mean } = rows;
        let rows = config.per_device_train_batch_size.min(count) as f64;
        let images = rows * mean.images;
        let VisionConfig { image_size, num_channels, .. } = model.vision;
        Self {
            tokens: rows * mean.tokens,
            supervised: rows * mean.supervised,
            vision_tokens: images * model.vision.tokens() as f64,
            features: images * model.image_seq_length() as f64,
            pixels: images * (num_channels * image_size * image_size) as f64,
            tokens_per_row: mean.tokens,
        }
    }
}

pub(super) struct Step<'a> {
    pub(super) config: &'a Config,
    pub(super) model: &'a LlavaConfig,
    pub(super) lora: Option<&'a LoraConfig>,
    pub(super) world_size: usize,
    pub(super) blocks: &'a Blocks,
    pub(super) shape: &'a StepShape,
    /// Values are on a GPU, and kept by its kernels.
    pub(super) on_gpu: bool,
}

/// What is held at one moment of a step.
#[derive(Clone, Copy, Default)]
struct Moment {
    /// Bytes, in f32.
    activations: f64,
    /// Values.
    exchange: f64,
    /// Values.
    gradients: f64,
}

impl Moment {
    fn bytes(&self) -> f64 {
        self.activations + F32 * (self.exchange + self.gradients)
    }
}

impl Step<'_> {
    /// The moment at which most is held: the forward pass of the tower, or the backward step of one of the blocks.
    fn busiest(&self) -> Moment {
        let Self { config, blocks, world_size, .. } = *self;
        let held_always = if world_size > 1 || config.gradient_accumulation_steps > 1 { self.owned() } else { 0.0 };
        let local = config.accumulate == Accumulate::Local && world_size > 1 && config.gradient_accumulation_steps > 1;
        let held_always = held_always + if local { blocks.trained_values() } else { 0.0 };
        let activations = self.vision_forward().max(self.caches_of_answers());
        let mut best = Moment { activations, exchange: 0.0, gradients: held_always };
        let mut finished = 0.0;
        for (block, activations) in self.backward_walk() {
            let gradients = if held_always > 0.0 { held_always } else { finished };
            let moment = Moment { activations, exchange: self.exchange(block), gradients };
            if moment.bytes() > best.bytes() {
                best = moment;
            }
            finished += blocks.len(block);
        }
        // Until the update, a rank by itself holds the gradients of all blocks, and nothing else of the step.
        let gradients = if held_always > 0.0 { held_always } else { finished };
        let end = Moment { activations: 0.0, exchange: 0.0, gradients };
        if end.bytes() > best.bytes() { end } else { best }
    }

    /// Bytes of the keys and values that an evaluation's answers and sample captions keep.
    fn caches_of_answers(&self) -> f64 {
        let Self { config, model, shape, .. } = *self;
        if config.eval_strategy == Strategy::No {
            return 0.0;
        }
        let tokens = |rows: usize, longest_answer: usize| rows as f64 * (shape.tokens_per_row + longest_answer as f64);
        let together = config.per_device_eval_batch_size.min(MAX_INDEPENDENT_TOKENS);
        let answers = config.eval_metric.map_or(0.0, |_| tokens(together, config.eval_max_new_tokens));
        let of_token = 2 * model.text.num_hidden_layers * model.text.key_value_width();
        F32 * of_token as f64 * answers.max(tokens(config.eval_captions, captions::MAX_NEW_TOKENS))
    }

    /// Values of gradients and of each moment that this rank owns.
    fn owned(&self) -> f64 {
        self.blocks.trained.values().map(|&len| padded(len, self.world_size)).sum()
    }

    /// Values of embedding rows that no row of the data has a token for: a rank by itself never writes their moments, and
    /// memory that is never written takes none.
    fn never_updated(&self, rows: Rows) -> f64 {
        let TextConfig { vocab_size, hidden_size, .. } = self.model.text;
        if self.world_size > 1 || self.ties_head() || self.blocks.len(Block::TokenEmbeddings) == 0.0 {
            return 0.0;
        }
        let text_tokens = rows.mean.tokens - rows.mean.images * self.model.image_seq_length() as f64;
        (vocab_size as f64 - rows.count as f64 * text_tokens).max(0.0) * hidden_size as f64
    }

    /// The output weights are the embedding.
    fn ties_head(&self) -> bool {
        self.model.text.tie_word_embeddings && !self.lora.is_some_and(LoraConfig::unties_head)
    }

    /// A block's gradient, and blocks in transit to other ranks.
    fn exchange(&self, block: Block) -> f64 {
        let tied = self.ties_head() && block == Block::TokenEmbeddings;
        // Tied weights get the head's gradient too, which waits for the embedding's.
        let of_block = self.blocks.len(block) * if tied { 2.0 } else { 1.0 };
        let on_the_way = self.blocks.trained.values().max().map_or(0.0, |&len| len as f64);
        of_block + if self.world_size > 1 { on_the_way } else { 0.0 }
    }
}
