//! `/v1/chat/completions`: the request body, read and checked.

use super::args::Limits;
use super::error::ApiError;
use crate::sampling::SamplingConfig;
use common::chat::{IMAGE_TOKEN, Message, Role};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that are accepted and have no effect here.
const IGNORED: [&str; 7] =
    ["user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"];

/// Where a picture comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageUrl {
    /// `data:…` with the bytes in it.
    Data(String),
    /// `http://` or `https://`.
    Remote(String),
}

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// Conversation; `<image>` where a picture stands.
    pub messages: Vec<Message>,
    /// Pictures in the order of their markers.
    pub images: Vec<ImageUrl>,
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

#[derive(Deserialize)]
struct MessageBody {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
    ImageUrl { image_url: Url },
}

#[derive(Deserialize)]
struct Url {
    url: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize, Default)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl ChatRequest {
    /// Reads and checks a body. `model` is the name that is served; `fallback_seed` seeds requests without a seed.
    ///
    /// # Errors
    /// 400 with the field's name; 404 for another model.
    pub fn parse(body: &[u8], model: &str, limits: &Limits, fallback_seed: u64) -> Result<Self, ApiError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid("", format!("the body is not valid JSON: {error}")))?;
        let Value::Object(mut fields) = body else {
            return Err(ApiError::invalid("", "the body must be a JSON object"));
        };
        check_model(&mut fields, model)?;
        let (messages, images) = conversation(required(&mut fields, "messages")?, limits)?;
        let (max_tokens, stop) = (max_tokens(&mut fields, limits)?, stop(&mut fields)?);
        let sampling = sampling(&mut fields, fallback_seed)?;
        let stream = optional(&mut fields, "stream")?.unwrap_or(false);
        let options: StreamOptions = optional(&mut fields, "stream_options")?.unwrap_or_default();
        refuse_the_rest(fields)?;
        Ok(Self { messages, images, sampling, max_tokens, stop, stream, include_usage: options.include_usage })
    }
}

fn optional<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Result<Option<T>, ApiError> {
    match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            serde_json::from_value(value).map(Some).map_err(|error| ApiError::invalid(name, format!("{name}: {error}")))
        }
    }
}

fn required<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Result<T, ApiError> {
    optional(fields, name)?.ok_or_else(|| ApiError::invalid(name, format!("{name} is missing")))
}

fn check_model(fields: &mut Map<String, Value>, served: &str) -> Result<(), ApiError> {
    let model: String = required(fields, "model")?;
    if model == served {
        return Ok(());
    }
    let message = format!("the model {model:?} does not exist; this server has {served:?}");
    let not_found = ApiError::refused(axum::http::StatusCode::NOT_FOUND, "model_not_found", message);
    Err(ApiError { param: Some("model".to_string()), ..not_found })
}

fn max_tokens(fields: &mut Map<String, Value>, limits: &Limits) -> Result<usize, ApiError> {
    let old: Option<usize> = optional(fields, "max_tokens")?;
    let new: Option<usize> = optional(fields, "max_completion_tokens")?;
    let tokens = new.or(old).unwrap_or(limits.default_max_tokens.min(limits.max_tokens));
    if tokens == 0 || tokens > limits.max_tokens {
        let message = format!("max_tokens: found {tokens}, expected 1 to {}", limits.max_tokens);
        return Err(ApiError::invalid("max_tokens", message));
    }
    Ok(tokens)
}

fn stop(fields: &mut Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let stop = match optional(fields, "stop")? {
        None => Vec::new(),
        Some(OneOrMore::One(text)) => vec![text],
        Some(OneOrMore::More(texts)) => texts,
    };
    let too_long = stop.iter().any(|text| text.len() > 1000);
    if stop.len() > 4 || too_long {
        return Err(ApiError::invalid("stop", "stop: expected at most 4 texts of at most 1000 bytes"));
    }
    Ok(stop)
}

