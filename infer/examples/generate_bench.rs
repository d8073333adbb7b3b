//! Time to the first token and decoded tokens a second, measured as the reference's `peer_generate.py` measures them.
//!
//!     generate_bench --model DIR --data DIR [--batch N] [--new-tokens N] [--rows N] [--weights stored|f32|int8]
//!
//! Greedy, exactly `--new-tokens` a row, image processing excluded, vision tower included; medians over the rows after a
//! first one that warms up. Prints one JSON line.

use anyhow::{Context, Result};
use clap::Parser;
use common::config::WeightDtype;
use common::memory::peak_rss_mb;
use infer::args::{ModelArgs, Weights};
use infer::engine::{Engine, Prompt, Request, Sequence, single_question};
use infer::sampling::SamplingConfig;
use rayon::prelude::*;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Dataset with chat.json and images/.
    #[arg(long)]
    data: PathBuf,
    /// Rows decoded together.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens a row, exactly.
    #[arg(long, default_value_t = 32)]
    new_tokens: usize,
    /// Batches measured.
    #[arg(long, default_value_t = 4)]
    rows: usize,
}

fn main() -> Result<()> {
    let args = Args::parse_from(common::args::with_dashes(std::env::args_os()));
    let engine = Engine::from_args(&args.model)?;
    let prompts = prompts(&engine, &args)?;
    let (mut first, mut rate) = (Vec::new(), Vec::new());
    for (number, batch) in prompts.chunks(args.batch).enumerate() {
        let begin = Instant::now();
        let mut sequences = batch
            .iter()
            .map(|prompt| Ok(engine.start(request(prompt.clone(), args.new_tokens))?.0))
            .collect::<Result<Vec<Sequence>>>()?;
        let first_token = begin.elapsed().as_secs_f64();
        for _ in 1..args.new_tokens {
            engine.step(&mut sequences.iter_mut().collect::<Vec<_>>())?;
        }
        let decode = begin.elapsed().as_secs_f64() - first_token;
        if number > 0 {
            first.push(first_token);
            rate.push((args.batch * (args.new_tokens - 1)) as f64 / decode);
        }
    }
    let mut report = serde_json::json!({
        "side": "infer", "batch": args.batch, "weights": format!("{:?}", args.model.weights()).to_lowercase(),
        "first_token_s": median(first), "decode_tokens_per_s": median(rate.clone()), "peak_rss_mb": peak_rss_mb(),
    });
    let bytes_per_step = weights_per_step(&engine) as f64 * bytes_per_weight(&engine, args.model.weights());
    drop(engine);
    let (reached, possible) = (bytes_per_step * median(rate) / args.batch as f64 / 1e9, read_gb_per_s());
    report["weight_gb_per_step"] = (bytes_per_step / 1e9).into();
    report["read_gb_per_s"] = reached.into();
    report["memory_gb_per_s"] = possible.into();
    report["share_of_memory_bandwidth"] = (reached / possible).into();
    println!("{report}");
    Ok(())
}

fn request(prompt: Prompt, max_new_tokens: usize) -> Request {
    Request { prompt, sampling: SamplingConfig::default(), max_new_tokens, stop: Vec::new(), ignore_eos: true }
}

fn prompts(engine: &Engine, args: &Args) -> Result<Vec<Prompt>> {
    let path = args.data.join("chat.json");
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
    let count = args.batch * (args.rows + 1);
    rows.iter()
        .cycle()
        .take(count)
        .map(|row| {
            let image = row["image"].as_str().context("image")?;
            let question = row["conversations"][0]["value"].as_str().context("a question")?;
            let image = engine.processors.read_image(&args.data.join("images").join(image))?;
            let messages = single_question(common::chat::SYSTEM_PROMPT, question, 1);
            engine.processors.prompt(&messages, &[image])
        })
        .collect()
}

/// Weights of the language model that every decode step reads: all matrices and the head.
fn weights_per_step(engine: &Engine) -> usize {
    let text = &engine.processors.config.text;
    let (width, kv_width) = (text.hidden_size, text.num_key_value_heads * text.head_dim());
    let layer = width * (2 * text.num_attention_heads * text.head_dim() + 2 * kv_width + 3 * text.intermediate_size);
    text.num_hidden_layers * layer + width * text.vocab_size
}

fn bytes_per_weight(engine: &Engine, weights: Weights) -> f64 {
    match (weights, engine.processors.config.dtype) {
        (Weights::Int8, _) => 1.0,
        (Weights::Stored, WeightDtype::Bf16 | WeightDtype::F16) => 2.0,
        _ => 4.0,
    }
}

/// What the memory gives to a program that does nothing but read: the best of several passes over half a gigabyte.
fn read_gb_per_s() -> f64 {
    let values = vec![1f32; 1 << 27];
    let sum_of =
        |part: &[f32]| part.chunks_exact(32).fold([0f32; 32], |sums, new| std::array::from_fn(|i| sums[i] + new[i]));
    let pass = |_| {
        let begin = Instant::now();
        let sums: f32 = values.par_chunks(1 << 16).map(|part| sum_of(part).iter().sum::<f32>()).sum();
        std::hint::black_box(sums);
        (values.len() * 4) as f64 / begin.elapsed().as_secs_f64() / 1e9
    };
    (0..8).map(pass).fold(0.0, f64::max)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
