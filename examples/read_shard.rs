//! Reads one row of a folder of shards: what a program of your own needs to train on them.
//!
//!     cargo run --release -p shards --example read_shard -- quickstart/shards 0 quickstart/llava

use anyhow::{Context, Result};
use base::IGNORE_INDEX;
use chat::ChatProcessor;
use shards::{ShardSet, Split};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shards, row, model] = &args[..] else { anyhow::bail!("usage: read_shard SHARDS ROW MODEL") };

    // Opens index.json and every file that it names; rows are read at random.
    let shards = ShardSet::open(Path::new(shards), Split::Train)?;
    let row: usize = row.parse().context("ROW is not a number")?;
    anyhow::ensure!(row < shards.len(), "ROW {row}: the shards have {} rows", shards.len());
    let row = shards.read_row(row)?;
    println!("id            {}", row.id);
    println!("images        {}", row.images.join(", "));
    println!("input_ids     {} tokens", row.input_ids.len());

    // Labels are the ids of the tokens that the loss is computed for, and IGNORE_INDEX elsewhere.
    let supervised: Vec<u32> =
        row.labels.iter().filter(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect();
    let chat = ChatProcessor::from_dir(Path::new(model))?;
    println!("supervised    {} tokens: {:?}", supervised.len(), chat.decode(&supervised, false)?);

    // f32 [images, 3, side, side], equal bit for bit to transformers' `pixel_values`.
    let side = shards.metadata().image_processor().crop_size;
    println!("pixel_values  [{}, 3, {side}, {side}]", row.images.len());
    for (channel, values) in ["red", "green", "blue"].iter().zip(row.pixel_values.chunks_exact(side * side)) {
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        println!("mean {channel:<8} {mean:.4}");
    }
    Ok(())
}
