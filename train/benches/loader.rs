//! Rows a second that the loader gives: shuffled, decoded, packed.
//!
//!     cargo bench -p train --bench loader -- --model DIR --shards DIR [--batch N] [--workers N] [--rows N]
//!
//! The first pass warms the file cache up, the second is measured. Prints one JSON line.

use anyhow::{Context, Result};
use clap::Parser;
use model::config::LlavaConfig;
use shards::Split;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use train::loader::{Loader, Source};
use train::mixture::Mixture;
use train::order::{BatchPlan, Cursor};

#[derive(Parser)]
struct Args {
    /// Model directory.
    #[arg(long)]
    model: PathBuf,
    /// Folder of shards.
    #[arg(long)]
    shards: PathBuf,
    /// Rows of a micro-batch.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Loader threads.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Rows to read in each pass.
    #[arg(long, default_value_t = 2000)]
    rows: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = args.shards.display().to_string();
    let shards = Arc::new(Mixture::open(&folder.parse().map_err(anyhow::Error::msg)?, Split::Train)?);
    let config = Arc::new(LlavaConfig::read(&args.model)?);
    let plan = BatchPlan {
        rows: shards.rows_per_epoch(),
        micro_batch_size: args.batch,
        accumulation: 1,
        world_size: 1,
        end: None,
    };
    let source = Source { shards, config, plan, shuffle: true, seed: 1, rank: 0, max_length: usize::MAX };
    let mut loader = Loader::start(source, Cursor::default(), args.workers, 2)?;
    read(&mut loader, args.rows.min(plan.rows))?;
    let (begin, cpu) = (Instant::now(), cpu_seconds()?);
    let rows = read(&mut loader, args.rows)?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    println!(
        r#"{{"side": "ours", "workers": {}, "rows": {rows}, "rows_per_s": {:.0}, "rows_per_cpu_s": {:.0}}}"#,
        args.workers,
        rows as f64 / seconds,
        rows as f64 / cpu
    );
    Ok(())
}

fn read(loader: &mut Loader, rows: usize) -> Result<usize> {
    let mut read = 0;
    while read < rows {
        let batch = loader.next_micro_batch()?.batch.context("an empty micro-batch")?;
        read += batch.seq_lens.len();
    }
    Ok(read)
}

/// CPU-seconds of this process so far, all threads.
fn cpu_seconds() -> Result<f64> {
    /// Of `/proc`'s times, in every Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").context("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / TICKS_PER_SECOND)
}
