//! Questions of a benchmark: LLaVA's and POPE's JSON lines, VQAv2's object, a dataset's records.

use super::annotations::{Annotations, image_key};
use super::expected;
use super::rows::{self, Row};
use anyhow::Result;
use base::Error;
use chat::IMAGE_TOKEN;
use chat::dataset::{self, ReadRecord};
use images::image_files::ImageSources;
use metrics::{Expected, Metric};
use serde_json::{Map, Value, json};
use std::path::Path;

const IMAGE: [&str; 3] = ["image", "images", "image_id"];
const TEXT: [&str; 3] = ["text", "question", "prompt"];
const ID: [&str; 2] = ["question_id", "id"];
/// Keys of a dataset's turns.
const TURNS: [&str; 2] = ["conversations", "messages"];

/// A question about pictures and what is expected.
#[derive(Debug)]
pub(super) struct Question {
    /// For messages.
    pub place: String,
    /// As the file has it: a number stays one.
    pub id: Value,
    /// File names.
    pub images: Vec<String>,
    /// The question, `<image>` where a picture stands.
    pub text: String,
    /// A system prompt of its own.
    pub system: Option<String>,
    /// Of a dataset, as training has it; of other files, special tokens are text.
    pub is_record: bool,
    /// What the answer is compared with.
    pub expected: Expected,
    /// Groups with figures of their own: (kind, name).
    pub groups: Vec<(&'static str, String)>,
}

impl Question {
    /// Its id as text.
    pub fn id_text(&self) -> Option<String> {
        rows::label_of(&self.id)
    }

    /// Its first picture's name for comparisons.
    pub fn image_key(&self) -> Option<String> {
        self.images.first().map(|name| image_key(name))
    }

