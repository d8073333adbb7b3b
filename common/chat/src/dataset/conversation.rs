//! A record → a conversation whose every answer can be supervised, or the reason why not.

use super::fault::EMPTY_TEXT_REMEDY;
use super::{Fault, Record, RecordError};
use crate::{IMAGE_TOKEN, Message, Role};

/// Markers that other models and trainers read as an image, video or audio file; here they would be plain text.
const FOREIGN_MARKERS: [&str; 6] = ["<img>", "<video>", "<audio>", "<|image_pad|>", "<|vision_start|>", "<ImageHere>"];

/// Turns that alternate, answers that are not empty, as many markers as images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Image file names, in order.
    pub images: Vec<String>,
    /// A system prompt of its own.
    pub system: Option<String>,
    /// (question, answer), at least one.
    pub turns: Vec<(String, String)>,
}

impl Record {
    /// The record as training takes it.
    ///
    /// # Errors
    /// Turns out of order; an empty answer; markers that are not as many as the images; without image, a marker of another
    /// model.
    pub fn conversation(self) -> Result<Conversation, RecordError> {
        let Self { images, system, turns, .. } = self;
        let turns = pair_turns(turns)?;
        check_markers(&turns, system.as_deref(), images.len())?;
        Ok(Conversation { images, system, turns })
    }

    /// The first question, the images that its markers stand for, and the answer to it, if it has one. A record whose
    /// questions have no markers asks the first one about all of its images.
    pub fn first_question(&self) -> Option<(&str, &[String], Option<&str>)> {
        let asked = self.turns.iter().position(|turn| turn.role == Role::User)?;
        let question = self.turns[asked].content.as_str();
        let answer = self.turns.get(asked + 1).filter(|turn| turn.role == Role::Assistant);
        let questions = self.turns.iter().filter(|turn| turn.role == Role::User);
        let markers: usize = questions.map(|turn| count_markers(&turn.content)).sum();
        let images = if markers == self.images.len() { count_markers(question) } else { self.images.len() };
        Some((question, &self.images[..images.min(self.images.len())], answer.map(|turn| turn.content.as_str())))
    }
}

fn count_markers(text: &str) -> usize {
    text.matches(IMAGE_TOKEN).count()
}

fn pair_turns(turns: Vec<Message>) -> Result<Vec<(String, String)>, RecordError> {
    let mut question = None;
    let mut pairs = Vec::new();
    for (number, turn) in turns.into_iter().enumerate() {
        let out_of_order = |expected: &str| {
            let detail = format!("turn {number} is from {}, expected {expected}", turn.role.as_str());
            Err(RecordError::new(Fault::BadTurns, detail))
        };
        match (turn.role, question.take()) {
            (Role::System, _) if number == 0 => {}
            (Role::System, _) => return out_of_order("a system prompt only at the start"),
            (Role::User, None) => question = Some(turn.content),
            (Role::User, Some(_)) => return out_of_order("an answer"),
            (Role::Assistant, None) => return out_of_order("a question"),
            (Role::Assistant, Some(_)) if turn.content.trim().is_empty() => {
                let detail = format!("turn {number} is empty; {EMPTY_TEXT_REMEDY}");
                return Err(RecordError::new(Fault::EmptyAnswer, detail));
            }
            (Role::Assistant, Some(question)) => pairs.push((question, turn.content)),
        }
    }
    match question {
        Some(_) => Err(RecordError::new(Fault::BadTurns, "ends with a question, expected an answer")),
        None if pairs.is_empty() => Err(RecordError::new(Fault::NoTurns, "only a system prompt")),
        None => Ok(pairs),
    }
}

