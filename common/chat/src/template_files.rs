//! Where a model directory has its chat template: the places and the order of transformers' processors and tokenizers.
//!
//! # Source
//! transformers `processing_utils.py`, `ProcessorMixin.get_processor_dict`; `tokenization_utils_base.py`, `_from_pretrained`.

use super::tokenizer::TokenizerConfig;
use base::{Error, Result, json, names};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A template and the file that it comes from.
struct Found {
    path: PathBuf,
    source: String,
}

/// The template's source: of the processor (`processor_config.json`, `chat_template.json`, `chat_template.jinja`), else of
/// `tokenizer_config.json` (a text, or a list of named templates of which `default` is taken).
///
/// # Errors
/// Processor files that disagree; named templates without a default.
pub fn find(dir: &Path, config: &TokenizerConfig) -> Result<Option<String>> {
    let mut of_processor = Vec::new();
    for name in [names::PROCESSOR_CONFIG_FILE, names::CHAT_TEMPLATE_JSON_FILE] {
        let path = dir.join(name);
        let file: Option<Value> = json::read_if_there(&path)?;
        if let Some(value) = file.as_ref().and_then(|file| file.get(names::CHAT_TEMPLATE)).filter(|it| !it.is_null()) {
            of_processor.push(Found { source: from_value(value, &path)?, path });
        }
    }
    of_processor.extend(jinja_file(dir)?);
    if let [first, others @ ..] = &of_processor[..] {
        // Versions of transformers take them in different orders.
        if let Some(other) = others.iter().find(|other| unify(&other.source) != unify(&first.source)) {
            return Err(Error::invalid(
                dir.display(),
                format!("another chat template in {} than in {}", other.path.display(), first.path.display()),
                "one template",
                "delete the one that the model was not trained with",
            ));
        }
        return Ok(of_processor.into_iter().next().map(|found| found.source));
    }
    let path = dir.join(names::TOKENIZER_CONFIG_FILE);
    config.chat_template.as_ref().filter(|it| !it.is_null()).map(|value| from_value(value, &path)).transpose()
}

/// What Jinja makes of the source before anything else; a last newline does not count.
fn unify(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    source.strip_suffix('\n').unwrap_or(&source).to_string()
}

/// `chat_template.jinja`, or the default of the folder of further templates.
fn jinja_file(dir: &Path) -> Result<Option<Found>> {
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(source) => Ok(Some(Found { path, source })),
        Err(error) => Err(Error::io(path)(error)),
    };
    let path = dir.join(names::CHAT_TEMPLATE_FILE);
    if path.exists() {
        return read(path);
    }
    let folder = dir.join(names::CHAT_TEMPLATES_DIR);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(None) };
    let mut templates: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".jinja").map(String::from))
        .collect();
    templates.sort();
    if templates.is_empty() {
        return Ok(None);
    }
    if templates.iter().any(|name| name == DEFAULT) {
        return read(folder.join(format!("{DEFAULT}.jinja")));
    }
    Err(Error::invalid(
        folder.display(),
        format!("templates named {}", templates.join(", ")),
        format!("{} beside the folder", names::CHAT_TEMPLATE_FILE),
        "copy the template that is to be used there",
    ))
}

/// Name of the template that is taken among several.
const DEFAULT: &str = "default";

fn from_value(value: &Value, path: &Path) -> Result<String> {
    let text = match value {
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some(DEFAULT))
            .and_then(|entry| entry.get("template")?.as_str()),
        Value::Object(named) => named.get(DEFAULT).and_then(Value::as_str),
        other => other.as_str(),
    };
    text.map(str::to_string).ok_or_else(|| {
        let found = match value {
            Value::Array(named) => {
                let names: Vec<&str> = named.iter().filter_map(|entry| entry.get("name")?.as_str()).collect();
                format!("templates named {}", names.join(", "))
            }
            other => other.to_string().chars().take(80).collect(),
        };
        Error::invalid(
            format!("{}: chat_template", path.display()),
            found,
            "a text, or a list of {name, template} with one named default",
            "correct the file",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_template_is_the_one_that_transformers_takes() {
        let named = json!([{"name": "rag", "template": "no"}, {"name": "default", "template": "named"}]);
        let legacy = r#"{"chat_template": "legacy"}"#;
        let tool = "additional_chat_templates/tool_use.jinja";
        // Files beside tokenizer_config.json, its chat_template, and the template found (None: refused).
        type Case<'a> = (&'a [(&'a str, &'a str)], Value, Option<Option<&'a str>>);
        let table: [Case<'_>; 11] = [
            (&[], Value::Null, Some(None)),
            (&[], json!("text"), Some(Some("text"))),
            (&[], named, Some(Some("named"))),
            (&[], json!([{"name": "rag", "template": "no"}]), None),
            (&[("chat_template.jinja", "jinja")], json!("text"), Some(Some("jinja"))),
            (&[("chat_template.jinja", "jinja"), (tool, "tools")], json!("text"), Some(Some("jinja"))),
            (&[(tool, "tools")], json!("text"), None),
            (&[("chat_template.json", legacy)], json!("text"), Some(Some("legacy"))),
            (&[("chat_template.json", legacy), ("chat_template.jinja", "legacy\n")], Value::Null, Some(Some("legacy"))),
            (&[("chat_template.json", legacy), ("chat_template.jinja", "other")], Value::Null, None),
            (&[("processor_config.json", legacy)], json!("text"), Some(Some("legacy"))),
        ];
        for (files, value, expected) in table {
            let dir = tempfile::tempdir().expect("a folder");
            std::fs::create_dir(dir.path().join("additional_chat_templates")).expect("created");
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).expect("written");
            }
            let config =
                TokenizerConfig::from_fields([("chat_template".to_string(), value.clone())].into_iter().collect());
            let found = find(dir.path(), &config).ok();
            assert_eq!(found.as_ref().map(Option::as_deref), expected, "{files:?} {value}");
        }
    }
}
