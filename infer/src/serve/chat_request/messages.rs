//! `messages`: roles, texts and pictures in their order.

use super::fields::{Fields, describe, string, wrong_type};
use super::neutral::{IMAGE_URL, MESSAGE, PART, refuse_the_rest};
use super::{ChatMessage, ImagePart, ImageUrl};
use crate::engine::Part;
use crate::serve::args::Limits;
use crate::serve::error::ApiError;
use chat::{IMAGE_TOKEN, Role};
use serde_json::Value;

/// OpenAI's sizes of a picture; the model here has one.
pub(super) const DETAILS: &[&str] = &["auto", "low", "high", "original"];

/// Reads `messages`. Leading system and developer messages become one system message.
pub(super) fn read(value: Value, limits: &Limits) -> Result<(Vec<ChatMessage>, Vec<ImagePart>), ApiError> {
    let bodies = match value {
        Value::Array(bodies) => bodies,
        other => return Err(wrong_type("messages", "an array", &other)),
    };
    if bodies.is_empty() {
        return Err(ApiError::invalid("messages", "messages: found an empty array, expected at least one message"));
    }
    let mut images = Vec::new();
    let mut messages: Vec<ChatMessage> = Vec::with_capacity(bodies.len());
    for (index, body) in bodies.into_iter().enumerate() {
        let message = message(body, &format!("messages[{index}]"), &mut images)?;
        match messages.as_mut_slice() {
            [leading] if leading.role == Role::System && message.role == Role::System => join(leading, message),
            _ => messages.push(message),
        }
    }
    if images.len() > limits.max_images {
        let message = format!("messages: found {} pictures, expected at most {}", images.len(), limits.max_images);
        return Err(ApiError::invalid("messages", message));
    }
    Ok((messages, images))
}

/// One text, a blank line between the two; system messages have no pictures.
fn join(leading: &mut ChatMessage, message: ChatMessage) {
    let text = |parts: &[Part]| {
        let texts = parts.iter().map(|part| if let Part::Text(text) = part { text } else { "" });
        texts.collect::<Vec<_>>().join("\n")
    };
    let texts = [text(&leading.parts), text(&message.parts)];
    let joined = texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n");
    leading.parts = vec![Part::Text(joined)];
}

fn message(body: Value, place: &str, images: &mut Vec<ImagePart>) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::of(body, place)?;
    let role = role(&mut fields)?;
    let refusal = fields.string("refusal")?;
    let path = fields.path("content");
    let before = images.len();
    let parts = match fields.take("content") {
        Some(Value::String(text)) => vec![Part::Text(text)],
        Some(Value::Array(parts)) => {
            let mut read = Vec::with_capacity(parts.len());
            for (index, body) in parts.into_iter().enumerate() {
                read.push(part(body, &format!("{path}[{index}]"), role, images)?);
            }
            read.retain(|part| *part != Part::Text(String::new()));
            read
        }
        Some(other) => return Err(wrong_type(&path, "a string or an array of parts", &other)),
        // An answer that was refused, or one of tool calls, which are refused below.
        None if role == Role::Assistant => vec![Part::Text(refusal.unwrap_or_default())],
        None => {
            let message = format!("{path} is missing or null, expected a string or an array of parts");
            return Err(ApiError { code: "missing_required_parameter", ..ApiError::invalid(&path, message) });
        }
    };
    refuse_the_rest(fields, MESSAGE)?;
    let pictures = images.len() - before;
    Ok(ChatMessage { role, parts: in_their_places(parts, pictures) })
}

fn role(fields: &mut Fields) -> Result<Role, ApiError> {
    let path = fields.path("role");
    let expected = r#""system", "developer", "user" or "assistant""#;
    let role = string(fields.required("role", expected)?, &path)?;
    match role.as_str() {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => {
            let message = format!("{path}: found {role:?}; tool calls are not implemented by this server");
            Err(ApiError { code: "unsupported_value", ..ApiError::invalid(&path, message) })
        }
        _ => Err(ApiError::invalid(&path, format!("{path}: found {role:?}, expected {expected}"))),
    }
}

