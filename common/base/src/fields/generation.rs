//! How tokens are chosen: `generation_config.json`, and the same fields where older versions kept them, in `config.json`.
//!
//! Sampling (`do_sample`, `temperature`, `top_p`, …, `repetition_penalty`) and lengths are options of the programs, which are
//! greedy by default and print the settings that they do not use ([`unused`]); everything else that would change a greedy answer is refused.
//!
//! # Source
//! transformers 4.25 to 5.24, `generation/configuration_utils.py`, `GenerationConfig`.

use super::Rule::{Harmless, Only, Read};
use super::{Row, empty, off};
use serde_json::{Map, Value};

const BEAMS: &str = "beam search is not implemented";
const FORCED: &str = "tokens that are forced or forbidden are not implemented";
const NGRAMS: &str = "n-grams that must not be repeated are not implemented";
const ASSISTED: &str = "another way of decoding, which is not implemented";

/// Settings of `transformers`' `generate` that options of the programs stand for, with the value that asks for nothing.
const OPTIONS: [(&str, &str); 6] = [
    ("do_sample", "false"),
    ("repetition_penalty", "1"),
    ("max_new_tokens", "null"),
    ("max_length", "20"),
    ("max_time", "null"),
    ("num_return_sequences", "1"),
];

/// The same, without effect unless `do_sample` is true.
const SAMPLING: [&str; 8] =
    ["temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"];

/// What a generation configuration asks for and the programs leave to their options, as `name value`.
pub fn unused(object: &Map<String, Value>) -> Vec<String> {
    let sampled = object.get("do_sample") == Some(&Value::Bool(true));
    let asked = |name: &str, neutral: &str| {
        let value = object.get(name).filter(|value| !value.is_null())?;
        let text = value.to_string();
        let same_number = value.is_number() && value.as_f64() == neutral.parse().ok();
        (text != neutral && !same_number).then(|| format!("{name} {text}"))
    };
    let options = OPTIONS.iter().filter_map(|(name, neutral)| asked(name, neutral));
    let sampling = SAMPLING.iter().filter(|_| sampled).filter_map(|name| asked(name, "null"));
    options.chain(sampling).collect()
}

/// `generation_config.json`, and `config.json` of transformers 4.
pub const FIELDS: &[Row] = &[
    ("eos_token_id", Read),
    ("bos_token_id", Harmless),
    ("pad_token_id", Harmless),
    ("_from_model_config", Harmless),
    ("transformers_version", Harmless),
    ("trust_remote_code", Harmless),
    ("chat_format", Harmless),
    // Options of the programs.
    ("do_sample", Harmless),
    ("temperature", Harmless),
    ("top_k", Harmless),
    ("top_p", Harmless),
    ("min_p", Harmless),
    ("top_h", Harmless),
    ("typical_p", Harmless),
    ("epsilon_cutoff", Harmless),
    ("eta_cutoff", Harmless),
    ("repetition_penalty", Harmless),
    ("renormalize_logits", Harmless),
    ("remove_invalid_values", Harmless),
    ("max_length", Harmless),
    ("max_new_tokens", Harmless),
    ("max_time", Harmless),
    ("max_window_size", Harmless),
    ("num_return_sequences", Harmless),
    // How it is computed and given back.
    ("use_cache", Harmless),
    ("cache_implementation", Harmless),
    ("cache_config", Harmless),
    ("max_cache_len", Harmless),
    ("return_legacy_cache", Harmless),
    ("compile_config", Harmless),
    ("disable_compile", Harmless),
    ("continuous_batching_config", Harmless),
    ("prefill_chunk_size", Harmless),
    ("low_memory", Harmless),
    ("generation_kwargs", empty("options of a model's own code")),
    ("output_attentions", Harmless),
    ("output_hidden_states", Harmless),
    ("output_scores", Harmless),
    ("output_logits", Harmless),
    ("return_dict_in_generate", Harmless),
    // Without effect unless their method is asked for, by a field below.
    ("early_stopping", Harmless),
    ("length_penalty", Harmless),
    ("diversity_penalty", Harmless),
    ("is_assistant", Harmless),
    ("num_assistant_tokens", Harmless),
    ("num_assistant_tokens_schedule", Harmless),
    ("assistant_confidence_threshold", Harmless),
    ("assistant_lookbehind", Harmless),
    ("target_lookbehind", Harmless),
    ("assistant_ensemble_weight", Harmless),
    ("max_matching_ngram_size", Harmless),
    ("speculation_type", Harmless),
    ("use_mtp", Harmless),
    // Other ways of decoding.
    ("num_beams", Only(&["1"], BEAMS)),
    ("num_beam_groups", Only(&["1"], BEAMS)),
    ("constraints", empty(BEAMS)),
    ("force_words_ids", empty(BEAMS)),
    ("penalty_alpha", Only(&["0"], ASSISTED)),
    ("dola_layers", Only(&[], ASSISTED)),
    ("assistant_early_exit", Only(&[], ASSISTED)),
    ("prompt_lookup_num_tokens", Only(&[], ASSISTED)),
    ("guidance_scale", Only(&["1"], ASSISTED)),
    ("watermarking_config", Only(&[], ASSISTED)),
    // Changes of the logits.
    ("min_length", Only(&["0"], "a shortest answer is not implemented")),
    ("min_new_tokens", Only(&["0"], "a shortest answer is not implemented")),
    ("no_repeat_ngram_size", Only(&["0"], NGRAMS)),
    ("encoder_no_repeat_ngram_size", Only(&["0"], NGRAMS)),
    ("encoder_repetition_penalty", Only(&["1"], NGRAMS)),
    ("hallucination_penalty", Only(&["1"], NGRAMS)),
    ("bad_words_ids", empty(FORCED)),
    ("suppress_tokens", empty(FORCED)),
    ("begin_suppress_tokens", empty(FORCED)),
    ("forced_bos_token_id", Only(&[], FORCED)),
    ("forced_eos_token_id", Only(&[], FORCED)),
    ("forced_decoder_ids", empty(FORCED)),
    ("decoder_start_token_id", Only(&[], "only decoders are implemented")),
    ("sequence_bias", empty(FORCED)),
    ("exponential_decay_length_penalty", Only(&[], "a penalty on the length is not implemented")),
    ("token_healing", off("the prompt's last token is never changed")),
    ("stop_strings", empty("give texts that end an answer as an option of the program")),
];

#[cfg(test)]
mod tests {
    use super::unused;
    use serde_json::{Map, Value, json};

    #[test]
    fn what_the_options_stand_for_is_named() {
        let of = |value: Value| unused(&serde_json::from_value::<Map<String, Value>>(value).expect("an object"));
        let qwen = json!({"do_sample": true, "repetition_penalty": 1.1, "top_p": 0.8, "eos_token_id": [1, 2]});
        assert_eq!(of(qwen), ["do_sample true", "repetition_penalty 1.1", "top_p 0.8"]);
        assert_eq!(
            of(json!({"repetition_penalty": 1.0, "temperature": 0.7, "max_length": 20, "top_k": null})),
            [""; 0]
        );
        assert_eq!(of(json!({"max_new_tokens": 3})), ["max_new_tokens 3"]);
    }
}
