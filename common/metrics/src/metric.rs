//! The metrics by name: what each needs, the figures that it gives.

use crate::{captions, multiple_choice, vqa, yes_no};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};

/// How answers are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// VQA accuracy as the official evaluation code computes it.
    Vqa,
    /// The answer is one of the expected ones, character by character.
    Exact,
    /// Accuracy, precision, recall, F1 and share of yes, as POPE has them.
    #[value(alias = "yes_no")]
    #[serde(alias = "yes_no")]
    YesNo,
    /// The letter or the text of the right option.
    #[value(alias = "multiple_choice")]
    #[serde(alias = "multiple_choice")]
    MultipleChoice,
    /// BLEU-4, ROUGE-L and CIDEr-D as pycocoevalcap computes them.
    Caption,
}

/// What an answer is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Right answers; of VQA all ten annotators'.
    pub answers: Vec<String>,
    /// Texts of the options A, B, …; empty where only the letters are known.
    pub options: Vec<String>,
}

/// Why a metric cannot be computed with what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The content found.
    pub found: String,
    /// The content expected.
    pub expected: &'static str,
}

impl Metric {
    /// Names of its figures, the main one first.
    pub const fn figure_names(self) -> &'static [&'static str] {
        match self {
            Self::Vqa => &["vqa_accuracy", "vqa_accuracy_normalized"],
            Self::Exact => &["exact_match"],
            Self::YesNo => &["accuracy", "precision", "recall", "f1", "yes_share"],
            Self::MultipleChoice => &["accuracy", "unread_share"],
            Self::Caption => &["bleu_4", "rouge_l", "cider_d"],
        }
    }

    /// Refuses expected answers that the metric cannot compare with.
    ///
    /// # Errors
    /// None at all; one that is neither yes nor no; one that is no option; yes and no, or two options.
    pub fn check(self, expected: &Expected) -> Result<(), Unusable> {
        let unusable = |found: String, expected| Err(Unusable { found, expected });
        let Some(first) = expected.answers.first() else {
            return unusable("no expected answer".into(), "at least one");
        };
        match self {
            Self::YesNo if yes_no::label(first).is_none() => {
                unusable(format!("the expected answer {first:?}"), "yes or no")
            }
            Self::YesNo => {
                let differs =
                    |text: &&String| yes_no::label(text).is_some_and(|label| Some(label) != yes_no::label(first));
                match expected.answers.iter().find(differs) {
                    Some(other) => {
                        unusable(format!("the expected answers {first:?} and {other:?}"), "yes or no, not both")
                    }
                    None => Ok(()),
                }
            }
            Self::MultipleChoice if multiple_choice::choice(first, &expected.options).is_none() => {
                let options = expected.options.join(", ");
                let among = if options.is_empty() { String::new() } else { format!(" with the options {options}") };
                unusable(
                    format!("the expected answer {first:?}{among}"),
                    "the letter of an option, or the text of one of the options",
                )
            }
            Self::MultipleChoice => {
                let choice = |text: &String| multiple_choice::choice(text, &expected.options);
                let differs = |text: &&String| choice(text).is_some_and(|of| Some(of) != choice(first));
                match expected.answers.iter().find(differs) {
                    Some(other) => unusable(format!("the expected answers {first:?} and {other:?}"), "one option"),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Score of one answer, 0 to 1; `None` where only the whole set has one.
    pub fn score(self, answer: &str, expected: &Expected) -> Option<f64> {
        let right = match self {
            Self::Vqa => return Some(vqa::accuracy(answer, &expected.answers)),
            Self::Exact => is_exact(answer, expected),
            Self::YesNo => {
                expected.answers.first().and_then(|text| yes_no::label(text)) == Some(yes_no::says_yes(answer))
            }
            Self::MultipleChoice => multiple_choice::is_right(answer, expected),
            Self::Caption => return None,
        };
        Some(f64::from(u8::from(right)))
    }

    /// The figures of a set of answers, in the order of [`Self::figure_names`]. Of no answers every figure is 0. The sums are in
    /// the order of the answers.
    pub fn figures(self, answers: &[(&str, &Expected)]) -> Vec<(&'static str, f64)> {
        let values = match self {
            Self::Vqa => vec![
                mean(answers.iter().map(|(answer, expected)| vqa::accuracy(answer, &expected.answers))),
                mean(answers.iter().map(|(answer, expected)| vqa::accuracy_normalized(answer, &expected.answers))),
            ],
            Self::Exact => vec![share(answers.iter().map(|(answer, expected)| is_exact(answer, expected)))],
            Self::YesNo => yes_no::figures(answers).to_vec(),
            Self::MultipleChoice => vec![
                share(answers.iter().map(|(answer, expected)| multiple_choice::is_right(answer, expected))),
                share(
                    answers
                        .iter()
                        .map(|(answer, expected)| multiple_choice::choice(answer, &expected.options).is_none()),
                ),
            ],
            Self::Caption => {
                let pairs: Vec<(String, Vec<String>)> =
                    answers.iter().map(|(answer, of)| (answer.trim().to_string(), of.answers.clone())).collect();
                let figures = captions::caption_metrics(&pairs);
                vec![figures.bleu_4, figures.rouge_l, figures.cider_d]
            }
        };
        self.figure_names().iter().copied().zip(values).collect()
    }
}

impl Display for Metric {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}

/// White space around a text does not count.
fn is_exact(answer: &str, expected: &Expected) -> bool {
    expected.answers.iter().any(|text| text.trim() == answer.trim())
}

fn share(hits: impl Iterator<Item = bool>) -> f64 {
    mean(hits.map(|hit| f64::from(u8::from(hit))))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(answers: &[&str], options: &[&str]) -> Expected {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        Expected { answers: texts(answers), options: texts(options) }
    }

    #[test]
    fn every_metric_has_a_figure_for_each_name() {
        let expected = expected(&["yes"], &["yes", "no"]);
        for metric in Metric::value_variants() {
            for answers in [&[][..], &[("yes", &expected), ("a b", &expected)]] {
                let names: Vec<&str> = metric.figures(answers).iter().map(|(name, _)| *name).collect();
                assert_eq!(names, metric.figure_names(), "{metric}");
                assert!(metric.figures(answers).iter().all(|(_, value)| value.is_finite()), "{metric}");
            }
            assert_eq!(Metric::from_str(&metric.to_string(), false), Ok(*metric));
        }
        assert_eq!(Metric::from_str("yes_no", false), Ok(Metric::YesNo));
    }

    #[test]
    fn exact_is_exact_but_for_white_space_around() {
        let expected = expected(&["a cat ", "A dog."], &[]);
        for (answer, right) in [(" a cat", 1.0), ("A cat", 0.0), ("A dog.\n", 1.0), ("A dog", 0.0), ("", 0.0)] {
            assert_eq!(Metric::Exact.score(answer, &expected), Some(right), "{answer:?}");
        }
        assert_eq!(Metric::Exact.figures(&[("a cat", &expected), ("x", &expected)]), [("exact_match", 0.5)]);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        for (metric, expected, found) in [
            (Metric::Exact, expected(&[], &[]), "no expected answer"),
            (Metric::YesNo, expected(&["two"], &[]), "\"two\""),
            (Metric::MultipleChoice, expected(&["E"], &["a cat", "a dog"]), "with the options a cat, a dog"),
        ] {
            assert!(metric.check(&expected).expect_err("refused").found.contains(found), "{metric}");
        }
        for (metric, expected) in [
            (Metric::YesNo, expected(&["Yes."], &[])),
            (Metric::MultipleChoice, expected(&["B"], &[])),
            (Metric::MultipleChoice, expected(&["a dog"], &["a cat", "a dog"])),
            (Metric::Vqa, expected(&["2"], &[])),
        ] {
            assert_eq!(metric.check(&expected), Ok(()), "{metric}");
        }
    }
}
