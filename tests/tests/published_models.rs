//! `config.json` of language models, vision towers and LLaVAs as people publish them: read, or refused by the name of the field that is not
//! implemented. The texts have the fields and values of the published files that they are named after.

use model::config::{LlavaConfig, TextConfig, VisionConfig};
use serde_json::{Value, json};
use tests::published::{assert_verdict, folder, with};

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
        assert_verdict(name, TextConfig::read(folder("config.json", &with(qwen(), more)).path()), expected);
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
        assert_verdict(name, VisionConfig::read(folder("config.json", &config).path()), expected);
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
        ("llava-1.5-7b-hf", llava(vicuna, tower.clone(), json!({"image_token_index": 32_000})), Ok(())),
        (
            "llava-interleave-qwen-0.5b-hf",
            llava(
                qwen(),
                json!({"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16,
                    "model_type": "siglip_vision_model", "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": false}),
                json!({"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
            ),
            Ok(()),
        ),
        (
            "liuhaotian/llava-v1.5-7b",
            json!({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": "openai/clip-vit-large-patch14-336"}),
            Err(&["unknown field mm_vision_tower"][..]),
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

/// A Llama with full attention in every layer, and llama3 scaling with and without the length that it was trained for:
/// transformers 5.24's frequencies (`ROPE_INIT_FUNCTIONS["llama3"]`). Without it the model's own length is taken, and one beside the
/// scaling wins over the one in it.
#[test]
fn llamas_with_types_of_layers_and_without_an_original_length_are_read() {
    let llama = |more: Value| {
        let model = json!({"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256, "rope_theta": 10_000.0});
        TextConfig::read(folder("config.json", &with(model, more)).path())
    };
    let scaling = |original: Option<usize>| {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        match original {
            Some(length) => with(scaling, json!({"original_max_position_embeddings": length})),
            None => scaling,
        }
    };
    let of_256 = [0.316_227_76, 0.1, 0.006_613_107, 0.001_25];
    let of_128 = [0.316_227_76, 0.042_751_18, 0.003_952_847_3, 0.001_25];
    let of_64 = [0.244_384_59, 0.013_042_256, 0.003_952_847_3, 0.001_25];
    for (name, more, expected) in [
        ("rope_scaling", json!({"rope_scaling": scaling(None)}), of_256),
        ("rope_parameters", json!({"rope_parameters": scaling(None)}), of_256),
        ("with its length", json!({"rope_scaling": scaling(Some(64))}), of_64),
        (
            "a length beside it",
            json!({"rope_scaling": scaling(Some(64)), "original_max_position_embeddings": 128}),
            of_128,
        ),
    ] {
        let (config, _) = llama(more).expect(name);
        let found = config.inverse_frequencies();
        // One unit in the last place of the powers.
        for (found, expected) in found[1..5].iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-6 * expected, "{name}: {found}, {expected} in transformers");
        }
    }
    assert!(llama(json!({"layer_types": ["full_attention", "full_attention"]})).is_ok());
    assert_verdict(
        "a window",
        llama(json!({"layer_types": ["full_attention", "sliding_attention"]})),
        Err(&["layer_types", "sliding_attention in layer 1"][..]),
    );
    assert_verdict("too few", llama(json!({"layer_types": ["full_attention"]})), Err(&["layer_types", "1 layers"][..]));
}
