//! Language models: a family is a file, and a row of [`TextFamily`].

mod context;
mod decoder;
mod llama;
mod qwen2;
mod qwen3;
mod rope;
mod window;

pub use context::TextContext;
pub use decoder::{Decoder, LanguageModel, TEXT_LINEARS, TextAttention, TextLayer, TextMlp};
pub use rope::RopeScaling;

use crate::config::reader::{At, Fields, dtype};
use crate::config::{Activation, WeightDtype};
use base::Result;
use base::fields::Row;
use base::json::OneOrMany;
use burn::tensor::Device;
use kernels::kv_cache::KvCache;
use serde_json::{Map, Value};

families! {
    /// A family of language models.
    TextFamily {
        /// Qwen1.5, Qwen2, Qwen2.5.
        Qwen2 = qwen2,
        /// Qwen3 without experts.
        Qwen3 = qwen3,
        /// Llama, Vicuna, SmolLM2 and other models of this type.
        Llama = llama,
    }
}

impl TextFamily {
    /// `model_type` in a configuration.
    pub fn model_type(self) -> &'static str {
        self.spec().model_type
    }

    /// Class of the language model alone in transformers (`architectures`).
    pub fn architecture(self) -> &'static str {
        self.spec().architecture
    }
}

/// What a family's file says of it.
struct Spec {
    model_type: &'static str,
    architecture: &'static str,
    /// Values of fields that a file does not have.
    defaults: Defaults,
    /// Fields beside those of all language models.
    fields: &'static [Row],
    /// Reads the family's own fields.
    read: fn(&mut TextConfig, &Fields<'_>) -> Result<()>,
    /// The family's own fields of `config.json`.
    write: fn(&TextConfig, &mut Map<String, Value>),
}

/// Values of fields that a file does not have.
struct Defaults {
    intermediate_size: usize,
    /// `None`: as many as query heads.
    num_key_value_heads: Option<usize>,
    /// `None`: hidden_size / num_attention_heads.
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

/// A language model's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// What it is.
    pub family: TextFamily,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest position the model was made for, tokens.
    pub max_position_embeddings: usize,
    /// RoPE base.
    pub rope_theta: f64,
    /// RoPE for longer sequences, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// lm_head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The attention's output has a bias.
    pub o_bias: bool,
    /// The MLP has biases.
    pub mlp_bias: bool,
    /// Query and key heads are normalised before their rotation.
    pub qk_norm: bool,
    /// `bos_token_id`, if any.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id` of the config, one id or several; may be empty.
    pub eos_token_id: Vec<u32>,
    /// Dropout of attention weights in training; not applied here, kept for the config file.
    pub attention_dropout: f64,
}

impl TextConfig {
    /// An empty cache for a sequence of at most `capacity` tokens.
    pub fn kv_cache(&self, capacity: usize, device: &Device) -> KvCache {
        KvCache::new(self.num_hidden_layers, self.num_key_value_heads, self.head_dim, capacity, device)
    }

    /// Width of the queries of all heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values, of all heads.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// From the configuration of a language model alone, with the dtype of its weights.
    pub(crate) fn of_directory(fields: &Fields<'_>) -> Result<(Self, WeightDtype)> {
        let family = family(fields.model_type()?, &fields.at)?;
        let tied = fields.get("tie_word_embeddings")?.unwrap_or(false);
        Ok((Self::from_fields(family, fields, tied)?, dtype(&[fields])?))
    }

    /// From the language model of a LLaVA's configuration: a Llama where it does not say what it is. 4.x never wrote the
    /// LLaVA's own `tie_word_embeddings` when it was true (its default there), so where it stands it means what 5.x means by it.
    pub(crate) fn of_llava(fields: &Fields<'_>, tied_outside: bool) -> Result<Self> {
        let found = fields.model_type()?.unwrap_or(TextFamily::Llama.model_type());
        let tied = tied_outside || fields.get("tie_word_embeddings")? == Some(true);
        Self::from_fields(family(Some(found), &fields.at)?, fields, tied)
    }

