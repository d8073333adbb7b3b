//! Time to the first token and decoded tokens a second, measured as `tests/bench/peers/peer_generate.py` measures them.
//!
//!     cargo bench -p infer --bench generate -- --model DIR --data DIR | --prompt-tokens N [--batch N] [--new-tokens N] [--rows N] [--weights stored|f32|int8]
//!
//! Greedy, exactly `--new-tokens` a row, image processing excluded, vision tower included; medians over the rows after a
//! first one that warms up. Prints one JSON line.
//!
//! With `--turns`, one batch is measured for each line of stdin, and its JSON line printed: `tests/bench/llama_cpp.py` measures another
//! program in between. `--prompt-tokens N` takes N token ids without a picture in place of `--data`.

use anyhow::{Context, Result};
use chat::dataset::{Questions, Source, read_all};
use clap::Parser;
use infer::args::{ModelArgs, Weights};
use infer::engine::{Engine, Request, Sequence, single_question};
use kernels::memory::peak_rss_mb;
use model::batch::PackedBatch;
use model::config::WeightDtype;
use model::sampling::SamplingConfig;
use rayon::prelude::*;
use std::path::PathBuf;
use std::time::Instant;

/// Times that [`read_rates`] decodes and reads in turn, and tokens each time.
const TURNS: usize = 12;
const STEPS: usize = 3;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Dataset with chat.json and images/.
    #[arg(long, required_unless_present = "prompt_tokens")]
    data: Option<PathBuf>,
    /// Prompts of so many tokens without a picture.
    #[arg(long, conflicts_with = "data")]
    prompt_tokens: Option<u32>,
    /// Measure a batch for each line of stdin.
    #[arg(long)]
    turns: bool,
    /// Rows decoded together.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens a row, exactly.
    #[arg(long, default_value_t = 32)]
    new_tokens: usize,
    /// Batches measured.
    #[arg(long, default_value_t = 4)]
    rows: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse_from(cli::args::with_dashes(std::env::args_os()));
    let engine = Engine::from_args(&args.model)?;
    let prompts = prompts(&engine, &args)?;
    if args.turns {
        return turns(&engine, &prompts[..args.batch], args.new_tokens);
    }
    let (mut first, mut rate) = (Vec::new(), Vec::new());
    for (number, batch) in prompts.chunks(args.batch).enumerate() {
        let [(first_token, _), (decode, _)] = answer(&engine, batch, args.new_tokens)?;
        if number > 0 {
            first.push(first_token);
            rate.push((args.batch * (args.new_tokens - 1)) as f64 / decode);
        }
    }
    let mut report = serde_json::json!({
        "side": "infer", "batch": args.batch, "weights": format!("{:?}", args.model.weights()).to_lowercase(),
        "first_token_s": median(first), "decode_tokens_per_s": median(rate), "peak_rss_mb": peak_rss_mb(),
    });
    let batch = &prompts[..args.batch];
    let bytes_per_step = weights_per_step(&engine) as f64 * bytes_per_weight(&engine, args.model.weights())
        + cache_bytes_per_step(&engine, batch);
    let (reached, possible) = read_rates(&engine, batch, bytes_per_step)?;
    let shares = reached.iter().zip(&possible).map(|(reached, possible)| reached / possible).collect();
    report["gb_per_step"] = (bytes_per_step / 1e9).into();
    report["read_gb_per_s"] = median(reached).into();
    report["memory_gb_per_s"] = median(possible).into();
    report["share_of_memory_bandwidth"] = median(shares).into();
    println!("{report}");
    Ok(())
}

/// Seconds and processor time (user, all threads) of the first tokens of a batch, and of all others.
fn answer(engine: &Engine, batch: &[PackedBatch], new_tokens: usize) -> Result<[(f64, f64); 2]> {
    let (begin, used) = (Instant::now(), user_seconds()?);
    let start = |prompt: &PackedBatch| Ok(engine.start(request(prompt.clone(), new_tokens))?.0);
    let mut sequences = batch.iter().map(start).collect::<Result<Vec<Sequence>>>()?;
    let first = (begin.elapsed().as_secs_f64(), user_seconds()? - used);
    for _ in 1..new_tokens {
        engine.step(&mut sequences.iter_mut().collect::<Vec<_>>())?;
    }
    Ok([first, (begin.elapsed().as_secs_f64() - first.0, user_seconds()? - used - first.1)])
}

