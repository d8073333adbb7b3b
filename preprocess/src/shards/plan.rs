//! `plan.json`: inputs, model and options of a run. A run with others in the same folder is refused.

use super::args::Args;
use super::census::{self, ImageFiles};
use anyhow::{Result, bail};
use base::files;
use base::{Error, Result as CommonResult, exact};
use chat::dataset::{Identity, Pass, Source, Survey};
use images::image_files::ImageSources;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shards::ShardMetadata;
use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

pub use shards::PLAN_FILE;
/// Longest value that is printed in full when plans differ, characters.
const PRINTED_VALUE: usize = 170;

/// Hexadecimal digits of a SHA-256, and how many of them are printed.
const HASH_DIGITS: usize = 64;
const SHOWN_DIGITS: usize = 12;

/// Everything that the output's bytes depend on. Workers, parts and `--strict` are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Program version.
    pub program: String,
    /// The dataset's rows.
    pub records: Records,
    /// Questions of rows that have a caption only.
    pub prompts: Vec<String>,
    /// `--seed`.
    pub seed: u64,
    /// Where images are taken from, in order.
    pub images: Vec<String>,
    /// The files in folders that rows name.
    pub image_files: ImageFiles,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The day that the chat template writes into rows, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_date: Option<String>,
    /// The model's processors and the pixel format.
    pub metadata: ShardMetadata,
    /// Features that an image becomes.
    pub image_seq_length: usize,
    /// `--rows-per-shard`.
    pub rows_per_shard: usize,
    /// `--max-row-group-rows`.
    pub max_row_group_rows: usize,
    /// `--system-prompt`.
    pub system_prompt: String,
    /// `--max-length`, tokens.
    pub max_length: usize,
    /// `--validation-fraction`.
    #[serde(with = "exact")]
    pub validation_fraction: f64,
    /// `--limit`.
    pub limit: Option<usize>,
}

/// Identity of the dataset's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// The layout.
    pub layout: String,
    /// SHA-256 over the rows.
    pub sha256: String,
    /// Size of their JSON text, bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: usize,
}

/// Identity of the input.
pub struct Input {
    /// The rows.
    pub records: Records,
    /// The files in folders that its rows name.
    pub image_files: ImageFiles,
    /// Peculiarities of the rows that its owner should know of, a line each.
    pub warnings: Vec<String>,
}

impl Input {
    /// Reads all rows once: a mistake in the last one is found before hours of work. Meanwhile `threads` threads look up the
    /// image files that the first `limit` rows name.
    pub fn scan(source: &Source, images: &ImageSources, limit: usize, threads: usize) -> CommonResult<Self> {
        let mut rows = 0;
        let (mut survey, mut identity) = (Survey::default(), Identity::default());
        let (image_files, read) = census::take(images, threads, |census| {
            source.for_each_row(Pass::Texts, |row| {
                if row.number < limit {
                    survey.add(&row).into_iter().for_each(|name| census.name(name));
                }
                identity.add(&row);
                rows += 1;
                ControlFlow::Continue(())
            })
        });
        read?;
        let (sha256, bytes) = source.identify(identity)?;
        let records = Records { layout: source.describe(), sha256, bytes, rows };
        Ok(Self { records, image_files, warnings: survey.warnings() })
    }
}

impl Plan {
    /// The plan of a command line.
    pub fn new(args: &Args, input: Input, images: Vec<String>, model: ModelFacts) -> Self {
        Self {
            program: concat!("preprocess ", env!("CARGO_PKG_VERSION")).to_owned(),
            records: input.records,
            prompts: args.questions().texts().to_vec(),
            seed: args.seed,
            images,
            image_files: input.image_files,
            eos_token_ids: model.eos_token_ids,
            chat_date: model.chat_date,
            metadata: model.metadata,
            image_seq_length: model.image_seq_length,
            rows_per_shard: args.rows_per_shard,
            max_row_group_rows: args.max_row_group_rows,
            system_prompt: args.system_prompt.clone(),
            max_length: args.max_length.unwrap_or(model.max_position_embeddings),
            validation_fraction: args.validation_fraction,
            limit: args.limit,
        }
    }

    /// Rows of the dataset that are taken.
    pub fn rows(&self) -> usize {
        self.limit.map_or(self.records.rows, |limit| limit.min(self.records.rows))
    }

