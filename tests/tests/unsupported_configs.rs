//! Published models of other kinds, typed from their `config.json`: each is refused by the name of what is not implemented.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tests::program;
use tests::training::fail;

/// What a configuration is given as.
#[derive(Clone, Copy, Debug)]
enum Part {
    VisionTower,
    LanguageModel,
    Llava,
}
use Part::{LanguageModel, Llava, VisionTower};

/// A published configuration: its name, what it is given as, its fields, and a word of the refusal.
struct Published(&'static str, Part, Value, &'static str);

/// A Llama 2 with other fields.
fn llama(more: &Value) -> Value {
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
        "use_cache": true, "vocab_size": 32000
    });
    with(llama, more)
}

/// A Qwen2.5-7B-Instruct with other fields.
fn qwen2(more: &Value) -> Value {
    let qwen2 = json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
        "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 152064
    });
    with(qwen2, more)
}

fn with(mut config: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

fn language_models() -> Vec<Published> {
    vec![
        Published(
            "Qwen2-VL-7B-Instruct",
            LanguageModel,
            qwen2(&json!({
                "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
                "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vision_start_token_id": 151652,
                "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "patch_size": 14}
            })),
            "qwen2_vl",
        ),
        Published(
            "Qwen3-30B-A3B",
            LanguageModel,
            json!({
                "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128,
                "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "mlp_only_layers": [],
                "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
                "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
                "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "vocab_size": 151936
            }),
            "qwen3_moe",
        ),
        Published(
            "gemma-2-9b-it",
            LanguageModel,
            json!({
                "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3584, "intermediate_size": 14336,
                "model_type": "gemma2", "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8,
                "query_pre_attn_scalar": 256, "sliding_window": 4096, "vocab_size": 256000
            }),
            "gemma2",
        ),
        Published(
            "Mistral-7B-v0.1",
            LanguageModel,
            json!({
                "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
                "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
                "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
                "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000
            }),
            "mistral",
        ),
        Published(
            "Phi-3-mini-128k-instruct",
            LanguageModel,
            json!({
                "architectures": ["Phi3ForCausalLM"], "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
                "max_position_embeddings": 131072, "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
                "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "sliding_window": 262144,
                "rope_scaling": {"long_factor": [1.07, 1.12], "short_factor": [1.1, 1.1], "type": "longrope"},
                "vocab_size": 32064
            }),
            "phi3",
        ),
        Published(
            "mpt-7b-chat",
            LanguageModel,
            json!({
                "architectures": ["MPTForCausalLM"], "d_model": 4096, "expansion_ratio": 4, "max_seq_len": 2048,
                "model_type": "mpt", "n_heads": 32, "n_layers": 32, "vocab_size": 50432
            }),
            "mpt",
        ),
        Published(
            "Llama-3.2-11B-Vision-Instruct",
            LanguageModel,
            json!({
                "architectures": ["MllamaForConditionalGeneration"], "image_token_index": 128256, "model_type": "mllama",
                "text_config": {"model_type": "mllama_text_model", "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38]},
                "vision_config": {"model_type": "mllama_vision_model", "image_size": 560}
            }),
            "mllama",
        ),
        Published(
            "LLaMA-2-7B-32K with dynamic NTK",
            LanguageModel,
            llama(&json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})),
            "dynamic",
        ),
        Published(
            "Yarn-Llama-2-7b-64k",
            LanguageModel,
            llama(&json!({"rope_scaling": {
                "factor": 16.0, "finetuned": true, "original_max_position_embeddings": 4096, "type": "yarn"
            }})),
            "yarn",
        ),
        Published(
            "Phi-3's scaling in a Llama",
            LanguageModel,
            llama(&json!({"rope_scaling": {"long_factor": [1.0, 1.1], "short_factor": [1.0, 1.0], "type": "su"}})),
            "su",
        ),
        Published(
            "Qwen2-7B with its window switched on",
            LanguageModel,
            qwen2(&json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 14})),
            "sliding",
        ),
        Published(
            "Qwen2.5-7B-Instruct with the README's YaRN",
            LanguageModel,
            qwen2(&json!({"rope_scaling": {
                "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"
            }})),
            "yarn",
        ),
    ]
}

