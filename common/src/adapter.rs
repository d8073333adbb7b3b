//! PEFT LoRA adapters: minimal `adapter_config.json`, both key spellings in `adapter_model.safetensors`.

use crate::Result;
use crate::model::Llava;
use crate::model::lora::LoraConfig;
use burn::tensor::Device;
use std::path::Path;

/// Reads `dir/adapter_config.json`.
pub fn read_config(_dir: &Path) -> Result<LoraConfig> {
    todo!()
}

/// Attaches the adapter's LoRA matrices (`lora_A`, `lora_B`) to the model's layers and replaces the projector.
pub fn load_adapter(_model: &mut Llava, _dir: &Path, _device: &Device) -> Result<LoraConfig> {
    todo!()
}

/// Writes the model's LoRA matrices and projector as a PEFT directory, each tensor under both spellings.
pub fn save_adapter(_model: &Llava, _config: &LoraConfig, _base_model: &str, _dir: &Path) -> Result<()> {
    todo!()
}