fn check_markers(turns: &[(String, String)], system: Option<&str>, images: usize) -> Result<(), RecordError> {
    let outside =
        turns.iter().map(|(_, answer)| count_markers(answer)).sum::<usize>() + system.map_or(0, count_markers);
    let markers: usize = turns.iter().map(|(question, _)| count_markers(question)).sum();
    let detail = if outside > 0 {
        format!("{outside} {IMAGE_TOKEN} marker(s) in an answer or system prompt, expected them in questions only")
    } else if markers != images {
        format!("{markers} {IMAGE_TOKEN} marker(s), {images} image(s); as many are expected")
    } else if let Some(marker) = turns.iter().find_map(|(question, _)| foreign_marker(question)).filter(|_| images == 0)
    {
        format!(
            "{marker} in a question of a row without image: only {IMAGE_TOKEN} is a marker, for a file named in `image` or \
             `images`; remove {marker} if the row is text only"
        )
    } else {
        return Ok(());
    };
    Err(RecordError::new(Fault::ImageMarkers, detail))
}

/// The first marker of another model in a question: a fixed one, `<image_N>`, or an image in a Markdown data URL.
fn foreign_marker(text: &str) -> Option<&str> {
    let fixed = FOREIGN_MARKERS.into_iter().find(|marker| text.contains(marker));
    fixed.or_else(|| numbered_marker(text)).or_else(|| data_url(text))
}

fn numbered_marker(text: &str) -> Option<&str> {
    text.match_indices("<image_").find_map(|(start, begin)| {
        let digits = text[start + begin.len()..].split('>').next()?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let end = start + begin.len() + digits.len();
        (is_number && text[end..].starts_with('>')).then(|| &text[start..=end])
    })
}

