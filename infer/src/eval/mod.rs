//! `infer eval`: answers the questions of a benchmark and scores the answers.

mod annotations;
mod expected;
mod line;
mod questions;
mod rows;
mod scores;

use crate::answers::journal::{self, Compared, Journal};
use crate::answers::{Answer, Answering, settings};
use crate::args::EvalArgs;
use crate::engine::{Engine, Processors};
use annotations::Annotations;
use anyhow::{Result, ensure};
use base::{Error, files, json};
use images::image_files::ImageSources;
use line::{Line, Scored};
use model::batch::PackedBatch;
use questions::Question;
use scores::Scores;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Answers the questions that have no answer yet, then scores all of them. Returns the scores as JSON.
///
/// # Errors
/// An unusable model or question, before anything is answered; an output file that belongs to another run. A damaged picture is
/// left out of the scores, and is an error only where more than `max_failed` of them are.
pub fn run(args: &EvalArgs) -> Result<String> {
    args.sampling.sampling()?;
    let annotations = args.annotations.iter().map(|file| ("--annotations", file.as_path()));
    let inputs: Vec<_> = annotations.chain([("--questions", args.questions.as_path())]).collect();
    let files_beside = [beside(args, SCORES), beside(args, SCORED)];
    for output in files_beside.iter().chain([&args.output]) {
        cli::outputs::require_no_input(output, "--output", &inputs)?;
    }
    journal::require_no_file_of(&args.output, &[("--images", &args.images)])?;
    let pictures = pictures(&args.images)?;
    let annotations = Annotations::read(&args.annotations)?;
    let questions = questions::read(&args.questions, args.limit, &pictures, &annotations, args.metric)?;
    let settings = settings_of(args, &questions, &pictures)?;
    journal::check(&args.output, &settings, args.overwrite)?;
    journal::check_beside(&args.output, &files_beside, args.overwrite)?;
    let engine = Engine::from_args(&args.model)?;
    engine.tell_unused_settings();
    let mut journal = Journal::open(&args.output, &settings, args.overwrite)?;
    ensure!(
        journal.len() <= questions.len(),
        "{}: has {} lines, there are {} questions; give another --output",
        args.output.display(),
        journal.len(),
        questions.len()
    );
    let (sampling, batch_size) = (&args.sampling, args.batch_size);
    let answering = Answering { engine: &engine, sampling, batch_size, unit: "questions" };
    let ask = |index: usize| {
        let question = &questions[index];
        let text = with_suffix(&question.text, &args.prompt_suffix);
        let prompt = prompt(question, &text, args, &pictures, &engine.processors);
        let (question_id, image) = (question.id.clone(), question.images.join(", "));
        let line = Line { index, question_id, image, prompt: text, ..Line::default() };
        Ok((line, prompt.map_err(|error| format!("{error:#}"))))
    };
    answering.answer_rest(questions.len(), &mut journal, ask, with_answer)?;
    let lines = journal.lines()?;
    let scores = Scores::of(args.metric, &questions, &lines);
    write_scores(args, &questions, &lines, &scores)?;
    tracing::info!("\n{}", scores.table());
    let text = serde_json::to_string(&scores)?;
    ensure!(
        scores.failed as f64 <= args.max_failed * scores.questions as f64,
        "{}: {} of {} questions have no answer, more than --max-failed {} allows; their lines say why: {text}",
        args.output.display(),
        scores.failed,
        scores.questions,
        args.max_failed
    );
    Ok(text)
}

fn pictures(dir: &Path) -> Result<ImageSources> {
    if !dir.is_dir() {
        return Err(Error::invalid(dir.display(), "no folder", "the folder of the pictures", "correct --images").into());
    }
    Ok(ImageSources::find(dir)?)
}

/// What changes an answer. Metric and annotations do not: another metric scores the answers that are there.
fn settings_of(args: &EvalArgs, questions: &[Question], pictures: &ImageSources) -> Result<Vec<Compared>> {
    let mut settings = settings::of_model(&args.model)?;
    // By size, as `preprocess shards` compares pictures: a hash would read all of them at every start.
    let sizes: BTreeMap<&str, Option<u64>> =
        questions.iter().flat_map(|of| &of.images).map(|name| (name.as_str(), pictures.file_size(name))).collect();
    let sizes = serde_json::to_vec(&(sizes, pictures.describe()))?;
    settings.push(Compared::later("set of pictures", &args.images, files::sha256_hex(&sizes)));
    settings.push(Compared::contents("questions", &args.questions, files::sha256_of_file(&args.questions)?));
    let values = [
        ("images", serde_json::json!(args.images)),
        ("prompt_suffix", serde_json::json!(args.prompt_suffix)),
        ("system_prompt", serde_json::json!(args.system_prompt)),
    ];
    settings.extend(values.map(|(name, value)| Compared::value(name, value)));
    settings.extend(settings::of_sampling(&args.sampling));
    Ok(settings)
}

fn with_suffix(text: &str, suffix: &str) -> String {
    if suffix.is_empty() { text.to_string() } else { format!("{text}\n{suffix}") }
}

fn prompt(
    question: &Question,
    text: &str,
    args: &EvalArgs,
    pictures: &ImageSources,
    processors: &Processors,
) -> Result<PackedBatch> {
    let read = |name: &String| processors.process_image(name, &pictures.read(name)?);
    let images = question.images.iter().map(read).collect::<Result<Vec<_>>>()?;
    let text = if question.is_record { text.to_string() } else { processors.typed_question(text) };
    let system = question.system.clone().unwrap_or_else(|| processors.chat.quote(&args.system_prompt));
    processors.ask(&images, &text, &system)
}

/// A question's line, complete but for the answer.
fn with_answer(mut line: Line, answer: Result<Answer, String>) -> Line {
    match answer {
        Ok(Answer { text, finish_reason, new_tokens }) => {
            (line.text, line.finish_reason, line.new_tokens) = (text, finish_reason, Some(new_tokens));
        }
        Err(cause) => line.error = Some(cause),
    }
    line
}

fn write_scores(args: &EvalArgs, questions: &[Question], lines: &[Line], scores: &Scores) -> Result<()> {
    json::write(&beside(args, SCORES), scores)?;
    let mut text = String::new();
    for (line, question) in lines.iter().zip(questions) {
        let expected = &question.expected;
        let score = args.metric.score(&line.text, expected).filter(|_| line.error.is_none());
        let (id, image, answer) = (&line.question_id, line.image.as_str(), line.text.as_str());
        let scored = Scored { question_id: id, image, text: answer, score, expected: &expected.answers };
        text += &(serde_json::to_string(&scored)? + "\n");
    }
    Ok(files::write_atomically(&beside(args, SCORED), text.as_bytes())?)
}

/// Endings of the files beside the answers.
const SCORES: &str = ".scores.json";
const SCORED: &str = ".scored.jsonl";

fn beside(args: &EvalArgs, ending: &str) -> PathBuf {
    let mut name = args.output.as_os_str().to_os_string();
    name.push(ending);
    PathBuf::from(name)
}
