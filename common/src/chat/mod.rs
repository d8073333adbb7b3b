//! Text processor: the model's own tokenizer and chat template. Used by preprocess and infer alike.

mod image_token;
mod quote;
mod template;
mod tokenizer;

pub use image_token::{WithImageToken, add_image_token};
pub use template::ChatTemplate;
pub use tokenizer::{TextTokenizer, TokenizerConfig};

use crate::{Error, IGNORE_INDEX, Result, json, names};
use quote::Quoter;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::RwLock;

/// The system prompt of every row unless told otherwise.
pub const SYSTEM_PROMPT: &str = "You are a helpful assistant.";
/// Placeholder of an image in a question, and its token.
pub const IMAGE_TOKEN: &str = "<image>";

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `system`
    System,
    /// `user`
    User,
    /// `assistant`
    Assistant,
}

impl Role {
    /// The template's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// What, `<image>` markers included.
    pub content: String,
}

/// `input_ids` (each image as one `<image>` token) and `labels` ([`crate::IGNORE_INDEX`] where unsupervised), same length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedSample {
    /// Token ids.
    pub input_ids: Vec<i32>,
    /// Labels, not shifted.
    pub labels: Vec<i32>,
}

/// Tokenizer + chat template of a model directory. `Sync`: workers share one.
pub struct ChatProcessor {
    /// Id of `<image>`.
    pub image_token_id: u32,
    /// Ids that end an answer; the first is appended to supervised answers (`eos_token` of the tokenizer: `<|im_end|>`).
    pub eos_token_ids: Vec<u32>,
    /// SHA-256 of tokenizer.json.
    pub tokenizer_sha256: String,
    /// SHA-256 of the chat template's text.
    pub chat_template_sha256: String,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    quoter: Quoter,
    beginnings: RwLock<Beginnings>,
}

/// Ids of what the template renders before the first answer, by its messages: a dataset asks a few questions over and over.
type Beginnings = HashMap<Vec<Message>, Vec<u32>>;

/// Beginnings that are kept.
const MAX_BEGINNINGS: usize = 1024;
/// Longest message of a kept beginning, bytes.
const MAX_KEPT_MESSAGE: usize = 4096;

impl ChatProcessor {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the chat template (`chat_template.jinja` or the config's key).
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let tokenizer = TextTokenizer::from_dir(dir)?;
        let config = TokenizerConfig::from_dir(dir)?;
        let template = ChatTemplate::from_dir(dir, &config)?;
        let image_token_id = tokenizer.token_id(IMAGE_TOKEN).ok_or_else(|| {
            Error::invalid(
                dir.join(names::TOKENIZER_FILE).display(),
                format!("no token {IMAGE_TOKEN}"),
                "the tokenizer of a LLaVA",
                "make the model directory with `preprocess model`",
            )
        })?;
        Ok(Self {
            image_token_id,
            eos_token_ids: eos_token_ids(dir, &tokenizer, &config)?,
            tokenizer_sha256: tokenizer.sha256().to_string(),
            chat_template_sha256: template.sha256().to_string(),
            quoter: Quoter::new(tokenizer.inner()),
            tokenizer,
            template,
            beginnings: RwLock::default(),
        })
    }

