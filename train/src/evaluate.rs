//! Evaluation on the validation rows: the loss over all of them, scores of answers, and captions of the first ones.

use crate::captions::{SampleCaption, Samples};
use crate::collective::background::Communicator;
use crate::config::Config;
use crate::loader::{Loader, Source};
use crate::metrics::EvalMetrics;
use crate::mixture::Mixture;
use crate::order::{BatchPlan, Cursor};
use crate::scores::Scores;
use crate::scoring::{ScoredRow, Scoring};
use crate::setup::{self, Trainee};
use crate::trainer::SourceSums;
use anyhow::{Result, anyhow, bail};
use base::pulse::{self, Pulse};
use burn::module::Module;
use burn::tensor::Tensor;
use chat::ChatProcessor;
use model::Llava;
use model::config::LlavaConfig;
use model::lora;
use shards::Split;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// One rank's part of every evaluation.
pub struct Evaluation {
    shards: Arc<Mixture>,
    plan: BatchPlan,
    rank: usize,
    workers: usize,
    prefetch: usize,
    /// On the rank that says them.
    samples: Option<Samples>,
    /// Answers and their figures, with `eval_metric`.
    scoring: Option<Scoring>,
}

/// What an evaluation found.
pub struct Evaluated {
    /// The numbers, the same on every rank.
    pub metrics: EvalMetrics,
    /// Sample captions, on rank 0.
    pub captions: Vec<SampleCaption>,
    /// Answers that were scored, on rank 0.
    pub answers: Vec<ScoredRow>,
}

impl Evaluation {
    /// Opens the validation split.
    ///
    /// # Errors
    /// Shards without validation rows; rows that are too long, or that `eval_metric` cannot compare with.
    pub fn open(config: &Config, model: &LlavaConfig, rank: usize, world_size: usize) -> Result<Self> {
        let shards = Arc::new(setup::shards(config, Split::Validation)?);
        if shards.len() == 0 {
            bail!(
                "{}: no validation rows for --eval_strategy; run preprocess shards with --validation-fraction, or leave \
                 --eval_strategy out",
                config.data_path
            );
        }
        if rank == 0 {
            setup::check_lengths(config, model, &shards)?;
        }
        let plan = BatchPlan {
            rows: shards.len(),
            micro_batch_size: config.per_device_eval_batch_size,
            accumulation: 1,
            world_size,
            end: None,
        };
        let samples = if rank == 0 && config.eval_captions > 0 {
            let chat = ChatProcessor::from_dir(&config.model_name_or_path)?;
            Some(Samples::read(&shards, config.eval_captions, chat, model)?)
        } else {
            None
        };
        let scoring = Scoring::open(config, model, &shards, rank, world_size)?;
        let (workers, prefetch) = (config.dataloader_num_workers, config.dataloader_prefetch_factor);
        Ok(Self { shards, plan, rank, workers, prefetch, samples, scoring })
    }

    /// Loss over all validation rows and scores of the answers (each rank computes its share), and rank 0's sample captions. Dropout
    /// is off.
    ///
    /// # Errors
    /// A row that cannot be read; a rank that failed.
    pub fn run(&self, trainee: &Trainee, step: u64, epoch: f64, communicator: &mut Communicator) -> Result<Evaluated> {
        let begin = Instant::now();
        // The same weights without autodiff: nothing is copied, no graph is built.
        let mut model = trainee.model.valid();
        lora::keep_row_norms(&mut model);
        let source = Source {
            shards: Arc::clone(&self.shards),
            config: Arc::new(trainee.config.clone()),
            plan: self.plan,
            shuffle: false,
            seed: 0,
            rank: self.rank,
            max_length: usize::MAX,
        };
        let mut loader = Loader::start(source, Cursor::default(), self.workers, self.prefetch)?;
        // Ranks need not be equally fast.
        let names = self.shards.sources().iter().map(|source| source.name.clone()).collect();
        let mut of_sources = SourceSums::new(names, &BTreeMap::new());
        let sums = || self.sums(&model, trainee, &mut loader, &mut of_sources);
        let (loss, tokens) = communicator.attend("evaluation", &Pulse::default(), sums)??;
        let [loss, tokens] = communicator.all_reduce("evaluation", [loss, tokens])?;
        let eval_sources = of_sources.take(communicator)?;
        let seconds = begin.elapsed().as_secs_f64();
        let (scores, answers) = match &self.scoring {
            Some(scoring) => scoring.run(&model, &trainee.config, &self.shards, communicator)?,
            None => (Scores::default(), Vec::new()),
        };
        let metrics = EvalMetrics {
            step,
            epoch,
            eval_loss: loss / tokens,
            eval_supervised_tokens: tokens as u64,
            eval_samples: self.shards.len() as u64,
            eval_runtime: seconds,
            eval_samples_per_second: self.shards.len() as f64 / seconds.max(1e-9),
            eval_sources,
            scores,
        };
        // The others wait here for rank 0's captions.
        let caption = || self.samples.as_ref().map_or(Ok(Vec::new()), |of| of.caption(&model, &trainee.config));
        let captions = communicator.attend("sample captions", &Pulse::default(), caption)??;
        Ok(Evaluated { metrics, captions, answers })
    }

    /// Loss and supervised tokens of this rank's rows; those of each source are added to `of_sources`.
    fn sums(
        &self,
        model: &Llava,
        trainee: &Trainee,
        loader: &mut Loader,
        of_sources: &mut SourceSums,
    ) -> Result<(f64, f64)> {
        let (mut loss, mut tokens) = (0.0, 0.0);
        for _ in 0..self.plan.steps_per_epoch() {
            let micro_batch = loader.next_micro_batch()?;
            let batch = micro_batch.batch.as_ref().filter(|batch| !batch.supervised().1.is_empty());
            if let Some(batch) = batch {
                let (losses, supervised) = model.losses(batch, &trainee.config);
                of_sources.add(&micro_batch, batch, losses.rows);
                of_sources.end_step(false)?;
                loss += value_of(losses.sum)?;
                tokens += supervised as f64;
            }
            pulse::mark();
        }
        Ok((loss, tokens))
    }
}

fn value_of(loss: Tensor<1>) -> Result<f64> {
    let values = loss.into_data().convert::<f32>().try_into_vec::<f32>();
    let values = values.map_err(|error| anyhow!("reading the loss: {error:?}"))?;
    Ok(values.iter().map(|&value| f64::from(value)).sum())
}
