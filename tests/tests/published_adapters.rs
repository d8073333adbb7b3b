//! `adapter_config.json` as people publish them: read, or refused by the name of the field that is not
//! implemented. The texts have the fields and values of the published files that they are named after.

use serde_json::{Value, json};
use std::path::Path;
use store::adapter::read_config;
use tests::adapters::{self, text_lora};
use tests::published::{Verdict, assert_verdict, with};

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
        ("rank-stabilised", json!({"use_rslora": true}), QV, Ok(())),
        ("LoRA of EVA", json!({"init_lora_weights": "eva", "eva_config": {"rho": 1.0}}), QV, Ok(())),
        ("loftq_config without loftq", json!({"loftq_config": {"loftq_bits": 4}}), QV, Ok(())),
        ("EVA with ranks of its own", json!({"init_lora_weights": "eva", "rank_pattern": {"q_proj": 6}}), QV, Ok(())),
        (
            "PiSSA, fast",
            json!({"init_lora_weights": "pissa_niter_16"}),
            QV,
            Err(&["init_lora_weights \"pissa_niter_16\"", "convert"][..]),
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
        ("DoRA", json!({"use_dora": true}), QV, Ok(())),
        (
            "DoRA without magnitudes",
            json!({"use_dora": true}),
            QV,
            Err(&["no tensor language_model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"]),
        ),
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
        if name == "DoRA" {
            let layers = tensors.iter().filter_map(|(name, _)| name.strip_suffix(".lora_B.weight"));
            let magnitudes = layers.map(|layer| (format!("{layer}.lora_magnitude_vector"), vec![32]));
            tensors.extend(magnitudes.collect::<Vec<_>>());
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
    check("a magnitude", &lora(&[(magnitude, &[32])]), &[], Err(&["lora_magnitude_vector", "use_dora"]));
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
