//! `preprocess inspect`: the content of finished shards as text, as a page, or one row.

mod page;
mod report;
mod row;
mod table;

use crate::shards::{REJECTED_FILE, TOKENIZER_DIR};
use crate::verify::read_rejected;
use anyhow::{Context, Result};
use base::{Error, files};
use chat::TextTokenizer;
use cli::outputs;
use row::Sample;
use shards::{ShardIndex, ShardSet, Split};
use std::path::{Path, PathBuf};
use table::Dataset;

/// Shows the content of finished shards: rows and rejected rows by cause, token and answer lengths, sizes of the sources,
/// duplicates by image and by caption, disk use.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of finished shards (with index.json)
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Also write one self-contained page to this file: histograms, rejected rows by cause, sample rows to filter by length and text
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Replace whatever file that is; without it, only a page of this command is replaced
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub overwrite: bool,
    /// Show one row instead: its image and its tokens, coloured by supervision (from 0)
    #[arg(long, value_name = "K")]
    pub row: Option<usize>,
    /// Take --row and the page's samples from the validation rows
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub validation: bool,
    /// Model directory whose tokenizer turns ids into text [default: the tokenizer in the shards' folder]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Sample rows on the page, spread over the rows that fit
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub samples: usize,
    /// Least tokens of a sample row (an image is one)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_tokens: usize,
    /// Most tokens of a sample row
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    pub max_tokens: usize,
    /// List the rejected rows of this cause instead
    #[arg(long, value_name = "CAUSE", conflicts_with_all = ["row", "html"])]
    pub cause: Option<String>,
}

/// Runs the command; the text is its result for stdout, coloured where `colors` says that it is shown on a terminal.
pub fn run(args: &Args, colors: bool) -> Result<String> {
    if let Some(cause) = &args.cause {
        ShardIndex::read(&args.dir)?;
        return report::rejected_of(&args.dir, cause);
    }
    if let Some(path) = &args.html {
        let is_own = |head: &[u8]| html::is_page_of(head, page::GENERATOR);
        outputs::require_replaceable(path, is_own, Some(args.overwrite), "--html")?;
    }
    let split = if args.validation { Split::Validation } else { Split::Train };
    let set = ShardSet::open(&args.dir, split)?;
    let tokenizer = tokenizer(&set, &args.dir, args.model.as_deref())?;
    if let Some(row) = args.row {
        return Ok(row::in_terminal(&Sample::read(&set, split, row, tokenizer.as_ref())?, colors));
    }
    let dataset = Dataset::read(&args.dir)?;
    let text = report::text(&args.dir, &dataset)?;
    let Some(path) = &args.html else { return Ok(text) };
    let samples: Vec<Sample> = sample_rows(&set, args)?
        .into_iter()
        .map(|row| Sample::read(&set, split, row, tokenizer.as_ref()))
        .collect::<Result<_>>()?;
    let rejected = read_rejected(&args.dir.join(REJECTED_FILE))?;
    let page = page::page(&args.dir, &dataset, &rejected, &samples)?;
    files::write_atomically(path, page.as_bytes()).with_context(|| "the page was not written")?;
    Ok(format!("{text}\n\npage      {}", path.display()))
}

/// Rows of the split that fit, spread evenly.
fn sample_rows(set: &ShardSet, args: &Args) -> Result<Vec<usize>> {
    let range = args.min_tokens..=args.max_tokens;
    let fitting: Vec<usize> = match range == (0..=usize::MAX) {
        true => (0..set.len()).collect(),
        false => {
            let lengths =
                set.texts().map(|row| row.map(|row| row.input_ids.len())).collect::<base::Result<Vec<_>>>()?;
            (0..lengths.len()).filter(|&row| range.contains(&lengths[row])).collect()
        }
    };
    if fitting.is_empty() && set.len() > 0 {
        let found = format!("no row of {} to {} tokens", args.min_tokens, args.max_tokens);
        let remedy = "see the histogram of `preprocess inspect` without these options";
        return Err(Error::invalid("--min-tokens, --max-tokens", found, "lengths that rows have", remedy).into());
    }
    let count = args.samples.min(fitting.len());
    Ok((0..count).map(|sample| fitting[sample * fitting.len() / count]).collect())
}

/// The tokenizer of `model`, else the one that the shards' folder carries; shards of older programs carry none.
fn tokenizer(set: &ShardSet, dir: &Path, model: Option<&Path>) -> Result<Option<TextTokenizer>> {
    let carried = dir.join(TOKENIZER_DIR);
    let Some(source) = model.or(carried.is_dir().then_some(carried.as_path())) else { return Ok(None) };
    let tokenizer = TextTokenizer::from_dir(source)?;
    let (shards, found) = (&set.metadata().tokenizer_sha256, tokenizer.sha256());
    if shards == found {
        return Ok(Some(tokenizer));
    }
    let remedy = "give the model that the shards were made with as --model";
    Err(Error::invalid(source.display(), format!("tokenizer {found}"), format!("the shards' {shards}"), remedy).into())
}
