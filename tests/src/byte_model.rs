//! A model directory without weights, made here: a token a byte, Qwen's chat template, pictures of 28 pixels. Enough for
//! `preprocess shards`. And pictures to go with it.

use serde_json::{Map, Value, json};
use std::path::Path;

/// Ids of the special tokens, after those of the 256 bytes.
const SPECIAL: [(&str, u32); 4] =
    [("<|endoftext|>", 256), ("<|im_start|>", 257), ("<|im_end|>", 258), ("<image>", 259)];

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                        '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes the model directory.
pub fn write(dir: &Path) {
    let files = [
        ("config.json", config()),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})),
        ("preprocessor_config.json", processor()),
    ];
    for (name, value) in files {
        std::fs::write(dir.join(name), serde_json::to_vec_pretty(&value).expect("JSON")).expect("written");
    }
    std::fs::write(dir.join("chat_template.jinja"), TEMPLATE).expect("written");
}

/// The model directory in a folder of its own.
pub fn make() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write(dir.path());
    dir
}

fn config() -> Value {
    json!({
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 259,
        "projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 260, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5, "projection_dim": 32
        }
    })
}

fn processor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor", "do_center_crop": true, "do_convert_rgb": true,
        "do_normalize": true, "do_rescale": true, "do_resize": true, "resample": 3, "rescale_factor": 1.0 / 255.0,
        "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28},
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]
    })
}

/// A byte-level BPE without merges: each byte is a token, under the character that GPT-2 writes for it.
fn tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let vocabulary: Map<String, Value> = (0..256u32)
        .map(|byte| {
            let code = if printable(byte) { byte } else { others.next().expect("endless") };
            (char::from_u32(code).expect("a character").to_string(), json!(byte))
        })
        .collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []}
    })
}

/// A BMP file of a coloured gradient, 40 × 32 pixels; another `seed` gives another picture.
pub fn picture(seed: u8) -> Vec<u8> {
    let (width, height) = (40u32, 32u32);
    let mut file = b"BM".to_vec();
    let bytes = 54 + 3 * width * height;
    for value in [bytes, 0, 54, 40, width, height, 1 | 24 << 16, 0, 3 * width * height, 2835, 2835, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    for pixel in 0..width * height {
        let (x, y) = ((pixel % width) as u8, (pixel / width) as u8);
        file.extend([x.wrapping_mul(6), y.wrapping_mul(8), seed.wrapping_mul(37).wrapping_add(x)]);
    }
    file
}
