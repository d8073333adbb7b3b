//! `infer eval`: question files of LLaVA, POPE, VQAv2 and of a dataset; scores; continued runs; bad input.

use metrics::{Expected, Metric};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tests::inference::{infer, infer_ok, model_dir};
use tests::reference;
use tests::runs::{json_file, json_lines};

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn write_lines(path: &Path, lines: &[Value]) {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("written");
}

/// A folder with the tiny model and pictures under COCO's names.
struct Setting {
    dir: tempfile::TempDir,
    model: tempfile::TempDir,
    images: PathBuf,
}

impl Setting {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let images = dir.path().join("pictures");
        std::fs::create_dir(&images).expect("a folder");
        let files =
            std::fs::read_dir(reference("pictures/images")).expect("readable").flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        for (number, file) in files.iter().take(4).enumerate() {
            let name = format!("COCO_val2014_{:012}.jpg", number + 1);
            std::fs::copy(file, images.join(name)).expect("copied");
        }
        Self { dir, model: model_dir("tiny/train_none"), images }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn words(&self, questions: &Path, metric: &str, output: &str, more: &[&str]) -> Vec<String> {
        let output = self.path(output);
        let words = ["eval", "--model", text(self.model.path()), "--questions", text(questions), "--images"];
        let words = words.into_iter().chain([text(&self.images), "--metric", metric, "--output", text(&output)]);
        words.chain(["--max-new-tokens", "6"]).chain(more.iter().copied()).map(String::from).collect()
    }

    fn eval(&self, questions: &Path, metric: &str, output: &str, more: &[&str]) -> Value {
        let words = self.words(questions, metric, output, more);
        serde_json::from_str(&infer_ok(&words.iter().map(String::as_str).collect::<Vec<_>>())).expect("JSON")
    }

