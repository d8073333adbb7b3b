//! The type of each tensor of a language model, as `llama-quantize` chooses it without an importance matrix.
//!
//! # Source
//! llama.cpp `src/llama-quant.cpp`, `llama_tensor_get_type_impl` and `tensor_type_fallback`.

use super::blocks::TensorType;
use crate::args::ExportType;
use model::config::TextConfig;

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    to: ExportType,
    layers: usize,
    /// Embedding and output weights are one tensor.
    tied: bool,
}

impl Types {
    /// Types of a model's tensors.
    pub fn new(to: ExportType, config: &TextConfig) -> Self {
        Self { to, layers: config.num_hidden_layers, tied: config.tie_word_embeddings }
    }

    /// llama.cpp's number of the mixture (`general.file_type`).
    pub fn file_type(&self) -> u32 {
        match self.to {
            ExportType::F16 => 1,
            ExportType::Q8_0 => 7,
            ExportType::Q4KM => 15,
        }
    }

    /// The type of a matrix with rows of `width` values.
    pub fn of(&self, name: &str, width: usize) -> TensorType {
        let fits = |kind: TensorType| width.is_multiple_of(kind.block_values());
        let wanted = match self.to {
            ExportType::F16 => return TensorType::F16,
            ExportType::Q8_0 => TensorType::Q8_0,
            ExportType::Q4KM => self.of_q4_k_m(name),
        };
        match wanted {
            _ if fits(wanted) => wanted,
            TensorType::Q4K if fits(TensorType::Q5_0) => TensorType::Q5_0,
            TensorType::Q6K if fits(TensorType::Q8_0) => TensorType::Q8_0,
            _ => TensorType::F16,
        }
    }

    fn of_q4_k_m(&self, name: &str) -> TensorType {
        let is_head = name == "output.weight" || self.tied && name == "token_embd.weight";
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let in_more_bits = layer.is_some_and(|(layer, part)| {
            matches!(part, "attn_v.weight" | "ffn_down.weight")
                && layer.parse().is_ok_and(|layer| self.has_more_bits(layer))
        });
        if is_head || in_more_bits { TensorType::Q6K } else { TensorType::Q4K }
    }

    /// The first and the last eighth of the layers, and every third between.
    fn has_more_bits(&self, layer: usize) -> bool {
        let eighth = self.layers / 8;
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_of_llama_quantize() {
        let types = |to, tied| Types { to, layers: 24, tied };
        let mixed = types(ExportType::Q4KM, false);
        for (name, width, expected) in [
            ("token_embd.weight", 1024, TensorType::Q4K),
            ("output.weight", 1024, TensorType::Q6K),
            ("output.weight", 576, TensorType::Q8_0),
            ("output.weight", 40, TensorType::F16),
            ("blk.0.attn_v.weight", 1024, TensorType::Q6K),
            ("blk.3.attn_v.weight", 1024, TensorType::Q4K),
            ("blk.5.ffn_down.weight", 2816, TensorType::Q6K),
            ("blk.5.ffn_down.weight", 2816 + 32, TensorType::Q8_0),
            ("blk.6.ffn_down.weight", 2816, TensorType::Q4K),
            ("blk.21.ffn_down.weight", 2816, TensorType::Q6K),
            ("blk.21.ffn_up.weight", 1024, TensorType::Q4K),
            ("blk.21.attn_q.weight", 576, TensorType::Q5_0),
        ] {
            assert_eq!(mixed.of(name, width), expected, "{name}, {width}");
        }
        assert_eq!(types(ExportType::Q4KM, true).of("token_embd.weight", 1024), TensorType::Q6K);
        assert_eq!(types(ExportType::Q8_0, true).of("token_embd.weight", 576), TensorType::Q8_0);
        assert_eq!(types(ExportType::F16, true).of("token_embd.weight", 576), TensorType::F16);
        let more: Vec<usize> = (0..24).filter(|&layer| mixed.has_more_bits(layer)).collect();
        assert_eq!(more, [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]);
    }
}
