//! Adding `<image>` to a language model's tokenizer files.

use super::{IMAGE_TOKEN, TextTokenizer};
use base::names;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

/// Tokenizer files that know `<image>`.
pub struct WithImageToken {
    /// Its id.
    pub id: u32,
    /// `tokenizer.json`, when it had to be changed.
    pub tokenizer: Option<Value>,
    /// `tokenizer_config.json`.
    pub config: Value,
}

/// Adds `<image>` as a special token: under its own id if the vocabulary has it, under the next free one otherwise.
///
/// `tokenizer_json` and `config` are the files' contents, `tokenizer` the same tokenizer loaded. Tokens that only the config
/// adds are written into `tokenizer.json`, too, so that it is complete.
pub fn add_image_token(tokenizer: &TextTokenizer, mut tokenizer_json: Value, mut config: Value) -> WithImageToken {
    let known = tokenizer.token_id(IMAGE_TOKEN);
    let id = known.unwrap_or_else(|| tokenizer.next_free_id());
    let is_image = |token: &Value| token[names::TOKEN_CONTENT] == IMAGE_TOKEN;
    let is_added = |tokens: &Value| tokens.as_array().is_some_and(|tokens| tokens.iter().any(is_image));
    let of_config = tokenizer.tokens_of_config();
    for (id, token) in of_config {
        write_token(&mut tokenizer_json[names::ADDED_TOKENS], *id, token);
    }
    if known.is_some() && is_added(&tokenizer_json[names::ADDED_TOKENS]) {
        let tokenizer = (!of_config.is_empty()).then_some(tokenizer_json);
        return WithImageToken { id, tokenizer, config };
    }
    let mut token = json!({"id": id});
    extend(&mut token, attributes());
    push(&mut tokenizer_json[names::ADDED_TOKENS], token);
    if let Some(decoder) = config.get_mut(names::ADDED_TOKENS_DECODER).and_then(Value::as_object_mut) {
        decoder.insert(id.to_string(), Value::Object(attributes()));
    }
    // 5.x keeps a list under the first key; older versions know only the second, and 5.x still reads it.
    let has_extra = config.get(names::EXTRA_SPECIAL_TOKENS).is_some_and(Value::is_array);
    let list = if has_extra { names::EXTRA_SPECIAL_TOKENS } else { names::ADDITIONAL_SPECIAL_TOKENS };
    push(&mut config[list], json!(IMAGE_TOKEN));
    WithImageToken { id, tokenizer: Some(tokenizer_json), config }
}

/// Puts a token into `added_tokens`, in place of the one with its id.
fn write_token(added_tokens: &mut Value, id: u32, token: &AddedToken) {
    let entry = json!({
        "id": id,
        (names::TOKEN_CONTENT): token.content,
        "single_word": token.single_word,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.normalized,
        "special": token.special,
    });
    let tokens = added_tokens.as_array_mut();
    match tokens.and_then(|tokens| tokens.iter_mut().find(|token| token["id"] == id)) {
        Some(place) => *place = entry,
        None => push(added_tokens, entry),
    }
}

/// What `AddedToken` says of a special token.
fn attributes() -> Map<String, Value> {
    let mut attributes = Map::new();
    attributes.insert(names::TOKEN_CONTENT.into(), json!(IMAGE_TOKEN));
    for (key, value) in names::TOKEN_FLAGS {
        attributes.insert(key.into(), json!(value));
    }
    attributes
}

fn extend(object: &mut Value, entries: Map<String, Value>) {
    if let Some(object) = object.as_object_mut() {
        object.extend(entries);
    }
}

/// Appends to a list, which is made if there is none.
fn push(list: &mut Value, value: Value) {
    match list.as_array_mut() {
        Some(list) if list.contains(&value) => {}
        Some(list) => list.push(value),
        None => *list = json!([value]),
    }
}
