//! The one table of Hugging Face key strings: config keys, tensor names, adapter keys.

/// The published llava-hf name (`language_model.model.layers.0…`) of a tensor in any spelling that transformers writes;
/// `None` for a tensor that a LLaVA does not have.
pub fn canonical(_name: &str) -> Option<String> {
    todo!()
}
