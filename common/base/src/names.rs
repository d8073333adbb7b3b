//! The one table of Hugging Face key strings: file names, tensor names, adapter keys.

/// Model configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Weights in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Index of weights in parts.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";
/// Weights as PyTorch pickles them.
pub const PICKLED_WEIGHTS_FILE: &str = "pytorch_model.bin";
/// Fast tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// SentencePiece's file, which slow tokenizers read.
pub const SENTENCEPIECE_FILE: &str = "tokenizer.model";
/// Special tokens and, in older directories, the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Chat template.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// Folder of further templates, one file each.
pub const CHAT_TEMPLATES_DIR: &str = "additional_chat_templates";
/// Special tokens as transformers 4 stored them beside `tokenizer_config.json`.
pub const SPECIAL_TOKENS_MAP_FILE: &str = "special_tokens_map.json";
/// Added tokens of slow tokenizers: text to id.
pub const ADDED_TOKENS_FILE: &str = "added_tokens.json";
/// Chat template as some 4.x processors stored it.
pub const CHAT_TEMPLATE_JSON_FILE: &str = "chat_template.json";
/// Sampling defaults and the ids that end an answer.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";
/// Image processor.
pub const PREPROCESSOR_CONFIG_FILE: &str = "preprocessor_config.json";
/// Processor: patch size, feature selection, image token.
pub const PROCESSOR_CONFIG_FILE: &str = "processor_config.json";
/// First bytes of the text that Git LFS leaves in place of a file that was not fetched.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// LoRA configuration.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// LoRA weights.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// LoRA weights as PEFT pickled them before version 0.6.
pub const PICKLED_ADAPTER_WEIGHTS_FILE: &str = "adapter_model.bin";
/// Weights that LLaVA's original training code saves beside an adapter: the projector.
pub const NON_LORA_WEIGHTS_FILE: &str = "non_lora_trainables.bin";

/// `tokenizer.json`: tokens beside the vocabulary.
pub const ADDED_TOKENS: &str = "added_tokens";
/// `tokenizer_config.json`: the same, by id.
pub const ADDED_TOKENS_DECODER: &str = "added_tokens_decoder";
/// `tokenizer_config.json` of transformers 4: special tokens without a role of their own.
pub const ADDITIONAL_SPECIAL_TOKENS: &str = "additional_special_tokens";
/// The same in transformers 5.
pub const EXTRA_SPECIAL_TOKENS: &str = "extra_special_tokens";
/// Template in `tokenizer_config.json`.
pub const CHAT_TEMPLATE: &str = "chat_template";
/// Text of an added token.
pub const TOKEN_CONTENT: &str = "content";
/// Flags of a special token, in the order in which the tokenizers library writes them.
pub const TOKEN_FLAGS: [(&str, bool); 5] =
    [("single_word", false), ("lstrip", false), ("rstrip", false), ("normalized", false), ("special", true)];

/// What a tokenizer's vocabulary may lie in.
pub const VOCABULARY_FILES: [&str; 3] = [TOKENIZER_FILE, "vocab.json", "merges.txt"];

/// What a model directory holds besides configuration and weights.
pub const PROCESSOR_FILES: [&str; 11] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
    CHAT_TEMPLATE_JSON_FILE,
    GENERATION_CONFIG_FILE,
    PREPROCESSOR_CONFIG_FILE,
    PROCESSOR_CONFIG_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    ADDED_TOKENS_FILE,
    "vocab.json",
    "merges.txt",
];

/// Whether a name that somebody else has made up (a server, an index) is the name of a file in a folder itself: with no other
/// part of a path in it, so that nothing outside the folder can be meant.
pub fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}

/// A file that belongs to a model directory and to nothing else.
pub fn is_model_file(name: &str) -> bool {
    let is_part = is_plain(name) && name.starts_with("model-") && name.ends_with(".safetensors");
    is_part || [CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX_FILE].contains(&name) || PROCESSOR_FILES.contains(&name)
}

/// A file of an adapter directory.
pub fn is_adapter_file(name: &str) -> bool {
    [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE].contains(&name)
}

/// A file of a folder that decides what its model or adapter computes: configuration, tokenizer, processor, and weights in any
/// format that is read. Logs, states and settings of a run are none.
pub fn is_part_of_model(name: &str) -> bool {
    let is_weights = !name.starts_with('.') && (name.ends_with(".safetensors") || name.ends_with(".bin"));
    is_plain(name) && (is_weights || is_model_file(name) || is_adapter_file(name))
}

