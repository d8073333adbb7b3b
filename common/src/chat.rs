//! Text processor: the model's own tokenizer and chat template. Used by preprocess and infer alike.

use crate::Result;
use std::path::Path;

/// The system prompt of every row unless told otherwise.
pub const SYSTEM_PROMPT: &str = "You are a helpful assistant.";
/// Placeholder of an image in a question, and its token.
pub const IMAGE_TOKEN: &str = "<image>";

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `system`
    System,
    /// `user`
    User,
    /// `assistant`
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub(crate) tokenizer: tokenizers::Tokenizer,
    pub(crate) template: String,
}

impl ChatProcessor {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the chat template (`chat_template.jinja` or the config's key).
    pub fn from_dir(_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// The template over the messages.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        todo!()
    }

    /// Ids of a text, special tokens recognised, nothing added.
    pub fn encode(&self, _text: &str) -> Result<Vec<u32>> {
        todo!()
    }

    /// Text of ids.
    pub fn decode(&self, _ids: &[u32], _skip_special_tokens: bool) -> Result<String> {
        todo!()
    }

    /// Ids of system + messages (ending with a user message) + generation prompt.
    pub fn encode_prompt(&self, _messages: &[Message]) -> Result<Vec<u32>> {
        todo!()
    }

    /// Prompt ids + answer ids + eos for every (question, answer), answers and their eos supervised (DESIGN §5).
    pub fn encode_sample(&self, _system: &str, _turns: &[(String, String)]) -> Result<TokenizedSample> {
        todo!()
    }
}
