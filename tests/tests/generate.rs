//! `infer generate` against transformers' greedy text; batches, adapters, stop strings, seeds, real backbones.

use chat::SYSTEM_PROMPT;
use infer::engine::{Engine, Request, Sequence, single_question};
use kernels::device::DeviceKind;
use model::sampling::SamplingConfig;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use store::checkpoint::LoadAs;
use tests::inference::{infer, infer_ok, model_dir, model_dir_of, read_json};
use tests::references::Reference;
use tests::{program, reference, references};

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// (question, picture) of the first rows of the dataset that the fixtures were made from.
fn questions(count: usize) -> Vec<(String, PathBuf)> {
    let chat = read_json("pictures/chat.json");
    let row = |row: &Value| {
        let image = row["image"].as_str().expect("image");
        let question = row["conversations"][0]["value"].as_str().expect("a question");
        (question.to_string(), reference(&format!("pictures/images/{image}")))
    };
    chat.as_array().expect("rows").iter().take(count).map(row).collect()
}

fn request(engine: &Engine, question: &str, image: Option<&Path>, max_new_tokens: usize) -> Request {
    let images: Vec<_> = image.iter().map(|path| engine.processors.read_image(path).expect("a picture")).collect();
    let messages = single_question(SYSTEM_PROMPT, question, images.len());
    let prompt = engine.processors.prompt(&messages, &images).expect("a prompt");
    Request { prompt, sampling: SamplingConfig::default(), max_new_tokens, stop: Vec::new(), ignore_eos: false }
}

/// Greedy ids and texts of all requests decoded together; finished ones leave.
fn together(engine: &Engine, requests: Vec<Request>) -> Vec<(Vec<u32>, String)> {
    let mut all: Vec<(Sequence, String)> =
        requests.into_iter().map(|request| engine.start(request).expect("a start")).collect();
    loop {
        let mut running: Vec<_> = all.iter_mut().filter(|(sequence, _)| sequence.finish().is_none()).collect();
        if running.is_empty() {
            return all.into_iter().map(|(sequence, text)| (sequence.new_ids().to_vec(), text)).collect();
        }
        let mut sequences: Vec<&mut Sequence> = running.iter_mut().map(|(sequence, _)| sequence).collect();
        let pieces = engine.step(&mut sequences).expect("a step");
        running.iter_mut().zip(pieces).for_each(|((_, text), piece)| text.push_str(&piece));
    }
}

/// The program's text and ids of all rows, alone; and the same rows as one batch.
#[test]
fn greedy_text_equals_transformers_alone_and_in_a_batch() {
    for family in references::all() {
        greedy_text(family);
    }
}

fn greedy_text(family: Reference) {
    let dir = model_dir_of(family, "train_none");
    let expected = family.json("generate.json");
    let expected: Vec<(Vec<u32>, String)> = expected["outputs"]
        .as_array()
        .expect("outputs")
        .iter()
        .map(|row| {
            let ids = serde_json::from_value(row["new_ids"].clone()).expect("new_ids");
            (ids, row["text"].as_str().expect("text").to_string())
        })
        .collect();
    let max_new_tokens = family.spec()["generate"]["max_new_tokens"].as_u64().expect("a number") as usize;
    let questions = questions(expected.len());

    let limit = max_new_tokens.to_string();
    for ((question, image), (ids, reference)) in questions.iter().zip(&expected) {
        let args = ["generate", "--model", text(dir.path()), "--image", text(image), "--prompt", question];
        let args = [&args[..], &["--max-new-tokens", &limit, "--json"]].concat();
        let json: Value = serde_json::from_str(&infer_ok(&args)).expect("JSON");
        let found: Vec<u32> = serde_json::from_value(json["new_ids"].clone()).expect("new_ids");
        let what = format!("{}: {}", family.name, image.display());
        assert_eq!((&found, json["text"].as_str()), (ids, Some(reference.as_str())), "{what}");
    }
    let (question, image) = &questions[0];
    let args = ["generate", "--model", text(dir.path()), "--image", text(image), "--prompt", question];
    let args = [&args[..], &["--max_new_tokens", &limit]].concat();
    assert_eq!(infer_ok(&args), format!("{}\n", expected[0].1), "{}: streamed", family.name);

    let engine = Engine::load(dir.path(), None, LoadAs::Stored, DeviceKind::Cpu).expect("the model");
    let requests = questions.iter().map(|(question, image)| request(&engine, question, Some(image), max_new_tokens));
    assert_eq!(together(&engine, requests.collect()), expected, "{}: in one batch", family.name);
    println!("{}: {} rows: same ids and text alone, streamed and in one batch", family.name, expected.len());
}