/// `model-00001-of-00003.safetensors`; `number` counts from 1.
pub fn weights_part(number: usize, parts: usize) -> String {
    format!("model-{number:05}-of-{parts:05}.safetensors")
}

/// Prefix of the vision tower's tensors.
pub const VISION_MODEL: &str = "vision_tower.vision_model";
/// Prefix of the projector's tensors.
pub const PROJECTOR: &str = "multi_modal_projector";
/// Prefix of the language model's body.
pub const TEXT_MODEL: &str = "language_model.model";
/// Output weights.
pub const LM_HEAD: &str = "language_model.lm_head.weight";
/// Token embeddings.
pub const EMBED_TOKENS: &str = "language_model.model.embed_tokens.weight";

/// How a name may begin, and the published beginning. The first row that fits is taken.
const SPELLINGS: [(&str, &str); 17] = [
    // transformers 4.52 and later: everything but the head in `model`, with or without the towers' inner level.
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    // The published ones, and the same without inner levels.
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("language_model.model.", "language_model.model."),
    ("language_model.", "language_model.model."),
    // Vision towers, alone or with a text tower.
    ("vision_model.", "vision_tower.vision_model."),
    ("embeddings.", "vision_tower.vision_model.embeddings."),
    ("encoder.", "vision_tower.vision_model.encoder."),
    ("pre_layrnorm.", "vision_tower.vision_model.pre_layrnorm."),
    ("post_layernorm.", "vision_tower.vision_model.post_layernorm."),
    // Language models alone.
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
];

/// The published llava-hf name (`language_model.model.layers.0…`) of a tensor in any spelling that transformers writes;
/// `None` for a tensor that a LLaVA does not have.
pub fn canonical(name: &str) -> Option<String> {
    SPELLINGS.iter().find_map(|(found, published)| Some(format!("{published}{}", name.strip_prefix(found)?)))
}

/// Buffers that older files store and nobody reads.
pub fn is_stored_buffer(name: &str) -> bool {
    name.ends_with("embeddings.position_ids") || name.ends_with("rotary_emb.inv_freq")
}

/// What bitsandbytes adds to the name of a weight in NF4 for the tensors beside its codes.
pub mod nf4 {
    /// A JSON text in bytes: dtype, shape, sizes of blocks.
    pub const STATE: &str = ".quant_state.bitsandbytes__nf4";
    /// Largest magnitudes of the blocks, or codes of them.
    pub const ABSMAX: &str = ".absmax";
    /// What the codes stand for.
    pub const QUANT_MAP: &str = ".quant_map";
    /// With double quantization: largest magnitudes of the blocks of magnitudes.
    pub const NESTED_ABSMAX: &str = ".nested_absmax";
    /// With double quantization: what the magnitudes' codes stand for.
    pub const NESTED_QUANT_MAP: &str = ".nested_quant_map";
    /// All of them.
    pub const PARTS: [&str; 5] = [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_QUANT_MAP, STATE];
}

/// Ends of the names of the tensors that bitsandbytes stores for a matrix in 8-bit integers, beside its codes.
pub mod int8 {
    /// The largest magnitude of each row.
    pub const SCB: &str = ".SCB";
    /// The order of the codes, a number.
    pub const FORMAT: &str = ".weight_format";
}

/// Ends of the names of a layer's two LoRA matrices.
const LORA_ENDS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
/// End of the name of DoRA's magnitudes.
const MAGNITUDE_END: &str = ".lora_magnitude_vector";

/// A LoRA matrix or DoRA's magnitudes, by the module path.
pub fn is_lora(name: &str) -> bool {
    lora_layer(name).is_some()
}

/// The layer of a LoRA matrix or of magnitudes.
pub fn lora_layer(name: &str) -> Option<&str> {
    LORA_ENDS.iter().chain([&MAGNITUDE_END]).find_map(|end| name.strip_suffix(end))
}

/// DoRA's magnitudes, by the module path.
pub fn is_lora_magnitude(name: &str) -> bool {
    name.ends_with(MAGNITUDE_END)
}

/// The name of a layer's magnitudes.
pub fn lora_magnitude(layer: &str) -> String {
    format!("{layer}{MAGNITUDE_END}")
}

