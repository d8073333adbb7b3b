//! Where pictures come from: a folder, a dataset, shards.

use super::line::Line;
use crate::args::CaptionArgs;
use crate::engine::Processors;
use anyhow::{Context, Result, bail, ensure};
use base::{Attachment, Error, IGNORE_INDEX};
use chat::dataset::{self, Questions, ReadRecord};
use images::image_files::ImageSources;
use model::batch::PackedBatch;
use shards::{Row, ShardSet};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The folder that is read, for errors.
pub(super) const FOLDER: &str = "a folder of pictures";
/// Endings of the files that a folder is searched for.
const PICTURES: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];

/// One picture to caption.
pub(super) struct Item {
    /// `id` of the dataset, or the file's path in the folder without ending.
    pub id: String,
    /// The file's path in the folder.
    pub image: String,
    /// The question with the picture, or why they cannot be used.
    pub prompt: Result<PackedBatch, String>,
    /// Answers that the source itself has.
    pub references: Vec<String>,
}

/// An open source of pictures.
#[allow(clippy::large_enum_variant)] // One exists per run.
pub(super) enum Source {
    /// Files, all with the same question.
    Folder { files: Vec<PictureFile>, question: String, system: String },
    /// Rows of a dataset, pictures in folders, in images.zip or in tar files.
    Dataset { files: ImageSources, records: Vec<(ReadRecord, Vec<Attachment>)>, system: String },
    /// Rows of shards.
    Shards(ShardSet),
}

