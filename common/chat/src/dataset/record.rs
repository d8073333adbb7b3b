//! One row's JSON → a record.

use super::object::{Kind, Object, RowParser, kind};
use super::{Questions, RecordError, SourceRow, keys, layouts};
use crate::{Message, Role};
use serde_json::value::RawValue;

const IMAGE_VALUE: &str = "a name or a list of names";
/// Longest path that Linux opens, bytes: a longer text is not a file name, but a picture in base64.
const MAX_NAME_BYTES: usize = 4096;

/// What a row says: its keys are read, nothing else in it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `id`, a number as its digits; `row N` for a row without. A label: other rows may have the same.
    pub id: String,
    /// What rows about one picture share: the name of the first one without its ending (the `id` of LLaVA's data). Without picture
    /// the `id`, else nothing but the row's number.
    pub group: String,
    /// Image file names, in order.
    pub images: Vec<String>,
    /// A system prompt of its own.
    pub system: Option<String>,
    /// The turns as they stand there, a system prompt among them: at least one.
    pub turns: Vec<Message>,
}

/// What identifies a row in messages, as far as it can be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RowNames {
    /// `id`, numbers as their digits.
    pub id: Option<String>,
    /// `image`, several joined by `, `.
    pub image: Option<String>,
}

impl RowNames {
    /// Reads `id` and `image` of any row; missing fields and fields of other types are empty.
    pub fn of(row: &SourceRow) -> Self {
        let parser = RowParser(row);
        let Ok(object) = parser.object() else { return Self::default() };
        let first = |key: &str| object.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        let images = images_of(parser, &object).unwrap_or_default();
        Self {
            id: first(keys::ID[0]).and_then(|value| label(parser, value).ok().flatten()),
            image: (!images.is_empty()).then(|| images.join(", ")),
        }
    }
}

impl Record {
    /// Reads a row; `questions` are for one that has a caption only.
    ///
    /// # Errors
    /// Wrong types, with line and column; a key that changes the row and is not read; no turns.
    pub fn read(row: &SourceRow, questions: &Questions) -> Result<Self, RecordError> {
        let parser = RowParser(row);
        let object = parser.object()?;
        let id = match entry(parser, &object, keys::ID)? {
            Some((_, value)) => label(parser, value)?,
            None => None,
        };
        let images = images_of(parser, &object)?;
        layouts::refuse_empty(&object)?;
        keys::check(&object, images.len())?;
        let system = match entry(parser, &object, keys::SYSTEM)? {
            Some((key, value)) => Some(parser.text(key, value, "text")?).filter(|text| !text.is_empty()),
            None => None,
        };
        let turns = layouts::turns(parser, &object, &questions.ask(row.number, images.len()))?;
        let first = Some(&turns[0]).filter(|turn| turn.role == Role::System).map(|turn| &turn.content);
        if system.as_ref().is_some_and(|text| first.is_some_and(|turn| turn != text)) {
            return Err(parser.fault("two system prompts, a key and a turn; expected one of them"));
        }
        let system = system.or_else(|| first.cloned());
        let number = || format!("row {}", row.number);
        let group = images.first().map(|name| without_ending(name)).or(id.clone()).unwrap_or_else(number);
        Ok(Self { id: id.unwrap_or_else(number), group, images, system, turns })
    }
}

/// `coco/a.jpg` is `coco/a`.
fn without_ending(name: &str) -> String {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let end = name[start..].rfind('.').filter(|dot| *dot > 0).map_or(name.len(), |dot| start + dot);
    name[..end].trim_start_matches("./").to_owned()
}

/// An id's text, a number as its digits; `None` for other types.
pub fn id_text(value: &RawValue) -> Option<String> {
    match kind(value) {
        Kind::Number => Some(value.get().to_owned()),
        Kind::Text => serde_json::from_str(value.get()).ok(),
        _ => None,
    }
}

/// The value of a key in one of its spellings.
pub(super) fn entry<'a>(
    parser: RowParser<'a>,
    object: &Object<'a>,
    spellings: &[&'static str],
) -> Result<Option<(&'static str, &'a RawValue)>, RecordError> {
    object.get(spellings).map_err(|what| parser.fault(&what))
}

