//! `config.json`, `generation_config.json` and `adapter_config.json` as people publish them: read, or refused by the name of what is
//! not done. The texts have the fields and values of the published files that they are named after.

use chat::eos::eos_token_ids;
use model::config::{LlavaConfig, TextConfig, VisionConfig};
use serde_json::{Value, json};
use std::path::Path;
use store::adapter::read_config;
use tests::adapters::{self, text_lora};

fn folder(file: &str, content: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(file), content.to_string()).expect("written");
    folder
}

/// `base` with other or further fields.
fn with(base: Value, more: Value) -> Value {
    let (Value::Object(mut base), Value::Object(more)) = (base, more) else { panic!("objects") };
    base.extend(more);
    Value::Object(base)
}

/// What has to happen: the file is read, or the error names all of these.
type Verdict<'a> = Result<(), &'a [&'a str]>;

fn assert_verdict<T: std::fmt::Debug>(name: &str, found: base::Result<T>, expected: Verdict) {
    match (found, expected) {
        (Ok(_), Ok(())) => println!("{name}: read"),
        (Err(error), Err(words)) => {
            let error = error.to_string();
            println!("{name}: {error}");
            assert!(words.iter().all(|word| error.contains(word)), "{name}: {words:?} not in: {error}");
        }
        (found, expected) => panic!("{name}: found {found:?}, expected {expected:?}"),
    }
}

/// Qwen1.5-0.5B-Chat.
fn qwen() -> Value {
    json!({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643, "eos_token_id": 151_645,
        "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 2816,
        "max_position_embeddings": 32_768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 16,
        "num_hidden_layers": 24, "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "sliding_window": 32_768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.37.0",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151_936})
}

#[test]
fn language_models() {
    let full = vec!["full_attention"; 24];
    let mixed: Vec<&str> =
        (0..24).map(|layer| if layer % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
    for (name, more, expected) in [
        ("Qwen1.5-0.5B-Chat", json!({}), Ok(())),
        (
            "Qwen1.5-7B-Chat",
            json!({"hidden_size": 4096, "intermediate_size": 11_008, "max_window_layers": 28,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "tie_word_embeddings": false}),
            Ok(()),
        ),
        (
            "Qwen2-7B-Instruct",
            json!({"hidden_size": 3584, "intermediate_size": 18_944, "max_window_layers": 28,
            "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 131_072,
            "tie_word_embeddings": false, "vocab_size": 152_064}),
            Ok(()),
        ),
        (
            "Qwen2.5-7B",
            json!({"hidden_size": 3584, "intermediate_size": 18_944, "max_position_embeddings": 131_072,
            "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
            "sliding_window": 131_072, "use_mrope": false, "vocab_size": 152_064}),
            Ok(()),
        ),
        (
            "saved by transformers 5",
            json!({"dtype": "bfloat16", "torch_dtype": null, "rope_theta": null, "pad_token_id": null,
            "layer_types": full, "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}, "sliding_window": null}),
            Ok(()),
        ),
        (
            "saved by unsloth",
            json!({"_name_or_path": "unsloth/Qwen2.5-0.5B", "unsloth_fixed": true, "unsloth_version": "2025.3.1",
            "_attn_implementation_autoset": true, "rope_scaling": null}),
            Ok(()),
        ),
        (
            "a 4.30 checkpoint",
            json!({"add_cross_attention": false, "bad_words_ids": null, "chunk_size_feed_forward": 0,
            "cross_attention_hidden_size": null, "decoder_start_token_id": null, "diversity_penalty": 0.0, "do_sample": false,
            "early_stopping": false, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": null,
            "finetuning_task": null, "forced_bos_token_id": null, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
            "is_decoder": false, "is_encoder_decoder": false, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
            "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "output_attentions": false, "pruned_heads": {},
            "return_dict": true, "sep_token_id": null, "temperature": 1.0, "tf_legacy_loss": false, "tie_encoder_decoder": false,
            "torchscript": false, "typical_p": 1.0, "use_bfloat16": false}),
            Ok(()),
        ),
        (
            "a window as long as the model",
            json!({"use_sliding_window": true}),
            Err(&["use_sliding_window", "width 32768 from layer 21 on"][..]),
        ),
        (
            "Qwen2.5-7B-Instruct with YaRN",
            json!({"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32_768,
            "type": "yarn"}}),
            Err(&["config.json: rope_scaling", "yarn"][..]),
        ),
        (
            "dynamic NTK of transformers 5",
            json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}}),
            Err(&["rope_parameters", "dynamic"]),
        ),
        (
            "two names of the type",
            json!({"rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [16, 24, 24]}}),
            Err(&["rope_scaling", "mrope"]),
        ),
        (
            "a default type with sections",
            json!({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}),
            Err(&["rope_scaling", "unknown field mrope_section"]),
        ),
        ("one base in both places", json!({"rope_parameters": {"rope_theta": 1e6}}), Ok(())),
        (
            "two bases",
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
            Err(&["rope_theta", "rope_parameters.rope_theta 500000 and rope_theta 1000000"]),
        ),
        (
            "a base of rope_scaling beside another",
            json!({"rope_theta": null, "rope_scaling": {"type": "default", "rope_theta": 250.0},
                "rope_parameters": {"rope_theta": 300.0}}),
            Err(&["rope_scaling.rope_theta 250 and rope_parameters.rope_theta 300"]),
        ),
        (
            "windows by layer_types",
            json!({"layer_types": mixed, "use_sliding_window": true, "sliding_window": 4096}),
            Err(&["layer_types", "sliding_attention in layer 0, width 4096"]),
        ),
        ("layer_types alone", json!({"layer_types": mixed}), Err(&["layer_types", "sliding_attention"])),
        (
            "layer_types of other layers",
            json!({"layer_types": ["full_attention"]}),
            Err(&["layer_types", "1 layers", "24"]),
        ),
        (
            "windows by max_window_layers",
            json!({"use_sliding_window": true, "sliding_window": 4096}),
            Err(&["use_sliding_window", "width 4096 from layer 21 on"]),
        ),
        (
            "Qwen2.5-7B-Instruct-AWQ",
            json!({"quantization_config": {"bits": 4, "quant_method": "awq"}}),
            Err(&["quantization_config", "quantized weights"]),
        ),
        (
            "gte-Qwen2-7B-instruct",
            json!({"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}, "is_causal": false}),
            Err(&["is_causal false"]),
        ),
        (
            "code of its own",
            json!({"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}),
            Err(&["auto_map {", "code that comes with the model"]),
        ),
        (
            "Qwen2.5-14B-Instruct-1M",
            json!({"dual_chunk_attention_config": {"chunk_size": 262_144}}),
            Err(&["unknown field dual_chunk_attention_config", "Qwen2"]),
        ),
        ("Qwen1.5-MoE-A2.7B", json!({"model_type": "qwen2_moe"}), Err(&["qwen2_moe"])),
        ("Qwen2-VL-2B-Instruct", json!({"model_type": "qwen2_vl"}), Err(&["qwen2_vl"])),
        ("heads that are pruned", json!({"pruned_heads": {"0": [1]}}), Err(&["pruned_heads {\"0\":[1]}"])),
        ("a typing error", json!({"rms_norm_epsilon": 1e-5}), Err(&["unknown field rms_norm_epsilon"])),
        ("attention dropout above 1", json!({"attention_dropout": 1.5}), Err(&["attention_dropout", "1.5"])),
    ] {
        assert_verdict(name, TextConfig::read_qwen2(folder("config.json", &with(qwen(), more)).path()), expected);
    }
}

/// The vision tower of openai/clip-vit-large-patch14, with every field that transformers 4.21 wrote.
fn old_tower() -> Value {
    const FIELDS: &str = r#"{
        "_name_or_path": "", "add_cross_attention": false, "architectures": null, "attention_dropout": 0.0,
        "bad_words_ids": null, "bos_token_id": null, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": null, "decoder_start_token_id": null, "diversity_penalty": 0.0,
        "do_sample": false, "dropout": 0.0, "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
        "eos_token_id": null, "exponential_decay_length_penalty": null, "finetuning_task": null,
        "forced_bos_token_id": null, "forced_eos_token_id": null, "hidden_act": "quick_gelu", "hidden_size":
        1024, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "image_size": 224, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 4096, "is_decoder": false, "is_encoder_decoder":
        false, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "layer_norm_eps": 1e-5, "length_penalty": 1.0,
        "max_length": 20, "min_length": 0, "model_type": "clip_vision_model", "no_repeat_ngram_size": 0,
        "num_attention_heads": 16, "num_beam_groups": 1, "num_beams": 1, "num_hidden_layers": 24,
        "num_return_sequences": 1, "output_attentions": false, "output_hidden_states": false,
        "output_scores": false, "pad_token_id": null, "patch_size": 14, "prefix": null, "problem_type":
        null, "projection_dim": 768, "pruned_heads": {}, "remove_invalid_values": false,
        "repetition_penalty": 1.0, "return_dict": true, "return_dict_in_generate": false, "sep_token_id":
        null, "task_specific_params": null, "temperature": 1.0, "tie_encoder_decoder": false,
        "tie_word_embeddings": true, "tokenizer_class": null, "top_k": 50, "top_p": 1.0, "torch_dtype":
        null, "torchscript": false, "transformers_version": "4.16.0.dev0", "typical_p": 1.0, "use_bfloat16":
        false
    }"#;
    serde_json::from_str(FIELDS).expect("JSON")
}

#[test]
fn vision_towers() {
    let clip = |tower: Value, more: Value| {
        let base = json!({"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
            "model_type": "clip", "projection_dim": 768, "text_config": {"any": "thing"}, "text_config_dict": null,
            "torch_dtype": "float32", "transformers_version": null, "vision_config": tower});
        with(base, more)
    };
    let laion = json!({"hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024, "dropout": 0.0});
    for (name, config, expected) in [
        (
            "clip-vit-large-patch14",
            clip(old_tower(), json!({"vision_config_dict": {"hidden_size": 1024, "num_attention_heads": 16}})),
            Ok(()),
        ),
        (
            "clip-vit-base-patch32",
            clip(json!({"dropout": 0.0, "model_type": "clip_vision_model"}), json!({"projection_dim": 512})),
            Ok(()),
        ),
        ("laion/CLIP-ViT-H-14", clip(laion, json!({"_commit_hash": null, "projection_dim": 1024})), Ok(())),
        ("a tower alone", with(old_tower(), json!({"architectures": ["CLIPVisionModel"]})), Ok(())),
        (
            "a tower with registers",
            clip(with(old_tower(), json!({"num_register_tokens": 4})), json!({})),
            Err(&["vision_config", "unknown field num_register_tokens (4)", "vision tower"][..]),
        ),
        (
            "an older copy of it",
            clip(old_tower(), json!({"vision_config_dict": {"qkv_bias": false}})),
            Err(&["vision_config_dict", "unknown field qkv_bias"]),
        ),
        ("chinese-clip", json!({"model_type": "chinese_clip"}), Err(&["chinese_clip"])),
        (
            "CLIP of another kind",
            clip(old_tower(), json!({"text_projection_bias": true})),
            Err(&["unknown field text_projection_bias"]),
        ),
    ] {
        assert_verdict(name, VisionConfig::read_clip(folder("config.json", &config).path()), expected);
    }
}

#[test]
fn llavas() {
    let llava = |text: Value, tower: Value, more: Value| {
        let base = json!({"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 151_646,
            "model_type": "llava", "pad_token_id": 151_643, "projector_hidden_act": "gelu", "text_config": text,
            "torch_dtype": "float16", "transformers_version": "4.41.2", "vision_config": tower, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default"});
        with(base, more)
    };
    // llava-hf/llava-1.5-7b-hf
    let vicuna = json!({"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": 32_064});
    let tower = json!({"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32_000});
    let nothing = || json!({});
    for (name, config, expected) in [
        (
            "a Qwen1.5 in it",
            llava(qwen(), tower.clone(), json!({"vocab_size": 151_936, "image_seq_length": 576})),
            Ok(()),
        ),
        ("llava-1.5-7b-hf", llava(vicuna, tower.clone(), nothing()), Err(&["text_config: model_type", "llama"][..])),
        (
            "llava-interleave-qwen-0.5b-hf",
            llava(qwen(), json!({"model_type": "siglip_vision_model", "vision_use_head": false}), nothing()),
            Err(&["vision_config: model_type", "siglip_vision_model"]),
        ),
        (
            "liuhaotian/llava-v1.5-7b",
            json!({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": "openai/clip-vit-large-patch14-336"}),
            Err(&["text_config", "nothing"]),
        ),
        (
            "original fields beside ours",
            llava(qwen(), tower.clone(), json!({"mm_use_im_patch_token": false})),
            Err(&["unknown field mm_use_im_patch_token"]),
        ),
        (
            "llava-next",
            llava(qwen(), tower.clone(), json!({"model_type": "llava_next", "image_grid_pinpoints": [[336, 672]]})),
            Err(&["llava_next"]),
        ),
        (
            "pinpoints in a plain one",
            llava(qwen(), tower.clone(), json!({"image_grid_pinpoints": [[336, 672]]})),
            Err(&["unknown field image_grid_pinpoints"]),
        ),
        ("both names of the image token", llava(qwen(), tower.clone(), json!({"image_token_id": 151_646})), Ok(())),
        (
            "two image tokens",
            llava(qwen(), tower.clone(), json!({"image_token_id": 151_655})),
            Err(&["image_token_id", "151655", "151646"]),
        ),
        ("another ignore_index", llava(qwen(), tower.clone(), json!({"ignore_index": 0})), Err(&["ignore_index 0"])),
        (
            "a window in the language model",
            llava(with(qwen(), json!({"use_sliding_window": true, "sliding_window": 512})), tower, nothing()),
            Err(&["text_config: use_sliding_window", "512"]),
        ),
    ] {
        assert_verdict(name, LlavaConfig::read(folder("config.json", &config).path()), expected);
    }
}

#[test]
fn what_is_read_of_a_config_is_written_back() {
    let text = with(qwen(), json!({"attention_dropout": 0.125, "eos_token_id": [151_645, 151_643]}));
    let tower = json!({"model_type": "clip_vision_model", "attention_dropout": 0.25});
    let config =
        json!({"model_type": "llava", "image_token_index": 151_646, "text_config": text, "vision_config": tower});
    let config = LlavaConfig::read(folder("config.json", &config).path()).expect("read");
    let written = tempfile::tempdir().expect("a folder");
    config.write(written.path()).expect("written");
    let bytes = std::fs::read(written.path().join("config.json")).expect("readable");
    let written_json: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(written_json["text_config"]["attention_dropout"], json!(0.125));
    assert_eq!(written_json["text_config"]["eos_token_id"], json!([151_645, 151_643]));
    assert_eq!(written_json["vision_config"]["attention_dropout"], json!(0.25));
    assert_eq!(LlavaConfig::read(written.path()).expect("read back"), config);
}

#[test]
fn ids_that_end_an_answer() {
    let text = json!({"text_config": {"eos_token_id": [7, 9]}});
    let outer = json!({"eos_token_id": 5, "text_config": {"eos_token_id": 7}});
    for (config, generation, expected) in [
        (Some(json!({"eos_token_id": 7})), None, vec![7]),
        (Some(text.clone()), None, vec![7, 9]),
        (Some(outer), None, vec![5]),
        (Some(text.clone()), Some(json!({"eos_token_id": 3})), vec![3]),
        (Some(text.clone()), Some(json!({"do_sample": true, "temperature": 0.7})), vec![7, 9]),
        (Some(json!({"text_config": {}})), None, vec![]),
        (None, Some(json!({"eos_token_id": [3, 4], "repetition_penalty": 1.1, "top_p": 0.8})), vec![3, 4]),
        (None, None, vec![]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, content) in [("config.json", &config), ("generation_config.json", &generation)] {
            if let Some(content) = content {
                std::fs::write(folder.path().join(name), content.to_string()).expect("written");
            }
        }
        let found = eos_token_ids(folder.path()).expect("read");
        assert_eq!(found, expected, "{config:?}, {generation:?}");
    }
}

#[test]
fn generation_configs() {
    let qwen = json!({"bos_token_id": 151_643, "do_sample": true, "eos_token_id": [151_645, 151_643], "pad_token_id": 151_643,
        "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "transformers_version": "4.37.0"});
    for (name, more, expected) in [
        ("Qwen1.5-4B-Chat", json!({}), Ok(())),
        (
            "from a model's config",
            json!({"_from_model_config": true, "use_cache": true, "max_new_tokens": 2048}),
            Ok(()),
        ),
        ("beams", json!({"num_beams": 4}), Err(&["generation_config.json", "num_beams 4", "num_beams 1"][..])),
        ("suppressed tokens", json!({"suppress_tokens": [1, 2]}), Err(&["suppress_tokens [1,2]"])),
        ("n-grams", json!({"no_repeat_ngram_size": 3}), Err(&["no_repeat_ngram_size 3"])),
        ("a shortest answer", json!({"min_new_tokens": 8}), Err(&["min_new_tokens 8"])),
        ("contrastive search", json!({"penalty_alpha": 0.6, "top_k": 4}), Err(&["penalty_alpha 0.6"])),
        (
            "a typing error",
            json!({"eos_token_ids": [1]}),
            Err(&["unknown field eos_token_ids", "did you mean eos_token_id?"]),
        ),
    ] {
        let found = eos_token_ids(folder("generation_config.json", &with(qwen.clone(), more)).path());
        assert_verdict(name, found, expected);
    }
}

/// What PEFT 0.14 writes.
fn peft_14() -> Value {
    json!({"alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "Qwen/Qwen1.5-4B-Chat", "bias": "none",
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16,
        "lora_bias": false, "lora_dropout": 0.05, "megatron_config": null, "megatron_core": "megatron.core",
        "modules_to_save": null, "peft_type": "LORA", "r": 4, "rank_pattern": {}, "revision": null,
        "target_modules": ["v_proj", "q_proj"], "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false})
}

const EMBED: &str = "base_model.model.model.language_model.embed_tokens.weight";
const HEAD: &str = "base_model.model.lm_head.weight";

#[test]
fn adapters_of_other_programs() {
    const ALL: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    const QV: &[&str] = &["q_proj", "v_proj"];
    let later = json!({"corda_config": null, "trainable_token_indices": null, "qalora_group_size": 16, "use_qalora": false,
        "target_parameters": null, "peft_version": "0.18.0", "alora_invocation_tokens": null, "arrow_config": null,
        "ensure_weight_tying": false});
    let llama_factory = r"^(?!.*(?:visual|vision_tower|multi_modal_projector)).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*";
    let swift = r"^(language_model(?=\.).*\.(up_proj|k_proj|gate_proj|o_proj|q_proj|v_proj|down_proj))$";
    let unsloth = r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))";
    for (name, more, projections, expected) in [
        ("PEFT 0.14, two names", json!({}), QV, Ok(())),
        ("PEFT 0.18", later, QV, Ok(())),
        ("LLaMA-Factory", json!({"target_modules": llama_factory}), ALL, Ok(())),
        ("ms-swift", json!({"target_modules": swift, "modules_to_save": []}), ALL, Ok(())),
        (
            "unsloth",
            json!({"target_modules": unsloth, "auto_mapping": {"base_model_class": "LlavaForConditionalGeneration",
            "parent_library": "transformers.models.llava.modeling_llava", "unsloth_fixed": true}}),
            ALL,
            Ok(()),
        ),
        ("axolotl", json!({"target_modules": ALL, "modules_to_save": ["embed_tokens", "lm_head"]}), ALL, Ok(())),
        ("alpaca-lora, PEFT 0.3", json!({"enable_lora": null, "merge_weights": false}), QV, Ok(())),
        ("LoRA of EVA", json!({"init_lora_weights": "eva", "eva_config": {"rho": 1.0}}), QV, Ok(())),
        ("loftq_config without loftq", json!({"loftq_config": {"loftq_bits": 4}}), QV, Ok(())),
        (
            "EVA with ranks of its own",
            json!({"init_lora_weights": "eva", "rank_pattern": {"q_proj": 6}}),
            QV,
            Err(&["adapter_config.json", "rank_pattern {\"q_proj\":6}"][..]),
        ),
        (
            "PiSSA, fast",
            json!({"init_lora_weights": "pissa_niter_16"}),
            QV,
            Err(&["init_lora_weights \"pissa_niter_16\"", "convert"]),
        ),
        ("OLoRA in capitals", json!({"init_lora_weights": "OLoRA"}), QV, Err(&["init_lora_weights \"OLoRA\""])),
        (
            "LoftQ",
            json!({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}),
            QV,
            Err(&["init_lora_weights \"loftq\""]),
        ),
        ("CorDA", json!({"init_lora_weights": "corda"}), QV, Err(&["init_lora_weights \"corda\""])),
        ("LoRA-GA", json!({"init_lora_weights": "lora_ga"}), QV, Err(&["init_lora_weights \"lora_ga\""])),
        ("an initialisation to come", json!({"init_lora_weights": "svd++"}), QV, Err(&["init_lora_weights \"svd++\""])),
        ("AdaLoRA", json!({"peft_type": "ADALORA", "target_r": 8}), QV, Err(&["peft_type \"ADALORA\""])),
        ("rank-stabilised", json!({"use_rslora": true}), QV, Err(&["use_rslora true"])),
        ("DoRA", json!({"use_dora": true}), QV, Err(&["use_dora true"])),
        (
            "rows of the embedding",
            json!({"trainable_token_indices": {"embed_tokens": [1, 2]}}),
            QV,
            Err(&["trainable_token_indices"]),
        ),
        ("parameters", json!({"target_parameters": ["experts.gate_up_proj"]}), QV, Err(&["target_parameters"])),
        (
            "copied layers",
            json!({"layer_replication": [[0, 2], [1, 2]]}),
            QV,
            Err(&["layer_replication [[0,2],[1,2]]"]),
        ),
        (
            "a field to come",
            json!({"use_hyperlora": true}),
            QV,
            Err(&["unknown field use_hyperlora (true)", "LoraConfig"]),
        ),
        (
            "fewer layers than it names",
            json!({"target_modules": ["q_proj", "v_proj", "o_proj"]}),
            QV,
            Err(&["no LoRA of language_model.model.layers.0.self_attn.o_proj", "target_modules"]),
        ),
        (
            "more layers than it names",
            json!({"target_modules": ["q_proj"]}),
            QV,
            Err(&["LoRA of language_model.model.layers.0.self_attn.v_proj", "does not name"]),
        ),
        (
            "a projector that PEFT initialises with zeros",
            json!({"target_modules": ["q_proj", "v_proj", "linear_2"]}),
            QV,
            Ok(()),
        ),
        (
            "a projector that PEFT initialises at random",
            json!({"target_modules": r".*language_model.*\.[qv]_proj|.*linear_2", "init_lora_weights": false}),
            QV,
            Err(&["no LoRA of multi_modal_projector.linear_2", "target_modules"]),
        ),
        (
            "a vision tower that PEFT initialises at random",
            json!({"init_lora_weights": false}),
            QV,
            Err(&["no LoRA of vision_tower", "target_modules"]),
        ),
        (
            "nothing that PEFT initialises at random",
            json!({"target_modules": r".*language_model.*\.[qv]_proj", "init_lora_weights": false}),
            QV,
            Ok(()),
        ),
        ("a module that is not there", json!({"modules_to_save": ["score"]}), QV, Err(&["modules_to_save \"score\""])),
        (
            "a saved module without weights",
            json!({"modules_to_save": ["multi_modal_projector"]}),
            QV,
            Err(&["no tensor multi_modal_projector.linear_1.weight", "modules_to_save"]),
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tensors = text_lora(projections, 4);
        if name == "axolotl" {
            tensors.extend([EMBED, HEAD].map(|name| (name.to_string(), vec![64, 32])));
        }
        adapters::write(folder.path(), &with(peft_14(), more), &tensors);
        assert_verdict(name, read_config(folder.path(), &adapters::config()), expected);
    }
}

#[test]
fn adapters_whose_tensors_are_not_all_plain_lora() {
    let lora = |more: &[(&str, &[usize])]| {
        let more = more.iter().map(|(name, shape)| (name.to_string(), shape.to_vec()));
        text_lora(&["q_proj", "v_proj"], 4).into_iter().chain(more).collect::<Vec<_>>()
    };
    let check = |name: &str, tensors: &[(String, Vec<usize>)], files: &[&str], expected: Verdict| {
        let folder = tempfile::tempdir().expect("a folder");
        adapters::write(folder.path(), &peft_14(), tensors);
        files.iter().for_each(|file| std::fs::write(folder.path().join(file), b"").expect("written"));
        assert_verdict(name, read_config(folder.path(), &adapters::config()), expected);
    };
    check("plain", &lora(&[]), &[], Ok(()));
    check("a resized embedding that came along", &lora(&[(EMBED, &[64, 32]), (HEAD, &[64, 32])]), &[], Ok(()));
    let embedding = "base_model.model.model.language_model.embed_tokens.lora_embedding_A";
    check(
        "LoRA on the embedding",
        &lora(&[(embedding, &[4, 64])]),
        &[],
        Err(&["lora_embedding_A", "LoRA of another kind"]),
    );
    let magnitude = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    check("a magnitude", &lora(&[(magnitude, &[32])]), &[], Err(&["lora_magnitude_vector"]));
    let foreign = "base_model.model.model.language_model.layers.0.mlp.experts.0.lora_A.weight";
    check("a layer of another model", &lora(&[(foreign, &[4, 32])]), &[], Err(&["experts", "no place"]));
    check(
        "LLaVA's original code",
        &lora(&[]),
        &["non_lora_trainables.bin"],
        Err(&["non_lora_trainables.bin", "merge"]),
    );
    check("no LoRA at all", &[(HEAD.to_string(), vec![64, 32])], &[], Err(&["no LoRA"]));
    assert!(read_config(Path::new("/nonexistent"), &adapters::config()).is_err());
}
