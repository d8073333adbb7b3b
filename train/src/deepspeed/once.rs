//! JSON whose objects have each key once.
//!
//! # Source
//! DeepSpeed `runtime/config_utils.py`, `dict_raise_error_on_duplicate_keys`.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Parses a text.
///
/// # Errors
/// Not JSON, or a key that an object has twice, by its path.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Place("").deserialize(&mut deserializer)?;
    deserializer.end().map(|()| value)
}

/// The keys that lead to a value, with dots.
struct Place<'a>(&'a str);

impl Place<'_> {
    fn key(&self, key: &str) -> String {
        if self.0.is_empty() { key.to_string() } else { format!("{}.{key}", self.0) }
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Place(&self.key(&values.len().to_string())))? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            let path = self.key(&key);
            if values.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {path} twice")));
            }
            values.insert(key, object.next_value_seed(Place(&path))?);
        }
        Ok(values.into())
    }
}
