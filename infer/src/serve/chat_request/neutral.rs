//! Fields of OpenAI's API, and of vLLM's, llama.cpp's and other servers' additions to it, that have no effect here: accepted
//! where they ask for nothing, refused by name where they ask for something.

use super::fields::{Fields, describe};
use crate::serve::error::ApiError;
use serde_json::Value;

/// Values of a field that ask for nothing.
#[derive(Clone, Copy)]
pub(super) enum Neutral {
    /// All: bookkeeping, or a hint about speed.
    Any,
    /// This number.
    Number(f64),
    /// This boolean.
    Bool(bool),
    /// An empty array, object or string.
    Empty,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// An array of this one string.
    Only(&'static str),
    /// An object whose `type` is this.
    Type(&'static str),
    /// `null` alone.
    Nothing,
}
use Neutral::{Any, Bool, Empty, Nothing, Number, OneOf, Only, Type};

/// Fields of the body.
pub(super) const BODY: &[(&str, Neutral)] = &[
    // OpenAI's.
    ("audio", Nothing),
    ("best_of", Number(1.0)),
    ("echo", Bool(false)),
    ("frequency_penalty", Number(0.0)),
    ("function_call", OneOf(&["none", "auto"])),
    ("functions", Empty),
    ("logit_bias", Empty),
    ("logprobs", Bool(false)),
    ("metadata", Any),
    ("modalities", Only("text")),
    ("moderation", Nothing),
    ("n", Number(1.0)),
    ("parallel_tool_calls", Any),
    ("prediction", Any),
    ("presence_penalty", Number(0.0)),
    ("prompt_cache_key", Any),
    ("prompt_cache_options", Any),
    ("prompt_cache_retention", Any),
    ("reasoning_effort", OneOf(&["none"])),
    ("response_format", Type("text")),
    ("safety_identifier", Any),
    ("service_tier", Any),
    ("store", Any),
    ("suffix", Empty),
    ("tool_choice", OneOf(&["none", "auto"])),
    ("tools", Empty),
    ("top_logprobs", Number(0.0)),
    ("user", Any),
    ("verbosity", OneOf(&["medium"])),
    ("web_search_options", Nothing),
    // vLLM's.
    ("add_generation_prompt", Bool(true)),
    ("add_special_tokens", Bool(false)),
    ("allowed_token_ids", Nothing),
    ("bad_words", Empty),
    ("cache_salt", Any),
    ("chat_template", Nothing),
    ("chat_template_kwargs", Empty),
    ("continue_final_message", Bool(false)),
    ("documents", Empty),
    ("guided_choice", Nothing),
    ("guided_grammar", Nothing),
    ("guided_json", Nothing),
    ("guided_regex", Nothing),
    ("ignore_eos", Bool(false)),
    ("include_reasoning", Any),
    ("include_stop_str_in_output", Bool(false)),
    ("length_penalty", Number(1.0)),
    ("logits_processors", Empty),
    ("min_p", Number(0.0)),
    ("min_tokens", Number(0.0)),
    ("mm_processor_kwargs", Empty),
    ("priority", Number(0.0)),
    ("prompt_logprobs", Nothing),
    ("request_id", Any),
    ("return_token_ids", Bool(false)),
    ("return_tokens_as_token_ids", Bool(false)),
    ("skip_special_tokens", Bool(true)),
    ("spaces_between_special_tokens", Bool(true)),
    ("stop_token_ids", Empty),
    ("structured_outputs", Nothing),
    ("truncate_prompt_tokens", Nothing),
    ("use_beam_search", Bool(false)),
    // llama.cpp's, Ollama's and other servers'.
    ("cache_prompt", Any),
    ("dry_multiplier", Number(0.0)),
    ("dynatemp_range", Number(0.0)),
    ("enable_thinking", Bool(false)),
    ("extra_body", Empty),
    ("format", Nothing),
    ("grammar", Empty),
    ("id_slot", Any),
    ("keep_alive", Any),
    ("mirostat", Number(0.0)),
    ("options", Empty),
    ("repeat_penalty", Number(1.0)),
    ("tfs_z", Number(1.0)),
    ("think", Bool(false)),
    ("thinking", Type("disabled")),
    ("top_a", Number(0.0)),
    ("typical_p", Number(1.0)),
    ("xtc_probability", Number(0.0)),
    ("min_keep", Number(0.0)),
];

/// Fields of a message.
pub(super) const MESSAGE: &[(&str, Neutral)] = &[
    ("annotations", Any),
    ("audio", Nothing),
    ("cache_control", Any),
    ("function_call", Nothing),
    ("id", Any),
    ("images", Empty),
    ("name", Any),
    ("parsed", Nothing),
    ("partial", Bool(false)),
    ("prefix", Bool(false)),
    ("provider_specific_fields", Any),
    // Thoughts of earlier answers, which chat templates leave out.
    ("reasoning", Any),
    ("reasoning_content", Any),
    ("reasoning_details", Any),
    ("tool_calls", Empty),
    ("type", OneOf(&["message"])),
];

/// Fields of a part of a message's content.
pub(super) const PART: &[(&str, Neutral)] = &[
    ("annotations", Any),
    ("cache_control", Any),
    ("detail", OneOf(super::messages::DETAILS)),
    ("id", Any),
    ("index", Any),
    ("prompt_cache_breakpoint", Any),
    ("uuid", Any),
];

/// Fields of `image_url`; the type is found from the file's content.
pub(super) const IMAGE_URL: &[(&str, Neutral)] =
    &[("detail", OneOf(super::messages::DETAILS)), ("format", Any), ("media_type", Any)];

/// Fields of `stream_options`.
pub(super) const STREAM_OPTIONS: &[(&str, Neutral)] =
    &[("continuous_usage_stats", Bool(false)), ("include_obfuscation", Any)];

impl Neutral {
    fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (Any, _) => true,
            (Number(neutral), value) => value.as_f64() == Some(neutral),
            (Bool(neutral), value) => value.as_bool() == Some(neutral),
            (Empty, Value::Array(items)) => items.is_empty(),
            (Empty, Value::Object(fields)) => fields.is_empty(),
            (Empty, Value::String(text)) => text.is_empty(),
            (OneOf(neutral), Value::String(text)) => neutral.contains(&text.as_str()),
            (Only(neutral), Value::Array(items)) => matches!(items.as_slice(), [item] if item == neutral),
            (Type(neutral), Value::Object(fields)) => fields.get("type").is_some_and(|kind| kind == neutral),
            _ => false,
        }
    }

