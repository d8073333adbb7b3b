//! COCO captions: one object with lists of images and of annotations. A row is an annotation.

use super::sniff::{Json, sniff};
use super::{Findings, Form, Found, Kind, Listing, Source, Take, raw};
use crate::dataset::record::id_text;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Error, Result};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;

pub(super) const KIND: Kind = Kind { form: Form::Files, pictures_beside: true, find, rows };
const IMAGES: &str = "images";
const ANNOTATIONS: &str = "annotations";
/// What a reader stops with when it has all that it wants; not shown.
const STOPPED: &str = "stopped";

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    for file in listing.with_ending(&["json"]) {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Json::Object(keys) = sniff(&listing.path(file)) else { continue };
        if ![IMAGES, ANNOTATIONS].iter().all(|key| keys.iter().any(|found| found == key)) {
            let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
            found.others.push(format!("{} (an object with the keys {keys})", file.display()));
            continue;
        }
        // captions_train2017.json is about the pictures in train2017/.
        let pictures = stem.split_once('_').map(|(_, name)| name.to_owned());
        let pictures = pictures.filter(|name| listing.folder.join(name).is_dir());
        found.datasets.push(Found { kind: &KIND, layout: "COCO captions".into(), files: vec![file.clone()], pictures });
    }
    Ok(())
}

#[derive(Deserialize)]
struct Image<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation<'a> {
    #[serde(borrow)]
    image_id: &'a RawValue,
    caption: Option<String>,
}

#[derive(serde::Serialize)]
struct Row<'a> {
    /// Captions of one picture have one id, so that none of them is held out for validation alone.
    id: &'a str,
    image: &'a str,
    caption: Option<String>,
}

fn rows(source: &Source, _: super::Pass, take: Take<'_>) -> Result<()> {
    for path in source.paths() {
        let names = image_names(&path)?;
        let file = file_name(&path);
        let (mut number, mut failed, mut stopped) = (0, None, false);
        for_each_of(&path, ANNOTATIONS, &mut |json: &RawValue| {
            let place = format!("{file} annotation {number}");
            number += 1;
            let row = row(json, &names, place).map_err(|error| failed = Some(error));
            stopped = row.map_or(true, |row| take(row) == ControlFlow::Break(()));
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match failed {
            Some(error) => return Err(error),
            None if stopped => return Ok(()),
            None => {}
        }
    }
    Ok(())
}

fn row(json: &RawValue, names: &HashMap<String, String>, place: String) -> Result<SourceRow> {
    let mut fault = None;
    let annotation = serde_json::from_str::<Annotation<'_>>(json.get());
    let json = match annotation {
        Err(error) => {
            fault = Some(format!("found {}, expected image_id and caption", base::json::message(&error)));
            raw(&Value::Null, &place)?
        }
        Ok(Annotation { image_id, caption }) => {
            let id = id_text(image_id).unwrap_or_default();
            let image = names.get(&id).map_or("", String::as_str);
            if image.is_empty() {
                fault = Some(format!("image_id {}: no such entry in the list of images", image_id.get()));
            }
            raw(&Row { id: &id, image, caption }, &place)?
        }
    };
    Ok(SourceRow { number: 0, place: RowPlace::Named(place), constants: 0, json, attachments: Vec::new(), fault })
}

/// File names by id. They are what memory holds of the file.
fn image_names(path: &Path) -> Result<HashMap<String, String>> {
    let mut names = HashMap::new();
    for_each_of(path, IMAGES, &mut |json: &RawValue| {
        if let Ok(Image { id, file_name }) = serde_json::from_str(json.get())
            && let Some(id) = id_text(id)
        {
            names.insert(id, file_name);
        }
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

type Each<'f> = &'f mut dyn FnMut(&RawValue) -> ControlFlow<()>;

/// Hands on the entries of one list of the file's object.
fn for_each_of(path: &Path, key: &'static str, each: Each<'_>) -> Result<()> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(file));
    match (Lists { key, each }).deserialize(&mut json) {
        Err(error) if !error.to_string().starts_with(STOPPED) => {
            let place = format!("{}: line {}, column {}", path.display(), error.line(), error.column());
            let found = base::json::reason(&error);
            Err(Error::invalid(place, found, "COCO captions", "repair the file, or download it again"))
        }
        _ => Ok(()),
    }
}

/// The file's object.
struct Lists<'f> {
    key: &'static str,
    each: Each<'f>,
}

impl<'de> DeserializeSeed<'de> for Lists<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Lists<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with images and annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == self.key {
                map.next_value_seed(Entries(&mut *self.each))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// One of its lists.
struct Entries<'f>(Each<'f>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Box<RawValue>>()? {
            if (self.0)(&entry) == ControlFlow::Break(()) {
                return Err(serde::de::Error::custom(STOPPED));
            }
        }
        Ok(())
    }
}
