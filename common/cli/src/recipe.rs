//! Recipes: TOML files with a table of options for each program. A table is a command line in another form: every key is an
//! option in its `under_score` spelling, every value is what the option takes.

use crate::options::{List, OptionSpec};
use base::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// One table, or an array of tables: `[train]` or `[[train]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a table of options, [train] for example, or several, [[train]]")]
pub enum OneOrMore {
    /// `[train]`
    One(Table),
    /// `[[train]]`
    More(Vec<Table>),
}

impl OneOrMore {
    /// The same, to be changed.
    pub fn tables_mut(&mut self) -> &mut [Table] {
        match self {
            Self::One(table) => std::slice::from_mut(table),
            Self::More(tables) => tables,
        }
    }

    /// The tables in their order.
    pub fn tables(&self) -> &[Table] {
        match self {
            Self::One(table) => std::slice::from_ref(table),
            Self::More(tables) => tables,
        }
    }
}

/// Parses a recipe; `place` names it in errors.
///
/// # Errors
/// Malformed TOML, with line and column; what `T` refuses.
pub fn parse<T: DeserializeOwned>(text: &str, place: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        Error::invalid(place, error.to_string().trim_end(), "TOML with a recipe's tables", "correct the recipe")
    })
}

/// The lines on which the keys of a recipe's tables stand, and the order of the keys of values that are tables.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    lines: BTreeMap<Key, usize>,
    /// Of values that are tables, the tables in the order of the file: `toml` sorts them.
    values: BTreeMap<Key, Ordered>,
}

/// A table, its index among those of this name, and a key in it.
type Key = (String, usize, String);

/// The keys of a table in their order, with those of the tables in it.
#[derive(Clone, Debug, Default)]
struct Ordered(Vec<(String, Ordered)>);

impl Ordered {
    /// Of what is no table, nothing.
    fn of(value: &DeValue<'_>) -> Self {
        let mut keys: Vec<_> = value.as_table().into_iter().flatten().collect();
        keys.sort_by_key(|(key, _)| key.span().start);
        Self(keys.into_iter().map(|(key, value)| (key.get_ref().to_string(), Self::of(value.get_ref()))).collect())
    }

    /// A value with its keys in this order.
    fn json(&self, value: &Value) -> serde_json::Result<serde_json::Value> {
        let Value::Table(table) = value else { return serde_json::to_value(value) };
        let pairs = self.0.iter().filter_map(|(key, ordered)| Some((key, ordered, table.get(key)?)));
        let pairs = pairs.map(|(key, ordered, value)| Ok((key.clone(), ordered.json(value)?)));
        pairs.collect::<serde_json::Result<_>>().map(serde_json::Value::Object)
    }
}

impl Lines {
    /// Those of a text; none where it is no TOML.
    pub fn of(text: &str) -> Self {
        let Ok(document) = DeTable::parse(text) else { return Self::default() };
        let line = |at: usize| text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1;
        let (mut lines, mut values) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in document.get_ref() {
            let tables: Vec<&DeTable> = match value.get_ref() {
                DeValue::Table(table) => vec![table],
                DeValue::Array(items) => items.iter().filter_map(|item| item.get_ref().as_table()).collect(),
                _ => Vec::new(),
            };
            for (index, table) in tables.into_iter().enumerate() {
                let of_key = |key: &str| (name.get_ref().to_string(), index, key.to_string());
                lines.extend(table.keys().map(|key| (of_key(key.get_ref()), line(key.span().start))));
                let tables = table.iter().filter(|(_, value)| value.get_ref().is_table());
                values.extend(tables.map(|(key, value)| (of_key(key.get_ref()), Ordered::of(value.get_ref()))));
            }
        }
        Self { lines, values }
    }

    /// Turns values that are tables into JSON texts with their keys in the order of the file, in which options take them; the table
    /// is `[name]`, or the one with this index among several.
    pub fn put_in_order(&self, name: &str, index: usize, table: &mut Table) {
        for (key, value) in table {
            let ordered = self.values.get(&(name.to_string(), index, key.clone()));
            if let Some(Ok(json)) = ordered.map(|ordered| ordered.json(value)) {
                *value = Value::String(json.to_string());
            }
        }
    }

    /// `line 3: `, to stand before the place of a key of the table `[name]`, or of the one with this index among several; empty for a
    /// key that is not there.
    pub fn before(&self, name: &str, index: usize, key: &str) -> String {
        let line = self.lines.get(&(name.to_string(), index, key.to_string()));
        line.map_or(String::new(), |line| format!("line {line}: "))
    }
}

/// An option and its value, as the command line takes them; `key` is the name under which it stands in the table.
///
/// # Errors
/// A value that no option can have, or a list for an option that takes one value; `place` is where it stands.
pub fn words(option: &OptionSpec, key: &str, value: &Value, place: &str) -> Result<Vec<String>> {
    let texts = match (value, option.list) {
        (Value::Array(items), Some(list)) => {
            let items = items.iter().map(|item| plain(item, place)).collect::<Result<Vec<_>>>()?;
            match list {
                List::Repeated => items,
                List::Commas => vec![items.join(",")],
            }
        }
        (Value::Array(_), None) => return Err(unusable(place, "a list", "one value")),
        (value, _) => vec![plain(value, place)?],
    };
    // A value that begins like an option is tied to its own.
    let words = |text: String| match text.starts_with('-') {
        true => vec![format!("--{key}={text}")],
        false => vec![format!("--{key}"), text],
    };
    Ok(texts.into_iter().flat_map(words).collect())
}

