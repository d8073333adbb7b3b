//! Command line of `preprocess shards`.

use chat::SYSTEM_PROMPT;
use chat::dataset::Questions;
use cli::options::Kind;
use cli::values::{at_least_1, share, share_below_1};
use shards::PixelFormat;
use std::path::PathBuf;

/// Turns a dataset into shards that train reads.
///
/// The first line of output names the layout that is found in DATA: chat.json; another JSON list or JSON Lines with
/// conversations, messages or captions; a CSV file or JSON Lines with the columns image and caption; metadata.jsonl or
/// metadata.csv (Hugging Face's imagefolder); COCO captions; Parquet with a column of pictures; WebDataset tars; a .txt beside
/// each picture. Picture files are looked for in DATA/images, DATA/images_dl, DATA itself and DATA/images.zip, in that order.
/// Killed at any point and run again, it continues; the finished output has the same bytes.
///
/// Of a row are read: id (text or number, a label: several rows may have the same one; without one the row's number), image
/// or images (a file name or a list of them), system or system_prompt, conversations or messages (turns of from or role:
/// human, user, gpt, assistant, system; and value or content: one text, `<image>` where an image stands), else caption or
/// text (the answer to --prompt). A row with another key that would change it (videos, tools, a second image, …) is
/// rejected by that name; notes such as source, width or metadata are ignored; other keys are ignored and named in a
/// warning. NaN is read as null.
///
/// The output folder also gets a dataset card (README.md), with which datasets.load_dataset(OUTPUT) opens its splits.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// LLaVA model directory (its tokenizer, chat template and image processor are used)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Folder of the dataset, or its file (a JSON list, JSON Lines, CSV, COCO captions, Parquet, tar)
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Folder for the shards; created, or continued if it holds an unfinished run of the same input and options
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Rows of the dataset that one shard covers
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_1)]
    pub rows_per_shard: usize,
    /// Most rows in a row group; one worker makes a whole row group
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_1)]
    pub max_row_group_rows: usize,
    /// Pixel format
    #[arg(long, value_name = "FORMAT", default_value_t = PixelFormat::Predicted)]
    #[arg(help = format!("Pixel format: {}", PixelFormat::help()))]
    pub pixels: PixelFormat,
    /// Threads that decode and encode [default: the machine's cores]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub workers: Option<usize>,
    /// System prompt of rows that have none of their own; "" for none, which chat templates that refuse system messages need
    #[arg(long, value_name = "TEXT", default_value = SYSTEM_PROMPT)]
    pub system_prompt: String,
    /// Question of rows that have a caption only; given several times, each row draws one by its number and --seed
    /// [default: Describe the picture.]
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Seed of the draw among several --prompt
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Longest row in tokens, every image counted as the model's features; longer rows are rejected, never cut
    /// [default: the language model's max_position_embeddings]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub max_length: Option<usize>,
    /// Share of the rows held out for validation, chosen by a hash of the id (rows with the same id stay together)
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = share_below_1)]
    pub validation_fraction: f64,
    /// Only the first N rows of the dataset
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub limit: Option<usize>,
    /// Make only part I of N (1 ≤ I ≤ N) of the shards; when all parts are done, `preprocess index OUTPUT` joins them
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub part: Part,
    /// Share of the rows that may be rejected: with more, everything is written and kept, and the exit code is 1
    #[arg(long, value_name = "F", default_value_t = MAX_REJECTED, value_parser = share)]
    pub max_rejected: f64,
    /// Stop at the first row that would be rejected
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub strict: bool,
}

/// Default of `--max-rejected`.
pub const MAX_REJECTED: f64 = 0.1;

/// What options name.
pub const KINDS: [(&str, Kind); 3] = [("model", Kind::Model), ("data", Kind::Path), ("output", Kind::Output)];

impl Args {
    /// The questions of rows that have a caption only.
    pub fn questions(&self) -> Questions {
        Questions::new(self.prompt.clone(), self.seed)
    }

    /// `--workers` or the machine's cores.
    pub fn workers(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// `--part I/N`: every N-th shard, from the I-th on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: usize,
    /// How many.
    pub of: usize,
}

impl Part {
    /// Whether this part makes a shard.
    pub fn makes(self, shard: usize) -> bool {
        shard % self.of == self.number - 1
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((number, of)) if 1 <= number && number <= of => Ok(Self { number, of }),
            _ => Err(format!("found {text:?}, expected I/N with 1 ≤ I ≤ N, such as 1/4")),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_the_shards_without_overlap() {
        let parts: Vec<Part> = ["1/3", "2/3", "3/3"].map(|text| text.parse().expect("a part")).to_vec();
        for shard in 0..10 {
            assert_eq!(parts.iter().filter(|part| part.makes(shard)).count(), 1);
        }
        for wrong in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn kinds_are_of_options() {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("shards"));
        assert_eq!(cli::options::without_option(&command, &KINDS), Vec::<&str>::new());
        let command = <crate::model::Args as clap::Args>::augment_args(clap::Command::new("model"));
        assert_eq!(cli::options::without_option(&command, &crate::model::KINDS), Vec::<&str>::new());
    }
}
