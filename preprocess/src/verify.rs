//! `preprocess verify`: reads finished shards completely and lists their faults.

use crate::shards::ledger::{REJECTED_FILE, Rejected};
use anyhow::{Result, bail};
use base::{Error, IGNORE_INDEX, counted, files};
use cli::{Progress, units};
use shards::{Row, RowText, ShardIndex, ShardSet, Split};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Problems that are printed; the rest is counted.
const PRINTED_PROBLEMS: usize = 20;
/// Rows that a worker takes at a time.
const ROWS_AT_ONCE: usize = 32;

/// Re-reads finished shards: the hash of every file, then every row — its columns and shapes, that each label is its token
/// or unsupervised, that something is supervised, that every pixel is there — and the account of rejected rows.
///
/// Ends with exit code 1 when anything is wrong, after listing it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of finished shards (with index.json)
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Threads that decode rows [default: one a core]
    #[arg(long, value_name = "N", value_parser = cli::values::at_least_1)]
    pub workers: Option<usize>,
}

/// The faults in the order in which they were found.
#[derive(Default)]
struct Problems {
    printed: Vec<String>,
    count: usize,
}

impl Problems {
    fn add(&mut self, problem: impl std::fmt::Display) {
        self.count += 1;
        if self.printed.len() < PRINTED_PROBLEMS {
            self.printed.push(problem.to_string());
        }
    }

    fn take(&mut self, result: base::Result<()>) {
        if let Err(error) = result {
            self.add(error);
        }
    }
}

/// Runs the command; the text is its result for stdout.
pub fn run(args: &Args) -> Result<String> {
    let index = ShardIndex::read(&args.dir)?;
    let mut problems = Problems::default();
    for shard in &index.shards {
        problems.take(check_file(&args.dir, shard));
    }
    check_account(&args.dir, &index, &mut problems);
    // Rows of files whose hash is wrong are not worth decoding.
    if problems.count == 0 {
        let workers = args.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        for split in Split::ALL.into_iter().filter(|&split| index.shards.iter().any(|shard| shard.split == split)) {
            check_rows(&ShardSet::open(&args.dir, split)?, split, workers, &mut problems)?;
        }
    }
    if problems.count > 0 {
        let more = problems.count - problems.printed.len();
        let more = if more > 0 { format!("\n… and {more} more") } else { String::new() };
        bail!("{}: {}\n{}{more}", args.dir.display(), counted(problems.count, "problem"), problems.printed.join("\n"));
    }
    let bytes: u64 = index.shards.iter().map(|shard| shard.bytes).sum();
    Ok(format!(
        "{}: {}, {}, {} and {} rejected: hashes, columns, shapes, labels and numbers of rows are correct",
        args.dir.display(),
        counted(index.shards.len(), "file"),
        units::bytes(bytes),
        counted(index.counts.train + index.counts.validation, "row"),
        index.counts.rejected,
    ))
}

fn check_file(dir: &Path, shard: &shards::ShardFile) -> base::Result<()> {
    let path = dir.join(&shard.file);
    std::fs::metadata(&path).map_err(shard.unreadable(dir))?;
    let sha256 = files::sha256_of_file(&path)?;
    if sha256 == shard.sha256 {
        return Ok(());
    }
    let remedy = "the file was damaged: copy it again, or delete it and run preprocess shards again";
    Err(Error::invalid(path.display(), format!("SHA-256 {sha256}"), &shard.sha256, remedy))
}

/// The numbers of index.json against each other and against rejected.jsonl.
fn check_account(dir: &Path, index: &ShardIndex, problems: &mut Problems) {
    let counts = &index.counts;
    for (split, counted) in [(Split::Train, counts.train), (Split::Validation, counts.validation)] {
        let rows: usize = index.shards.iter().filter(|shard| shard.split == split).map(|shard| shard.rows).sum();
        if rows != counted {
            problems.add(format!("index.json: {counted} {split:?} rows counted, its files have {rows}"));
        }
    }
    if counts.rows_in != counts.train + counts.validation + counts.rejected {
        problems.add(format!("index.json: {} rows in are not train + validation + rejected", counts.rows_in));
    }
    match read_rejected(&dir.join(REJECTED_FILE)) {
        Err(error) => problems.add(error),
        Ok(rejected) => {
            let mut by_cause = BTreeMap::new();
            rejected.iter().for_each(|row| *by_cause.entry(row.cause.name()).or_insert(0) += 1);
            if by_cause != counts.rejected_by_cause || rejected.len() != counts.rejected {
                problems.add(format!(
                    "{REJECTED_FILE}: {by_cause:?}, index.json counts {:?}; run preprocess shards or index again",
                    counts.rejected_by_cause
                ));
            }
        }
    }
}

