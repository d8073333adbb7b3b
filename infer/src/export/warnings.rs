//! What llama.cpp is known to compute otherwise than this program and transformers.

use model::config::{Activation, LlavaConfig};

/// Logs the differences that concern a model.
pub fn tell(config: &LlavaConfig) {
    for difference in differences(config) {
        tracing::warn!("llama.cpp computes something else: {difference}");
    }
    tracing::info!(
        "llama.cpp resizes pictures of another size than the tower's with another filter (docs/inference.md, llama.cpp)"
    );
}

/// The differences that concern every picture.
pub fn differences(config: &LlavaConfig) -> Vec<&'static str> {
    let vision = &config.vision;
    let table = [
        (
            vision.family.has_class_token(),
            "it puts the tower's class token after the patches, so that each patch has its neighbour's position and the \
             first is lost (https://github.com/ggml-org/llama.cpp/issues/25814); answers about pictures may differ",
        ),
        (
            vision.hidden_act == Activation::Gelu,
            "its GELU of the vision tower is the one with tanh (features differ by about 1e-3)",
        ),
        (
            config.projector_hidden_act == Activation::Gelu,
            "its GELU of the projector is the one with tanh (features differ by about 1e-3)",
        ),
    ];
    table.into_iter().filter_map(|(concerned, difference)| concerned.then_some(difference)).collect()
}