    fn refused(&self, questions: &Path, metric: &str, more: &[&str]) -> String {
        let words = self.words(questions, metric, "refused.jsonl", more);
        let output = infer(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!output.status.success(), "{words:?}");
        assert!(!self.path("refused.jsonl").exists(), "refused before anything is written");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// POPE's rows: question, picture and label.
    fn pope(&self, with_labels: bool) -> Vec<Value> {
        let row = |number: usize| {
            let image = format!("COCO_val2014_{:012}.jpg", number % 4 + 1);
            let mut row = json!({"question_id": number, "image": image, "text": format!("Is there a dog {number} in the image?")});
            if with_labels {
                row["label"] = json!(if number.is_multiple_of(3) { "no" } else { "yes" });
            } else {
                row["category"] = json!(if number < 5 { "random" } else { "popular" });
                row["text"] = json!(format!("{}\nAnswer with one word.", row["text"].as_str().expect("text")));
            }
            row
        };
        (0..9).map(row).collect()
    }
}

/// LLaVA's question file and POPE's labels in a file of their own; answers are those of `infer generate`.
#[test]
fn llavas_questions_and_popes_labels_are_scored_and_continued() {
    let setting = Setting::new();
    let (questions, labels) = (setting.path("llava_pope_test.jsonl"), setting.path("coco_pope_random.json"));
    write_lines(&questions, &setting.pope(false));
    write_lines(&labels, &setting.pope(true));
    let more = ["--annotations", text(&labels), "--batch-size", "3"];
    let scores = setting.eval(&questions, "yes-no", "answers.jsonl", &more);
    let answers = json_lines(&setting.path("answers.jsonl"));
    assert_eq!(answers.len(), 9);
    for answer in answers.iter().step_by(4) {
        let image = setting.images.join(answer["image"].as_str().expect("a name"));
        let words =
            ["generate", "--model", text(setting.model.path()), "--image", text(&image), "--max-new-tokens", "6"];
        let said = infer_ok(&[&words[..], &["--prompt", answer["prompt"].as_str().expect("text")]].concat());
        assert_eq!(answer["text"].as_str().expect("text"), said.trim());
    }
    // The figures are those of the answers, in all and by category.
    let expected: Vec<Expected> = setting
        .pope(true)
        .iter()
        .map(|row| Expected { answers: vec![row["label"].as_str().expect("a label").to_string()], options: Vec::new() })
        .collect();
    let pairs: Vec<(&str, &Expected)> =
        answers.iter().map(|answer| answer["text"].as_str().expect("text")).zip(&expected).collect();
    for (found, pairs) in [
        (&scores["scores"], &pairs[..]),
        (&scores["groups"]["category"]["random"], &pairs[..5]),
        (&scores["groups"]["category"]["popular"], &pairs[5..]),
    ] {
        for (name, value) in Metric::YesNo.figures(pairs) {
            assert_eq!(found[name].as_f64(), Some(value), "{name} in {found}");
        }
    }
    println!("{scores}");
    assert_eq!(json_file(&setting.path("answers.jsonl.scores.json")), scores);
    let scored = json_lines(&setting.path("answers.jsonl.scored.jsonl"));
    let right: f64 = scored.iter().filter_map(|line| line["score"].as_f64()).sum();
    assert_eq!(scores["scores"]["accuracy"].as_f64(), Some(right / 9.0));

    // A file that was cut off continues to the same bytes, at another batch size; another metric asks nothing again.
    let whole = std::fs::read(setting.path("answers.jsonl")).expect("readable");
    std::fs::write(setting.path("answers.jsonl"), &whole[..whole.len() / 2]).expect("written");
    let more = ["--annotations", text(&labels), "--batch-size", "8"];
    assert_eq!(setting.eval(&questions, "yes-no", "answers.jsonl", &more), scores);
    assert!(std::fs::read(setting.path("answers.jsonl")).expect("readable") == whole);
    let exact = setting.eval(&questions, "exact", "answers.jsonl", &more);
    assert_eq!(exact["scores"]["exact_match"], json!(0.0));
    assert!(std::fs::read(setting.path("answers.jsonl")).expect("readable") == whole);
    let words = setting.words(&questions, "exact", "answers.jsonl", &["--prompt-suffix", "Briefly."]);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--annotations", text(&labels)]).collect();
    let refused = String::from_utf8_lossy(&infer(&words).stderr).into_owned();
    assert!(refused.contains("prompt_suffix") && refused.contains("--overwrite true"), "{refused}");
}

#[test]
fn vqav2s_files_and_cocos_captions_are_read() {
    let setting = Setting::new();
    let questions = setting.path("v2_OpenEnded_mscoco_val2014_questions.json");
    let rows: Vec<Value> = (1..5)
        .map(|number| json!({"image_id": number, "question": "What is it?", "question_id": number * 1000}))
        .collect();
    let write = |path: &Path, value: Value| std::fs::write(path, value.to_string()).expect("written");
    write(&questions, json!({"data_type": "mscoco", "data_subtype": "val2014", "questions": rows}));
    let suffix = ["--prompt-suffix", "Answer the question using a single word or phrase."];
    // The model's own answers, so that there is something right.
    let annotations = setting.path("annotations.json");
    let annotate = |answers: &dyn Fn(usize) -> Vec<String>| {
        let rows: Vec<Value> = (1..5)
            .map(|number| {
                let answers = answers(number).into_iter().enumerate();
                let answers: Vec<Value> = answers
                    .map(|(id, answer)| json!({"answer": answer, "answer_confidence": "yes", "answer_id": id + 1}))
                    .collect();
                json!({"question_id": number * 1000, "image_id": number, "question_type": "what is", "answers": answers,
                   "answer_type": if number < 3 { "other" } else { "number" }, "multiple_choice_answer": "x"})
            })
            .collect();
        write(&annotations, json!({"info": {}, "annotations": rows}));
    };
    annotate(&|_| vec!["x".to_string(); 10]);
    let given = ["--annotations", text(&annotations), suffix[0], suffix[1]];
    setting.eval(&questions, "vqa", "answers.jsonl", &given);
    let said: Vec<String> = json_lines(&setting.path("answers.jsonl"))
        .iter()
        .map(|line| line["text"].as_str().expect("text").to_string())
        .collect();
    annotate(&|number| [vec![said[number - 1].clone(); number], vec!["x".to_string(); 10 - number]].concat());
    let scores = setting.eval(&questions, "vqa", "answers.jsonl", &given);
    // k of ten annotators gave the answer: 0.3, 0.6, 0.9, 1.
    let expected = [0.3, 0.6, 0.9, 1.0];
    let overall = scores["scores"]["vqa_accuracy"].as_f64().expect("a number");
    assert!((overall - expected.iter().sum::<f64>() / 4.0).abs() < 1e-12, "{scores}");
    let group = |name: &str| scores["groups"]["answer_type"][name]["vqa_accuracy"].as_f64().expect("a number");
    assert!((group("other") - 0.45).abs() < 1e-12 && (group("number") - 0.95).abs() < 1e-12, "{scores}");
    assert_eq!(scores["groups"]["question_type"]["what is"]["questions"], 4);
    println!("{scores}");

    // Captions of the same pictures: COCO's file, and this project's references.
    let captions = setting.path("captions_val2014.json");
    let rows: Vec<Value> = (0..8).map(|number| {
        json!({"image_id": number % 4 + 1, "id": number + 1000, "caption": format!("caption {number} of it")})
    }).collect();
    let images: Vec<Value> =
        (1..5).map(|id| json!({"id": id, "file_name": format!("COCO_val2014_{id:012}.jpg")})).collect();
    write(&captions, json!({"images": images, "annotations": rows}));
    let references = setting.path("references.json");
    let rows: Vec<Value> = (1..5).map(|number| {
        let image = format!("COCO_val2014_{number:012}.jpg");
        json!({"image": image, "captions": [format!("caption {} of it", number - 1), format!("caption {} of it", number + 3)]})
    }).collect();
    write(&references, json!(rows));
    let of = |file: &Path| {
        setting.eval(&questions, "caption", "answers.jsonl", &["--annotations", text(file), suffix[0], suffix[1]])
    };
    let found = of(&captions);
    assert_eq!(found, of(&references));
    let expected = json_lines(&setting.path("answers.jsonl.scored.jsonl"));
    assert_eq!(expected[1]["expected"], json!(["caption 1 of it", "caption 5 of it"]));
    assert!(found["scores"]["cider_d"].is_number(), "{found}");
}

/// The rows of a chat.json are asked as `infer caption` asks them.
#[test]
fn a_datasets_questions_have_the_answers_of_infer_caption() {
    let setting = Setting::new();
    let data = reference("pictures");
    let captions = setting.path("captions.jsonl");
    let words = ["caption", "--model", text(setting.model.path()), "--data", text(&data), "--output", text(&captions)];
    infer_ok(&[&words[..], &["--max-new-tokens", "6", "--limit", "5"]].concat());
    let mut setting = setting;
    setting.images = data.clone();
    let scores = setting.eval(&data.join("chat.json"), "exact", "answers.jsonl", &["--limit", "5"]);
    let texts = |path: &Path, key: &str| json_lines(path).iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&setting.path("answers.jsonl"), "text"), texts(&captions, "caption"));
    assert_eq!(texts(&setting.path("answers.jsonl"), "question_id"), texts(&captions, "id"));
    assert_eq!(scores["questions"], 5);
}

