//! Memory of a rank, by part: what is held all the time, and what the busiest moment of a step adds.
//!
//! Everything is counted in f32 values, from what the model's operations keep for their backward steps (`kernels::fused`)
//! and from the order in which `backward.rs` walks the blocks.

use super::data::Data;
use super::parameters::tensors;
use crate::config::{Accumulate, Config, TrainType};
use crate::layout::MAX_BUCKET_VALUES;
use crate::trainable::Choice;
use base::names::{self, Block};
use model::config::{LlavaConfig, TextConfig, VisionConfig};
use model::lora::LoraConfig;
use std::collections::BTreeMap;
use store::checkpoint::ExpectedTensor;

const F32: f64 = 4.0;
/// The program itself, its threads, the tokenizer, the allocator's slack, bytes.
const BASE: f64 = 40e6;
/// Logits that are kept for the gradient of a trained head at most, and those of a chunk otherwise; sums of the hidden states'
/// gradient (`kernels::cpu::cross_entropy`).
const KEPT_LOGITS: f64 = (12 << 20) as f64;
const CHUNK_LOGITS: f64 = (1 << 20) as f64;
const HEAD_SUMS: f64 = (16 << 20) as f64;

/// Bytes of a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// All parameters; the owned part of the trained ones is the master copy at the same time.
    pub weights: f64,
    /// Gradients, at the busiest moment: this rank's part of them, or those of the blocks that are done.
    pub gradients: f64,
    /// This rank's part of AdamW's two moments.
    pub moments: f64,
    /// Activations at the busiest moment.
    pub activations: f64,
    /// A block's gradients on their way to the other ranks, at the busiest moment.
    pub exchange: f64,
    /// Micro-batches that were read ahead.
    pub loader: f64,
    /// The program itself.
    pub base: f64,
}

impl Memory {
    /// All parts.
    pub fn total(&self) -> f64 {
        self.held() + self.activations + self.exchange
    }

    fn held(&self) -> f64 {
        self.weights + self.gradients + self.moments + self.loader + self.base
    }

    /// Memory of one of `config.nproc` ranks.
    pub fn estimate(config: &Config, model: &LlavaConfig, lora: Option<&LoraConfig>, data: &Data) -> Self {
        let blocks = Blocks::of(config.train_type, model, lora);
        let shape = StepShape::new(config, data, model);
        let step = Step { config, model, lora, blocks: &blocks, shape: &shape };
        let Moment { activations, exchange, gradients } = step.busiest();
        let micro_batches = if config.dataloader_num_workers == 0 {
            1
        } else {
            // Full queues, one in each thread's hands, one in use.
            config.dataloader_num_workers * (config.dataloader_prefetch_factor + 1) + config.gradient_accumulation_steps
        };
        Self {
            weights: F32 * blocks.all,
            gradients: F32 * gradients,
            moments: 2.0 * F32 * (step.owned() - step.never_updated(data)),
            activations: F32 * activations,
            exchange: F32 * exchange,
            loader: F32 * shape.pixels * micro_batches as f64,
            base: BASE,
        }
    }
}

/// Values of the model's blocks.
struct Blocks {
    all: f64,
    trained: BTreeMap<Block, usize>,
}

impl Blocks {
    fn of(train_type: TrainType, model: &LlavaConfig, lora: Option<&LoraConfig>) -> Self {
        let tensors = tensors(model, lora);
        let mut trained = BTreeMap::new();
        let choice = Choice::new(train_type, lora);
        for tensor in tensors.iter().filter(|tensor| choice.is_trained(&tensor.name, model)) {
            if let Some(block) = names::block(&tensor.name) {
                *trained.entry(block).or_insert(0) += tensor.len();
            }
        }
        Self { all: tensors.iter().map(ExpectedTensor::len).sum::<usize>() as f64, trained }
    }

    fn len(&self, block: Block) -> f64 {
        self.trained.get(&block).map_or(0.0, |&len| len as f64)
    }

    fn trained_values(&self) -> f64 {
        self.trained.values().sum::<usize>() as f64
    }

    /// The head, or the token embeddings that it shares its weight with.
    fn trains_head(&self) -> bool {
        self.trained.keys().any(|block| matches!(block, Block::Head | Block::TokenEmbeddings))
    }

    fn trains_vision(&self) -> bool {
        self.trained.keys().any(|block| matches!(block, Block::VisionEmbeddings | Block::VisionLayer(_)))
    }
}

