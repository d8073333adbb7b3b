//! JSON in which no object has a key twice: a map would keep the last value and lose the others.
//!
//! # Source
//! DeepSpeed `runtime/config_utils.py`, `dict_raise_error_on_duplicate_keys`.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// A value, all of it. A key that an object has twice is an error that names its path.
#[derive(Clone, Debug, PartialEq)]
pub struct Distinct(pub Value);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Path("").deserialize(deserializer).map(Self)
    }
}

/// The keys that lead to a value, with dots.
struct Path<'a>(&'a str);

impl Path<'_> {
    fn key(&self, key: &str) -> String {
        if self.0.is_empty() { key.to_string() } else { format!("{}.{key}", self.0) }
    }
}

impl<'de> DeserializeSeed<'de> for Path<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Path<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = entries.next_element_seed(Path(&self.key(&list.len().to_string())))? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = self.key(&key);
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {path} twice")));
            }
            object.insert(key, entries.next_value_seed(Path(&path))?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json_and_a_key_twice_is_an_error() {
        for text in ["null", "[true, -1, 2, 0.5, \"a\\n\"]", "{\"a\": {\"b\": []}, \"b\": {\"b\": 1}}"] {
            let Distinct(value) = serde_json::from_str(text).expect(text);
            assert_eq!(value, serde_json::from_str::<Value>(text).expect(text));
        }
        for (text, path) in [("{\"a\": 1, \"a\": 1}", "a"), ("[0, {\"b\": {\"a\": 1, \"a\": null}}]", "1.b.a")] {
            let error = serde_json::from_str::<Distinct>(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("the key {path} twice at line 1")), "{text}: {error}");
        }
    }
}
