//! How many parameters each part has, and how many of them are trained.

use crate::config::TrainType;
use crate::parts::Part;
use crate::trainable::Choice;
use base::names;
use model::config::LlavaConfig;
use model::lora::LoraConfig;
use std::collections::BTreeMap;
use store::checkpoint::{ExpectedTensor, expected_tensors};

/// A part's parameters, in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartCount {
    /// The part.
    pub part: Part,
    /// All of its values.
    pub values: usize,
    /// Values that are trained.
    pub trained: usize,
    /// Values that the train type covers and no gradient can reach.
    pub unreachable: usize,
}

impl PartCount {
    /// Matrices that LoRA adds to the model.
    pub fn is_lora(&self) -> bool {
        self.part.is_lora()
    }
}

/// The parts of a model (and of its LoRA matrices), in the model's order.
pub fn parameters(config: &LlavaConfig, train_type: TrainType, lora: Option<&LoraConfig>) -> Vec<PartCount> {
    let (mut parts, choice) = (BTreeMap::new(), Choice::new(train_type, lora));
    for tensor in tensors(config, lora) {
        let Some(part) = Part::of(&tensor.name) else { continue };
        let count = parts.entry(part).or_insert(PartCount { part, values: 0, trained: 0, unreachable: 0 });
        count.values += tensor.len();
        if choice.is_trained(&tensor.name, config) {
            count.trained += tensor.len();
        } else if choice.is_covered(&tensor.name) {
            count.unreachable += tensor.len();
        }
    }
    parts.into_values().collect()
}

/// Every tensor of the model, LoRA matrices and output weights that an adapter unties from the embedding included.
pub fn tensors(config: &LlavaConfig, lora: Option<&LoraConfig>) -> Vec<ExpectedTensor> {
    let mut tensors = expected_tensors(config);
    if config.text.tie_word_embeddings && lora.is_some_and(LoraConfig::unties_head) {
        let shape = vec![config.text.vocab_size, config.text.hidden_size];
        tensors.push(ExpectedTensor { name: names::LM_HEAD.to_string(), shape });
    }
    let Some(lora) = lora else { return tensors };
    let has_head = tensors.iter().any(|tensor| tensor.name == names::LM_HEAD);
    let shape = vec![config.text.vocab_size, config.text.hidden_size];
    // A tied head has matrices of its own; its weights are the embedding's.
    let tied = (!has_head).then(|| ExpectedTensor { name: names::LM_HEAD.to_string(), shape });
    let matrices = tensors.iter().chain(&tied).flat_map(|tensor| matrices(tensor, lora)).collect();
    [tensors, matrices].concat()
}

/// The two LoRA matrices of a weight, if it gets any, and DoRA's magnitudes.
fn matrices(tensor: &ExpectedTensor, lora: &LoraConfig) -> Vec<ExpectedTensor> {
    let (Some(path), &[outputs, inputs]) = (tensor.name.strip_suffix(".weight"), tensor.shape.as_slice()) else {
        return Vec::new();
    };
    if !lora.has_lora(path) {
        return Vec::new();
    }
    let rank = lora.rank_of(path);
    let shapes = [[rank, inputs], [outputs, rank]];
    let matrices = names::lora_matrices(path).into_iter().zip(shapes);
    let matrices = matrices.map(|(name, shape)| ExpectedTensor { name, shape: shape.into() });
    let magnitude = lora.use_dora.then(|| ExpectedTensor { name: names::lora_magnitude(path), shape: vec![outputs] });
    matrices.chain(magnitude).collect()
}
