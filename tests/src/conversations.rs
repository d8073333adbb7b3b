//! Conversations through a chat template, here and in transformers.

use crate::chat_models::write;
use crate::{python, python_script};
use base::IGNORE_INDEX;
use chat::{ChatProcessor, Message, Role};
use serde_json::{Value, json};
use std::path::Path;

/// A published template.
pub fn template(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("chat_templates").join(format!("{name}.jinja"));
    std::fs::read_to_string(path).expect("the template is readable")
}

/// The template of Qwen1.5 without a default system prompt.
pub const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A tokenizer configuration for [`CHATML`].
pub fn chatml_config() -> Value {
    json!({"eos_token": "<|im_end|>", "extra_special_tokens": ["<image>", "<|im_start|>", "<|endoftext|>"]})
}

/// Turns as rows have them.
pub fn owned(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    turns.iter().map(|&(question, answer)| (question.to_string(), answer.to_string())).collect()
}

/// The messages of a conversation.
pub fn messages(system: &str, turns: &[(&str, &str)]) -> Vec<Message> {
    let message = |role, content: &str| Message { role, content: content.to_string() };
    let mut messages = vec![message(Role::System, system)];
    for (question, answer) in turns {
        messages.push(message(Role::User, question));
        messages.push(message(Role::Assistant, answer));
    }
    messages
}

/// As Python takes them; an empty system prompt stands for none, unless the template writes its own then.
pub fn as_json(messages: &[Message], keeps_empty_system: bool) -> Value {
    let is_none = |message: &Message| message.role == Role::System && message.content.is_empty() && !keeps_empty_system;
    let given = messages.iter().filter(|message| !is_none(message));
    given.map(|message| json!({"role": message.role.as_str(), "content": message.content})).collect()
}

/// What transformers makes of the cases; `None` where there is no Python.
pub fn transformers(cases: &[Value]) -> Option<Vec<Value>> {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "cases.json", &json!(cases).to_string());
    let script = python_script("chat_templates.py");
    let output = python()?.arg(script).arg(folder.path().join("cases.json")).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_str(text.lines().last().expect("a line")).expect("JSON"))
}

/// Ids of a JSON list.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The texts that are supervised, one after the other.
pub fn supervised(chat: &ChatProcessor, labels: &[i32]) -> String {
    let ids: Vec<u32> = labels.iter().filter(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect();
    chat.decode(&ids, false).expect("it decodes")
}
