//! `rank_pattern` and `alpha_pattern`: other values for single layers, by regular expressions for the ends of their paths.
//!
//! # Source
//! peft 0.21, `utils/other.py`, `get_pattern_key`.

use super::targets::{is_match, regex};
use base::json::Distinct;
use base::{Error, Result};
use onig::Regex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Expressions and values, in their order: the first that fits a layer counts.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPattern<T>(Vec<(String, T)>);

impl<T> Default for LayerPattern<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> LayerPattern<T> {
    /// Without an expression.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<T: Copy> LayerPattern<T> {
    /// Refuses an expression that no layer takes its value from; `paths` are those of the layers with LoRA.
    ///
    /// # Errors
    /// The first such expression; no regular expression.
    pub(super) fn require_fitting(&self, place: &str, paths: &[String]) -> Result<()> {
        let Some((index, fits)) = self.compiled(place)?.idle(paths) else { return Ok(()) };
        let found = json!(self.0[index].0);
        Err(match fits {
            true => {
                let found = format!("{found}, whose layers all take the value of an expression before it");
                Error::invalid(place, found, "the first expression that fits a layer", "put it first, or leave it out")
            }
            false => {
                let ends = paths.iter().filter_map(|path| path.rsplit('.').next()).collect::<BTreeSet<_>>();
                let ends = ends.into_iter().collect::<Vec<_>>().join(", ");
                let example = paths.first().map_or("", String::as_str);
                let expected = format!("the end of the path of a layer with LoRA: {ends}, or longer ones of {example}");
                Error::invalid(place, found, expected, "correct it, or leave it out")
            }
        })
    }

    /// Ready to be compared with paths; `place` is where it stands, for errors.
    ///
    /// # Errors
    /// No regular expression.
    pub(super) fn compiled(&self, place: &str) -> Result<Compiled<T>> {
        let compile =
            |(text, value): &(String, T)| Ok((regex(&format!(r"\A(?:.*\.)?(?:{text})\z"), text, place)?, *value));
        self.0.iter().map(compile).collect::<Result<_>>().map(Compiled)
    }
}

/// A [`LayerPattern`] whose expressions are compiled.
pub(super) struct Compiled<T>(Vec<(Regex, T)>);

impl<T: Copy> Compiled<T> {
    /// The first expression that decides about none of these paths, and whether it fits some that an expression before it takes.
    fn idle(&self, paths: &[String]) -> Option<(usize, bool)> {
        let first = |path: &String| self.0.iter().position(|(pattern, _)| is_match(pattern, path));
        let taken: Vec<usize> = paths.iter().filter_map(first).collect();
        let idle = (0..self.0.len()).find(|index| !taken.contains(index))?;
        Some((idle, paths.iter().any(|path| is_match(&self.0[idle].0, path))))
    }

    /// The value of a layer, by its path in one of transformers' spellings.
    pub(super) fn of(&self, path: &str) -> Option<T> {
        self.0.iter().find(|(pattern, _)| is_match(pattern, path)).map(|(_, value)| *value)
    }
}

impl<T: DeserializeOwned> LayerPattern<T> {
    fn of_json(object: Map<String, Value>) -> serde_json::Result<Self> {
        let entry = |(pattern, value): (String, Value)| -> serde_json::Result<(String, T)> {
            Ok((pattern, serde_json::from_value(value)?))
        };
        object.into_iter().map(entry).collect::<serde_json::Result<_>>().map(Self)
    }
}

impl<T: DeserializeOwned> FromStr for LayerPattern<T> {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let expected = r#"JSON such as {"q_proj": 4, "layers.0.self_attn.v_proj": 16}"#;
        serde_json::from_str(text)
            .and_then(|Distinct(object)| serde_json::from_value(object))
            .and_then(Self::of_json)
            .map_err(|error| format!("found {text:?} ({error}), expected {expected}"))
    }
}

impl<T: Serialize> fmt::Display for LayerPattern<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object: Map<String, Value> =
            self.0.iter().map(|(pattern, value)| (pattern.clone(), json!(value))).collect();
        write!(f, "{}", Value::Object(object))
    }
}

impl<T: Serialize> Serialize for LayerPattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for LayerPattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::of_json(Map::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verdicts of peft 0.21's `get_pattern_key`.
    #[test]
    fn the_first_expression_that_fits_the_end_of_a_path_counts() {
        let pattern: LayerPattern<usize> =
            r#"{"layers.1.self_attn.q_proj": 2, "q_proj": 4, "^v_proj": 5, ".*mlp.*": 6, "head": 7, "lm_head|fc1": 8}"#
                .parse()
                .expect("a pattern");
        let compiled = pattern.compiled("here").expect("expressions");
        for (path, expected) in [
            ("model.language_model.layers.1.self_attn.q_proj", Some(2)),
            ("model.language_model.layers.11.self_attn.q_proj", Some(4)),
            ("model.language_model.layers.1.self_attn.v_proj", None),
            ("v_proj", Some(5)),
            ("model.language_model.layers.1.mlp.up_proj", Some(6)),
            ("lm_head", Some(8)),
            ("model.vision_tower.encoder.layers.0.mlp.fc1", Some(6)),
        ] {
            assert_eq!(compiled.of(path), expected, "{path}");
        }
        assert_eq!(pattern.to_string().parse(), Ok(pattern));
        let layer = |index: usize, end: &str| format!("model.language_model.layers.{index}.self_attn.{end}");
        let paths = [layer(0, "q_proj"), layer(1, "q_proj"), layer(1, "v_proj")];
        for (text, named) in [
            (r#"{"q_proj": 4, "layers.1.self_attn.v_proj": 2}"#, None),
            (r#"{"layers.0.self_attn.q_proj": 4, "q_proj": 2}"#, None),
            (
                r#"{"q_proj": 4, "foo": 2}"#,
                Some("foo\", expected the end of the path of a layer with LoRA: q_proj, v_proj"),
            ),
            (r#"{"q_proj": 4, "layers.0.self_attn.q_proj": 2}"#, Some("of an expression before it")),
        ] {
            let pattern: LayerPattern<usize> = text.parse().expect("a pattern");
            let refused = pattern.require_fitting("rank_pattern", &paths).err().map(|error| error.to_string());
            assert_eq!(refused.is_some(), named.is_some(), "{text}: {refused:?}");
            assert!(refused.unwrap_or_default().contains(named.unwrap_or_default()), "{text}");
        }
        let wrong = "{\"(q\": 4}".parse::<LayerPattern<usize>>().expect("JSON").compiled("rank_pattern");
        let error = wrong.err().expect("refused").to_string();
        assert!(error.contains("rank_pattern") && error.contains("(q"), "{error}");
        for text in ["q_proj", "{\"q_proj\": -1}", "[4]", "{\"q_proj\": \"a\"}", "{\"q_proj\": 4, \"q_proj\": 8}"] {
            let error = text.parse::<LayerPattern<usize>>().expect_err("refused").replace('\\', "");
            assert!(error.contains(text) && error.contains("JSON such as"), "{error}");
        }
    }
}
