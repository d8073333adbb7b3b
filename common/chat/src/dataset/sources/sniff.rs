//! What a JSON file holds, from its first value.

use crate::dataset::object::Object;
use crate::dataset::rows::for_each_row;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

/// The content of a `.json` file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Json {
    /// A list; the keys of its first entry, if that is an object.
    List(Vec<String>),
    /// An object a line; the keys of the first.
    Lines(Vec<String>),
    /// One object; its keys.
    Object(Vec<String>),
    /// Something else, or nothing that can be read.
    Other,
}

/// Looks into a file.
pub(super) fn sniff(path: &Path) -> Json {
    let Ok(file) = File::open(path) else { return Json::Other };
    let mut reader = BufReader::new(file);
    if skip_space(&mut reader) == Some(b'[') {
        return Json::List(first_of_list(path));
    }
    let mut values = serde_json::Deserializer::from_reader(&mut reader).into_iter::<Keys>();
    match values.next() {
        Some(Ok(Keys(keys))) => match values.next() {
            None => Json::Object(keys),
            Some(_) => Json::Lines(keys),
        },
        _ => Json::Other,
    }
}

/// Skips a byte order mark and white space; the byte after them.
fn skip_space(reader: &mut impl BufRead) -> Option<u8> {
    loop {
        let bytes = reader.fill_buf().ok()?;
        let &byte = bytes.first()?;
        if !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(&byte) {
            return Some(byte);
        }
        reader.consume(1);
    }
}

fn first_of_list(path: &Path) -> Vec<String> {
    let mut keys = Vec::new();
    let Ok(file) = File::open(path) else { return keys };
    // A list that breaks off later fails when it is read.
    let _ = for_each_row(path, file, |row| {
        keys = object_keys(row.json.get());
        ControlFlow::Break(())
    });
    keys
}

/// The keys of an object's text; none for other JSON.
pub(super) fn object_keys(json: &str) -> Vec<String> {
    serde_json::from_str::<Object<'_>>(json)
        .map_or(Vec::new(), |object| object.iter().map(|(key, _)| key.into()).collect())
}

struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Keys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Names)
    }
}
