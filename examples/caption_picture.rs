//! Answers a question about a picture, token by token.
//!
//!     cargo run --release -p infer --example caption_picture -- quickstart/run PICTURE "Give a caption for this picture."

use anyhow::Result;
use chat::SYSTEM_PROMPT;
use infer::engine::{Engine, Request, single_question};
use kernels::device::DeviceKind;
use model::sampling::SamplingConfig;
use std::io::Write;
use std::path::Path;
use store::checkpoint::LoadAs;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, picture, question] = &args[..] else { anyhow::bail!("usage: caption_picture MODEL PICTURE QUESTION") };

    // A model directory, without an adapter; weights stay in the dtype of the files.
    let engine = Engine::load(Path::new(model), None, LoadAs::Stored, DeviceKind::Cpu)?;
    let image = engine.processors.read_image(Path::new(picture))?;
    let messages = single_question(SYSTEM_PROMPT, question, 1);
    let prompt = engine.processors.prompt(&messages, &[image])?;

    // `start` runs the prompt and chooses the first token; `step` adds one token to each of any number of sequences.
    let sampling = SamplingConfig::default(); // greedy
    let request = Request { prompt, sampling, max_new_tokens: 64, stop: Vec::new(), ignore_eos: false };
    let (mut sequence, mut text) = engine.start(request)?;
    while sequence.finish().is_none() {
        print!("{text}");
        std::io::stdout().flush()?;
        text = engine.step(&mut [&mut sequence])?.concat();
    }
    println!("{text}");
    Ok(())
}