/// A rank's part of a block, every bucket rounded up.
fn padded(len: usize, world_size: usize) -> f64 {
    let (full, rest) = (len / MAX_BUCKET_VALUES, len % MAX_BUCKET_VALUES);
    (full * MAX_BUCKET_VALUES.div_ceil(world_size) + rest.div_ceil(world_size)) as f64
}

/// Sizes of a micro-batch.
struct StepShape {
    /// Tokens of the language model.
    tokens: f64,
    supervised: f64,
    /// Tokens of the vision tower, class tokens included.
    vision_tokens: f64,
    /// Image features that the projector gets.
    features: f64,
    pixels: f64,
}

impl StepShape {
    fn new(config: &Config, data: &Data, model: &LlavaConfig) -> Self {
        let rows = config.per_device_train_batch_size.min(data.rows) as f64;
        let images = rows * data.images_per_row;
        let VisionConfig { image_size, patch_size, num_channels, .. } = model.vision;
        let patches = (image_size / patch_size).pow(2);
        Self {
            tokens: rows * data.tokens_per_row,
            supervised: rows * data.supervised_per_row,
            vision_tokens: images * (1 + patches) as f64,
            features: images * model.image_seq_length() as f64,
            pixels: images * (num_channels * image_size * image_size) as f64,
        }
    }
}

struct Step<'a> {
    config: &'a Config,
    model: &'a LlavaConfig,
    lora: Option<&'a LoraConfig>,
    blocks: &'a Blocks,
    shape: &'a StepShape,
}

/// Values that are held at one moment of a step.
#[derive(Clone, Copy, Default)]
struct Moment {
    activations: f64,
    exchange: f64,
    gradients: f64,
}

impl Moment {
    fn total(&self) -> f64 {
        self.activations + self.exchange + self.gradients
    }
}

