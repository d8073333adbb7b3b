//! WebDataset: tar files in which neighbouring members of one name, up to its first dot, are a row.

use super::folder::PICTURES;
use super::{Findings, Form, Kind, Listing, Source, Take, groups, raw};
use crate::dataset::layouts;
use crate::dataset::python_json::MAX_ROW_BYTES;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::json::Distinct;
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
            Ok(Distinct(Value::Object(object))) => self.json = Some(object),
            Ok(Distinct(_)) => self.fault = Some(format!("{member}: another value, expected a JSON object")),
            Err(error) => self.fault = Some(format!("{member}: {}", base::json::message(&error))),
        }
    }

    /// Puts several pictures into the order of their markers, or gives the fault: of a caption's pictures one may be a mask, or
    /// an edited version of the other, and those of turns need an order, which a tar's is not (writers sort members by name).
    fn order_pictures(&mut self) -> Option<String> {
        if self.attachments.len() < 2 {
            return None;
        }
        let names: Vec<&str> = self.attachments.iter().map(|attached| attached.name.as_str()).collect();
        let (count, joined) = (names.len(), names.join(", "));
        let Some(object) = self.json.as_ref().filter(|object| has_turns(object)) else {
            return Some(format!("{count} pictures for one caption ({joined}), expected one"));
        };
        let listed = ["images", "image"].iter().find_map(|key| object.get(*key).filter(|value| !value.is_null()));
        let order = match listed {
            Some(listed) => self.as_listed(listed),
            None => self.by_number(),
        };
        let Some(order) = order else {
            let lacking = match listed {
                Some(listed) => format!("the JSON member lists others ({listed})"),
                None => "nothing says in which order they are".to_owned(),
            };
            return Some(format!(
                "{count} pictures ({joined}), and {lacking}; expected \"images\" with their names in the JSON member, or numbers \
                 (key.0.jpg, key.1.jpg)"
            ));
        };
        let mut pictures: Vec<Option<Attachment>> =
            std::mem::take(&mut self.attachments).into_iter().map(Some).collect();
        self.attachments = order.into_iter().filter_map(|index| pictures[index].take()).collect();
        None
    }

    /// Indices of the pictures in the order of a list of names: of the member, of its file, or of its ending, with or without the
    /// format's.
    fn as_listed(&self, listed: &Value) -> Option<Vec<usize>> {
        let names: Vec<&str> = match listed {
            Value::Array(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
            _ => return None,
        };
        let mut order = Vec::new();
        for name in names {
            let is_it = |attached: &Attachment| {
                let (member, ending) = (attached.name.as_str(), self.ending(&attached.name));
                let file = member.rsplit('/').next().unwrap_or_default();
                let bare = ending.rsplit_once('.').map_or(ending, |(bare, _)| bare);
                [member, file, ending, bare].contains(&name.trim_start_matches("./"))
            };
            let mut found = (0..self.attachments.len()).filter(|&index| is_it(&self.attachments[index]));
            match (found.next(), found.next()) {
                (Some(index), None) if !order.contains(&index) => order.push(index),
                _ => return None,
            }
        }
        (order.len() == self.attachments.len()).then_some(order)
    }

    /// Indices of the pictures by the numbers at the end of their names: `key.0.jpg`, `key.image10.jpg`.
    fn by_number(&self) -> Option<Vec<usize>> {
        let number = |attached: &Attachment| {
            let (bare, _) = self.ending(&attached.name).rsplit_once('.')?;
            let digits = bare.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            Some((bare[..digits].to_owned(), bare[digits..].parse::<u64>().ok()?))
        };
        let numbers: Vec<(String, u64)> = self.attachments.iter().map(number).collect::<Option<_>>()?;
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by_key(|&index| numbers[index].1);
        let is_distinct = order.windows(2).all(|pair| numbers[pair[0]].1 != numbers[pair[1]].1);
        let is_one_series = numbers.iter().all(|(name, _)| *name == numbers[0].0);
        (is_distinct && is_one_series).then_some(order)
    }

    /// What follows on the key in the name of a member.
    fn ending<'m>(&self, member: &'m str) -> &'m str {
        member.strip_prefix(self.key.as_str()).unwrap_or(member).trim_start_matches('.')
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
    let fault = sample.fault.take().or_else(|| sample.order_pictures());
    let (object, attachments) = sample.object();
    let json = raw(&object, &place)?;
    let place = RowPlace::Named(place);
    Ok(take(SourceRow { number: 0, place, constants: 0, json, attachments, fault }))
}