    fn from_fields(family: TextFamily, fields: &Fields<'_>, tie_word_embeddings: bool) -> Result<Self> {
        let Spec { architecture, fields: own, read, defaults, .. } = family.spec();
        fields.check_all(&[own, FIELDS], &format!("a {architecture}"))?;
        let (hidden_size, heads) = (fields.or("hidden_size", 4096)?, fields.or("num_attention_heads", 32)?);
        let kv_heads: Option<usize> = fields.or("num_key_value_heads", defaults.num_key_value_heads)?;
        let head_dim = fields.get("head_dim")?.or(defaults.head_dim);
        fields.at.check(heads > 0, "num_attention_heads", heads, "at least 1")?;
        if head_dim.is_none() {
            let expected = format!("a divisor of hidden_size {hidden_size}");
            fields.at.check(hidden_size % heads == 0, "num_attention_heads", heads, expected)?;
        }
        let positions = fields.or("max_position_embeddings", defaults.max_position_embeddings)?;
        let (rope_theta, rope_scaling) = rope::read(fields, 10_000.0, positions)?;
        let eos: Option<OneOrMany<u32>> = fields.or("eos_token_id", defaults.eos_token_id.map(OneOrMany::One))?;
        let mut config = Self {
            family,
            hidden_size,
            intermediate_size: fields.or("intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers: fields.or("num_hidden_layers", 32)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads.unwrap_or(heads),
            head_dim: head_dim.unwrap_or(hidden_size / heads),
            vocab_size: fields.or("vocab_size", defaults.vocab_size)?,
            max_position_embeddings: positions,
            rope_theta,
            rope_scaling,
            rms_norm_eps: fields.or("rms_norm_eps", 1e-6)?,
            tie_word_embeddings,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            bos_token_id: fields.or("bos_token_id", defaults.bos_token_id)?,
            eos_token_id: eos.map_or_else(Vec::new, |ids| ids.to_vec()),
            attention_dropout: fields.dropout("attention_dropout")?,
        };
        let act: String = fields.or("hidden_act", Activation::Silu.name().into())?;
        let is_silu = Activation::from_name(&act) == Some(Activation::Silu);
        fields.at.require(is_silu, "hidden_act", act, Activation::Silu.name())?;
        read(&mut config, fields)?;
        config.validate(&fields.at)?;
        Ok(config)
    }

    fn validate(&self, at: &At) -> Result<()> {
        let Self { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = *self;
        at.check(head_dim > 0 && head_dim.is_multiple_of(2), "head_dim", head_dim, "an even number")?;
        at.check(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "num_key_value_heads",
            kv_heads,
            format!("a divisor of num_attention_heads {heads}"),
        )
    }

    /// The language model's object in a LLaVA's `config.json`, and the `config.json` of the language model alone.
    ///
    /// `rope_theta` and `torch_dtype` are written in their older places: 5.x reads them there, 4.41 nowhere else.
    pub fn to_json(&self, dtype: WeightDtype) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_string(), value);
        put("architectures", vec![self.family.architecture()].into());
        put("attention_dropout", self.attention_dropout.into());
        put("bos_token_id", self.bos_token_id.into());
        put(
            "eos_token_id",
            match self.eos_token_id[..] {
                [] => Value::Null,
                [id] => id.into(),
                ref ids => ids.into(),
            },
        );
        put("hidden_act", Activation::Silu.name().into());
        put("hidden_size", self.hidden_size.into());
        put("initializer_range", 0.02.into());
        put("intermediate_size", self.intermediate_size.into());
        put("max_position_embeddings", self.max_position_embeddings.into());
        put("model_type", self.family.model_type().into());
        put("num_attention_heads", self.num_attention_heads.into());
        put("num_hidden_layers", self.num_hidden_layers.into());
        put("num_key_value_heads", self.num_key_value_heads.into());
        put("rms_norm_eps", self.rms_norm_eps.into());
        put("rope_theta", self.rope_theta.into());
        put("tie_word_embeddings", self.tie_word_embeddings.into());
        put("torch_dtype", dtype.torch_name().into());
        put("use_cache", true.into());
        put("vocab_size", self.vocab_size.into());
        rope::write(self, &mut object);
        (self.family.spec().write)(self, &mut object);
        object.sort_keys();
        object.into()
    }
}

fn family(model_type: Option<&str>, at: &At) -> Result<TextFamily> {
    let is_it = |family: &TextFamily| Some(family.model_type()) == model_type;
    TextFamily::all().find(is_it).ok_or_else(|| {
        at.wrong_model_type(model_type, &TextFamily::all().map(TextFamily::model_type).collect::<Vec<_>>())
    })
}

/// Fields of all language models.
const FIELDS: &[Row] = {
    use base::fields::Rule::{Harmless, Only, Read};
    &[
        ("vocab_size", Read),
        ("hidden_size", Read),
        ("intermediate_size", Read),
        ("num_hidden_layers", Read),
        ("num_attention_heads", Read),
        ("num_key_value_heads", Read),
        ("head_dim", Read),
        ("hidden_act", Read),
        ("max_position_embeddings", Read),
        ("rms_norm_eps", Read),
        ("rope_theta", Read),
        ("rope_parameters", Read),
        ("rope_scaling", Read),
        ("original_max_position_embeddings", Read),
        ("partial_rotary_factor", Only(&["1"], "all of a head is rotated")),
        ("attention_dropout", Read),
        ("bos_token_id", Read),
        // Copies of max_position_embeddings.
        ("seq_length", Harmless),
        ("model_max_length", Harmless),
        ("is_causal", Only(&["true"], "attention in both directions is not implemented")),
    ]
};