impl Source {
    /// Opens what the command line names.
    ///
    /// # Errors
    /// A missing folder, a malformed dataset (with line and column), shards of another model.
    pub fn open(args: &CaptionArgs, processors: &Processors) -> Result<Self> {
        let system = processors.chat.quote(&args.system_prompt);
        match (&args.source.images, &args.source.data, &args.source.shards) {
            (Some(dir), None, None) => Ok(Self::Folder {
                files: picture_files(dir)?,
                question: processors.typed_question(args.question()),
                system,
            }),
            (None, Some(dir), None) => {
                let source = dataset::Source::find(dir, None)?;
                let files = ImageSources::find_in(source.folder(), &source.picture_folders())?;
                let questions = Questions::new(vec![processors.typed_question(args.question())], 0);
                Ok(Self::Dataset { files, records: dataset::read_all(&source, &questions)?, system })
            }
            (None, None, Some(dir)) => {
                let shards = ShardSet::open(dir, args.split.into())?;
                shards.metadata().check(&processors.chat, &processors.images)?;
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

    /// Refuses lines that are of other pictures than those in their places: files were added before them, or removed.
    ///
    /// # Errors
    /// The first such line.
    pub fn check(&self, lines: &[Line], output: &Path) -> Result<()> {
        let Self::Folder { files, .. } = self else { return Ok(()) };
        for (number, (line, file)) in lines.iter().zip(files).enumerate() {
            let name = &file.name;
            ensure!(
                line.image == *name,
                "{}: line {} is of {}, where the folder now has {name}; give another --output, or --overwrite true to start \
                 a new file",
                output.display(),
                number + 1,
                line.image
            );
        }
        Ok(())
    }

    /// Picture `index` with its question.
    ///
    /// # Errors
    /// A damaged shard. A bad picture or row is the item's own matter.
    pub fn item(&self, index: usize, processors: &Processors) -> Result<Item> {
        Ok(match self {
            Self::Folder { files, question, system } => file_item(&files[index], question, system, processors),
            Self::Dataset { files, records, system } => record_item(files, index, &records[index], system, processors),
            Self::Shards(shards) => shard_item(shards.read_row(index)?, processors)?,
        })
    }
}

/// A picture of a folder.
pub(super) struct PictureFile {
    path: PathBuf,
    /// Its path in the folder.
    name: String,
    /// The name without ending; with it where two would be the same.
    id: String,
}

/// The pictures of a folder in the order of their names, then those of the folders in it.
fn picture_files(dir: &Path) -> Result<Vec<PictureFile>> {
    let mut names = Vec::new();
    add_pictures(dir, Path::new(""), &mut Vec::new(), &mut names)?;
    ensure!(!names.is_empty(), "{}: no pictures ({}); check the path", dir.display(), PICTURES.join(", "));
    let stem = |name: &Path| name.with_extension("").to_string_lossy().into_owned();
    let mut of_stem: HashMap<String, usize> = HashMap::new();
    names.iter().for_each(|name| *of_stem.entry(stem(name)).or_default() += 1);
    let file = |name: PathBuf| {
        let (path, text, stem) = (dir.join(&name), name.to_string_lossy().into_owned(), stem(&name));
        PictureFile { path, id: if of_stem[&stem] > 1 { text.clone() } else { stem }, name: text }
    };
    Ok(names.into_iter().map(file).collect())
}

/// Adds the pictures of `dir/below`, by their paths in `dir`. Hidden folders are left out, and a link to one of the folders that it
/// is in (`above`), which would be followed for ever.
fn add_pictures(dir: &Path, below: &Path, above: &mut Vec<PathBuf>, names: &mut Vec<PathBuf>) -> Result<()> {
    let here = if below.as_os_str().is_empty() { dir.to_path_buf() } else { dir.join(below) };
    let real = here.canonicalize().map_err(cli::inputs::unread(&here, FOLDER))?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    let (mut pictures, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&here).map_err(Error::io(&here))? {
        let name = entry.map_err(Error::io(&here))?.file_name();
        let path = below.join(&name);
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if PICTURES.contains(&ending.as_str()) {
            pictures.push(path);
        } else if here.join(&name).is_dir() && !name.to_string_lossy().starts_with('.') {
            folders.push(path);
        }
    }
    pictures.sort();
    folders.sort();
    names.extend(pictures);
    for folder in folders {
        add_pictures(dir, &folder, above, names)?;
    }
    above.pop();
    Ok(())
}

fn file_item(file: &PictureFile, question: &str, system: &str, processors: &Processors) -> Item {
    Item {
        id: file.id.clone(),
        image: file.name.clone(),
        prompt: (processors.read_image(&file.path))
            .and_then(|image| processors.ask(&[image], question, system))
            .map_err(|error| format!("{error:#}")),
        references: Vec::new(),
    }
}

fn record_item(
    files: &ImageSources,
    number: usize,
    (record, attachments): &(ReadRecord, Vec<Attachment>),
    system: &str,
    processors: &Processors,
) -> Item {
    let record = match record {
        Ok(record) => record,
        Err((names, error)) => {
            let id = names.id.clone().unwrap_or_else(|| format!("row {number}"));
            let image = names.image.clone().unwrap_or_default();
            return Item { id, image, prompt: Err(error.to_string()), references: Vec::new() };
        }
    };
    let asked = record.first_question();
    let prompt = asked.context("no question (a turn of human or user)").and_then(|(question, images, _)| {
        let read = |name: &String| processors.process_image(name, &files.read_with(attachments, name)?);
        let system = record.system.as_deref().unwrap_or(system);
        processors.ask(&images.iter().map(read).collect::<Result<Vec<_>>>()?, question, system)
    });
    Item {
        id: record.id.clone(),
        image: record.images.join(", "),
        prompt: prompt.map_err(|error| format!("{error:#}")),
        references: asked.and_then(|(_, _, answer)| answer).map(str::to_owned).into_iter().collect(),
    }
}

/// The row up to its first supervised token is the prompt; the supervised ones after it are the answer.
fn shard_item(row: Row, processors: &Processors) -> Result<Item> {
    let begin = row.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(row.labels.len());
    let answer: Vec<u32> =
        row.labels[begin..].iter().take_while(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect();
    let reference = processors.chat.decode(&answer, true)?.trim().to_string();
    Ok(Item {
        image: row.images.join(", "),
        prompt: processors.prompt_of_row(&row).map_err(|error| format!("{error:#}")),
        id: row.id,
        references: if reference.is_empty() { Vec::new() } else { vec![reference] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_folders_within_come_last_and_ids_are_unique() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path();
        for name in ["b.png", "a.bmp", "a.png", "notes.txt", "a sub/a.png", "a sub/deep/c.JPG", ".hidden/d.png"] {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, "").expect("written");
        }
        std::os::unix::fs::symlink("..", dir.join("a sub/up")).expect("a link");
        let files = picture_files(dir).expect("pictures");
        let found: Vec<(&str, &str)> = files.iter().map(|file| (file.name.as_str(), file.id.as_str())).collect();
        let expected = [
            ("a.bmp", "a.bmp"),
            ("a.png", "a.png"),
            ("b.png", "b"),
            ("a sub/a.png", "a sub/a"),
            ("a sub/deep/c.JPG", "a sub/deep/c"),
        ];
        assert_eq!(found, expected);
        let error = picture_files(&dir.join("none")).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("expected a folder of pictures") && error.contains("check the path"), "{error}");
    }
}
