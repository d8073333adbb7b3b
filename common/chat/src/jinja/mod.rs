//! Jinja as transformers sets it up for chat templates, on minijinja.
//!
//! # Source
//! transformers `utils/chat_template_utils.py`, `_compile_jinja_template`: a sandbox without autoescape, `trim_blocks`,
//! `lstrip_blocks`, loop controls, the `generation` tag, `tojson`, `raise_exception`, `strftime_now`.

mod clock;
mod python;
mod source;
mod to_json;

pub use clock::Clock;
pub use python::strip;

use minijinja::formatting::{FormatStyle, format};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// An environment whose only template is `source`, under `name`.
pub fn environment(name: &'static str, source: &str, clock: Clock) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(python::method);
    environment.remove_global("debug");
    environment.add_function("raise_exception", |text: String| -> Result<Value, Error> { Err(invalid(text)) });
    environment.add_function("strftime_now", move |format: String| clock.format(&format));
    environment.add_filter("tojson", to_json::filter);
    environment.add_filter("trim", trim);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("indent", python::indent);
    environment.add_filter(source::PERCENT_FILTER, percent);
    environment.add_test("sequence", is_sequence);
    environment.add_template_owned(name, source::translate(source))?;
    Ok(environment)
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// `trim(chars)`, with Python's idea of white space.
fn trim(value: &Value, chars: Option<String>) -> Value {
    let text = value.to_string();
    Value::from(strip(&text, chars.as_deref()))
}

/// `default(value, boolean)`, by position or by name.
fn default(value: Value, other: Option<Value>, boolean: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let by_name: Option<Value> = kwargs.get("default_value")?;
    let even_if_false = boolean.or(kwargs.get("boolean")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let takes_other = value.is_undefined() || (even_if_false && !value.is_true());
    Ok(if takes_other { other.or(by_name).unwrap_or_else(|| Value::from("")) } else { value })
}

/// `int(default)`: as in Jinja2, the default for a value that is not a number.
fn int(value: &Value, other: Option<i64>) -> Value {
    let text = value.as_str().map(str::trim);
    let number = match text {
        Some(text) => text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as i64)),
        None => integer(value).or_else(|| f64::try_from(value.clone()).ok().map(|number| number as i64)),
    };
    Value::from(number.unwrap_or(other.unwrap_or(0)))
}

/// In Python, a text is a sequence, too, and so is whatever has items and a length.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

/// Python's `%`.
fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let arguments = match right.downcast_object_ref::<Tuple>() {
            Some(tuple) => tuple.to_vec(),
            None => vec![right.clone()],
        };
        // minijinja passes over arguments that the format does not use.
        let used = text.replace("%%", "").matches('%').count();
        if right.kind() != ValueKind::Map && used < arguments.len() {
            return Err(invalid("not all arguments converted during string formatting with %"));
        }
        return format(FormatStyle::Printf, text, &arguments).map(Value::from);
    }
    let failure = || invalid(format!("tried to use % on {} and {}", left.kind(), right.kind()));
    if let (Some(left), Some(right)) = (integer(left), integer(right)) {
        // Python's remainder has the sign of the divisor.
        let remainder = left.checked_rem(right).ok_or_else(failure)?;
        let differs = remainder != 0 && (remainder < 0) != (right < 0);
        return Ok(Value::from(if differs { remainder + right } else { remainder }));
    }
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(left_number), Ok(right_number)) if is_number(left) && is_number(right) && right_number != 0.0 => {
            Ok(Value::from(left_number - right_number * (left_number / right_number).floor()))
        }
        _ => Err(failure()),
    }
}

fn integer(value: &Value) -> Option<i64> {
    let is_integer = value.is_integer() || value.kind() == ValueKind::Bool;
    is_integer.then(|| i64::try_from(value.clone()).ok()).flatten()
}