/// Rows of different lengths with and without pictures, greedy and drawn: the same alone and among the others.
#[test]
fn a_row_is_the_same_alone_and_in_any_batch() {
    let dir = model_dir("tiny/train_none");
    let engine = Engine::load(dir.path(), None, LoadAs::Stored, DeviceKind::Cpu).expect("the model");
    let mut requests: Vec<Request> =
        questions(19).iter().map(|(question, image)| request(&engine, question, Some(image), 40)).collect();
    requests.push(request(&engine, "What is this?", None, 30));
    for (seed, request) in requests.iter_mut().enumerate().skip(2) {
        request.sampling =
            SamplingConfig { temperature: 0.9, top_k: 50, top_p: 0.95, repetition_penalty: 1.2, seed: seed as u64 };
    }
    let alone: Vec<_> = requests.iter().flat_map(|request| together(&engine, vec![request.clone()])).collect();
    for size in [2, 3, 7, 20] {
        let batched: Vec<_> = requests.chunks(size).flat_map(|chunk| together(&engine, chunk.to_vec())).collect();
        assert_eq!(batched, alone, "batches of {size}");
    }
    assert_ne!(alone[2], alone[3], "drawn rows differ");
}

#[test]
fn stop_strings_and_limits_end_the_answer() {
    let dir = model_dir("tiny/train_none");
    let engine = Engine::load(dir.path(), None, LoadAs::Stored, DeviceKind::Cpu).expect("the model");
    let (question, image) = questions(1).remove(0);
    let whole = together(&engine, vec![request(&engine, &question, Some(&image), 24)]).remove(0);
    let stopped = Request { stop: vec!["a a a".into()], ..request(&engine, &question, Some(&image), 24) };
    let (ids, text) = together(&engine, vec![stopped]).remove(0);
    assert_eq!(whole.1.split_once("a a a").expect("the fixture's text repeats").0, text);
    assert!(ids.len() < whole.0.len());
    let long = "word ".repeat(2000);
    let error = engine.start(request(&engine, &long, None, 4)).err().expect("longer than the context").to_string();
    assert!(error.contains("1024"), "{error}");
}

