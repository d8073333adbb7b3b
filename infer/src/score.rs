//! `infer score`: the loss of every row of the shards.

use crate::args::ScoreArgs;
use crate::engine::Engine;
use anyhow::{Result, ensure};
use base::files::AtomicFile;
use cli::{Progress, outputs};
use model::batch::PackedBatch;
use serde::{Deserialize, Serialize};
use shards::{Row, ShardSet};
use std::io::Write;
use std::path::Path;

/// Loss of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowScore {
    /// `id` of chat.json.
    pub id: String,
    /// Sum of the cross entropy over the row's supervised tokens, nats.
    pub loss_sum: f64,
    /// Supervised tokens.
    pub tokens: usize,
}

/// Loss of all rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TotalScore {
    /// Rows.
    pub rows: usize,
    /// Sum over rows, nats.
    pub loss_sum: f64,
    /// Supervised tokens of all rows.
    pub tokens: usize,
    /// `loss_sum / tokens`, nats a token.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
}

/// Scores the shards, writes a line a row, returns the total as JSON.
///
/// # Errors
/// An output file of something else; shards made for another tokenizer or processor; an unreadable row; a full disk.
pub fn run(args: &ScoreArgs) -> Result<String> {
    let is_own = |head: &[u8]| serde_json::from_slice::<RowScore>(outputs::first_line(head)).is_ok();
    outputs::require_replaceable(&args.output, is_own, Some(args.overwrite), "--output")?;
    let engine = Engine::from_args(&args.model)?;
    let shards = ShardSet::open(&args.shards, args.split.into())?;
    shards.check_files()?;
    shards.metadata().check(&engine.processors.chat, &engine.processors.images)?;
    let rows = args.limit.unwrap_or(usize::MAX).min(shards.len());
    ensure!(
        rows > 0,
        "{}: no rows to score: the split has {}{}",
        args.shards.display(),
        shards.len(),
        args.limit.map_or(String::new(), |limit| format!(", --limit allows {limit}"))
    );
    let total = write_scores(&args.output, rows, |index| score_row(&engine, shards.read_row(index)?))?;
    Ok(serde_json::to_string(&total)?)
}

/// The lines appear under their name when all are there.
fn write_scores(output: &Path, rows: usize, score: impl Fn(usize) -> Result<RowScore>) -> Result<TotalScore> {
    let mut file = AtomicFile::create(output)?;
    let mut total = TotalScore::default();
    let mut progress = Progress::new("rows", 0, rows as u64);
    for index in 0..rows {
        let row = score(index)?;
        ensure!(
            row.loss_sum.is_finite(),
            "row {}: its loss is {}; the model's weights hold NaN or infinity, or overflow in their type (--weights f32 \
             computes in f32)",
            row.id,
            row.loss_sum
        );
        total.rows += 1;
        total.loss_sum += row.loss_sum;
        total.tokens += row.tokens;
        serde_json::to_writer(&mut file, &row)?;
        file.write_all(b"\n").map_err(base::Error::io(output))?;
        progress.advance(1);
    }
    progress.finish();
    ensure!(total.tokens > 0, "none of the {} rows has an answer's token to score", total.rows);
    file.commit()?;
    total.loss = total.loss_sum / total.tokens as f64;
    total.perplexity = total.loss.exp();
    Ok(total)
}

/// Loss sum and supervised tokens of one row, alone.
///
/// # Errors
/// `<image>` tokens that are not as many as the row's images.
pub fn score_row(engine: &Engine, row: Row) -> Result<RowScore> {
    let id = row.id.clone();
    let config = &engine.processors.config;
    let batch = PackedBatch::pack(vec![row], config.image_token_index, config.image_seq_length())?;
    if batch.supervised().1.is_empty() {
        return Ok(RowScore { id, loss_sum: 0.0, tokens: 0 });
    }
    let (loss_sum, tokens) = engine.loss_sum(&batch)?;
    Ok(RowScore { id, loss_sum, tokens })
}
