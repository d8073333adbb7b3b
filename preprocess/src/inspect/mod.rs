//! `preprocess inspect`: the content of finished shards as text, as a page, or one row.

mod page;
mod picture;
mod report;
mod row;
mod table;

use anyhow::{Context, Result};
use base::files;
use chat::ChatProcessor;
use row::Sample;
use shards::{ShardSet, Split};
use std::path::PathBuf;
use table::Dataset;

/// Shows the content of finished shards: rows and rejected rows by cause, token and answer lengths, sizes of the sources,
/// duplicates by image and by caption, disk use.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of finished shards (with index.json)
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Also write one self-contained page with histograms and sample rows to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Show one row instead: its image and its tokens, coloured by supervision (from 0)
    #[arg(long, value_name = "K")]
    pub row: Option<usize>,
    /// Take --row and the page's samples from the validation rows
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub validation: bool,
    /// Model directory whose tokenizer turns ids into text [without it: ids]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Sample rows on the page, spread over the dataset
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub samples: usize,
}

/// Runs the command; the text is its result for stdout, coloured where `colors` says that it is shown on a terminal.
pub fn run(args: &Args, colors: bool) -> Result<String> {
    let split = if args.validation { Split::Validation } else { Split::Train };
    let set = ShardSet::open(&args.dir, split)?;
    let chat = args.model.as_deref().map(ChatProcessor::from_dir).transpose()?;
    if let Some(chat) = &chat {
        refuse_foreign_tokenizer(&set, chat)?;
    }
    if let Some(row) = args.row {
        return Ok(row::in_terminal(&Sample::read(&set, row, chat.as_ref())?, colors));
    }
    let dataset = Dataset::read(&args.dir)?;
    let text = report::text(&args.dir, &dataset)?;
    let Some(path) = &args.html else { return Ok(text) };
    let count = args.samples.min(set.len());
    let samples: Vec<Sample> = (0..count)
        .map(|sample| Sample::read(&set, sample * set.len() / count, chat.as_ref()))
        .collect::<Result<_>>()?;
    let page = page::page(&args.dir, &dataset, &samples)?;
    files::write_atomically(path, page.as_bytes()).with_context(|| "the page was not written")?;
    Ok(format!("{text}\n\npage      {}", path.display()))
}

fn refuse_foreign_tokenizer(set: &ShardSet, chat: &ChatProcessor) -> Result<()> {
    let (shards, model) = (&set.metadata().tokenizer_sha256, &chat.tokenizer_sha256);
    if shards == model {
        return Ok(());
    }
    let remedy = "give the model that the shards were made with, or leave --model out";
    Err(base::Error::invalid("--model", format!("tokenizer {model}"), format!("the shards' {shards}"), remedy).into())
}