    /// The place of an error.
    fn here(&self) -> String {
        format!("{} (question_id {})", self.place, self.id)
    }
}

/// Reads the first `limit` questions, completes them from the annotations, and checks every one.
///
/// # Errors
/// The first question that is malformed, has a picture that is not there, or expects nothing that the metric can compare with.
pub(super) fn read(
    path: &Path,
    limit: Option<usize>,
    pictures: &ImageSources,
    annotations: &Annotations,
    metric: Metric,
) -> Result<Vec<Question>> {
    let rows::Rows { mut rows, head } = rows::read(path, "questions")?;
    rows.truncate(limit.unwrap_or(usize::MAX));
    let mut questions = if rows.first().is_some_and(|row| row.get(&TURNS).is_some()) {
        let records = dataset::read_file(path)?.into_iter().take(rows.len()).enumerate();
        records.map(|(number, record)| of_record(path, number, record)).collect::<Result<Vec<_>>>()?
    } else {
        let subset = head.get("data_subtype").and_then(Value::as_str);
        rows.iter().map(|row| of_row(row, subset, pictures)).collect::<Result<Vec<_>>>()?
    };
    for question in &mut questions {
        annotations.complete(question)?;
        check(question, pictures, metric)?;
    }
    Ok(questions)
}

fn of_record(path: &Path, number: usize, record: ReadRecord) -> Result<Question> {
    let place = format!("{}: row {number}", path.display());
    let record = record
        .map_err(|(_, error)| Error::invalid(&place, error, "a row with a question", "correct it or take it out"))?;
    let Some((text, images, answer)) = record.first_question() else {
        let expected = "a turn of human or user";
        return Err(Error::invalid(place, "no question", expected, "correct it or take it out").into());
    };
    let options = metrics::multiple_choice::options_in(text);
    Ok(Question {
        place,
        id: json!(record.id),
        images: images.to_vec(),
        text: text.to_string(),
        system: record.system.clone(),
        is_record: true,
        expected: Expected { answers: answer.map(str::to_string).into_iter().collect(), options },
        groups: Vec::new(),
    })
}

fn of_row(row: &Row, subset: Option<&str>, pictures: &ImageSources) -> Result<Question> {
    let missing = |what: &str, expected: &str| Error::invalid(&row.place, what, expected, "correct the row");
    let (_, id) = row.get(&ID).ok_or_else(|| missing("no \"question_id\"", "a text or a number"))?;
    rows::label_of(id).ok_or_else(|| row.unexpected("question_id", id, "text or a number"))?;
    row.require_one_of(&TEXT)?;
    let text = match row.get(&TEXT) {
        Some((_, Value::String(text))) => text.clone(),
        Some((key, value)) => return Err(row.unexpected(key, value, "text").into()),
        None => return Err(missing("no question", "\"text\" or \"question\"").into()),
    };
    Ok(Question {
        place: row.place.clone(),
        id: id.clone(),
        images: images_of(row, subset, pictures)?,
        expected: expected::of_row(row, &text)?,
        text,
        system: None,
        is_record: false,
        groups: expected::groups(row)?,
    })
}

/// File names of a row's pictures. A question without picture says so (`"image": null`): a key that is missing is a mistake.
fn images_of(row: &Row, subset: Option<&str>, pictures: &ImageSources) -> Result<Vec<String>> {
    match row.get(&IMAGE) {
        Some((_, Value::String(name))) => Ok(vec![name.clone()]),
        Some((_, Value::Number(number))) => Ok(vec![file_of(number, subset, pictures)]),
        Some((key, Value::Array(names))) => {
            let name = |value: &Value| value.as_str().map(str::to_string);
            let unexpected = |value: &Value| row.unexpected(key, value, "a file name");
            Ok(names.iter().map(|value| name(value).ok_or_else(|| unexpected(value))).collect::<Result<_, _>>()?)
        }
        Some((key, value)) => Err(row.unexpected(key, value, "a file name").into()),
        None if is_there(&row.values) => Ok(Vec::new()),
        None => Err(Error::invalid(
            &row.place,
            "a question without its picture",
            "\"image\" (a file name), or \"image_id\"",
            "name the picture; \"image\": null says that there is none",
        )
        .into()),
    }
}

fn is_there(values: &Map<String, Value>) -> bool {
    IMAGE.iter().any(|key| values.contains_key(*key))
}

/// COCO's file of a numbered picture: the first spelling that exists.
fn file_of(number: &serde_json::Number, subset: Option<&str>, pictures: &ImageSources) -> String {
    let digits = number.to_string();
    let padded = format!("{digits:0>12}");
    let of_subset = subset.map(|subset| format!("COCO_{subset}_{padded}.jpg"));
    let spellings =
        of_subset.into_iter().chain([format!("{padded}.jpg"), format!("{digits}.jpg"), format!("{digits}.png")]);
    let spellings: Vec<String> = spellings.collect();
    spellings.iter().find(|name| pictures.has(name)).unwrap_or(&spellings[0]).clone()
}

fn check(question: &Question, pictures: &ImageSources, metric: Metric) -> Result<()> {
    if let Some(name) = question.images.iter().find(|name| !pictures.has(name)) {
        // Reading says why: a name that leads out of the folder, or one that differs from a file's in capital letters.
        let cause = pictures.read(name).err().map_or_else(|| "it is no file".to_string(), |error| error.to_string());
        let found = format!("a question about the picture {name:?}, which is not there ({cause})");
        let remedy = "give the folder that holds it as --images, or take the question out";
        return Err(Error::invalid(question.here(), found, "a picture of --images", remedy).into());
    }
    let (markers, images) = (question.text.matches(IMAGE_TOKEN).count(), question.images.len());
    if markers > 0 && markers != images {
        let found = format!("{markers} {IMAGE_TOKEN} markers and {images} pictures");
        return Err(Error::invalid(question.here(), found, "one marker a picture, or none", "correct the row").into());
    }
    metric.check(&question.expected).map_err(|unusable| {
        let remedy = "correct the row, give --annotations, or take another --metric";
        let expected = format!("{} (--metric {metric})", unusable.expected);
        Error::invalid(question.here(), unusable.found, expected, remedy).into()
    })
}
