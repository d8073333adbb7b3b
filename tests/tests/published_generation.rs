//! `generation_config.json` as people publish them: read, or refused by the name of the field that is not
//! implemented. The texts have the fields and values of the published files that they are named after.

use chat::eos::eos_token_ids;
use serde_json::json;
use tests::published::{assert_verdict, folder, with};

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
