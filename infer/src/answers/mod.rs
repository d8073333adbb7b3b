//! Answers to many questions: batches, and a JSONL file that the next run continues.

pub mod journal;
pub mod settings;

use crate::args::SamplingArgs;
use crate::engine::{Engine, Request, Sequence};
use anyhow::Result;
use cli::Progress;
use journal::{Journal, Line};
use model::batch::PackedBatch;
use std::collections::BTreeMap;

/// An answer as a line has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text, trimmed.
    pub text: String,
    /// `stop` or `length`.
    pub finish_reason: Option<String>,
    /// Tokens of the answer, end included.
    pub new_tokens: usize,
}

/// How questions are answered.
pub struct Answering<'a> {
    /// The model.
    pub engine: &'a Engine,
    /// How tokens are chosen.
    pub sampling: &'a SamplingArgs,
    /// Sequences decoded together.
    pub batch_size: usize,
    /// What a line is of, for the progress: `pictures`.
    pub unit: &'static str,
}

/// An answer in the making, and what its line says besides.
struct Active<T> {
    index: usize,
    about: T,
    text: String,
    sequence: Sequence,
}

impl Answering<'_> {
    /// Answers the questions that have no line yet, up to `total`. `ask` gives the prompt of a question, or why there is none;
    /// `line` makes the line. Up to `batch_size` answers are in progress; a finished one makes room for the next. Lines are
    /// written in order.
    ///
    /// # Errors
    /// What `ask` refuses; a file that cannot be written. A question without a prompt gets its line.
    pub fn answer_rest<T, L: Line>(
        &self,
        total: usize,
        journal: &mut Journal<L>,
        mut ask: impl FnMut(usize) -> Result<(T, Result<PackedBatch, String>)>,
        line: impl Fn(T, Result<Answer, String>) -> L,
    ) -> Result<()> {
        let mut progress = Progress::new(self.unit, journal.len() as u64, total as u64);
        let mut next = journal.len();
        let mut active: Vec<Active<T>> = Vec::new();
        let mut finished = BTreeMap::new();
        while journal.len() < total {
            while next < total && active.len() < self.batch_size {
                let (about, prompt) = ask(next)?;
                match prompt {
                    Ok(prompt) => active.push(self.begin(next, about, prompt)?),
                    Err(cause) => drop(finished.insert(next, line(about, Err(cause)))),
                }
                next += 1;
            }
            self.step(&mut active)?;
            for done in active.extract_if(.., |answer| answer.sequence.finish().is_some()) {
                let (index, about, answer) = done.complete();
                finished.insert(index, line(about, Ok(answer)));
            }
            while let Some(line) = finished.remove(&journal.len()) {
                journal.append(&line)?;
                progress.advance(1);
            }
        }
        progress.finish();
        Ok(())
    }

    fn begin<T>(&self, index: usize, about: T, prompt: PackedBatch) -> Result<Active<T>> {
        let request = Request {
            prompt,
            sampling: self.sampling.sampling()?,
            max_new_tokens: self.sampling.max_new_tokens,
            stop: self.sampling.stop.clone(),
            ignore_eos: false,
        };
        let (sequence, text) = self.engine.start(request)?;
        Ok(Active { index, about, text, sequence })
    }

    /// One more token for each of the answers that the first one did not end.
    fn step<T>(&self, active: &mut [Active<T>]) -> Result<()> {
        let running = active.iter_mut().filter(|answer| answer.sequence.finish().is_none());
        let (mut sequences, texts): (Vec<_>, Vec<_>) =
            running.map(|answer| (&mut answer.sequence, &mut answer.text)).unzip();
        if sequences.is_empty() {
            return Ok(());
        }
        for (text, more) in texts.into_iter().zip(self.engine.step(&mut sequences)?) {
            text.push_str(&more);
        }
        Ok(())
    }
}

impl<T> Active<T> {
    fn complete(self) -> (usize, T, Answer) {
        let Self { index, about, text, sequence } = self;
        let finish_reason = sequence.finish().map(|reason| reason.as_str().to_string());
        let answer = Answer { text: text.trim().to_string(), finish_reason, new_tokens: sequence.new_ids().len() };
        (index, about, answer)
    }
}