    /// Shards that cover them.
    pub fn shards(&self) -> usize {
        self.rows().div_ceil(self.rows_per_shard)
    }

    /// Rows of the dataset that a shard covers.
    pub fn rows_of_shard(&self, shard: usize) -> usize {
        self.rows().saturating_sub(shard * self.rows_per_shard).min(self.rows_per_shard)
    }

    /// Reads the plan of a folder; `None` if it has none.
    pub fn read(output: &Path) -> Result<Option<Self>> {
        let path = output.join(PLAN_FILE);
        match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(plan) => Ok(Some(plan)),
                Err(error) => bail!(
                    "{}: {error}, expected the plan of a run of this version; choose another --output",
                    path.display()
                ),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path)(error).into()),
        }
    }

    /// Writes the plan into a fresh folder, or makes sure that the folder's plan is this one. Parts may start at once in one
    /// folder, and its file system may have no locks: the plan appears once and whole, and whoever comes later compares.
    pub fn record(&self, output: &Path) -> Result<()> {
        std::fs::create_dir_all(output).map_err(Error::io(output))?;
        if Self::read(output)?.is_none() {
            let foreign = foreign_name(output)?;
            // Another part may have written its plan, and begun its work, since this one looked for a plan.
            if let Some(name) = foreign.filter(|_| !output.join(PLAN_FILE).exists()) {
                bail!(
                    "{}: holds {name:?} but no {PLAN_FILE}, expected an empty folder or an unfinished run; choose another \
                     --output",
                    output.display()
                );
            }
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            files::create_once(&output.join(PLAN_FILE), |mut file| file.write_all(&text))?;
        }
        match Self::read(output)? {
            Some(recorded) => {
                self.compare(&recorded, output)?;
                Ok(files::remove_leftovers(&output.join(PLAN_FILE))?)
            }
            None => bail!("{}: {PLAN_FILE} disappeared; run again", output.display()),
        }
    }

    fn compare(&self, recorded: &Self, output: &Path) -> Result<()> {
        let mut differences = Vec::new();
        let (recorded, now) = (serde_json::to_value(recorded)?, serde_json::to_value(self)?);
        collect_differences("", &recorded, &now, &mut differences);
        if differences.is_empty() {
            return Ok(());
        }
        let (cause, remedy) = cause_and_remedy(output, &differences);
        let differences = differences.join("; ");
        bail!("{}: belongs to another run: {cause}; {remedy} ({differences})", output.join(PLAN_FILE).display())
    }
}

/// What the plan takes from the model.
pub struct ModelFacts {
    /// Its processors.
    pub metadata: ShardMetadata,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The day that the chat template writes, if it does.
    pub chat_date: Option<String>,
    /// Features that an image becomes.
    pub image_seq_length: usize,
    /// Longest position, tokens.
    pub max_position_embeddings: usize,
}

/// A name in the folder that no run of this program has left there before its plan.
fn foreign_name(output: &Path) -> Result<Option<OsString>> {
    let entries = std::fs::read_dir(output).map_err(Error::io(output))?;
    let mut names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    // Hidden names are what a killed run may have left before its plan was there.
    Ok(names.find(|name| !name.to_string_lossy().starts_with('.')))
}

/// Why a folder has other shards, and what to do about it.
fn cause_and_remedy(output: &Path, differences: &[String]) -> (&'static str, String) {
    let output = output.display();
    let is_about = |names: &[&str]| differences.iter().all(|line| names.iter().any(|name| line.starts_with(name)));
    if is_about(&["chat_date"]) {
        let remedy = "set SOURCE_DATE_EPOCH (seconds since 1970) to a time of that day, and run the same command";
        return ("the chat template writes another day", remedy.to_owned());
    }
    let anew = format!("remove the folder (rm -r {output}) and run the same command, or choose another --output");
    if is_about(&["records.", "images", "image_files."]) {
        return ("the dataset has changed", format!("to make its shards anew {anew}"));
    }
    ("the model, the program or an option is another", format!("run with the same ones; or {anew}"))
}

