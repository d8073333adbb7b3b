//! Strict JSON objects: every field of a foreign file is read, known to be harmless, or refused.
//!
//! A table has a row for each field; [`check`] refuses what no table knows, so that nothing is ever ignored silently.

pub mod generation;
pub mod pretrained;

use crate::{Error, Result, nearest};
use serde_json::{Map, Value};

/// What a field does here.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Its reader looks at it, and refuses the values that it cannot serve.
    Read,
    /// It changes nothing that is computed here, whatever its value.
    Harmless,
    /// It changes nothing at these values (JSON texts; numbers are compared as numbers) and at `null`; the reason says what any
    /// other value asks for.
    Only(&'static [&'static str], &'static str),
}

/// A row of a table: the field's name and its rule.
pub type Row = (&'static str, Rule);

/// The field asks for nothing when it is false.
pub const fn off(reason: &'static str) -> Rule {
    Rule::Only(&["false"], reason)
}

/// The field asks for nothing when it is empty.
pub const fn empty(reason: &'static str) -> Rule {
    Rule::Only(&["{}", "[]", "\"\""], reason)
}

/// The object that is checked, for messages.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The file, and the keys that lead to the object.
    pub place: &'a str,
    /// What the object describes.
    pub kind: &'a str,
    /// What to do about a value that is refused.
    pub remedy: &'a str,
}

/// Checks an object of a file; a field that stands in several tables follows the first.
///
/// # Errors
/// The first field, in the tables' order, whose value asks for something that is not done here: with its value, the values that
/// are accepted, and the reason; else the first field that no table has.
pub fn check(object: &Map<String, Value>, tables: &[&[Row]], place: Place<'_>) -> Result<()> {
    let rows = || tables.iter().flat_map(|table| table.iter());
    for (index, (field, rule)) in rows().enumerate() {
        let (Rule::Only(accepted, reason), Some(value)) = (rule, object.get(*field)) else { continue };
        let is_first = rows().take(index).all(|(earlier, _)| earlier != field);
        if is_first && !value.is_null() && !accepted.iter().any(|text| is(value, text)) {
            return Err(not_done(place, field, value, accepted, reason));
        }
    }
    match object.iter().find(|(field, _)| rows().all(|(known, _)| known != field)) {
        Some((field, value)) => Err(unknown(place, field, value, tables)),
        None => Ok(()),
    }
}

/// Whether a value is the one of a JSON text.
fn is(value: &Value, text: &str) -> bool {
    let Ok(accepted) = serde_json::from_str::<Value>(text) else { return false };
    *value == accepted || value.as_f64().zip(accepted.as_f64()).is_some_and(|(a, b)| a == b)
}

fn not_done(place: Place<'_>, field: &str, value: &Value, accepted: &[&str], reason: &str) -> Error {
    let accepted = accepted.iter().chain(&["null"]).map(|text| text.to_string()).collect::<Vec<_>>().join(" or ");
    Error::invalid(
        place.place,
        format!("{field} {}", shortened(value)),
        format!("{field} {accepted} ({reason})"),
        place.remedy,
    )
}

fn unknown(place: Place<'_>, field: &str, value: &Value, tables: &[&[Row]]) -> Error {
    let known = tables.iter().flat_map(|table| table.iter()).map(|(name, _)| *name);
    let remedy = match nearest(field, known) {
        Some(name) => format!("did you mean {name}? Correct it"),
        None => "if it changes nothing that is computed, remove it from the file".to_string(),
    };
    let found = format!("unknown field {field} ({})", shortened(value));
    Error::invalid(place.place, found, format!("fields of {}", place.kind), remedy)
}

/// A value as it stands in a message.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &[Row] = &[
        ("width", Rule::Read),
        ("note", Rule::Harmless),
        ("dropout", Rule::Only(&["0"], "dropout is not implemented")),
        ("patterns", empty("patterns are not implemented")),
        ("extra", off("no extras")),
    ];

    fn verdict(object: Value) -> Result<(), String> {
        let object = object.as_object().expect("an object");
        check(object, &[TABLE], Place { place: "a.json", kind: "a test", remedy: "use another" })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        for object in [
            json!({}),
            json!({"width": "anything: its reader decides", "note": [1, 2]}),
            json!({"dropout": 0, "patterns": {}, "extra": false}),
            json!({"dropout": 0.0, "patterns": [], "extra": null}),
            json!({"dropout": null, "patterns": null}),
        ] {
            assert_eq!(verdict(object.clone()), Ok(()), "{object}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_field_value_and_what_is_accepted() {
        for (object, words) in [
            (json!({"dropout": 0.1}), &["a.json", "dropout 0.1", "dropout 0 or null", "not implemented"][..]),
            (json!({"patterns": {"q": 4}}), &["patterns {\"q\":4}", "patterns {}"]),
            (json!({"extra": true}), &["extra true", "extra false"]),
            (json!({"extra": 0}), &["extra 0"]),
            (json!({"widht": 3}), &["unknown field widht (3)", "did you mean width?"]),
            (
                json!({"mixture_of_experts": 8}),
                &["unknown field mixture_of_experts (8)", "fields of a test", "remove it"],
            ),
        ] {
            let error = verdict(object.clone()).expect_err("refused");
            assert!(words.iter().all(|word| error.contains(word)), "{object}: {error}");
        }
    }

    #[test]
    fn no_table_has_a_field_twice_and_every_accepted_value_is_json() {
        for table in [pretrained::FIELDS, generation::FIELDS] {
            for (index, (name, rule)) in table.iter().enumerate() {
                assert!(table[..index].iter().all(|(earlier, _)| earlier != name), "{name} twice");
                if let Rule::Only(accepted, _) = rule {
                    assert!(accepted.iter().all(|text| serde_json::from_str::<Value>(text).is_ok()), "{name}");
                }
            }
        }
    }
}
