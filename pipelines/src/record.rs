//! The record of a stage, `<output>.stage.json`: its inputs and, when it has finished, its output.

use crate::fingerprint;
use anyhow::Result;
use base::json;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Records of another format say nothing: their stages count as never run.
const FORMAT: u32 = 2;

/// Written when a stage begins, and again when it has ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// The program. Another version is no reason to make something again.
    version: String,
    /// The options.
    args: Vec<String>,
    /// Fingerprint of everything that is read.
    inputs: BTreeMap<PathBuf, String>,
    /// Fingerprint of the output, when it is finished.
    output: Option<String>,
    /// The output that existed when it began.
    #[serde(default)]
    before: Before,
}

/// The state of an output when a stage begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The training run whose folder it is: while it is that, this stage has nothing to go on from.
    pub run_id: Option<String>,
    /// What is there may be replaced: nothing was, a stage had made it, or the user has said so.
    pub may_go: bool,
}

/// The state of a stage compared with its last run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Made from the same, and still there.
    Done,
    /// Begun from the same, and not finished.
    Unfinished,
    /// Made from something else: what.
    Changed(String),
    /// Finished with the same inputs, but the output has changed since.
    Foreign,
    /// The output has no record.
    Unknown,
}

impl Record {
    /// A stage that begins.
    pub fn begun(version: String, args: Vec<String>, inputs: BTreeMap<PathBuf, String>) -> Self {
        Self { format: FORMAT, version, args, inputs, output: None, before: Before::default() }
    }

    /// The same, begun where that is.
    pub fn instead_of(self, before: Before) -> Self {
        Self { before, ..self }
    }

    /// See [`Before`].
    pub fn before(&self) -> &Before {
        &self.before
    }

    /// Whether a stage made the output, whose fingerprint is `output` and which is the training run `run_id`, if it is one. What
    /// was there before a stage that failed is not its own.
    pub fn made(&self, output: &str, run_id: Option<&str>) -> bool {
        match &self.output {
            Some(made) => made == output,
            None => self.before.may_go || run_id.is_some() && run_id != self.before.run_id.as_deref(),
        }
    }

    /// The same, finished.
    pub fn finished(self, output: String) -> Self {
        Self { output: Some(output), ..self }
    }

    /// Reads a record; one that is no record of this format is as good as none.
    pub fn read(path: &Path) -> Option<Self> {
        json::read_if_there::<Self>(path).ok().flatten().filter(|record| record.format == FORMAT)
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(json::write(path, self)?)
    }

    /// How this stage stands to the last one, whose output now has the fingerprint `output`. With `strict` another version of
    /// the program counts as another input.
    pub fn standing(&self, last: Option<&Self>, output: &str, strict: bool) -> Standing {
        let Some(last) = last else { return Standing::Unknown };
        let differences = self.differences(last, strict);
        match &last.output {
            _ if !differences.is_empty() => Standing::Changed(differences.join(", ")),
            None => Standing::Unfinished,
            Some(made) if made == output => Standing::Done,
            Some(_) if fingerprint::is_there(output) => Standing::Foreign,
            // It was finished, and somebody has taken it away: it has to be made again.
            Some(_) => Standing::Unfinished,
        }
    }

    fn differences(&self, last: &Self, strict: bool) -> Vec<String> {
        let mut differences = Vec::new();
        if strict && last.version != self.version {
            differences.push("the program".to_string());
        }
        let (options, before) = (options(&self.args), options(&last.args));
        for name in options.keys().chain(before.keys().filter(|name| !options.contains_key(*name))) {
            let value = |of: &BTreeMap<&str, Vec<&str>>| of.get(name).map_or("not given".into(), |all| all.join(", "));
            if options.get(name) != before.get(name) {
                let label = if name.is_empty() { "command" } else { name };
                differences.push(format!("{label} {} → {}", value(&before), value(&options)));
            }
        }
        let inputs = self.inputs.iter().filter(|(path, now)| last.inputs.get(*path).is_some_and(|was| was != *now));
        differences.extend(inputs.map(|(path, _)| format!("what {} holds", path.display())));
        if differences.is_empty() && self.inputs.keys().ne(last.inputs.keys()) {
            differences.push("what is read".to_string());
        }
        differences
    }
}

