//! How records give their turns: a layout is a file, and a row of [`LAYOUTS`].

mod turns;

use super::object::{Kind, Object, RowParser, kind};
use super::record::entry;
use super::{Fault, RecordError};
use crate::Message;
use serde_json::value::RawValue;

const LAYOUTS: &[Layout] = &[turns::LAYOUT];

/// A key and its value.
type Entry<'a> = (&'static str, &'a RawValue);

/// Spellings of a key.
type Spellings = &'static [&'static str];

/// A way to give turns.
struct Layout {
    /// The key that a record of this layout has.
    key: Spellings,
    /// Further keys that are read of such a record.
    more_keys: &'static [Spellings],
    /// The turns of a record that has the key, with this value.
    read: for<'a> fn(RowParser<'a>, &Object<'a>, Entry<'a>) -> Result<Vec<Message>, RecordError>,
}

/// The turns of a record, at least one.
pub(super) fn turns<'a>(parser: RowParser<'a>, object: &Object<'a>) -> Result<Vec<Message>, RecordError> {
    let mut found: Option<(&str, Vec<Message>)> = None;
    for layout in LAYOUTS {
        let Some((key, value)) = entry(parser, object, layout.key)? else { continue };
        if let Some((other, _)) = found {
            return Err(parser.fault(&format!("both `{other}` and `{key}`, expected one of them")));
        }
        found = Some((key, (layout.read)(parser, object, (key, value))?));
    }
    let detail = match found {
        Some((_, turns)) if !turns.is_empty() => return Ok(turns),
        Some((key, _)) => format!("{key} is empty"),
        None => {
            let keys: Vec<_> = LAYOUTS.iter().flat_map(|layout| layout.key).copied().collect();
            format!("no {} among the row's keys ({})", keys.join(" or "), object.names())
        }
    };
    Err(RecordError::new(Fault::NoTurns, detail))
}

/// Keys that are read of a record for its turns.
pub(super) fn keys(object: &Object<'_>) -> impl Iterator<Item = Spellings> {
    let is_there = |key: Spellings| object.iter().any(|(name, value)| key.contains(&name) && kind(value) != Kind::Null);
    let layouts = LAYOUTS.iter().filter(move |layout| is_there(layout.key));
    layouts.flat_map(|layout| std::iter::once(layout.key).chain(layout.more_keys.iter().copied()))
}