fn vision_towers() -> Vec<Published> {
    vec![
        Published(
            "siglip2-so400m-patch16-naflex",
            VisionTower,
            json!({
                "architectures": ["Siglip2Model"], "model_type": "siglip2",
                "text_config": {"model_type": "siglip2_text_model", "hidden_size": 1152, "vocab_size": 256000},
                "vision_config": {
                    "model_type": "siglip2_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_patches": 256,
                    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 16
                }
            }),
            "siglip2",
        ),
        Published(
            "dinov2-large",
            VisionTower,
            json!({
                "architectures": ["Dinov2Model"], "hidden_act": "gelu", "hidden_size": 1024, "image_size": 518,
                "layerscale_value": 1.0, "mlp_ratio": 4, "model_type": "dinov2", "num_attention_heads": 16,
                "num_hidden_layers": 24, "patch_size": 14, "use_swiglu_ffn": false
            }),
            "dinov2",
        ),
        Published(
            "InternViT-300M-448px",
            VisionTower,
            json!({
                "architectures": ["InternVisionModel"], "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
                "hidden_act": "gelu", "hidden_size": 1024, "image_size": 448, "intermediate_size": 4096,
                "model_type": "intern_vit_6b", "norm_type": "layer_norm", "num_attention_heads": 16,
                "num_hidden_layers": 24, "patch_size": 14, "qk_normalization": false, "qkv_bias": true
            }),
            "intern_vit_6b",
        ),
        Published(
            "the text tower of clip-vit-large-patch14",
            VisionTower,
            json!({
                "architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072,
                "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408
            }),
            "clip_text_model",
        ),
    ]
}

fn llavas() -> Vec<Published> {
    let vicuna = json!({
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064
    });
    let clip = json!({
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000
    });
    let pinpoints = json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]);
    let llava = |more: &Value| {
        let llava = json!({
            "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
            "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "text_config": vicuna,
            "tie_word_embeddings": false, "torch_dtype": "float16", "vision_config": clip, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "vocab_size": 32064
        });
        with(llava, more)
    };
    vec![
        Published(
            "llava-v1.6-vicuna-7b-hf",
            Llava,
            llava(&json!({
                "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next",
                "image_grid_pinpoints": pinpoints, "use_image_newline_parameter": true
            })),
            "llava_next",
        ),
        Published(
            "llava-onevision-qwen2-7b-ov-hf",
            Llava,
            llava(&json!({
                "architectures": ["LlavaOnevisionForConditionalGeneration"], "model_type": "llava_onevision",
                "image_grid_pinpoints": pinpoints, "text_config": qwen2(&json!({})), "video_token_index": 151647
            })),
            "llava_onevision",
        ),
        Published(
            "pixtral-12b",
            Llava,
            llava(&json!({
                "image_seq_length": 1, "text_config": {"model_type": "mistral", "hidden_size": 5120, "vocab_size": 131072},
                "vision_config": {"model_type": "pixtral", "head_dim": 64, "hidden_size": 1024, "image_size": 1024}
            })),
            "mistral",
        ),
        Published(
            "llava-v1.5-7b of the original project",
            Llava,
            with(
                llama(&json!({})),
                &json!({
                    "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "mm_hidden_size": 1024,
                    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
                    "mm_vision_tower": "openai/clip-vit-large-patch14-336"
                }),
            ),
            "llava_llama",
        ),
    ]
}

#[test]
fn published_models_of_other_kinds_are_refused_by_name() {
    let clip = tests::project_file("configs/clip-vit-large-patch14-336");
    let qwen = tests::project_file("configs/qwen1.5-4b-chat");
    let all: Vec<Published> = language_models().into_iter().chain(vision_towers()).chain(llavas()).collect();
    assert!(all.len() >= 10, "{} configurations", all.len());
    for Published(name, part, config, word) in &all {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let plan = |vision_tower: &Path, language_model: &Path| {
            let mut command = Command::new(program("train"));
            command.arg("plan").arg("--vision-tower").arg(vision_tower).arg("--language-model").arg(language_model);
            command
        };
        let mut command = match part {
            VisionTower => plan(folder.path(), &qwen),
            LanguageModel => plan(&clip, folder.path()),
            Llava => {
                let mut command = Command::new(program("train"));
                command.arg("plan").arg("--model_name_or_path").arg(folder.path());
                command
            }
        };
        let error = fail(command.arg("--output_dir").arg(folder.path().join("run")));
        let word = *word;
        println!("{name}: {}", error.trim());
        assert!(error.contains(word) && error.contains("config.json"), "{name} ({part:?}): no {word} in: {error}");
    }
}