fn data_url(text: &str) -> Option<&'static str> {
    const BEGIN: &str = "data:image";
    let mut targets = text.split("](").skip(1);
    // Markdown allows spaces and `<` before the URL.
    targets.any(|target| target.trim_start_matches([' ', '<']).starts_with(BEGIN)).then_some(BEGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::record::tests::read;

    fn fault(json: &str) -> Fault {
        read(json).and_then(Record::conversation).expect_err(json).fault
    }

    fn turns(turns: &[&str], image: &str) -> String {
        format!("{{\"id\": \"a\", {image} \"conversations\": [{}]}}", turns.join(","))
    }

    const QUESTION: &str = "{\"from\": \"human\", \"value\": \"<image>\\nWhat?\"}";
    const TEXT_QUESTION: &str = "{\"from\": \"user\", \"value\": \"Why?\"}";
    const ANSWER: &str = "{\"from\": \"gpt\", \"value\": \"A cat.\"}";
    const SYSTEM: &str = "{\"from\": \"system\", \"value\": \"Be brief.\"}";
    const IMAGE: &str = "\"image\": \"a.jpg\",";

    #[test]
    fn one_several_and_no_images_are_read() {
        let conversation = |json: &str| read(json).and_then(Record::conversation).expect(json);
        let row = conversation(&turns(&[QUESTION, ANSWER, TEXT_QUESTION, ANSWER], IMAGE));
        assert_eq!((row.images.len(), row.turns.len(), row.turns[1].0.as_str()), (1, 2, "Why?"));
        let two = "{\"role\": \"user\", \"content\": \"<image><image> Which?\"}";
        let row = conversation(&turns(&[two, ANSWER], "\"image\": [\"a.jpg\", \"b.jpg\"],"));
        assert_eq!(row.images, ["a.jpg", "b.jpg"]);
        let row = conversation(&turns(&[SYSTEM, TEXT_QUESTION, ANSWER], ""));
        assert_eq!((row.images.len(), row.system.as_deref(), row.turns.len()), (0, Some("Be brief."), 1));
    }

    #[test]
    fn every_fault_has_its_kind() {
        let blank = "{\"from\": \"gpt\", \"value\": \" \\n\"}";
        let marked = "{\"from\": \"gpt\", \"value\": \"<image>\"}";
        let stranger = "{\"from\": \"bot\", \"value\": \"Hi\"}";
        for (json, expected) in [
            ("17".to_owned(), Fault::BadRow),
            ("{\"id\": \"a\", \"image\": 3}".to_owned(), Fault::BadRow),
            ("{\"id\": \"\\ud800\", \"conversations\": \"\\ud800\"}".to_owned(), Fault::BadRow),
            ("{\"id\": \"a\"}".to_owned(), Fault::NoTurns),
            (turns(&[], IMAGE), Fault::NoTurns),
            (turns(&[SYSTEM], ""), Fault::NoTurns),
            (turns(&[QUESTION], IMAGE), Fault::BadTurns),
            (turns(&[ANSWER, QUESTION], IMAGE), Fault::BadTurns),
            (turns(&[QUESTION, QUESTION], IMAGE), Fault::BadTurns),
            (turns(&[QUESTION, SYSTEM, ANSWER], IMAGE), Fault::BadTurns),
            (turns(&[QUESTION, stranger], IMAGE), Fault::BadTurns),
            (turns(&[QUESTION, blank], IMAGE), Fault::EmptyAnswer),
            (turns(&[QUESTION, ANSWER], ""), Fault::ImageMarkers),
            (turns(&[TEXT_QUESTION, ANSWER], IMAGE), Fault::ImageMarkers),
            (turns(&[TEXT_QUESTION, marked], IMAGE), Fault::ImageMarkers),
        ] {
            assert_eq!(fault(&json), expected, "{json}");
        }
    }

    #[test]
    fn without_image_a_marker_of_another_model_is_refused_by_name() {
        let asked = |text: &str, image: &str| {
            let question = serde_json::json!({"from": "human", "value": text}).to_string();
            read(&turns(&[TEXT_QUESTION, ANSWER, &question, ANSWER], image)).and_then(Record::conversation)
        };
        for (text, marker) in [
            ("First: <img>photos/7.png</img> Who?", "<img>"),
            ("What happens? <video>", "<video>"),
            ("<audio>\nWho speaks?", "<audio>"),
            ("<image_x> <image_03>: which?", "<image_03>"),
            ("<image_12>?", "<image_12>"),
            ("<|vision_start|><|vision_end|>Q", "<|vision_start|>"),
            ("a <|image_pad|> b", "<|image_pad|>"),
            ("<ImageHere>Q", "<ImageHere>"),
            ("See ![](data:image/jpeg;base64,/9j/4A==)", "data:image"),
            ("See ![chart 2]( <data:image/webp;base64,UklGRg==>)", "data:image"),
        ] {
            let error = asked(text, "").expect_err(text);
            assert_eq!(error.fault, Fault::ImageMarkers, "{text}: {error}");
            assert!(error.detail.starts_with(&format!("{marker} in a question")), "{text}: {error}");
            // Beside an image it is text of the question.
            let text = format!("<image>{text}");
            assert!(asked(&text, IMAGE).is_ok(), "{text}");
        }
        for text in [
            "Is 2 < image_3 > 1?",
            "<image_> and <image_two> are names",
            "<image_4 is cut",
            "An img or a video tag",
            "[text](notes.md) of data:image",
        ] {
            assert!(asked(text, "").is_ok(), "{text}");
        }
    }

    #[test]
    fn the_first_question_has_the_images_of_its_markers() {
        let asked = |json: &str| {
            let record = read(json).expect(json);
            let (question, images, answer) = record.first_question().expect("a question");
            (question.to_owned(), images.join(" "), answer.map(str::to_owned))
        };
        let several = "\"images\": [\"a\", \"b\"],";
        let found = asked(&turns(&[SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER], several));
        assert_eq!(found, ("<image>\nWhat?".into(), "a".into(), Some("A cat.".into())));
        let found = asked(&turns(&[TEXT_QUESTION, ANSWER], several));
        assert_eq!(
            found,
            ("Why?".into(), "a b".into(), Some("A cat.".into())),
            "no marker: all images stand before it"
        );
        let found = asked(&turns(&[TEXT_QUESTION, ANSWER, QUESTION, ANSWER], IMAGE));
        assert_eq!(found, ("Why?".into(), String::new(), Some("A cat.".into())));
        assert_eq!(asked(&turns(&[QUESTION], IMAGE)).2, None);
        let record = read(&turns(&[SYSTEM], "")).expect("a record");
        assert!(record.first_question().is_none());
    }
}
