//! LLaVA's `conversations` with `from` and `value`, `messages` with `role` and `content`, and mixtures of them: a list of turns.

use super::{Layout, parts};
use crate::dataset::object::{Kind, Object, RowParser, kind};
use crate::dataset::record::entry;
use crate::dataset::{Fault, RecordError, keys};
use crate::{Message, Role};
use serde_json::value::RawValue;

const SPEAKER: &[&str] = &["from", "role"];
const TEXT: &[&str] = &["value", "content"];

pub(super) const LAYOUT: Layout = Layout {
    key: &["conversations", "messages"],
    beside: &[],
    name: |key| if key == "messages" { "messages (ShareGPT)" } else { "LLaVA conversations" },
    read: |parser, _, (key, value), _| {
        if kind(value) != Kind::List {
            return Err(parser.unexpected(key, value, "a list of turns"));
        }
        let values: Vec<&RawValue> = parser.parse(value)?;
        let mut images = 0;
        values.into_iter().enumerate().map(|(number, value)| turn(parser, number, value, &mut images)).collect()
    },
};

/// `images`: image parts of the row so far.
fn turn<'a>(
    parser: RowParser<'a>,
    number: usize,
    value: &'a RawValue,
    images: &mut usize,
) -> Result<Message, RecordError> {
    if kind(value) != Kind::Object {
        return Err(parser.unexpected(&format!("turn {number}"), value, "an object with `from` and `value`"));
    }
    let object: Object<'_> = parser.parse(value)?;
    let required = |spellings: &[&'static str]| match entry(parser, &object, spellings)? {
        Some((key, value)) => Ok((format!("turn {number}: {key}"), value)),
        None => Err(parser.fault(&format!("turn {number} has no `{}`", spellings.join("` or `")))),
    };
    let (place, from) = required(SPEAKER)?;
    let from = parser.text(&place, from, "text")?;
    keys::check_turn(number, &object, &[SPEAKER, TEXT])?;
    let role = role(number, &from)?;
    let (place, content) = required(TEXT)?;
    let content = match kind(content) {
        Kind::List => parts::text(parser, &place, content, images)?,
        _ => parser.text(&place, content, "a text with <image> where an image stands, or a list of parts")?,
    };
    Ok(Message { role, content })
}

fn role(turn: usize, from: &str) -> Result<Role, RecordError> {
    match from.trim().to_ascii_lowercase().as_str() {
        "system" => Ok(Role::System),
        "human" | "user" => Ok(Role::User),
        "gpt" | "assistant" | "chatgpt" => Ok(Role::Assistant),
        _ => {
            let detail = format!("turn {turn} is from {from:?}, expected human, gpt, user, assistant or system");
            Err(RecordError::new(Fault::BadTurns, detail))
        }
    }
}
