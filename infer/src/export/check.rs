//! Exported files read back and compared with the model: the loss and the greedy text of rows of shards.

use super::blocks::TensorType;
use super::read::GgufFile;
use super::tensor::Target;
use super::{language_model, mmproj};
use crate::args::ExportArgs;
use crate::engine::{Engine, Processors, Request};
use crate::score::score_row;
use anyhow::{Context, Result, ensure};
use base::Error;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use cli::Progress;
use model::Llava;
use model::config::LlavaConfig;
use model::named::{NamedMapper, map_named};
use model::sampling::SamplingConfig;
use shards::ShardSet;
use std::fmt;
use std::path::Path;

/// Longest text that is compared, tokens.
const MAX_NEW_TOKENS: usize = 48;

/// The rows to compare.
pub struct Check {
    shards: ShardSet,
    rows: usize,
}

/// The comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Rows compared.
    pub rows: usize,
    /// Their supervised tokens.
    pub tokens: usize,
    /// Nats a token: the model, the files.
    pub losses: [f64; 2],
    /// Rows with a question.
    pub texts: usize,
    /// Of these, the greedy texts that are the same.
    pub same_texts: usize,
    /// Tokens of the model's texts, and of them those before the first that differs.
    pub text_tokens: [usize; 2],
    /// Bytes by type of the language model's tensors.
    pub bytes_by_type: Vec<(&'static str, usize)>,
}

/// What a model says of the rows.
#[derive(Default)]
struct Answers {
    loss_sum: f64,
    tokens: usize,
    /// Ids of the greedy texts; `None` for a row without a question.
    texts: Vec<Option<Vec<u32>>>,
}

impl Check {
    /// Opens the shards of the command line; `None` if nothing is to be compared.
    ///
    /// # Errors
    /// Shards of another model; fewer rows than are wanted.
    pub fn open(args: &ExportArgs, processors: &Processors) -> Result<Option<Self>> {
        let (Some(rows), Some(dir)) = (args.check, &args.shards) else { return Ok(None) };
        let shards = ShardSet::open(dir, args.split.into())?;
        shards.metadata().check(&processors.chat, &processors.images)?;
        ensure!(
            rows <= shards.len(),
            "--check {rows}: {} has {} such rows; give fewer, or --split train",
            dir.display(),
            shards.len()
        );
        Ok(Some(Self { shards, rows }))
    }

    /// Compares the engine's model with itself as the files have it.
    ///
    /// # Errors
    /// A file or row that cannot be read.
    pub fn run(&self, engine: Engine, language_model: &Path, mmproj: &Path) -> Result<Checked> {
        let expected = self.answers(&engine)?;
        let config = engine.processors.config.clone();
        let files = Files { language_model: GgufFile::open(language_model)?, mmproj: GgufFile::open(mmproj)? };
        let engine = engine.with_model(|model| read_back(model, &files, &config))?;
        let found = self.answers(&engine)?;
        let pairs: Vec<_> = expected.texts.iter().flatten().zip(found.texts.iter().flatten()).collect();
        let equal = |(a, b): &(&Vec<u32>, &Vec<u32>)| a.iter().zip(*b).take_while(|(a, b)| a == b).count();
        Ok(Checked {
            rows: self.rows,
            tokens: expected.tokens,
            losses: [&expected, &found].map(|answers| answers.loss_sum / answers.tokens as f64),
            texts: pairs.len(),
            same_texts: pairs.iter().filter(|(a, b)| a == b).count(),
            text_tokens: [pairs.iter().map(|(a, _)| a.len()).sum(), pairs.iter().map(equal).sum()],
            bytes_by_type: files.language_model.bytes_by_type(),
        })
    }

    fn answers(&self, engine: &Engine) -> Result<Answers> {
        let mut answers = Answers::default();
        let mut progress = Progress::new("rows compared", 0, self.rows as u64);
        for index in 0..self.rows {
            let row = self.shards.read_row(index)?;
            let prompt = engine.processors.prompt_of_row(&row).ok();
            let score = score_row(engine, row)?;
            ensure!(score.loss_sum.is_finite(), "row {}: its loss is {}", score.id, score.loss_sum);
            answers.loss_sum += score.loss_sum;
            answers.tokens += score.tokens;
            answers.texts.push(prompt.map(|prompt| greedy(engine, prompt)).transpose()?);
            progress.advance(1);
        }
        progress.finish();
        ensure!(answers.tokens > 0, "none of the {} rows has an answer's token to score", self.rows);
        Ok(answers)
    }
}

fn greedy(engine: &Engine, prompt: model::batch::PackedBatch) -> Result<Vec<u32>> {
    let sampling = SamplingConfig::default();
    let request = Request { prompt, sampling, max_new_tokens: MAX_NEW_TOKENS, stop: Vec::new(), ignore_eos: false };
    let (mut sequence, _) = engine.start(request)?;
    while sequence.finish().is_none() {
        engine.step(&mut [&mut sequence])?;
    }
    Ok(sequence.new_ids().to_vec())
}

/// Both files.
struct Files {
    language_model: GgufFile,
    mmproj: GgufFile,
}

/// The model with the files' values, in f32; what is in no file (layers that are not computed) stays.
fn read_back(model: Llava, files: &Files, config: &LlavaConfig) -> Result<Llava> {
    let mut reader = Reader { files, config, failed: None };
    let model = map_named(model, &mut reader);
    match reader.failed {
        None => Ok(model),
        Some(error) => Err(error),
    }
}

struct Reader<'a> {
    files: &'a Files,
    config: &'a LlavaConfig,
    failed: Option<anyhow::Error>,
}

impl Reader<'_> {
    /// The values of a parameter of this shape; `None` for one that is in no file.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let of_text =
            language_model::target(name, &self.config.text).map(|target| (target, &self.files.language_model));
        let of_vision = || mmproj::target(name, self.config).map(|target| (target, &self.files.mmproj));
        let Some((Target { name, order }, file)) = of_text.or_else(of_vision) else { return Ok(None) };
        let values = file.values(&name)?.with_context(|| format!("tensor {name} is not in its file"))?;
        let bytes = order.inverse(shape).apply(shape, TensorType::F32.encode(&values));
        Ok(Some(TensorType::F32.decode(&bytes)))
    }
}

impl NamedMapper for Reader<'_> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device) = (param.shape(), param.device());
        match self.values(&name, shape.as_slice()) {
            Ok(None) => param,
            Ok(Some(values)) if values.len() == shape.num_elements() => {
                Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), &device))
            }
            Ok(Some(values)) => {
                let (found, expected) = (format!("{} values", values.len()), shape.num_elements());
                self.failed = Some(Error::invalid(format!("tensor {name}"), found, expected, "report this").into());
                param
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                param
            }
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, tokens, losses: [before, after], texts, same_texts, text_tokens: [all, equal], .. } = self;
        let types: Vec<String> =
            self.bytes_by_type.iter().map(|(kind, bytes)| format!("{kind} {:.1} MB", *bytes as f64 / 1e6)).collect();
        writeln!(f, "language model: {}", types.join(", "))?;
        writeln!(
            f,
            "loss of {rows} rows ({tokens} tokens): {before:.4} nats a token, with the files {after:.4} ({:+.4})",
            after - before
        )?;
        write!(
            f,
            "greedy text of up to {MAX_NEW_TOKENS} tokens: {same_texts} of {texts} the same; {equal} of {all} tokens before the first \
             difference"
        )
    }
}