/// The names of a layer's LoRA matrices, A first.
pub fn lora_matrices(layer: &str) -> [String; 2] {
    LORA_ENDS.map(|end| format!("{layer}{end}"))
}

/// Parts of a model with a vision tower and a text tower that a LLaVA has no use for: the text tower, the projections into the
/// joint space, the pooling head. The names are as stored.
pub fn is_of_two_towers_only(name: &str) -> bool {
    const PARTS: [&str; 5] = ["text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias"];
    PARTS.iter().any(|part| name.starts_with(part)) || name.starts_with("head.") || is_pooling_head(name)
}

/// The pooling head of a SigLIP, by a stored name: a LLaVA does not compute it.
pub fn is_pooling_head(name: &str) -> bool {
    canonical(name).is_some_and(|name| name.strip_prefix(VISION_MODEL).is_some_and(|rest| rest.starts_with(".head.")))
}

/// A part of the model that computes and is updated as one: what a backward pass finishes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    /// Patch, class and position embeddings and the norm after them.
    VisionEmbeddings,
    /// A layer of the vision tower.
    VisionLayer(usize),
    /// The norm of the class token, which a LLaVA does not compute.
    VisionPostNorm,
    /// The projector.
    Projector,
    /// Token embeddings.
    TokenEmbeddings,
    /// A layer of the language model.
    TextLayer(usize),
    /// Final norm and, unless tied, the output weights.
    Head,
}

/// The block of a tensor by its published name.
pub fn block(published: &str) -> Option<Block> {
    let layer = |rest: &str| rest.split('.').next()?.parse().ok();
    if published.starts_with(PROJECTOR) {
        return Some(Block::Projector);
    }
    if let Some(rest) = published.strip_prefix(VISION_MODEL) {
        return match rest.strip_prefix(".encoder.layers.") {
            Some(rest) => layer(rest).map(Block::VisionLayer),
            None if rest.starts_with(".post_layernorm.") => Some(Block::VisionPostNorm),
            None => Some(Block::VisionEmbeddings),
        };
    }
    if published == EMBED_TOKENS {
        return Some(Block::TokenEmbeddings);
    }
    match published.strip_prefix(TEXT_MODEL).and_then(|rest| rest.strip_prefix(".layers.")) {
        Some(rest) => layer(rest).map(Block::TextLayer),
        None => Some(Block::Head),
    }
}

/// Whether weight decay applies: not to biases and norm weights, as transformers' `get_decay_parameter_names`.
pub fn decays(published: &str) -> bool {
    let mut parts = published.rsplit('.');
    let (last, module) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    last != "bias" && !module.contains("norm") && !module.contains("layrnorm")
}

/// What PEFT puts before every name.
const ADAPTER_PREFIX: &str = "base_model.model.";

/// PEFT's two spellings of an adapter's tensor with a published path
/// (`language_model.model.layers.0.self_attn.q_proj.lora_A.weight`): transformers 4 first, transformers 5 second.
pub fn adapter_spellings(published: &str) -> [String; 2] {
    let [old, _, new] = module_spellings(published);
    [old, new].map(|path| format!("{ADAPTER_PREFIX}{path}"))
}

/// Number of [`module_spellings`].
pub const SPELLINGS_OF_MODULES: usize = 3;

/// The path of a module or tensor with a published path, as modules are named in a LLaVA of transformers up to 4.51, of 4.52 to
/// 4.57, and of 5: what PEFT compares `target_modules` and `modules_to_save` with.
pub fn module_spellings(published: &str) -> [String; SPELLINGS_OF_MODULES] {
    let tower = published.strip_prefix(VISION_MODEL);
    let new = |in_tower: &str| match (published.strip_prefix(TEXT_MODEL), tower, published.strip_prefix(HEAD)) {
        (Some(rest), ..) => format!("model.language_model{rest}"),
        (_, Some(rest), _) => format!("model.{in_tower}{rest}"),
        (.., Some(rest)) => format!("lm_head{rest}"),
        _ => format!("model.{published}"),
    };
    [published.to_string(), new(VISION_MODEL), new("vision_tower")]
}

/// The module of the output weights, which is there with tied weights, too.
pub const HEAD: &str = "language_model.lm_head";
/// What PEFT puts into the names of weights that have LoRA beside them.
const BASE_LAYER: &str = ".base_layer.";