/// All lines of rejected.jsonl.
///
/// # Errors
/// Names the line that is not one of its.
pub fn read_rejected(path: &Path) -> Result<Vec<Rejected>> {
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path).display();
            let remedy = format!("copy it again, or run preprocess index {folder}, which writes it");
            Error::invalid(path.display(), "no such file", "the rejected rows, beside index.json", remedy)
        }
        _ => Error::io(path)(error),
    })?;
    let mut rejected = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(Error::io(path))?;
        rejected.push(serde_json::from_str(&line).map_err(|error| {
            let place = format!("{}: line {}", path.display(), number + 1);
            Error::invalid(place, error, "a rejected row", "run preprocess shards or index again")
        })?);
    }
    Ok(rejected)
}

/// Texts in order on this thread, pixels on the workers.
fn check_rows(set: &ShardSet, split: Split, workers: usize, problems: &mut Problems) -> Result<()> {
    let mut rows = 0;
    for text in set.texts() {
        match text {
            Ok(text) => check_text(&text, split, problems),
            Err(error) => {
                problems.add(error);
                return Ok(());
            }
        }
        rows += 1;
    }
    if rows != set.len() {
        problems.add(format!("{split:?}: {rows} rows can be read, index.json says {}", set.len()));
    }
    let next = AtomicUsize::new(0);
    let shared = Mutex::new((Problems::default(), Progress::new("rows", 0, set.len() as u64)));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(ROWS_AT_ONCE, Ordering::Relaxed);
                    let end = set.len().min(first + ROWS_AT_ONCE);
                    if first >= end {
                        break;
                    }
                    let found: Vec<base::Result<()>> =
                        (first..end).map(|row| set.read_row(row).and_then(|row| check_row(&row, set, split))).collect();
                    // A worker that panicked would have ended the scope's thread; its lock is still good.
                    let mut shared = shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    shared.1.advance((end - first) as u64);
                    found.into_iter().for_each(|result| shared.0.take(result));
                }
            });
        }
    });
    let (found, progress) = shared.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    progress.finish();
    problems.count += found.count;
    problems.printed.extend(found.printed);
    problems.printed.truncate(PRINTED_PROBLEMS);
    Ok(())
}

fn check_text(text: &RowText, split: Split, problems: &mut Problems) {
    let place = || format!("{split:?} row with id {:?}", text.id);
    for image in &text.images {
        if image.width == 0 || image.height == 0 {
            problems.add(format!("{}: {} is {}×{} pixels", place(), image.name, image.width, image.height));
        }
        if files::from_hex(&image.sha256).is_none_or(|hash| hash.len() != 32) {
            problems.add(format!("{}: image_sha256 {:?} is no SHA-256", place(), image.sha256));
        }
    }
}

/// Lengths, labels and pixels of one row.
fn check_row(row: &Row, set: &ShardSet, split: Split) -> base::Result<()> {
    let invalid = |found: String, expected: &str| {
        let place = format!("{split:?} row with id {:?}", row.id);
        Err(Error::invalid(place, found, expected, "run preprocess shards again"))
    };
    if row.input_ids.len() != row.labels.len() || row.input_ids.is_empty() {
        return invalid(format!("{} input_ids, {} labels", row.input_ids.len(), row.labels.len()), "equally many");
    }
    let mut pairs = row.input_ids.iter().zip(&row.labels);
    if let Some((id, label)) = pairs.find(|(id, label)| **label != IGNORE_INDEX && label != id) {
        return invalid(format!("label {label} at token {id}"), "the token or -100");
    }
    if row.labels.iter().all(|label| *label == IGNORE_INDEX) {
        return invalid("no supervised token".into(), "an answer to learn");
    }
    let side = set.metadata().crop_size;
    let expected = row.images.len() * 3 * side * side;
    if row.pixel_values.len() != expected {
        return invalid(format!("{} pixel values", row.pixel_values.len()), &format!("{expected}"));
    }
    if let Some(value) = row.pixel_values.iter().find(|value| !value.is_finite()) {
        return invalid(format!("pixel value {value}"), "finite values");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_beyond_the_limit_are_counted() {
        let mut problems = Problems::default();
        (0..PRINTED_PROBLEMS + 5).for_each(|number| problems.add(number));
        assert_eq!((problems.printed.len(), problems.count), (PRINTED_PROBLEMS, PRINTED_PROBLEMS + 5));
    }
}
