//! One row's JSON → a conversation whose every answer can be supervised, or the cause why not.

use super::ledger::{Cause, Refusal};
use common::chat::IMAGE_TOKEN;
use serde::Deserialize;
use serde_json::Value;

/// A row that says what it has to: turns that alternate, answers that are not empty, as many markers as images.
#[derive(Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Image file names, in order.
    pub images: Vec<String>,
    /// A system prompt of its own.
    pub system: Option<String>,
    /// (question, answer), at least one.
    pub turns: Vec<(String, String)>,
}

/// What identifies a row in the ledger, as far as it can be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RowNames {
    /// `id`, numbers as their digits.
    pub id: Option<String>,
    /// `image`, several joined by `, `.
    pub image: Option<String>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    image: Option<Images>,
    #[serde(default, alias = "messages")]
    conversations: Option<Vec<Turn>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Images {
    One(String),
    Several(Vec<String>),
}

impl Images {
    fn into_names(self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name],
            Self::Several(names) => names,
        }
    }
}

#[derive(Deserialize)]
struct Turn {
    #[serde(alias = "role")]
    from: String,
    #[serde(alias = "content")]
    value: String,
}

impl RowNames {
    /// Reads `id` and `image` of any JSON; what is not there or not text stays empty.
    pub fn of(json: &str) -> Self {
        #[derive(Default, Deserialize)]
        struct Names {
            #[serde(default)]
            id: Value,
            #[serde(default)]
            image: Value,
        }
        let names: Names = serde_json::from_str(json).unwrap_or_default();
        let image = match &names.image {
            Value::Array(images) => Some(images.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")),
            other => text_of(other),
        };
        Self { id: text_of(&names.id), image }
    }
}

/// The names in a row's `image`, whatever the rest of the row is.
pub fn image_names(json: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Named {
        image: Images,
    }
    serde_json::from_str::<Named>(json).map(|named| named.image.into_names()).unwrap_or_default()
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Reads a row. `place` is where it stands in the file.
pub fn read(json: &str, place: (u64, u64)) -> Result<Conversation, Refusal> {
    let record: Record = serde_json::from_str(json).map_err(|error| {
        let (line, column) = (error.line() as u64, error.column() as u64);
        let column = if line <= 1 { place.1 + column.saturating_sub(1) } else { column };
        let line = place.0 + line.saturating_sub(1);
        let what = error.to_string();
        let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
        Refusal::new(Cause::BadRow, format!("chat.json line {line}, column {column}: {what}"))
    })?;
    let images = record.image.map(Images::into_names).unwrap_or_default();
    let (system, turns) = pair_turns(record.conversations.unwrap_or_default())?;
    check_markers(&turns, system.as_deref(), images.len())?;
    Ok(Conversation { images, system, turns })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaker {
    System,
    User,
    Assistant,
}

fn speaker(turn: usize, from: &str) -> Result<Speaker, Refusal> {
    match from {
        "system" => Ok(Speaker::System),
        "human" | "user" => Ok(Speaker::User),
        "gpt" | "assistant" => Ok(Speaker::Assistant),
        other => {
            let detail = format!("turn {turn} is from {other:?}, expected human, gpt, user, assistant or system");
            Err(Refusal::new(Cause::BadTurns, detail))
        }
    }
}

type Paired = (Option<String>, Vec<(String, String)>);

fn pair_turns(turns: Vec<Turn>) -> Result<Paired, Refusal> {
    if turns.is_empty() {
        return Err(Refusal::new(Cause::NoTurns, "no conversations".to_owned()));
    }
    let mut system = None;
    let mut question = None;
    let mut pairs = Vec::new();
    for (number, turn) in turns.into_iter().enumerate() {
        let out_of_order = |expected: &str| {
            let detail = format!("turn {number} is from {:?}, expected {expected}", turn.from);
            Err(Refusal::new(Cause::BadTurns, detail))
        };
        match (speaker(number, &turn.from)?, question.take()) {
            (Speaker::System, None) if number == 0 => system = Some(turn.value),
            (Speaker::System, _) => return out_of_order("a system prompt only at the start"),
            (Speaker::User, None) => question = Some(turn.value),
            (Speaker::User, Some(_)) => return out_of_order("an answer"),
            (Speaker::Assistant, None) => return out_of_order("a question"),
            (Speaker::Assistant, Some(_)) if turn.value.trim().is_empty() => {
                return Err(Refusal::new(Cause::EmptyAnswer, format!("turn {number} is empty")));
            }
            (Speaker::Assistant, Some(question)) => pairs.push((question, turn.value)),
        }
    }
    match question {
        Some(_) => Err(Refusal::new(Cause::BadTurns, "ends with a question, expected an answer".to_owned())),
        None if pairs.is_empty() => Err(Refusal::new(Cause::NoTurns, "only a system prompt".to_owned())),
        None => Ok((system, pairs)),
    }
}

fn check_markers(turns: &[(String, String)], system: Option<&str>, images: usize) -> Result<(), Refusal> {
    let count = |text: &str| text.matches(IMAGE_TOKEN).count();
    let outside: usize = turns.iter().map(|(_, answer)| count(answer)).sum::<usize>() + system.map_or(0, count);
    let markers: usize = turns.iter().map(|(question, _)| count(question)).sum();
    let detail = if outside > 0 {
        format!("{outside} {IMAGE_TOKEN} marker(s) in an answer or system prompt, expected them in questions only")
    } else if markers != images {
        format!("{markers} {IMAGE_TOKEN} marker(s), {images} image(s); as many are expected")
    } else {
        return Ok(());
    };
    Err(Refusal::new(Cause::ImageMarkers, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(json: &str) -> Cause {
        read(json, (1, 1)).expect_err("refused").cause
    }

    fn turns(turns: &str, image: &str) -> String {
        format!("{{\"id\": \"a\", {image} \"conversations\": [{turns}]}}")
    }

    const QUESTION: &str = "{\"from\": \"human\", \"value\": \"<image>\\nWhat?\"}";
    const TEXT_QUESTION: &str = "{\"from\": \"user\", \"value\": \"Why?\"}";
    const ANSWER: &str = "{\"from\": \"gpt\", \"value\": \"A cat.\"}";

    #[test]
    fn one_several_and_no_images_are_read() {
        let row = read(&turns(&[QUESTION, ANSWER, TEXT_QUESTION, ANSWER].join(","), "\"image\": \"a.jpg\","), (1, 1));
        let row = row.expect("a row");
        assert_eq!((row.images.len(), row.turns.len(), row.turns[1].0.as_str()), (1, 2, "Why?"));
        let two = "{\"role\": \"user\", \"content\": \"<image><image> Which?\"}";
        let row = read(&turns(&[two, ANSWER].join(","), "\"image\": [\"a.jpg\", \"b.jpg\"],"), (1, 1));
        assert_eq!(row.expect("a row").images, ["a.jpg", "b.jpg"]);
        let system = "{\"from\": \"system\", \"value\": \"Be brief.\"}";
        let row = read(&turns(&[system, TEXT_QUESTION, ANSWER].join(","), ""), (1, 1)).expect("a row");
        assert_eq!((row.images.len(), row.system.as_deref()), (0, Some("Be brief.")));
    }

    #[test]
    fn every_fault_has_its_cause() {
        let image = "\"image\": \"a.jpg\",";
        let blank = "{\"from\": \"gpt\", \"value\": \" \\n\"}";
        let marked = "{\"from\": \"gpt\", \"value\": \"<image>\"}";
        let stranger = "{\"from\": \"bot\", \"value\": \"Hi\"}";
        for (json, expected) in [
            ("17".to_owned(), Cause::BadRow),
            ("{\"id\": \"a\", \"image\": 3}".to_owned(), Cause::BadRow),
            ("{\"id\": \"\\ud800\", \"conversations\": \"\\ud800\"}".to_owned(), Cause::BadRow),
            ("{\"id\": \"a\"}".to_owned(), Cause::NoTurns),
            (turns("", image), Cause::NoTurns),
            (turns(QUESTION, image), Cause::BadTurns),
            (turns(&[ANSWER, QUESTION].join(","), image), Cause::BadTurns),
            (turns(&[QUESTION, QUESTION].join(","), image), Cause::BadTurns),
            (turns(&[QUESTION, stranger].join(","), image), Cause::BadTurns),
            (turns(&[QUESTION, blank].join(","), image), Cause::EmptyAnswer),
            (turns(&[QUESTION, ANSWER].join(","), ""), Cause::ImageMarkers),
            (turns(&[TEXT_QUESTION, ANSWER].join(","), image), Cause::ImageMarkers),
            (turns(&[TEXT_QUESTION, marked].join(","), image), Cause::ImageMarkers),
        ] {
            assert_eq!(cause(&json), expected, "{json}");
        }
    }

    #[test]
    fn a_fault_in_a_row_is_placed_in_the_file() {
        let refusal = read("{\"id\": \"a\",\n \"image\": 3}", (7, 5)).expect_err("refused");
        assert!(refusal.detail.contains("line 8"), "{}", refusal.detail);
        assert_eq!(RowNames::of("{\"id\": 12, \"image\": [\"a\", \"b\"]}").image.as_deref(), Some("a, b"));
        assert_eq!(RowNames::of("oops"), RowNames::default());
        assert_eq!(image_names("{\"image\": [\"a\", \"b\"], \"conversations\": 3}"), ["a", "b"]);
        assert!(image_names("{\"image\": 3}").is_empty() && image_names("oops").is_empty());
    }
}
