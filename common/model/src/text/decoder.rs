//! The decoder of all text families: pre-norm layers of rotary attention and SwiGLU. What a family adds (biases, norms of
//! queries and keys) is a field of [`TextConfig`].

use super::TextConfig;
use super::context::TextContext;
use crate::nn::init::Initializer;
use crate::nn::{Embedding, Linear, RmsNorm};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use kernels::kv_cache::{self, KvCache};
use kernels::{CrossEntropies, Dropout, LinearInput, Mask, Quantization, QuantizedWeight};

/// `language_model.…`
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Embedding, layers, final norm.
    pub model: Decoder,
    /// Output weights; `None` when tied to the embedding.
    pub lm_head: Option<Embedding>,
}

/// `language_model.model.…`
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[V, D]`
    pub embed_tokens: Embedding,
    /// In order.
    pub layers: Vec<TextLayer>,
    /// Before the head.
    pub norm: RmsNorm,
}

/// Pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct TextLayer {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Causal attention with RoPE.
    pub self_attn: TextAttention,
    /// Before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// SwiGLU.
    pub mlp: TextMlp,
}

/// `self_attn.…`
#[derive(Module, Debug)]
pub struct TextAttention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output.
    pub o_proj: Linear,
    /// Norm of each query head, before its rotation.
    pub q_norm: Option<RmsNorm>,
    /// Norm of each key head, before its rotation.
    pub k_norm: Option<RmsNorm>,
}

/// `mlp.…`
#[derive(Module, Debug)]
pub struct TextMlp {
    /// Gate.
    pub gate_proj: Linear,
    /// Up.
    pub up_proj: Linear,
    /// Down.
    pub down_proj: Linear,
}

/// Names of a layer's linear layers, in the order of [`TextLayer::linears_mut`].
pub const TEXT_LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl LanguageModel {
    /// Embeddings of tokens in the dtype that the device computes in: `[T]` → `[T, D]`.
    pub fn embed(&self, input_ids: &[u32]) -> Tensor<2> {
        self.model.embed_tokens.rows(input_ids)
    }

    /// Logits after the tokens at `positions`: hidden `[T, D]` → `[positions, V]`.
    pub fn logits(&self, hidden: Tensor<2>, positions: &[usize], config: &TextConfig) -> Tensor<2> {
        let [tokens, _] = hidden.dims();
        let rows =
            if positions.iter().copied().eq(0..tokens) { hidden } else { kernels::select_rows(hidden, positions) };
        self.head().logits(self.model.norm.forward(rows, config.rms_norm_eps).values, None)
    }

    /// Cross entropy of `targets` at `positions`: hidden `[T, D]`. No other logits are computed. `dropout` is that of the head's
    /// LoRA.
    pub fn losses(
        &self,
        hidden: Tensor<2>,
        positions: &[usize],
        targets: &[u32],
        config: &TextConfig,
        dropout: Option<&Dropout>,
    ) -> CrossEntropies {
        let rows = kernels::select_rows(hidden, positions);
        let normed = self.model.norm.forward(rows, config.rms_norm_eps).values;
        match self.head() {
            head if head.is_composed() => {
                kernels::reference::cross_entropy_of_logits(head.logits(normed, dropout), targets)
            }
            head => kernels::cross_entropy_sum(normed, head.weight.val(), targets),
        }
    }

    /// `[V, D]`: lm_head, or the embedding when tied.
    pub fn head(&self) -> &Embedding {
        self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens)
    }

    /// The head's weight `[V, D]`.
    pub fn head_weight(&self) -> Tensor<2> {
        self.head().weight.val()
    }

    /// Keeps the matrices of the layers in few bits, for a fraction of the memory traffic. LoRA matrices stay as they are;
    /// merge them first for speed.
    pub fn quantize_layers(&mut self, format: Quantization) {
        self.model.layers.iter_mut().flat_map(TextLayer::linears_mut).for_each(|linear| linear.quantize(format));
    }

    /// Keeps the head in few bits, and with it the embedding where the two are tied: inference only.
    pub fn quantize_head(&mut self, format: Quantization) {
        self.lm_head.as_mut().unwrap_or(&mut self.model.embed_tokens).quantize(format);
    }

    /// Moves the weights into huge pages where system and backend can: decoding reads all of them for every token.
    pub fn move_into_huge_pages(&mut self) {
        self.visit(&mut HugePages);
        let linears = self.model.layers.iter_mut().flat_map(TextLayer::linears_mut);
        linears.filter_map(|linear| linear.quantized.as_ref()).for_each(QuantizedWeight::move_into_huge_pages);
        self.head().quantized.iter().for_each(QuantizedWeight::move_into_huge_pages);
    }
}

struct HugePages;

impl ModuleVisitor for HugePages {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        kernels::move_into_huge_pages(&param.val());
    }
}

impl TextLayer {
    /// hidden `[T, D]` → `[T, D]`, or only the rows of [`TextContext::last_tokens`]: of the other tokens, the keys and values
    /// are computed and nothing more. `layer` is the index in the model. With `caches` (one for each sequence) the tokens
    /// continue the cached sequences, and their keys and values are appended to the caches.
    ///
    /// # Panics
    /// If a cache is too small for its new tokens.
    /// # Source
    /// transformers `modeling_qwen2.py`, `Qwen2DecoderLayer.forward`; Qwen3's and Llama's are the same.
    pub fn forward(
        &self,
        hidden: Tensor<2>,
        layer: usize,
        context: &TextContext,
        caches: Option<&mut [&mut KvCache]>,
    ) -> Tensor<2> {
        let eps = context.config.rms_norm_eps;
        let normed = self.input_layernorm.forward(hidden.clone(), eps);
        let residual = match context.last_tokens(layer) {
            Some(last) => last.select(hidden),
            None => hidden,
        };
        let hidden = self.self_attn.forward(residual, normed, layer, context, caches);
        let normed = self.post_attention_layernorm.forward(hidden.clone(), eps);
        self.mlp.forward(hidden, normed, layer, context)
    }

    /// The linear layers, in the order of [`TEXT_LINEARS`].
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let TextAttention { q_proj, k_proj, v_proj, o_proj, .. } = &mut self.self_attn;
        let TextMlp { gate_proj, up_proj, down_proj } = &mut self.mlp;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }
}

impl TextAttention {
    /// Normed hidden states `[T, D]` → `residual` and the attention's output, for the tokens whose output the layer computes.
    fn forward(
        &self,
        residual: Tensor<2>,
        x: LinearInput,
        layer: usize,
        context: &TextContext,
        caches: Option<&mut [&mut KvCache]>,
    ) -> Tensor<2> {
        let TextConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, rms_norm_eps: eps, .. } =
            context.config;
        let last = context.last_tokens(layer);
        let (query_input, query_rope, query_lens) = match last {
            Some(last) => (last.select_input(x.clone()), &last.rope, &last.lens),
            None => (x.clone(), &context.rope, &context.seq_lens),
        };
        // With caches, the rotation comes with appending.
        let is_cached = caches.is_some();
        let rotated = |x, rope, heads| if is_cached { x } else { kernels::rope(x, rope, heads) };
        let is_decode = is_cached && context.seq_lens.iter().all(|&len| len == 1);
        let joined =
            if is_decode { Linear::joined([&self.q_proj, &self.k_proj, &self.v_proj], &query_input) } else { None };
        let [q, k, v] = match joined {
            Some([q, k, v]) => [norm_heads(&self.q_norm, q, eps), norm_heads(&self.k_norm, k, eps), v],
            None => {
                let q = self.q_proj.forward(query_input, context.output_dropout(layer, 0));
                let q = rotated(norm_heads(&self.q_norm, q, eps), query_rope, heads);
                let k = self.k_proj.forward(x.clone(), context.dropout(layer, 1));
                let k = rotated(norm_heads(&self.k_norm, k, eps), &context.rope, kv_heads);
                [q, k, self.v_proj.forward(x, context.dropout(layer, 2))]
            }
        };
        let attended = match (caches, last) {
            (Some(caches), _) => {
                let mut caches: Vec<_> = caches.iter_mut().map(|cache| cache.layer_mut(layer)).collect();
                let (ropes, of_heads) = ([query_rope, &context.rope], [heads, kv_heads]);
                let q = kv_cache::append_rotated([q, k, v], ropes, of_heads, &context.seq_lens, &mut caches);
                let caches: Vec<_> = caches.iter().map(|cache| &**cache).collect();
                kernels::attention_cached(q, &caches, query_lens, heads, kv_heads)
            }
            (None, Some(_)) => kernels::attention_of_last(q, k, v, heads, kv_heads, query_lens, &context.seq_lens),
            (None, None) => kernels::attention(q, k, v, heads, kv_heads, &context.seq_lens, Mask::Causal),
        };
        self.o_proj.forward_onto(residual, attended, context.output_dropout(layer, 3))
    }
}

fn norm_heads(norm: &Option<RmsNorm>, x: Tensor<2>, eps: f64) -> Tensor<2> {
    match norm {
        Some(norm) => norm.forward_heads(x, eps),
        None => x,
    }
}

impl TextMlp {
    /// `residual` and the MLP's output.
    fn forward(&self, residual: Tensor<2>, x: LinearInput, layer: usize, context: &TextContext) -> Tensor<2> {
        let dropouts = [4, 5].map(|projection| context.output_dropout(layer, projection));
        let inner = Linear::gated([&self.gate_proj, &self.up_proj], x, dropouts);
        self.down_proj.forward_onto(residual, inner, context.output_dropout(layer, 6))
    }
}

/// `initializer_range` of all families: the standard deviation of every matrix.
const INITIALIZER_RANGE: f64 = 0.02;

impl LanguageModel {
    /// A language model of the config's shapes, to be filled.
    pub fn zeros(config: &TextConfig, device: &Device) -> Self {
        Self::init(config, &mut Initializer::zeros(device))
    }

    /// Fresh weights, or zeros to be filled.
    ///
    /// # Source
    /// transformers `PreTrainedModel._init_weights`.
    pub(crate) fn init(config: &TextConfig, init: &mut Initializer<'_>) -> Self {
        let (rows, width) = (config.vocab_size, config.hidden_size);
        let model = Decoder {
            embed_tokens: init.table(rows, width, INITIALIZER_RANGE),
            layers: (0..config.num_hidden_layers).map(|_| TextLayer::init(config, init)).collect(),
            norm: init.rms_norm(width),
        };
        Self { model, lm_head: (!config.tie_word_embeddings).then(|| init.table(rows, width, INITIALIZER_RANGE)) }
    }
}

impl TextLayer {
    fn init(config: &TextConfig, init: &mut Initializer<'_>) -> Self {
        let TextConfig { hidden_size: width, intermediate_size: inner, head_dim, qkv_bias, o_bias, mlp_bias, .. } =
            *config;
        let (q_width, kv_width) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
        let mut linear = |inputs, outputs, bias| init.linear(inputs, outputs, INITIALIZER_RANGE, bias);
        let [q_proj, k_proj, v_proj] = [q_width, kv_width, kv_width].map(|outputs| linear(width, outputs, qkv_bias));
        let o_proj = linear(q_width, width, o_bias);
        let mlp = TextMlp {
            gate_proj: linear(width, inner, mlp_bias),
            up_proj: linear(width, inner, mlp_bias),
            down_proj: linear(inner, width, mlp_bias),
        };
        let [q_norm, k_norm] = [(); 2].map(|()| config.qk_norm.then(|| init.rms_norm(head_dim)));
        Self {
            input_layernorm: init.rms_norm(width),
            self_attn: TextAttention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm },
            post_attention_layernorm: init.rms_norm(width),
            mlp,
        }
    }
}
