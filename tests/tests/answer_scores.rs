//! VQA accuracy, yes and no, letters of options against the official evaluation code of VQA, POPE and ScienceQA (the latter two as
//! LLaVA has them). `tests/reference/record_answer_scores.py` has recorded the values.

use metrics::{Expected, Metric, multiple_choice, vqa};
use serde::Deserialize;
use std::collections::BTreeMap;

const RECORDED: &str = include_str!("../data/answer_scores.json");
/// Sums of the same values in the same order; the official code multiplies by 100 and rounds to 15 digits.
const TOLERANCE: f64 = 1e-12;

#[derive(Deserialize)]
struct Recorded {
    vqa: Vqa,
    yes_no: Vec<YesNo>,
    letters: Letters,
}

#[derive(Deserialize)]
struct Vqa {
    cases: Vec<VqaCase>,
    overall: f64,
    by_answer_type: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct VqaCase {
    answer: String,
    annotators: Vec<String>,
    normalized: String,
    answer_type: String,
    accuracy: f64,
}

#[derive(Deserialize)]
struct YesNo {
    cases: Vec<YesNoCase>,
    figures: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct YesNoCase {
    answer: String,
    label: String,
}

#[derive(Deserialize)]
struct Letters {
    options: Vec<String>,
    cases: Vec<Letter>,
}

#[derive(Deserialize)]
struct Letter {
    answer: String,
    index: i64,
}

fn recorded() -> Recorded {
    serde_json::from_str(RECORDED).expect("the recorded file")
}

fn close(what: &str, found: f64, expected: f64) -> f64 {
    let difference = (found - expected).abs();
    assert!(difference <= TOLERANCE, "{what}: {found} where {expected} is expected");
    difference
}

fn expected(answers: &[String]) -> Expected {
    Expected { answers: answers.to_vec(), options: Vec::new() }
}

#[test]
fn vqa_accuracy_equals_the_official_codes() {
    let recorded = recorded().vqa;
    assert_eq!(recorded.cases.len(), 400);
    let mut largest = 0f64;
    for case in &recorded.cases {
        assert_eq!(vqa::normalized(&case.answer), case.normalized, "{:?}", case.answer);
        let found = vqa::accuracy(&case.answer, &case.annotators);
        largest =
            largest.max(close(&format!("{:?} of {:?}", case.answer, case.annotators), found, case.accuracy / 100.0));
    }
    let figure = |keep: &dyn Fn(&VqaCase) -> bool| {
        let kept: Vec<&VqaCase> = recorded.cases.iter().filter(|case| keep(case)).collect();
        let expected: Vec<Expected> = kept.iter().map(|case| expected(&case.annotators)).collect();
        let pairs: Vec<_> =
            kept.iter().zip(&expected).map(|(case, expected)| (case.answer.as_str(), expected)).collect();
        Metric::Vqa.figures(&pairs)[0].1
    };
    largest = largest.max(close("overall", figure(&|_| true), recorded.overall / 100.0));
    assert_eq!(recorded.by_answer_type.len(), 3);
    for (kind, accuracy) in &recorded.by_answer_type {
        largest = largest.max(close(kind, figure(&|case| case.answer_type == *kind), accuracy / 100.0));
    }
    println!(
        "400 questions, {} normalised answers equal; accuracy: largest difference {largest:e} (tolerance {TOLERANCE:e})",
        recorded.cases.len()
    );
}

#[test]
fn yes_and_no_equal_popes() {
    let mut largest = 0f64;
    for YesNo { cases, figures } in recorded().yes_no {
        let labels: Vec<Expected> = cases.iter().map(|case| expected(std::slice::from_ref(&case.label))).collect();
        let pairs: Vec<_> = cases.iter().zip(&labels).map(|(case, label)| (case.answer.as_str(), label)).collect();
        let found = Metric::YesNo.figures(&pairs);
        assert_eq!(found.len(), figures.len());
        for (name, value) in found {
            largest = largest.max(close(name, value, figures[name]));
        }
        let right: f64 = pairs.iter().filter_map(|(answer, label)| Metric::YesNo.score(answer, label)).sum();
        close("accuracy of single answers", right / pairs.len() as f64, figures["accuracy"]);
    }
    println!("accuracy, precision, recall, F1, share of yes: largest difference {largest:e} (tolerance {TOLERANCE:e})");
}

/// What LLaVA's script reads is read alike; it has no rule for the others.
#[test]
fn letters_that_llava_reads_are_read_alike() {
    let Letters { options, cases } = recorded().letters;
    let read = cases.iter().filter(|case| case.index >= 0);
    for Letter { answer, index } in read.clone() {
        let found = multiple_choice::choice(answer, &options);
        assert_eq!(found, usize::try_from(*index).ok(), "{answer:?}");
    }
    println!("{} of {} texts have a letter there and here", read.count(), cases.len());
}
