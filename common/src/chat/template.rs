//! The model's own chat template (Jinja, as transformers renders it).

use super::Message;
use super::tokenizer::TokenizerConfig;
use crate::{Error, Result, files, json, names};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the template in the environment, as it appears in Jinja's messages.
const NAME: &str = "chat_template";

/// A compiled chat template with the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    source: String,
    sha256: String,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`
    /// (a text, or a list of named templates of which `default` is taken), else `chat_template.json`.
    pub fn from_dir(dir: &Path, config: &TokenizerConfig) -> Result<Self> {
        let source = find_source(dir, config)?.ok_or_else(|| {
            Error::invalid(
                dir.display(),
                "no chat template",
                format!("{}, or chat_template in {}", names::CHAT_TEMPLATE_FILE, names::TOKENIZER_CONFIG_FILE),
                "take a chat model's directory, or write its template into that file",
            )
        })?;
        Self::new(&source, config.special_tokens())
    }

    /// Compiles a template; `special_tokens` are its variables `bos_token`, `eos_token`, ….
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failure(&error))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_template_owned(NAME, source.to_string()).map_err(|error| failure(&error))?;
        let sha256 = files::sha256_hex(source.as_bytes());
        Ok(Self { environment, special_tokens, source: source.to_string(), sha256 })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Lower-case hex SHA-256 of the template's text.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The template over the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|error| failure(&error))?;
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let tokens = Value::from_pairs(self.special_tokens.clone());
        template.render(context! { messages, add_generation_prompt, ..tokens }).map_err(|error| failure(&error))
    }
}

fn find_source(dir: &Path, config: &TokenizerConfig) -> Result<Option<String>> {
    let jinja = dir.join(names::CHAT_TEMPLATE_FILE);
    if jinja.exists() {
        return std::fs::read_to_string(&jinja).map(Some).map_err(Error::io(&jinja));
    }
    if let Some(value) = &config.chat_template {
        return from_value(value, &dir.join(names::TOKENIZER_CONFIG_FILE)).map(Some);
    }
    // Processors of transformers 4.45 to 4.50 kept it in a file of the same form as the tokenizer's key.
    let path = dir.join(names::CHAT_TEMPLATE_JSON_FILE);
    let file: Option<TokenizerConfig> = json::read_if_there(&path)?;
    file.and_then(|file| file.chat_template).map(|value| from_value(&value, &path)).transpose()
}

fn from_value(value: &serde_json::Value, path: &Path) -> Result<String> {
    let text = match value {
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(|name| name.as_str()) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str()),
        other => other.as_str(),
    };
    text.map(str::to_string).ok_or_else(|| {
        Error::invalid(
            format!("{}: chat_template", path.display()),
            value,
            "a text, or a list of {name, template} with one named default",
            "correct the file",
        )
    })
}

fn failure(error: &minijinja::Error) -> Error {
    Error::invalid(
        "the chat template",
        format!("{error:#}"),
        "messages that the template accepts",
        "check the template and the order of the conversation's roles",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Role;
    use serde_json::json;

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, BTreeMap::from([("eos_token".into(), "</s>".into())])).expect("it compiles")
    }

    #[test]
    fn python_string_methods_and_special_tokens_work() {
        let source =
            "{% for m in messages %}{{ m['role'].upper() }}:{{ m.content.strip() }}{{ eos_token }}{% endfor %}";
        let text = template(source).render(&[message(Role::User, " hi ")], false).expect("it renders");
        assert_eq!(text, "USER:hi</s>");
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let text =
            template("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n")
                .render(&[message(Role::User, "hi")], false)
                .expect("it renders");
        assert_eq!(text, "hi\n");
    }

    #[test]
    fn an_exception_of_the_template_is_an_error_with_its_text() {
        let error =
            template("{{ raise_exception('roles must alternate') }}").render(&[], false).expect_err("it raises");
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn the_default_of_named_templates_is_taken() {
        let named = json!([{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]);
        assert_eq!(from_value(&named, Path::new("tokenizer_config.json")).expect("found"), "yes");
        let none = json!([{"name": "rag", "template": "no"}]);
        assert!(from_value(&none, Path::new("tokenizer_config.json")).is_err());
    }
}
