//! `tojson` as transformers defines it: Python's `json.dumps`, with nothing escaped for HTML.

use super::invalid;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};
use std::fmt::Write;

struct Style {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn filter(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let indent = indent.or(kwargs.get("indent")?).filter(|indent| !indent.is_none());
    let indent = indent.map(|indent| match indent.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(usize::try_from(indent.clone()).unwrap_or(0).min(64)),
    });
    let separators: Option<Value> = kwargs.get("separators")?;
    let separators = separators.filter(|separators| !separators.is_none());
    let [item_separator, key_separator] = match separators {
        Some(separators) => [separators.get_item(&Value::from(0))?, separators.get_item(&Value::from(1))?]
            .map(|separator| separator.to_string()),
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(String::from),
    };
    let style = Style {
        ascii: ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut json = String::new();
    style.write(&mut json, value, 0)?;
    Ok(Value::from(json))
}

impl Style {
    fn write(&self, json: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.push_str(&number(value)),
            ValueKind::String => self.write_text(json, value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(json, ['[', ']'], items.len(), depth, |json, index| {
                    self.write(json, &items[index], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(json, ['{', '}'], keys.len(), depth, |json, index| {
                    let key = &keys[index];
                    match key.kind() {
                        ValueKind::String => self.write(json, key, depth)?,
                        _ => {
                            let mut text = String::new();
                            self.write(&mut text, key, depth)?;
                            self.write_text(json, &text);
                        }
                    }
                    json.push_str(&self.key_separator);
                    self.write(json, &value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        json: &mut String,
        [open, close]: [char; 2],
        count: usize,
        depth: usize,
        item: impl Fn(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        json.push(open);
        for index in 0..count {
            if index > 0 {
                json.push_str(&self.item_separator);
            }
            self.new_line(json, depth + 1);
            item(json, index)?;
        }
        if count > 0 {
            self.new_line(json, depth);
        }
        json.push(close);
        Ok(())
    }

    fn new_line(&self, json: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            json.push('\n');
            json.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_text(&self, json: &mut String, text: &str) {
        json.push('"');
        for c in text.chars() {
            match c {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\r' => json.push_str("\\r"),
                '\t' => json.push_str("\\t"),
                '\u{8}' => json.push_str("\\b"),
                '\u{c}' => json.push_str("\\f"),
                c if c < ' ' || self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing into a String cannot fail.
                        let _ = write!(json, "\\u{unit:04x}");
                    }
                }
                c => json.push(c),
            }
        }
        json.push('"');
    }
}

/// Python's `repr` of a number.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    let magnitude = number.abs();
    if number.is_nan() {
        "NaN".into()
    } else if number.is_infinite() {
        if number < 0.0 { "-Infinity".into() } else { "Infinity".into() }
    } else if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        // 1e20 → 1e+20, 1.5e-7 → 1.5e-07
        let text = format!("{number:e}");
        match text.split_once('e') {
            Some((mantissa, exponent)) => {
                let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                format!("{mantissa}e{sign}{digits:0>2}")
            }
            None => text,
        }
    } else {
        format!("{number:?}")
    }
}