/// The values of every option of a command line that [`crate::recipe`] has made: `--name value` or `--name=value`, some of
/// them several times. Words that belong to no option have the name "".
fn options(args: &[String]) -> BTreeMap<&str, Vec<&str>> {
    let mut options: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut words = args.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (name, value) = match word.strip_prefix("--") {
            Some(option) => option.split_once('=').unwrap_or_else(|| (option, words.next().unwrap_or_default())),
            None => ("", word),
        };
        options.entry(name).or_default().push(value);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(args: &[&str], input: &str) -> Record {
        let inputs = BTreeMap::from([(PathBuf::from("model"), input.to_string())]);
        Record::begun("train 1".into(), args.iter().map(|word| word.to_string()).collect(), inputs)
    }

    #[test]
    fn a_stage_is_done_when_its_output_is_there_and_was_made_by_these_options_and_inputs() {
        let now = record(&["--seed", "1", "--learning_rate", "0.002"], "m");
        let made = |record: Record| record.finished("weights".into());
        let changed = |text: &str| Standing::Changed(text.into());
        let table = [
            (None, "absent", Standing::Unknown),
            (None, "weights", Standing::Unknown),
            (Some(made(now.clone())), "weights", Standing::Done),
            (Some(made(now.clone())), "other weights", Standing::Foreign),
            (Some(made(now.clone())), fingerprint::ABSENT, Standing::Unfinished),
            (Some(now.clone()), fingerprint::ABSENT, Standing::Unfinished),
            (Some(now.clone()), "weights", Standing::Unfinished),
            (Some(made(record(&["--seed", "1"], "m"))), "weights", changed("learning_rate not given → 0.002")),
            (
                Some(record(&["--seed", "2", "--learning_rate", "0.001"], "m")),
                "absent",
                changed("learning_rate 0.001 → 0.002, seed 2 → 1"),
            ),
            (
                Some(made(record(&["--seed", "1", "--learning_rate", "0.002", "--bf16", "true"], "m"))),
                "weights",
                changed("bf16 true → not given"),
            ),
            (
                Some(made(record(&["--seed", "1", "--learning_rate", "0.002"], "n"))),
                "weights",
                changed("what model holds"),
            ),
        ];
        for (last, output, expected) in table {
            assert_eq!(now.standing(last.as_ref(), output, false), expected, "{last:?}, {output}");
        }
    }

    /// Options as recipes write them: tied to their value, given several times, in any order of the table.
    #[test]
    fn every_value_of_an_option_counts() {
        for (before, now, expected) in [
            (
                &["caption", "--stop", "a", "--stop", "b"][..],
                &["caption", "--stop", "c", "--stop", "b"][..],
                "stop a, b → c, b",
            ),
            (&["--max_steps=-1", "--seed", "1"], &["--max_steps=-1", "--seed", "2"], "seed 1 → 2"),
            (&["--max_steps=-1"], &["--max_steps", "5"], "max_steps -1 → 5"),
            (&["--prompt=--what?"], &["--prompt=--who?"], "prompt --what? → --who?"),
            (&["--stop", "a"], &[], "stop a → not given"),
            (&["shards", "--seed", "1"], &["model", "--seed", "1"], "command shards → model"),
        ] {
            let last = record(before, "m").finished("weights".into());
            let standing = record(now, "m").standing(Some(&last), "weights", false);
            assert_eq!(standing, Standing::Changed(expected.into()), "{before:?}, {now:?}");
        }
        let last = record(&["--a", "1", "--b=2"], "m").finished("weights".into());
        let standing = record(&["--b", "2", "--a", "1"], "m").standing(Some(&last), "weights", false);
        assert_eq!(standing, Standing::Done, "the same, written otherwise");
    }

    #[test]
    fn an_output_is_a_stage_s_own_if_it_made_it_or_nothing_was_there() {
        let begun = |run_id: Option<&str>, may_go| {
            record(&[], "m").instead_of(Before { run_id: run_id.map(str::to_string), may_go })
        };
        for (last, output, run_id, own) in [
            (begun(None, false).finished("weights".into()), "weights", None, true),
            (begun(None, true).finished("weights".into()), "other weights", None, false),
            (begun(None, true), "weights", None, true),
            (begun(None, false), "weights", None, false),
            (begun(Some("a"), false), "weights", Some("a"), false),
            (begun(Some("a"), false), "weights", Some("b"), true),
        ] {
            assert_eq!(last.made(output, run_id), own, "{last:?}, {output}, {run_id:?}");
        }
    }

    #[test]
    fn another_version_counts_only_where_making_again_is_cheap() {
        let now = record(&[], "m");
        let last = Record { version: "train 2".into(), ..now.clone() }.finished("weights".into());
        assert_eq!(now.standing(Some(&last), "weights", false), Standing::Done);
        assert_eq!(now.standing(Some(&last), "weights", true), Standing::Changed("the program".into()));
    }

    #[test]
    fn what_is_no_record_of_this_format_is_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run.stage.json");
        assert_eq!(Record::read(&path), None);
        for text in ["{", "{\"version\":\"train 0\",\"args\":[],\"inputs\":{},\"output\":\"x\"}"] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(Record::read(&path), None, "{text}");
        }
        let record = record(&["--seed", "1"], "m");
        record.write(&path).expect("written");
        assert_eq!(Record::read(&path), Some(record));
    }
}