#[test]
fn a_question_that_cannot_be_asked_or_scored_is_named_before_any_work() {
    let setting = Setting::new();
    let image = "COCO_val2014_000000000001.jpg";
    let good = json!({"question_id": 1, "image": image, "text": "Is it?", "answer": "yes"});
    let questions = setting.path("questions.jsonl");
    let options = json!({"A": "cat", "B": "dog"});
    for (metric, row, expected) in [
        ("exact", json!({"question_id": 7, "text": "Is it?", "answer": "yes"}), &["line 2", "without its picture"][..]),
        (
            "exact",
            json!({"question_id": 7, "image": "gone.jpg", "text": "?", "answer": "x"}),
            &["question_id 7", "gone.jpg"],
        ),
        ("exact", json!({"question_id": 7, "image": "../a.jpg", "text": "?", "answer": "x"}), &["../a.jpg"]),
        (
            "exact",
            json!({"question_id": 7, "image": image, "text": "?"}),
            &["question_id 7", "no expected answer", "--annotations"],
        ),
        ("yes-no", json!({"question_id": 7, "image": image, "text": "?", "label": "two"}), &["\"two\"", "yes or no"]),
        (
            "multiple-choice",
            json!({"question_id": 7, "image": image, "text": "?", "answer": "C", "options": options}),
            &["\"C\"", "cat, dog"],
        ),
        ("exact", json!({"image": image, "text": "?", "answer": "x"}), &["no \"question_id\""]),
        ("exact", json!({"question_id": 7, "image": image, "answer": "x"}), &["no question"]),
        ("exact", json!({"question_id": 7, "image": 1.5, "text": ["?"], "answer": "x"}), &["text: found a list"]),
        (
            "exact",
            json!({"question_id": 7, "image": image, "text": "<image><image>", "answer": "x"}),
            &["2 <image> markers"],
        ),
        ("exact", json!([1]), &["line 2", "a list", "an object"]),
        (
            "exact",
            json!({"question_id": 7, "image": image, "text": "?", "answer": "no", "label": "yes"}),
            &["line 2", "\"answer\" and \"label\" with different values"],
        ),
        (
            "exact",
            json!({"question_id": 7, "image": image, "text": "An answer.", "prompt": "?", "answer": "x"}),
            &["\"text\" and \"prompt\" with different values"],
        ),
        (
            "yes-no",
            json!({"question_id": 7, "image": image, "text": "?", "answer": ["yes", "no"]}),
            &["\"yes\" and \"no\"", "not both"],
        ),
        (
            "multiple-choice",
            json!({"question_id": 7, "image": image, "text": "?", "answer": 2, "options": ["1", "2", "3"]}),
            &["an option's text and the place", "\"3\""],
        ),
        (
            "exact",
            serde_json::from_str(r#"{"question_id": 1000000000000000000000000000001, "image": "a.jpg", "text": "?"}"#)
                .expect("JSON"),
            &["question_id", "more than 64 bits"],
        ),
    ] {
        // The first question alone would do, but has no options.
        let rows = if metric == "multiple-choice" { vec![row.clone()] } else { vec![good.clone(), row.clone()] };
        write_lines(&questions, &rows);
        let error = setting.refused(&questions, metric, &[]);
        assert!(expected.iter().all(|word| error.contains(word)), "{row}: {error}");
        println!("{}", error.lines().last().unwrap_or_default());
    }
    write_lines(&questions, std::slice::from_ref(&good));
    let error = setting.refused(&questions, "accuracy", &[]);
    assert!(error.contains("found accuracy") && error.contains("multiple-choice"), "{error}");
    for (bytes, expected) in [
        (&b"{\"question_id\": 1,\n"[..], &["line 1", "JSON"][..]),
        (b"{\"question_id\": 1}\n{\"\xe4\": 1}\n", &["not UTF-8 at byte 21", "save it in UTF-8"]),
    ] {
        std::fs::write(&questions, bytes).expect("written");
        let error = setting.refused(&questions, "exact", &[]);
        assert!(expected.iter().all(|word| error.contains(word)), "{error}");
    }

    // Two rows of annotations for a question.
    write_lines(&questions, &[json!({"question_id": 7, "image": image, "text": "Is it?"})]);
    let annotations = setting.path("annotations.json");
    for (second, is_refused) in [("no", true), ("yes", false)] {
        write_lines(&annotations, &["yes", second].map(|label| json!({"question_id": 7, "label": label})));
        let more = ["--annotations", text(&annotations)];
        if is_refused {
            let error = setting.refused(&questions, "yes-no", &more);
            assert!(error.contains("line 2") && error.contains("other expected answers for question_id 7"), "{error}");
        } else {
            setting.eval(&questions, "yes-no", "same.jsonl", &more);
        }
    }

    // A picture that turns out damaged is left out, and is an error at the end.
    std::fs::write(setting.images.join("cut.jpg"), "no picture").expect("written");
    write_lines(&questions, &[good, json!({"question_id": 2, "image": "cut.jpg", "text": "?", "answer": "yes"})]);
    let words = setting.words(&questions, "yes-no", "answers.jsonl", &[]);
    let output = infer(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("1 of 2 questions have no answer"), "{error}");
    let scores = setting.eval(&questions, "yes-no", "answers.jsonl", &["--max-failed", "0.5"]);
    assert_eq!((&scores["questions"], &scores["failed"]), (&json!(2), &json!(1)));
    // Nothing answered has no score.
    write_lines(&questions, &[json!({"question_id": 2, "image": "cut.jpg", "text": "?", "answer": "yes"})]);
    let scores = setting.eval(&questions, "yes-no", "none.jsonl", &["--max-failed", "1"]);
    assert_eq!((&scores["failed"], &scores["scores"]["accuracy"]), (&json!(1), &Value::Null));

    // Another picture under the same name.
    let words = setting.words(&questions, "yes-no", "none.jsonl", &["--max-failed", "1"]);
    std::fs::write(setting.images.join("cut.jpg"), "another").expect("written");
    let output = infer(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("another set of pictures"), "{error}");
}

/// ScienceQA's layout: options in the text, in a list, in an object, as keys; the answer as a letter, a text or an index.
#[test]
fn options_are_read_from_every_layout() {
    let setting = Setting::new();
    let questions = setting.path("questions.jsonl");
    let image = "COCO_val2014_000000000001.jpg";
    let row = |id: u64, more: Value| {
        let mut row = json!({"question_id": id, "image": image, "text": "Which?"});
        let more = more.as_object().expect("an object").clone();
        row.as_object_mut().expect("an object").extend(more);
        row
    };
    write_lines(
        &questions,
        &[
            row(1, json!({"text": "Which?\nA. cat\nB. dog", "answer": "B"})),
            row(2, json!({"options": ["cat", "dog"], "answer": 1})),
            row(3, json!({"choices": {"A": "cat", "B": "dog"}, "answer": "dog"})),
            row(4, json!({"A": "cat", "B": "dog", "answer": "The answer is B."})),
            row(5, json!({"image": null, "answer": "B"})),
            row(6, json!({"options": [4, 7], "answer": 7})),
            row(7, json!({"options": ["0", "1"], "answer": 1})),
        ],
    );
    let scores = setting.eval(&questions, "multiple-choice", "answers.jsonl", &[]);
    let scored = json_lines(&setting.path("answers.jsonl.scored.jsonl"));
    let expected: Vec<Value> = scored.iter().map(|line| line["expected"][0].clone()).collect();
    assert_eq!(expected, ["B", "dog", "dog", "The answer is B.", "B", "7", "1"]);
    assert_eq!((&scores["questions"], scored[4]["image"].as_str()), (&json!(7), Some("")));
    assert_eq!(scores["scores"]["accuracy"], json!(0.0), "the tiny model says something else");
}

/// Real pictures and sentences (NLVR): every row is asked, and the figures are those of its answers.
#[test]
fn rows_of_nlvr_are_scored() {
    let Some(data) = tests::shared("data/nlvr_main") else { return };
    let mut setting = Setting::new();
    setting.images = data.clone();
    let questions = data.join("chat.json");
    let scores = setting.eval(&questions, "caption", "answers.jsonl", &["--limit", "24"]);
    let rows = json_file(&questions);
    let scored = json_lines(&setting.path("answers.jsonl.scored.jsonl"));
    assert_eq!((scored.len(), &scores["failed"]), (24, &json!(0)));
    let expected: Vec<Expected> = (0..24)
        .map(|row| {
            let sentence = &rows[row]["conversations"][1]["value"];
            assert_eq!((&scored[row]["expected"][0], &scored[row]["image"]), (sentence, &rows[row]["image"]));
            Expected { answers: vec![sentence.as_str().expect("text").to_string()], options: Vec::new() }
        })
        .collect();
    let texts = scored.iter().map(|line| line["text"].as_str().expect("text"));
    let pairs: Vec<(&str, &Expected)> = texts.zip(&expected).collect();
    for (name, value) in Metric::Caption.figures(&pairs) {
        let found = scores["scores"][name].as_f64().expect("a number");
        assert!((found - value).abs() <= 1e-12, "{name}: {found} where {value} is expected");
    }
    println!("{scores}");
}
