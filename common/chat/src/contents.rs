//! The form in which a template reads the contents of messages: texts, or lists of parts.

use super::{IMAGE_TOKEN, Message, Role};
use minijinja::value::Value;

/// Form of one role's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `content: "<image>\nWhat is it?"`
    Text,
    /// `content: [{type: image}, {type: text, text: "What is it?"}]`, as processors of transformers take it.
    Parts,
    /// `content: [{type: text, text: "<image>\nWhat is it?"}]`: for templates that write images otherwise than as `<image>`.
    TextPart,
}

/// Forms of the three roles' contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    system: Form,
    user: Form,
    assistant: Form,
}

impl Contents {
    /// Texts everywhere, as templates of language models read them.
    pub const TEXTS: Self = Self::uniform(Form::Text);
    /// Lists of parts everywhere.
    pub const PARTS: Self = Self::uniform(Form::Parts);

    const fn uniform(form: Form) -> Self {
        Self { system: form, user: form, assistant: form }
    }

    /// Every combination, in the order in which they are tried: one form for all roles first.
    pub fn all() -> impl Iterator<Item = Self> {
        const FORMS: [Form; 3] = [Form::Text, Form::Parts, Form::TextPart];
        let mixed = FORMS.into_iter().flat_map(|user| {
            FORMS
                .into_iter()
                .flat_map(move |system| FORMS.into_iter().map(move |assistant| Self { system, user, assistant }))
        });
        let mixed = mixed.filter(|contents| FORMS.iter().all(|&form| *contents != Self::uniform(form)));
        FORMS.into_iter().map(Self::uniform).chain(mixed)
    }

    /// A message as the template sees it.
    pub(super) fn value(self, message: &Message) -> Value {
        let form = match message.role {
            Role::System => self.system,
            Role::User => self.user,
            Role::Assistant => self.assistant,
        };
        let content = match form {
            Form::Text => Value::from(message.content.as_str()),
            Form::TextPart => Value::from(vec![text_part(&message.content)]),
            // Images are asked about: elsewhere, the marker is text.
            Form::Parts if message.role == Role::User => Value::from(parts(&message.content)),
            Form::Parts => Value::from(vec![text_part(&message.content)]),
        };
        Value::from_pairs([("role", Value::from(message.role.as_str())), ("content", content)])
    }
}

fn text_part(text: &str) -> Value {
    Value::from_pairs([("type", "text"), ("text", text)])
}

/// A text with markers as parts. The line break between a marker and the text beside it belongs to the marker: it is how
/// LLaVA's datasets spell an image, and templates write one of their own where they want it.
fn parts(content: &str) -> Vec<Value> {
    let mut parts = Vec::new();
    let texts: Vec<&str> = content.split(IMAGE_TOKEN).collect();
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            parts.push(Value::from_pairs([("type", "image")]));
        }
        let text = if index > 0 { text.strip_prefix('\n').unwrap_or(text) } else { text };
        let is_last = index + 1 == texts.len();
        let text = if is_last { text } else { text.strip_suffix('\n').unwrap_or(text) };
        if !text.is_empty() || texts.len() == 1 {
            parts.push(text_part(text));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_become_parts_where_they_stand() {
        for (content, expected) in [
            ("Hi", "[{'type': 'text', 'text': 'Hi'}]"),
            ("", "[{'type': 'text', 'text': ''}]"),
            ("<image>\nWhat?", "[{'type': 'image'}, {'type': 'text', 'text': 'What?'}]"),
            ("What?\n<image>", "[{'type': 'text', 'text': 'What?'}, {'type': 'image'}]"),
            (
                "A <image> or\n<image>\n\nB",
                "[{'type': 'text', 'text': 'A '}, {'type': 'image'}, {'type': 'text', 'text': ' or'}, {'type': 'image'}, {'type': 'text', 'text': '\\nB'}]",
            ),
            ("<image><image>", "[{'type': 'image'}, {'type': 'image'}]"),
        ] {
            assert_eq!(Value::from(parts(content)).to_string(), expected, "{content:?}");
        }
    }

    #[test]
    fn every_combination_is_tried_once_and_uniform_ones_first() {
        let all: Vec<Contents> = Contents::all().collect();
        assert_eq!(all.len(), 27);
        assert_eq!(all[..3], [Form::Text, Form::Parts, Form::TextPart].map(Contents::uniform));
        assert!(all.iter().enumerate().all(|(index, contents)| !all[..index].contains(contents)));
    }
}
