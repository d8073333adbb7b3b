//! Configurations in every spelling that transformers has written.

use model::config::{
    Activation, FeatureSelect, LlavaConfig, TextConfig, TextFamily, VisionConfig, VisionFamily, WeightDtype,
};
use serde_json::{Value, json};
use std::path::Path;
use tests::{reference, shared, tiny};

/// A folder with this `config.json`.
fn folder(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    folder
}

fn file(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(reference(path)).expect("readable")).expect("JSON")
}

fn project_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(tests::project_file(path)).expect("readable")).expect("JSON")
}

fn read(config: &Value) -> base::Result<LlavaConfig> {
    LlavaConfig::read(folder(config).path())
}

/// Sets a value by a path of keys.
fn with(mut config: Value, path: &[&str], value: Value) -> Value {
    let (last, keys) = path.split_last().expect("a key");
    let mut place = &mut config;
    for key in keys {
        place = &mut place[*key];
    }
    place[*last] = value;
    config
}

fn assert_round_trip(config: &LlavaConfig) {
    let folder = tempfile::tempdir().expect("a folder");
    config.write(folder.path()).expect("written");
    assert_eq!(&LlavaConfig::read(folder.path()).expect("read back"), config);
}

#[test]
fn the_config_of_transformers_5_is_read() {
    let config = LlavaConfig::read(&reference("tiny/llava")).expect("read");
    assert_eq!(config, tiny::config());
    assert_round_trip(&config);
}

#[test]
fn the_original_projects_config_is_read_with_the_defaults_of_its_time() {
    let Some(printed) = shared("configs/llava-zero_nlp/config.as_printed.json") else { return };
    let printed = serde_json::from_slice(&std::fs::read(printed).expect("readable")).expect("JSON");
    let config = read(&printed).expect("read");
    let vision = VisionConfig {
        family: VisionFamily::Clip,
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        image_size: 336,
        patch_size: 14,
        num_channels: 3,
        projection_dim: Some(768),
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
        attention_dropout: 0.0,
    };
    let text = TextConfig {
        family: TextFamily::Qwen2,
        hidden_size: 2560,
        intermediate_size: 6912,
        num_hidden_layers: 40,
        num_attention_heads: 20,
        num_key_value_heads: 20,
        head_dim: 128,
        vocab_size: 151_936,
        max_position_embeddings: 32_768,
        rope_theta: 5e6,
        rope_scaling: None,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: Some(151_643),
        eos_token_id: vec![151_645],
        attention_dropout: 0.0,
    };
    assert_eq!((&config.vision, &config.text), (&vision, &text));
    assert_eq!((config.image_token_index, config.pad_token_id), (151_646, Some(151_643)));
    assert_eq!((config.image_seq_length(), config.computed_vision_layers()), (576, 23));
    assert_eq!(config.dtype, WeightDtype::F32);
    assert_round_trip(&config);
    // The real model's size, from names and shapes alone.
    let parameters: usize = store::checkpoint::expected_tensors(&config).iter().map(|tensor| tensor.len()).sum();
    assert_eq!(parameters, 4_263_056_896);
}

#[test]
fn the_real_source_configs_are_read() {
    let (vision, dtype) = VisionConfig::read(&tests::project_file("configs/clip-vit-large-patch14-336")).expect("read");
    assert_eq!((vision.num_hidden_layers, vision.image_size, dtype), (24, 336, WeightDtype::F32));
    let (text, dtype) = TextConfig::read(&tests::project_file("configs/qwen1.5-4b-chat")).expect("read");
    assert_eq!((text.num_hidden_layers, text.rope_theta, dtype), (40, 5e6, WeightDtype::Bf16));
    // A vision tower alone keeps its settings at the top.
    let mut alone = project_json("configs/clip-vit-large-patch14-336/config.json")["vision_config"].clone();
    alone["torch_dtype"] = json!("float16");
    let (same, dtype) = VisionConfig::read(folder(&alone).path()).expect("read");
    assert_eq!((same, dtype), (vision, WeightDtype::F16));
}

#[test]
fn spellings_mean_the_same() {
    let tiny = || file("tiny/llava/config.json");
    let expected = tiny::config();
    let rope_4x = with(
        with(tiny(), &["text_config", "rope_parameters"], Value::Null),
        &["text_config", "rope_theta"],
        json!(5_000_000),
    );
    assert_eq!(read(&rope_4x).expect("read"), expected);
    let mut image_token_id = tiny();
    image_token_id["image_token_id"] = image_token_id["image_token_index"].take();
    image_token_id.as_object_mut().expect("an object").remove("image_token_index");
    assert_eq!(read(&image_token_id).expect("read"), expected);
    for key in ["torch_dtype", "dtype"] {
        assert_eq!(read(&with(tiny(), &[key], json!("bfloat16"))).expect("read").dtype, WeightDtype::Bf16);
    }
    let sides = with(tiny(), &["vision_config", "image_size"], json!([56, 56]));
    assert_eq!(read(&sides).expect("read"), expected);
    let kv_null = with(tiny(), &["text_config", "num_key_value_heads"], Value::Null);
    assert_eq!(read(&kv_null).expect("read"), expected);
    for path in [&["tie_word_embeddings"][..], &["text_config", "tie_word_embeddings"]] {
        assert!(read(&with(tiny(), path, json!(true))).expect("read").text.tie_word_embeddings, "{path:?}");
    }
}

