//! Keys of a record: read, harmless, or refused because they would change the row.

use super::object::{Kind, Object, kind};
use super::{Fault, RecordError, layouts};
use serde_json::value::RawValue;

/// Spellings of each key that is read, beside those of the turns ([`layouts`]).
pub(super) const ID: &[&str] = &["id"];
pub(super) const IMAGES: &[&str] = &["image", "images"];
pub(super) const SYSTEM: &[&str] = &["system", "system_prompt"];

/// Keys of a file's name in rows that have a caption and none of [`IMAGES`]: the first one counts.
const IMAGE_FILES: [&[&str]; 7] = [
    &["file_name", "file_names"],
    &["image_path", "image_paths"],
    &["image_file"],
    &["image_name"],
    &["filename"],
    &["filepath"],
    &["img"],
];

/// The key that names the pictures of a row.
pub(super) fn image_key(object: &Object<'_>) -> Option<&'static [&'static str]> {
    let is_there =
        |spellings: &[&str]| object.iter().any(|(name, value)| spellings.contains(&name) && kind(value) != Kind::Null);
    if is_there(IMAGES) || !layouts::is_captioned(object) {
        return Some(IMAGES);
    }
    IMAGE_FILES.into_iter().find(|spellings| is_there(spellings))
}

/// Whether a key or column of this name holds a picture's file name.
pub(super) fn names_image(name: &str) -> bool {
    IMAGES.contains(&name) || IMAGE_FILES.iter().any(|spellings| spellings.contains(&name))
}

/// Notes about a row that published datasets have and training does not depend on.
const HARMLESS: [&str; 46] = [
    "answer_id",
    "author",
    "category",
    "channel",
    "choice_list",
    "clip_score",
    "data_source",
    "dataset",
    "dataset_name",
    "date",
    "domain",
    "has_image",
    "height",
    "idx",
    "image_caption",
    "image_hash",
    "image_height",
    "image_id",
    "image_ids",
    "image_license",
    "image_md5",
    "image_sha256",
    "image_size",
    "image_source",
    "image_width",
    "index",
    "lang",
    "language",
    "license",
    "meta",
    "metadata",
    "model",
    "num_images",
    "question_id",
    "sample_id",
    "score",
    "source",
    "split",
    "subset",
    "task",
    "task_type",
    "topic",
    "type",
    "uid",
    "url",
    "width",
];

/// Harmless keys of a turn. Any other key with a value makes the row refused, because it may change the trained text.
const HARMLESS_IN_TURN: [&str; 9] =
    ["category", "id", "index", "lang", "language", "model", "source", "timestamp", "turn"];

/// The value under which a key of [`UNREAD`] changes nothing. Null and empty values never change anything.
#[derive(Clone, Copy)]
enum Neutral {
    /// `true` or 1: a weight, or a loss that is computed.
    One,
    /// `false` or 0: nothing is masked, rejected or added.
    Zero,
    /// None: both values of a preference label say something about the answer.
    Never,
}

/// Keys that other trainers read and that change what a row teaches. Keys that begin with [`PREFERENCE_PREFIX`] are
/// [`Neutral::Never`], too.
const UNREAD: [(&str, Neutral); 24] = [
    ("chat_template_kwargs", Neutral::Zero),
    ("chosen", Neutral::Never),
    ("documents", Neutral::Zero),
    ("function_call", Neutral::Zero),
    ("functions", Neutral::Zero),
    ("history", Neutral::Zero),
    ("label", Neutral::Never),
    ("loss", Neutral::One),
    ("loss_weight", Neutral::One),
    ("mask", Neutral::Zero),
    ("masked", Neutral::Zero),
    ("objects", Neutral::Zero),
    ("rejected", Neutral::Zero),
    ("rejected_images", Neutral::Zero),
    ("rejected_messages", Neutral::Zero),
    ("rejected_response", Neutral::Zero),
    ("sample_weight", Neutral::One),
    ("tool_calls", Neutral::Zero),
    ("tools", Neutral::Zero),
    ("train", Neutral::One),
    ("train_on_turn", Neutral::One),
    ("trainable", Neutral::One),
    ("weight", Neutral::One),
    ("weights", Neutral::One),
];
const PREFERENCE_PREFIX: &str = "kto_";

/// Parts of names that stand for pictures, films and sound.
const MEDIA_WORDS: [&str; 11] =
    ["image", "img", "picture", "photo", "video", "audio", "speech", "frames", "pixel", "media", "visual"];

/// Where a row's picture comes from: harmless beside the picture itself.
const ORIGINS: [&str; 12] = [
    "coco_url",
    "flickr_url",
    "image_file",
    "image_name",
    "image_path",
    "image_paths",
    "image_url",
    "image_urls",
    "img_name",
    "img_path",
    "img_url",
    "original_image",
];

/// Endings of files that a row without image may not point to.
const MEDIA_ENDINGS: [&str; 21] = [
    "avi", "avif", "bmp", "flac", "gif", "heic", "heif", "jfif", "jpeg", "jpg", "m4a", "mkv", "mov", "mp3", "mp4",
    "png", "tif", "tiff", "wav", "webm", "webp",
];

/// What a key that is not read means for its row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing.
    Harmless,
    /// Not known; named in a warning.
    Unknown,
    /// The row would not be the one that its author means: why.
    Changes(&'static str),
}

/// The keys of a record that are not read.
pub(super) fn others<'o, 'a>(object: &'o Object<'a>) -> impl Iterator<Item = (&'o str, &'a RawValue)> {
    let read: Vec<_> = [ID, IMAGES, SYSTEM].into_iter().chain(layouts::keys(object)).chain(image_key(object)).collect();
    object.iter().filter(move |(key, _)| !read.iter().any(|spellings| spellings.contains(key)))
}

/// What a key of a record that is not read means; `images` is the number of images that are.
pub(super) fn meaning(key: &str, value: &RawValue, images: usize) -> Meaning {
    let name = key.to_ascii_lowercase();
    let name = name.as_str();
    if is_empty(value) {
        return Meaning::Harmless;
    }
    if let Some(neutral) = unread(name) {
        let harmless = neutral.is_held_by(value);
        return if harmless { Meaning::Harmless } else { Meaning::Changes("it changes what the row teaches") };
    }
    if value.get() == "false" {
        return Meaning::Harmless;
    }
    if name == "split" && !is_of_training(value) {
        return Meaning::Changes("the row is of another split than train");
    }
    let harmless = HARMLESS.contains(&name) || (images > 0 && ORIGINS.contains(&name));
    let is_media = !harmless && value.get().contains('"') && MEDIA_WORDS.iter().any(|word| name.contains(word));
    if is_media {
        return Meaning::Changes("pictures are read from `image` or `images` alone, films and sound not at all");
    }
    if !harmless && value.get().contains('"') && name.contains("system") {
        return Meaning::Changes("a system prompt is read from `system` or `system_prompt` alone");
    }
    if images == 0 && names_media(value) {
        return Meaning::Changes(
            "it names a picture, film or sound, and the row has no image (a picture is named by `image`: rename the key or column)",
        );
    }
    if harmless {
        return Meaning::Harmless;
    }
    Meaning::Unknown
}

/// Names of the split that is trained on; `restval` is COCO's, of Karpathy.
fn is_of_training(split: &RawValue) -> bool {
    let name = split.get().trim_matches('"').to_ascii_lowercase();
    name.starts_with("train") || name == "restval"
}

/// Refuses a record with a key that would change it.
pub(super) fn check(object: &Object<'_>, images: usize) -> Result<(), RecordError> {
    match others(object).find_map(|(key, value)| match meaning(key, value, images) {
        Meaning::Changes(why) => Some((key, why)),
        _ => None,
    }) {
        None => Ok(()),
        Some((key, why)) => Err(refused(&format!("key {key:?}"), why)),
    }
}

/// Refuses a turn with a key that would change it; `read` are the keys that are read.
pub(super) fn check_turn(number: usize, turn: &Object<'_>, read: &[&[&str]]) -> Result<(), RecordError> {
    let is_read = |key: &str| read.iter().any(|spellings| spellings.contains(&key));
    // `false` under an unknown key may mean that the turn is not trained on: it is refused as `true` is.
    let changes_nothing = |key: &str, value: &RawValue| {
        let neutral = unread(&key.to_ascii_lowercase());
        HARMLESS_IN_TURN.contains(&key) || is_empty(value) || neutral.is_some_and(|neutral| neutral.is_held_by(value))
    };
    let mut others = turn.iter().filter(|(key, value)| !(is_read(key) || changes_nothing(key, value)));
    match others.next() {
        None => Ok(()),
        Some((key, _)) => Err(refused(&format!("turn {number}, key {key:?}"), "it may change the turn")),
    }
}

fn refused(place: &str, why: &str) -> RecordError {
    RecordError::new(
        Fault::UnreadKey,
        format!("{place} is not read: {why}; remove the key if the row is right without it"),
    )
}

/// Holds nothing: null or empty.
fn is_empty(value: &RawValue) -> bool {
    let text = value.get();
    match kind(value) {
        Kind::Null => true,
        Kind::Text => text[1..text.len() - 1].trim().is_empty() || text == r#""[]""#,
        Kind::List | Kind::Object => text[1..text.len() - 1].trim().is_empty(),
        Kind::Boolean | Kind::Number => false,
    }
}

/// Looks a key up in [`UNREAD`]; `name` is in lower case.
fn unread(name: &str) -> Option<Neutral> {
    if name.starts_with(PREFERENCE_PREFIX) {
        return Some(Neutral::Never);
    }
    UNREAD.iter().find(|(key, _)| *key == name).map(|(_, neutral)| *neutral)
}

impl Neutral {
    /// Numbers are compared by value: 1, 1.0 and 1.00 are equal.
    fn is_held_by(self, value: &RawValue) -> bool {
        let text = value.get();
        let number = text.parse::<f64>();
        match self {
            Self::One => text == "true" || number == Ok(1.0),
            Self::Zero => text == "false" || number == Ok(0.0),
            Self::Never => false,
        }
    }
}

/// Whether a text at any depth of the value, keys of objects included, is the name of an image, video or audio file.
fn names_media(value: &RawValue) -> bool {
    texts(value.get()).any(|text| {
        // The query of a URL comes after the file name.
        let path = text.split_once("://").and_then(|(_, path)| path.split(['?', '#']).next());
        has_media_ending(&text) || path.is_some_and(has_media_ending)
    })
}

fn has_media_ending(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.trim().to_ascii_lowercase());
    ending.is_some_and(|ending| MEDIA_ENDINGS.contains(&ending.as_str()))
}

