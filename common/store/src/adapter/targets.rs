//! Which layers PEFT gives LoRA to, and which it saves in full, by the fields of `adapter_config.json`.
//!
//! # Source
//! peft 0.21, `tuners/tuners_utils.py`, `check_target_module_exists`; `utils/other.py`, `_set_trainable`.

use super::options::ALL_LINEAR;
use base::{Error, Result, names};
use onig::{MatchParam, Regex, RegexOptions, SearchOptions, Syntax};
use serde::Deserialize;

/// A regular expression, or names.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// Has to match a whole path.
    Pattern(String),
    /// Whole paths, or their ends.
    Names(Vec<String>),
}

/// A number, or a list of numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// One layer.
    One(usize),
    /// Several; none means all.
    Many(Vec<usize>),
}

/// The fields about modules, as they stand in the file.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RawTargets {
    pub target_modules: Option<Modules>,
    pub exclude_modules: Option<Modules>,
    pub layers_to_transform: Option<Layers>,
    pub layers_pattern: Option<Modules>,
    pub modules_to_save: Option<Vec<String>>,
}

/// The same, ready to be compared with paths.
pub struct Targets {
    /// Nothing when the file does not say.
    target: Option<Matcher>,
    exclude: Option<Matcher>,
    layers: Vec<usize>,
    /// Empty: any list of layers.
    lists: Vec<Regex>,
    modules_to_save: Vec<String>,
}

enum Matcher {
    AllLinear,
    Pattern(Regex),
    Names(Vec<String>),
}

impl Targets {
    /// Compiles the patterns; `place` is the file, for errors.
    pub fn new(raw: &RawTargets, place: &str) -> Result<Self> {
        let matcher = |modules: &Option<Modules>, field: &str| match modules {
            None => Ok(None),
            Some(Modules::Pattern(text)) if text.is_empty() => Ok(None),
            Some(Modules::Pattern(text)) if text.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Some(Matcher::AllLinear)),
            Some(Modules::Pattern(text)) => Ok(Some(Matcher::Pattern(whole(text, &format!("{place}: {field}"))?))),
            Some(Modules::Names(names)) => Ok(Some(Matcher::Names(names.clone()))),
        };
        let patterns = match &raw.layers_pattern {
            None => Vec::new(),
            Some(Modules::Pattern(text)) => vec![text.clone()],
            Some(Modules::Names(names)) => names.clone(),
        };
        let list = |text: &String| whole(&format!(r"(?:.*?\.)?(?:{text})"), &format!("{place}: layers_pattern"));
        Ok(Self {
            target: matcher(&raw.target_modules, "target_modules")?,
            exclude: matcher(&raw.exclude_modules, "exclude_modules")?.filter(|matcher| !matcher.is_empty()),
            layers: match &raw.layers_to_transform {
                None => Vec::new(),
                Some(Layers::One(layer)) => vec![*layer],
                Some(Layers::Many(layers)) => layers.clone(),
            },
            lists: patterns.iter().filter(|text| !text.is_empty()).map(list).collect::<Result<_>>()?,
            modules_to_save: raw.modules_to_save.clone().unwrap_or_default(),
        })
    }

    /// Whether the file says which layers get LoRA.
    pub fn are_given(&self) -> bool {
        self.target.is_some()
    }

    /// Names of modules that are saved in full.
    pub fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    /// Whether a linear layer gets LoRA, by its path in one of transformers' spellings.
    pub fn has_lora(&self, path: &str) -> bool {
        let excluded = self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path));
        if excluded || self.modules_to_save.iter().any(|saved| holds_component(path, saved)) {
            return false;
        }
        match &self.target {
            // A name that is the whole path is taken whatever the layer.
            Some(Matcher::Names(names)) if names.iter().any(|name| name == path) => true,
            Some(target @ Matcher::Names(_)) => target.matches(path) && self.is_in_layers(path),
            Some(target) => target.matches(path),
            None => false,
        }
    }

    /// Whether a module is saved in full: PEFT compares the ends of paths, not whole names.
    pub fn saves(&self, name: &str, path: &str) -> bool {
        path.ends_with(name)
    }

    fn is_in_layers(&self, path: &str) -> bool {
        if self.layers.is_empty() {
            return true;
        }
        let numbers = path.match_indices('.').filter_map(|(dot, _)| {
            let (list, rest) = (&path[..dot], &path[dot + 1..]);
            let index = rest.split_once('.')?.0.parse::<usize>().ok()?;
            let fits = if self.lists.is_empty() {
                list.contains('.')
            } else {
                self.lists.iter().any(|pattern| is_match(pattern, list))
            };
            fits.then_some(index)
        });
        numbers.take(1).any(|index| self.layers.contains(&index))
    }
}

