//! Qwen2.

use super::dropout::{LoraDropout, SiteDropout};
use super::linear::Linear;
use super::vision_tower::Embedding;
use crate::config::TextConfig;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use kernels::int8::Int8Weight;
use kernels::kv_cache::KvCache;
use kernels::{LinearInput, Mask, Rope};

/// `language_model.…`
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Embedding, layers, final norm.
    pub model: Qwen2Model,
    /// Output weights; `None` when tied to the embedding.
    pub lm_head: Option<Embedding>,
}

/// `language_model.model.…`
#[derive(Module, Debug)]
pub struct Qwen2Model {
    /// `[V, D]`
    pub embed_tokens: Embedding,
    /// In order.
    pub layers: Vec<Qwen2Layer>,
    /// Before the head.
    pub norm: RmsNorm,
}

/// Pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct Qwen2Layer {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Causal attention with RoPE.
    pub self_attn: Qwen2Attention,
    /// Before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// SwiGLU.
    pub mlp: Qwen2Mlp,
}

/// `self_attn.…`
#[derive(Module, Debug)]
pub struct Qwen2Attention {
    /// Queries, with bias.
    pub q_proj: Linear,
    /// Keys, with bias.
    pub k_proj: Linear,
    /// Values, with bias.
    pub v_proj: Linear,
    /// Output, without bias.
    pub o_proj: Linear,
}

/// `mlp.…`
#[derive(Module, Debug)]
pub struct Qwen2Mlp {
    /// Gate.
    pub gate_proj: Linear,
    /// Up.
    pub up_proj: Linear,
    /// Down.
    pub down_proj: Linear,
}

/// RMSNorm's weight.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
}

struct HugePages;

impl ModuleVisitor for HugePages {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        kernels::move_into_huge_pages(&param.val());
    }
}

/// What the layers need to know of a packed batch besides the hidden states.
#[derive(Clone, Debug)]
pub struct TextContext {
    /// Sizes and epsilon.
    pub config: TextConfig,
    /// Tokens of each sequence; sums to T.
    pub seq_lens: Vec<usize>,
    /// Rotations of the T tokens.
    pub rope: Rope,
    /// Dropout of LoRA branches; `row_keys` has one entry for each sequence.
    pub dropout: Option<LoraDropout>,
}

impl TextContext {
    /// The context of whole sequences, each from position 0, without dropout. `device` is that of the hidden states.
    pub fn new(config: &TextConfig, seq_lens: &[usize], device: &Device) -> Self {
        let rope = Rope::packed(seq_lens, config.head_dim(), config.rope_theta, device);
        Self { config: config.clone(), seq_lens: seq_lens.to_vec(), rope, dropout: None }
    }

    /// The context of new tokens behind those that the caches hold.
    fn continuing(config: &TextConfig, seq_lens: &[usize], caches: &[&mut KvCache], device: &Device) -> Self {
        let past = caches.iter().map(|cache| cache.len());
        let positions: Vec<usize> = past.zip(seq_lens).flat_map(|(past, &new)| past..past + new).collect();
        let rope = Rope::new(&positions, config.head_dim(), config.rope_theta, device);
        Self { config: config.clone(), seq_lens: seq_lens.to_vec(), rope, dropout: None }
    }

    /// The same without autodiff, for computing blocks whose graph is not wanted.
    pub fn inner(&self) -> Self {
        let rope = Rope { cos: self.rope.cos.clone().inner(), sin: self.rope.sin.clone().inner() };
        Self { rope, ..self.clone() }
    }

    /// The tokens that the last layer need compute for `positions` (ascending): in each sequence, those from the first of them on.
    pub fn last_tokens(&self, positions: &[usize]) -> LastTokens {
        let (mut start, mut lens, mut rows) = (0, Vec::new(), Vec::new());
        for &len in &self.seq_lens {
            let end = start + len;
            let first = positions[positions.partition_point(|&position| position < start)..].first();
            let first = first.map_or(end, |&first| first.min(end));
            lens.push(end - first);
            rows.extend(first..end);
            start = end;
        }
        let [cos, sin] = [&self.rope.cos, &self.rope.sin].map(|table| kernels::select_rows(table.clone(), &rows));
        LastTokens { lens, rows, rope: Rope { cos, sin } }
    }