/// All texts of a JSON value, keys of objects included. They are found by their quotes, without recursion: the scan is
/// linear in the value's length at any depth.
fn texts(json: &str) -> impl Iterator<Item = String> {
    let mut rest = json;
    let quoted = std::iter::from_fn(move || {
        let text = &rest[rest.find('"')?..];
        let mut escaped = false;
        let (end, _) = text.bytes().enumerate().skip(1).find(|&(_, byte)| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        rest = &text[end + 1..];
        Some(&text[..=end])
    });
    // A text with half of a surrogate pair cannot be decoded; its ending can be read all the same.
    quoted.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.trim_matches('"').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_harmless_unknown_or_refused_by_what_they_hold() {
        let changes = |key: &str, value: &str, images: usize| {
            let value: Box<RawValue> = serde_json::from_str(value).expect("JSON");
            match meaning(key, &value, images) {
                Meaning::Harmless => "harmless",
                Meaning::Unknown => "unknown",
                Meaning::Changes(_) => "refused",
            }
        };
        for (key, value, images, expected) in [
            ("split", "\"train_2014\"", 1, "harmless"),
            ("split", "\"\"", 1, "harmless"),
            ("split", "\"Validation\"", 1, "refused"),
            ("videos", "[]", 0, "harmless"),
            ("videos", "[\"a.mp4\"]", 1, "refused"),
            ("video", "\"clip\"", 1, "refused"),
            ("tools", "\"[]\"", 0, "harmless"),
            ("tools", "\"\"", 0, "harmless"),
            ("tools", "\"[{}]\"", 0, "refused"),
            ("objects", "{\"ref\": []}", 1, "refused"),
            ("history", "[]", 0, "harmless"),
            ("history", "[[\"a\", \"b\"]]", 0, "refused"),
            ("weight", "1.0", 0, "harmless"),
            ("weight", "0.5", 0, "refused"),
            ("image_path", "\"a.jpg\"", 0, "refused"),
            ("image_path", "\"coco/a.jpg\"", 1, "harmless"),
            ("image_2", "\"b.jpg\"", 1, "refused"),
            ("IMG", "\"b\"", 0, "refused"),
            ("image_id", "42", 0, "harmless"),
            ("image_id", "\"000042\"", 0, "harmless"),
            ("image_tokens", "576", 1, "unknown"),
            ("file_name", "\"a.JPG\"", 0, "refused"),
            ("file_name", "\"a.JPG\"", 1, "unknown"),
            ("url", "\"http://x/a.png\"", 0, "refused"),
            ("url", "\"http://x/a.png\"", 1, "harmless"),
            ("model", "\"gpt-4.5\"", 0, "harmless"),
            ("system_message", "\"Be brief.\"", 1, "refused"),
            ("System", "\"Be brief.\"", 1, "refused"),
            ("note", "\"see page 3.\"", 0, "unknown"),
            ("blip_caption", "\"a cat\"", 1, "unknown"),
            // `false` is empty under keys without a meaning of their own, and there alone.
            ("is_translated", "false", 0, "harmless"),
            ("videos", "false", 0, "harmless"),
            ("is_translated", "true", 0, "unknown"),
            ("loss_weight", "false", 0, "refused"),
            ("sample_weight", "0", 1, "refused"),
            ("Train_On_Turn", "false", 1, "refused"),
            ("train_on_turn", "true", 1, "harmless"),
            ("train", "0.0", 0, "refused"),
            ("trainable", "1", 0, "harmless"),
            ("weights", "1.000", 0, "harmless"),
            ("weights", "10e-1", 0, "harmless"),
            ("weight", "1.0001", 0, "refused"),
            ("weight", "-1", 0, "refused"),
            ("weight", "\"1\"", 0, "refused"),
            ("weight", "null", 0, "harmless"),
            ("mask", "1.0", 0, "refused"),
            ("mask", "0.00", 0, "harmless"),
            ("masked", "true", 0, "refused"),
            ("masked", "false", 0, "harmless"),
            ("rejected", "1", 0, "refused"),
            ("rejected", "-0.0", 0, "harmless"),
            ("tools", "false", 0, "harmless"),
            ("tools", "true", 0, "refused"),
            ("kto_score", "0", 0, "refused"),
            ("KTO_tag", "true", 0, "refused"),
            ("kto_label", "null", 0, "harmless"),
            ("chosen", "false", 0, "refused"),
            ("chosen", "true", 0, "refused"),
            ("label", "true", 0, "refused"),
            ("label", "0", 1, "refused"),
            ("label", "\"\"", 1, "harmless"),
            // Names of files at any depth.
            ("metadata", "{\"origin\": {\"files\": [\"x\", \"clip.MOV\"]}}", 0, "refused"),
            ("metadata", "{\"origin\": {\"files\": [\"x\", \"clip.MOV\"]}}", 1, "harmless"),
            ("source", "[[{\"p\": \"scan\\u002etiff\"}]]", 0, "refused"),
            ("meta", "{\"b.webp\": {\"boxes\": 2}}", 0, "refused"),
            ("meta", "[\"say \\\"hi\\\"\", \"\\\\\", \"voice.m4a\"]", 0, "refused"),
            ("url", "\"https://x.org/p.png?w=40\"", 0, "refused"),
            ("meta", "{\"image\": \"none\", \"png\": 3, \"n\": [0.5, null, \"coco 2017\", \"v1.5\"]}", 0, "harmless"),
            ("notes", "[{\"text\": \"a film of 3.5 hours\"}]", 0, "unknown"),
        ] {
            assert_eq!(changes(key, value, images), expected, "{key}: {value}, {images} image(s)");
        }
    }

    #[test]
    fn a_turn_may_have_harmless_keys_and_neutral_values_only() {
        for (entry, harmless) in [
            (r#""loss": true"#, true),
            (r#""Loss": 1.00"#, true),
            (r#""loss": false"#, false),
            (r#""loss": 0"#, false),
            (r#""loss": null"#, true),
            (r#""weight": 1.00"#, true),
            (r#""weight": 0.999"#, false),
            (r#""train": false"#, false),
            (r#""trainable": 0"#, false),
            (r#""train_on_turn": 1"#, true),
            (r#""mask": true"#, false),
            (r#""mask": 0"#, true),
            (r#""masked": 1.0"#, false),
            (r#""label": false"#, false),
            (r#""chosen": true"#, false),
            (r#""kto_tag": false"#, false),
            (r#""is_hidden": false"#, false),
            (r#""is_hidden": true"#, false),
            (r#""is_hidden": null"#, true),
            (r#""markdown": {}"#, true),
            (r#""lang": "en""#, true),
            (r#""tool_calls": []"#, true),
        ] {
            let turn = format!(r#"{{"from": "gpt", "value": "A", {entry}}}"#);
            let turn: Object<'_> = serde_json::from_str(&turn).expect(entry);
            let checked = check_turn(1, &turn, &[&["from"], &["value"]]);
            assert_eq!(checked.is_ok(), harmless, "{entry}: {checked:?}");
            assert!(checked.err().is_none_or(|error| error.fault == Fault::UnreadKey), "{entry}");
        }
    }
}