/// A measurement for each line of stdin.
fn turns(engine: &Engine, batch: &[PackedBatch], new_tokens: usize) -> Result<()> {
    answer(engine, &batch[..1], 2)?;
    for line in std::io::stdin().lines() {
        line?;
        let [(first, first_cpu), (decode, decode_cpu)] = answer(engine, batch, new_tokens)?;
        let tokens = (batch.len() * (new_tokens - 1)) as f64;
        let report = serde_json::json!({
            "first_s": first, "first_cpu_s": first_cpu, "tokens_per_s": tokens / decode,
            "cpu_ms_per_token": 1e3 * decode_cpu / tokens,
        });
        println!("{report}");
    }
    Ok(())
}

/// Processor time of this process in its own code, as Linux counts it, in hundredths of a second.
fn user_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("Linux's /proc")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().nth(11).context("the time")?.parse::<f64>()? / 100.0)
}

/// GB/s that decoding reads, and that a program reaches which does nothing else, in turn: the machine's speed changes. Its values are in
/// huge pages, as the weights are.
fn read_rates(engine: &Engine, batch: &[PackedBatch], bytes_per_step: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let values = vec![1f32; 1 << 27];
    kernels::memory::move_into_huge_pages(&values);
    let sum_of =
        |part: &[f32]| part.chunks_exact(32).fold([0f32; 32], |sums, new| std::array::from_fn(|i| sums[i] + new[i]));
    let start = |prompt: &PackedBatch| Ok(engine.start(request(prompt.clone(), TURNS * STEPS + 1))?.0);
    let mut sequences = batch.iter().map(start).collect::<Result<Vec<Sequence>>>()?;
    let (mut reached, mut possible) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let begin = Instant::now();
        for _ in 0..STEPS {
            engine.step(&mut sequences.iter_mut().collect::<Vec<_>>())?;
        }
        reached.push(STEPS as f64 * bytes_per_step / begin.elapsed().as_secs_f64() / 1e9);
        let begin = Instant::now();
        let sums: f32 = values.par_chunks(1 << 16).map(|part| sum_of(part).iter().sum::<f32>()).sum();
        std::hint::black_box(sums);
        possible.push(size_of_val(&*values) as f64 / begin.elapsed().as_secs_f64() / 1e9);
    }
    Ok((reached, possible))
}

fn request(prompt: PackedBatch, max_new_tokens: usize) -> Request {
    Request { prompt, sampling: SamplingConfig::default(), max_new_tokens, stop: Vec::new(), ignore_eos: true }
}

fn prompts(engine: &Engine, args: &Args) -> Result<Vec<PackedBatch>> {
    if let Some(tokens) = args.prompt_tokens {
        let ids: Vec<u32> = (0..tokens).map(|index| 1000 + index).collect();
        return (0..args.batch * (args.rows + 1)).map(|_| engine.processors.expand(&ids, Vec::new())).collect();
    }
    let data = args.data.as_deref().context("--data")?;
    let source = Source::find(data, None)?;
    let records = read_all(&source, &Questions::default())?;
    let rows: Vec<_> =
        records.into_iter().map(|(record, _)| Ok(record.map_err(|(_, error)| error)?)).collect::<Result<_>>()?;
    let count = args.batch * (args.rows + 1);
    rows.iter()
        .cycle()
        .take(count)
        .map(|row| {
            let (question, images, _) = row.first_question().context("a question")?;
            let image = images.first().context("an image")?;
            let image = engine.processors.read_image(&data.join("images").join(image))?;
            let messages = single_question(chat::SYSTEM_PROMPT, question, 1);
            engine.processors.prompt(&messages, &[image])
        })
        .collect()
}

/// Weights of the language model that every decode step reads: all matrices and the head.
fn weights_per_step(engine: &Engine) -> usize {
    let text = &engine.processors.config.text;
    let (width, kv_width) = (text.hidden_size, text.num_key_value_heads * text.head_dim);
    let layer = width * (2 * text.num_attention_heads * text.head_dim + 2 * kv_width + 3 * text.intermediate_size);
    text.num_hidden_layers * layer + width * text.vocab_size
}

/// Keys and values that a step of [`read_rates`] reads, f32, on average: those of the prompts and of half of the new tokens.
fn cache_bytes_per_step(engine: &Engine, batch: &[PackedBatch]) -> f64 {
    let text = &engine.processors.config.text;
    let tokens: usize = batch.iter().map(|prompt| prompt.input_ids.len() + TURNS * STEPS / 2).sum();
    let values_of_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim;
    (tokens * values_of_token * size_of::<f32>()) as f64
}

fn bytes_per_weight(engine: &Engine, weights: Weights) -> f64 {
    match (weights, engine.processors.config.dtype) {
        (Weights::Int8, _) => 1.0,
        (Weights::Nf4, _) => 0.516,
        (Weights::Stored, WeightDtype::Bf16 | WeightDtype::F16) => 2.0,
        _ => 4.0,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
