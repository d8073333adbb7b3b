//! A JSON object as its keys and the texts of their values: nothing is parsed before it is needed.

use super::{Fault, RecordError, RowPlace, SourceRow};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Keys and values in the order of the file, repeated keys included.
pub(super) struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with conversations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'a> Object<'a> {
    /// Every key with its value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), *value))
    }

    /// The keys' names, for messages.
    pub(super) fn names(&self) -> String {
        self.0.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The value of a key in one of its spellings; null counts as absent. `Err` for a key that is there twice, or in two
    /// spellings with values.
    pub(super) fn get(&self, spellings: &[&'static str]) -> Result<Option<(&'static str, &'a RawValue)>, String> {
        let mut found = None;
        for &name in spellings {
            let mut values = self.iter().filter(|(key, _)| *key == name);
            let value = values.next().map(|(_, value)| value);
            if values.next().is_some() {
                return Err(format!("duplicate field `{name}`"));
            }
            let Some(value) = value.filter(|value| kind(value) != Kind::Null) else { continue };
            if let Some((other, _)) = found {
                return Err(format!("both `{other}` and `{name}`, expected one of them"));
            }
            found = Some((name, value));
        }
        Ok(found)
    }
}

/// What a value is, by its first byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Number,
    Text,
    List,
    Object,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Boolean => "true or false",
            Self::Number => "a number",
            Self::Text => "text",
            Self::List => "a list",
            Self::Object => "an object",
        })
    }
}

pub(super) fn kind(value: &RawValue) -> Kind {
    match value.get().as_bytes().first() {
        Some(b'"') => Kind::Text,
        Some(b'[') => Kind::List,
        Some(b'{') => Kind::Object,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'n') | None => Kind::Null,
        Some(_) => Kind::Number,
    }
}

/// Parses parts of one row; faults come with their places in the file.
#[derive(Clone, Copy)]
pub(super) struct RowParser<'a>(pub(super) &'a SourceRow);

impl<'a> RowParser<'a> {
    /// The row itself.
    pub(super) fn object(self) -> Result<Object<'a>, RecordError> {
        if let Some(fault) = &self.0.fault {
            return Err(self.fault(fault));
        }
        self.parse(&self.0.json)
    }

    /// A part of the row.
    pub(super) fn parse<T: Deserialize<'a>>(self, value: &'a RawValue) -> Result<T, RecordError> {
        serde_json::from_str(value.get()).map_err(|error| {
            let offset = offset_of(value.get(), error.line(), error.column());
            self.fault_at(value, offset, &base::json::reason(&error))
        })
    }

    /// A value that has to be text.
    pub(super) fn text(self, key: &str, value: &'a RawValue, expected: &str) -> Result<String, RecordError> {
        if kind(value) == Kind::Text { self.owned(value) } else { Err(self.unexpected(key, value, expected)) }
    }

    /// As [`Self::parse`], for values that borrow nothing.
    pub(super) fn owned<T: DeserializeOwned>(self, value: &'a RawValue) -> Result<T, RecordError> {
        self.parse(value)
    }

    /// "found a number, expected text", with the place of the value.
    pub(super) fn unexpected(self, key: &str, value: &RawValue, expected: &str) -> RecordError {
        self.fault_at(value, 0, &format!("{key}: found {}, expected {expected}", kind(value)))
    }

    /// A fault of the row as a whole.
    pub(super) fn fault(self, what: &str) -> RecordError {
        self.fault_at(&self.0.json, 0, what)
    }

    fn fault_at(self, value: &RawValue, offset: usize, what: &str) -> RecordError {
        let row = self.0.json.get();
        // `value` is a part of the row's text.
        let start = (value.get().as_ptr() as usize).saturating_sub(row.as_ptr() as usize);
        let before = &row.as_bytes()[..(start + offset).min(row.len())];
        let place = match &self.0.place {
            RowPlace::Named(place) => place.clone(),
            RowPlace::Text { file, line, column } => {
                let newlines = before.iter().filter(|&&byte| byte == b'\n').count() as u64;
                let column = match before.iter().rposition(|&byte| byte == b'\n') {
                    Some(newline) => (before.len() - newline) as u64,
                    None => column + before.len() as u64,
                };
                format!("{file} line {}, column {column}", line + newlines)
            }
        };
        RecordError { place: Some(place), ..RecordError::new(Fault::BadRow, what) }
    }
}

/// Byte offset of a place that serde_json names: line and column count from 1.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    start + column.saturating_sub(1)
}
