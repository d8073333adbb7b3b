//! Text processor: the model's own tokenizer and chat template. Used by preprocess and infer alike.

mod added_tokens;
mod contents;
mod contract;
mod conversation;
pub mod dataset;
pub mod eos;
mod image_token;
mod jinja;
mod list_contents;
mod quote;
mod template;
mod template_files;
mod tokenizer;

pub use image_token::{WithImageToken, add_image_token};
pub use list_contents::{with_list_contents, without_list_contents};
pub use template::ChatTemplate;
pub use tokenizer::{TextTokenizer, TokenizerConfig};

use base::{Error, Result, names};
use contract::Contract;
use conversation::Beginning;
use quote::Quoter;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, RwLock};

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

/// `input_ids` (each image as one `<image>` token) and `labels` ([`base::IGNORE_INDEX`] where unsupervised), same length.
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
    /// Ids that end an answer; the first is the one that the template ends turns with, and that answers are supervised to.
    pub eos_token_ids: Vec<u32>,
    /// SHA-256 of tokenizer.json.
    pub tokenizer_sha256: String,
    /// SHA-256 of the chat template's text.
    pub chat_template_sha256: String,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    contract: Contract,
    /// Whether a text's ids depend on the text before it (a tokenizer that puts a space before every text).
    tokens_depend_on_context: bool,
    /// What the tokenizer puts before a text, and the token with which a template writes it itself.
    start_ids: Vec<u32>,
    bos_token: Option<String>,
    beginnings: RwLock<HashMap<Vec<Message>, Arc<Beginning>>>,
    quoter: Quoter,
}

/// Beginnings that are kept: a dataset asks a few questions over and over.
const MAX_BEGINNINGS: usize = 1024;
/// Longest message of a kept beginning, bytes.
const MAX_KEPT_MESSAGE: usize = 4096;