impl Matcher {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => names::module_spellings(names::HEAD).iter().all(|head| head != path),
            Self::Pattern(pattern) => is_match(pattern, path),
            Self::Names(names) => names.iter().any(|name| {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

/// `(^|.*\.)name($|\..*)`
fn holds_component(path: &str, name: &str) -> bool {
    path.match_indices(name).any(|(at, _)| {
        let (before, after) = (&path[..at], &path[at + name.len()..]);
        (before.is_empty() || before.ends_with('.')) && (after.is_empty() || after.starts_with('.'))
    })
}

/// Python's `re.fullmatch`: Perl's syntax has the same operators, but for the spelling of named groups.
pub(super) fn whole(text: &str, place: &str) -> Result<Regex> {
    regex(&format!(r"\A(?:{text})\z"), text, place)
}

/// An expression of Python; `text` is the part of it that errors show.
pub(crate) fn regex(pattern: &str, text: &str, place: &str) -> Result<Regex> {
    let pattern = pattern.replace("(?P<", "(?<");
    Regex::with_options(&pattern, RegexOptions::REGEX_OPTION_NONE, Syntax::perl_ng()).map_err(|error| {
        let found = format!("{text:?} ({})", error.description());
        Error::invalid(place, found, "a regular expression of Python or a list of names", "correct the file")
    })
}

/// A pattern that takes too long does not match.
pub(crate) fn is_match(pattern: &Regex, path: &str) -> bool {
    let found = pattern.match_with_param(path, 0, SearchOptions::SEARCH_OPTION_NONE, None, MatchParam::default());
    found.is_ok_and(|length| length.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TEXT: &str = "model.language_model.layers.2.self_attn.q_proj";
    const TOWER: &str = "model.vision_tower.encoder.layers.1.self_attn.q_proj";
    const PROJECTOR: &str = "model.multi_modal_projector.linear_1";

    fn targets(fields: Value) -> Targets {
        Targets::new(&serde_json::from_value(fields).expect("fields"), "adapter_config.json").expect("valid")
    }

    /// Verdicts of peft 0.21's `check_target_module_exists` for [`TEXT`], [`TOWER`], [`PROJECTOR`], the head.
    #[test]
    fn targets_are_peft_s() {
        for (fields, expected) in [
            (json!({"target_modules": ["q_proj", "v_proj"]}), [true, true, false, false]),
            (json!({"target_modules": ["proj", "linear_1"]}), [false, false, true, false]),
            (json!({"target_modules": "all-linear"}), [true, true, true, false]),
            (json!({"target_modules": ["lm_head"]}), [false, false, false, true]),
            (json!({"target_modules": r".*language_model.*\.(q_proj|v_proj)"}), [true, false, false, false]),
            (json!({"target_modules": "q_proj"}), [false; 4]),
            // LLaMA-Factory
            (
                json!({"target_modules": r"^(?!.*(vision_tower|multi_modal_projector|lm_head)).*(?:q_proj|v_proj).*"}),
                [true, false, false, false],
            ),
            // ms-swift
            (
                json!({"target_modules": r"^(model\.language_model(?=\.).*\.(q_proj|k_proj))$"}),
                [true, false, false, false],
            ),
            // unsloth
            (
                json!({"target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn).*?(?:k_proj|v_proj|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn)\.(?:(?:k_proj|q_proj)))"}),
                [true, false, false, false],
            ),
            (json!({"target_modules": r"(?P<part>.*)\.(?P<projection>q_proj|linear_1)\Z"}), [true, true, true, false]),
            (json!({"target_modules": ["q_proj"], "exclude_modules": ".*vision_tower.*"}), [true, false, false, false]),
            (
                json!({"target_modules": ["q_proj"], "exclude_modules": ["language_model.layers.2.self_attn.q_proj"]}),
                [false, true, false, false],
            ),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": [1]}), [false, true, false, false]),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": 2}), [true, false, false, false]),
            (
                json!({"target_modules": ["q_proj", "linear_1"], "layers_to_transform": [1, 2], "layers_pattern": "encoder.layers"}),
                [false, true, false, false],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": ["layers", "h"]}),
                [true, false, false, false],
            ),
            (
                json!({"target_modules": ["q_proj", "linear_1"], "modules_to_save": ["multi_modal_projector"]}),
                [true, true, false, false],
            ),
        ] {
            let targets = targets(fields.clone());
            assert_eq!([TEXT, TOWER, PROJECTOR, "lm_head"].map(|path| targets.has_lora(path)), expected, "{fields}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_read_is_named() {
        let raw = serde_json::from_value(json!({"target_modules": "(q_proj"})).expect("fields");
        let error = Targets::new(&raw, "a.json").err().expect("refused").to_string();
        assert!(error.contains("a.json: target_modules") && error.contains("(q_proj"), "{error}");
    }
}
