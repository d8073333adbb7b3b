//! `infer caption`: every picture of a source once, into a JSONL file that the next run continues.

mod line;
mod references;
mod settings;
mod source;

use crate::answers::journal::{self, Journal};
use crate::answers::{Answer, Answering};
use crate::args::{CaptionArgs, CaptionSource};
use crate::engine::Engine;
use anyhow::{Result, ensure};
use line::Line;
use metrics::captions::{CaptionMetrics, caption_metrics};
use references::References;
use serde::Serialize;
use source::Source;

/// What a finished run says on stdout.
#[derive(Debug, Serialize)]
struct Summary {
    pictures: usize,
    captioned: usize,
    failed: usize,
    /// Number of captions that equal one of their references.
    #[serde(skip_serializing_if = "Option::is_none")]
    exactly_right: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<CaptionMetrics>,
}

/// Captions the pictures that have no caption yet, then compares with the references. Returns the summary as JSON.
///
/// # Errors
/// An unusable model or source; no picture; an output file that belongs to another run. A bad picture is recorded, and is an
/// error only where more than `max_failed` of them are bad.
pub fn run(args: &CaptionArgs) -> Result<String> {
    args.sampling.sampling()?;
    let references = args.references.iter().map(|file| ("--references", file.as_path()));
    cli::outputs::require_no_input(&args.output, "--output", &references.collect::<Vec<_>>())?;
    let CaptionSource { images, data, shards } = &args.source;
    let folders = [("--images", images), ("--data", data), ("--shards", shards)];
    let folders: Vec<_> = folders.iter().filter_map(|(option, folder)| Some((*option, folder.as_deref()?))).collect();
    journal::require_no_file_of(&args.output, &folders)?;
    // Another model's file is refused before this one is loaded; nothing is written before all of the input is right.
    let settings = settings::settings(args)?;
    journal::check(&args.output, &settings, args.overwrite)?;
    journal::check_beside(&args.output, &[], args.overwrite)?;
    let engine = Engine::from_args(&args.model)?;
    engine.tell_unused_settings();
    let source = Source::open(args, &engine.processors)?;
    let references = References::read(args)?;
    let mut journal = Journal::open(&args.output, &settings, args.overwrite)?;
    let total = args.limit.unwrap_or(usize::MAX).min(source.len());
    ensure!(
        total > 0,
        "no pictures to caption: the source has {}{}",
        source.len(),
        args.limit.map_or(String::new(), |limit| format!(", --limit allows {limit}"))
    );
    source.check(&journal.lines()?, &args.output)?;
    ensure!(
        journal.len() <= total,
        "{}: has {} lines, the source {total} pictures; give another --output",
        args.output.display(),
        journal.len()
    );
    let (sampling, batch_size) = (&args.sampling, args.batch_size);
    let answering = Answering { engine: &engine, sampling, batch_size, unit: "pictures" };
    let ask = |index| {
        let item = source.item(index, &engine.processors)?;
        let references = references.of(&item);
        Ok((Line { index, id: item.id, image: item.image, references, ..Line::default() }, item.prompt))
    };
    answering.answer_rest(total, &mut journal, ask, with_answer)?;
    let summary = summary(&journal.lines()?);
    let text = serde_json::to_string(&summary)?;
    ensure!(
        summary.failed as f64 <= args.max_failed * summary.pictures as f64,
        "{}: {} of {} pictures failed, more than --max-failed {} allows; their lines say why, the others have their captions: \
         {text}",
        args.output.display(),
        summary.failed,
        summary.pictures,
        args.max_failed
    );
    Ok(text)
}

/// A picture's line, complete but for the answer.
fn with_answer(mut line: Line, answer: Result<Answer, String>) -> Line {
    match answer {
        Ok(Answer { text, finish_reason, new_tokens }) => {
            (line.caption, line.finish_reason, line.new_tokens) = (Some(text), finish_reason, Some(new_tokens));
        }
        Err(cause) => line.error = Some(cause),
    }
    line
}

fn summary(lines: &[Line]) -> Summary {
    let compared: Vec<(String, Vec<String>)> = lines
        .iter()
        .filter(|line| !line.references.is_empty())
        .filter_map(|line| Some((line.caption.clone()?, line.references.clone())))
        .collect();
    let exact = |(caption, references): &&(String, Vec<String>)| references.iter().any(|text| text.trim() == caption);
    Summary {
        pictures: lines.len(),
        captioned: lines.iter().filter(|line| line.caption.is_some()).count(),
        failed: lines.iter().filter(|line| line.error.is_some()).count(),
        exactly_right: (!compared.is_empty()).then(|| compared.iter().filter(exact).count()),
        metrics: (!compared.is_empty()).then(|| caption_metrics(&compared)),
    }
}