    /// The template over the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, add_generation_prompt)
    }

    /// Ids of a text, special tokens recognised outside of [`Self::quote`]'s quotes, nothing added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if Quoter::has_quotes(text) {
            return self.quoter.encode(self.tokenizer.inner(), text);
        }
        self.tokenizer.encode(text)
    }

    /// A text of a message in which special tokens (and `<image>`) are text: [`Self::encode`] makes characters of them.
    pub fn quote(&self, text: &str) -> String {
        self.quoter.quote(text)
    }

    /// Text of ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special_tokens)
    }

    /// Ids of system + messages + generation prompt, whichever role the last message has.
    ///
    /// [`SYSTEM_PROMPT`] is put first unless the messages begin with a system message. Earlier answers are encoded as in
    /// training: on their own, with `eos` behind them.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        if messages.is_empty() {
            return Err(Error::invalid("the conversation", "no message", "at least one message", "ask something"));
        }
        let mut conversation = Vec::with_capacity(messages.len() + 1);
        if messages[0].role != Role::System {
            conversation.push(Message { role: Role::System, content: SYSTEM_PROMPT.into() });
        }
        conversation.extend_from_slice(messages);
        let mut ids: Vec<u32> =
            self.encode_segments(&conversation)?.into_iter().flat_map(|segment| segment.ids).collect();
        if conversation.last().is_some_and(|last| last.role == Role::Assistant) {
            ids.extend(self.encode_continuation(&conversation)?);
        }
        Ok(ids)
    }

    /// Prompt ids + answer ids + eos for every (question, answer), answers and their eos supervised.
    ///
    /// # Errors
    /// No turns, or a template that refuses the conversation.
    pub fn encode_sample(&self, system: &str, turns: &[(String, String)]) -> Result<TokenizedSample> {
        if turns.is_empty() {
            return Err(Error::invalid("conversations", "no turns", "a question and its answer", "complete the row"));
        }
        let mut messages = vec![Message { role: Role::System, content: system.into() }];
        for (question, answer) in turns {
            messages.push(Message { role: Role::User, content: question.clone() });
            messages.push(Message { role: Role::Assistant, content: answer.clone() });
        }
        let mut sample = TokenizedSample { input_ids: Vec::new(), labels: Vec::new() };
        for Segment { ids, supervised } in self.encode_segments(&messages)? {
            let ids = ids.into_iter().map(|id| id as i32);
            sample.labels.extend(ids.clone().map(|id| if supervised { id } else { IGNORE_INDEX }));
            sample.input_ids.extend(ids);
        }
        Ok(sample)
    }

    /// Cuts a conversation into what the template says and what the assistant answers, each encoded on its own, so that
    /// the ids of an answer never depend on the text around it.
    fn encode_segments(&self, messages: &[Message]) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            let answers = message.role == Role::Assistant;
            if answers || index + 1 == messages.len() {
                let prompt = &messages[..index + usize::from(!answers)];
                segments.push(Segment { ids: self.encode_continuation(prompt)?, supervised: false });
            }
            if answers {
                let mut ids = self.encode(&message.content)?;
                ids.push(self.eos_token_ids[0]);
                segments.push(Segment { ids, supervised: true });
            }
        }
        Ok(segments)
    }

    /// Ids of [`Self::continuation`]; those of a first question are remembered.
    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let encode = || self.encode(&self.continuation(messages)?);
        let is_kept = |message: &Message| message.role != Role::Assistant && message.content.len() <= MAX_KEPT_MESSAGE;
        if !messages.iter().all(is_kept) {
            return encode();
        }
        if let Some(ids) = self.beginnings.read().ok().and_then(|kept| kept.get(messages).cloned()) {
            return Ok(ids);
        }
        let ids = encode()?;
        if let Some(mut kept) = self.beginnings.write().ok().filter(|kept| kept.len() < MAX_BEGINNINGS) {
            kept.insert(messages.to_vec(), ids.clone());
        }
        Ok(ids)
    }

    /// What the template renders after the last answer's eos, generation prompt included; everything when there is no answer.
    ///
    /// The last answer is rendered as a marker that occurs nowhere else, so that its end is found even in templates that
    /// trim or rewrite answers.
    fn continuation(&self, messages: &[Message]) -> Result<String> {
        let Some(last) = messages.iter().rposition(|message| message.role == Role::Assistant) else {
            return self.render(messages, true);
        };
        let marker = unused_marker(messages);
        let mut marked = messages.to_vec();
        marked[last].content = marker.clone();
        let text = self.render(&marked, true)?;
        let (_, rest) = text.rsplit_once(&marker).ok_or_else(|| {
            Error::invalid(
                "the chat template",
                "an answer that it does not render",
                "every message in the text",
                "use a template that keeps the history, or rows of one turn",
            )
        })?;
        let eos = self.decode(&self.eos_token_ids[..1], false)?;
        Ok(rest.trim_start().strip_prefix(&eos).unwrap_or(rest).to_string())
    }
}

struct Segment {
    ids: Vec<u32>,
    supervised: bool,
}

fn unused_marker(messages: &[Message]) -> String {
    let mut marker = String::from("\u{f8ff}answer\u{f8ff}");
    while messages.iter().any(|message| message.content.contains(&marker)) {
        marker.push('\u{f8ff}');
    }
    marker
}

/// `eos_token` first, then the further ids of `generation_config.json`.
fn eos_token_ids(dir: &Path, tokenizer: &TextTokenizer, config: &TokenizerConfig) -> Result<Vec<u32>> {
    let path = dir.join(names::TOKENIZER_CONFIG_FILE);
    let expected = "eos_token, a token of tokenizer.json";
    let mut ids = Vec::new();
    if let Some(text) = config.eos_token() {
        ids.push(tokenizer.token_id(text).ok_or_else(|| {
            Error::invalid(path.display(), format!("eos_token {text:?}"), expected, "correct the file")
        })?);
    }
    let generation: GenerationConfig =
        json::read_if_there(&dir.join(names::GENERATION_CONFIG_FILE))?.unwrap_or_default();
    for id in generation.eos_token_id.map_or_else(Vec::new, OneOrMany::into_vec) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return Err(Error::invalid(path.display(), "no eos_token", expected, "add it"));
    }
    Ok(ids)
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}