/// The published path of an adapter's tensor in either spelling, PEFT's own wrappers taken off.
pub fn canonical_adapter(name: &str) -> Option<String> {
    let inner = name.strip_prefix(ADAPTER_PREFIX)?;
    let wrappers = [".modules_to_save.default.", ".modules_to_save.", ".default.", BASE_LAYER];
    let name = wrappers.iter().fold(inner.to_string(), |name, wrapper| name.replace(wrapper, "."));
    // Magnitudes are a parameter in files and a module in PEFT's memory.
    let is_magnitude = |name: &&str| is_lora_magnitude(name);
    canonical(name.strip_suffix(".weight").filter(is_magnitude).unwrap_or(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_becomes_the_published_one() {
        let layer = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias";
        let query = "language_model.model.layers.0.self_attn.q_proj.weight";
        let projector = "multi_modal_projector.linear_1.weight";
        let table = [
            (layer, layer),
            ("vision_tower.encoder.layers.0.mlp.fc1.bias", layer),
            ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", layer),
            ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", layer),
            ("vision_model.encoder.layers.0.mlp.fc1.bias", layer),
            ("encoder.layers.0.mlp.fc1.bias", layer),
            (query, query),
            ("model.language_model.layers.0.self_attn.q_proj.weight", query),
            ("language_model.layers.0.self_attn.q_proj.weight", query),
            ("model.layers.0.self_attn.q_proj.weight", query),
            (projector, projector),
            ("model.multi_modal_projector.linear_1.weight", projector),
            (LM_HEAD, LM_HEAD),
            ("lm_head.weight", LM_HEAD),
            ("model.embed_tokens.weight", EMBED_TOKENS),
            ("model.norm.weight", "language_model.model.norm.weight"),
            ("pre_layrnorm.weight", "vision_tower.vision_model.pre_layrnorm.weight"),
        ];
        for (found, published) in table {
            assert_eq!(canonical(found).as_deref(), Some(published), "{found}");
        }
        assert_eq!(canonical("text_model.final_layer_norm.bias"), None);
        assert_eq!(canonical("logit_scale"), None);
    }

    #[test]
    fn a_model_directory_has_files_of_its_own_and_no_paths() {
        for (name, is_one) in [
            ("config.json", true),
            ("model.safetensors", true),
            ("model-00001-of-00002.safetensors", true),
            ("merges.txt", true),
            ("model-/../../x.safetensors", false),
            ("model-../x.safetensors", false),
            ("model-\\..\\x.safetensors", false),
            ("../config.json", false),
            ("onnx/config.json", false),
            ("model-card.md", false),
        ] {
            assert_eq!(is_model_file(name), is_one, "{name}");
        }
    }

    #[test]
    fn what_a_model_is_made_of_is_known_by_its_name() {
        for (name, is_one) in [
            ("config.json", true),
            ("model-00001-of-00002.safetensors", true),
            ("pytorch_model.bin", true),
            ("adapter_model.bin", true),
            ("non_lora_trainables.bin", true),
            ("adapter_config.json", true),
            ("chat_template.jinja", true),
            (".model.safetensors.tmp", false),
            ("trainer_state.json", false),
            ("run.json", false),
            ("metrics.jsonl", false),
            ("README.md", false),
        ] {
            assert_eq!(is_part_of_model(name), is_one, "{name}");
        }
    }

    #[test]
    fn adapters_are_read_in_both_spellings() {
        let paths = [
            "language_model.model.layers.3.self_attn.q_proj.lora_A.weight",
            "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.lora_B.weight",
            "language_model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
            "multi_modal_projector.linear_1.weight",
            LM_HEAD,
            EMBED_TOKENS,
        ];
        for path in paths {
            for spelling in adapter_spellings(path) {
                assert_eq!(canonical_adapter(&spelling).as_deref(), Some(path), "{spelling}");
            }
        }
        assert_eq!(adapter_spellings(LM_HEAD)[1], "base_model.model.lm_head.weight");
        assert_eq!(canonical_adapter("base_model.model.lm_head.base_layer.weight").as_deref(), Some(LM_HEAD));
        let wrapped = "base_model.model.lm_head.lora_magnitude_vector.default.weight";
        assert_eq!(canonical_adapter(wrapped).as_deref(), Some("language_model.lm_head.lora_magnitude_vector"));
        let older = "base_model.model.multi_modal_projector.modules_to_save.default.linear_1.weight";
        assert_eq!(canonical_adapter(older).as_deref(), Some("multi_modal_projector.linear_1.weight"));
    }
}