    fn dropout(&self, layer: usize, projection: usize) -> Option<SiteDropout<'_>> {
        self.dropout.as_ref()?.at(&self.seq_lens, layer, projection)
    }
}

/// The last tokens of each sequence of a packed batch.
#[derive(Clone, Debug)]
pub struct LastTokens {
    /// Tokens of each sequence, counted from its end; may be 0.
    pub lens: Vec<usize>,
    /// Their rows in the batch.
    pub rows: Vec<usize>,
    rope: Rope,
}

impl LastTokens {
    /// The same without autodiff.
    pub fn inner(&self) -> Self {
        let rope = Rope { cos: self.rope.cos.clone().inner(), sin: self.rope.sin.clone().inner() };
        Self { rope, ..self.clone() }
    }

    /// Where `positions` (rows of the batch, among the last tokens) stand among them.
    pub fn places(&self, positions: &[usize]) -> Vec<usize> {
        positions.iter().map(|position| self.rows.partition_point(|row| row < position)).collect()
    }
}

impl LanguageModel {
    /// Embeddings of tokens in the number format that the device computes in: `[T]` → `[T, D]`.
    pub fn embed(&self, input_ids: &[u32]) -> Tensor<2> {
        self.model.embed_tokens.rows(input_ids)
    }

    /// All layers, without the final norm. hidden `[T, D]` → same.
    pub fn forward(&self, mut hidden: Tensor<2>, context: &TextContext) -> Tensor<2> {
        for (index, layer) in self.model.layers.iter().enumerate() {
            hidden = layer.forward(hidden, index, context);
        }
        hidden
    }

    /// All layers for new tokens of sequences whose earlier tokens are in `caches`; fills the caches. Serves the first
    /// tokens of a sequence and the later ones, and both in one batch.
    ///
    /// hidden `[T, D]`, `seq_lens[i]` new tokens of the sequence of `caches[i]` → logits after the last token of each
    /// sequence, `[sequences, V]`.
    ///
    /// # Panics
    /// If a cache is too small for its new tokens.
    pub fn forward_cached(
        &self,
        mut hidden: Tensor<2>,
        seq_lens: &[usize],
        caches: &mut [&mut KvCache],
        config: &TextConfig,
    ) -> Tensor<2> {
        let context = TextContext::continuing(config, seq_lens, caches, &hidden.device());
        let mut end = 0;
        let ends: Vec<usize> = seq_lens.iter().map(|len| (end += len, end - 1).1).collect();
        let last = context.last_tokens(&ends);
        let layers = self.model.layers.len();
        for (index, layer) in self.model.layers.iter().enumerate() {
            let queries = (index + 1 == layers).then_some(&last);
            hidden = layer.forward_cached(hidden, index, &context, caches, queries);
        }
        // The last layer has left nothing else.
        let positions = if layers == 0 { ends } else { (0..ends.len()).collect() };
        self.logits(hidden, &positions, config)
    }

    /// Logits after the tokens at `positions`: hidden `[T, D]` → `[positions, V]`.
    pub fn logits(&self, hidden: Tensor<2>, positions: &[usize], config: &TextConfig) -> Tensor<2> {
        let rows = kernels::select_rows(hidden, positions);
        self.head().logits(self.model.norm.forward(rows, config.rms_norm_eps).values)
    }

    /// Sum of the cross entropy of `targets` at `positions`: hidden `[T, D]` → `[1]`. No other logits are computed.
    pub fn loss_sum(&self, hidden: Tensor<2>, positions: &[usize], targets: &[u32], config: &TextConfig) -> Tensor<1> {
        let rows = kernels::select_rows(hidden, positions);
        let normed = self.model.norm.forward(rows, config.rms_norm_eps).values;
        match self.head() {
            head if head.is_composed() => kernels::reference::cross_entropy_of_logits(head.logits(normed), targets),
            head => kernels::cross_entropy_sum(normed, head.weight.val(), targets),
        }
    }

