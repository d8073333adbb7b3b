//! WebDataset: tar files in which neighbouring members of one name, up to its first dot, are a row.

use super::folder::PICTURES;
use super::{Findings, Form, Kind, Listing, Source, Take, groups, raw};
use crate::dataset::layouts;
use crate::dataset::python_json::MAX_ROW_BYTES;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Attachment, Content, Error, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

pub(super) const KIND: Kind = Kind { form: Form::Files, pictures_beside: true, find, rows };
const VIDEO: [&str; 5] = ["mp4", "avi", "mkv", "mov", "webm"];
const AUDIO: [&str; 4] = ["mp3", "wav", "flac", "m4a"];
const TEXTS: [&str; 2] = ["txt", "caption"];

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    let packed = listing
        .with_ending(&["gz", "tgz", "zst"])
        .filter(|file| file.to_string_lossy().contains(".tar") || super::folder::has_ending(file, &["tgz"]));
    found.others.extend(packed.map(|file| format!("{} (compressed; unpack it to a .tar)", file.display())));
    let files = listing.with_ending(&["tar"]).cloned().collect();
    groups::add(&KIND, "WebDataset", files, found)
}

/// The members of a row so far.
#[derive(Default)]
struct Sample {
    key: String,
    attachments: Vec<Attachment>,
    caption: Option<String>,
    json: Option<Map<String, Value>>,
    /// Members of other kinds, by ending.
    others: Map<String, Value>,
    fault: Option<String>,
}

fn rows(source: &Source, _: super::Pass, take: Take<'_>) -> Result<()> {
    for path in source.paths() {
        if tar_rows(&path, take)? == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

fn tar_rows(path: &Path, take: Take<'_>) -> Result<ControlFlow<()>> {
    let name = file_name(path);
    let file = Arc::new(File::open(path).map_err(Error::io(path))?);
    // A handle of its own, because reading moves its position.
    let mut archive = tar::Archive::new(File::open(path).map_err(Error::io(path))?);
    let bytes = file.metadata().map_err(Error::io(path))?.len();
    let mut sample = Sample::default();
    let damaged = |error: &dyn std::fmt::Display, after: &str| {
        let place = format!("{}: after {after:?}", path.display());
        Error::invalid(place, error, "a whole tar file", "download it again, or make it again")
    };
    let entries = archive.entries_with_seek().map_err(|error| damaged(&error, ""))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged(&error, &sample.key))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let member = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let Some((key, ending)) = split(&member) else { continue };
        if key != sample.key {
            let finished = std::mem::replace(&mut sample, Sample { key: key.to_owned(), ..Sample::default() });
            if hand_on(finished, &name, take)? == ControlFlow::Break(()) {
                return Ok(ControlFlow::Break(()));
            }
        }
        let (offset, size) = (entry.raw_file_position(), entry.size());
        if offset + size > bytes {
            return Err(damaged(&format!("{member} of {size} bytes beyond the file's end"), &sample.key));
        }
        let last = ending.rsplit('.').next().unwrap_or_default();
        if PICTURES.contains(&last) {
            let content = Content::Range { file: file.clone(), offset, bytes: size };
            sample.attachments.push(Attachment { name: member, content });
        } else if TEXTS.contains(&last) || last == "json" {
            let mut text = Vec::new();
            entry.by_ref().take(MAX_ROW_BYTES).read_to_end(&mut text).map_err(|error| damaged(&error, &member))?;
            sample.text(&member, last, text);
        } else {
            let media = if VIDEO.contains(&last) { "video" } else { last };
            let media = if AUDIO.contains(&last) { "audio" } else { media };
            sample.others.insert(media.to_owned(), Value::String(member));
        }
    }
    hand_on(sample, &name, take)
}

/// `a/b.left.jpg` is `left.jpg` of `a/b`; hidden files, which macOS adds, are of no row.
fn split(member: &str) -> Option<(&str, String)> {
    let start = member.rfind('/').map_or(0, |slash| slash + 1);
    let (stem, ending) = member[start..].split_once('.')?;
    (!stem.is_empty()).then(|| (&member[..start + stem.len()], ending.to_ascii_lowercase()))
}

impl Sample {
    fn text(&mut self, member: &str, ending: &str, text: Vec<u8>) {
        let Ok(text) = String::from_utf8(text) else {
            self.fault = Some(format!("{member}: text that is not UTF-8"));
            return;
        };
        if ending != "json" {
            self.caption = Some(text.trim_start_matches('\u{feff}').trim().to_owned());
            return;
        }
        match serde_json::from_str(&text) {
            Ok(object) => self.json = Some(object),
            Err(error) => self.fault = Some(format!("{member}: {}, expected an object", base::json::message(&error))),
        }
    }

    /// The fault of a caption with several pictures: one of them may be a mask, or an edited version of the other. A row
    /// with turns says itself where its pictures are.
    fn several_pictures(&self) -> Option<String> {
        let has_turns = self.json.as_ref().is_some_and(has_turns);
        (self.attachments.len() > 1 && !has_turns).then(|| {
            let names: Vec<&str> = self.attachments.iter().map(|attached| attached.name.as_str()).collect();
            format!("{} pictures for one caption ({}), expected one", names.len(), names.join(", "))
        })
    }

    /// The row: of a JSON member its turns, else the text beside it, else its caption.
    fn object(self) -> (Map<String, Value>, Vec<Attachment>) {
        let Self { key, attachments, caption, json, others, .. } = self;
        let mut object = match (json, caption) {
            (Some(object), None) => object,
            (Some(object), Some(_)) if has_turns(&object) => object,
            (_, Some(caption)) => Map::from_iter([("caption".to_owned(), Value::String(caption))]),
            (None, None) => Map::new(),
        };
        if object.get("id").is_none_or(Value::is_null) {
            object.insert("id".to_owned(), Value::String(key));
        }
        if !attachments.is_empty() {
            object.remove("images");
            object.insert("image".to_owned(), attachments.iter().map(|attached| json!(attached.name)).collect());
        }
        for (ending, member) in others {
            object.entry(ending).or_insert(member);
        }
        (object, attachments)
    }
}

fn has_turns(object: &Map<String, Value>) -> bool {
    layouts::name_of(object.keys().map(String::as_str)).is_some_and(|name| name != "captions")
}

fn hand_on(mut sample: Sample, file: &str, take: Take<'_>) -> Result<ControlFlow<()>> {
    if sample.key.is_empty() {
        return Ok(ControlFlow::Continue(()));
    }
    let place = format!("{file}: {}", sample.key);
    let fault = sample.fault.take().or_else(|| sample.several_pictures());
    let (object, attachments) = sample.object();
    let json = raw(&object, &place)?;
    let place = RowPlace::Named(place);
    Ok(take(SourceRow { number: 0, place, constants: 0, json, attachments, fault }))
}
