//! Answers to questions with options: a letter, or an option's text.

use crate::Expected;
use regex::Regex;
use std::sync::LazyLock;

/// Letters stand for options in this order.
const LETTERS: std::ops::RangeInclusive<char> = 'A'..='Z';

// The patterns are constants; the unit tests compile them.
static BEGINNING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(?:\(([A-Za-z])\)|([A-Za-z])(?:[.):](?:\s|$)|$))").expect("a constant pattern"));
static SAID: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i:answer(?:\s+is)?:?|option|choice)\s*\(?([A-Z])\b").expect("a constant pattern"));
/// An option's letter in a question.
static MARK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)(?:^|\s)(?:\(([A-Z])\)|([A-Z])[.):])\s+").expect("a constant pattern"));

/// The option that a text chooses, from 0.
///
/// In this order: a letter alone or at the beginning (`B`, `B. a dog`, `(B)`, `b)`); a capital after "answer is", "answer:",
/// "option" or "choice", the same one each time; the text of an option; the only option whose text is among the words.
///
/// # Differs
/// LLaVA's `eval_science_qa.py` reads `B`, `B. a dog` and "The answer is B." alike; it has no option texts, and takes "The answer
/// is Apple" for an A.
pub fn choice(text: &str, options: &[String]) -> Option<usize> {
    let text = text.trim();
    letter(text, options).or_else(|| by_text(text, options))
}

fn letter(text: &str, options: &[String]) -> Option<usize> {
    let index_of = |letter: &str| {
        let letter = letter.chars().next()?.to_ascii_uppercase();
        let index = LETTERS.clone().position(|other| other == letter)?;
        (options.is_empty() || index < options.len()).then_some(index)
    };
    if let Some(found) = BEGINNING.captures(text) {
        return found.get(1).or(found.get(2)).and_then(|letter| index_of(letter.as_str()));
    }
    let mut said: Vec<&str> = SAID.captures_iter(text).filter_map(|found| Some(found.get(1)?.as_str())).collect();
    said.dedup();
    match said[..] {
        [only] => index_of(only),
        _ => None,
    }
}

/// Whether an answer chooses the option that the first expected answer chooses.
pub(crate) fn is_right(answer: &str, expected: &Expected) -> bool {
    let right = expected.answers.first().and_then(|text| choice(text, &expected.options));
    right.is_some() && choice(answer, &expected.options) == right
}

fn by_text(text: &str, options: &[String]) -> Option<usize> {
    let said = words(text);
    let options: Vec<Vec<String>> = options.iter().map(|option| words(option)).collect();
    if let Some(index) = options.iter().position(|option| !option.is_empty() && *option == said) {
        return Some(index);
    }
    let is_in = |part: &[String], whole: &[String]| !part.is_empty() && whole.windows(part.len()).any(|at| at == part);
    let found: Vec<usize> = (0..options.len()).filter(|&index| is_in(&options[index], &said)).collect();
    // "black cat" says "cat", too.
    let is_part = |index: usize| found.iter().any(|&other| other != index && is_in(&options[index], &options[other]));
    match found.iter().filter(|&&index| !is_part(index)).collect::<Vec<_>>()[..] {
        [only] => Some(*only),
        _ => None,
    }
}

/// Words in lower case, without the signs around them.
fn words(text: &str) -> Vec<String> {
    let bare = |word: &str| word.trim_matches(|char: char| !char.is_alphanumeric()).to_lowercase();
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect()
}

/// The options that a question lists after `A.`, `(A)`, `A)` or `A:`, each up to the next or to the end of its line; none where
/// the letters do not begin with A, or fewer than two follow each other.
pub fn options_in(question: &str) -> Vec<String> {
    let mut marks = Vec::new();
    for found in MARK.captures_iter(question) {
        let letter = found.get(1).or(found.get(2)).and_then(|letter| letter.as_str().chars().next());
        if letter == LETTERS.clone().nth(marks.len()) {
            marks.extend(found.get(0).map(|mark| (mark.start(), mark.end())));
        }
    }
    let end_of = |index: usize| marks.get(index + 1).map_or(question.len(), |&(start, _)| start);
    let texts = marks.iter().enumerate().map(|(index, &(_, begin))| {
        question[begin..end_of(index).max(begin)].lines().next().unwrap_or_default().trim().to_string()
    });
    if marks.len() < 2 { Vec::new() } else { texts.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn letters_and_texts_choose_an_option() {
        let options = strings(&["a cat", "a black cat", "a dog", "Apple"]);
        for (text, expected) in [
            ("B", Some(1)),
            (" c\n", Some(2)),
            ("(B)", Some(1)),
            ("B. a black cat", Some(1)),
            ("D:", Some(3)),
            ("The answer is C.", Some(2)),
            ("the answer is (C), because", Some(2)),
            ("Answer: A", Some(0)),
            ("The answer is A. No, the answer is B.", None),
            ("I choose option B", Some(1)),
            // Beyond the options, or words that begin with a letter.
            ("E", None),
            ("The answer is Apple", Some(3)),
            ("A dog.", Some(2)),
            ("It is a black cat!", Some(1)),
            ("a cat or a dog", None),
            ("Nothing", None),
            ("", None),
        ] {
            assert_eq!(choice(text, &options), expected, "{text:?}");
        }
        assert_eq!((choice("E", &[]), choice("a dog", &[])), (Some(4), None));
    }

    #[test]
    fn options_are_found_in_questions() {
        for (question, expected) in [
            ("Which?\nA. a cat\nB. a dog\nAnswer with the letter.", &["a cat", "a dog"][..]),
            ("Which?\nOptions: (A) Asia (B) Europe (C) New York\nassistant", &["Asia", "Europe", "New York"]),
            ("A) one\nB) two\nC) three", &["one", "two", "three"]),
            ("Is J. S. Bach in it? A. yes", &[]),
            ("B. x\nC. y", &[]),
            ("What is it?", &[]),
        ] {
            assert_eq!(options_in(question), strings(expected), "{question:?}");
        }
    }
}
