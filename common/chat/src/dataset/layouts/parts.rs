//! A turn's content as a list of parts, `[{"type": "image"}, {"type": "text", "text": …}]`: what transformers' processors take.

use crate::IMAGE_TOKEN;
use crate::dataset::RecordError;
use crate::dataset::object::{Kind, Object, RowParser, kind};
use crate::dataset::record::entry;
use serde_json::value::RawValue;

const TYPE: &[&str] = &["type"];
const TEXT: &[&str] = &["text"];
/// The number of an image among those of the row.
const INDEX: &[&str] = &["index"];

/// The parts as one text: each on a line, a marker for each image; the markers come first where all images follow the text. `images`
/// counts the image parts of the row.
///
/// # Source
/// `list_contents.jinja`, which does the same for templates.
pub(super) fn text<'a>(
    parser: RowParser<'a>,
    place: &str,
    content: &'a RawValue,
    images: &mut usize,
) -> Result<String, RecordError> {
    let values: Vec<&RawValue> = parser.parse(content)?;
    let (mut lines, mut texts) = (Vec::new(), 0);
    let mut last_text = None;
    let mut first_image = None;
    for (number, value) in values.into_iter().enumerate() {
        let part = part(parser, &format!("{place}: part {number}"), value, *images)?;
        let Some(text) = part else {
            *images += 1;
            first_image.get_or_insert(lines.len());
            lines.push(IMAGE_TOKEN.to_string());
            continue;
        };
        if !text.is_empty() {
            texts += 1;
            last_text = Some(lines.len());
            lines.push(text);
        }
    }
    if let (Some(image), Some(text)) = (first_image, last_text)
        && text < image
    {
        lines.rotate_left(texts);
    }
    Ok(lines.join("\n"))
}

/// A part's text; `None`: an image, the `next` one of the row.
fn part<'a>(
    parser: RowParser<'a>,
    place: &str,
    value: &'a RawValue,
    next: usize,
) -> Result<Option<String>, RecordError> {
    match kind(value) {
        Kind::Text => return Ok(Some(parser.owned(value)?)),
        Kind::Object => {}
        _ => return Err(parser.unexpected(place, value, "an object with `type`")),
    }
    let object: Object<'_> = parser.parse(value)?;
    let required = |key: &[&'static str]| match entry(parser, &object, key)? {
        Some((key, value)) => parser.text(&format!("{place}: {key}"), value, "text"),
        None => Err(parser.fault(&format!("{place} has no `{}`", key.concat()))),
    };
    let is_image = match required(TYPE)?.as_str() {
        "text" => false,
        "image" => true,
        other => {
            return Err(parser.fault(&format!("{place}: found type {other:?}, expected \"text\" or \"image\"")));
        }
    };
    let read: &[&[&str]] = if is_image { &[TYPE, INDEX] } else { &[TYPE, TEXT] };
    let others = object.iter().find(|(key, value)| kind(value) != Kind::Null && !read.concat().contains(key));
    if let Some((key, _)) = others {
        let remedy = if is_image { "an image's file is named in `image` or `images` of the row" } else { "remove it" };
        return Err(parser.fault(&format!("{place}: key {key:?} is not read; {remedy}")));
    }
    if !is_image {
        return required(TEXT).map(Some);
    }
    match entry(parser, &object, INDEX)? {
        Some((_, index)) if index.get() != next.to_string() => {
            let what =
                format!("{place}: image {}, expected image {next}: in the order of the row's images", index.get());
            Err(parser.fault(&what))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::dataset::record::tests::read;
    use serde_json::json;

    fn row(contents: &[serde_json::Value]) -> String {
        let turn = |content| json!({"role": "user", "content": content});
        json!({"image": ["a.jpg", "b.jpg"], "messages": contents.iter().map(turn).collect::<Vec<_>>()}).to_string()
    }

    #[test]
    fn parts_become_lines() {
        let image = json!({"type": "image"});
        let text = |text: &str| json!({"type": "text", "text": text, "index": null});
        for (content, expected) in [
            (json!([image, text("What?")]), "<image>\nWhat?"),
            (json!([text("What?"), image]), "<image>\nWhat?"),
            (json!([text("What?"), text("Now."), image, image]), "<image>\n<image>\nWhat?\nNow."),
            (json!([text("A"), image, text("B"), image]), "A\n<image>\nB\n<image>"),
            (json!([{"type": "image", "index": 0, "text": null}, "What?", text("")]), "<image>\nWhat?"),
            (json!([image]), "<image>"),
            (json!([text("Only text.")]), "Only text."),
            (json!([]), ""),
        ] {
            let record = read(&row(std::slice::from_ref(&content))).expect("a record");
            assert_eq!(record.turns[0].content, expected, "{content}");
        }
        let numbered = |index: usize| json!([{"type": "image", "index": index}, {"type": "text", "text": "Q"}]);
        let record = read(&row(&[numbered(0), numbered(1)])).expect("numbers go on from turn to turn");
        assert_eq!(record.turns[1].content, "<image>\nQ");
    }

    #[test]
    fn other_parts_are_refused_by_name() {
        for (part, what) in [
            (json!({"type": "video"}), "turn 0: content: part 0: found type \"video\", expected \"text\" or \"image\""),
            (json!({"text": "Q"}), "part 0 has no `type`"),
            (json!({"type": "text"}), "part 0 has no `text`"),
            (json!({"type": "text", "text": ["Q"]}), "part 0: text: found a list, expected text"),
            (json!({"type": "image", "url": "a.jpg"}), "part 0: key \"url\" is not read; an image's file is named in"),
            (json!({"type": "text", "text": "Q", "weight": 0}), "part 0: key \"weight\" is not read"),
            (json!({"type": "image", "index": 1}), "part 0: image 1, expected image 0"),
            (json!(3), "part 0: found a number, expected an object with `type`"),
        ] {
            let error = read(&row(&[json!([part])])).expect_err("refused");
            assert!(error.to_string().contains(what), "{part}: {error}");
        }
    }
}
