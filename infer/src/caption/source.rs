//! Where pictures come from: a folder, a dataset with chat.json, shards.

use crate::args::CaptionArgs;
use crate::engine::{Processors, Prompt, single_question};
use crate::score::ensure_same_processors;
use anyhow::{Context, Result, bail, ensure};
use common::image_files::ImageSources;
use common::image_processor::ProcessedImage;
use common::shard::{Row, ShardSet};
use common::{Error, IGNORE_INDEX};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Endings of the files that a folder is searched for.
const PICTURES: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];

/// One picture to caption.
pub(super) struct Item {
    /// `id` of the dataset, or the file's name without ending.
    pub id: String,
    /// File name.
    pub image: String,
    /// The question with the picture, or why the picture cannot be used.
    pub prompt: Result<Prompt, String>,
    /// Answers that the source itself has.
    pub references: Vec<String>,
}

/// An open source of pictures.
#[allow(clippy::large_enum_variant)] // One exists per run.
pub(super) enum Source {
    /// Files, all with the same question.
    Folder { files: Vec<PathBuf>, question: String, system: String },
    /// Rows of chat.json, pictures in folders or in images.zip.
    Dataset { files: ImageSources, records: Vec<Record>, system: String },
    /// Rows of shards.
    Shards(ShardSet),
}

/// A row of chat.json.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    id: String,
    image: OneOrMore,
    conversations: Vec<Turn>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Turn {
    from: String,
    value: String,
}

impl Source {
    /// Opens what the command line names.
    ///
    /// # Errors
    /// A missing folder, a malformed chat.json (with line and column), shards of another model.
    pub fn open(args: &CaptionArgs, processors: &Processors) -> Result<Self> {
        let system = processors.chat.quote(&args.system_prompt);
        match (&args.source.images, &args.source.data, &args.source.shards) {
            (Some(dir), None, None) => Ok(Self::Folder {
                files: picture_files(dir)?,
                question: processors.typed_question(&args.prompt),
                system,
            }),
            (None, Some(dir), None) => {
                Ok(Self::Dataset { files: ImageSources::find(dir)?, records: read_chat(dir)?, system })
            }
            (None, None, Some(dir)) => {
                let shards = ShardSet::open(dir, args.split.into())?;
                ensure_same_processors(processors, &shards, dir)?;
                Ok(Self::Shards(shards))
            }
            _ => bail!("give one of --images, --data, --shards"),
        }
    }

    /// Pictures.
    pub fn len(&self) -> usize {
        match self {
            Self::Folder { files, .. } => files.len(),
            Self::Dataset { records, .. } => records.len(),
            Self::Shards(shards) => shards.len(),
        }
    }

    /// Picture `index` with its question.
    ///
    /// # Errors
    /// A damaged shard. A bad picture is the item's own matter.
    pub fn item(&self, index: usize, processors: &Processors) -> Result<Item> {
        Ok(match self {
            Self::Folder { files, question, system } => file_item(&files[index], question, system, processors),
            Self::Dataset { files, records, system } => record_item(files, &records[index], system, processors),
            Self::Shards(shards) => shard_item(shards.read_row(index)?, processors)?,
        })
    }
}

fn picture_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_picture = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        PICTURES.contains(&ending.as_str())
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if is_picture(&path) {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "{}: no pictures ({})", dir.display(), PICTURES.join(", "));
    files.sort();
    Ok(files)
}

fn read_chat(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join("chat.json");
    let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
    serde_json::from_reader(std::io::BufReader::new(file)).with_context(|| format!("{}", path.display()))
}

fn file_item(path: &Path, question: &str, system: &str, processors: &Processors) -> Item {
    let name = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    Item {
        id: name(path.file_stem()),
        image: name(path.file_name()),
        prompt: (processors.read_image(path))
            .and_then(|image| ask(&[image], question, system, processors))
            .map_err(|error| format!("{error:#}")),
        references: Vec::new(),
    }
}

fn record_item(files: &ImageSources, record: &Record, system: &str, processors: &Processors) -> Item {
    let said_by = |who: &str| {
        let turn = record.conversations.iter().find(|turn| turn.from == who);
        turn.map(|turn| turn.value.clone())
    };
    let names = match &record.image {
        OneOrMore::One(name) => std::slice::from_ref(name),
        OneOrMore::More(names) => names,
    };
    let prompt = said_by("human").context("no question (a turn from \"human\")").and_then(|question| {
        let read = |name: &String| processors.process_image(name, &files.read(name)?);
        ask(&names.iter().map(read).collect::<Result<Vec<_>>>()?, &question, system, processors)
    });
    Item {
        id: record.id.clone(),
        image: names.join(", "),
        prompt: prompt.map_err(|error| format!("{error:#}")),
        references: said_by("gpt").into_iter().collect(),
    }
}

fn ask(images: &[ProcessedImage], question: &str, system: &str, processors: &Processors) -> Result<Prompt> {
    processors.prompt(&single_question(system, question, images.len()), images)
}

/// The row up to its first supervised token is the prompt; the supervised ones after it are the answer.
fn shard_item(row: Row, processors: &Processors) -> Result<Item> {
    let begin = row.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(row.labels.len());
    let answer: Vec<u32> =
        row.labels[begin..].iter().take_while(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect();
    let ids: Vec<u32> = row.input_ids[..begin].iter().map(|&id| id as u32).collect();
    let reference = processors.chat.decode(&answer, true)?.trim().to_string();
    Ok(Item {
        id: row.id,
        image: row.images.join(", "),
        prompt: processors.expand(&ids, row.pixel_values).map_err(|error| format!("{error:#}")),
        references: if reference.is_empty() { Vec::new() } else { vec![reference] },
    })
}
