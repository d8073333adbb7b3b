//! Answers token by token: sequences of any lengths side by side, each with its own cache.

use crate::Llava;
use crate::batch::PackedBatch;
use crate::config::LlavaConfig;
use crate::sampling::{Sampler, SamplingConfig};
use base::{Error, Result};
use burn::tensor::Tensor;
use kernels::kv_cache::KvCache;

/// How long an answer becomes, and which tokens it is made of.
#[derive(Clone, Debug)]
pub struct Answering {
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// Longest answer, tokens; the model's context may allow less.
    pub max_new_tokens: usize,
    /// Tokens that end an answer; none: it has its longest length.
    pub eos_token_ids: Vec<u32>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text token or a stop string.
    Stop,
    /// The token limit.
    Length,
}

impl FinishReason {
    /// OpenAI's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// An answer in the making.
pub struct Answer {
    cache: KvCache,
    sampler: Sampler,
    max_new_tokens: usize,
    eos_token_ids: Vec<u32>,
    new_ids: Vec<u32>,
    finish: Option<FinishReason>,
}

impl Answer {
    /// Ids so far, the end-of-text token included.
    pub fn new_ids(&self) -> &[u32] {
        &self.new_ids
    }

    /// Why it ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Ends the answer after the tokens that it has.
    pub fn stop(&mut self) {
        self.finish = Some(FinishReason::Stop);
    }

    /// The ids without an end-of-text token.
    fn into_text_ids(mut self) -> Vec<u32> {
        if self.new_ids.last().is_some_and(|id| self.eos_token_ids.contains(id)) {
            self.new_ids.pop();
        }
        self.new_ids
    }

    /// Chooses the next token from its logits `[V]`.
    fn advance(&mut self, logits: &mut [f32]) -> Result<()> {
        // Without an early end, so that many are compared at once.
        if logits.iter().fold(false, |found, logit| found | logit.is_nan() | (*logit == f32::INFINITY)) {
            return Err(self.not_finite());
        }
        let id = self.sampler.next(logits);
        self.push(id);
        Ok(())
    }

    /// Logits that are no numbers are an error: a token chosen among them would look like an answer.
    fn not_finite(&self) -> Error {
        Error::invalid(
            format!("token {} of the answer", self.new_ids.len() + 1),
            "logits that are NaN or infinite",
            "finite ones",
            "the model's weights hold NaN or infinity, or overflow in their type (--weights f32 computes in f32)",
        )
    }

    fn push(&mut self, id: u32) {
        self.new_ids.push(id);
        if self.eos_token_ids.contains(&id) {
            self.finish = Some(FinishReason::Stop);
        } else if self.new_ids.len() >= self.max_new_tokens {
            self.finish = Some(FinishReason::Length);
        }
    }
}

impl Llava {
    /// Reads prompts and chooses the first token of each answer; `answering` has one entry for each row of the batch.
    ///
    /// # Errors
    /// A device that cannot give its values; logits that are no numbers.
    ///
    /// # Panics
    /// If a row, with its longest answer, is longer than the model's context.
    pub fn begin_answers(
        &self,
        batch: &PackedBatch,
        answering: &[Answering],
        config: &LlavaConfig,
    ) -> Result<Vec<Answer>> {
        let device = self.device();
        let caches = batch.seq_lens.iter().zip(answering).map(|(len, with)| len + with.max_new_tokens);
        let mut caches: Vec<_> = caches.map(|capacity| config.text.kv_cache(capacity, &device)).collect();
        let logits = self.prefill(batch, &mut caches.iter_mut().collect::<Vec<_>>(), config);
        let mut start = 0;
        let answers = caches.into_iter().zip(answering).zip(&batch.seq_lens).map(|((cache, with), len)| {
            let prompt = &batch.input_ids[start..start + len];
            start += len;
            Answer {
                cache,
                sampler: Sampler::new(with.sampling.clone(), prompt),
                max_new_tokens: with.max_new_tokens,
                eos_token_ids: with.eos_token_ids.clone(),
                new_ids: Vec::new(),
                finish: (with.max_new_tokens == 0).then_some(FinishReason::Length),
            }
        });
        let mut answers: Vec<Answer> = answers.collect();
        advance(&mut answers.iter_mut().collect::<Vec<_>>(), logits)?;
        Ok(answers)
    }

