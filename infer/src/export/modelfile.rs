//! A Modelfile for Ollama: the two files, the chat template in Ollama's form, what ends an answer, greedy decoding.

use crate::engine::Processors;
use anyhow::Result;
use chat::{ChatProcessor, Message, Role, SYSTEM_PROMPT};

/// Name of the file.
pub const FILE: &str = "Modelfile";

/// Most tokens that a conversation gets by default; Ollama's own default is less than a few pictures.
const MAX_CONTEXT: usize = 8192;

/// What stands around the messages of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pieces {
    /// Before and after a system prompt; `None`: the template takes none.
    system: Option<[String; 2]>,
    /// Before the first question, without a system prompt.
    start: String,
    /// Between a question and its answer.
    answer: String,
    /// Between an answer and the next question.
    next: String,
}

/// The file's text.
///
/// # Errors
/// A tokenizer that cannot decode its own end-of-text token.
pub fn text(processors: &Processors, language_model: &str, mmproj: &str) -> Result<String> {
    let chat = &processors.chat;
    let mut lines = vec![format!("FROM ./{language_model}"), format!("FROM ./{mmproj}")];
    match Pieces::of(chat) {
        Some(pieces) => lines.push(format!("TEMPLATE \"\"\"{}\"\"\"", pieces.template())),
        None => {
            lines.push(
                "# The model's chat template has no form here that gives the same text; write a TEMPLATE.".into(),
            );
            tracing::warn!("{FILE}: no TEMPLATE: the model's chat template is more than texts around messages");
        }
    }
    if chat.date().is_some() {
        tracing::warn!("{FILE}: the chat template writes the day into a conversation; TEMPLATE has today");
    }
    if chat.takes_system() {
        lines.push(format!("SYSTEM \"\"\"{SYSTEM_PROMPT}\"\"\""));
    }
    for &id in &chat.eos_token_ids {
        lines.push(format!("PARAMETER stop {:?}", chat.decode(&[id], false)?));
    }
    lines.push("PARAMETER temperature 0".into());
    let context = processors.config.text.max_position_embeddings.min(MAX_CONTEXT);
    lines.push(format!("PARAMETER num_ctx {context}"));
    lines.push(
        "# Ollama puts a picture directly before the question; the model was trained with a line break between them."
            .into(),
    );
    Ok(lines.join("\n") + "\n")
}

impl Pieces {
    /// The pieces of a chat template; `None` for a template that is more than texts around messages.
    fn of(chat: &ChatProcessor) -> Option<Self> {
        let render = |messages: &[(Role, &str)]| {
            let message = |&(role, text): &(Role, &str)| Message { role, content: text.into() };
            chat.render(&messages.iter().map(message).collect::<Vec<_>>(), true).ok()
        };
        // Where the tokenizer begins a text with a token, llama.cpp does, too.
        let begin = chat.decode(chat.start_ids(), false).ok()?;
        let without_begin = |text: String| text.strip_prefix(&begin).map_or(text.clone(), str::to_string);
        Self::find(|messages| render(messages).map(without_begin), chat.takes_system())
    }

    fn find(render: impl Fn(&[(Role, &str)]) -> Option<String>, takes_system: bool) -> Option<Self> {
        const SYSTEM: &str = "SYSTEMTEXT";
        const FIRST: &str = "FIRSTQUESTION";
        const ANSWER: &str = "FIRSTANSWER";
        const SECOND: &str = "SECONDQUESTION";
        let turns = [(Role::User, FIRST), (Role::Assistant, ANSWER), (Role::User, SECOND)];
        let plain = render(&turns)?;
        let (start, rest) = plain.split_once(FIRST)?;
        let (answer, rest) = rest.split_once(ANSWER)?;
        let (next, last) = rest.split_once(SECOND)?;
        let with_system = takes_system.then(|| render(&[&[(Role::System, SYSTEM)], &turns[..]].concat()));
        let system = match &with_system {
            None => None,
            Some(text) => {
                let (before, rest) = text.as_ref()?.split_once(SYSTEM)?;
                let (after, _) = rest.split_once(FIRST)?;
                Some([before.to_string(), after.to_string()])
            }
        };
        let pieces = Self { system, start: start.into(), answer: answer.into(), next: next.into() };
        let Self { system, start, answer, next } = &pieces;
        let rest = format!("{FIRST}{answer}{ANSWER}{next}{SECOND}{answer}");
        let same = last == answer
            && render(&turns[..1])? == format!("{start}{FIRST}{answer}")
            && system
                .as_ref()
                .zip(with_system)
                .is_none_or(|([before, after], text)| text == Some(format!("{before}{SYSTEM}{after}{rest}")));
        let is_plain = |piece: &String| !piece.contains("{{") && !piece.contains("\"\"\"");
        let all = [start, answer, next].into_iter().chain(system.iter().flatten());
        (same && all.into_iter().all(is_plain)).then(|| pieces.clone())
    }

    /// The template in Ollama's form.
    fn template(&self) -> String {
        let Self { system, start, answer, next } = self;
        let begin = match system {
            Some([before, after]) => {
                format!("{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{start}{{{{ end }}}}")
            }
            None => start.clone(),
        };
        let of_role = |role: &str, after: &str| format!("if eq .Role \"{role}\" }}}}{{{{ .Content }}}}{after}{{{{ ");
        let (user, assistant) = (of_role("user", answer), of_role("assistant", next));
        format!("{begin}{{{{ range .Messages }}}}{{{{ {user}else {assistant}end }}}}{{{{ end }}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ChatML with a default system prompt, as Qwen writes it.
    fn chat_ml(messages: &[(Role, &str)]) -> Option<String> {
        let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
        let default = if messages[0].0 == Role::System { String::new() } else { turn("system", "Be brief.") };
        let turns: String = messages.iter().map(|(role, text)| turn(role.as_str(), text)).collect();
        Some(format!("{default}{turns}<|im_start|>assistant\n"))
    }

    #[test]
    fn pieces_are_those_of_the_template() {
        let pieces = Pieces::find(chat_ml, true).expect("pieces");
        assert_eq!(pieces.start, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n");
        assert_eq!(pieces.system, Some(["<|im_start|>system\n".into(), "<|im_end|>\n<|im_start|>user\n".into()]));
        assert_eq!(
            pieces.template(),
            "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}<|im_start|>system\nBe \
             brief.<|im_end|>\n<|im_start|>user\n{{ end }}{{ range .Messages }}{{ if eq .Role \"user\" }}{{ .Content \
             }}<|im_end|>\n<|im_start|>assistant\n{{ else if eq .Role \"assistant\" }}{{ .Content }}<|im_end|>\n<|im_start|>user\n{{ \
             end }}{{ end }}"
        );
    }

    #[test]
    fn a_template_that_counts_turns_has_no_pieces() {
        let counting = |messages: &[(Role, &str)]| {
            let turns =
                messages.iter().enumerate().map(|(index, (role, text))| format!("{index} {}: {text}\n", role.as_str()));
            Some(turns.collect::<String>() + "assistant: ")
        };
        assert_eq!(Pieces::find(counting, true), None);
    }
}