/// A value as the command line takes it; a table as JSON.
fn plain(value: &Value, place: &str) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        Value::Table(table) => {
            serde_json::to_string(table).map_err(|error| unusable(place, &error.to_string(), "JSON"))
        }
        Value::Array(_) | Value::Datetime(_) => {
            Err(unusable(place, &value.to_string(), "text, a number, true or false"))
        }
    }
}

fn unusable(place: &str, found: &str, expected: &str) -> Error {
    Error::invalid(place, found, expected, "correct the recipe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: Option<List>, text: &str) -> Result<Vec<String>> {
        let table: Table = text.parse().expect("valid");
        let (key, value) = table.iter().next().expect("a key");
        words(&OptionSpec { name: key.clone(), list, kind: None }, key, value, "r.toml: [train]")
    }

    #[test]
    fn values_become_words() {
        let (commas, repeated) = (Some(List::Commas), Some(List::Repeated));
        for (list, text, expected) in [
            (None, "learning_rate = 1e-3", &["--learning_rate", "0.001"][..]),
            (commas, "lora_target_modules = [\"q\", \"v\"]", &["--lora_target_modules", "q,v"]),
            (None, "bf16 = true", &["--bf16", "true"]),
            (None, "max_steps = -1", &["--max_steps=-1"]),
            (None, "seed = 7.0", &["--seed", "7"]),
            (None, "lr_scheduler_kwargs = { num_cycles = 2 }", &["--lr_scheduler_kwargs", "{\"num_cycles\":2}"]),
            (repeated, "stop = [\"a, b\", \"e\"]", &["--stop", "a, b", "--stop", "e"]),
            (repeated, "stop = \"a\"", &["--stop", "a"]),
            (repeated, "stop = []", &[]),
            (None, "prompt = \"--what?\"", &["--prompt=--what?"]),
        ] {
            assert_eq!(found(list, text).expect("words"), expected, "{text}");
        }
        for (list, text) in [
            (None, "prompt = [\"a\", \"b\"]"),
            (None, "limit = [1]"),
            (repeated, "stop = [[\"a\"]]"),
            (None, "seed = 1979-05-27"),
        ] {
            let error = found(list, text).expect_err("refused").to_string();
            assert!(error.starts_with("r.toml: [train]: found "), "{text}: {error}");
        }
    }

    #[test]
    fn keys_have_their_lines() {
        let text = "purpose = \"é\"\n[data]\ndir = \"d\"\n\n# a note\n[[train]]\nseed = 1\n[[train]]\nbf16 = true\n  seed = 2\n";
        let lines = Lines::of(text);
        for (table, index, key, expected) in [
            ("data", 0, "dir", "line 3: "),
            ("train", 0, "seed", "line 7: "),
            ("train", 1, "seed", "line 10: "),
            ("train", 2, "seed", ""),
            ("train", 0, "bf16", ""),
        ] {
            assert_eq!(lines.before(table, index, key), expected, "{table} {index} {key}");
        }
    }

    #[test]
    fn tables_keep_the_order_of_the_file() {
        let text = "[train]\nseed = 1\ndata_path = { \"sb\" = 1.0, \"sa\" = 2, c.z = 1, c.a = \"x\" }\n[[data]]\n[[data]]\n\
                    [data.rank_pattern]\nz = 4\na = 8\n";
        let (lines, table) = (Lines::of(text), text.parse::<Table>().expect("valid"));
        for (name, index, key, expected) in [
            ("train", 0, "data_path", r#"{"sb":1.0,"sa":2,"c":{"z":1,"a":"x"}}"#),
            ("data", 1, "rank_pattern", r#"{"z":4,"a":8}"#),
        ] {
            let tables: OneOrMore = table[name].clone().try_into().expect("tables");
            let mut table = tables.tables()[index].clone();
            lines.put_in_order(name, index, &mut table);
            assert_eq!(table[key].as_str(), Some(expected), "{name}");
            assert_eq!(table.get("seed"), (name == "train").then_some(&Value::Integer(1)));
        }
    }

    #[test]
    fn both_forms_of_a_table_are_read() {
        #[derive(Debug, Deserialize)]
        struct Recipe {
            train: OneOrMore,
        }
        for (text, count) in [("[train]\nseed = 1\n", 1), ("[[train]]\nseed = 1\n[[train]]\nseed = 2\n", 2)] {
            assert_eq!(parse::<Recipe>(text, "").expect("valid").train.tables().len(), count);
        }
        let error = parse::<Recipe>("train = 1\n", "r.toml").expect_err("no table").to_string();
        assert!(error.contains("expected a table of options") && !error.contains("OneOrMore"), "{error}");
        let error = parse::<Recipe>("x\n", "r.toml").expect_err("no TOML").to_string();
        assert!(error.contains("r.toml") && error.contains("line 1"), "{error}");
    }
}