/// `rope_scaling`, `rope_parameters` and `rope_theta`, and the base that transformers 5.24 takes.
#[test]
fn the_base_of_the_rotary_embedding_is_the_one_that_transformers_takes() {
    let default = || json!({"rope_type": "default"});
    for (scaling, parameters, theta, expected) in [
        (json!({"type": "default", "rope_theta": 250.0}), json!(null), json!(null), 250.0),
        (json!({"type": "default", "rope_theta": 250.0}), default(), json!(250), 250.0),
        (default(), json!({"rope_theta": 7e4}), json!(null), 1e4),
        (default(), json!({"rope_theta": 7e4}), json!(7e4), 7e4),
        (json!({}), json!({"rope_theta": 7e4, "rope_type": "default"}), json!(null), 7e4),
        (json!(null), default(), json!(300), 300.0),
        (json!(null), json!(null), json!(null), 1e4),
    ] {
        let rows = [("rope_scaling", &scaling), ("rope_parameters", &parameters), ("rope_theta", &theta)];
        let set = |config, (key, value): (&str, &Value)| with(config, &["text_config", key], value.clone());
        let config = rows.into_iter().fold(file("tiny/llava/config.json"), set);
        let found = read(&config).map(|config| config.text.rope_theta).map_err(|error| error.to_string());
        assert_eq!(found, Ok(expected), "{scaling}, {parameters}, {theta}");
    }
}

#[test]
fn variants_survive_writing() {
    let layers = with(file("tiny/llava/config.json"), &["vision_feature_layer"], json!([-3, 2]));
    let layers = with(layers, &["vision_feature_select_strategy"], json!("full"));
    let config = read(&layers).expect("read");
    assert_eq!((config.selected_hidden_states(), config.image_seq_length()), (vec![1, 2], 17));
    assert_eq!(config.vision_feature_select_strategy, FeatureSelect::Full);
    assert_round_trip(&config);
    assert_round_trip(&LlavaConfig {
        vision_feature_layers: vec![-2],
        vision_feature_layer_is_scalar: false,
        ..config.clone()
    });
    let text =
        TextConfig { num_key_value_heads: 2, tie_word_embeddings: true, eos_token_id: vec![], ..config.text.clone() };
    let vision =
        VisionConfig { hidden_act: Activation::Gelu, layer_norm_eps: 8.571428571428571e-7, ..config.vision.clone() };
    for dtype in [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::F16] {
        let (text, vision) = (text.clone(), vision.clone());
        assert_round_trip(&LlavaConfig {
            text,
            vision,
            dtype,
            pad_token_id: None,
            multimodal_projector_bias: false,
            ..config.clone()
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_by_key() {
    let table = [
        (&["model_type"][..], json!("llava_next"), "model_type"),
        (&["text_config", "model_type"], json!("mistral"), "mistral"),
        (&["vision_config", "model_type"], json!("dinov2"), "dinov2"),
        (&["vision_config", "model_type"], json!("siglip_vision_model"), "no class token"),
        (&["vision_feature_layer"], json!(-5), "vision_feature_layer"),
        (&["vision_feature_layer"], json!([]), "vision_feature_layer"),
        (&["vision_feature_select_strategy"], json!("cls"), "cls"),
        (&["image_token_index"], json!(640), "image_token_index"),
        (&["text_config", "num_attention_heads"], json!(5), "num_attention_heads"),
        (&["text_config", "num_key_value_heads"], json!(3), "num_key_value_heads"),
        (&["text_config", "hidden_act"], json!("gelu"), "hidden_act"),
        (&["text_config", "rope_parameters", "rope_type"], json!("yarn"), "yarn"),
        (&["text_config", "rope_scaling"], json!({"type": "dynamic", "factor": 2.0}), "dynamic"),
        (&["text_config", "rope_scaling"], json!({"type": "linear"}), "factor"),
        (&["text_config", "rope_scaling"], json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        (&["text_config", "rope_scaling"], json!({"rope_type": "linear", "type": "default", "factor": 2}), "one type"),
        (&["vision_config", "hidden_act"], json!("relu"), "relu"),
        (&["vision_config", "patch_size"], json!(57), "patch_size"),
        (&["vision_config", "image_size"], json!([56, 28]), "image_size"),
        (&["dtype"], json!("int8"), "int8"),
        (&["text_config", "hidden_size"], json!("wide"), "found \"wide\", expected a whole number from 0"),
        (&["vision_feature_layer"], json!("-1"), "\"-1\", expected a number or a list of numbers"),
        (&["pad_token_id"], json!(-2), "found -2, expected a whole number from 0"),
        (&["vision_config", "layer_norm_eps"], json!([1e-5]), "found [0.00001], expected a number"),
    ];
    for (path, value, named) in table {
        let error = read(&with(file("tiny/llava/config.json"), path, value)).expect_err("refused").to_string();
        assert!(error.contains(named) && error.contains("config.json"), "{path:?}: {error}");
    }
    let windowed = with(project_json("configs/qwen1.5-4b-chat/config.json"), &["use_sliding_window"], json!(true));
    assert!(TextConfig::read(folder(&windowed).path()).expect_err("refused").to_string().contains("sliding"));
    assert!(LlavaConfig::read(Path::new("/nonexistent")).expect_err("refused").to_string().contains("config.json"));
    assert!(VisionConfig::read(&reference("tiny/text")).expect_err("refused").to_string().contains("qwen2"));
}
