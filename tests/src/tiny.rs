//! Reference LLaVAs (the tiny one, and folders like it): config, weights, the batch of `forward.safetensors`, gradients.

use crate::shared;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use common::batch::PackedBatch;
use common::config::{Activation, FeatureSelect, LlavaConfig, TextConfig, VisionConfig, WeightDtype};
use common::model::Llava;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors of a safetensors file: f32 values (integers converted) and shapes.
pub type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// Reads a whole file of the shared reference material.
pub fn read_tensors(path: &str) -> Tensors {
    read_tensors_at(&shared(path))
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

/// What `fixtures/tiny/llava/config.json` says.
pub fn config() -> LlavaConfig {
    LlavaConfig {
        vision: VisionConfig {
            hidden_size: 48,
            intermediate_size: 96,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            image_size: 56,
            patch_size: 14,
            num_channels: 3,
            projection_dim: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        },
        text: TextConfig {
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            vocab_size: 640,
            max_position_embeddings: 1024,
            rope_theta: 5_000_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            bos_token_id: Some(597),
            eos_token_id: Some(599),
        },
        image_token_index: 600,
        pad_token_id: Some(597),
        vision_feature_layers: vec![-2],
        vision_feature_layer_is_scalar: true,
        vision_feature_select_strategy: FeatureSelect::Default,
        projector_hidden_act: Activation::Gelu,
        multimodal_projector_bias: true,
        dtype: WeightDtype::F32,
    }
}

/// A model of the tiny shape with the weights of a reference folder (`llava`, `train_none`, …), by published names.
pub fn model(folder: &str, device: &Device) -> Llava {
    model_at(&shared(&format!("fixtures/tiny/{folder}")), &config(), device)
}

/// A model of a shape with the weights of a folder.
pub fn model_at(dir: &Path, config: &LlavaConfig, device: &Device) -> Llava {
    let tensors = read_tensors_at(&dir.join("model.safetensors"));
    let mut loader = Loader { path: Vec::new(), tensors, device: device.clone() };
    let model = Llava::random(config, 0, device).map(&mut loader);
    assert!(loader.tensors.is_empty(), "tensors that the model does not have: {:?}", loader.tensors.keys());
    model
}

struct Loader {
    path: Vec<String>,
    tensors: Tensors,
    device: Device,
}

impl ModuleMapper for Loader {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let (values, shape) = self.tensors.remove(&name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(param.val().dims().to_vec(), shape, "{name}");
        Param::from_data(TensorData::new(values, shape), &self.device)
    }
}

/// A model's gradients by published names; parameters without one are absent.
pub fn gradients(model: &Llava, loss: &Tensor<1>) -> BTreeMap<String, Vec<f32>> {
    struct Collector {
        path: Vec<String>,
        gradients: burn::tensor::Gradients,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor for Collector {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(&self.gradients) {
                self.found.insert(self.path.join("."), values(gradient));
            }
        }
    }
    let mut collector = Collector { path: Vec::new(), gradients: loss.backward(), found: BTreeMap::new() };
    model.visit(&mut collector);
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