    /// From embedded tokens to the sum of the cross entropy of `targets` at `positions` (ascending): `[T, D]` → `[1]`.
    pub fn loss(&self, embeds: Tensor<2>, positions: &[usize], targets: &[u32], context: &TextContext) -> Tensor<1> {
        let Some((last_layer, layers)) = self.model.layers.split_last().filter(|_| !positions.is_empty()) else {
            return self.loss_sum(self.forward(embeds, context), positions, targets, &context.config);
        };
        let mut hidden = embeds;
        for (index, layer) in layers.iter().enumerate() {
            hidden = layer.forward(hidden, index, context);
        }
        let last = context.last_tokens(positions);
        let hidden = last_layer.forward_last(hidden, layers.len(), context, &last);
        self.loss_sum(hidden, &last.places(positions), targets, &context.config)
    }

    /// `[V, D]`: lm_head, or the embedding when tied.
    pub fn head(&self) -> &Embedding {
        self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens)
    }

    /// The head's weight `[V, D]`.
    pub fn head_weight(&self) -> Tensor<2> {
        self.head().weight.val()
    }

    /// Keeps the matrices of the layers and of the head in 8-bit integers, one scale an output channel: inference only,
    /// for a quarter of f32's memory traffic. LoRA matrices stay as they are; merge them first for speed.
    pub fn quantize_int8(&mut self) {
        for layer in &mut self.model.layers {
            let (attention, mlp) = (&mut layer.self_attn, &mut layer.mlp);
            for linear in [&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj, &mut attention.o_proj] {
                linear.quantize_int8();
            }
            for linear in [&mut mlp.gate_proj, &mut mlp.up_proj, &mut mlp.down_proj] {
                linear.quantize_int8();
            }
        }
        self.lm_head.as_mut().unwrap_or(&mut self.model.embed_tokens).quantize_int8();
    }

    /// Moves the weights into huge pages where system and backend can: decoding reads all of them for every token.
    pub fn move_into_huge_pages(&self) {
        self.visit(&mut HugePages);
        for Qwen2Layer { self_attn, mlp, .. } in &self.model.layers {
            let Qwen2Attention { q_proj, k_proj, v_proj, o_proj } = self_attn;
            let Qwen2Mlp { gate_proj, up_proj, down_proj } = mlp;
            for linear in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] {
                linear.int8.iter().for_each(Int8Weight::move_into_huge_pages);
            }
        }
        self.head().int8.iter().for_each(Int8Weight::move_into_huge_pages);
    }
}

