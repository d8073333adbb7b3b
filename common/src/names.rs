//! The one table of Hugging Face key strings: file names, tensor names, adapter keys.

/// Model configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Weights in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Index of weights in parts.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";
/// Fast tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Special tokens and, in older directories, the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Chat template.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// Chat template as some 4.x processors stored it.
pub const CHAT_TEMPLATE_JSON_FILE: &str = "chat_template.json";
/// Sampling defaults and the ids that end an answer.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";
/// Image processor.
pub const PREPROCESSOR_CONFIG_FILE: &str = "preprocessor_config.json";
/// Processor: patch size, feature selection, image token.
pub const PROCESSOR_CONFIG_FILE: &str = "processor_config.json";
/// LoRA configuration.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// LoRA weights.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The published llava-hf name (`language_model.model.layers.0…`) of a tensor in any spelling that transformers writes;
/// `None` for a tensor that a LLaVA does not have.
pub fn canonical(_name: &str) -> Option<String> {
    todo!()
}
