//! One sequence being generated: answer and text.

use crate::text_stream::TextStream;
use base::Result;
use chat::ChatProcessor;
use model::batch::PackedBatch;
use model::generate::{Answer, FinishReason};
use model::sampling::SamplingConfig;

/// What to answer, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The conversation: a batch of one row.
    pub prompt: PackedBatch,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// Longest answer, tokens; the model's context may allow less.
    pub max_new_tokens: usize,
    /// The answer ends before these.
    pub stop: Vec<String>,
    /// Go on after an end-of-text token, to `max_new_tokens` (for measurements).
    pub ignore_eos: bool,
}

/// An answer in the making.
pub struct Sequence {
    answer: Answer,
    stream: TextStream,
    prompt_tokens: usize,
}

impl Sequence {
    pub(super) fn new(answer: Answer, stop: Vec<String>, prompt_tokens: usize) -> Self {
        Self { answer, stream: TextStream::new(stop), prompt_tokens }
    }

    /// Why it ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.answer.finish()
    }

    /// Tokens of the prompt, pictures' features included.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Ids of the answer so far, the end-of-text token included.
    pub fn new_ids(&self) -> &[u32] {
        self.answer.new_ids()
    }

    pub(super) fn answer_mut(&mut self) -> &mut Answer {
        &mut self.answer
    }

    /// The text that became certain with the newest token.
    pub(super) fn text(&mut self, chat: &ChatProcessor) -> Result<String> {
        let decode = |ids: &[u32]| chat.decode(ids, true);
        // An end-of-text token is no part of the text.
        let newest = self.answer.new_ids().last().filter(|_| self.answer.finish() != Some(FinishReason::Stop));
        let mut text = match newest {
            Some(&id) => self.stream.push(id, decode)?,
            None => String::new(),
        };
        if self.stream.stopped() {
            self.answer.stop();
        }
        if self.answer.finish().is_some() {
            text.push_str(&self.stream.finish(decode)?);
        }
        Ok(text)
    }
}