    fn expected(self) -> String {
        let one_of =
            |choices: &[&str]| choices.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(" or ");
        match self {
            Any => "anything".to_string(),
            Number(neutral) => format!("{neutral} or no such field"),
            Bool(neutral) => format!("{neutral} or no such field"),
            Empty => "an empty one or no such field".to_string(),
            OneOf(choices) => format!("{} or no such field", one_of(choices)),
            Only(choice) => format!("[{choice:?}] or no such field"),
            Type(kind) => format!("{{\"type\": {kind:?}}} or no such field"),
            Nothing => "no such field".to_string(),
        }
    }
}

/// Refuses the remaining fields of an object: their effect would be silently missing from the answer.
pub(super) fn refuse_the_rest(fields: Fields, neutral: &[(&str, Neutral)]) -> Result<(), ApiError> {
    for (name, path, value) in fields.into_rest() {
        match neutral.iter().find(|(known, _)| *known == name) {
            Some((_, neutral)) if neutral.accepts(&value) => {}
            Some((_, neutral)) => {
                let (found, expected) = (describe(&value), neutral.expected());
                let message =
                    format!("{path}: found {found}, which this server does not implement; expected {expected}");
                return Err(ApiError { code: "unsupported_value", ..ApiError::invalid(&path, message) });
            }
            None => {
                let message = format!("{path}: unknown field; check its spelling or leave it out");
                return Err(ApiError { code: "unknown_parameter", ..ApiError::invalid(&path, message) });
            }
        }
    }
    Ok(())
}