impl Qwen2Layer {
    /// hidden `[T, D]` → same; `layer` is the index in the model.
    ///
    /// # Source
    /// transformers `modeling_qwen2.py`, `Qwen2DecoderLayer.forward`.
    pub fn forward(&self, hidden: Tensor<2>, layer: usize, context: &TextContext) -> Tensor<2> {
        let TextConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, rms_norm_eps: eps, .. } =
            context.config;
        let normed = self.input_layernorm.forward(hidden.clone(), eps);
        let (q, k, v) = self.self_attn.queries_keys_values(normed, layer, context);
        let attended = kernels::attention(q, k, v, heads, kv_heads, &context.seq_lens, Mask::Causal);
        let hidden = kernels::add(hidden, self.self_attn.o_proj.forward(attended, context.dropout(layer, 3)));
        let normed = self.post_attention_layernorm.forward(hidden.clone(), eps);
        kernels::add(hidden, self.mlp.forward(normed, |projection| context.dropout(layer, projection)))
    }

    /// What [`Qwen2Layer::forward`] gives for the last tokens of each sequence, without computing the others further than their
    /// keys and values: hidden `[T, D]` → `[last tokens, D]`.
    pub fn forward_last(&self, hidden: Tensor<2>, layer: usize, context: &TextContext, last: &LastTokens) -> Tensor<2> {
        let TextConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, rms_norm_eps: eps, .. } =
            context.config;
        let attention = &self.self_attn;
        let dropout = |projection| Some(context.dropout(layer, projection)?.of_last(&last.lens));
        let normed = self.input_layernorm.forward(hidden.clone(), eps);
        let x = kernels::select_rows(normed.values.clone(), &last.rows);
        let q = kernels::rope(attention.q_proj.forward(x, dropout(0)), &last.rope, heads);
        let k = attention.k_proj.forward(normed.clone(), context.dropout(layer, 1));
        let k = kernels::rope(k, &context.rope, kv_heads);
        let v = attention.v_proj.forward(normed, context.dropout(layer, 2));
        let attended = kernels::attention_of_last(q, k, v, heads, kv_heads, &last.lens, &context.seq_lens);
        let hidden =
            kernels::add(kernels::select_rows(hidden, &last.rows), attention.o_proj.forward(attended, dropout(3)));
        let normed = self.post_attention_layernorm.forward(hidden.clone(), eps);
        kernels::add(hidden, self.mlp.forward(normed, dropout))
    }

    /// The layer for new tokens behind those that the caches hold, or of these for `last` alone: the others then get no further
    /// than their keys and values.
    fn forward_cached(
        &self,
        hidden: Tensor<2>,
        layer: usize,
        context: &TextContext,
        caches: &mut [&mut KvCache],
        last: Option<&LastTokens>,
    ) -> Tensor<2> {
        let TextConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, rms_norm_eps: eps, .. } =
            context.config;
        let attention = &self.self_attn;
        let normed = self.input_layernorm.forward(hidden.clone(), eps);
        let of_last = |x: Tensor<2>| match last {
            Some(last) if last.rows.len() < x.dims()[0] => kernels::select_rows(x, &last.rows),
            _ => x,
        };
        let (rope, query_lens) = last.map_or((&context.rope, &context.seq_lens), |last| (&last.rope, &last.lens));
        let q = kernels::rope(attention.q_proj.forward(of_last(normed.values.clone()), None), rope, heads);
        let k = kernels::rope(attention.k_proj.forward(normed.clone(), None), &context.rope, kv_heads);
        let v = attention.v_proj.forward(normed, None);
        let mut start = 0;
        for (cache, &len) in caches.iter_mut().zip(&context.seq_lens) {
            let rows = |x: &Tensor<2>| x.clone().narrow(0, start, len);
            cache.layer_mut(layer).append(rows(&k), rows(&v));
            start += len;
        }
        let caches: Vec<_> = caches.iter().map(|cache| cache.layer(layer)).collect();
        let attended = kernels::attention_cached(q, &caches, query_lens, heads, kv_heads);
        let hidden = kernels::add(of_last(hidden), attention.o_proj.forward(attended, None));
        let normed = self.post_attention_layernorm.forward(hidden.clone(), eps);
        kernels::add(hidden, self.mlp.forward(normed, |_| None))
    }
}

impl Qwen2Attention {
    /// x `[T, D]` → rotated queries `[T, heads · head_dim]` and keys, and values, `[T, kv_heads · head_dim]`.
    fn queries_keys_values(
        &self,
        x: LinearInput,
        layer: usize,
        context: &TextContext,
    ) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
        let TextConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, .. } = context.config;
        let q = self.q_proj.forward(x.clone(), context.dropout(layer, 0));
        let k = self.k_proj.forward(x.clone(), context.dropout(layer, 1));
        let v = self.v_proj.forward(x, context.dropout(layer, 2));
        (kernels::rope(q, &context.rope, heads), kernels::rope(k, &context.rope, kv_heads), v)
    }
}

impl Qwen2Mlp {
    /// `dropout` gives that of a projection of the layer.
    fn forward<'a>(&self, x: LinearInput, dropout: impl Fn(usize) -> Option<SiteDropout<'a>>) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone(), dropout(4));
        let up = self.up_proj.forward(x, dropout(5));
        self.down_proj.forward(kernels::swiglu(gate, up), dropout(6))
    }
}

impl RmsNorm {
    /// x `[T, D]` → same.
    pub fn forward(&self, x: Tensor<2>, eps: f64) -> LinearInput {
        kernels::rms_norm(x, self.weight.val(), eps)
    }
}
