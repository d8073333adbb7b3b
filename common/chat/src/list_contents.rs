//! Contents as lists of parts (`[{"type": "image"}, {"type": "text", "text": …}]`) for templates that read texts alone.
//!
//! transformers' processors and most servers hand lists over; templates of language models join texts and fail on them.

use super::contents::Contents;
use super::contract::first_form;
use super::{ChatTemplate, Message, Role};
use base::Result;

/// Jinja that makes texts of lists; the template follows. Its last line break is Jinja's, which drops it (`trim_blocks`).
const PREAMBLE: &str = include_str!("list_contents.jinja");

/// The template's text, preceded by the Jinja that makes texts of lists where the template itself reads texts only.
pub fn with_list_contents(template: &ChatTemplate) -> Result<String> {
    let source = template.source();
    let reads_texts = first_form(template) == Some(Contents::TEXTS);
    Ok(match reads_texts && !reads_lists(template)? {
        true => format!("{PREAMBLE}{source}"),
        false => source.to_string(),
    })
}

/// The template without that Jinja.
pub fn without_list_contents(source: &str) -> &str {
    source.strip_prefix(PREAMBLE).unwrap_or(source)
}

/// Whether the template writes a list as it writes the text.
fn reads_lists(template: &ChatTemplate) -> Result<bool> {
    let question = Message { role: Role::User, content: "<image>\nqzquestionzq".into() };
    let text = template.render(Contents::TEXTS, std::slice::from_ref(&question), true)?;
    Ok(template.render(Contents::PARTS, &[question], true).is_ok_and(|list| list == text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::Value;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, BTreeMap::new()).expect("it compiles")
    }

    /// JSON as templates see it.
    fn value(json: &serde_json::Value) -> Value {
        match json {
            serde_json::Value::Array(items) => items.iter().map(value).collect(),
            serde_json::Value::Object(fields) => {
                Value::from_pairs(fields.iter().map(|(key, field)| (key.clone(), value(field))))
            }
            other => Value::from(other.as_str().unwrap_or_default()),
        }
    }

    const TEXTS_ONLY: &str =
        "\n  {% for m in messages %}{{ m.role + ': ' + m.content + '|' + m.name|default('') }}\n{% endfor %}";

    #[test]
    fn lists_are_written_as_the_server_writes_them() {
        let plain = template(TEXTS_ONLY);
        let source = with_list_contents(&plain).expect("it renders");
        assert_eq!(without_list_contents(&source), TEXTS_ONLY);
        let both = template(&source);
        let (image, text) =
            (json!({"type": "image", "url": "a.jpg"}), |text: &str| json!({"type": "text", "text": text}));
        for (content, expected) in [
            (json!("plain"), "plain"),
            (json!([image, text("What?")]), "<image>\nWhat?"),
            (json!([text("What?"), image]), "<image>\nWhat?"),
            (json!([text("What?"), image, image]), "<image>\n<image>\nWhat?"),
            (json!([text("A"), image, text("B"), image]), "A\n<image>\nB\n<image>"),
            (json!([{"type": "image_url", "image_url": {"url": "u"}}, "What?", text("")]), "<image>\nWhat?"),
            (json!([image]), "<image>"),
            (json!([]), ""),
        ] {
            let given = json!([{"role": "user", "content": content, "name": "n"}]);
            let as_text = json!([{"role": "user", "content": expected, "name": "n"}]);
            let found = both.render_as_given(&value(&given), false).expect("it renders");
            assert_eq!(found, plain.render_as_given(&value(&as_text), false).expect("it renders"), "{content}");
        }
        let error = both
            .render_as_given(&value(&json!([{"role": "user", "content": [{"type": "video"}]}])), false)
            .expect_err("refused");
        assert!(error.to_string().contains("neither text nor image"), "{error}");
    }

    #[test]
    fn templates_that_read_lists_stay_as_they_are() {
        let lists = "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}\
                     {% endfor %}{% endfor %}";
        assert_eq!(with_list_contents(&template(lists)).expect("it renders"), lists);
    }
}
