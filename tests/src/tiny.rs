//! Reference LLaVAs (the tiny one, and folders like it): config, weights, the batch of `forward.safetensors`, gradients.

use crate::reference;
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::named::{NamedVisitor, visit_named};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use store::checkpoint::{LoadAs, load_model};

/// Tensors of a safetensors file: f32 values (integers converted) and shapes.
pub type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// Reads a whole reference file.
pub fn read_tensors(path: &str) -> Tensors {
    read_tensors_at(&reference(path))
}

/// Reads a whole reference file.
pub fn read_tensors_at(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("the reference file is readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("the reference file is safetensors");
    let read = |view: &safetensors::tensor::TensorView<'_>| -> Vec<f32> {
        let bytes = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
            }
            safetensors::Dtype::I64 => {
                bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f32).collect()
            }
            safetensors::Dtype::U8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
            other => panic!("{}: {other:?} is not a format of the reference files", path.display()),
        }
    };
    tensors.iter().map(|(name, view)| (name.to_string(), (read(&view), view.shape().to_vec()))).collect()
}

/// The tiny model's config.
pub fn config() -> LlavaConfig {
    LlavaConfig::read(&reference("tiny/llava")).expect("the tiny config is readable")
}

/// The tiny model's config with heads as large as real models have them, for which GPUs have a kernel of attention: 64 in the tower,
/// 80 in the language model, where two query heads share a key/value head.
pub fn config_with_large_heads() -> LlavaConfig {
    let mut config = config();
    (config.vision.hidden_size, config.vision.num_attention_heads) = (128, 2);
    (config.text.num_attention_heads, config.text.num_key_value_heads, config.text.head_dim) = (4, 2, 80);
    config
}

/// The model of a tiny folder (`llava`, `train_none`, …), f32.
pub fn model(folder: &str, device: &Device) -> Llava {
    model_at(&reference(&format!("tiny/{folder}")), device).1
}

/// The config and the model of any folder, f32.
pub fn model_at(dir: &Path, device: &Device) -> (LlavaConfig, Llava) {
    load_model(dir, LoadAs::F32, device).expect("the reference model is readable")
}

/// A model's gradients by published names; parameters without one are absent.
pub fn gradients(model: &Llava, loss: &Tensor<1>) -> BTreeMap<String, Vec<f32>> {
    struct Collector {
        gradients: burn::tensor::Gradients,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl NamedVisitor for Collector {
        fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(&self.gradients) {
                self.found.insert(name, values(gradient));
            }
        }
    }
    let mut collector = Collector { gradients: loss.backward(), found: BTreeMap::new() };
    visit_named(model, &mut collector);
    collector.found
}

/// A tensor's values in f32.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("f32 values")
}

/// The batch of a `forward.safetensors`, its left padding taken off, packed.
pub fn forward_batch(reference: &Tensors, image_token_index: u32) -> PackedBatch {
    let (input_ids, shape) = &reference["input_ids"];
    let (labels, _) = &reference["labels"];
    let (attention_mask, _) = &reference["attention_mask"];
    let [rows, width] = shape[..] else { panic!("input_ids is a matrix") };
    let mut batch = PackedBatch { num_images: rows, ..Default::default() };
    for row in 0..rows {
        let kept = (row * width..(row + 1) * width).filter(|&i| attention_mask[i] == 1.0);
        let start = batch.input_ids.len();
        for index in kept {
            if input_ids[index] as u32 == image_token_index {
                batch.image_positions.push(batch.input_ids.len());
            }
            batch.input_ids.push(input_ids[index] as u32);
            batch.labels.push(labels[index] as i32);
        }
        batch.seq_lens.push(batch.input_ids.len() - start);
        batch.ids.push(row.to_string());
    }
    batch.pixel_values = reference["pixel_values"].0.clone();
    batch
}
