//! `infer generate`: one question, answered on stdout token by token.

use crate::args::GenerateArgs;
use crate::engine::{Engine, PICTURE, Request, single_question};
use anyhow::Result;
use base::output::print;
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    finish_reason: &'static str,
    prompt_tokens: usize,
    new_ids: &'a [u32],
    first_token_seconds: f64,
    decode_tokens_per_second: f64,
    peak_rss_mb: f64,
}

/// Loads the model, answers, and writes the text to `out` piece by piece (or as one JSON object).
///
/// # Errors
/// An unusable model, adapter or picture; options out of range; `out` closed.
pub fn run(args: &GenerateArgs, out: &mut impl Write) -> Result<()> {
    let sampling = args.sampling.sampling()?;
    for path in &args.image {
        std::fs::metadata(path).map_err(cli::inputs::unread(path, PICTURE))?;
    }
    let engine = Engine::from_args(&args.model)?;
    engine.tell_unused_settings();
    let images = args.image.iter().map(|path| engine.processors.read_image(path)).collect::<Result<Vec<_>>>()?;
    let (system, question) =
        (engine.processors.chat.quote(&args.system_prompt), engine.processors.typed_question(&args.prompt));
    let messages = single_question(&system, &question, images.len());
    let request = Request {
        prompt: engine.processors.prompt(&messages, &images)?,
        sampling,
        max_new_tokens: args.sampling.max_new_tokens,
        stop: args.sampling.stop.clone(),
        ignore_eos: false,
    };
    let mut show = |piece: &str| -> Result<()> {
        if !args.json {
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).map_err(base::Error::io("stdout"))?;
        }
        Ok(())
    };

    let begin = Instant::now();
    let (mut sequence, mut text) = engine.start(request)?;
    let first_token_seconds = begin.elapsed().as_secs_f64();
    show(&text)?;
    while sequence.finish().is_none() {
        let piece = engine.step(&mut [&mut sequence])?.concat();
        show(&piece)?;
        text.push_str(&piece);
    }
    let decode_seconds = begin.elapsed().as_secs_f64() - first_token_seconds;

    if !args.json {
        return Ok(print(out, "")?);
    }
    let report = Report {
        text: &text,
        finish_reason: sequence.finish().map_or("", |reason| reason.as_str()),
        prompt_tokens: sequence.prompt_tokens(),
        new_ids: sequence.new_ids(),
        first_token_seconds,
        decode_tokens_per_second: (sequence.new_ids().len() - 1) as f64 / decode_seconds.max(f64::MIN_POSITIVE),
        peak_rss_mb: kernels::memory::peak_rss_mb(),
    };
    Ok(print(out, serde_json::to_string(&report)?)?)
}