fn collect_differences(path: &str, recorded: &Value, now: &Value, differences: &mut Vec<String>) {
    match (recorded, now) {
        (Value::Object(recorded), Value::Object(now)) => {
            for (key, value) in recorded {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect_differences(&path, value, now.get(key).unwrap_or(&Value::Null), differences);
            }
        }
        (Value::Array(recorded), Value::Array(now)) if recorded.len() == now.len() => {
            for (index, (recorded, now)) in recorded.iter().zip(now).enumerate() {
                collect_differences(&format!("{path}[{index}]"), recorded, now, differences);
            }
        }
        _ if recorded == now => {}
        _ => differences.push(format!("{path} was {}, is {}", printed(recorded), printed(now))),
    }
}

fn printed(value: &Value) -> String {
    let text = with_short_hashes(&value.to_string());
    match text.char_indices().nth(PRINTED_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Of each SHA-256 the first digits.
fn with_short_hashes(text: &str) -> String {
    let is_digit = |letter: char| letter.is_ascii_hexdigit();
    let mut short = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_digit) {
        let end = rest[start..].find(|letter| !is_digit(letter)).map_or(rest.len(), |length| start + length);
        let is_hash = end - start == HASH_DIGITS;
        short += &rest[..if is_hash { start + SHOWN_DIGITS } else { end }];
        short += if is_hash { "…" } else { "" };
        rest = &rest[end..];
    }
    short + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::writers::tests::one_row_a_shard;

    /// Parts of one run agree on one plan, and a part of another run is refused, whoever comes first.
    #[test]
    fn parts_that_start_at_once_have_one_plan() {
        for round in 0..20 {
            let output = tempfile::tempdir().expect("a temporary folder");
            let plan = |seed: usize| Plan { max_length: 1 + seed % 2, ..one_row_a_shard() };
            let ended: Vec<Result<()>> = std::thread::scope(|scope| {
                let start = |number| {
                    let (plan, output) = (plan(number), output.path());
                    scope.spawn(move || plan.record(output))
                };
                let parts: Vec<_> = (0..8).map(start).collect();
                parts.into_iter().map(|part| part.join().expect("no panic")).collect()
            });
            let recorded = Plan::read(output.path()).expect("whole").expect("a plan").max_length;
            for (number, ended) in ended.into_iter().enumerate() {
                let same = plan(number).max_length == recorded;
                assert_eq!(ended.is_ok(), same, "round {round}, part {number}: {ended:?}");
                let refused = ended.err().map(|error| error.to_string());
                assert!(refused.is_none_or(|error| error.contains("max_length was")), "round {round}");
            }
            assert_eq!(std::fs::read_dir(output.path()).expect("listed").count(), 1, "nothing but the plan");
        }
    }

    #[test]
    fn the_cause_comes_before_what_differs() {
        let output = tempfile::tempdir().expect("a temporary folder");
        one_row_a_shard().record(output.path()).expect("recorded");
        let mut changed = one_row_a_shard();
        changed.records.sha256 = "a".repeat(HASH_DIGITS);
        let error = changed.record(output.path()).expect_err("refused").to_string();
        assert!(
            error.contains("belongs to another run: the dataset has changed; to make its shards anew remove"),
            "{error}"
        );
        assert!(error.ends_with("is \"aaaaaaaaaaaa…\")") && error.contains("(records.sha256 was"), "{error}");
        let error = Plan { seed: 7, ..changed }.record(output.path()).expect_err("refused").to_string();
        assert!(
            error.contains("run: the model, the program or an option is another; run with the same ones; or"),
            "{error}"
        );
        assert_eq!(with_short_hashes("x 12 ab"), "x 12 ab");
    }

    #[test]
    fn a_folder_of_something_else_is_refused_and_what_a_killed_run_left_is_not() {
        let output = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(output.path().join("photo.jpg"), "").expect("written");
        let error = one_row_a_shard().record(output.path()).expect_err("refused").to_string();
        assert!(error.contains("photo.jpg") && error.contains("choose another --output"), "{error}");
        std::fs::rename(output.path().join("photo.jpg"), output.path().join(".plan.json.x.tmp")).expect("renamed");
        one_row_a_shard().record(output.path()).expect("an unfinished start");
        let names = std::fs::read_dir(output.path()).expect("listed").flatten().map(|entry| entry.file_name());
        assert_eq!(names.collect::<Vec<_>>(), [PLAN_FILE], "what the killed run left is gone");
    }
}
