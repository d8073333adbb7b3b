//! BLEU-4, ROUGE-L and CIDEr-D against pycocoevalcap 1.2 (its PTB tokenizer on Java 17, its scorers unchanged).

use metrics::captions::caption_metrics;
use metrics::captions::ptb::tokenize;
use serde::Deserialize;
use tests::shared;

/// Largest difference allowed; the figures are sums in another order, so far less is expected.
const TOLERANCE: f64 = 1e-3;

/// The references of `data/coco224_main`: five captions an image.
fn references() -> Option<Vec<Vec<String>>> {
    let text = std::fs::read(shared("data/coco224_main/references.json")?).expect("references.json is readable");
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("references.json is JSON");
    Some(entries.iter().map(|entry| serde_json::from_value(entry["captions"].clone()).expect("captions")).collect())
}

/// Recorded with `PTBTokenizer().tokenize`, `Bleu(4)`, `Rouge()`, `Cider()` on the same pairs, images in file order.
#[test]
fn figures_equal_pycocoevalcap() {
    let Some(images) = references() else { return };
    let next = |index: usize| images[(index + 1) % images.len()][0].clone();
    type Pairs = Vec<(String, Vec<String>)>;
    let sets: [(&str, Pairs, [f64; 3]); 4] = [
        (
            "first caption against the other four",
            images.iter().map(|five| (five[0].clone(), five[1..].to_vec())).collect(),
            [0.20648708673279115, 0.47197045979224866, 0.9890505321070843],
        ),
        (
            "the next image's caption",
            images.iter().enumerate().map(|(index, five)| (next(index), five.clone())).collect(),
            [0.016661751844813985, 0.2361150447051911, 0.026398827563703067],
        ),
        (
            "two captions joined against three",
            images.iter().map(|five| (format!("{} {}", five[3], five[4]), five[..3].to_vec())).collect(),
            [0.128093119464868, 0.39361380511937094, 0.2900926060456649],
        ),
        (
            "a caption that is among its references",
            images.iter().map(|five| (five[2].clone(), five.clone())).collect(),
            [0.9999999999980151, 1.0, 2.7817731257185754],
        ),
    ];
    for (name, pairs, expected) in sets {
        let found = caption_metrics(&pairs);
        assert_eq!(found.images, 103, "{name}");
        for (metric, found, expected) in [
            ("BLEU-4", found.bleu_4, expected[0]),
            ("ROUGE-L", found.rouge_l, expected[1]),
            ("CIDEr-D", found.cider_d, expected[2]),
        ] {
            let difference = (found - expected).abs();
            println!("{name}: {metric} {found:.6}, difference {difference:e} (tolerance {TOLERANCE:e})");
            assert!(difference <= TOLERANCE, "{name}: {metric} {found} where {expected} is expected");
        }
    }
}

/// Of tests/data/caption_metrics.json, which `tests/reference/record_caption_metrics.py` has recorded: captions with contractions,
/// abbreviations, numbers, addresses, quotation marks and other scripts; one, three and five references.
const RECORDED: &str = include_str!("../data/caption_metrics.json");

#[derive(Deserialize)]
struct Recorded {
    sets: Vec<RecordedSet>,
}

#[derive(Deserialize)]
struct RecordedSet {
    bleu_4: f64,
    rouge_l: f64,
    cider_d: f64,
    images: Vec<RecordedImage>,
}

#[derive(Deserialize)]
struct RecordedImage {
    caption: String,
    references: Vec<String>,
    /// Of the caption, then of its references.
    tokens: Vec<String>,
}

#[test]
fn tokens_and_figures_equal_those_recorded_of_pycocoevalcap() {
    let recorded: Recorded = serde_json::from_str(RECORDED).expect("the recorded file");
    let mut texts = 0;
    for set in recorded.sets {
        for RecordedImage { caption, references, tokens } in &set.images {
            for (text, tokens) in std::iter::once(caption).chain(references).zip(tokens) {
                assert_eq!(&tokenize(text).join(" "), tokens, "{text:?}");
                texts += 1;
            }
        }
        let pairs: Vec<(String, Vec<String>)> =
            set.images.into_iter().map(|image| (image.caption, image.references)).collect();
        let found = caption_metrics(&pairs);
        for (metric, found, expected) in [
            ("BLEU-4", found.bleu_4, set.bleu_4),
            ("ROUGE-L", found.rouge_l, set.rouge_l),
            ("CIDEr-D", found.cider_d, set.cider_d),
        ] {
            let difference = (found - expected).abs();
            println!("{metric} {found:.6}, difference {difference:e} (tolerance {TOLERANCE:e})");
            assert!(difference <= TOLERANCE, "{metric} {found} where {expected} is expected");
        }
    }
    assert_eq!(texts, 480);
}

#[test]
fn empty_captions_and_sets_have_figures() {
    let none = caption_metrics(&[]);
    assert_eq!((none.images, none.bleu_4, none.rouge_l, none.cider_d), (0, 0.0, 0.0, 0.0));
    let silent = caption_metrics(&[(String::new(), vec!["a dog".into()]), (".".into(), vec!["a cat".into()])]);
    assert!(silent.bleu_4 < 1e-6 && silent.rouge_l == 0.0 && silent.cider_d == 0.0, "{silent:?}");
}
