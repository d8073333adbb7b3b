//! The model's own chat template (Jinja, as transformers renders it).

use super::contents::Contents;
use super::jinja::{self, Clock};
use super::tokenizer::TokenizerConfig;
use super::{Message, template_files};
use base::{Error, Result, files, names};
use minijinja::value::Value;
use minijinja::{Environment, context};
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
    clock: Clock,
}

impl ChatTemplate {
    /// Reads the template of a model directory from where transformers takes it: its files, else `tokenizer_config.json`.
    pub fn from_dir(dir: &Path, config: &TokenizerConfig) -> Result<Self> {
        let source = template_files::find(dir, config)?.ok_or_else(|| {
            Error::invalid(
                dir.display(),
                "no chat template",
                format!("{}, or chat_template in {}", names::CHAT_TEMPLATE_FILE, names::TOKENIZER_CONFIG_FILE),
                "take a chat model's directory, write its template into that file, or give preprocess model one with --chat-template",
            )
        })?;
        Self::new(&source, config.special_tokens())
            .map_err(|error| error.placed(|place| format!("{}: {place}", dir.display())))
    }

    /// Compiles a template; `special_tokens` are its variables `bos_token`, `eos_token`, ….
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        Self::at(source, special_tokens, Clock::now())
    }

    pub(super) fn at(source: &str, special_tokens: BTreeMap<String, String>, clock: Clock) -> Result<Self> {
        let environment = jinja::environment(NAME, source, clock).map_err(|error| failure(&error))?;
        let sha256 = files::sha256_hex(source.as_bytes());
        Ok(Self { environment, special_tokens, source: source.to_string(), sha256, clock })
    }

    /// The same template at another time.
    pub(super) fn with_clock(&self, clock: Clock) -> Result<Self> {
        Self::at(&self.source, self.special_tokens.clone(), clock)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Lower-case hex SHA-256 of the template's text.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The day that `strftime_now` writes.
    pub(super) fn day(&self) -> String {
        self.clock.day()
    }

    /// The template over the messages, their contents in the form that it reads.
    pub(super) fn render(
        &self,
        contents: Contents,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|message| contents.value(message)).collect();
        self.render_as_given(&Value::from(messages), add_generation_prompt)
    }

    /// The template over messages as a client spells them.
    pub(super) fn render_as_given(&self, messages: &Value, add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|error| failure(&error))?;
        let tokens = Value::from_pairs(self.special_tokens.clone());
        let nothing = Value::from(());
        let variables = context! {
            messages,
            tools => nothing.clone(),
            documents => nothing,
            add_generation_prompt,
            ..tokens
        };
        template.render(variables).map_err(|error| failure(&error))
    }
}

fn failure(error: &minijinja::Error) -> Error {
    Error::invalid(
        "the chat template",
        error,
        "messages that the template accepts",
        "check the template and the order of the conversation's roles",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn render(source: &str, messages: &[(Role, &str)]) -> Result<String> {
        let tokens = BTreeMap::from([("eos_token".into(), "</s>".into())]);
        let messages: Vec<Message> =
            messages.iter().map(|&(role, content)| Message { role, content: content.into() }).collect();
        // 2024-07-26, a Friday.
        let clock = Clock::at(1_722_000_000).expect("a time");
        ChatTemplate::at(source, tokens, clock)?.render(Contents::TEXTS, &messages, false)
    }

    /// Every value is transformers' 5.24.
    #[test]
    fn templates_render_as_in_python() {
        let table = [
            (
                "{% for m in messages %}{{ m['role'].upper() }}:{{ m.content.strip() }}{{ eos_token }}{% endfor %}",
                "USER:hi</s>",
            ),
            ("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n", " hi \n"),
            ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n", "a\nb\n"),
            ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
            ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
            ("{{ '%s' % messages[0].role }} {{ '<%s|%d>' % ('a', 3) }} {{ '%.1f' % 2.25 }}", "user <a|3> 2.2"),
            ("{{ '%(a)s' % {'a': 1} }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7.5 % 2 }} {{ 2 * 7 % 3 }}", "1 1 2 1.5 2"),
            (
                "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ add_generation_prompt }}",
                "True True True False",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{{ {'a': ['<é>', none, 1.0]} | tojson }}", r#"{"a": ["<é>", null, 1.0]}"#),
            ("{{ {'b': 1, 'a': [{}]} | tojson(indent=2) }}", "{\n  \"b\": 1,\n  \"a\": [\n    {}\n  ]\n}"),
            (
                "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
                r#"{"a":"\u00e9","b":1}"#,
            ),
            (r"{{ 'a\nb\n' | indent }}.", "a\n    b\n."),
            (r"{{ 'a\n\nb' | indent(2, true) }}", "  a\n\n  b"),
            (r"{{ 'a\r\n\nb\n' | indent(width='> ', blank=true) }}", "a\n> \n> b\n> "),
            (r"{{ '' | indent(first=true) }}.", "    ."),
            (r"{{ 12 | indent(200) }}", "12"),
            ("{{ [1e20, 1.5e-7, 0.1] | tojson }}", "[1e+20, 1.5e-07, 0.1]"),
            ("{{ {'b': 1, 'a': 2}.items() | list }} {{ {'b': 1}.keys() | list }}", "[('b', 1), ('a', 2)] ['b']"),
            (
                "{{ 'a' is sequence }} {{ 'a' is iterable }} {{ {} is sequence }} {{ 1 is iterable }}",
                "True True True False",
            ),
            ("{{ x | default('d') }} {{ '' | default('d', boolean=true) }} {{ none | default('d') }}", "d d None"),
            ("{{ ' a\x1c ' | trim }}|{{ ' a\x1c '.strip() }}|{{ 'xax' | trim('x') }}", "a|a|a"),
            ("{{ 'a\x0bb\r\nc'.splitlines() }} {{ ' a  b c'.split() }}", "['a', 'b', 'c'] ['a', 'b', 'c']"),
            ("{{ 'a-b-c'.split('-', 1) }} {{ 'a-b-c'.rsplit('-', maxsplit=1) }}", "['a', 'b-c'] ['a-b', 'c']"),
            ("{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'a-b'.partition('-')[2] }}", "bc ab b"),
            (
                "{{ \"they're\".title() }} {{ 'aB'.swapcase() }} {{ 'a'.ljust(2) }}| {{ '-1'.zfill(4) }} {{ 'a'.center(4) }}|",
                "They'Re Ab a | -001  a  |",
            ),
            ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}", "[' hi ']"),
            (
                "{{ messages[0].content[1:-1] }} {{ messages[-1].role[::-1] }} {{ true }} {{ none }}",
                "hi resu True None",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            (
                "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "02",
            ),
            ("{{ '3' | int + 1 }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }}", "4 0 7 3"),
        ];
        for (source, expected) in table {
            let found = render(source, &[(Role::User, " hi ")]).expect("it renders");
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn what_transformers_refuses_is_an_error() {
        for (source, word) in [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{{ 'a' + nothing }}", "undefined"),
            ("{{ nothing.attribute }}", "undefined"),
            ("{% set _ = messages.append(1) %}", "append"),
            ("{{ debug() }}", "debug"),
            ("{{ strftime_now('%Q') }}", "strftime_now"),
            ("{% if %}", "syntax error"),
            ("{{ 'a' % 1 % 0 }}", "%"),
        ] {
            let error = render(source, &[(Role::User, "hi")]).expect_err(source).to_string();
            assert!(error.contains(word), "{source}: {error}");
        }
    }
}
