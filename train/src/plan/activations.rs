//! Activations of a micro-step, in bytes of f32: counted from what the CPU's kernels say that they keep for their backward steps
//! (`kernels::cpu`, `…_kept`), and from the order in which `backward.rs` walks the blocks.

use super::memory::{F32, Step};
use crate::trainable::Choice;
use base::names::{self, Block};
use kernels::cpu::{activation, attention, cross_entropy, dora, linear, norm};
use model::config::{TextConfig, VisionConfig};

impl Step<'_> {
    /// Every block in the order of the backward pass, with the bytes of activations that are held at its step: its own, and those of
    /// the blocks below it.
    pub(super) fn backward_walk(&self) -> Vec<(Block, f64)> {
        let Self { config, model, blocks, shape, .. } = self;
        let below = self.below_text();
        let states = F32 * shape.tokens * model.text.hidden_size as f64;
        let layer = self.kept_by_text_layer(shape.tokens);
        let (kept, again) = if config.gradient_checkpointing { (states, layer) } else { (layer, 0.0) };
        // The last layer is computed for what the loss needs: keys and values of all tokens, the rest of supervised ones.
        let last = self.kept_by_text_layer(shape.supervised);
        let layers = model.text.num_hidden_layers;
        let mut walk = vec![(Block::Head, below + layers.saturating_sub(1) as f64 * kept + last + self.head())];
        walk.extend((0..layers).rev().map(|index| {
            let own = if index + 1 == layers { last } else { kept + again };
            let activations = below + index as f64 * kept + own;
            (Block::TextLayer(index), activations + F32 * shape.tokens * backward_of_text_layer(&model.text))
        }));
        walk.push((Block::TokenEmbeddings, below + 2.0 * states));
        walk.push((Block::Projector, below));
        if blocks.trains_vision() {
            let VisionConfig { hidden_size, intermediate_size, .. } = model.vision;
            let layer = F32 * shape.vision_tokens * (4 * hidden_size + 2 * intermediate_size) as f64;
            let layers = (0..model.computed_vision_layers()).rev().map(Block::VisionLayer);
            walk.extend(layers.chain([Block::VisionEmbeddings]).map(|block| (block, self.vision_kept() + layer)));
        }
        walk
    }

    /// Bytes of the final norm, the logits and the loss.
    fn head(&self) -> f64 {
        if self.on_gpu {
            return F32 * self.head_on_gpu();
        }
        let TextConfig { hidden_size, vocab_size, .. } = self.model.text;
        let rows = whole(self.shape.supervised);
        if self.lora.is_some_and(|lora| lora.has_lora(names::HEAD)) {
            // By burn's operations: logits, their logarithms, and the gradients of both.
            let branch = self.kept_by_linear(names::HEAD, [rows, hidden_size], vocab_size, false);
            let logits = 4 * size_of::<f32>() * rows * vocab_size;
            return (norm::rms_norm_kept([rows, hidden_size]) + branch + logits) as f64;
        }
        let sizes = cross_entropy::Sizes { rows, width: hidden_size, vocabulary: vocab_size };
        let kept = cross_entropy::cross_entropy_sum_kept(sizes, self.blocks.trains_head());
        (norm::rms_norm_kept([rows, hidden_size]) + kept + cross_entropy::cross_entropy_sum_working(sizes)) as f64
    }

    /// Bytes that a layer of the language model keeps for its backward step when its keys and values are those of all tokens, and
    /// `queries` of them go on.
    fn kept_by_text_layer(&self, queries: f64) -> f64 {
        if self.on_gpu {
            // The output is the next layer's input, and kept as that.
            let input = self.shape.tokens * self.model.text.hidden_size as f64;
            return F32 * (input + self.text_layer_on_gpu(self.shape.tokens, queries));
        }
        let text = &self.model.text;
        let (tokens, queries) = (whole(self.shape.tokens), whole(queries));
        let TextConfig { hidden_size, intermediate_size, num_attention_heads: heads, num_key_value_heads, .. } = *text;
        let of_heads = |rows, heads| if text.qk_norm { norm::rms_norm_kept([rows * heads, text.head_dim]) } else { 0 };
        let mut kept = norm::rms_norm_kept([tokens, hidden_size])
            + of_heads(queries, heads)
            + of_heads(tokens, num_key_value_heads)
            + attention::attention_kept(queries, tokens, heads, num_key_value_heads, text.head_dim)
            + norm::rms_norm_kept([queries, hidden_size])
            + activation::swiglu_kept([queries, intermediate_size]);
        let width = heads * text.head_dim;
        let layers = text.num_hidden_layers;
        let kv_width = num_key_value_heads * text.head_dim;
        for (name, rows, inputs, out) in [
            ("self_attn.q_proj", queries, hidden_size, width),
            ("self_attn.k_proj", tokens, hidden_size, kv_width),
            ("self_attn.v_proj", tokens, hidden_size, kv_width),
            ("self_attn.o_proj", queries, width, hidden_size),
            ("mlp.gate_proj", queries, hidden_size, intermediate_size),
            ("mlp.up_proj", queries, hidden_size, intermediate_size),
            ("mlp.down_proj", queries, intermediate_size, hidden_size),
        ] {
            // The others stand behind a norm or an activation.
            let recomputed = name != "self_attn.o_proj";
            let of_layer = |layer: usize| format!("{}.layers.{layer}.{name}", names::TEXT_MODEL);
            let kept_by = |layer: usize| self.kept_by_linear(&of_layer(layer), [rows, inputs], out, recomputed);
            kept += (0..layers).map(kept_by).max().unwrap_or_default();
        }
        kept as f64
    }

    /// Bytes that a linear layer of input `x` and `out` outputs keeps.
    fn kept_by_linear(&self, layer: &str, x: [usize; 2], out: usize, recomputed: bool) -> usize {
        match self.lora.filter(|lora| lora.has_lora(layer)) {
            Some(lora) if lora.use_dora => dora::dora_linear_kept(x, lora.rank_of(layer), out, recomputed),
            Some(lora) => linear::lora_linear_kept(x, lora.rank_of(layer), recomputed),
            None => {
                let choice = Choice::new(self.config.train_type, self.lora);
                linear::linear_kept(x, choice.is_covered(&format!("{layer}.weight")), recomputed)
            }
        }
    }

    /// Bytes that lie below the language model's layers while they work: the projector's, and a trained tower's.
    fn below_text(&self) -> f64 {
        let hidden = self.model.text.hidden_size;
        let inputs = self.model.vision.hidden_size * self.model.vision_feature_layers.len();
        let features = whole(self.shape.features);
        let kept = |linear: &str, inputs, recomputed| {
            self.kept_by_linear(&format!("{}.{linear}", names::PROJECTOR), [features, inputs], hidden, recomputed)
        };
        let projector = match self.on_gpu {
            true => F32 * self.projector_on_gpu(),
            false => {
                let linears = kept("linear_1", inputs, false) + kept("linear_2", hidden, true);
                (linears + activation::unary_kept([features, hidden])) as f64
            }
        };
        let states = F32 * (self.shape.features + self.shape.tokens) * hidden as f64;
        projector + states + if self.blocks.trains_vision() { self.vision_kept() } else { 0.0 }
    }

    /// Bytes that a trained tower keeps.
    fn vision_kept(&self) -> f64 {
        let VisionConfig { hidden_size, intermediate_size, num_attention_heads: heads, .. } = self.model.vision;
        let tokens = whole(self.shape.vision_tokens);
        let x = [tokens, hidden_size];
        let layers = self.model.computed_vision_layers();
        let state = F32 as usize * tokens * hidden_size;
        let per_layer = if self.config.gradient_checkpointing {
            state
        } else if self.on_gpu {
            state + (F32 * self.vision_layer_on_gpu(tokens as f64)) as usize
        } else {
            let kept_by = |(name, inputs, out, recomputed): (&str, usize, usize, bool)| {
                let of_layer = |layer: usize| format!("{}.encoder.layers.{layer}.{name}", names::VISION_MODEL);
                let kept = |layer: usize| self.kept_by_linear(&of_layer(layer), [tokens, inputs], out, recomputed);
                (0..layers).map(kept).max().unwrap_or_default()
            };
            let projections: usize = [
                ("self_attn.q_proj", hidden_size, hidden_size, true),
                ("self_attn.k_proj", hidden_size, hidden_size, true),
                ("self_attn.v_proj", hidden_size, hidden_size, true),
                ("self_attn.out_proj", hidden_size, hidden_size, false),
                ("mlp.fc1", hidden_size, intermediate_size, true),
                ("mlp.fc2", intermediate_size, hidden_size, true),
            ]
            .into_iter()
            .map(kept_by)
            .sum();
            2 * norm::layer_norm_kept(x)
                + attention::attention_kept(tokens, tokens, heads, heads, hidden_size / heads.max(1))
                + activation::unary_kept([tokens, intermediate_size])
                + projections
        };
        (layers * per_layer) as f64
    }

    /// The tower's forward pass without a graph, bytes: hidden states of every layer, and one layer at work.
    pub(super) fn vision_forward(&self) -> f64 {
        let VisionConfig { hidden_size, intermediate_size, .. } = self.model.vision;
        let (d, f) = (hidden_size as f64, intermediate_size as f64);
        let states = (self.model.computed_vision_layers() + 1) as f64 * d;
        F32 * (2.0 * self.shape.pixels + self.shape.vision_tokens * (states + 3.0 * d + 2.0 * f))
    }
}

/// Rows of a mean micro-batch.
fn whole(rows: f64) -> usize {
    rows.ceil() as usize
}

/// Values a token that the backward step of a layer holds beside what the forward pass kept.
fn backward_of_text_layer(config: &TextConfig) -> f64 {
    4.0 * config.hidden_size as f64 + 2.0 * config.intermediate_size as f64
}
