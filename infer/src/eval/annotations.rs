//! Expected answers in files of their own, found by question or by picture.

use super::expected;
use super::questions::Question;
use super::rows::{self, Row};
use anyhow::Result;
use metrics::Expected;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a row of annotations is about, and what it expects.
struct Annotation {
    /// For messages.
    place: String,
    /// Of a question; captions of COCO have an `id` of their own, which names nothing else.
    question_id: Option<String>,
    image: Option<String>,
    question: Option<String>,
    expected: Expected,
    groups: Vec<(&'static str, String)>,
}

/// All annotations of a run.
#[derive(Default)]
pub(super) struct Annotations {
    all: Vec<Annotation>,
    by_id: HashMap<String, Vec<usize>>,
    by_image: HashMap<String, Vec<usize>>,
}

impl Annotations {
    /// Reads the files.
    ///
    /// # Errors
    /// Malformed files; rows that name neither a question nor a picture, or expect nothing.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut annotations = Self::default();
        for path in paths {
            annotations.add(path)?;
        }
        Ok(annotations)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let rows::Rows { rows, head } = rows::read(path, "annotations")?;
        let names = file_names(&head);
        for row in rows {
            let annotation = annotation(&row, &names)?;
            let index = self.all.len();
            if let Some(id) = &annotation.question_id {
                self.by_id.entry(id.clone()).or_default().push(index);
            }
            if let Some(image) = &annotation.image {
                self.by_image.entry(image.clone()).or_default().push(index);
            }
            self.all.push(annotation);
        }
        Ok(())
    }

    /// Adds to a question what its annotations say: by `question_id`, unless they are about another picture or another text;
    /// else by picture and text; else, of captions, all of the picture.
    ///
    /// # Errors
    /// Several annotations of a question that expect different answers.
    pub fn complete(&self, question: &mut Question) -> Result<()> {
        let found = |map: &HashMap<String, Vec<usize>>, key: Option<&String>| -> Vec<&Annotation> {
            let indices = key.and_then(|key| map.get(key)).map(Vec::as_slice).unwrap_or_default();
            indices.iter().map(|&index| &self.all[index]).collect()
        };
        let image = question.image_key();
        let text = first_line(&question.text);
        let of_image = found(&self.by_image, image.as_ref());
        let by_id = found(&self.by_id, question.id_text().as_ref()).into_iter().filter(|annotation| {
            let same = |of: &Option<String>, this: Option<&str>| of.as_deref().zip(this).is_none_or(|(a, b)| a == b);
            same(&annotation.image, image.as_deref()) && same(&annotation.question, Some(text.as_str()))
        });
        let by_id: Vec<_> = by_id.collect();
        let by_text = of_image.iter().copied().filter(|annotation| annotation.question.as_ref() == Some(&text));
        let of_question = if by_id.is_empty() { by_text.collect() } else { by_id };
        if let [annotation, others @ ..] = &of_question[..] {
            if let Some(other) = others.iter().find(|other| other.expected.answers != annotation.expected.answers) {
                let found = format!("other expected answers for question_id {} than {}", question.id, annotation.place);
                return Err(base::Error::invalid(
                    &other.place,
                    found,
                    "one row for a question, or the same answers",
                    "take one out",
                )
                .into());
            }
            question.expected.answers.clone_from(&annotation.expected.answers);
            if question.expected.options.is_empty() {
                question.expected.options.clone_from(&annotation.expected.options);
            }
            question.groups.extend(annotation.groups.iter().cloned());
            return Ok(());
        }
        let captions =
            of_image.into_iter().filter(|annotation| annotation.question.is_none() && annotation.question_id.is_none());
        let captions: Vec<String> = captions.flat_map(|annotation| annotation.expected.answers.clone()).collect();
        if !captions.is_empty() {
            question.expected.answers = captions;
        }
        Ok(())
    }
}

fn annotation(row: &Row, names: &HashMap<String, String>) -> Result<Annotation> {
    let question = row.label(&["text", "question"])?.map(|text| first_line(&text));
    let image = row.label(&["image", "image_id"])?;
    let id: &[&str] = if row.values.contains_key("image_id") { &["question_id"] } else { &["question_id", "id"] };
    let question_id = row.label(id)?;
    let expected = expected::of_row(row, question.as_deref().unwrap_or_default())?;
    let missing = |found, expected| base::Error::invalid(&row.place, found, expected, "correct the row");
    if expected.answers.is_empty() {
        return Err(missing("no expected answer", "\"answers\", \"answer\", \"label\" or \"captions\"").into());
    }
    if image.is_none() && question_id.is_none() {
        return Err(
            missing("no name of a question or picture", "\"question_id\", \"id\", \"image\" or \"image_id\"").into()
        );
    }
    let image = image.map(|image| image_key(names.get(&image).unwrap_or(&image)));
    let place = row.place.clone();
    Ok(Annotation { place, question_id, image, question, expected, groups: expected::groups(row)? })
}

/// COCO's table of pictures: id to file name.
fn file_names(head: &serde_json::Map<String, Value>) -> HashMap<String, String> {
    let images = head.get("images").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let name = |image: &Value| Some((rows::label_of(image.get("id")?)?, image.get("file_name")?.as_str()?.to_string()));
    images.iter().filter_map(name).collect()
}

/// A picture's name for comparisons: COCO's files are named by their number (`COCO_val2014_000000458752.jpg`), which
/// annotations give alone.
pub(super) fn image_key(name: &str) -> String {
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let number = stem.strip_prefix("COCO_").and_then(|rest| rest.split_once('_')).map_or(stem, |(_, number)| number);
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let significant = number.trim_start_matches('0');
    match (is_number, significant) {
        (false, _) => name.to_string(),
        (true, "") => "0".to_string(),
        (true, digits) => digits.to_string(),
    }
}

/// A question without marks of pictures and without the instruction that LLaVA's files put on further lines.
fn first_line(text: &str) -> String {
    let text = text.replace(chat::IMAGE_TOKEN, "");
    text.trim().lines().next().unwrap_or_default().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_coco_are_known_by_their_number() {
        for (name, key) in [
            ("COCO_val2014_000000458752.jpg", "458752"),
            ("000000458752.jpg", "458752"),
            ("458752", "458752"),
            ("0.png", "0"),
            ("dev-12.png", "dev-12.png"),
            ("COCO_x.jpg", "COCO_x.jpg"),
        ] {
            assert_eq!(image_key(name), key, "{name}");
        }
        assert_eq!(first_line("<image>\nIs it?\nAnswer with one word."), "Is it?");
    }
}
