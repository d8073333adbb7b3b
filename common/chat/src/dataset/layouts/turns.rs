//! LLaVA's `conversations` with `from` and `value`, `messages` with `role` and `content`, and mixtures of them: a list of turns.

use super::Layout;
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
        values.into_iter().enumerate().map(|(number, value)| turn(parser, number, value)).collect()
    },
};

fn turn<'a>(parser: RowParser<'a>, number: usize, value: &'a RawValue) -> Result<Message, RecordError> {
    if kind(value) != Kind::Object {
        return Err(parser.unexpected(&format!("turn {number}"), value, "an object with `from` and `value`"));
    }
    let object: Object<'_> = parser.parse(value)?;
    let text = |spellings: &[&'static str], expected: &str| match entry(parser, &object, spellings)? {
        Some((key, value)) => parser.text(&format!("turn {number}: {key}"), value, expected),
        None => Err(parser.fault(&format!("turn {number} has no `{}`", spellings.join("` or `")))),
    };
    let from = text(SPEAKER, "text")?;
    keys::check_turn(number, &object, &[SPEAKER, TEXT])?;
    let role = role(number, &from)?;
    let content = text(TEXT, "one text, with <image> where an image stands")?;
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
