//! An object of a request, field by field; errors name the field as the request writes it and types as JSON does.

use crate::serve::error::ApiError;
use serde_json::{Map, Value};

/// The fields of an object that have not been read yet. `null` is the same as an absent field.
pub(super) struct Fields {
    rest: Map<String, Value>,
    place: String,
}

impl Fields {
    /// The object at `place` (empty for the body).
    pub(super) fn of(value: Value, place: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(mut rest) => {
                rest.retain(|_, value| !value.is_null());
                Ok(Self { rest, place: place.to_string() })
            }
            other => Err(wrong_type(place, "an object", &other)),
        }
    }

    /// The field's path: `messages[0].content`.
    pub(super) fn path(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_string() } else { format!("{}.{name}", self.place) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.rest.get(name)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.rest.shift_remove(name)
    }

    /// The field's value, which must be there.
    pub(super) fn required(&mut self, name: &str, expected: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| {
            let message = format!("{} is missing, expected {expected}", self.path(name));
            ApiError { code: "missing_required_parameter", ..ApiError::invalid(&self.path(name), message) }
        })
    }

    pub(super) fn required_string(&mut self, name: &str) -> Result<String, ApiError> {
        let value = self.required(name, "a string")?;
        string(value, &self.path(name))
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name).map(|value| string(value, &self.path(name))).transpose()
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| wrong_type(&self.path(name), "a boolean", &value))
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| wrong_type(&self.path(name), "a number", &value))
    }

    /// A whole number, however it is written (JSON has one type for 5 and 5.0).
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let exact = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let integer = value.as_i64().or_else(|| value.as_f64().filter(|_| value.is_f64()).and_then(exact));
        let expected = "an integer from -2^63 to 2^63 - 1";
        integer.map(Some).ok_or_else(|| wrong_type(&self.path(name), expected, &value))
    }

    pub(super) fn into_rest(self) -> impl Iterator<Item = (String, String, Value)> {
        let Self { rest, place } = self;
        rest.into_iter().map(move |(name, value)| {
            let path = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
            (name, path, value)
        })
    }
}

pub(super) fn string(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

/// 400: a value of another type.
pub(super) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    let place = if path.is_empty() { "the body" } else { path };
    let message = format!("{place}: found {}, expected {expected}", describe(found));
    ApiError { code: "invalid_type", ..ApiError::invalid(path, message) }
}

/// A value in a message: short ones as they are, others by their type.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
        Value::String(_) => "a string".to_string(),
        Value::Array(items) if items.is_empty() => "an empty array".to_string(),
        Value::Array(_) => "an array".to_string(),
        Value::Object(fields) if fields.is_empty() => "an empty object".to_string(),
        Value::Object(_) => "an object".to_string(),
    }
}
