//! Which keys of a record are read, change nothing, or would change the row.

use super::object::{Kind, Object, kind};
use super::{Fault, RecordError};
use serde_json::value::RawValue;

/// Spellings of each key that is read.
pub(super) const ID: &[&str] = &["id"];
pub(super) const IMAGES: &[&str] = &["image", "images"];
pub(super) const SYSTEM: &[&str] = &["system", "system_prompt"];
pub(super) const TURNS: &[&str] = &["conversations", "messages"];
pub(super) const SPEAKER: &[&str] = &["from", "role"];
pub(super) const TEXT: &[&str] = &["value", "content"];

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

/// Harmless keys of a turn. Any other that holds something makes the row refused: a turn is what is trained on.
const HARMLESS_IN_TURN: [&str; 9] =
    ["category", "id", "index", "lang", "language", "model", "source", "timestamp", "turn"];

/// Keys that other trainers read and that change what a row teaches.
const UNREAD: [&str; 22] = [
    "chat_template_kwargs",
    "chosen",
    "documents",
    "function_call",
    "functions",
    "history",
    "kto_label",
    "kto_tag",
    "loss",
    "loss_weight",
    "mask",
    "objects",
    "rejected",
    "rejected_images",
    "rejected_messages",
    "rejected_response",
    "sample_weight",
    "tool_calls",
    "tools",
    "train_on_turn",
    "weight",
    "weights",
];

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
const MEDIA_ENDINGS: [&str; 18] = [
    "avi", "avif", "bmp", "flac", "gif", "heic", "jpeg", "jpg", "mkv", "mov", "mp3", "mp4", "png", "tif", "tiff",
    "wav", "webm", "webp",
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

/// Whether a key is read.
pub(super) fn is_read(key: &str) -> bool {
    [ID, IMAGES, SYSTEM, TURNS].iter().any(|spellings| spellings.contains(&key))
}

/// What a key of a record that is not read means; `images` is the number of images that are.
pub(super) fn meaning(key: &str, value: &RawValue, images: usize) -> Meaning {
    let name = key.to_ascii_lowercase();
    let name = name.as_str();
    if is_empty(value) {
        return Meaning::Harmless;
    }
    if UNREAD.contains(&name) {
        return if is_neutral(value) { Meaning::Harmless } else { Meaning::Changes("it changes what the row teaches") };
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
        return Meaning::Changes("it names a picture, film or sound, and the row has no image");
    }
    if harmless {
        return Meaning::Harmless;
    }
    Meaning::Unknown
}

/// Refuses a record with a key that would change it.
pub(super) fn check(object: &Object<'_>, images: usize) -> Result<(), RecordError> {
    let mut others = object.iter().filter(|(key, _)| !is_read(key));
    match others.find_map(|(key, value)| match meaning(key, value, images) {
        Meaning::Changes(why) => Some((key, why)),
        _ => None,
    }) {
        None => Ok(()),
        Some((key, why)) => Err(refused(&format!("key {key:?}"), why)),
    }
}

/// Refuses a turn with a key that would change it.
pub(super) fn check_turn(number: usize, turn: &Object<'_>) -> Result<(), RecordError> {
    let is_read = |key: &str| [SPEAKER, TEXT].iter().any(|spellings| spellings.contains(&key));
    let changes_nothing = |key: &str, value: &RawValue| {
        HARMLESS_IN_TURN.contains(&key) || is_empty(value) || (UNREAD.contains(&key) && is_neutral(value))
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

/// Holds nothing: null, empty, false.
fn is_empty(value: &RawValue) -> bool {
    let text = value.get();
    match kind(value) {
        Kind::Null => true,
        Kind::Boolean => text == "false",
        Kind::Text => text[1..text.len() - 1].trim().is_empty() || text == r#""[]""#,
        Kind::List | Kind::Object => text[1..text.len() - 1].trim().is_empty(),
        Kind::Number => false,
    }
}

/// The value under which such a key changes nothing: a weight of 1, a loss that counts.
fn is_neutral(value: &RawValue) -> bool {
    matches!(value.get(), "true" | "1" | "1.0")
}

/// A text, or a list with one, that ends as files of pictures, films and sound do.
fn names_media(value: &RawValue) -> bool {
    let is_media = |text: &str| {
        let ending = text.rsplit_once('.').map(|(_, ending)| ending.trim().to_ascii_lowercase());
        ending.is_some_and(|ending| MEDIA_ENDINGS.contains(&ending.as_str()))
    };
    match kind(value) {
        Kind::Text => is_media(value.get().trim_matches('"')),
        Kind::List => serde_json::from_str::<Vec<&RawValue>>(value.get()).is_ok_and(|values| {
            values.iter().any(|value| kind(value) == Kind::Text && is_media(value.get().trim_matches('"')))
        }),
        _ => false,
    }
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
        ] {
            assert_eq!(changes(key, value, images), expected, "{key}: {value}, {images} image(s)");
        }
    }
}
