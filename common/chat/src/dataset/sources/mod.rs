//! Where the rows of a dataset are: a kind of file is a file here, and a row of [`KINDS`].

mod coco;
mod csv_table;
mod folder;
mod groups;
mod json_lines;
mod json_list;
mod parquet;
mod sniff;
mod text_files;
mod webdataset;

pub use folder::chat_file;
pub use parquet::{TableRow, Tables, TakeRow};

use super::rows::SourceRow;
use super::{keys, layouts};
use base::{Error, Result};
use folder::Listing;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Text files beside pictures come last: they are looked for where nothing else is found.
const KINDS: [&Kind; 7] = [
    &json_list::KIND,
    &json_lines::KIND,
    &csv_table::KIND,
    &coco::KIND,
    &parquet::KIND,
    &webdataset::KIND,
    &text_files::KIND,
];

/// The smallest dataset of one's own.
pub const EXAMPLE: &str =
    "the smallest dataset is a file captions.csv beside the pictures:\nimage,caption\ncat.jpg,A cat on a sofa.";

/// Receives the rows of a dataset in their order, until the end or its `Break`.
pub type Take<'t> = &'t mut dyn FnMut(SourceRow) -> ControlFlow<()>;

/// What a pass over the rows is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Texts and names; pictures that are cells of a table are not read.
    Texts,
    /// Everything.
    Whole,
}

/// A kind of file.
struct Kind {
    form: Form,
    /// Names of pictures are first of all relative to the folder; LLaVA's lists have them in `images/`.
    pictures_beside: bool,
    /// Datasets of this kind in a folder, and what is nearly one.
    find: fn(&Listing, &mut Findings) -> Result<()>,
    /// Hands on all rows.
    rows: fn(&Source, Pass, Take<'_>) -> Result<()>,
}

/// Kinds that are treated in a way of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Its rows are in one pass over files.
    Files,
    /// Its pictures are left out of the pass over texts.
    Tables,
    /// It is looked for where nothing else is found.
    TextFiles,
}

/// What a folder holds.
#[derive(Default)]
struct Findings {
    datasets: Vec<Found>,
    /// Files that look like a dataset and are none, with the reason.
    others: Vec<String>,
    /// Names of columns or keys that would make a dataset of one of them.
    renames: Vec<String>,
}

impl Findings {
    /// Notes a table, or a list of records, whose columns or keys are of no layout.
    fn note_columns(&mut self, file: &Path, what: &str, columns: &[&str]) {
        let columns_in_words = if columns.is_empty() { "none".to_owned() } else { columns.join(", ") };
        self.others.push(format!("{} ({what} {columns_in_words})", file.display()));
        self.renames.extend(renames(columns).map(|hint| format!("in {} {hint}", file.display())));
    }
}

/// What makes the columns of a table, or the keys of records, those of a layout: small letters, a line of names, or other names where
/// there are two.
fn renames(columns: &[&str]) -> Option<String> {
    let columns: Vec<&str> = columns.iter().copied().filter(|name| !name.is_empty()).collect();
    let rename = |pairs: Vec<(&str, &str)>| {
        let (from, to): (Vec<&str>, Vec<&str>) = pairs.into_iter().filter(|(from, to)| from != to).unzip();
        format!("rename {} to {}", from.join(", "), to.join(", "))
    };
    let small: Vec<String> = columns.iter().map(|name| name.to_lowercase()).collect();
    if layouts::name_of(small.iter().map(String::as_str)).is_some() {
        let pairs = columns.iter().copied().zip(small.iter().map(String::as_str));
        return Some(rename(pairs.filter(|(_, name)| keys::names_image(name) || layouts::is_key(name)).collect()));
    }
    let [first, second] = columns[..] else { return None };
    if [first, second].iter().any(|name| folder::has_ending(Path::new(name), &folder::PICTURES)) {
        return Some("write a first line image,caption: it names the columns".to_owned());
    }
    let pairs = match keys::names_image(&small[1]) {
        true => vec![(first, "caption"), (second, second)],
        false => vec![(first, if keys::names_image(first) { first } else { "image" }), (second, "caption")],
    };
    Some(format!("{}, if they are file names and captions", rename(pairs)))
}

/// A dataset in a folder.
struct Found {
    kind: &'static Kind,
    /// For people: `captions`.
    layout: String,
    /// In the order of their rows, relative to the folder.
    files: Vec<PathBuf>,
    /// A folder of pictures that only this layout has, as COCO's `train2017`.
    pictures: Option<String>,
}

/// A dataset that is found and described; its rows are read as often as they are asked for.
pub struct Source {
    folder: PathBuf,
    kind: &'static Kind,
    layout: String,
    files: Vec<PathBuf>,
    pictures: Option<String>,
    tables: Option<&'static Tables>,
}

impl Source {
    /// Finds the dataset that a folder holds, or that a file is. `tables` reads Parquet, where the program can.
    ///
    /// # Errors
    /// No such folder; no dataset in it, or several: with what was found and the smallest example.
    pub fn find(data: &Path, tables: Option<&'static Tables>) -> Result<Self> {
        let listing = Listing::of(data, tables)?;
        let mut found = Findings::default();
        for kind in KINDS {
            // With a chat.json, the other files of the folder are not looked at.
            if !found.datasets.is_empty() && (listing.is_chat_json() || kind.form == Form::TextFiles) {
                break;
            }
            (kind.find)(&listing, &mut found)?;
        }
        match found.datasets.len() {
            1 => {
                let Found { kind, layout, files, pictures } = found.datasets.remove(0);
                Ok(Self { folder: listing.folder, kind, layout, files, pictures, tables })
            }
            0 => Err(listing.nothing(data, &found)),
            _ => Err(listing.several(data, &found.datasets)),
        }
    }