/// An id: a text, or a number's digits as they stand there, so that long ones stay distinct.
pub(super) fn label(parser: RowParser<'_>, value: &RawValue) -> Result<Option<String>, RecordError> {
    match kind(value) {
        Kind::Null => Ok(None),
        _ => {
            let text = id_text(value).ok_or_else(|| parser.unexpected("id", value, "text or a number"))?;
            Ok(Some(text).filter(|text| !text.is_empty()))
        }
    }
}

/// The file names in `image` or `images`, or in the key of a captioned row that names its file.
pub(super) fn images_of<'a>(parser: RowParser<'a>, object: &Object<'a>) -> Result<Vec<String>, RecordError> {
    let Some(spellings) = keys::image_key(object) else { return Ok(Vec::new()) };
    let Some((key, value)) = entry(parser, object, spellings)? else { return Ok(Vec::new()) };
    let names = match kind(value) {
        Kind::List => {
            let values: Vec<&RawValue> = parser.parse(value)?;
            values.into_iter().map(|value| parser.text(key, value, IMAGE_VALUE)).collect::<Result<_, _>>()?
        }
        _ => vec![parser.text(key, value, IMAGE_VALUE)?],
    };
    if let Some(name) = names.iter().find(|name| name.len() > MAX_NAME_BYTES) {
        return Err(parser.fault(&format!("{key}: a text of {} bytes, expected a file name", name.len())));
    }
    if names.iter().any(String::is_empty) {
        return Err(
            parser.fault(&format!("{key}: an empty name, expected a file name; a row without image has no {key}"))
        );
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dataset::{Fault, for_each_row};
    use std::ops::ControlFlow;
    use std::path::Path;

    /// Row 0 of a list, which begins in line 1, column 2.
    pub(in crate::dataset) fn row(json: &str) -> SourceRow {
        let mut rows = Vec::new();
        for_each_row(Path::new("chat.json"), format!("[{json}]").as_bytes(), |row| {
            rows.push(row);
            ControlFlow::Continue(())
        })
        .expect(json);
        rows.remove(0)
    }

    pub(in crate::dataset) fn read(json: &str) -> Result<Record, RecordError> {
        Record::read(&row(json), &Questions::default())
    }

    const TURNS: &str = r#""conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]"#;

    #[test]
    fn ids_of_any_length_and_type_stay_distinct() {
        for (id, expected) in [
            ("\"a\"", "a"),
            ("17", "17"),
            ("18446744073709551616", "18446744073709551616"),
            ("18446744073709551617", "18446744073709551617"),
            ("0.1", "0.1"),
            ("1.0", "1.0"),
            ("-7", "-7"),
            ("1e400", "1e400"),
            ("null", "row 0"),
            ("\"\"", "row 0"),
            ("NaN", "row 0"),
        ] {
            let record = read(&format!("{{\"id\": {id}, {TURNS}}}")).expect(id);
            assert_eq!(record.id, expected, "{id}");
        }
        assert_eq!(read(&format!("{{{TURNS}}}")).expect("no id").id, "row 0");
        let long = "9".repeat(5000);
        assert_eq!(read(&format!("{{\"id\": {long}, {TURNS}}}")).expect("long").id, long);
    }

    #[test]
    fn images_and_system_prompts_are_read_in_both_spellings() {
        for (keys, images, system) in [
            (r#""image": "a.jpg""#, &["a.jpg"][..], None),
            (r#""images": "a.jpg""#, &["a.jpg"], None),
            (r#""images": ["a.jpg", "b.jpg"]"#, &["a.jpg", "b.jpg"], None),
            (r#""image": null, "images": ["a.jpg"]"#, &["a.jpg"], None),
            (r#""image": [], "system": "Be brief.""#, &[], Some("Be brief.")),
            (r#""image": NaN, "system_prompt": "Be brief.""#, &[], Some("Be brief.")),
            (r#""system": "", "videos": [], "tools": null"#, &[], None),
        ] {
            let record = read(&format!("{{{keys}, {TURNS}}}")).expect(keys);
            assert_eq!((&*record.images, record.system.as_deref()), (&*strings(images), system), "{keys}");
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn refusals_say_what_was_found_and_where() {
        for (json, fault, what) in [
            (format!("{{\"id\": \"x\", \"id\": \"y\", {TURNS}}}"), Fault::BadRow, "duplicate field `id`"),
            (
                format!("{{\"id\": 1,\n  \"image\": {{\"path\": \"a\"}}, {TURNS}}}"),
                Fault::BadRow,
                "line 2, column 12: image: found an object, expected a name or a list of names",
            ),
            (
                format!("{{\"images\": [\"a\", 3], {TURNS}}}"),
                Fault::BadRow,
                "column 19: images: found a number, expected a name or a list of names",
            ),
            (format!("{{\"image\": \"\", {TURNS}}}"), Fault::BadRow, "image: an empty name"),
            (
                format!("{{\"image\": \"{}\", {TURNS}}}", "A".repeat(5000)),
                Fault::BadRow,
                "image: a text of 5000 bytes, expected a file name",
            ),
            (format!("{{\"image\": \"a\", \"images\": [\"a\"], {TURNS}}}"), Fault::BadRow, "both `image` and `images`"),
            (format!("{{\"id\": [1], {TURNS}}}"), Fault::BadRow, "id: found a list, expected text or a number"),
            (format!("{{\"system\": 3, {TURNS}}}"), Fault::BadRow, "system: found a number, expected text"),
            (
                r#"{"system": "a", "conversations": [{"from": "system", "value": "b"}]}"#.to_owned(),
                Fault::BadRow,
                "two system prompts",
            ),
            (format!("{{\"messages\": [], {TURNS}}}"), Fault::BadRow, "both `conversations` and `messages`"),
            (
                r#"{"messages": [{"role": "user", "content": {"type": "text", "text": "Q"}}]}"#.to_owned(),
                Fault::BadRow,
                "turn 0: content: found an object, expected a text with <image> where an image stands, or a list of parts",
            ),
            (r#"{"messages": [{"content": "Q"}]}"#.to_owned(), Fault::BadRow, "turn 0 has no `from` or `role`"),
            (r#"{"messages": [{"role": "user"}]}"#.to_owned(), Fault::BadRow, "turn 0 has no `value` or `content`"),
            (
                r#"{"messages": [{"role": "user", "content": "Q", "name": "Ann"}]}"#.to_owned(),
                Fault::UnreadKey,
                "turn 0, key \"name\"",
            ),
            (format!("{{\"video\": \"a.mp4\", {TURNS}}}"), Fault::UnreadKey, "key \"video\""),
            (r#"{"caption": "A cat."}"#.to_owned(), Fault::BadRow, "caption: no image beside it"),
            (r#"{"file_name": "a.jpg", "text": ["A", "B"]}"#.to_owned(), Fault::BadRow, "text: found a list"),
            (r#"{"file_name": "a.jpg", "text": "A", "label": "cat"}"#.to_owned(), Fault::UnreadKey, "key \"label\""),
            (r#"{"image": "a.jpg", "caption": null}"#.to_owned(), Fault::NoTurns, "caption is empty; write its text"),
            (r#"{"file_name": "a.jpg", "text": null}"#.to_owned(), Fault::NoTurns, "text is empty; write its text"),
            (r#"{"image": "a.jpg", "question": "Q", "answer": null}"#.to_owned(), Fault::NoTurns, "answer is empty"),
            (r#"{"question": null, "answer": null}"#.to_owned(), Fault::NoTurns, "question and answer are empty"),
            (r#"{"a": "Q", "b": "A"}"#.to_owned(), Fault::NoTurns, "among the row's keys (a, b)"),
        ] {
            let error = read(&json).expect_err(&json);
            assert_eq!(error.fault, fault, "{json}: {error}");
            assert!(error.to_string().contains(what), "{json}: {error}");
        }
    }

    #[test]
    fn a_caption_is_the_answer_to_the_question_that_its_row_draws() {
        let questions = Questions::new(vec!["What?".into(), "Look <image> here".into()], 7);
        let ask = |json: &str| {
            let record = Record::read(&row(json), &questions).expect(json);
            let turns: Vec<_> = record.turns.iter().map(|turn| (turn.role, turn.content.clone())).collect();
            (record.images.join(" "), turns)
        };
        for (json, images, caption) in [
            (r#"{"image": "a.jpg", "caption": "A cat."}"#, "a.jpg", "A cat."),
            (r#"{"file_name": "a.jpg", "text": "A cat.", "width": 3}"#, "a.jpg", "A cat."),
            (r#"{"image_path": "x/a.jpg", "caption": "A cat.", "text": "unread"}"#, "x/a.jpg", "A cat."),
            (r#"{"file_names": ["a.jpg"], "image": null, "caption": "A cat."}"#, "a.jpg", "A cat."),
        ] {
            let (found, turns) = ask(json);
            assert_eq!(found, images, "{json}");
            assert_eq!((turns.len(), turns[0].0, turns[1].0), (2, Role::User, Role::Assistant));
            assert_eq!((turns[0].1.matches("<image>").count(), turns[1].1.as_str()), (1, caption), "{json}");
        }
        // Beside turns a caption is a note, and a file's name does not take the place of `image`.
        let record = read(&format!(r#"{{"image": "a.jpg", "caption": "x", "file_name": "b.jpg", {TURNS}}}"#));
        assert_eq!(record.expect("turns").images, ["a.jpg"]);
    }

    #[test]
    fn a_question_beside_its_answer_is_the_users_turn() {
        for (json, question, answer) in [
            (r#"{"image": "a.jpg", "question": "Why?", "answer": "So."}"#, "<image>\nWhy?", "So."),
            (r#"{"image": "a.jpg", "prompt": "Why?", "caption": "So."}"#, "<image>\nWhy?", "So."),
            (
                r#"{"image": "a.jpg", "instruction": "See <image>.", "output": " So. ", "input": ""}"#,
                "See <image>.",
                "So.",
            ),
            (
                r#"{"file_name": "a.jpg", "question": "How many?", "answer": 3, "question_id": 7}"#,
                "<image>\nHow many?",
                "3",
            ),
            (
                r#"{"image": ["a.jpg", "b.jpg"], "question": "Why?", "response": "So."}"#,
                "<image>\n<image>\nWhy?",
                "So.",
            ),
            (r#"{"question": "Why?", "answer": "So."}"#, "Why?", "So."),
        ] {
            let record = read(json).expect(json);
            let turns: Vec<_> = record.turns.iter().map(|turn| (turn.role, turn.content.as_str())).collect();
            assert_eq!(turns, [(Role::User, question), (Role::Assistant, answer)], "{json}");
        }
        // Without an answer it is a caption's note, and beside turns as well.
        let record = read(&format!(r#"{{"image": "a.jpg", "question": "x", "answer": "y", {TURNS}}}"#)).expect("turns");
        assert_eq!((record.turns.len(), record.turns[0].content.as_str()), (2, "Q"));
        for (json, what) in [
            (r#"{"image": "a.jpg", "question": "Q", "prompt": "P", "answer": "A"}"#, "both `question` and `prompt`"),
            (r#"{"image": "a.jpg", "question": "Q", "answer": "A", "caption": "C"}"#, "both `answer` and `caption`"),
            (r#"{"image": "a.jpg", "question": "Q", "answer": ["A", "B"]}"#, "answer: found a list, expected one text"),
            (
                r#"{"image": "a.jpg", "question": "Q", "answer": "A", "choices": ["A", "B"]}"#,
                "key \"choices\" is not read",
            ),
            (r#"{"image": "a.jpg", "instruction": "Q", "output": "A", "input": "x"}"#, "key \"input\" is not read"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.fault == Fault::BadRow && error.to_string().contains(what), "{json}: {error}");
        }
    }

    #[test]
    fn rows_about_one_picture_are_a_group() {
        for (json, group) in [
            (r#""id": "a", "image": "a.jpg""#, "a"),
            (r#""id": "a-1", "image": "a.jpg""#, "a"),
            (r#""image": "./coco/a.b.jpg""#, "coco/a.b"),
            (r#""id": 7, "image": ["x/.hidden", "b.jpg"]"#, "x/.hidden"),
            (r#""id": 7"#, "7"),
        ] {
            assert_eq!(read(&format!("{{{json}, {TURNS}}}")).expect(json).group, group, "{json}");
        }
        assert_eq!(read(&format!("{{{TURNS}}}")).expect("no id").group, "row 0");
    }

    #[test]
    fn names_are_read_of_refused_rows_too() {
        let names = |json: &str| RowNames::of(&row(json));
        let found = names("{\"id\": 12, \"image\": [\"a\", \"b\"], \"conversations\": 3}");
        assert_eq!((found.id.as_deref(), found.image.as_deref()), (Some("12"), Some("a, b")));
        assert_eq!(names("{\"id\": \"x\", \"id\": \"y\"}").id.as_deref(), Some("x"));
        assert_eq!(names("17"), RowNames::default());
    }
}
