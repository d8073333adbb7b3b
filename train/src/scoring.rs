//! `eval_metric`: answers to the first question of held-out rows, scored against the rows' own answers.

use crate::captions::{first_answer, prompt};
use crate::collective::background::Communicator;
use crate::config::Config;
use crate::mixture::Mixture;
use crate::scores::Scores;
use anyhow::{Result, anyhow};
use base::Error;
use base::pulse::{self, Pulse};
use chat::ChatProcessor;
use kernels::MAX_INDEPENDENT_TOKENS;
use metrics::multiple_choice::options_in;
use metrics::{Expected, Metric};
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use serde::Serialize;

/// Most figures that a metric has.
const MOST_FIGURES: usize = 8;

/// A row that was scored: a line of `answers-<step>.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoredRow {
    /// `id` of the row.
    pub id: String,
    /// The model's answer to its first question.
    pub answer: String,
    /// What it is compared with.
    pub expected: Vec<String>,
    /// The row's own score, where the metric has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// One rank's part of the scores of every evaluation.
pub struct Scoring {
    metric: Metric,
    chat: ChatProcessor,
    rows: usize,
    rank: usize,
    world_size: usize,
    max_new_tokens: usize,
    /// Rows that are decoded together.
    group: usize,
    /// Ids of all rows, on rank 0, which computes the figures.
    ids: Vec<String>,
    /// What they expect.
    expected: Vec<Expected>,
}

impl Scoring {
    /// Reads what the rows expect, and refuses rows that the metric cannot compare with.
    ///
    /// # Errors
    /// The first such row; a row that cannot be read.
    pub fn open(
        config: &Config,
        model: &LlavaConfig,
        shards: &Mixture,
        rank: usize,
        world_size: usize,
    ) -> Result<Option<Self>> {
        let Some(metric) = config.eval_metric else { return Ok(None) };
        let chat = ChatProcessor::from_dir(&config.model_name_or_path)?;
        let rows = match config.eval_metric_samples {
            0 => shards.len(),
            samples => samples.min(shards.len()),
        };
        let (mut all_ids, mut expected) = (Vec::new(), Vec::new());
        let read = if rank == 0 { rows } else { 0 };
        for index in 0..read {
            let row = shards.read_row(index)?;
            let answer = chat.decode(&first_answer(&row), true)?.trim().to_string();
            let answers = if answer.is_empty() { Vec::new() } else { vec![answer] };
            let id = row.id.clone();
            let ids: Vec<u32> = prompt(row, model.image_token_index).input_ids.iter().map(|&id| id as u32).collect();
            let of_row = Expected { answers, options: options_in(&chat.decode(&ids, true)?) };
            metric.check(&of_row).map_err(|unusable| {
                let place = format!("{}: held-out row {id:?}", config.data_path);
                let expected = format!("{} (--eval_metric {metric})", unusable.expected);
                Error::invalid(place, unusable.found, expected, "take another --eval_metric, or other rows")
            })?;
            all_ids.push(id);
            expected.push(of_row);
            pulse::mark();
        }
        let group = config.per_device_eval_batch_size.min(MAX_INDEPENDENT_TOKENS);
        let max_new_tokens = config.eval_max_new_tokens;
        Ok(Some(Self { metric, chat, rows, rank, world_size, max_new_tokens, group, ids: all_ids, expected }))
    }

    /// Scores of the model (without autodiff), the same on every rank, and on rank 0 the rows that they are of. Each rank answers every `world_size`-th row, each row as if
    /// it was alone, so that the answers do not depend on the number of ranks.
    ///
    /// # Errors
    /// A row that cannot be read; a rank that failed.
    pub fn run(
        &self,
        model: &Llava,
        config: &LlavaConfig,
        shards: &Mixture,
        communicator: &mut Communicator,
    ) -> Result<(Scores, Vec<ScoredRow>)> {
        let answers = communicator.attend("answers", &Pulse::default(), || self.answers(model, config, shards))??;
        let of_ranks = communicator.all_gather_texts("answers", answers)?;
        let (mut values, mut rows) = ([0.0; MOST_FIGURES], Vec::new());
        if self.rank == 0 {
            let mut of_ranks: Vec<_> = of_ranks.iter().map(|texts| texts.iter()).collect();
            let texts = (0..self.rows).map(|row| of_ranks[row % self.world_size].next());
            let texts = texts.collect::<Option<Vec<_>>>().ok_or_else(|| anyhow!("a rank has answered too few rows"))?;
            let pairs: Vec<(&str, &Expected)> = texts.into_iter().map(String::as_str).zip(&self.expected).collect();
            values.iter_mut().zip(self.metric.figures(&pairs)).for_each(|(value, (_, figure))| *value = figure);
            let row = |(id, (answer, expected)): (&String, &(&str, &Expected))| ScoredRow {
                id: id.clone(),
                answer: (*answer).to_string(),
                expected: expected.answers.clone(),
                score: self.metric.score(answer, expected),
            };
            rows.extend(self.ids.iter().zip(&pairs).map(row));
        }
        // The other ranks add 0.
        let values = communicator.all_reduce("scores", values)?;
        Ok((Scores(self.metric.figure_names().iter().copied().zip(values).collect()), rows))
    }

    fn answers(&self, model: &Llava, config: &LlavaConfig, shards: &Mixture) -> Result<Vec<String>> {
        let rows: Vec<usize> = (self.rank..self.rows).step_by(self.world_size).collect();
        let mut texts = Vec::with_capacity(rows.len());
        for group in rows.chunks(self.group) {
            let image_token = config.image_token_index;
            let prompts = group.iter().map(|&row| {
                let row = prompt(shards.read_row(row)?, image_token);
                Ok(PackedBatch::pack(vec![row], image_token, config.image_seq_length())?)
            });
            let prompts = prompts.collect::<Result<Vec<_>>>()?;
            let eos = &self.chat.eos_token_ids;
            for ids in model.greedy_answers_apart(&prompts, self.max_new_tokens, eos, config, pulse::mark)? {
                texts.push(self.chat.decode(&ids, true)?.trim().to_string());
            }
        }
        Ok(texts)
    }
}