#[test]
fn bad_input_is_named() {
    let dir = model_dir("tiny/train_none");
    let model = text(dir.path());
    let text_file = dir.path().join("config.json");
    for (args, code, expected) in [
        (vec!["generate", "--model", "/nonexistent", "--prompt", "Hi"], 1, "/nonexistent"),
        (vec!["generate", "--model", model, "--prompt", "Hi", "--image", "/nonexistent.jpg"], 1, "/nonexistent.jpg"),
        (vec!["generate", "--model", model, "--prompt", "Hi", "--image", text(&text_file)], 1, "config.json"),
        (vec!["generate", "--model", model, "--prompt", "<image> Hi"], 1, "1 <image> markers and 0 pictures"),
        (vec!["generate", "--model", model, "--prompt", "Hi", "--top-p", "2"], 2, "top_p"),
        (vec!["generate", "--model", model, "--prompt", "Hi", "--top-p", "0.9"], 2, "add --temperature 0.7"),
        (
            vec!["generate", "--model", model, "--prompt", "Hi", "--seed", "3"],
            2,
            "--seed: found 3, which has no effect",
        ),
        (
            vec!["generate", "--model", model, "--prompt", "Hi", "--top-k", "5"],
            2,
            "--top_k: found 5, which has no effect",
        ),
        (vec!["generate", "--model", model, "--prompt", "Hi", "--max-new-tokens", "0"], 2, "at least 1"),
        (vec!["generate", "--model", model, "--prompt", "Hi", "--adapter", "/nonexistent"], 1, "/nonexistent"),
        (vec!["generate", "--model", model], 2, "--prompt"),
    ] {
        let output = infer(&args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

/// Memory beside the weights, MB: activations of a whole prompt, buffers, the program.
const OTHER_MEMORY_MB: f64 = 150.0;

/// The real backbones as LLaVA; `None` where they are not there.
fn assembled(dir: &Path, language_model: &str, dtype: &str) -> Option<PathBuf> {
    let Some(backbones) = std::env::var_os("LLAVA_BACKBONES").map(PathBuf::from) else {
        println!("not run: LLAVA_BACKBONES is not set");
        return None;
    };
    let model = dir.join(format!("{language_model}-{dtype}"));
    let assembled = Command::new(program("preprocess"))
        .args(["model", "--dtype", dtype, "--vision-tower"])
        .arg(backbones.join("dinov2s_as_clip336"))
        .arg("--language-model")
        .arg(backbones.join(language_model))
        .arg("--output")
        .arg(&model)
        .output()
        .expect("preprocess runs");
    assert!(assembled.status.success(), "{}", String::from_utf8_lossy(&assembled.stderr));
    Some(model)
}

/// Asks the real backbones without a picture.
fn ask_for_capital(model: &Path, more: &[&str]) -> Value {
    let question = "What is the capital of France? Answer in one sentence.";
    let args = ["generate", "--model", text(model), "--prompt", question, "--max-new-tokens", "16", "--json"];
    serde_json::from_str(&infer_ok(&[&args[..], more].concat())).expect("JSON")
}

/// SmolLM2 as the Llama that it is published as, whose tables grow by `<image>`, and written as a Qwen2 with spare rows.
#[test]
fn the_same_language_model_answers_the_same_as_a_llama_and_as_a_qwen2() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut answers = Vec::new();
    for language_model in ["smollm2", "smollm2_as_qwen2"] {
        let Some(model) = assembled(dir.path(), language_model, "bf16") else { return };
        answers.push(ask_for_capital(&model, &[])["text"].clone());
        std::fs::remove_dir_all(&model).expect("removed");
    }
    println!("{answers:?}");
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].as_str().expect("text").contains("Paris"), "{answers:?}");
}

/// SmolLM2 in a LLaVA, asked without a picture and with one; weights in half the memory are used as they are.
#[test]
fn the_assembled_real_backbones_answer_paris_in_the_memory_of_their_weights() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = reference("pictures/images/100000000.jpg");
    for (dtype, extra) in [("f32", &[][..]), ("bf16", &[]), ("f16", &[]), ("bf16", &["--quantize", "int8"])] {
        let Some(model) = assembled(dir.path(), "smollm2_as_qwen2", dtype) else { return };
        let answer = ask_for_capital(&model, extra);
        assert!(answer["text"].as_str().expect("text").contains("Paris"), "{dtype} {extra:?}: {answer}");
        let weights =
            std::fs::metadata(model.join("model.safetensors")).expect("weights").len() as f64 / f64::from(1 << 20);
        let peak = ask_for_capital(&model, &[extra, &["--image", text(&image)]].concat())["peak_rss_mb"]
            .as_f64()
            .expect("a number");
        println!("{dtype} {extra:?}: weights {weights:.0} MB, peak {peak:.0} MB");
        assert!(peak < weights + OTHER_MEMORY_MB, "{dtype} {extra:?}: {peak} MB for {weights} MB of weights");
        std::fs::remove_dir_all(&model).expect("removed");
    }
}
