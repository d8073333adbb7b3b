//! Reads an object of a `config.json` field by field, with its place for messages.

use super::{Activation, WeightDtype};
use base::fields::{self, Place, Row, generation, pretrained};
use base::json::OneOrMany;
use base::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// The place of a value: file and keys.
#[derive(Clone)]
pub(crate) struct At(String);

/// A type that fields have, and its name in messages.
pub(crate) trait FieldType: DeserializeOwned {
    const NAME: &'static str;
}

macro_rules! field_types {
    ($($name:literal: $($type:ty),*;)*) => { $($(impl FieldType for $type { const NAME: &'static str = $name; })*)* };
}

field_types! {
    "a whole number from 0": usize, u32;
    "a number": f64;
    "true or false": bool;
    "a text": String;
    "a list of texts": Vec<String>;
    "a number or a list of numbers": OneOrMany<usize>, OneOrMany<u32>, OneOrMany<i64>;
}

impl<T: FieldType> FieldType for Option<T> {
    const NAME: &'static str = T::NAME;
}

/// An object and its place.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    pub(crate) at: At,
}

impl At {
    pub(crate) fn file(path: &Path) -> Self {
        Self(path.display().to_string())
    }

    fn key(&self, key: &str) -> Self {
        Self(format!("{}: {key}", self.0))
    }

    pub(crate) fn invalid(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl ToString,
        remedy: impl ToString,
    ) -> Error {
        Error::invalid(format!("{}: {key}", self.0), found, expected, remedy)
    }

    pub(crate) fn check(&self, holds: bool, key: &str, found: impl ToString, expected: impl ToString) -> Result<()> {
        if holds { Ok(()) } else { Err(self.invalid(key, found, expected, "correct config.json")) }
    }

    /// As [`At::check`], for a model that is not implemented: another value in the file would be wrong.
    pub(crate) fn require(&self, holds: bool, key: &str, found: impl ToString, expected: impl ToString) -> Result<()> {
        if holds { Ok(()) } else { Err(self.invalid(key, found, expected, "take a model without it")) }
    }

    /// Another architecture than the known ones.
    pub(crate) fn wrong_model_type(&self, found: Option<&str>, known: &[&str]) -> Error {
        let found = found.map_or("nothing".to_string(), |found| format!("\"{found}\""));
        self.invalid("model_type", found, known.join(" or "), "give the directory of such a model")
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>, at: At) -> Self {
        Self { object, at }
    }

    /// `model_type`, if there is one.
    pub(crate) fn model_type(&self) -> Result<Option<&'a str>> {
        match self.object.get("model_type") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.at.invalid("model_type", other, "a text", "correct config.json")),
        }
    }

    /// A field's value, or `default` where the field is absent. `null` is a value only of an `Option`.
    pub(crate) fn or<T: FieldType>(&self, key: &str, default: T) -> Result<T> {
        match self.object.get(key) {
            Some(value) => self.parse(key, value),
            None => Ok(default),
        }
    }

    /// A field's value, unless it is absent or `null`.
    pub(crate) fn get<T: FieldType>(&self, key: &str) -> Result<Option<T>> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.parse(key, value).map(Some),
        }
    }

    fn parse<T: FieldType>(&self, key: &str, value: &Value) -> Result<T> {
        let wrong = |_| self.at.invalid(key, value, T::NAME, "correct config.json");
        serde_json::from_value(value.clone()).map_err(wrong)
    }

    /// An object within the object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, at: self.at.key(key) })),
            Some(other) => Err(self.at.invalid(key, other, "an object", "correct config.json")),
        }
    }

    /// No fields at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    pub(crate) fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.get::<String>(key)? else { return Ok(default) };
        let known = || Activation::ALL.map(Activation::name).join(", ");
        Activation::from_name(&name)
            .ok_or_else(|| self.at.invalid(key, name, known(), "take a model with one of these"))
    }

    /// A probability that is written back; it is not applied, and training says so.
    pub(crate) fn dropout(&self, key: &str) -> Result<f64> {
        let found = self.get(key)?.unwrap_or(0.0);
        self.at.check((0.0..1.0).contains(&found), key, found, "a probability from 0 to below 1")?;
        Ok(found)
    }

    /// Checks that every field is in the table or one that all configurations have; `kind` says what the object describes.
    pub(crate) fn check(&self, own: &[Row], kind: &str) -> Result<()> {
        self.check_all(&[own], kind)
    }

    /// As [`Fields::check`], with several tables.
    pub(crate) fn check_all(&self, own: &[&[Row]], kind: &str) -> Result<()> {
        let tables = [own, &[pretrained::FIELDS, generation::FIELDS]].concat();
        self.check_only(&tables, kind)
    }

    /// Checks that every field is in one of the tables.
    pub(crate) fn check_only(&self, tables: &[&[Row]], kind: &str) -> Result<()> {
        let place = Place { place: &self.at.0, kind, remedy: "use a model without it" };
        fields::check(self.object, tables, place)
    }
}

/// Format of the weights: the first of the objects that says one; float32 when none does, as in transformers.
pub(crate) fn dtype(objects: &[&Fields<'_>]) -> Result<WeightDtype> {
    for object in objects {
        for key in ["dtype", "torch_dtype"] {
            let Some(name) = object.get::<String>(key)? else { continue };
            return WeightDtype::from_torch_name(&name)
                .ok_or_else(|| object.at.invalid(key, name, "float32, bfloat16 or float16", "convert the weights"));
        }
    }
    Ok(WeightDtype::F32)
}
