//! VQA accuracy: an answer is right as far as the annotators gave it, after both are normalised.
//!
//! # Source
//! `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of the VQA dataset, its oddities included: values of published tables depend
//! on them.

use regex::Regex;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Annotators that make an answer wholly right.
const AGREEING: f64 = 3.0;

const NUMBERS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
const ARTICLES: [&str; 3] = ["a", "an", "the"];
const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];
/// The official call hands the flag `re.UNICODE`, which is 32, to the parameter of the number of replacements.
const MOST_PERIODS: usize = 32;

/// Contractions with all of their apostrophes; a word that lacks one of them gets it back.
const CONTRACTIONS: &str = "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't \
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't \
    mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've \
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've \
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've \
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're \
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've";

static CONTRACTED: LazyLock<HashMap<String, &str>> = LazyLock::new(|| {
    // The other way round in the official table.
    let mut words = HashMap::from([("somebody'd".to_string(), "somebodyd")]);
    for whole in CONTRACTIONS.split_whitespace() {
        for (at, _) in whole.match_indices('\'') {
            words.insert(format!("{}{}", &whole[..at], &whole[at + 1..]), whole);
        }
    }
    words
});

// The patterns are constants; the unit tests compile them.
static COMMA_IN_NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d,\d").expect("a constant pattern"));
static DIGIT_FIRST: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A\d").expect("a constant pattern"));

/// Mean over the annotators of min(1, others who gave this answer ÷ 3).
///
/// Answers are normalised only where the annotators differ, as in the official code. A single reference (not a VQA annotation)
/// counts as ten equal ones: 1 if the normalised texts are equal.
pub fn accuracy(answer: &str, annotators: &[String]) -> f64 {
    let annotators: Vec<String> = annotators.iter().map(|text| one_line(text)).collect();
    if annotators.iter().all(|text| *text == annotators[0]) && annotators.len() > 1 {
        return agreement(&one_line(answer), &annotators);
    }
    accuracy_normalized(answer, &annotators)
}

/// As [`accuracy`], with both sides normalised in any case: "Yes" is right where all annotators said "yes". Scripts that
/// normalise the answers before they hand them in (LLaVA's) come to such values.
pub fn accuracy_normalized(answer: &str, annotators: &[String]) -> f64 {
    let annotators: Vec<String> = annotators.iter().map(|text| normalized(text)).collect();
    agreement(&normalized(answer), &annotators)
}

fn agreement(answer: &str, annotators: &[String]) -> f64 {
    let equal = annotators.iter().filter(|text| *text == answer).count();
    if annotators.len() < 2 {
        return equal as f64;
    }
    let others = |text: &String| (equal - usize::from(text == answer)) as f64;
    let scores = annotators.iter().map(|text| (others(text) / AGREEING).min(1.0));
    scores.sum::<f64>() / annotators.len() as f64
}

/// An answer as the official code compares it: without punctuation and articles, in lower case, number words as digits,
/// contractions with their apostrophes.
pub fn normalized(answer: &str) -> String {
    words_of(&without_punctuation(&one_line(answer)))
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\t'], " ").trim_matches(is_space).to_string()
}

/// A sign that touches a space is removed, another one becomes a space; with a number like 1,000 in the text all are removed.
fn without_punctuation(text: &str) -> String {
    let has_number = COMMA_IN_NUMBER.is_match(text);
    let mut out = text.to_string();
    for sign in PUNCTUATION {
        let touches_space = text.contains(&format!("{sign} ")) || text.contains(&format!(" {sign}"));
        out = out.replace(sign, if touches_space || has_number { "" } else { " " });
    }
    without_periods(&out)
}

/// Removes the first periods that no digit follows.
fn without_periods(text: &str) -> String {
    let ends = text.match_indices('.').map(|(at, _)| at).filter(|&at| !DIGIT_FIRST.is_match(&text[at + 1..]));
    let (mut out, mut kept) = (String::with_capacity(text.len()), 0);
    for at in ends.take(MOST_PERIODS) {
        out.push_str(&text[kept..at]);
        kept = at + 1;
    }
    out + &text[kept..]
}

fn words_of(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(is_space).filter(|word| !word.is_empty()).filter_map(|word| {
        let number = NUMBERS.iter().position(|number| *number == word).or((word == "none").then_some(0));
        let word = number.map_or(word.to_string(), |number| number.to_string());
        (!ARTICLES.contains(&word.as_str())).then_some(word)
    });
    let whole = |word: String| CONTRACTED.get(&word).map_or(word, |whole| whole.to_string());
    words.map(whole).collect::<Vec<_>>().join(" ")
}

/// White space as Python's `split` and `strip` see it.
fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ten(answers: &[(&str, usize)]) -> Vec<String> {
        answers.iter().flat_map(|&(text, times)| vec![text.to_string(); times]).collect()
    }

    // The values of the official code are in the integration tests.
    #[test]
    fn an_answer_is_right_as_far_as_the_others_gave_it() {
        let annotators = ten(&[("two", 2), ("2", 1), ("3", 7)]);
        for (answer, expected) in [("2", 0.9), ("Two.", 0.9), ("three", 1.0), ("4", 0.0)] {
            assert!((accuracy(answer, &annotators) - expected).abs() < 1e-12, "{answer}");
        }
        assert_eq!(
            (accuracy("Yes", &ten(&[("yes", 10)])), accuracy_normalized("Yes", &ten(&[("yes", 10)]))),
            (0.0, 1.0)
        );
        assert_eq!((accuracy("Yes.", &ten(&[("yes", 1)])), accuracy("no", &ten(&[("yes", 1)]))), (1.0, 0.0));
    }

    #[test]
    fn a_missing_apostrophe_comes_back() {
        assert_eq!(
            normalized("the dont couldntve couldnt've Couldn'tve 'tis"),
            "don't couldntve couldn't've couldn't've 'tis"
        );
        assert_eq!(CONTRACTED.len(), 114);
    }
}
