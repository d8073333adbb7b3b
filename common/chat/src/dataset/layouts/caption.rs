//! A caption beside a picture: the answer to a question that `--prompt` gives, or the default one.

use super::{Asked, Entry, Layout};
use crate::dataset::RecordError;
use crate::dataset::object::{Object, RowParser};
use crate::{Message, Role};

pub(super) const CAPTION: Layout = Layout { key: &["caption"], beside: &[], name: |_| "captions", read };
pub(super) const TEXT: Layout = Layout { key: &["text"], beside: &[], name: |_| "captions", read };

fn read<'a>(
    parser: RowParser<'a>,
    _: &Object<'a>,
    (key, value): Entry<'a>,
    asked: &Asked,
) -> Result<Vec<Message>, RecordError> {
    let content = parser.text(key, value, "one text; several captions of a picture are a row each")?;
    if asked.images == 0 {
        return Err(parser.fault(&format!("{key}: no image beside it, expected image or file_name with a file's name")));
    }
    let question = Message { role: Role::User, content: asked.question.clone() };
    Ok(vec![question, Message { role: Role::Assistant, content: content.trim().to_owned() }])
}
