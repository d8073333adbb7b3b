//! Scores of all answers, and of the groups of questions that files name.

use super::line::Line;
use super::questions::Question;
use metrics::{Expected, Metric};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Names and values, in the order of the metric; without answers there are no values (`null`).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures(pub Vec<(&'static str, Option<f64>)>);

impl Figures {
    fn of(metric: Metric, answers: &[(&str, &Expected)]) -> Self {
        let figures = metric.figures(answers).into_iter();
        Self(figures.map(|(name, value)| (name, (!answers.is_empty()).then_some(value))).collect())
    }
}

impl Serialize for Figures {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// What a finished run says on stdout, and in FILE.jsonl.scores.json.
#[derive(Debug, Serialize)]
pub(super) struct Scores {
    pub metric: Metric,
    pub questions: usize,
    /// Questions without an answer, which are left out of the scores.
    pub failed: usize,
    pub scores: Figures,
    /// By kind of group (`category`, `answer_type`, `question_type`), then by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<&'static str, BTreeMap<String, Group>>,
}

/// Figures of some of the questions.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    pub questions: usize,
    #[serde(flatten)]
    pub scores: Figures,
}

/// Answers, each with what was expected.
type Answered<'a> = Vec<(&'a str, &'a Expected)>;

impl Scores {
    /// Scores of the answers, `lines`, to the questions in their order.
    pub fn of(metric: Metric, questions: &[Question], lines: &[Line]) -> Self {
        let answered = lines.iter().zip(questions).filter(|(line, _)| line.error.is_none());
        let answered: Vec<(&str, &Question)> =
            answered.map(|(line, question)| (line.text.as_str(), question)).collect();
        let answers: Vec<(&str, &Expected)> =
            answered.iter().map(|(answer, question)| (*answer, &question.expected)).collect();
        let mut members: BTreeMap<&'static str, BTreeMap<String, Answered<'_>>> = BTreeMap::new();
        for (answer, question) in &answered {
            for (kind, name) in &question.groups {
                let of_group = members.entry(kind).or_default().entry(name.clone()).or_default();
                of_group.push((*answer, &question.expected));
            }
        }
        let group = |(name, answers): (String, Answered<'_>)| {
            (name, Group { questions: answers.len(), scores: Figures::of(metric, &answers) })
        };
        Self {
            metric,
            questions: lines.len(),
            failed: lines.iter().filter(|line| line.error.is_some()).count(),
            scores: Figures::of(metric, &answers),
            groups: members.into_iter().map(|(kind, groups)| (kind, groups.into_iter().map(group).collect())).collect(),
        }
    }

    /// A table for people: a row for all questions, then one for each group.
    pub fn table(&self) -> String {
        let mut table = format!("{:<32} {:>9}", format!("metric {}", self.metric), "questions");
        for (name, _) in &self.scores.0 {
            let _ = write!(table, "  {name:>12}");
        }
        let mut row = |name: &str, questions: usize, figures: &Figures| {
            let _ = write!(table, "\n{name:<32} {questions:>9}");
            for (name, value) in &figures.0 {
                let value = value.map_or_else(|| "–".to_string(), |value| format!("{value:.4}"));
                let _ = write!(table, "  {value:>width$}", width = name.len().max(12));
            }
        };
        row("all", self.questions - self.failed, &self.scores);
        for (kind, groups) in &self.groups {
            groups.iter().for_each(|(name, group)| row(&format!("{kind} {name}"), group.questions, &group.scores));
        }
        table
    }
}