impl Step<'_> {
    /// The moment at which most is held: the forward pass of the tower, or the backward step of one of the blocks.
    fn busiest(&self) -> Moment {
        let Self { config, model, blocks, shape, .. } = self;
        let hidden = model.text.hidden_size as f64;
        let below = self.below_text();
        let layer = shape.tokens * self.kept_by_text_layer();
        let (kept, again) = if config.gradient_checkpointing { (shape.tokens * hidden, layer) } else { (layer, 0.0) };
        // The last layer is computed for what the loss needs: keys and values of all tokens, the rest of supervised ones.
        let kv = (model.text.num_key_value_heads * model.text.head_dim) as f64;
        let last = shape.tokens * (hidden + 2.0 * kv);
        let logits = shape.supervised * model.text.vocab_size as f64;
        let logits = if blocks.trains_head() && logits <= KEPT_LOGITS { logits } else { CHUNK_LOGITS };
        let sums = HEAD_SUMS.min(64.0 * shape.supervised * hidden);
        let layers = model.text.num_hidden_layers;
        let vision = model.vision.clone();
        let vision_layer =
            shape.vision_tokens * (4.0 * vision.hidden_size as f64 + 2.0 * vision.intermediate_size as f64);
        // In the order of the backward pass: each block's activations, and what it adds to those below it.
        let mut walk = vec![(
            Block::Head,
            below + layers.saturating_sub(1) as f64 * kept + last + logits + sums + 3.0 * shape.supervised * hidden,
        )];
        walk.extend((0..layers).rev().map(|index| {
            let own = if index + 1 == layers { last } else { kept + again };
            let activations = below + index as f64 * kept + own;
            (Block::TextLayer(index), activations + shape.tokens * backward_of_text_layer(&model.text))
        }));
        walk.push((Block::TokenEmbeddings, below + 2.0 * shape.tokens * hidden));
        walk.push((Block::Projector, below));
        if blocks.trains_vision() {
            let layers = (0..model.computed_vision_layers()).rev().map(Block::VisionLayer);
            walk.extend(
                layers.chain([Block::VisionEmbeddings]).map(|block| (block, self.vision_kept() + vision_layer)),
            );
        }
        let held_always = if config.nproc > 1 || config.gradient_accumulation_steps > 1 { self.owned() } else { 0.0 };
        let local =
            config.accumulate == Accumulate::Local && config.nproc > 1 && config.gradient_accumulation_steps > 1;
        let held_always = held_always + if local { blocks.trained_values() } else { 0.0 };
        let mut best = Moment { activations: self.vision_forward(), exchange: 0.0, gradients: held_always };
        let mut finished = 0.0;
        for (block, activations) in walk {
            let gradients = if held_always > 0.0 { held_always } else { finished };
            let moment = Moment { activations, exchange: self.exchange(block), gradients };
            if moment.total() > best.total() {
                best = moment;
            }
            finished += blocks.len(block);
        }
        best
    }

    /// Values of gradients and of each moment that this rank owns.
    fn owned(&self) -> f64 {
        self.blocks.trained.values().map(|&len| padded(len, self.config.nproc)).sum()
    }

    /// Values of embedding rows that no row of the data has a token for: a rank by itself never writes their moments, and
    /// memory that is never written takes none.
    fn never_updated(&self, data: &Data) -> f64 {
        let TextConfig { vocab_size, hidden_size, tie_word_embeddings, .. } = self.model.text;
        if self.config.nproc > 1 || tie_word_embeddings || self.blocks.len(Block::TokenEmbeddings) == 0.0 {
            return 0.0;
        }
        let text_tokens = data.tokens_per_row - data.images_per_row * self.model.image_seq_length() as f64;
        (vocab_size as f64 - data.rows as f64 * text_tokens).max(0.0) * hidden_size as f64
    }

    /// A block's gradient, and what is on its way to other ranks.
    fn exchange(&self, block: Block) -> f64 {
        let tied = self.model.text.tie_word_embeddings && block == Block::TokenEmbeddings;
        // Tied weights get the head's gradient too, which waits for the embedding's.
        let of_block = self.blocks.len(block) * if tied { 2.0 } else { 1.0 };
        let on_the_way = self.blocks.trained.values().max().map_or(0.0, |&len| len as f64);
        of_block + if self.config.nproc > 1 { on_the_way } else { 0.0 }
    }

    fn targets(&self, projection: &str) -> bool {
        self.lora.is_some_and(|lora| lora.target_modules.iter().any(|target| target == projection))
    }

    /// Values a token that a layer of the language model keeps for its backward step.
    fn kept_by_text_layer(&self) -> f64 {
        let TextConfig { hidden_size, intermediate_size, num_key_value_heads, .. } = self.model.text;
        let (d, f) = (hidden_size as f64, intermediate_size as f64);
        let kv = (num_key_value_heads * self.model.text.head_dim) as f64;
        let trained = matches!(self.config.train_type, TrainType::None | TrainType::FreezeVision);
        // Two norms' inputs; rotated queries and keys, values; gate and up.
        let mut kept = 2.0 * d + d + 2.0 * kv + 2.0 * f;
        // The other projections' inputs are computed again.
        if trained || self.targets("o_proj") {
            kept += d;
        }
        let ranks = self.lora.map_or(0.0, |lora| (lora.r * lora.target_modules.len()) as f64);
        kept + ranks
    }

    /// Values that lie below the language model's layers while they work: the projector's, and a trained tower's.
    fn below_text(&self) -> f64 {
        let hidden = self.model.text.hidden_size as f64;
        let inputs = (self.model.vision.hidden_size * self.model.vision_feature_layers.len()) as f64;
        let projector = self.shape.features * (inputs + 2.0 * hidden);
        projector + self.shape.tokens * hidden + if self.blocks.trains_vision() { self.vision_kept() } else { 0.0 }
    }

    /// Values that a trained tower keeps.
    fn vision_kept(&self) -> f64 {
        let VisionConfig { hidden_size, intermediate_size, .. } = self.model.vision;
        let (d, f) = (hidden_size as f64, intermediate_size as f64);
        let per_layer = match self.lora {
            _ if self.config.gradient_checkpointing => d,
            Some(lora) => 5.0 * d + f + 3.0 * lora.r as f64,
            None => 6.0 * d + f,
        };
        self.shape.vision_tokens * self.model.computed_vision_layers() as f64 * per_layer
    }

    /// The tower's forward pass without a graph: hidden states of every layer, and one layer at work.
    fn vision_forward(&self) -> f64 {
        let VisionConfig { hidden_size, intermediate_size, .. } = self.model.vision;
        let (d, f) = (hidden_size as f64, intermediate_size as f64);
        let states = (self.model.computed_vision_layers() + 1) as f64 * d;
        2.0 * self.shape.pixels + self.shape.vision_tokens * (states + 3.0 * d + 2.0 * f)
    }
}

/// Values a token that the backward step of a layer holds beside what the forward pass kept.
fn backward_of_text_layer(config: &TextConfig) -> f64 {
    4.0 * config.hidden_size as f64 + 2.0 * config.intermediate_size as f64
}
