//! Weights in few bits within a model: which can be, and which are.

use crate::Llava;
use crate::lora::linears;
use crate::text::TEXT_LINEARS;
use base::names::{self, Block};
use kernels::{Quantization, QuantizedWeight};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Whether a tensor is rounded when a model is loaded in few bits, by its published name: the matrices of the language model's
/// layers. Vision tower, projector, embeddings and head stay as they are.
///
/// # Source
/// LLaVA's `train.py`, where the tower is loaded apart and `llm_int8_skip_modules` names the projector; transformers'
/// `get_keys_to_not_convert` leaves out the head.
/// # Differs
/// transformers by itself, without `llm_int8_skip_modules`, also rounds tower and projector.
pub fn is_rounded(name: &str) -> bool {
    let path = name.strip_suffix(".weight");
    let is_linear = path.is_some_and(|path| TEXT_LINEARS.iter().any(|linear| path.ends_with(linear)));
    is_linear && matches!(names::block(name), Some(Block::TextLayer(_)))
}

/// What of a model is held in few bits, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// The format.
    pub format: Quantization,
    /// Layers that stay as they are, by their published paths.
    pub skipped: BTreeSet<String>,
}

impl Rounding {
    /// Whether a tensor is rounded, by its published name.
    pub fn rounds(&self, name: &str) -> bool {
        let is_skipped = || name.strip_suffix(".weight").is_some_and(|path| self.skipped.contains(path));
        is_rounded(name) && !is_skipped()
    }
}

impl From<Quantization> for Rounding {
    /// Of all matrices of the language model's layers.
    fn from(format: Quantization) -> Self {
        Self { format, skipped: BTreeSet::new() }
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, skipped } = self;
        match skipped.iter().filter(|path| is_rounded(&format!("{path}.weight"))).count() {
            0 => write!(f, "{format}"),
            count => write!(f, "{format}, {count} of them as they are"),
        }
    }
}

/// Every weight in few bits but the head, by its published name.
pub fn weights(model: &Llava) -> Vec<(String, QuantizedWeight)> {
    // A clone shares the values.
    let mut model = model.clone();
    let linears = linears(&mut model).into_iter();
    linears.filter_map(|(path, linear)| Some((format!("{path}.weight"), linear.quantized.take()?))).collect()
}

/// Puts weights in few bits in the place of those of the same name.
pub fn place(model: &mut Llava, mut weights: BTreeMap<String, QuantizedWeight>) {
    if !weights.is_empty() {
        linears(model)
            .into_iter()
            .for_each(|(path, linear)| linear.quantized = weights.remove(&format!("{path}.weight")));
    }
}

/// Makes weights that are to be trained float again.
pub fn dequantize(model: &mut Llava, is_trained: impl Fn(&str) -> bool) {
    let linears = linears(model).into_iter();
    linears.filter(|(path, _)| is_trained(&format!("{path}.weight"))).for_each(|(_, linear)| linear.dequantize());
}