fn part(body: Value, place: &str, role: Role, images: &mut Vec<ImagePart>) -> Result<Part, ApiError> {
    let mut fields = match body {
        // Ollama's and older servers' lists of texts.
        Value::String(text) => return Ok(Part::Text(text)),
        body => Fields::of(body, place)?,
    };
    let path = fields.path("type");
    let kind = fields.required_string("type")?;
    let read = match kind.as_str() {
        "text" => Part::Text(fields.required_string("text")?),
        "refusal" if role == Role::Assistant => Part::Text(fields.required_string("refusal")?),
        "image_url" if role == Role::User => {
            let path = fields.path("image_url");
            let image = image_url(fields.required("image_url", "an object with url")?, &path)?;
            images.push(image);
            Part::Image
        }
        "image_url" => {
            let message = format!("{path}: found \"image_url\"; only user messages may have pictures");
            return Err(ApiError::invalid(&path, message));
        }
        _ => {
            let message = format!("{path}: found {kind:?}, expected \"text\" or \"image_url\"");
            return Err(ApiError::invalid(&path, message));
        }
    };
    refuse_the_rest(fields, PART)?;
    Ok(read)
}

/// `{"url": …}`, or the address alone.
fn image_url(value: Value, path: &str) -> Result<ImagePart, ApiError> {
    let (url, place) = match value {
        Value::String(url) => (url, path.to_string()),
        Value::Object(_) => {
            let mut fields = Fields::of(value, path)?;
            let url = fields.required_string("url")?;
            let place = fields.path("url");
            refuse_the_rest(fields, IMAGE_URL)?;
            (url, place)
        }
        other => return Err(wrong_type(path, "an object with url", &other)),
    };
    let starts_with = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let source = if starts_with("data:") {
        ImageUrl::Data(url)
    } else if starts_with("http://") || starts_with("https://") {
        ImageUrl::Remote(url)
    } else {
        let found = describe(&Value::String(url));
        let message =
            format!("{place}: found {found}, expected data:image/…;base64,… (or http:, https: where allowed)");
        return Err(ApiError::invalid(&place, message));
    };
    Ok(ImagePart { source, place })
}

/// Places of a message's pictures: where their parts stand, with two exceptions.
/// - Texts that have `<image>` alone on a line for each picture say where they stand. Any other `<image>` is text.
/// - Pictures that follow all of the text stand before it, as `infer generate` puts them: most clients send the question
///   first, and most models have learned from rows with the picture first.
fn in_their_places(parts: Vec<Part>, pictures: usize) -> Vec<Part> {
    let is_marker = |line: &&str| line.trim() == IMAGE_TOKEN;
    let markers = |part: &Part| if let Part::Text(text) = part { text.lines().filter(is_marker).count() } else { 0 };
    if pictures == 0 {
        return parts;
    }
    if parts.iter().map(markers).sum::<usize>() != pictures {
        return match parts.iter().position(|part| *part == Part::Image) {
            Some(first) if parts[first..].iter().all(|part| *part == Part::Image) => {
                [&parts[first..], &parts[..first]].concat()
            }
            _ => parts,
        };
    }
    let mut placed = Vec::new();
    for part in parts {
        let Part::Text(text) = part else { continue };
        let mut lines: Vec<&str> = Vec::new();
        let flush = |lines: &mut Vec<&str>, placed: &mut Vec<Part>| {
            if !lines.is_empty() {
                placed.push(Part::Text(std::mem::take(lines).join("\n")));
            }
        };
        for line in text.split('\n') {
            if is_marker(&line) {
                flush(&mut lines, &mut placed);
                placed.push(Part::Image);
            } else {
                lines.push(line);
            }
        }
        flush(&mut lines, &mut placed);
    }
    placed
}
