//! Python's methods of texts, lists and dictionaries where minijinja has none or other ones.

use super::invalid;
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;

/// A method that minijinja does not know.
pub fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => value.as_str().map(|text| text_method(text, name, args)).transpose()?.flatten(),
        ValueKind::Seq if name == "index" => Some(index_in_list(value, args)?),
        ValueKind::Map if name == "copy" => Some(value.clone()),
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<String>,) = from_args(args)?;
            let chars = chars.as_deref();
            Value::from(match name {
                "strip" => strip(text, chars),
                "lstrip" => text.trim_start_matches(|c| is_stripped(c, chars)),
                _ => text.trim_end_matches(|c| is_stripped(c, chars)),
            })
        }
        "split" | "rsplit" => split(text, name == "rsplit", args)?,
        "splitlines" => split_lines(text, args)?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => partition(text, name == "rpartition", args)?,
        "index" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = text.find(wanted).ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "title" => Value::from(title(text)),
        "swapcase" => Value::from(text.chars().flat_map(swap_case).collect::<String>()),
        "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
        "center" | "ljust" | "rjust" | "zfill" => pad(text, name, args)?,
        _ => return Ok(None),
    }))
}

/// Python's `str.isspace` of one character: Unicode's white space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_stripped(c: char, chars: Option<&str>) -> bool {
    chars.map_or_else(|| is_space(c), |chars| chars.contains(c))
}

/// `str.strip`.
pub fn strip<'a>(text: &'a str, chars: Option<&str>) -> &'a str {
    text.trim_matches(|c| is_stripped(c, chars))
}

/// `str.split(sep=None, maxsplit=-1)` and `str.rsplit`.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (sep, maxsplit, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let sep: Option<Value> = sep.or(kwargs.get("sep")?).filter(|sep| !sep.is_none());
    let maxsplit = maxsplit.or(kwargs.get("maxsplit")?).unwrap_or(-1);
    kwargs.assert_all_used()?;
    let most = usize::try_from(maxsplit).unwrap_or(usize::MAX - 1);
    let parts: Vec<&str> = match sep {
        Some(sep) => {
            let sep =
                sep.as_str().filter(|sep| !sep.is_empty()).ok_or_else(|| invalid("empty or no text separator"))?;
            match from_right {
                true => {
                    let mut parts: Vec<&str> = text.rsplitn(most + 1, sep).collect();
                    parts.reverse();
                    parts
                }
                false => text.splitn(most + 1, sep).collect(),
            }
        }
        None => split_at_spaces(text, from_right, most),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_at_spaces(text: &str, from_right: bool, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None);
    while !rest.is_empty() && parts.len() < most {
        let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at else { break };
        let (left, right) = rest.split_at(at);
        match from_right {
            true => {
                parts.push(right.trim_start_matches(is_space));
                rest = left.trim_end_matches(is_space);
            }
            false => {
                parts.push(left);
                rest = right.trim_start_matches(is_space);
            }
        }
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// `str.splitlines(keepends=False)`.
fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep_ends, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
    let keep_ends = keep_ends.or(kwargs.get("keepends")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    Ok(lines(text, keep_ends).into_iter().map(Value::from).collect())
}

/// A text's lines, cut at every line boundary that Python knows.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_boundary = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, boundary)) = rest.char_indices().find(|(_, c)| is_boundary(*c)) {
        let length = if rest[at..].starts_with("\r\n") { 2 } else { boundary.len_utf8() };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Jinja2's filter `indent(width=4, first=False, blank=False)`; `width` may be the text to put before lines.
pub fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indentation = match width.as_str() {
        Some(text) => text.to_string(),
        None => {
            let width = i64::try_from(width.clone())?.max(0);
            " ".repeat(u16::try_from(width).map_err(|_| invalid(format!("indent by {width} columns")))?.into())
        }
    };
    // A final line break begins a last, empty line.
    let text = format!("{value}\n");
    let mut indented = String::new();
    for (index, line) in lines(&text, false).into_iter().enumerate() {
        if index > 0 {
            indented.push('\n');
        }
        let is_indented = if index == 0 { first } else { blank || !line.is_empty() };
        if is_indented {
            indented.push_str(&indentation);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

fn partition(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (sep,): (&str,) = from_args(args)?;
    let found = if from_right { text.rsplit_once(sep) } else { text.split_once(sep) };
    let parts = match (found, from_right) {
        (Some((before, after)), _) => [before, sep, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn swap_case(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// `str.title`: a letter behind a letter is small, every other one is capital.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => titled.extend(c.to_lowercase()),
            false => titled.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    titled
}

fn pad(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<char>) = from_args(args)?;
    let fill = fill.unwrap_or(if name == "zfill" { '0' } else { ' ' });
    let missing = usize::try_from(width).unwrap_or(0).min(1 << 16).saturating_sub(text.chars().count());
    let filled = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(Value::from(match name {
        "ljust" => format!("{text}{}", filled(missing)),
        "rjust" => format!("{}{text}", filled(missing)),
        "zfill" => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            format!("{}{}{digits}", &text[..text.len() - digits.len()], filled(missing))
        }
        _ => {
            // CPython's `str.center` puts the odd one on the left when the width is odd, too.
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            format!("{}{text}{}", filled(left), filled(missing - left))
        }
    }))
}

fn index_in_list(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (Value,) = from_args(args)?;
    let at = list.try_iter()?.position(|item| item == wanted);
    at.map(Value::from).ok_or_else(|| invalid(format!("{wanted} is not in list")))
}
