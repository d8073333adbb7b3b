//! Yes and no, as POPE's evaluation reads them.
//!
//! # Source
//! POPE `evaluate.py`; LLaVA's `eval_pope.py` is the same.

use crate::Expected;

/// Words that make an answer a no.
const NO: [&str; 3] = ["No", "not", "no"];

/// Whether an answer is a yes: no word of its first sentence is "no", "No" or "not".
pub fn says_yes(answer: &str) -> bool {
    let sentence = answer.split('.').next().unwrap_or_default().replace(',', "");
    // Split at spaces alone, as there.
    !sentence.split(' ').any(|word| NO.contains(&word))
}

/// An expected answer, by its first word; `None` if that is neither yes nor no.
pub fn label(text: &str) -> Option<bool> {
    let word = text.split(|char: char| !char.is_alphanumeric()).find(|word| !word.is_empty())?;
    match word.to_lowercase().as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Accuracy, precision, recall, F1 (of yes) and the share of yes among the answers. A ratio without a denominator is 0.
pub(crate) fn figures(answers: &[(&str, &Expected)]) -> [f64; 5] {
    // By answer, then by label.
    let mut counts = [[0u64; 2]; 2];
    for (answer, expected) in answers {
        let label = expected.answers.first().and_then(|text| label(text)).unwrap_or(false);
        counts[usize::from(says_yes(answer))][usize::from(label)] += 1;
    }
    let [[true_no, false_no], [false_yes, true_yes]] = counts;
    let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let (all, yes) = (answers.len() as u64, true_yes + false_yes);
    let (precision, recall) = (ratio(true_yes, yes), ratio(true_yes, true_yes + false_no));
    let f1 = if precision + recall == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
    [ratio(true_yes + true_no, all), precision, recall, f1, ratio(yes, all)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_labels_are_read() {
        for (answer, yes) in [
            ("Yes, there is.", true),
            ("No, there is not.", false),
            ("There is not a dog", false),
            ("Yes. No", true),
            ("NO", true),
            ("nothing", true),
            ("", true),
            ("Well no\nyes", true),
        ] {
            assert_eq!(says_yes(answer), yes, "{answer:?}");
        }
        let labels =
            [("yes", Some(true)), ("No.", Some(false)), (" Yes, it is", Some(true)), ("true", None), ("", None)];
        labels.into_iter().for_each(|(text, expected)| assert_eq!(label(text), expected, "{text:?}"));
    }
}
