//! Expected answers in rows of questions and of annotations: VQAv2's, POPE's, ScienceQA's, COCO's keys.

use super::rows::{Row, label_of};
use anyhow::Result;
use metrics::Expected;
use metrics::multiple_choice::options_in;
use serde_json::Value;

/// Keys of expected answers; the first that a row has counts, and the others have to be among its values.
const ANSWERS: [&str; 7] =
    ["answers", "answer", "label", "captions", "caption", "references", "multiple_choice_answer"];
/// Keys of an answer that is an object.
const ANSWER_TEXT: [&str; 2] = ["answer", "caption"];
/// Keys of the options.
const OPTIONS: [&str; 2] = ["options", "choices"];
/// Keys whose values divide questions into groups, each with figures of its own.
const GROUPS: [&str; 3] = ["category", "answer_type", "question_type"];

/// What a row says of the expected answers; `text` is the question, which may list the options.
///
/// # Errors
/// Values of an unexpected kind; an index that no option has.
pub(super) fn of_row(row: &Row, text: &str) -> Result<Expected> {
    let options = options(row)?;
    let mut answers = Vec::new();
    if let Some((key, value)) = row.get(&ANSWERS) {
        row.require_one_of(&ANSWERS)?;
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            answers.push(answer(row, key, value, &options)?);
        }
    }
    let options = if options.is_empty() { options_in(text) } else { options };
    Ok(Expected { answers, options })
}

/// An answer's text; a number is the index of an option where there are options.
fn answer(row: &Row, key: &str, value: &Value, options: &[String]) -> Result<String> {
    const KINDS: &str = "text, a number, or an object with \"answer\"";
    let inner = ANSWER_TEXT.iter().find_map(|key| value.get(key));
    let value = inner.unwrap_or(value);
    if !options.is_empty()
        && let Value::Number(number) = value
    {
        let by_index = number.as_u64().and_then(|index| options.get(usize::try_from(index).ok()?));
        let by_text = options.iter().find(|option| option.trim() == number.to_string());
        let refused = |found: String, expected: String, remedy: &str| {
            Err(base::Error::invalid(format!("{}: {key}", row.place), found, expected, remedy).into())
        };
        return match (by_index, by_text) {
            (Some(option), None) | (None, Some(option)) => Ok(option.clone()),
            (Some(option), Some(text)) if option == text => Ok(option.clone()),
            (Some(option), Some(_)) => refused(
                format!(
                    "the number {number}, which is an option's text and the place (from 0) of another one, {option:?}"
                ),
                "one or the other".to_string(),
                "write the letter of the option, or its text in quotation marks",
            ),
            (None, None) => {
                let expected = format!("the index of an option, 0 to {}, or its text", options.len() - 1);
                refused(number.to_string(), expected, "correct the row")
            }
        };
    }
    Ok(label_of(value).ok_or_else(|| row.unexpected(key, value, KINDS))?)
}

/// Options as a list, as an object with a key for each letter, or as keys A, B, … of the row.
fn options(row: &Row) -> Result<Vec<String>> {
    let texts = |key: &'static str, values: &mut dyn Iterator<Item = &Value>| -> Result<Vec<String>> {
        let text = |value: &Value| label_of(value).ok_or_else(|| row.unexpected(key, value, "text").into());
        values.map(text).collect()
    };
    match row.get(&OPTIONS) {
        Some((key, Value::Array(values))) => texts(key, &mut values.iter()),
        Some((key, Value::Object(values))) => texts(key, &mut values.values()),
        Some((key, value)) => Err(row.unexpected(key, value, "a list of texts").into()),
        None => {
            let letters = ('A'..='Z').map_while(|letter| row.values.get(&letter.to_string()));
            texts("A, B, …", &mut letters.filter(|value| !value.is_null()))
        }
    }
}

/// The groups that a row belongs to: (key, value).
///
/// # Errors
/// A value that is neither text nor a number.
pub(super) fn groups(row: &Row) -> Result<Vec<(&'static str, String)>> {
    let group = |key: &'static str| Ok(row.label(&[key])?.map(|value| (key, value)));
    GROUPS.iter().filter_map(|key| group(key).transpose()).collect()
}
