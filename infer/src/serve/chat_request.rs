//! `/v1/chat/completions`: the request body, read and checked.
//!
//! A field is implemented (here and in `messages`), has no effect (`neutral`), or is refused by its name.

mod fields;
mod messages;
mod neutral;
#[cfg(test)]
mod tests;

use super::args::Limits;
use super::error::ApiError;
use crate::engine::Part;
use chat::Role;
use fields::{Fields, string, wrong_type};
use model::sampling::SamplingConfig;
use neutral::{BODY, STREAM_OPTIONS, refuse_the_rest};
use serde_json::Value;

/// Most stop texts, and bytes of each.
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 1000;
const MAX_TEMPERATURE: f32 = 2.0;

/// Where a picture comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageUrl {
    /// `data:…` with the bytes in it.
    Data(String),
    /// `http://` or `https://`.
    Remote(String),
}

/// A picture of the request.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagePart {
    /// Where it comes from.
    pub source: ImageUrl,
    /// The field that names it: `messages[0].content[1].image_url.url`.
    pub place: String,
}

/// A message of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// Who.
    pub role: Role,
    /// Texts and pictures in their order.
    pub parts: Vec<Part>,
}

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// Conversation, at least one message.
    pub messages: Vec<ChatMessage>,
    /// Pictures in the order of their parts.
    pub images: Vec<ImagePart>,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// Longest answer, tokens.
    pub max_tokens: usize,
    /// The answer ends before these.
    pub stop: Vec<String>,
    /// Answer with server-sent events.
    pub stream: bool,
    /// A last event with token counts.
    pub include_usage: bool,
}

impl ChatRequest {
    /// Reads and checks a body. `model` is the name that is served; `fallback_seed` seeds requests without a seed.
    ///
    /// # Errors
    /// 400 with the field's name; 404 for another model.
    pub fn parse(body: &[u8], model: &str, limits: &Limits, fallback_seed: u64) -> Result<Self, ApiError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid("", format!("the body is not valid JSON: {error}")))?;
        let mut fields = Fields::of(body, "")?;
        check_model(&mut fields, model)?;
        let (messages, images) = messages::read(fields.required("messages", "an array of messages")?, limits)?;
        let (max_tokens, stop) = (max_tokens(&mut fields, limits)?, stop(&mut fields)?);
        let sampling = sampling(&mut fields, fallback_seed)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields)?;
        drop_tools_that_are_off(&mut fields);
        refuse_the_rest(fields, BODY)?;
        Ok(Self { messages, images, sampling, max_tokens, stop, stream, include_usage })
    }
}

fn check_model(fields: &mut Fields, served: &str) -> Result<(), ApiError> {
    let model = fields.required_string("model")?;
    if model == served {
        return Ok(());
    }
    let message = format!("the model {model:?} does not exist; this server has {served:?}");
    let not_found = ApiError::refused(axum::http::StatusCode::NOT_FOUND, "model_not_found", message);
    Err(ApiError { param: Some("model".to_string()), ..not_found })
}

fn max_tokens(fields: &mut Fields, limits: &Limits) -> Result<usize, ApiError> {
    let old = fields.integer("max_tokens")?.map(|tokens| ("max_tokens", tokens));
    let new = fields.integer("max_completion_tokens")?.map(|tokens| ("max_completion_tokens", tokens));
    let Some((name, tokens)) = new.or(old) else { return Ok(limits.default_max_tokens.min(limits.max_tokens)) };
    match usize::try_from(tokens) {
        Ok(tokens) if (1..=limits.max_tokens).contains(&tokens) => Ok(tokens),
        _ => Err(ApiError::invalid(name, format!("{name}: found {tokens}, expected 1 to {}", limits.max_tokens))),
    }
}

/// Empty texts end nothing.
fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let mut stop = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(texts)) => {
            let texts = texts.into_iter().enumerate();
            texts.map(|(index, text)| string(text, &format!("stop[{index}]"))).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if stop.len() > MAX_STOPS || stop.iter().any(|text| text.len() > MAX_STOP_BYTES) {
        let (count, longest) = (stop.len(), stop.iter().map(String::len).max().unwrap_or_default());
        let message = format!(
            "stop: found {count} strings of up to {longest} bytes, expected at most {MAX_STOPS} of {MAX_STOP_BYTES} bytes"
        );
        return Err(ApiError::invalid("stop", message));
    }
    stop.retain(|text| !text.is_empty());
    Ok(stop)
}

/// # Differs
/// Without a temperature the answer is greedy, as `infer generate`'s; OpenAI draws at 1.
fn sampling(fields: &mut Fields, fallback_seed: u64) -> Result<SamplingConfig, ApiError> {
    let default = SamplingConfig::default();
    let config = SamplingConfig {
        temperature: fields.number("temperature")?.map_or(default.temperature, |value| value as f32),
        top_p: fields.number("top_p")?.map_or(default.top_p, |value| value as f32),
        top_k: top_k(fields)?.unwrap_or(default.top_k),
        repetition_penalty: fields
            .number("repetition_penalty")?
            .map_or(default.repetition_penalty, |value| value as f32),
        seed: fields.integer("seed")?.map_or(fallback_seed, |seed| seed as u64),
    };
    config.validate().map_err(|error| ApiError::invalid(error.setting, error))?;
    if config.temperature > MAX_TEMPERATURE {
        let message = format!("temperature: found {}, expected 0 to {MAX_TEMPERATURE}", config.temperature);
        return Err(ApiError::invalid("temperature", message));
    }
    Ok(config)
}

/// 0 is off, and so is vLLM's -1.
fn top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.integer("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(top_k) => usize::try_from(top_k).map(Some).map_err(|_| {
            ApiError::invalid("top_k", format!("top_k: found {top_k}, expected 0 or more (0 and -1 are off)"))
        }),
    }
}

fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    let mut options = Fields::of(options, "stream_options")?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    refuse_the_rest(options, STREAM_OPTIONS)?;
    Ok(include_usage)
}

/// Tools that the answer may not call change nothing.
fn drop_tools_that_are_off(fields: &mut Fields) {
    for (choice, tools) in [("tool_choice", "tools"), ("function_call", "functions")] {
        if fields.get(choice).is_some_and(|choice| choice == "none") {
            fields.take(tools);
        }
    }
}