    /// The dataset of a folder that is not the one that was asked for; without a look at text files, which may be many.
    fn find_here(folder: &Path, tables: Option<&'static Tables>) -> Option<Self> {
        let listing = Listing::of(folder, tables).ok()?;
        let mut found = Findings::default();
        for kind in KINDS.into_iter().filter(|kind| kind.form != Form::TextFiles) {
            (kind.find)(&listing, &mut found).ok()?;
        }
        let Found { kind, layout, files, pictures } = found.datasets.into_iter().next()?;
        Some(Self { folder: listing.folder, kind, layout, files, pictures, tables })
    }

    /// The folder that the names of pictures start from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folders in it where a picture is looked for, in this order; `""` is the folder itself.
    pub fn picture_folders(&self) -> Vec<&str> {
        let own = self.pictures.as_deref().into_iter();
        match self.kind.pictures_beside {
            true => own.chain(["", "images", "images_dl"]).collect(),
            false => ["images", "images_dl"].into_iter().chain(own).chain([""]).collect(),
        }
    }

    /// What it is, for people: `LLaVA conversations (chat.json)`.
    pub fn describe(&self) -> String {
        let name = |path: &PathBuf| path.display().to_string();
        match self.files.as_slice() {
            [one] => format!("{} ({})", self.layout, name(one)),
            [first, .., last] => {
                format!("{} ({} files, {} … {})", self.layout, self.files.len(), name(first), name(last))
            }
            [] => self.layout.clone(),
        }
    }

    /// Hands every row to `take`, numbered from 0, until the end or its `Break`.
    ///
    /// # Errors
    /// Files that are damaged or not as their layout has to be; a row's own faults are in the row.
    pub fn for_each_row(&self, pass: Pass, mut take: impl FnMut(SourceRow) -> ControlFlow<()>) -> Result<()> {
        let mut number = 0;
        (self.kind.rows)(self, pass, &mut |row| {
            number += 1;
            take(SourceRow { number: number - 1, ..row })
        })
    }

    /// SHA-256 over the rows' texts, and over the sizes of pictures that come with them.
    ///
    /// # Errors
    /// As [`Self::for_each_row`].
    pub fn sha256(&self) -> Result<String> {
        let mut identity = Identity::default();
        self.for_each_row(Pass::Texts, |row| {
            identity.add(&row);
            ControlFlow::Continue(())
        })?;
        Ok(self.identify(identity)?.0)
    }

    /// The identity of rows that were handed on, with what they leave out of a table's pictures; and their texts' size, bytes.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn identify(&self, identity: Identity) -> Result<(String, u64)> {
        let mut hashes = vec![identity.hash()];
        if let Some(tables) = self.tables.filter(|_| self.kind.form == Form::Tables) {
            for file in &self.files {
                hashes.push((tables.identity)(&self.folder.join(file))?);
            }
        }
        Ok((base::files::sha256_hex(hashes.join("\n").as_bytes()), identity.bytes))
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| self.folder.join(file))
    }
}

/// SHA-256 over rows, taken while they are read.
#[derive(Default)]
pub struct Identity {
    /// Of the rows so far.
    chain: [u8; 32],
    /// Their texts, bytes.
    bytes: u64,
}

impl Identity {
    /// One more row.
    pub fn add(&mut self, row: &SourceRow) {
        let text = row.json.get();
        self.bytes += text.len() as u64;
        let sizes: Vec<u64> = row.attachments.iter().map(|attachment| attachment.content.bytes()).collect();
        let fault = row.fault.as_deref().unwrap_or_default();
        let row = base::files::sha256(format!("{}\0{text}\0{sizes:?}\0{fault}", text.len()).as_bytes());
        self.chain = base::files::sha256(&[self.chain, row].concat());
    }

    fn hash(&self) -> String {
        self.chain.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Refuses a table with two columns of one name: of each row only one of them would be read. Columns without a name do not count.
fn require_distinct<'c>(place: &str, columns: impl Iterator<Item = &'c str>) -> Result<()> {
    let mut names = HashSet::new();
    for name in columns.filter(|name| !name.is_empty()) {
        if !names.insert(name) {
            let remedy = "rename one, or remove it";
            return Err(Error::invalid(place, format!("the column {name:?} twice"), "each name once", remedy));
        }
    }
    Ok(())
}

/// JSON text of a value that was made here.
fn raw(value: &impl serde::Serialize, place: &str) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(value)
        .map_err(|error| Error::invalid(place, error, "a row", "report this as a bug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_other_names_are_renamed() {
        for (columns, expected) in [
            (&["图片", "描述"][..], Some("rename 图片, 描述 to image, caption, if they are file names and captions")),
            (&["描述", "image"], Some("rename 描述 to caption, if they are file names and captions")),
            (&["file_name", "label"], Some("rename label to caption, if they are file names and captions")),
            (&["Image", "Caption", "Note"], Some("rename Image, Caption to image, caption")),
            (&["image", "Caption"], Some("rename Caption to caption")),
            (&["cat.JPG", "A cat."], Some("write a first line image,caption: it names the columns")),
            (&["a", "b", "c"], None),
            (&["question"], None),
            (&[], None),
        ] {
            assert_eq!(renames(columns).as_deref(), expected, "{columns:?}");
        }
    }
}
