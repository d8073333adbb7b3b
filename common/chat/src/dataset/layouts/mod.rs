//! How records give their turns: a layout is a file, and a row of [`LAYOUTS`].

mod caption;
mod parts;
mod question;
mod turns;

use super::fault::EMPTY_TEXT_REMEDY;
use super::object::{Kind, Object, RowParser, kind};
use super::record::entry;
use super::{Fault, RecordError};
use crate::Message;
use serde_json::value::RawValue;

/// The first one whose keys a record has counts: beside turns, a caption is a note.
const LAYOUTS: &[Layout] = &[turns::LAYOUT, question::LAYOUT, caption::CAPTION, caption::TEXT];

/// A key and its value.
type Entry<'a> = (&'static str, &'a RawValue);

/// Spellings of a key.
type Spellings = &'static [&'static str];

/// The question of a record that has none of its own.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its text, with a marker for each image.
    pub(super) question: String,
    /// Images of the record.
    pub(super) images: usize,
}

/// Reads the turns of a record.
type ReadTurns = for<'a> fn(RowParser<'a>, &Object<'a>, Entry<'a>, &Asked) -> Result<Vec<Message>, RecordError>;

/// A way to give turns.
struct Layout {
    /// The key that a record of this layout has.
    key: Spellings,
    /// One of these has to be there, too; none where the list is empty.
    beside: Spellings,
    /// Its name by the spelling of the key, for people.
    name: fn(&str) -> &'static str,
    /// The turns of a record that has the key, with this value.
    read: ReadTurns,
}

impl Layout {
    fn is_of(&self, has: impl Fn(Spellings) -> bool) -> bool {
        has(self.key) && (self.beside.is_empty() || has(self.beside))
    }
}

/// The turns of a record, at least one.
pub(super) fn turns<'a>(
    parser: RowParser<'a>,
    object: &Object<'a>,
    asked: &Asked,
) -> Result<Vec<Message>, RecordError> {
    for layout in LAYOUTS.iter().filter(|layout| layout.is_of(|keys| is_there(object, keys))) {
        let Some((key, value)) = entry(parser, object, layout.key)? else { continue };
        let turns = (layout.read)(parser, object, (key, value), asked)?;
        return match turns.is_empty() {
            true => Err(RecordError::new(Fault::NoTurns, format!("{key} is empty"))),
            false => Ok(turns),
        };
    }
    let detail = format!("no {} among the row's keys ({})", known_keys(), object.names());
    Err(RecordError::new(Fault::NoTurns, detail))
}

/// Refuses a record of no layout that has keys of one without a value, as the empty cell of a table.
///
/// # Errors
/// The empty keys by name.
pub(super) fn refuse_empty(object: &Object<'_>) -> Result<(), RecordError> {
    let is_empty = |(name, value): &(&str, &RawValue)| is_key(name) && kind(value) == Kind::Null;
    let empty: Vec<&str> = object.iter().filter(is_empty).map(|(name, _)| name).collect();
    if of(object).is_some() || empty.is_empty() {
        return Ok(());
    }
    let are = if empty.len() == 1 { "is" } else { "are" };
    Err(RecordError::new(Fault::NoTurns, format!("{} {are} empty; {EMPTY_TEXT_REMEDY}", empty.join(" and "))))
}

/// `conversations or messages or …`
pub(super) fn known_keys() -> String {
    let words = |layout: &Layout| match layout.beside {
        [] => layout.key.join(" or "),
        beside => format!("{} with {}", layout.key.join("/"), beside.join("/")),
    };
    LAYOUTS.iter().map(words).collect::<Vec<_>>().join(" or ")
}

/// The layout's name of a record with these keys, for people; `None` if no layout has one of them.
pub(super) fn name_of<'k>(keys: impl Iterator<Item = &'k str> + Clone) -> Option<&'static str> {
    let has = |spellings: Spellings| keys.clone().any(|key| spellings.contains(&key));
    let layout = LAYOUTS.iter().find(|layout| layout.is_of(has))?;
    keys.clone().find(|key| layout.key.contains(key)).map(layout.name)
}

/// Keys that are read of a record for its turns.
pub(super) fn keys(object: &Object<'_>) -> Vec<Spellings> {
    of(object).map_or(Vec::new(), |layout| vec![layout.key, layout.beside])
}

/// Whether a layout reads a key of this name.
pub(super) fn is_key(name: &str) -> bool {
    LAYOUTS.iter().any(|layout| layout.key.contains(&name) || layout.beside.contains(&name))
}

/// Whether a record has no list of turns: a caption, or a question with its answer.
pub(super) fn is_captioned(object: &Object<'_>) -> bool {
    of(object).is_some_and(|layout| layout.key != turns::LAYOUT.key)
}

fn of(object: &Object<'_>) -> Option<&'static Layout> {
    LAYOUTS.iter().find(|layout| layout.is_of(|keys| is_there(object, keys)))
}

fn is_there(object: &Object<'_>, key: Spellings) -> bool {
    object.iter().any(|(name, value)| key.contains(&name) && kind(value) != Kind::Null)
}