/// # Differs
/// Without a temperature the answer is greedy, as `infer generate`'s; OpenAI draws at 1.
fn sampling(fields: &mut Map<String, Value>, fallback_seed: u64) -> Result<SamplingConfig, ApiError> {
    let default = SamplingConfig::default();
    let seed: Option<i64> = optional(fields, "seed")?;
    let config = SamplingConfig {
        temperature: optional(fields, "temperature")?.unwrap_or(default.temperature),
        top_p: optional(fields, "top_p")?.unwrap_or(default.top_p),
        top_k: optional(fields, "top_k")?.unwrap_or(default.top_k),
        repetition_penalty: optional(fields, "repetition_penalty")?.unwrap_or(default.repetition_penalty),
        seed: seed.map_or(fallback_seed, |seed| seed as u64),
    };
    config.validate().map_err(|error| {
        let message = error.to_string();
        let param = message.split(':').next().unwrap_or_default().to_string();
        ApiError::invalid(&param, message)
    })?;
    if config.temperature > 2.0 {
        let message = format!("temperature: found {}, expected 0 to 2", config.temperature);
        return Err(ApiError::invalid("temperature", message));
    }
    Ok(config)
}

/// What is left is without effect only where its value asks for nothing.
fn refuse_the_rest(fields: Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in fields {
        let asks_for_nothing = match (name.as_str(), &value) {
            (_, Value::Null) | ("logprobs", Value::Bool(false)) => true,
            ("n", value) => value.as_f64() == Some(1.0),
            ("frequency_penalty" | "presence_penalty", value) => value.as_f64() == Some(0.0),
            ("response_format", value) => value.get("type").and_then(Value::as_str) == Some("text"),
            ("tools" | "functions", Value::Array(tools)) => tools.is_empty(),
            ("logit_bias", Value::Object(biases)) => biases.is_empty(),
            ("tool_choice", Value::String(choice)) => choice == "none",
            (name, _) => IGNORED.contains(&name),
        };
        if !asks_for_nothing {
            return Err(ApiError::invalid(&name, format!("{name} is not supported by this server; leave it out")));
        }
    }
    Ok(())
}

fn conversation(bodies: Vec<MessageBody>, limits: &Limits) -> Result<(Vec<Message>, Vec<ImageUrl>), ApiError> {
    let mut images = Vec::new();
    let mut messages = Vec::with_capacity(bodies.len());
    for (index, body) in bodies.into_iter().enumerate() {
        messages.push(message(body, index, &mut images)?);
    }
    if !messages.last().is_some_and(|last: &Message| last.role == Role::User) {
        return Err(ApiError::invalid("messages", "messages: expected a conversation that ends with a user message"));
    }
    if images.len() > limits.max_images {
        let message = format!("messages: {} pictures, at most {} are allowed", images.len(), limits.max_images);
        return Err(ApiError::invalid("messages", message));
    }
    Ok((messages, images))
}

fn message(body: MessageBody, index: usize, images: &mut Vec<ImageUrl>) -> Result<Message, ApiError> {
    let place = format!("messages[{index}]");
    let role = match body.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            let message = format!("{place}.role: found {other:?}, expected system, developer, user or assistant");
            return Err(ApiError::invalid(&format!("{place}.role"), message));
        }
    };
    if role == Role::System && index > 0 {
        return Err(ApiError::invalid(&place, format!("{place}: a system message must be the first")));
    }
    let before = images.len();
    let text = match body.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => join(parts, images, &place)?,
        None => return Err(ApiError::invalid(&place, format!("{place}.content is missing"))),
    };
    let pictures = images.len() - before;
    if pictures > 0 && role != Role::User {
        return Err(ApiError::invalid(&place, format!("{place}: only user messages may have pictures")));
    }
    place_markers(text, pictures).map(|content| Message { role, content }).map_err(|found| {
        let message = format!(
            "{place}: {found} {IMAGE_TOKEN} markers in the text and {pictures} pictures; leave the markers out"
        );
        ApiError::invalid(&place, message)
    })
}

