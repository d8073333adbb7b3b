//! One sequence being generated: cache, sampler, text.

use super::Prompt;
use crate::sampling::{Sampler, SamplingConfig};
use crate::text_stream::{FinishReason, TextStream};
use base::{Error, Result};
use chat::ChatProcessor;
use kernels::kv_cache::KvCache;

/// What to answer, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The conversation.
    pub prompt: Prompt,
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
    cache: KvCache,
    sampler: Sampler,
    stream: TextStream,
    prompt_tokens: usize,
    new_ids: Vec<u32>,
    max_new_tokens: usize,
    ignore_eos: bool,
    finish: Option<FinishReason>,
}

impl Sequence {
    pub(super) fn new(request: Request, max_new_tokens: usize, cache: KvCache) -> Self {
        let sampler = Sampler::new(request.sampling, &request.prompt.input_ids);
        Self {
            cache,
            sampler,
            stream: TextStream::new(request.stop),
            prompt_tokens: request.prompt.input_ids.len(),
            new_ids: Vec::new(),
            max_new_tokens,
            ignore_eos: request.ignore_eos,
            finish: None,
        }
    }

    /// Why it ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Tokens of the prompt, pictures' features included.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Ids of the answer so far, the end-of-text token included.
    pub fn new_ids(&self) -> &[u32] {
        &self.new_ids
    }

    pub(super) fn last_token(&self) -> u32 {
        self.new_ids.last().copied().unwrap_or_default()
    }

    pub(super) fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// Chooses the next token from its logits `[V]`; returns the text that became certain. Logits that are no numbers are an
    /// error: a token chosen among them would look like an answer.
    pub(super) fn advance(&mut self, logits: &mut [f32], chat: &ChatProcessor) -> Result<String> {
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(Error::invalid(
                format!("token {} of the answer", self.new_ids.len() + 1),
                "logits that are NaN or infinite",
                "finite ones",
                "the model's weights hold NaN or infinity, or overflow in their type (--weights f32 computes in f32)",
            ));
        }
        let id = self.sampler.next(logits);
        self.new_ids.push(id);
        let decode = |ids: &[u32]| chat.decode(ids, true);
        let ended = !self.ignore_eos && chat.eos_token_ids.contains(&id);
        let mut text = if ended { String::new() } else { self.stream.push(id, decode)? };
        if ended || self.stream.stopped() {
            self.finish = Some(FinishReason::Stop);
        } else if self.new_ids.len() >= self.max_new_tokens {
            self.finish = Some(FinishReason::Length);
        }
        if self.finish.is_some() {
            text.push_str(&self.stream.finish(decode)?);
        }
        Ok(text)
    }
}
