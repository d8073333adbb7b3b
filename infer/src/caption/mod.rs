//! `infer caption`: every picture of a source once, into a JSONL file that the next run continues.

mod journal;
mod references;
mod settings;
mod source;

use crate::args::CaptionArgs;
use crate::engine::{Engine, Request, Sequence};
use crate::metrics::{CaptionMetrics, caption_metrics};
use anyhow::{Result, ensure};
use cli::Progress;
use journal::{Journal, Line};
use references::References;
use serde::Serialize;
use source::{Item, Source};
use std::collections::BTreeMap;

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
    // Another model's file is refused before this one is loaded; nothing is written before all of the input is right.
    let settings = settings::settings(args)?;
    journal::check(&args.output, &settings, args.overwrite)?;
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
    caption_rest(args, &engine, &source, &references, total, &mut journal)?;
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

/// A caption in the making.
struct Active {
    index: usize,
    line: Line,
    sequence: Sequence,
}

/// Keeps up to `batch_size` captions going; a finished one makes room for the next. Lines are written in order.
fn caption_rest(
    args: &CaptionArgs,
    engine: &Engine,
    source: &Source,
    references: &References,
    total: usize,
    journal: &mut Journal,
) -> Result<()> {
    let mut progress = Progress::new("pictures", journal.len() as u64, total as u64);
    let mut next = journal.len();
    let mut active: Vec<Active> = Vec::new();
    let mut finished = BTreeMap::new();
    while journal.len() < total {
        while next < total && active.len() < args.batch_size {
            match begin(args, engine, source.item(next, &engine.processors)?, references, next)? {
                Begun::Active(caption) => active.push(*caption),
                Begun::Finished(line) => drop(finished.insert(next, line)),
            }
            next += 1;
        }
        step(engine, &mut active)?;
        for done in active.extract_if(.., |caption| caption.sequence.finish().is_some()) {
            finished.insert(done.index, complete(done));
        }
        while let Some(line) = finished.remove(&journal.len()) {
            journal.append(&line)?;
            progress.advance(1);
        }
    }
    progress.finish();
    Ok(())
}

enum Begun {
    Active(Box<Active>),
    Finished(Line),
}

fn begin(args: &CaptionArgs, engine: &Engine, item: Item, references: &References, index: usize) -> Result<Begun> {
    let references = references.of(&item);
    let mut line = Line { index, id: item.id, image: item.image, references, ..Line::default() };
    let prompt = match item.prompt {
        Ok(prompt) => prompt,
        Err(cause) => {
            line.error = Some(cause);
            return Ok(Begun::Finished(line));
        }
    };
    let request = Request {
        prompt,
        sampling: args.sampling.sampling()?,
        max_new_tokens: args.sampling.max_new_tokens,
        stop: args.sampling.stop.clone(),
        ignore_eos: false,
    };
    let (sequence, text) = engine.start(request)?;
    line.caption = Some(text);
    let active = Active { index, line, sequence };
    Ok(if active.sequence.finish().is_some() {
        Begun::Finished(complete(active))
    } else {
        Begun::Active(active.into())
    })
}

fn step(engine: &Engine, active: &mut [Active]) -> Result<()> {
    if active.is_empty() {
        return Ok(());
    }
    let (mut sequences, mut captions) = (Vec::new(), Vec::new());
    for caption in active {
        sequences.push(&mut caption.sequence);
        captions.push(caption.line.caption.get_or_insert_default());
    }
    for (caption, text) in captions.into_iter().zip(engine.step(&mut sequences)?) {
        caption.push_str(&text);
    }
    Ok(())
}

fn complete(caption: Active) -> Line {
    let Active { mut line, sequence, .. } = caption;
    line.finish_reason = sequence.finish().map(|reason| reason.as_str().to_string());
    line.new_tokens = Some(sequence.new_ids().len());
    line.caption = line.caption.map(|caption| caption.trim().to_string());
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
