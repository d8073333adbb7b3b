//! How tokens are chosen: `generation_config.json`, and the same fields where older versions kept them, in `config.json`.
//!
//! Sampling (`do_sample`, `temperature`, `top_p`, …, `repetition_penalty`) and lengths are options of the programs, which are
//! greedy by default and say so; everything else that would change a greedy answer is refused.
//!
//! # Source
//! transformers 4.25 to 5.24, `generation/configuration_utils.py`, `GenerationConfig`.

use super::Rule::{Harmless, Only, Read};
use super::{Row, empty, off};

const BEAMS: &str = "beam search is not implemented";
const FORCED: &str = "tokens that are forced or forbidden are not implemented";
const NGRAMS: &str = "n-grams that must not be repeated are not implemented";
const ASSISTED: &str = "another way of decoding, which is not implemented";

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
