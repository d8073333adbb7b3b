//! The end of a run: the shards' ledgers joined into rejected.jsonl and index.json. Also `preprocess index`.

use super::args::MAX_REJECTED;
use super::ledger::{LEDGER_DIR, REJECTED_FILE, ShardLedger};
use super::plan::Plan;
use anyhow::{Result, bail};
use base::files::AtomicFile;
use base::{Error, counted};
use shards::{Counts, ShardIndex, Split, validation_share};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Longest line about a rejected row, letters.
const LONGEST_EXAMPLE: usize = 300;

/// Joins the shards that `preprocess shards --part I/N` runs made into one dataset.
///
/// Parts made on other machines are copied into the folder first. Gives the same files as a single run.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The --output folder of the parts
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Share of the rows that may be rejected: with more, everything is written and kept, and the exit code is 1
    #[arg(long, value_name = "F", default_value_t = MAX_REJECTED, value_parser = cli::values::share)]
    pub max_rejected: f64,
}

/// Runs `preprocess index`; the text is its result for stdout.
pub fn run(args: &Args) -> Result<String> {
    let Some(plan) = Plan::read(&args.dir)? else {
        let expected = "the --output folder of preprocess shards";
        let found = if args.dir.exists() { "no plan.json" } else { "no such folder" };
        let remedy = format!("{}check the path", base::did_you_mean(&args.dir));
        return Err(Error::invalid(args.dir.display(), found, expected, remedy).into());
    };
    join(&args.dir, &plan, args.max_rejected)
}

/// Writes rejected.jsonl and the dataset card, then index.json. Returns the closing summary.
///
/// # Errors
/// Missing shards; also, with all files written, no row to train on or a larger share of rejected rows than `max_rejected`.
pub fn join(output: &Path, plan: &Plan, max_rejected: f64) -> Result<String> {
    refuse_missing(output, plan)?;
    let mut counts = Counts { rows_in: plan.rows(), ..Counts::default() };
    let (mut files, mut examples) = (Vec::new(), Vec::new());
    let path = output.join(REJECTED_FILE);
    let mut rejected = AtomicFile::create(&path)?;
    for shard in 0..plan.shards() {
        let Some(ledger) = ShardLedger::read(output, shard)? else {
            bail!("{}: shard {shard} disappeared; run again", output.display());
        };
        if ledger.rows_in != plan.rows_of_shard(shard) {
            bail!("{LEDGER_DIR}/{shard:05}.json: {} rows, expected {}", ledger.rows_in, plan.rows_of_shard(shard));
        }
        for row in &ledger.rejected {
            counts.rejected += 1;
            let of_cause = counts.rejected_by_cause.entry(row.cause.name()).or_default();
            *of_cause += 1;
            if *of_cause == 1 {
                examples.push(row.to_string());
            }
            serde_json::to_writer(&mut rejected, row)?;
            rejected.write_all(b"\n").map_err(Error::io(&path))?;
        }
        for file in &ledger.files {
            let rows = if file.split == Split::Train { &mut counts.train } else { &mut counts.validation };
            *rows += file.rows;
        }
        files.extend(ledger.files);
    }
    if counts.rows_in != counts.train + counts.validation + counts.rejected {
        bail!("{}: rows do not add up: {counts:?}; start again in an empty folder", output.display());
    }
    rejected.commit()?;
    let index = ShardIndex::new(plan.metadata.clone(), counts, files);
    index.write_card(output)?;
    index.write(output)?;
    tell_of_held_out_rows(plan.validation_fraction, &index.counts);
    summary(output, &index, &examples, max_rejected)
}

/// A fraction that was asked for and that held out nothing.
fn tell_of_held_out_rows(fraction: f64, counts: &Counts) {
    if fraction == 0.0 || counts.validation > 0 {
        return;
    }
    let rows = counts.train;
    let remedy = match validation_share(rows) {
        Some(share) => format!("--validation-fraction {share} does, into another --output"),
        None => "so few rows are better not divided".to_string(),
    };
    tracing::warn!("--validation-fraction {fraction} of {} holds out none: {remedy}", counted(rows, "row"));
}

fn refuse_missing(output: &Path, plan: &Plan) -> Result<()> {
    let mut missing = Vec::new();
    for shard in 0..plan.shards() {
        if ShardLedger::read(output, shard)?.is_none() {
            missing.push(shard);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let some: Vec<String> = missing.iter().take(10).map(usize::to_string).collect();
    bail!(
        "{}: {} of {} shards are missing ({}{}); run the --part runs that make them, or copy their files here",
        output.display(),
        missing.len(),
        plan.shards(),
        some.join(", "),
        if missing.len() > some.len() { ", …" } else { "" }
    )
}

/// Numbers of rows in words, with the first rejected row of each cause. No training row is an error, and so are more rejected rows
/// than allowed.
fn summary(output: &Path, index: &ShardIndex, examples: &[String], max_rejected: f64) -> Result<String> {
    let ShardIndex { counts, shards, .. } = index;
    let bytes: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let mut causes: Vec<(&String, &usize)> = counts.rejected_by_cause.iter().collect();
    causes.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let causes: Vec<String> = causes.into_iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
    let examples: String = examples.iter().map(|row| format!("\nfor example {}", shortened(row))).collect();
    let text = format!(
        "{} rows in = {} train + {} validation + {} rejected{causes}{examples}\n{}, {}, in {}",
        counts.rows_in,
        counts.train,
        counts.validation,
        counts.rejected,
        counted(shards.len(), "file"),
        cli::units::bytes(bytes),
        output.display(),
    );
    if counts.train == 0 {
        bail!(
            "no row to train on: {text}; see {REJECTED_FILE}, then repair the dataset, remove the folder (rm -r {}) and run the same \
             command",
            output.display()
        );
    }
    let share = counts.rejected as f64 / counts.rows_in as f64;
    if share > max_rejected {
        bail!(
            "{text}\n{:.1} % of the rows are rejected, --max-rejected {max_rejected} allows {:.1} %; all files are written. \
             See {REJECTED_FILE}, then repair the dataset, remove the folder (rm -r {}) and run the same command; or accept the \
             loss: the same command with --max-rejected {}",
            100.0 * share,
            100.0 * max_rejected,
            output.display(),
            (share * 100.0).ceil() / 100.0
        );
    }
    Ok(text)
}

/// A line that a terminal shows; all of it is in the file.
fn shortened(line: &str) -> String {
    match line.char_indices().nth(LONGEST_EXAMPLE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_string(),
    }
}
