//! A question and its answer in columns or keys of their own, as tables of visual question answering have them.

use super::{Asked, Entry, Layout};
use crate::dataset::RecordError;
use crate::dataset::object::{Kind, Object, RowParser, kind};
use crate::dataset::questions::with_markers;
use crate::dataset::record::{entry, id_text};
use crate::{Message, Role};

pub(super) const ANSWER: &[&str] = &["answer", "caption", "text", "response", "output"];

/// Parts of a question that stand in keys of their own: without them it is another question.
const PARTS: [&str; 6] = ["choices", "context", "hint", "input", "options", "passage"];

pub(super) const LAYOUT: Layout =
    Layout { key: &["question", "prompt", "instruction"], beside: ANSWER, name: |_| "questions and answers", read };

fn read<'a>(
    parser: RowParser<'a>,
    object: &Object<'a>,
    (key, value): Entry<'a>,
    asked: &Asked,
) -> Result<Vec<Message>, RecordError> {
    let question = parser.text(key, value, "one text")?;
    let is_empty = |value: &str| matches!(value.trim_matches(['"', '[', ']', '{', '}', ' ']), "" | "null");
    if let Some((part, _)) = object.iter().find(|(name, value)| PARTS.contains(name) && !is_empty(value.get())) {
        let what = format!(
            "key {part:?} is not read beside {key:?}; write it into {key}, or remove it if the question is whole"
        );
        return Err(parser.fault(&what));
    }
    let Some((key, value)) = entry(parser, object, ANSWER)? else { return Ok(Vec::new()) };
    let answer = match kind(value) {
        Kind::Number => id_text(value).unwrap_or_default(),
        _ => parser.text(key, value, "one text; several answers to a question are a row each")?,
    };
    let question = Message { role: Role::User, content: with_markers(question.trim(), asked.images) };
    Ok(vec![question, Message { role: Role::Assistant, content: answer.trim().to_owned() }])
}