impl ChatProcessor {
    /// Reads the tokenizer, its added tokens and the chat template, and finds the template's properties by rendering.
    ///
    /// # Errors
    /// A tokenizer without `<image>`; files that disagree; a template that cannot be used, with the reason.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let config = TokenizerConfig::from_dir(dir)?;
        let tokenizer = TextTokenizer::from_dir(dir)?;
        let template = ChatTemplate::from_dir(dir, &config)?;
        let image_token_id = tokenizer.token_id(IMAGE_TOKEN).ok_or_else(|| {
            Error::invalid(
                dir.join(names::TOKENIZER_FILE).display(),
                format!("no token {IMAGE_TOKEN}"),
                "the tokenizer of a LLaVA",
                "make the model directory with `preprocess model`",
            )
        })?;
        let mut eos_token_ids = eos_token_ids(dir, &tokenizer, &config)?;
        let contract = Contract::find(&template, &tokenizer, &eos_token_ids)
            .map_err(|error| error.placed(|place| format!("{}: {place}", dir.display())))?;
        eos_token_ids.retain(|&id| id != contract.end_token_id);
        eos_token_ids.insert(0, contract.end_token_id);
        Ok(Self {
            image_token_id,
            eos_token_ids,
            tokenizer_sha256: tokenizer.sha256().to_string(),
            chat_template_sha256: template.sha256().to_string(),
            tokens_depend_on_context: tokenizer.depends_on_context()?,
            start_ids: tokenizer.start_ids()?,
            bos_token: config.special_tokens().remove("bos_token"),
            quoter: Quoter::new(tokenizer.inner()),
            tokenizer,
            template,
            contract,
            beginnings: RwLock::default(),
        })
    }

    /// Whether the template takes system messages.
    pub fn takes_system(&self) -> bool {
        self.contract.system_refusal.is_none()
    }

    /// Whether the template writes a system prompt of its own where none is given.
    pub fn has_default_system(&self) -> bool {
        self.contract.has_default_system
    }

    /// The day that the template writes into every conversation, if it does: that of this process's start.
    pub fn date(&self) -> Option<String> {
        self.contract.is_dated.then(|| self.template.day())
    }

    /// Refuses a system prompt that the template cannot take; an empty one stands for none.
    pub fn check_system(&self, system: &str) -> Result<()> {
        if system.is_empty() { Ok(()) } else { self.contract.check_system() }
    }

    /// The largest id of the tokenizer, plus one.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.next_free_id() as usize
    }

    /// What the tokenizer puts before a text: Llama 2's `<s>`.
    pub fn start_ids(&self) -> &[u32] {
        &self.start_ids
    }

    /// The template's text.
    pub fn template_source(&self) -> &str {
        self.template.source()
    }

    /// Tokens that files beside `tokenizer.json` add or change: id, text, whether special.
    pub fn tokens_of_config(&self) -> impl Iterator<Item = (u32, &str, bool)> {
        self.tokenizer.tokens_of_config().iter().map(|(id, token)| (*id, token.content.as_str(), token.special))
    }

    /// The template over the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(self.contract.contents, messages, add_generation_prompt)
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
    /// [`SYSTEM_PROMPT`] is put first unless the messages begin with a system message (an empty one stands for none) or the
    /// template takes none. Earlier answers are encoded as in training.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        if messages.is_empty() {
            return Err(Error::invalid("the conversation", "no message", "at least one message", "ask something"));
        }
        let (system, turns) = match messages {
            [first, turns @ ..] if first.role == Role::System => (first.content.as_str(), turns),
            turns => (if self.takes_system() { SYSTEM_PROMPT } else { "" }, turns),
        };
        let mut conversation = self.system_message(system)?;
        conversation.extend_from_slice(turns);
        Ok(self.beginning(&conversation)?.ids())
    }

    /// Prompt ids + answer ids + end of turn for every (question, answer), answers and their ends supervised; `system` may be
    /// empty.
    ///
    /// # Errors
    /// No turns, or a template that refuses the conversation.
    pub fn encode_sample(&self, system: &str, turns: &[(String, String)]) -> Result<TokenizedSample> {
        let Some(((question, answer), earlier)) = turns.split_last() else {
            return Err(Error::invalid("conversations", "no turns", "a question and its answer", "complete the row"));
        };
        let mut messages = self.system_message(system)?;
        for (question, answer) in earlier {
            messages.push(Message { role: Role::User, content: question.clone() });
            messages.push(Message { role: Role::Assistant, content: answer.clone() });
        }
        messages.push(Message { role: Role::User, content: question.clone() });
        self.finish(&self.kept_beginning(&messages)?, &messages, answer)
    }

    /// An empty system prompt is no message; but a message without text where the template would write a prompt of its own.
    fn system_message(&self, system: &str) -> Result<Vec<Message>> {
        self.check_system(system)?;
        let message = Message { role: Role::System, content: system.into() };
        Ok(if system.is_empty() && !self.contract.has_default_system { Vec::new() } else { vec![message] })
    }

    /// The beginning of an answer; that of a first question is remembered.
    fn kept_beginning(&self, messages: &[Message]) -> Result<Arc<Beginning>> {
        let is_kept = |message: &Message| message.role != Role::Assistant && message.content.len() <= MAX_KEPT_MESSAGE;
        if !messages.iter().all(is_kept) {
            return self.beginning_of_answer(messages).map(Arc::new);
        }
        if let Some(beginning) = self.beginnings.read().ok().and_then(|kept| kept.get(messages).cloned()) {
            return Ok(beginning);
        }
        let beginning = Arc::new(self.beginning_of_answer(messages)?);
        if let Some(mut kept) = self.beginnings.write().ok().filter(|kept| kept.len() < MAX_BEGINNINGS) {
            kept.insert(messages.to_vec(), Arc::clone(&beginning));
        }
        Ok(beginning)
    }
}

/// `eos_token` first, then the further ids of `generation_config.json` or `config.json`.
fn eos_token_ids(dir: &Path, tokenizer: &TextTokenizer, config: &TokenizerConfig) -> Result<Vec<u32>> {
    let path = dir.join(names::TOKENIZER_CONFIG_FILE);
    let expected = "eos_token, a token of tokenizer.json";
    let mut ids = Vec::new();
    if let Some(text) = config.eos_token() {
        ids.push(tokenizer.token_id(&text).ok_or_else(|| {
            Error::invalid(path.display(), format!("eos_token {text:?}"), expected, "correct the file")
        })?);
    }
    for id in eos::eos_token_ids(dir)? {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return Err(Error::invalid(path.display(), "no eos_token", expected, "add it"));
    }
    Ok(ids)
}