    /// One more token for each of the answers, none of them finished.
    ///
    /// # Errors
    /// A device that cannot give its values; logits that are no numbers.
    pub fn continue_answers(&self, answers: &mut [&mut Answer], config: &LlavaConfig) -> Result<()> {
        let last: Vec<u32> = answers.iter().filter_map(|answer| answer.new_ids.last().copied()).collect();
        let mut caches: Vec<&mut KvCache> = answers.iter_mut().map(|answer| &mut answer.cache).collect();
        let logits = self.decode(&last, &mut caches, config);
        advance(answers, logits)
    }

    /// The most likely answer to each prompt of a batch, up to an end token (left out) or `max_new_tokens`. `after_token` is
    /// called after each step.
    ///
    /// # Errors
    /// A device that cannot give its values; logits that are no numbers.
    pub fn greedy_answers(
        &self,
        batch: &PackedBatch,
        max_new_tokens: usize,
        eos_token_ids: &[u32],
        config: &LlavaConfig,
        after_token: impl FnMut(),
    ) -> Result<Vec<Vec<u32>>> {
        let context = config.text.max_position_embeddings;
        let answering = batch.seq_lens.iter().map(|&len| Answering {
            sampling: SamplingConfig::default(),
            max_new_tokens: max_new_tokens.min(context.saturating_sub(len)),
            eos_token_ids: eos_token_ids.to_vec(),
        });
        let answers = self.begin_answers(batch, &answering.collect::<Vec<_>>(), config)?;
        self.finish_answers(answers, config, after_token)
    }

    /// As [`Self::greedy_answers`], each prompt read by itself: with at most [`kernels::MAX_INDEPENDENT_TOKENS`] prompts an
    /// answer does not depend on the others.
    ///
    /// # Errors
    /// As [`Self::greedy_answers`].
    pub fn greedy_answers_apart(
        &self,
        prompts: &[PackedBatch],
        max_new_tokens: usize,
        eos_token_ids: &[u32],
        config: &LlavaConfig,
        mut after_token: impl FnMut(),
    ) -> Result<Vec<Vec<u32>>> {
        let context = config.text.max_position_embeddings;
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let answering = Answering {
                sampling: SamplingConfig::default(),
                max_new_tokens: max_new_tokens.min(context.saturating_sub(prompt.input_ids.len())),
                eos_token_ids: eos_token_ids.to_vec(),
            };
            answers.extend(self.begin_answers(prompt, &[answering], config)?);
            after_token();
        }
        self.finish_answers(answers, config, after_token)
    }

    fn finish_answers(
        &self,
        mut answers: Vec<Answer>,
        config: &LlavaConfig,
        mut after_token: impl FnMut(),
    ) -> Result<Vec<Vec<u32>>> {
        loop {
            after_token();
            let mut running: Vec<_> = answers.iter_mut().filter(|answer| answer.finish.is_none()).collect();
            if running.is_empty() {
                return Ok(answers.into_iter().map(Answer::into_text_ids).collect());
            }
            self.continue_answers(&mut running, config)?;
        }
    }
}

fn advance(answers: &mut [&mut Answer], logits: Tensor<2>) -> Result<()> {
    let unreadable = |error| Error::invalid("logits", error, "values that the device gives", "report this");
    if answers.iter().all(|answer| answer.finish.is_some() || answer.sampler.is_argmax())
        && let Some(tokens) = kernels::most_likely_tokens(&logits)
    {
        let rows = answers.iter_mut().zip(tokens.map_err(unreadable)?);
        return rows.filter(|(answer, _)| answer.finish.is_none()).try_for_each(|(answer, token)| {
            answer.push(token.ok_or_else(|| answer.not_finite())?);
            Ok(())
        });
    }
    let [_, vocabulary] = logits.dims();
    let mut logits = logits.try_into_vec_as::<f32>().map_err(|error| unreadable(format!("{error:?}")))?;
    let rows = answers.iter_mut().zip(logits.chunks_exact_mut(vocabulary));
    rows.filter(|(answer, _)| answer.finish.is_none()).try_for_each(|(answer, row)| answer.advance(row))
}