fn join(parts: Vec<Part>, images: &mut Vec<ImageUrl>, place: &str) -> Result<String, ApiError> {
    let mut texts = Vec::new();
    for part in parts {
        match part {
            Part::Text { text } => texts.push(text),
            Part::ImageUrl { image_url: Url { url } } => images.push(image_url(url, place)?),
        }
    }
    Ok(texts.join("\n"))
}

fn image_url(url: String, place: &str) -> Result<ImageUrl, ApiError> {
    let starts_with = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if starts_with("data:") {
        Ok(ImageUrl::Data(url))
    } else if starts_with("http://") || starts_with("https://") {
        Ok(ImageUrl::Remote(url))
    } else {
        Err(ApiError::invalid(
            place,
            format!("{place}: image_url: expected a data: URI (or http:, https: where allowed)"),
        ))
    }
}

/// Pictures stand before the text unless it says where; otherwise the number of markers that do not fit.
fn place_markers(text: String, pictures: usize) -> Result<String, usize> {
    match text.matches(IMAGE_TOKEN).count() {
        0 => Ok(format!("{}{text}", format!("{IMAGE_TOKEN}\n").repeat(pictures))),
        markers if markers == pictures => Ok(text),
        markers => Err(markers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        limits: Limits,
    }

    fn parse(body: Value) -> Result<ChatRequest, ApiError> {
        let limits = Cli::parse_from(["serve", "--max-images", "2"]).limits;
        ChatRequest::parse(body.to_string().as_bytes(), "m", &limits, 9)
    }

    fn with(name: &str, value: Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body[name] = value;
        parse(body)
    }

    #[test]
    fn a_conversation_with_a_picture() {
        let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}});
        let request = with(
            "messages",
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "What?"}, picture]},
                {"role": "assistant", "content": "A dog."},
                {"role": "user", "content": "Sure?"}
            ]),
        )
        .unwrap();
        assert_eq!(request.messages[1].content, "<image>\nWhat?");
        assert_eq!(request.messages.len(), 4);
        assert_eq!(request.images, [ImageUrl::Data("data:image/png;base64,AA==".into())]);
        assert_eq!((request.sampling.temperature, request.sampling.seed, request.max_tokens), (0.0, 9, 512));
    }

    #[test]
    fn settings_are_taken_and_checked() {
        assert_eq!(with("seed", json!(-1)).unwrap().sampling.seed, u64::MAX);
        assert_eq!(with("stop", json!("a")).unwrap().stop, ["a"]);
        assert_eq!(with("max_completion_tokens", json!(3)).unwrap().max_tokens, 3);
        assert!(with("stream_options", json!({"include_usage": true})).unwrap().include_usage);
        assert!(with("n", json!(1)).is_ok() && with("tools", json!([])).is_ok() && with("user", json!("u")).is_ok());
        for (name, value) in [
            ("temperature", json!(3)),
            ("temperature", json!("hot")),
            ("top_p", json!(0)),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(-5)),
            ("max_tokens", json!(1e9)),
            ("stop", json!(["1", "2", "3", "4", "5"])),
            ("n", json!(2)),
            ("tools", json!([{}])),
            ("max_token", json!(5)),
            ("messages", json!([])),
            ("messages", json!("Hi")),
            ("messages", json!([{"role": "assistant", "content": "Hi"}])),
            ("messages", json!([{"role": "wizard", "content": "Hi"}])),
            ("messages", json!([{"role": "user"}])),
            ("messages", json!([{"role": "user", "content": "<image>"}])),
            (
                "messages",
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
            ),
            ("messages", json!([{"role": "user", "content": [{"type": "audio"}]}])),
        ] {
            let error = with(name, value.clone()).expect_err(&format!("{name} {value}"));
            assert_eq!(error.status.as_u16(), 400, "{name} {value}");
        }
        assert_eq!(with("model", json!("gpt")).unwrap_err().status.as_u16(), 404);
    }
}
